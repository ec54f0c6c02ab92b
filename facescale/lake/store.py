"""A Store is the root of a lake; every byte facescale keeps goes through it.

Relative paths come in ("faces/0a1b.../0000017/0000000000.parquet"), files and tables go out, and failures
leave as facescale errors that name the file and the remedy. All writes are atomic. A store holds nothing but
its URI, so it pickles to workers; credentials and endpoints come from the environment. Called by parts, lake,
scan, verify, and by stages that keep files of other kinds (source plans, indexes).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import fsspec

from facescale.errors import UsageError
from facescale.lake import parquet
from facescale.lake.backends import TEMPORARY, Backend
from facescale.lake.local_storage import LocalBackend
from facescale.lake.remote_storage import FsspecBackend
from facescale.lake.storage_errors import storage_errors

if TYPE_CHECKING:
    import builtins
    import types
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa
    import pyarrow.parquet as pq


class Store:
    """Storage below one root URI.

    Args:
        uri: local path, or file://, memory://, s3://, gs:// or any other protocol that fsspec knows.

    Raises:
        UsageError: the URI holds credentials, or its protocol is unknown or not installed.
    """

    uri: str
    is_local: bool
    is_memory: bool

    def __init__(self, uri: str) -> None:
        protocol, root = _parse(str(uri))
        self.is_local = protocol == "file"
        self.is_memory = protocol == "memory"
        self.uri = root
        self._backend: Backend
        if self.is_local:
            self._backend = LocalBackend(root)
        else:
            with storage_errors(root, "open"):
                self._backend = FsspecBackend(root)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return type(self), (self.uri,)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def location(self, path: str) -> str:
        """Full name of a file, for messages and for other tools."""
        return f"{self.uri.rstrip('/')}/{path}" if path else self.uri

    def exists(self, path: str) -> bool:
        """Whether a file (not a folder) is there."""
        with self._guard(path, "read"):
            return self._backend.exists(path)

    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: it is not there.
        """
        with self._guard(path, "read"):
            return self._backend.size(path)

    def read_bytes(self, path: str) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: it is not there.
        """
        with self._guard(path, "read"):
            return self._backend.read_bytes(path)

    def open(self, path: str) -> IO[bytes]:
        """A seekable binary file object for reading; close it.

        Raises:
            FileNotFoundError: it is not there.
        """
        with self._guard(path, "read"):
            return self._backend.open(path)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """All files below a folder, from one recursive listing, without temporaries.

        Args:
            prefix: folder relative to the root; "" is the root. One that is not there gives nothing.

        Yields:
            (path relative to the root, size in bytes). Local: a folder at a time is held; object stores: the
            listing of the prefix (about 1 KB a file).
        """
        prefix = prefix.strip("/")
        with self._guard(prefix, "list"):
            for path, size in self._backend.list(prefix):
                if prefix or not path.startswith(f"{TEMPORARY}/"):
                    yield path, size

    def folders(self, path: str) -> builtins.list[str]:
        """Names of the folders right below a folder, sorted; [] when it is not there."""
        with self._guard(path, "list"):
            return self._backend.folders(path)

    def write_bytes(self, path: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Write a small file atomically.

        Args:
            path: where to.
            data: its whole content.
            if_absent: leave an existing file alone; of several writers at once exactly one wins.

        Returns:
            True when it was written, False when `if_absent` found the file there.
        """
        with self.batch(if_absent=if_absent) as batch:
            batch.add_bytes(path, data)
        return batch.published

    def write_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        """Move a finished local file into the store atomically (indexes); `local_path` is gone afterwards.

        Take the local file from `temporary_folder`, then a local lake renames instead of copying.

        Args:
            path: where to.
            local_path: file of this machine, closed.
        """
        with self._guard(path, "write"):
            self._backend.publish_local_file(path, Path(local_path))

    def write_table(self, path: str, table: pa.Table, *, footer: Mapping[str, str] | None = None) -> int:
        """Write a table as one Parquet file atomically; equal input gives equal bytes.

        Args:
            path: where to.
            table: the rows; metadata of its schema goes to the footer.
            footer: more footer keys.

        Returns:
            Size of the file in bytes.
        """
        with self.batch() as batch:
            return batch.add_table(path, table, footer=footer)

    def batch(self, *, if_absent: bool = False) -> StoreBatch:
        """Several files that appear one after the other once all are written; see StoreBatch."""
        return StoreBatch(self, self._backend, if_absent)

    def read_table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a Parquet file.

        Args:
            path: which file.
            columns: names to read, or None for all; names that the file lacks are left out.

        Raises:
            FileNotFoundError: it is not there.
            CorruptError: it is damaged.
        """
        with self.open_parquet(path) as file:
            return parquet.read_rows(file, self.location(path), columns)

    def read_footer(self, path: str) -> dict[str, str]:
        """Keys and values of a Parquet footer, without reading data.

        Raises:
            FileNotFoundError: it is not there.
            CorruptError: it is damaged.
        """
        with self.open_parquet(path) as file:
            return parquet.footer_of(file)

    @contextlib.contextmanager
    def open_parquet(self, path: str) -> Iterator[pq.ParquetFile]:
        """A Parquet file with its footer read, closed at the end of the block.

        Raises:
            FileNotFoundError: it is not there.
            CorruptError: it is damaged.
        """
        with self._guard(path, "read"):
            source = self._backend.parquet_source(path)
            try:
                yield parquet.open_parquet(source, self.location(path))
            finally:
                source.close()

    @contextlib.contextmanager
    def temporary_folder(self) -> Iterator[Path]:
        """A folder of this machine for big files on their way to `write_file`; removed at the end of the block."""
        with self._guard("", "write"):
            folder = self._backend.temporary_folder()
        if folder is None:
            with tempfile.TemporaryDirectory(prefix="facescale-") as name:
                yield Path(name)
            return
        try:
            yield folder
        finally:
            LocalBackend.release(folder)

    def delete(self, path: str) -> None:
        """Remove a file.

        Raises:
            FileNotFoundError: it is not there.
        """
        with self._guard(path, "delete"):
            self._backend.delete(path)

    def delete_tree(self, path: str) -> None:
        """Remove a folder and all below it; one that is not there is no error. The root itself is refused."""
        if not path.strip("/"):
            raise UsageError(f"refusing to delete the whole of {self.uri}")
        with self._guard(path, "delete"):
            self._backend.delete_tree(path)

    def clean_temporaries(self) -> int:
        """Remove what processes of this host left half-written when they died.

        Returns:
            Number of folders removed. Those of living processes and of other hosts stay.
        """
        with self._guard(TEMPORARY, "delete"):
            return self._backend.clean_temporaries()

    @contextlib.contextmanager
    def _guard(self, path: str, action: str) -> Iterator[None]:
        if path.startswith("/") or ".." in path.split("/"):
            raise UsageError(f"{path!r} is no path inside {self.uri}")
        with storage_errors(self.location(path), action):
            yield


class StoreBatch:
    """Files written out of sight in a `with` block and shown at its end, in the order in which they were added.

    When anything in the block fails, none is shown. When the process dies while they are being shown, the
    first few are there and the rest are not: add last the file whose presence means "done".
    """

    def __init__(self, store: Store, backend: Backend, if_absent: bool) -> None:
        self.published = False
        self._store = store
        self._batch = backend.batch()
        self._if_absent = if_absent
        self._last = ""

    def add_bytes(self, path: str, data: bytes) -> int:
        """Write a file; returns its size in bytes."""
        self._last = path
        with self._store._guard(path, "write"):
            return self._batch.add(path, lambda sink: sink.write(data))

    def add_table(self, path: str, table: pa.Table, *, footer: Mapping[str, str] | None = None) -> int:
        """Write a Parquet file; returns its size in bytes."""
        self._last = path
        with self._store._guard(path, "write"):
            return self._batch.add(path, lambda sink: parquet.write_parquet(table, sink, footer))

    def __enter__(self) -> StoreBatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with self._store._guard(self._last, "write"):
                    self.published = self._batch.publish(if_absent=self._if_absent)
        finally:
            self._batch.discard()


def _parse(uri: str) -> tuple[str, str]:
    """(protocol, normalized root): an absolute path for local ones, the URI without a trailing slash otherwise."""
    if "://" not in uri:
        return "file", os.path.abspath(os.path.expanduser(uri))
    parts = urlsplit(uri)
    if parts.scheme in {"file", "local"}:
        return "file", os.path.abspath(unquote(parts.path))
    if "@" in parts.netloc:
        raise UsageError(
            f"{parts.scheme}://...@{parts.netloc.rpartition('@')[2]}{parts.path} holds credentials, which would reach "
            "logs; give the address alone and the credentials through the environment"
        )
    if parts.scheme not in fsspec.available_protocols():
        raise UsageError(
            f"{uri}: unknown protocol {parts.scheme!r}; use a local path, s3://, gs:// or memory://"
        )
    return parts.scheme, uri.rstrip("/") if parts.netloc else uri
