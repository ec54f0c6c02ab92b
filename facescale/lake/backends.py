"""What a Store needs of a storage system: the two protocols that LocalBackend and FsspecBackend fulfil.

Relative paths and bytes come in, files come out, atomically: a file is either whole under its final name or
not there. Failures are raised as the system gives them; store translates them.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pyarrow as pa

TEMPORARY = "_tmp"


class Batch(Protocol):
    """Files written but not yet visible; `publish` shows them one after the other."""

    def add(self, path: str, write: Callable[[pa.NativeFile], None]) -> int:
        """Write one file out of sight; returns its size in bytes."""
        ...

    def publish(self, *, if_absent: bool = False) -> bool:
        """Show the files under their final names in the order in which they were added.

        With `if_absent` (one file only), an existing file is left alone and the answer is False.
        """
        ...

    def discard(self) -> None:
        """Remove what has not been published."""
        ...


class Backend(Protocol):
    """What a Store needs of a storage system. Paths are relative to the root, with forward slashes."""

    def exists(self, path: str) -> bool:
        """Whether a file of that name is there."""
        ...

    def size(self, path: str) -> int:
        """Bytes of a file."""
        ...

    def read_bytes(self, path: str) -> bytes:
        """The whole file."""
        ...

    def open(self, path: str) -> IO[bytes]:
        """A seekable file object of one's own."""
        ...

    def parquet_source(self, path: str) -> Any:
        """What pyarrow opens a Parquet file from; has a `close`."""
        ...

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of all files below a folder."""
        ...

    def folders(self, path: str) -> builtins.list[str]:
        """Names of the folders right below a folder, sorted."""
        ...

    def batch(self) -> Batch:
        """A new empty batch."""
        ...

    def publish_local_file(self, path: str, local_path: Path) -> None:
        """Make a finished local file appear as `path`; consumes it."""
        ...

    def temporary_folder(self) -> Path | None:
        """A fresh folder from which publishing is a rename; None where there can be none."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file."""
        ...

    def delete_tree(self, path: str) -> None:
        """Remove a folder and all below it."""
        ...

    def clean_temporaries(self) -> int:
        """Remove what dead processes left; returns how many folders."""
        ...
