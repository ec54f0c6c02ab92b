"""FAISS and hnswlib, tuned on a sample to a recall of edges and timed on some queries: what `bench neighbors` compares.

Vectors and the sample's exact lists come in, rows of a table go out. Called by facescale.bench.neighbors.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.errors import MissingExtraError
from facescale.index.exact import exact_top_k

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

_LINKS, _EF_CONSTRUCTION = 16, 200
_TRAIN_PER_LIST = 64
_MAX_EF = 4096
_SAMPLE = 250


@dataclass(frozen=True, eq=False)
class Edges:
    """Pairs of faces that are similar: all of some faces.

    Attributes:
        first: int64 [E], rows of the faces.
        second: int64 [E], rows of those similar to them.
        everyone: int64 [Q], rising: all of both, whose lists tell which pairs are found.
    """

    first: Ints
    second: Ints
    everyone: Ints

    @classmethod
    def among(cls, vectors: Floats, rows: Ints, k: int, floor: float) -> Edges:
        """The pairs of some rows that are in exact lists of k and above a floor."""
        found, sims = exact_top_k(vectors[rows], [(np.arange(len(vectors)), vectors)], k + 1)
        at, column = np.nonzero((found != rows[:, None]) & (sims >= np.float32(floor)))
        first, second = rows[at], found[at, column]
        return cls(first, second, np.union1d(rows, second))

    def recall(self, lists_QK: Ints) -> float:
        """Share of the pairs of which one has the other in its list: int64 [Q, K], rows, of `everyone`."""
        there, back = (
            (lists_QK[np.searchsorted(self.everyone, one)] == other[:, None]).any(axis=1)
            for one, other in ((self.first, self.second), (self.second, self.first))
        )
        return float((there | back).mean()) if len(there) else 1.0


def faiss_seconds(
    vectors: Floats, edges: Edges, wanted: float, queries: Ints, *, nlist: int, k: int, threads: int
) -> dict[str, Any]:
    """IndexIVFFlat: only its search is counted, not what it takes to train it and to add the faces.

    Raises:
        MissingExtraError: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss", "cpu", "the comparison with FAISS") from error
    faiss.omp_set_num_threads(threads)
    start = time.perf_counter()
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], nlist, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 10
    some = np.random.default_rng(0).choice(len(vectors), min(len(vectors), _TRAIN_PER_LIST * nlist), False)
    index.train(vectors[np.sort(some)])
    index.add(vectors)
    built = time.perf_counter() - start

    def search(rows: Ints, nprobe: int) -> Ints:
        index.nprobe = nprobe
        found: Ints = index.search(vectors[rows], k + 1)[1]
        return found

    nprobe, recall = tune(lambda width: edges.recall(search(edges.everyone, width)), wanted, nlist)
    start = time.perf_counter()
    search(queries, nprobe)
    each = (time.perf_counter() - start) / len(queries)
    return {
        "method": f"IndexIVFFlat, {nlist:,} lists, nprobe {nprobe}",
        "recall of pairs": recall,
        "seconds": each * len(vectors),
        "of which for building": 0.0,
        "not counted: training and adding": built,
        "timed on": f"{len(queries):,} queries",
    }


def hnswlib_seconds(
    vectors: Floats, floor: float, wanted: float, queries: Ints, subset: Ints, *, k: int, threads: int
) -> dict[str, Any]:
    """hnswlib: build and queries, over a subset where that is asked for; both times grow at least with the number.

    Raises:
        MissingExtraError: hnswlib is not installed.
    """
    try:
        import hnswlib
    except ImportError as error:
        raise MissingExtraError("hnswlib", "hnsw", "the comparison with hnswlib") from error
    # The graph is tuned on faces that it holds, whose neighbors are those in it.
    base = vectors[subset]
    edges = Edges.among(base, np.linspace(0, len(base) - 1, _SAMPLE).astype(np.int64), k, floor)
    queries = np.linspace(0, len(base) - 1, min(len(queries), len(base))).astype(np.int64)
    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.init_index(len(base), M=_LINKS, ef_construction=_EF_CONSTRUCTION, random_seed=0)
    index.set_num_threads(threads)
    start = time.perf_counter()
    index.add_items(base)
    built = time.perf_counter() - start

    def search(rows: Ints, ef: int) -> Ints:
        index.set_ef(max(ef, k + 1))
        found: Ints = index.knn_query(base[rows], k + 1)[0].astype(np.int64)
        return found

    ef, recall = tune(lambda width: edges.recall(search(edges.everyone, width)), wanted, _MAX_EF, first=k + 1)
    start = time.perf_counter()
    search(queries, ef)
    each = (time.perf_counter() - start) / len(queries)
    share = len(vectors) / len(base)
    return {
        "method": f"hnswlib, M {_LINKS}, efConstruction {_EF_CONSTRUCTION}, ef {ef}",
        "recall of pairs": recall,
        "seconds": built * share + each * len(vectors),
        "of which for building": built * share,
        "not counted: training and adding": 0.0,
        "timed on": f"a graph of {len(base):,} faces, {len(queries):,} queries",
    }


def tune(measure: Callable[[int], float], wanted: float, most: int, *, first: int = 1) -> tuple[int, float]:
    """The narrowest search that reaches a recall, by doubling and then halving the difference: (width, recall).

    Where none does, the widest: its recall says so.
    """
    low, high = first, first
    recall = measure(high)
    while recall < wanted and high < most:
        low, high = high, min(2 * high, most)
        recall = measure(high)
    while high - low > max(1, high // 16):
        middle = (low + high) // 2
        found = measure(middle)
        if found >= wanted:
            high, recall = middle, found
        else:
            low = middle
    return high, recall
