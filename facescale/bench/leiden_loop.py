"""The Leiden algorithm on a graph of faces, one threshold after the other; serves requests like bare_loop.

Runs as a script in an environment that has leidenalg and not facescale: it imports nothing of this package. A request
is {"graph": an .npz file with first, second and similarity of the pairs, "faces": their number, "objective":
"modularity" or "CPM", "threshold": cosine, "out": file}; the labels go to that .npy file, and the answer is
{"clusters", "seconds"}.
Called by facescale.bench.contender.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

import numpy as np

SEED = 0


def serve() -> None:
    """Answer requests from standard input until it ends."""
    # Not imported by name: neither is a dependency of facescale.
    igraph, leidenalg = map(importlib.import_module, ("igraph", "leidenalg"))
    print(json.dumps({"ready": True, "leidenalg": leidenalg.version}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        with np.load(request["graph"]) as graph:
            first, second, similarity = (graph[name] for name in ("first", "second", "similarity"))
        threshold = request["threshold"]
        modular = request["objective"] == "modularity"
        # Modularity takes links above the threshold, at their excess; the constant Potts model asks of a cluster that
        # its pairs exceed the threshold in the mean, so it takes all.
        kept = similarity > threshold if modular else np.ones(len(similarity), bool)
        start = time.perf_counter()
        links = igraph.Graph(n=request["faces"], edges=np.column_stack([first[kept], second[kept]]))
        kind: Any = leidenalg.ModularityVertexPartition if modular else leidenalg.CPMVertexPartition
        options = {} if modular else {"resolution_parameter": threshold}
        weights = similarity[kept] - threshold if modular else similarity[kept]
        partition = leidenalg.find_partition(
            links, kind, weights=weights.tolist(), n_iterations=-1, seed=SEED, **options
        )
        seconds = time.perf_counter() - start
        np.save(request["out"], np.asarray(partition.membership, np.int64))
        print(json.dumps({"clusters": len(partition), "seconds": seconds}), flush=True)


if __name__ == "__main__":
    serve()
