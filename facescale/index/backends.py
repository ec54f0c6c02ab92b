"""The two libraries behind an index, as one small interface: train, build a shard, load a shard, search it.

Arrays, layouts and local paths come in; index files and (ids, similarities) go out. Nothing here knows of lakes.
faiss and hnswlib are imported when first used. Called by the stages (build, train) and by search.

Both builds are reproducible: k-means, graphs and rotations are seeded, and a graph is grown by one thread (several
threads insert in the order in which they get the locks). The same input gives the same bytes with the same library
version on the same kind of processor.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from facescale.errors import CorruptError, MissingExtraError, UsageError
from facescale.index.exact import NO_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from facescale.index.exact import Block
    from facescale.index.plan import Layout

_GPU_MAX_K = 2048  # faiss-gpu selects at most so many neighbors, and probes at most so many lists
_GPU_KINDS = (
    "flat",
    "ivf_flat",
    "ivf_fp16",
    "ivf_sq8",
)  # graphs have no GPU form, product codes only some lengths


class LoadedShard(Protocol):
    """An index file in memory."""

    count: int
    selects: bool
    """Whether `allowed` is understood."""

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        probes: int | None,
        allowed: NDArray[np.int64] | None = None,
        threads: int = 1,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k most similar ids, 1 ≤ k ≤ count: int64 [Q, k] and float32 [Q, k]; missing: -1 and -inf."""

    def absorb(self, other: LoadedShard) -> bool:
        """Take over the vectors of another shard with the same centroids; False when this kind cannot."""


class IndexBackend(Protocol):
    """One library."""

    name: str

    def train(
        self, layout: Layout, sample_ND: NDArray[np.float32], *, seed: int, threads: int, gpu: bool
    ) -> bytes:
        """An empty index, trained; b"" when the kind needs no training."""

    def build(
        self,
        layout: Layout,
        template: bytes,
        blocks: Iterable[Block],
        path: Path,
        *,
        expected: int,
        seed: int,
        threads: int,
    ) -> int:
        """Write one shard; returns the number of vectors in it."""

    def load(self, layout: Layout, path: Path, *, gpu: bool = False) -> LoadedShard:
        """Read one shard."""

    def version(self) -> str:
        """Name and version of the library, for the manifest."""


class FaissBackend:
    """FAISS: flat, inverted lists, graphs."""

    name = "faiss"

    def train(
        self, layout: Layout, sample_ND: NDArray[np.float32], *, seed: int, threads: int, gpu: bool
    ) -> bytes:
        """See IndexBackend. With a GPU the centroids are found there; codebooks and rotations on the CPU."""
        faiss = require_faiss()
        index = faiss.index_factory(layout.dim, layout.factory, faiss.METRIC_INNER_PRODUCT)
        if not layout.has_lists:
            return b""
        ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
        ivf.cp.seed = seed
        ivf.cp.spherical = (
            True  # centroids of unit vectors are compared by inner product: keep them unit vectors
        )
        # The sample was drawn to size; faiss must neither cut it down nor complain.
        ivf.cp.max_points_per_centroid = max(1, -(-len(sample_ND) // layout.nlist))
        ivf.cp.min_points_per_centroid = 1
        if layout.kind == "ivf_pq":
            ivf.pq.cp.seed = seed
            ivf.pq.cp.min_points_per_centroid = 1
        with faiss_threads(threads):
            if gpu:
                ivf.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(layout.dim))
            index.train(np.ascontiguousarray(sample_ND))
            ivf.clustering_index = None
        return bytes(faiss.serialize_index(index))

    def build(
        self,
        layout: Layout,
        template: bytes,
        blocks: Iterable[Block],
        path: Path,
        *,
        expected: int,
        seed: int,
        threads: int,
    ) -> int:
        """See IndexBackend."""
        faiss = require_faiss()
        if layout.has_lists:
            index = faiss.deserialize_index(np.frombuffer(template, np.uint8))
        else:
            index = faiss.index_factory(layout.dim, layout.factory, faiss.METRIC_INNER_PRODUCT)
        if layout.kind == "hnsw":
            hnsw = faiss.downcast_index(index.index).hnsw
            hnsw.efConstruction = layout.ef_construction
            hnsw.rng = faiss.RandomGenerator(seed)
            threads = 1
        with faiss_threads(threads):
            for ids, vectors in blocks:
                index.add_with_ids(vectors, ids)
            faiss.write_index(index, str(path))
        return int(index.ntotal)

    def load(self, layout: Layout, path: Path, *, gpu: bool = False) -> FaissShard:
        """See IndexBackend."""
        faiss = require_faiss()
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise CorruptError(
                f"{path} is no readable FAISS index ({str(error).strip().splitlines()[-1]})"
            ) from error
        return FaissShard(layout, index, gpu=gpu and layout.kind in _GPU_KINDS)

    def version(self) -> str:
        """See IndexBackend."""
        return f"faiss {require_faiss().__version__}"


class FaissShard:
    """A FAISS index in memory; see LoadedShard.

    Args:
        layout: what it is.
        index: the faiss.Index.
        gpu: also keep a copy on the GPU and search there.
    """

    def __init__(self, layout: Layout, index: Any, *, gpu: bool = False) -> None:
        self.layout, self.index = layout, index
        self.selects = (
            layout.kind != "hnsw"
        )  # a graph search with a selector finds a few of those allowed at best
        self.count = int(index.ntotal)
        self._gpu_index: Any = None
        if gpu:
            faiss = require_faiss()
            self._gpu_resources = faiss.StandardGpuResources()  # must live as long as the copy
            self._gpu_index = faiss.index_cpu_to_gpu(self._gpu_resources, 0, index)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        probes: int | None,
        allowed: NDArray[np.int64] | None = None,
        threads: int = 1,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See LoadedShard. Searches with a selector, or for more than 2,048 neighbors, run on the CPU."""
        faiss = require_faiss()
        selector = None if allowed is None else faiss.IDSelectorBatch(np.ascontiguousarray(allowed))
        index = self.index
        if self._gpu_index is not None and selector is None and max(k, probes or 1) <= _GPU_MAX_K:
            index = self._gpu_index
        with faiss_threads(threads):
            parameters = self._parameters(faiss, probes, k, selector)
            sims, ids = index.search(np.ascontiguousarray(queries), k, params=parameters)
        return ids, np.where(ids == NO_ID, -np.inf, sims).astype(np.float32)

    def absorb(self, other: LoadedShard) -> bool:
        """See LoadedShard: inverted lists can be merged, so that the centroids are compared once a query."""
        if not (isinstance(other, FaissShard) and self.layout.has_lists) or self._gpu_index is not None:
            return False
        self.index.merge_from(other.index, 0)
        self.count = int(self.index.ntotal)
        return True

    def _parameters(self, faiss: Any, probes: int | None, k: int, selector: Any) -> Any:
        layout = self.layout
        if layout.has_lists:
            lists = faiss.SearchParametersIVF(nprobe=min(probes or 1, layout.nlist), sel=selector)
            return faiss.SearchParametersPreTransform(index_params=lists) if layout.opq else lists
        if layout.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(probes or 1, k))
        return faiss.SearchParameters(sel=selector) if selector is not None else None


class HnswlibBackend:
    """hnswlib: one graph a shard, in memory, for low latency."""

    name = "hnswlib"

    def train(
        self, layout: Layout, sample_ND: NDArray[np.float32], *, seed: int, threads: int, gpu: bool
    ) -> bytes:
        """See IndexBackend: a graph needs no training."""
        require_hnswlib()
        return b""

    def build(
        self,
        layout: Layout,
        template: bytes,
        blocks: Iterable[Block],
        path: Path,
        *,
        expected: int,
        seed: int,
        threads: int,
    ) -> int:
        """See IndexBackend."""
        graph = require_hnswlib().Index(space="ip", dim=layout.dim)
        graph.init_index(
            max_elements=max(1, expected),
            M=layout.links,
            ef_construction=layout.ef_construction,
            random_seed=seed,
        )
        count = 0
        for ids, vectors in blocks:
            count += len(ids)
            if count > graph.max_elements:
                graph.resize_index(max(count, graph.max_elements * 5 // 4))
            graph.add_items(vectors, ids, num_threads=1)
        graph.resize_index(max(1, count))
        graph.save_index(str(path))
        return count

    def load(self, layout: Layout, path: Path, *, gpu: bool = False) -> HnswlibShard:
        """See IndexBackend."""
        graph = require_hnswlib().Index(space="ip", dim=layout.dim)
        try:
            graph.load_index(str(path))
        except RuntimeError as error:
            raise CorruptError(f"{path} is no readable hnswlib index ({error})") from error
        return HnswlibShard(graph)

    def version(self) -> str:
        """See IndexBackend."""
        from importlib.metadata import version

        require_hnswlib()
        return f"hnswlib {version('hnswlib')}"


class HnswlibShard:
    """An hnswlib graph in memory; see LoadedShard."""

    selects = False

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.count = int(graph.element_count)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        probes: int | None,
        allowed: NDArray[np.int64] | None = None,
        threads: int = 1,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See LoadedShard."""
        ids = np.full((len(queries), k), NO_ID, np.int64)
        sims = np.full((len(queries), k), -np.inf, np.float32)
        reachable = min(k, self.count)
        while reachable:
            self.graph.set_ef(max(probes or 1, reachable))
            try:
                labels, distances = self.graph.knn_query(queries, reachable, num_threads=threads)
            except RuntimeError:
                # hnswlib refuses the whole batch when one query reaches fewer than k vectors from its entry point.
                reachable //= 2
                continue
            ids[:, :reachable], sims[:, :reachable] = labels.astype(np.int64), 1 - distances
            break
        return ids, sims

    def absorb(self, other: LoadedShard) -> bool:
        """See LoadedShard: graphs cannot be merged."""
        return False


_BACKENDS: dict[str, Callable[[], IndexBackend]] = {"faiss": FaissBackend, "hnswlib": HnswlibBackend}


def load_backend(name: str) -> IndexBackend:
    """The library of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in _BACKENDS:
        raise UsageError(f"index backend {name!r} is unknown; there are {', '.join(_BACKENDS)}")
    return _BACKENDS[name]()


def require_faiss() -> Any:
    """The faiss module.

    Raises:
        MissingExtraError: neither faiss-cpu nor faiss-gpu is installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss", "cpu", "a FAISS index") from error
    return faiss


def require_hnswlib() -> Any:
    """The hnswlib module.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import hnswlib
    except ImportError as error:
        raise MissingExtraError("hnswlib", "hnsw", "an hnswlib index") from error
    return hnswlib


def visible_gpus() -> int:
    """GPUs that faiss can use: 0 with faiss-cpu."""
    faiss = require_faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


@contextlib.contextmanager
def faiss_threads(threads: int) -> Iterator[None]:
    """Give faiss this many threads inside the block."""
    faiss = require_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
