"""What a build keeps in LAKE/_scratch/index/<version>/ until its manifest is written; each file means "done".

    queries.npz           held-out queries: ids and vectors
    template.bin          the empty trained index (missing when nothing is trained)
    training.json         last of the three: the training is done; says how
    0000000.truth.npz     exact neighbors of the queries among the faces of shard 0
    0000000.json          last: shard 0 is done; its count, size and sha256

Arrays and records go in and come out. Called by the stages and by finish.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.index.manifest import ShardFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.index.build import IndexBuild, IndexShard
    from facescale.lake.store import Store

TRAINING = "training.json"


def write_training(
    store: Store,
    build: IndexBuild,
    *,
    query_ids: NDArray[np.int64],
    queries: NDArray[np.float32],
    template: bytes,
    record: dict[str, Any],
) -> None:
    """Keep what a training made; the record is written last."""
    _write_arrays(store, f"{build.scratch}/queries.npz", ids=query_ids, vectors=queries)
    if template:
        store.write_bytes(f"{build.scratch}/template.bin", template)
    store.write_bytes(f"{build.scratch}/{TRAINING}", json.dumps(record, sort_keys=True).encode())


def read_training(store: Store, build: IndexBuild) -> dict[str, Any] | None:
    """The record of the training; None when it is not done."""
    try:
        record: dict[str, Any] = json.loads(store.read_bytes(f"{build.scratch}/{TRAINING}"))
    except FileNotFoundError:
        return None
    return record


def read_template(store: Store, build: IndexBuild) -> bytes:
    """The trained empty index; b"" for kinds that are not trained."""
    return store.read_bytes(f"{build.scratch}/template.bin") if build.plan.train_size else b""


def read_queries(store: Store, build: IndexBuild) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(ids [Q], vectors [Q, D]) of the held-out queries."""
    arrays = _read_arrays(store, f"{build.scratch}/queries.npz")
    return arrays["ids"], arrays["vectors"]


def write_shard(
    store: Store,
    build: IndexBuild,
    shard: IndexShard,
    record: ShardFile,
    truth: tuple[NDArray[np.int64], NDArray[np.float32]],
) -> None:
    """Keep the truth and the record of a shard whose file is in place."""
    name = f"{build.scratch}/{shard.key.shard:07d}"
    _write_arrays(store, f"{name}.truth.npz", ids=truth[0], sims=truth[1])
    store.write_bytes(f"{name}.json", json.dumps(asdict(record), sort_keys=True).encode())


def read_truth(
    store: Store, build: IndexBuild, shard: IndexShard
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(ids [Q, T], similarities [Q, T]) of the queries' exact neighbors in one shard."""
    arrays = _read_arrays(store, f"{build.scratch}/{shard.key.shard:07d}.truth.npz")
    return arrays["ids"], arrays["sims"]


def read_record(store: Store, build: IndexBuild, shard: IndexShard) -> ShardFile:
    """The record of a shard that is done."""
    return ShardFile(**json.loads(store.read_bytes(f"{build.scratch}/{shard.key.shard:07d}.json")))


def done_shards(store: Store, build: IndexBuild) -> set[int]:
    """Numbers of the shards that are done, from one listing."""
    names = (path.rsplit("/", 1)[1] for path, _ in store.list(build.scratch))
    return {int(name[:7]) for name in names if name[7:] == ".json" and name[:7].isdigit()}


def _write_arrays(store: Store, path: str, **arrays: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    store.write_bytes(path, buffer.getvalue())


def _read_arrays(store: Store, path: str) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(store.read_bytes(path)), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
