"""A local folder as storage, or a network file system mounted on this machine; used by store only.

A file is written below _tmp/<host>-<pid>-<uuid>/, synced, and renamed, so a crash leaves either the whole file
or none, and the temporary folder says whose it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import uuid
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil
import pyarrow as pa

from facescale.lake.backends import TEMPORARY

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Iterator

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
# Temporary folders of this process that are in use: its own process id alone cannot tell them from those that an
# earlier process of the same number left, which is common in containers.
_live: set[str] = set()


class LocalBackend:
    """A folder of this machine, or of a network file system mounted on it.

    Args:
        root: absolute path; created with the first file.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def exists(self, path: str) -> bool:
        """Whether a file of that name is there."""
        return (self.root / path).is_file()

    def size(self, path: str) -> int:
        """Bytes of a file."""
        return (self.root / path).stat().st_size

    def read_bytes(self, path: str) -> bytes:
        """The whole file."""
        return (self.root / path).read_bytes()

    def open(self, path: str) -> IO[bytes]:
        """A seekable file object."""
        return (self.root / path).open("rb")

    def parquet_source(self, path: str) -> Any:
        """What pyarrow opens without going through Python for each read."""
        return pa.OSFile(str(self.root / path), "rb")

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Files below a folder, folder by folder in order of names; one folder's names are held at a time."""
        yield from _walk(self.root / prefix, prefix)

    def folders(self, path: str) -> builtins.list[str]:
        """Names of the folders right below a folder, sorted; [] when it is not there."""
        try:
            with os.scandir(self.root / path) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def batch(self) -> LocalBatch:
        """A new empty batch."""
        return LocalBatch(self.root)

    def publish_local_file(self, path: str, local_path: Path) -> None:
        """Move a finished file into place; copied first when it lies on another file system."""
        batch = LocalBatch(self.root)
        try:
            staged = batch.reserve(path)
            shutil.move(str(local_path), staged)
            _sync(staged)
            batch.publish()
        finally:
            batch.discard()

    def temporary_folder(self) -> Path:
        """A fresh folder on the lake's own file system, so that moving a file out of it is a rename."""
        folder = LocalBatch(self.root).folder
        _make_folders(folder)
        return folder

    @staticmethod
    def release(folder: Path) -> None:
        """Remove a folder that `temporary_folder` gave."""
        shutil.rmtree(folder, ignore_errors=True)
        _live.discard(folder.name)

    def delete(self, path: str) -> None:
        """Remove a file."""
        (self.root / path).unlink()

    def delete_tree(self, path: str) -> None:
        """Remove a folder and all below it; a folder that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.root / path)

    def clean_temporaries(self) -> int:
        """Remove temporary folders that processes of this host left when they died; returns how many."""
        removed = 0
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(os.scandir(self.root / TEMPORARY), key=lambda e: e.name):
                if entry.is_dir() and _is_stale(entry):
                    shutil.rmtree(entry.path, ignore_errors=True)
                    removed += 1
        return removed


class LocalBatch:
    """Files below _tmp/<host>-<pid>-<uuid>/ until they are renamed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = f"{_host()}-{os.getpid()}-{uuid.uuid4().hex}"
        self.folder = root / TEMPORARY / self.name
        self.files: list[tuple[Path, Path]] = []
        _live.add(self.name)

    def reserve(self, path: str) -> Path:
        """A temporary name for a file that will be published as `path`."""
        _make_folders(self.folder)
        staged = self.folder / str(len(self.files))
        self.files.append((staged, self.root / path))
        return staged

    def add(self, path: str, write: Callable[[pa.NativeFile], None]) -> int:
        """Write and sync one file; returns its size in bytes."""
        staged = self.reserve(path)
        with pa.OSFile(str(staged), "wb") as sink:
            write(sink)
        _sync(staged)
        return staged.stat().st_size

    def publish(self, *, if_absent: bool = False) -> bool:
        """Rename in order, syncing each folder before the next rename, so that no crash can reorder them."""
        # Folders first: making one can fail for lack of space, and then no file has moved yet.
        for folder in dict.fromkeys(final.parent for _, final in self.files):
            _make_folders(folder)
        if if_absent:
            ((staged, final),) = self.files
            if not _link_if_absent(staged, final):
                return False
            _sync(final.parent)
            return True
        for staged, final in self.files:
            os.replace(staged, final)
            _sync(final.parent)
        return True

    def discard(self) -> None:
        """Remove the temporary folder and whatever is still in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        _live.discard(self.name)


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        path = f"{prefix}/{entry.name}" if prefix else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, path)
        else:
            # A file may be renamed or deleted between the listing and here; then it is not there.
            with contextlib.suppress(FileNotFoundError):
                yield path, entry.stat().st_size


def _sync(path: Path) -> None:
    """Make a file's data, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folders(folder: Path) -> None:
    """Create a folder and its parents, each entry synced, so that a synced file in it can be found again."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def _link_if_absent(staged: Path, final: Path) -> bool:
    """Give a file its final name unless that is taken: a hard link refuses atomically."""
    try:
        os.link(staged, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without hard links (FAT, some FUSE mounts): two planners in the same instant could
        # both pass this test; everything else is still atomic.
        if final.exists():
            return False
        os.replace(staged, final)
    return True


def _is_stale(entry: os.DirEntry[str]) -> bool:
    """Whether a temporary folder belongs to a process of this host that is gone."""
    host, _, rest = entry.name.rpartition("-")[0].rpartition("-")
    if host != _host() or not rest.isdigit() or entry.name in _live:
        return False
    pid = int(rest)
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)  # signal 0 only asks whether the process is there
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:
        process = psutil.Process(pid)
        # A process that is dead but not reaped, as in containers without an init, writes no more; and a younger
        # one that was given the same number is not the owner.
        dead = process.status() == psutil.STATUS_ZOMBIE
        return bool(dead or process.create_time() > entry.stat().st_mtime + 1.0)
    except (psutil.Error, FileNotFoundError):
        return False


def _host() -> str:
    """This machine, and on Linux the process namespace: containers may share a name but not process numbers."""
    name = socket.gethostname().replace("/", "_") or "host"
    with contextlib.suppress(OSError):
        return f"{name}.{os.stat('/proc/self/ns/pid').st_ino:x}"
    return name
