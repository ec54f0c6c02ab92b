"""Object stores (s3, gs) and memory:// as storage, as fsspec shows them; used by store only.

A file is one PUT: an object appears whole or not at all. Options come from the environment (AWS_*,
GOOGLE_APPLICATION_CREDENTIALS, FSSPEC_*).
"""

from __future__ import annotations

import contextlib
import io
from typing import IO, TYPE_CHECKING, Any

import fsspec
import pyarrow as pa

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Iterator
    from pathlib import Path


class FsspecBackend:
    """An object store (s3, gs) or memory://, as fsspec shows it.

    Args:
        uri: root; options come from the environment (AWS_*, GOOGLE_APPLICATION_CREDENTIALS, FSSPEC_*).
    """

    def __init__(self, uri: str) -> None:
        # Listings must show what other machines wrote a second ago.
        self.fs, root = fsspec.core.url_to_fs(uri, use_listings_cache=False)
        self.root = str(root).rstrip("/")
        self.in_memory = _protocol(self.fs) == "memory"

    def exists(self, path: str) -> bool:
        """Whether a file of that name is there."""
        return bool(self.fs.isfile(self._full(path)))

    def size(self, path: str) -> int:
        """Bytes of a file."""
        return int(self.fs.info(self._full(path))["size"])

    def read_bytes(self, path: str) -> bytes:
        """The whole file, in one GET."""
        return bytes(self.fs.cat_file(self._full(path)))

    def open(self, path: str) -> IO[bytes]:
        """A seekable file object of one's own (fsspec's memory files are shared between their readers)."""
        if self.in_memory:
            return io.BytesIO(self.read_bytes(path))
        file: IO[bytes] = self.fs.open(self._full(path), "rb")
        return file

    def parquet_source(self, path: str) -> Any:
        """What pyarrow reads; it coalesces its own ranges, so fsspec must not read ahead as well."""
        if self.in_memory:
            return pa.BufferReader(self.read_bytes(path))
        return self.fs.open(self._full(path), "rb", cache_type="none")

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Files below a prefix from one recursive listing (a paginated LIST), held while it is consumed."""
        try:
            found = self.fs.find(self._full(prefix), detail=True)
        except FileNotFoundError:
            return
        skip = len(self.root) + 1
        for name in sorted(found):
            if found[name]["type"] == "file":
                yield name[skip:], int(found[name]["size"])

    def folders(self, path: str) -> builtins.list[str]:
        """Names of the folders right below a prefix, sorted; [] when nothing is there."""
        try:
            entries = self.fs.ls(self._full(path), detail=True)
        except FileNotFoundError:
            return []
        return sorted(e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")

    def batch(self) -> FsspecBatch:
        """A new empty batch."""
        return FsspecBatch(self)

    def publish_local_file(self, path: str, local_path: Path) -> None:
        """Upload a finished local file, then remove it."""
        if self.in_memory:
            self.fs.pipe_file(self._full(path), local_path.read_bytes())
        else:
            self.fs.put_file(str(local_path), self._full(path))
        local_path.unlink()

    def temporary_folder(self) -> None:
        """None: there is nothing that is both local and part of the lake."""
        return

    def delete(self, path: str) -> None:
        """Remove a file."""
        self.fs.rm_file(self._full(path))

    def delete_tree(self, path: str) -> None:
        """Remove all below a prefix; nothing there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self._full(path), recursive=True)

    def clean_temporaries(self) -> int:
        """0: an object appears whole or not at all."""
        return 0

    def put(self, path: str, data: bytes, *, if_absent: bool) -> bool:
        """One PUT; with `if_absent` a conditional one. False when the object was there already."""
        if not if_absent:
            self.fs.pipe_file(self._full(path), data)
            return True
        if self.exists(path):
            return False
        try:
            self.fs.pipe_file(self._full(path), data, mode="create")
        except FileExistsError:
            return False
        return True

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root


class FsspecBatch:
    """Files held in memory until they are put, one PUT each."""

    def __init__(self, backend: FsspecBackend) -> None:
        self.backend = backend
        self.files: list[tuple[str, bytes]] = []

    def add(self, path: str, write: Callable[[pa.NativeFile], None]) -> int:
        """Serialize one file; returns its size in bytes."""
        sink = pa.BufferOutputStream()
        write(sink)
        data = sink.getvalue().to_pybytes()
        self.files.append((path, data))
        return len(data)

    def publish(self, *, if_absent: bool = False) -> bool:
        """Put the files in order; with `if_absent`, False when the file was there already."""
        return all([self.backend.put(path, data, if_absent=if_absent) for path, data in self.files])

    def discard(self) -> None:
        """Let go of the buffers."""
        self.files.clear()


def _protocol(fs: Any) -> str:
    return str(fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0])
