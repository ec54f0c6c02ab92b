"""The files of an index as one searchable thing, within a memory budget.

Shard files and queries come in, merged neighbor lists go out. If all shards fit the budget they stay in memory (and
inverted lists are merged into one); if not, each search streams them from the store, one at a time. Called by finish
(to measure) and by search.
"""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import CorruptError
from facescale.index.backends import load_backend
from facescale.index.exact import NO_ID, merge_top_k

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from facescale.index.backends import LoadedShard
    from facescale.index.manifest import ShardFile
    from facescale.index.plan import Layout
    from facescale.lake.store import Store

QUERY_ROWS = 4096
_CHUNK_BYTES = 8 << 20


class ShardSet:
    """The shards of one index.

    Args:
        store: where they are.
        folder: the index's folder.
        layout: how they are stored.
        shards: their records.
        memory_bytes: how much of them may be in memory; more is streamed.
        threads: for each search.
        gpu: keep copies on the GPU where the library and the kind can.
        check: "sha256" reads every byte of a shard when it is first loaded; "size" only compares sizes.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        layout: Layout,
        shards: Sequence[ShardFile],
        *,
        memory_bytes: int,
        threads: int = 1,
        gpu: bool = False,
        check: str = "sha256",
    ) -> None:
        self.store, self.folder, self.layout, self.shards = store, folder, layout, tuple(shards)
        self.threads, self.gpu, self.check = threads, gpu, check
        self.count = sum(shard.count for shard in shards)
        self.is_resident = sum(shard.bytes for shard in shards) <= memory_bytes
        self._backend = load_backend(layout.backend)
        self._resident: list[LoadedShard] | None = None
        self._checked: set[str] = set()

    def check_sizes(self) -> None:
        """Compare the sizes of all files with their records.

        Raises:
            CorruptError: a file is missing or has another size.
        """
        sizes = {path.rsplit("/", 1)[1]: size for path, size in self.store.list(self.folder)}
        for shard in self.shards:
            if sizes.get(shard.file) != shard.bytes:
                has = f"has {sizes[shard.file]:,} bytes" if shard.file in sizes else "is missing"
                raise self._damaged(shard, f"{has}, and its record says {shard.bytes:,}")

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        probes: int | None,
        allowed: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best over all shards, as the library finds them.

        Args:
            queries: unit vectors, float32 [Q, D].
            k: neighbors.
            probes: nprobe or efSearch; None for an exact index.
            allowed: sorted face_ids to choose from, for kinds that can.

        Returns:
            (ids int64 [Q, k], similarities float32 [Q, k]); missing ones are -1 and -inf.
        """
        ids = np.full((len(queries), k), NO_ID, np.int64)
        sims = np.full((len(queries), k), -np.inf, np.float32)
        for shard in self._loaded():
            if shard.count == 0:
                continue
            wanted = min(k, shard.count)
            for start in range(0, len(queries), QUERY_ROWS):
                rows = slice(start, start + QUERY_ROWS)
                found_ids, found = shard.search(
                    queries[rows], wanted, probes=probes, allowed=allowed, threads=self.threads
                )
                ids[rows], sims[rows] = merge_top_k(
                    np.concatenate([ids[rows], found_ids], axis=1),
                    np.concatenate([sims[rows], found], axis=1),
                    k,
                )
        return ids, sims

    @property
    def selects(self) -> bool:
        """Whether `allowed` is understood."""
        return self.layout.backend == "faiss" and self.layout.kind != "hnsw"

    def close(self) -> None:
        """Let go of the memory."""
        self._resident = None

    def _loaded(self) -> Iterator[LoadedShard]:
        if not self.is_resident:
            for shard in self.shards:
                yield self._load(shard)
            return
        if self._resident is None:
            resident: list[LoadedShard] = []
            for shard in self.shards:
                loaded = self._load(shard)
                if not (resident and resident[0].absorb(loaded)):
                    resident.append(loaded)
            self._resident = resident
        yield from self._resident

    def _load(self, shard: ShardFile) -> LoadedShard:
        try:
            with self._local_file(shard) as path:
                loaded = self._backend.load(self.layout, path, gpu=self.gpu)
        except FileNotFoundError as error:
            raise self._damaged(shard, "is missing") from error
        except CorruptError as error:
            raise self._damaged(shard, str(error)) from error
        if loaded.count != shard.count:
            raise self._damaged(shard, f"holds {loaded.count:,} vectors, and its record says {shard.count:,}")
        return loaded

    @contextmanager
    def _local_file(self, shard: ShardFile) -> Iterator[Path]:
        """The file on this machine, checked; one from an object store is downloaded for the time of the block."""
        path = f"{self.folder}/{shard.file}"
        if self.store.is_local:
            local = Path(self.store.location(path))
            if self.store.size(path) != shard.bytes:
                raise CorruptError(f"has {self.store.size(path):,} bytes instead of {shard.bytes:,}")
            if self.check == "sha256" and shard.file not in self._checked:
                with local.open("rb") as file:
                    self._compare(shard, hashlib.file_digest(file, "sha256").hexdigest())
            yield local
            return
        with tempfile.TemporaryDirectory(prefix="facescale-") as folder:
            local = Path(folder) / shard.file
            digest = hashlib.sha256()
            with self.store.open(path) as source, local.open("wb") as target:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    target.write(chunk)
            self._compare(shard, digest.hexdigest())
            yield local

    def _compare(self, shard: ShardFile, digest: str) -> None:
        if digest != shard.sha256:
            raise CorruptError(f"has the sha256 {digest[:12]}…, and its record says {shard.sha256[:12]}…")
        self._checked.add(shard.file)

    def _damaged(self, shard: ShardFile, what: str) -> CorruptError:
        folder = self.store.location(self.folder)
        return CorruptError(
            f"{folder}/{shard.file} {what}: delete {folder} and run `facescale index {self.store.uri}` again"
        )
