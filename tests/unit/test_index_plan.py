"""Which index is chosen for what, and how well its size is foretold."""

from __future__ import annotations

import numpy as np
import pytest

from facescale.errors import UsageError
from facescale.index.backends import FaissBackend, HnswlibBackend
from facescale.index.plan import KINDS, Layout, choose, estimate_bytes, list_count, split_evenly

GIB = 1 << 30

# (count, dim, memory, recall, gpu) → factory. Bytes a vector, ids included: flat 4D + 8, fp16 2D + 8, SQ8 D + 8.
CHOICES = [
    (0, 128, GIB, 0.95, False, "IDMap2,Flat"),
    (1, 128, GIB, 0.95, False, "IDMap2,Flat"),
    (1_000_000, 128, GIB, 0.95, False, "IDMap2,Flat"),  # 488 MiB of vectors: the last that is scanned
    (1_000_000, 512, 4 * GIB, 0.95, False, "IVF4096,Flat"),
    (1_100_000, 128, GIB, 0.95, False, "IVF4096,Flat"),
    (1_100_000, 128, GIB // 2, 0.95, False, "IVF4096,SQfp16"),
    (1_100_000, 128, GIB // 4, 0.95, False, "IVF4096,SQ8"),
    (1_100_000, 128, GIB // 8, 0.95, False, "IVF4096,PQ64x8np"),
    (1_100_000, 128, GIB // 16, 0.95, False, "OPQ32,IVF4096,PQ32x8np"),
    (1_100_000, 128, GIB, 0.99, False, "IDMap2,HNSW32,Flat"),
    (1_100_000, 128, GIB, 0.99, True, "IVF4096,Flat"),  # graphs stay on the CPU
    (1_100_000, 128, GIB // 2, 0.99, False, "IVF4096,SQfp16"),  # the graph does not fit
    (20_000_000, 128, 64 * GIB, 0.99, False, "IVF16384,Flat"),  # too many for a graph
    (1_100_000, 128, GIB // 16, 1.0, False, "IDMap2,Flat"),  # exactness was asked for
    (260_000_000, 128, 256 * GIB, 0.95, False, "IVF65536,Flat"),
    (260_000_000, 512, 384 * GIB, 0.95, False, "IVF65536,SQfp16"),
    (260_000_000, 128, 64 * GIB, 0.95, False, "IVF65536,SQ8"),
    (260_000_000, 128, 24 * GIB, 0.95, False, "IVF65536,PQ64x8np"),
    (260_000_000, 512, 32 * GIB, 0.95, False, "OPQ64,IVF65536,PQ64x8np"),
    (5_000, 128, 1 << 20, 0.95, False, "IDMap2,Flat"),  # too few to train: streamed
]


@pytest.mark.parametrize(("count", "dim", "memory", "recall", "gpu", "factory"), CHOICES)
def test_choice(count: int, dim: int, memory: int, recall: float, gpu: bool, factory: str) -> None:
    plan = choose(count, dim, memory_bytes=memory, recall_target=recall, gpu=gpu)
    assert plan.layout.factory == factory
    assert plan.fits == (plan.estimated_bytes <= memory)
    assert plan.fits or plan.layout.is_exact
    assert plan.why.startswith(factory)


@pytest.mark.parametrize("count", [1_100_000, 3_000_000, 50_000_000])
@pytest.mark.parametrize("dim", [96, 128, 512])
def test_less_memory_never_chooses_a_larger_index(count: int, dim: int) -> None:
    flat = 4 * dim * count
    sizes = [
        choose(count, dim, memory_bytes=int(share * flat), recall_target=0.9).estimated_bytes
        for share in (2, 0.9, 0.45, 0.2, 0.1, 0.07)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) >= 4


def test_what_does_not_fit_is_refused_with_the_number_needed() -> None:
    with pytest.raises(UsageError, match=r"fits 1\.0 GiB.*PQ8x8np\).*raise --memory-gib to 5\.\d\d"):
        choose(260_000_000, 128, memory_bytes=GIB, recall_target=0.95)
    with pytest.raises(UsageError, match=r"hnswlib,HNSW32 over 10,000,000 .* raise --memory-gib to 7\.\d"):
        choose(10_000_000, 128, memory_bytes=GIB, recall_target=0.95, backend="hnswlib")
    needed = choose(260_000_000, 128, memory_bytes=6 * GIB, recall_target=0.95)
    assert needed.layout.pq_m == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -1}, "count -1"),
        ({"recall_target": 0}, "recall: 0"),
        ({"recall_target": 1.01}, "recall: 1.01"),
        ({"memory_bytes": 0}, "memory: 0"),
        ({"backend": "annoy"}, "'annoy' is unknown; there are faiss, hnswlib"),
        ({"kind": "lsh"}, "'lsh' is unknown; there are auto, flat"),
        ({"backend": "hnswlib", "kind": "ivf_pq"}, "hnswlib builds graphs only"),
        ({"kind": "ivf_pq"}, "at least 9,984 vectors, and there are 1,000"),
        ({"kind": "ivf_pq", "count": 20_000, "dim": 31}, "a dimension that 2 divides, and it is 31"),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    options = {"count": 1000, "dim": 64, "memory_bytes": GIB, "recall_target": 0.9} | arguments
    with pytest.raises(UsageError, match=message):
        choose(**options)  # type: ignore[arg-type]


def test_shards_hold_at_most_what_was_asked_and_graphs_less() -> None:
    lists = choose(9_000_000, 128, memory_bytes=32 * GIB, recall_target=0.95, shard_vectors=4_000_000)
    graph = choose(9_000_000, 128, memory_bytes=32 * GIB, recall_target=0.99, shard_vectors=4_000_000)
    assert (lists.num_shards, graph.num_shards) == (3, 9)
    assert choose(0, 128, memory_bytes=GIB, recall_target=0.95).num_shards == 0


@pytest.mark.parametrize("count", [1, 38, 39, 1_000, 10_000, 1_000_000, 260_000_000, 4_000_000_000])
def test_lists_are_a_power_of_two_with_enough_vectors_each(count: int) -> None:
    lists = list_count(count)
    assert lists & (lists - 1) == 0
    assert lists == 1 or 39 * lists <= count


def test_training_sample_is_bounded_by_memory_but_not_below_39_a_list() -> None:
    roomy = choose(50_000_000, 128, memory_bytes=64 * GIB, recall_target=0.95, kind="ivf_flat")
    tight = choose(50_000_000, 128, memory_bytes=4 * GIB, recall_target=0.95)
    assert roomy.train_size == 64 * roomy.layout.nlist
    assert 39 * tight.layout.nlist <= tight.train_size <= 64 * tight.layout.nlist
    assert tight.train_size * 4 * 128 <= 2 * GIB or tight.train_size == 39 * tight.layout.nlist


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "dim"), [(12_000, 32), (10_000, 48)])
def test_estimates_agree_with_what_faiss_writes(kind: str, count: int, dim: int, tmp_path) -> None:
    plan = choose(count, dim, memory_bytes=GIB, recall_target=0.9, kind=kind)
    assert abs(_written(FaissBackend(), plan.layout, count, tmp_path) / plan.estimated_bytes - 1) < 0.02


def test_estimates_agree_with_faiss_for_rotated_codes(tmp_path) -> None:
    layout = Layout(backend="faiss", kind="ivf_pq", dim=32, nlist=64, pq_m=4, opq=True)
    assert abs(_written(FaissBackend(), layout, 10_000, tmp_path) / estimate_bytes(layout, 10_000) - 1) < 0.02


def test_estimates_agree_with_what_hnswlib_writes(tmp_path) -> None:
    plan = choose(6_000, 32, memory_bytes=GIB, recall_target=0.9, backend="hnswlib")
    assert abs(_written(HnswlibBackend(), plan.layout, 6_000, tmp_path) / plan.estimated_bytes - 1) < 0.02


def _written(backend: FaissBackend | HnswlibBackend, layout: Layout, count: int, folder) -> int:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((count, layout.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = (np.int64(1) << 45) + 256 * np.arange(count, dtype=np.int64) + 1
    template = backend.train(layout, vectors[: 64 * max(layout.nlist, 64)], seed=0, threads=1, gpu=False)
    path = folder / "index"
    assert backend.build(layout, template, [(ids, vectors)], path, expected=count, seed=0, threads=1) == count
    return int(path.stat().st_size)


@pytest.mark.parametrize(
    ("weights", "runs", "offsets"),
    [
        ([], 3, [0]),
        ([5], 3, [0, 1]),
        ([1, 1, 1, 1], 2, [0, 2, 4]),
        ([10, 1, 1, 1], 2, [0, 1, 4]),
        ([0, 0, 8, 0], 2, [0, 2, 4]),
    ],
)
def test_split(weights: list[int], runs: int, offsets: list[int]) -> None:
    assert split_evenly(np.array(weights, np.int64), runs).tolist() == offsets
