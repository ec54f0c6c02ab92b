"""Which index to build, as pure functions: count, dimension, memory and recall target in, a plan with its bytes out.

No data is read and nothing is imported but numpy, so `facescale run --dry-run` can print the plan. Called by build
(before anything is trained) and by the command line.

The ladder, for the backend faiss, from exact to small:

    flat       float32, brute force              4·D bytes a vector   up to FLAT_BYTES, or when exactness is asked for
    hnsw       float32 and a graph               4·D + 8·M            for recall targets from 0.99 up, on a CPU
    ivf_flat   float32 in inverted lists         4·D
    ivf_fp16   float16 in inverted lists         2·D                  what the lake stores: loses nothing
    ivf_sq8    8-bit scalars in inverted lists   D
    ivf_pq     product codes in inverted lists   m, at most D / 2     with OPQ from four dimensions a code up

plus 8 bytes of id for every vector. The first of the ladder that fits the memory budget is taken. The list counts
follow the FAISS guidelines (4·√N to 16·√N lists, 39 to 256 training vectors for each).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from facescale.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Kind = Literal["flat", "hnsw", "ivf_flat", "ivf_fp16", "ivf_sq8", "ivf_pq"]
BackendName = Literal["faiss", "hnswlib"]

KINDS: tuple[str, ...] = get_args(Kind)
BACKENDS: tuple[str, ...] = get_args(BackendName)

FLAT_BYTES = 512 << 20
"""Up to this many bytes of float32 vectors a brute-force scan takes tens of milliseconds: no reason to approximate."""
HNSW_RECALL = 0.99
"""From this recall target up a graph visits fewer vectors than inverted lists do."""
HNSW_MAX_VECTORS = 10_000_000
"""A graph is built at some thousand vectors per second and core; beyond this inverted lists are built instead."""
HNSW_SHARD_VECTORS = 1_000_000
"""A graph shard is built by one thread (that makes it reproducible), so graphs are cut into smaller shards."""
HNSW_LINKS = 32
HNSW_EF_CONSTRUCTION = 128
MAX_LISTS = 1 << 18
MIN_TRAIN_PER_LIST = 39
TRAIN_PER_LIST = 64
PQ_CODES = 256
_ID_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How vectors are stored in one index.

    Attributes:
        backend: "faiss" or "hnswlib".
        kind: rung of the ladder above.
        dim: D.
        nlist: inverted lists; 0 without them.
        pq_m: bytes of a product code; 0 without.
        opq: whether vectors are rotated before they are coded.
        links: M of a graph; 0 without.
        ef_construction: candidates looked at while a graph is built.
    """

    backend: str
    kind: str
    dim: int
    nlist: int = 0
    pq_m: int = 0
    opq: bool = False
    links: int = 0
    ef_construction: int = 0

    @property
    def factory(self) -> str:
        """The faiss.index_factory string; for hnswlib a description of the same form."""
        if self.backend == "hnswlib":
            return f"hnswlib,HNSW{self.links}"
        if self.kind == "flat":
            return "IDMap2,Flat"
        if self.kind == "hnsw":
            return f"IDMap2,HNSW{self.links},Flat"
        if self.kind == "ivf_pq":
            # "np": no polysemous training, a slow annealing that serves Hamming filters we do not use.
            return f"{f'OPQ{self.pq_m},' if self.opq else ''}IVF{self.nlist},PQ{self.pq_m}x8np"
        return f"IVF{self.nlist},{ {'ivf_flat': 'Flat', 'ivf_fp16': 'SQfp16', 'ivf_sq8': 'SQ8'}[self.kind] }"

    @property
    def is_exact(self) -> bool:
        """Whether every vector is compared in full."""
        return self.kind == "flat"

    @property
    def is_lossy(self) -> bool:
        """Whether vectors are stored with less precision than the lake has them."""
        return self.kind in ("ivf_sq8", "ivf_pq")

    @property
    def has_lists(self) -> bool:
        """Whether it is made of inverted lists (trained, searched with nprobe)."""
        return self.nlist > 0

    @property
    def probe_name(self) -> str | None:
        """The knob that trades time for recall; None for an exact index."""
        if self.is_exact:
            return None
        return "nprobe" if self.has_lists else "efSearch"

    def to_json(self) -> dict[str, Any]:
        """Its fields, for the manifest and the fingerprint."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class IndexPlan:
    """What to build.

    Attributes:
        layout: how vectors are stored.
        count: vectors planned for.
        num_shards: index files.
        train_size: vectors of the training sample; 0 when nothing is trained.
        estimated_bytes: all shards together, on disk and (nearly the same) in memory.
        fits: whether they fit the memory budget at once; if not, search streams them shard by shard.
        why: one sentence for people.
    """

    layout: Layout
    count: int
    num_shards: int
    train_size: int
    estimated_bytes: int
    fits: bool
    why: str


def choose(
    count: int,
    dim: int,
    *,
    memory_bytes: int,
    recall_target: float,
    backend: str = "faiss",
    gpu: bool = False,
    kind: str = "auto",
    shard_vectors: int = 4_000_000,
) -> IndexPlan:
    """Choose an index.

    Args:
        count: number of vectors N, 0 or more.
        dim: their dimension D.
        memory_bytes: what the whole index may take in memory when it is searched.
        recall_target: wanted share of the true nearest neighbors, 0 < r ≤ 1; 1 asks for exact search.
        backend: "faiss" or "hnswlib".
        gpu: whether faiss sees a GPU (graphs are then left out: they are built and searched on the CPU).
        kind: a rung of the ladder to insist on, or "auto".
        shard_vectors: most vectors in one index file.

    Returns:
        The plan. An exact index that is larger than `memory_bytes` is allowed, and streamed (`fits` is False).

    Raises:
        UsageError: an argument is out of range, or nothing approximate fits the memory; the message has the numbers.
    """
    _check_arguments(count, dim, memory_bytes, recall_target, backend, kind, shard_vectors)

    def size(layout: Layout) -> int:
        return estimate_bytes(layout, count, num_shards=shard_count(layout, count, shard_vectors))

    layout, why = _choose_layout(count, dim, memory_bytes, recall_target, backend, gpu, kind, size)
    estimated = size(layout)
    fits = estimated <= memory_bytes
    if not fits and not layout.is_exact:
        raise UsageError(
            f"{layout.factory} over {count:,} vectors of dimension {dim} takes {_size(estimated)}, and the memory "
            f"budget is {_size(memory_bytes)}: raise --memory-gib to {estimated / 2**30:.1f}, or let the kind be chosen"
        )
    if not fits:
        why += f"; larger than the budget of {_size(memory_bytes)}, so search streams it shard by shard"
    return IndexPlan(
        layout=layout,
        count=count,
        num_shards=shard_count(layout, count, shard_vectors),
        train_size=_train_size(layout, count, memory_bytes),
        estimated_bytes=estimated,
        fits=fits,
        why=f"{layout.factory} ({_size(estimated)}): {why}",
    )


def estimate_bytes(layout: Layout, count: int, *, num_shards: int = 1) -> int:
    """Size of the index files.

    Args:
        layout: how vectors are stored.
        count: vectors in all shards together.
        num_shards: files; each repeats the centroids and the codebooks.

    Returns:
        Bytes; within about 2 % of what is written from some thousand vectors up.
    """
    dim = layout.dim
    if layout.backend == "hnswlib":
        # Level 0: links with their count, vector, label; above: a length for every vector, links for one in M - 1.
        base = 4 * (2 * layout.links) + 4 + 4 * dim + _ID_BYTES
        upper = 4 + (4 * layout.links + 4) / (layout.links - 1)
        return round(count * (base + upper))
    if layout.kind == "hnsw":
        # Twice M links at level 0 and M for one vector in M - 1 above; its level (4) and where its links begin (8).
        links = 4 * (2 * layout.links) + 4 * layout.links / (layout.links - 1)
        return round(count * (4 * dim + _ID_BYTES + links + 4 + 8))
    code = {"flat": 4 * dim, "ivf_flat": 4 * dim, "ivf_fp16": 2 * dim, "ivf_sq8": dim, "ivf_pq": layout.pq_m}
    fixed = 0
    if layout.has_lists:
        fixed += layout.nlist * (4 * dim + 8)  # centroids, and the length of each list
    if layout.kind == "ivf_sq8":
        fixed += 2 * 4 * dim  # smallest value and range of each dimension
    if layout.kind == "ivf_pq":
        fixed += PQ_CODES * 4 * dim
    if layout.opq:
        fixed += 4 * dim * dim
    return count * (code[layout.kind] + _ID_BYTES) + num_shards * fixed


def shard_count(layout: Layout, count: int, shard_vectors: int) -> int:
    """Index files for N vectors, none of which should hold more than `shard_vectors`."""
    limit = min(shard_vectors, HNSW_SHARD_VECTORS) if layout.kind == "hnsw" else shard_vectors
    return -(-count // limit)


def list_count(count: int) -> int:
    """Inverted lists for N vectors: the power of two nearest to 4·√N that leaves 39 training vectors for each."""
    if count < MIN_TRAIN_PER_LIST:
        return 1
    wanted = 2 ** round(np.log2(4 * np.sqrt(count)))
    most = 2 ** int(np.log2(count / MIN_TRAIN_PER_LIST))
    return int(min(wanted, most, MAX_LISTS))


def split_evenly(weights: NDArray[np.int64], num_runs: int) -> NDArray[np.int64]:
    """Cut a sequence into runs of about equal weight.

    Args:
        weights: [P], not negative.
        num_runs: runs wanted.

    Returns:
        Increasing offsets int64 [R + 1], from 0 to P, R ≤ num_runs: run i is weights[o[i]:o[i + 1]], never empty.
    """
    if len(weights) == 0:
        return np.zeros(1, np.int64)
    ends = np.cumsum(weights, dtype=np.float64)
    goals = ends[-1] * np.arange(1, num_runs) / num_runs
    # The cut goes to the nearer side of the part that holds the goal.
    cuts = np.searchsorted(ends - np.asarray(weights) / 2, goals)
    return np.unique(np.concatenate([[0], cuts, [len(weights)]])).astype(np.int64)


def _check_arguments(
    count: int, dim: int, memory_bytes: int, recall_target: float, backend: str, kind: str, shard_vectors: int
) -> None:
    if count < 0 or dim < 1 or shard_vectors < 1:
        raise UsageError(
            f"count {count}, dim {dim}, shard_vectors {shard_vectors}: need count ≥ 0, the others ≥ 1"
        )
    if not 0 < recall_target <= 1:
        raise UsageError(f"recall: {recall_target} is outside 0 < recall ≤ 1")
    if memory_bytes < 1:
        raise UsageError(f"memory: {memory_bytes} bytes; give the index some, e.g. 4 GiB")
    if backend not in BACKENDS:
        raise UsageError(f"index backend {backend!r} is unknown; there are {', '.join(BACKENDS)}")
    if kind != "auto" and kind not in KINDS:
        raise UsageError(f"index kind {kind!r} is unknown; there are auto, {', '.join(KINDS)}")
    if backend == "hnswlib" and kind not in ("auto", "hnsw"):
        raise UsageError(f"backend hnswlib builds graphs only (kind hnsw); {kind} needs backend faiss")


def _choose_layout(
    count: int,
    dim: int,
    memory_bytes: int,
    recall_target: float,
    backend: str,
    gpu: bool,
    kind: str,
    size: Callable[[Layout], int],
) -> tuple[Layout, str]:
    if kind != "auto":
        return _forced(count, dim, memory_bytes, backend, kind, size)
    graph = _graph(backend, dim)
    if backend == "hnswlib":
        return graph, "the hnswlib backend builds one graph a shard, in memory"
    flat = Layout(backend=backend, kind="flat", dim=dim)
    if recall_target >= 1:
        return flat, "recall 1 asks for exact search"
    if 4 * dim * count <= FLAT_BYTES and size(flat) <= memory_bytes:
        return flat, f"{count:,} vectors are few enough to compare them all"
    if count < MIN_TRAIN_PER_LIST * PQ_CODES:
        return flat, f"{count:,} vectors are too few to train anything smaller"
    graph_bytes = size(graph)
    if recall_target >= HNSW_RECALL and count <= HNSW_MAX_VECTORS and not gpu and graph_bytes <= memory_bytes:
        return graph, f"recall {recall_target:g} is reached sooner by a graph, and one fits the memory"
    for layout in _list_layouts(count, dim):
        if size(layout) <= memory_bytes:
            return layout, f"the most precise inverted lists within {_size(memory_bytes)}"
    smallest = _list_layouts(count, dim)[-1]
    least = size(smallest)
    raise UsageError(
        f"no index over {count:,} vectors of dimension {dim} fits {_size(memory_bytes)}: the smallest "
        f"({smallest.factory}) takes {_size(least)}; raise --memory-gib to {least / 2**30:.2f}, or ask for recall 1 "
        "(exact search streams its shards from disk)"
    )


def _forced(
    count: int, dim: int, memory_bytes: int, backend: str, kind: str, size: Callable[[Layout], int]
) -> tuple[Layout, str]:
    why = f"kind {kind} was asked for"
    if kind == "flat":
        return Layout(backend=backend, kind=kind, dim=dim), why
    if kind == "hnsw":
        return _graph(backend, dim), why
    least = MIN_TRAIN_PER_LIST * (PQ_CODES if kind == "ivf_pq" else 1)
    if count < least:
        raise UsageError(
            f"index kind {kind} is trained on at least {least:,} vectors, and there are {count:,}: use flat"
        )
    layouts = [layout for layout in _list_layouts(count, dim) if layout.kind == kind]
    if not layouts:
        raise UsageError(f"index kind {kind} needs a dimension that 2 divides, and it is {dim}")
    fitting = [layout for layout in layouts if size(layout) <= memory_bytes]
    return (fitting or layouts[-1:])[0], why


def _graph(backend: str, dim: int) -> Layout:
    return Layout(
        backend=backend, kind="hnsw", dim=dim, links=HNSW_LINKS, ef_construction=HNSW_EF_CONSTRUCTION
    )


def _list_layouts(count: int, dim: int) -> list[Layout]:
    """Inverted lists from the largest to the smallest; product codes of every length that divides D."""
    nlist = list_count(count)
    plain = [
        Layout(backend="faiss", kind=kind, dim=dim, nlist=nlist)
        for kind in ("ivf_flat", "ivf_fp16", "ivf_sq8")
    ]
    lengths = [m for m in range(dim // 2, 0, -1) if dim % m == 0 and dim // m <= 16]
    coded = [
        Layout(backend="faiss", kind="ivf_pq", dim=dim, nlist=nlist, pq_m=m, opq=dim // m >= 4)
        for m in lengths
    ]
    return plain + coded


def _train_size(layout: Layout, count: int, memory_bytes: int) -> int:
    """Training vectors: 64 for each list and product code, down to 39 when 64 would take half of the memory."""
    if not layout.has_lists:
        return 0
    clusters = max(layout.nlist, PQ_CODES if layout.kind == "ivf_pq" else 0)
    affordable = memory_bytes // 2 // (4 * layout.dim)
    return min(count, max(MIN_TRAIN_PER_LIST * clusters, min(TRAIN_PER_LIST * clusters, affordable)))


def _size(num_bytes: int) -> str:
    if num_bytes < 1 << 20:
        return f"{num_bytes / 2**10:.1f} KiB"
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes < 1 << 30 else f"{num_bytes / 2**30:.1f} GiB"
