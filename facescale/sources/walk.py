"""Lists a source: a folder, file or URL in, its images, tars and Parquet files out in one fixed order.

Files come sorted by the bytes of their uri, a folder at a time, so that a tree of any size is listed in little
memory. What is not input is counted, what cannot be read is reported; both end up in the PlanReport. Called by plan.

Not followed: links to folders (they make loops and duplicates). Followed: links to files. Skipped: hidden names, and
folders that are a lake.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from facescale.errors import UsageError
from facescale.sources.uris import (
    extension_of,
    filesystem,
    format_of,
    is_hidden,
    is_remote,
    path_of_uri,
    root_uri,
    uri_of_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LAKE_FILE = "lake.yaml"
MAX_PROBLEMS = 100


class Found(NamedTuple):
    """One file that is input.

    Attributes:
        uri: where it is.
        format: image, tar or parquet.
        bytes: its size.
        stamp: what tells that it changed: mtime in ns, or KEY:VALUE of an object store (remote_stamp).
    """

    uri: str
    format: str
    bytes: int
    stamp: str


class Problem(NamedTuple):
    """Something that could not be read or planned.

    Attributes:
        uri: which file or folder.
        what: what is wrong and what to do.
    """

    uri: str
    what: str


@dataclass
class Tally:
    """What a walk saw beside its input.

    Attributes:
        ignored: number of files and folders left out, by reason or extension.
        problems: the first 100 things that could not be read.
        num_problems: how many there were.
        incomplete: a folder could not be listed, so what it held may look vanished.
    """

    ignored: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    num_problems: int = 0
    incomplete: bool = False

    def add_problem(self, uri: str, what: str) -> None:
        """Keep a problem, or only count it when there are many."""
        self.num_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(uri, what))

    def ignore(self, name: str | bytes) -> None:
        """Count a file that is no input, by its extension."""
        extension = extension_of(name)
        self.ignored[f".{extension}" if extension and extension.isascii() else "(no extension)"] += 1


KindOf = Callable[[str | bytes], str | None]
"""The format that a file's name promises; None for what is no input."""


def walk(src: str, tally: Tally, kind_of: KindOf = format_of) -> Iterator[Found]:
    """List a source.

    Args:
        src: local path or fsspec URL of a folder, image, tar or Parquet file.
        tally: gets what is not input.
        kind_of: which files are input.

    Yields:
        Files in the byte order of their uri.

    Raises:
        UsageError: it does not exist, or is a file of a kind that is no input.
    """
    root = root_uri(src)
    if is_remote(root):
        yield from _walk_remote(root, tally, kind_of)
        return
    path = path_of_uri(root)
    try:
        info = os.stat(path)
    except FileNotFoundError:
        raise UsageError(f"{src} does not exist; give a folder, a tar, a Parquet file or a URL") from None
    except OSError as error:
        raise UsageError(f"{src} cannot be read: {error.strerror}; grant access to it") from None
    if stat.S_ISDIR(info.st_mode):
        yield from _walk_folder(path, tally, kind_of)
        return
    yield Found(root, _input_format(src, root, kind_of), info.st_size, str(info.st_mtime_ns))


def _input_format(src: str, name: str, kind_of: KindOf) -> str:
    kind = kind_of(name)
    if kind is None and kind_of is not format_of:
        raise UsageError(
            f"{src} is no file of this kind by its name; facescale import reads .parquet, .npy and .bin"
        )
    if kind is None:
        raise UsageError(
            f"{src} is no image, .tar or .parquet file by its name; give a folder, a tar or a Parquet file"
        )
    return kind


def _walk_folder(top: bytes, tally: Tally, kind_of: KindOf) -> Iterator[Found]:
    """Depth first with a stack of its own: trees can be deeper than Python recurses."""
    stack = [_entries(top, tally, kind_of, is_top=True)]
    while stack:
        for name, found in stack[-1]:
            if found is None:
                stack.append(_entries(name, tally, kind_of, is_top=False))
                break
            yield found
        else:
            stack.pop()


def _entries(
    folder: bytes, tally: Tally, kind_of: KindOf, *, is_top: bool
) -> Iterator[tuple[bytes, Found | None]]:
    """Input files (path, Found) and folders to go down (path, None) of one folder, sorted."""
    try:
        with os.scandir(folder) as listing:
            # A folder sorts as its name with a slash: then depth first is the byte order of whole paths.
            named = [
                (entry.name + b"/" if entry.is_dir(follow_symlinks=False) else entry.name, entry)
                for entry in listing
            ]
    except OSError as error:
        if is_top:
            raise UsageError(
                f"{uri_of_path(folder)} cannot be listed: {error.strerror}; grant access"
            ) from None
        tally.incomplete = True
        tally.ignored["(unreadable folder)"] += 1
        tally.add_problem(
            uri_of_path(folder), f"folder cannot be listed: {error.strerror}; grant access, rerun"
        )
        return
    if any(key == LAKE_FILE.encode() for key, _ in named):
        _refuse_lake(uri_of_path(folder), tally, is_top=is_top)
        return
    for key, entry in sorted(named, key=itemgetter(0)):
        if is_hidden(entry.name):
            tally.ignored["(hidden)"] += 1
        elif key.endswith(b"/"):
            yield entry.path, None
        else:
            found = _local_file(entry, tally, kind_of)
            if found is not None:
                yield entry.path, found


def _local_file(entry: os.DirEntry[bytes], tally: Tally, kind_of: KindOf) -> Found | None:
    kind = kind_of(entry.name)
    try:
        info = entry.stat()
    except OSError:
        tally.ignored["(broken link)"] += 1
        return None
    if stat.S_ISDIR(info.st_mode):
        tally.ignored["(linked folder)"] += 1
    elif not stat.S_ISREG(info.st_mode):
        tally.ignored["(special file)"] += 1
    elif kind is None:
        tally.ignore(entry.name)
    else:
        return Found(uri_of_path(entry.path), kind, info.st_size, str(info.st_mtime_ns))
    return None


def _walk_remote(root: str, tally: Tally, kind_of: KindOf) -> Iterator[Found]:
    protocol = root.partition("://")[0]
    fs = filesystem(protocol)
    path = fs._strip_protocol(root)
    try:
        info = fs.info(path)
    except FileNotFoundError:
        raise UsageError(f"{root} does not exist; give a folder, a tar, a Parquet file or a URL") from None
    if info["type"] == "file":
        # As a listing tells it, so that it is the same file when its folder is the source.
        info = next((entry for entry in fs.ls(path, detail=True) if entry["name"] == info["name"]), info)
        yield Found(root, _input_format(root, root, kind_of), int(info.get("size") or 0), remote_stamp(info))
        return
    stack = [_remote_entries(fs, path, tally, kind_of, is_top=True)]
    while stack:
        for name, found in stack[-1]:
            if found is None:
                stack.append(_remote_entries(fs, name, tally, kind_of, is_top=False))
                break
            yield found
        else:
            stack.pop()


def _remote_entries(
    fs: Any, folder: str, tally: Tally, kind_of: KindOf, *, is_top: bool
) -> Iterator[tuple[str, Found | None]]:
    """As _entries, for an fsspec file system; an object store's listing of one prefix is held (1 KB a file)."""
    try:
        listing = fs.ls(folder, detail=True)
    except PermissionError as error:
        if is_top:
            raise UsageError(
                f"{fs.unstrip_protocol(folder)} cannot be listed: {error}; grant access"
            ) from None
        tally.incomplete = True
        tally.ignored["(unreadable folder)"] += 1
        tally.add_problem(
            fs.unstrip_protocol(folder), f"folder cannot be listed: {error}; grant access, rerun"
        )
        return
    named = [
        ((info["name"].rstrip("/") + "/" * (info["type"] == "directory")).encode(), info) for info in listing
    ]
    if any(key.rpartition(b"/")[2] == LAKE_FILE.encode() for key, _ in named):
        _refuse_lake(fs.unstrip_protocol(folder), tally, is_top=is_top)
        return
    for key, info in sorted(named, key=itemgetter(0)):
        name = key.decode()
        if name.rstrip("/") == folder.rstrip("/"):
            continue  # S3's zero-byte object that stands for the folder itself
        if is_hidden(name):
            tally.ignored["(hidden)"] += 1
        elif info["type"] == "directory":
            yield info["name"], None
        elif (kind := kind_of(name)) is None:
            tally.ignore(name)
        else:
            uri = fs.unstrip_protocol(info["name"])
            yield name, Found(uri, kind, int(info.get("size") or 0), remote_stamp(info))


def _refuse_lake(uri: str, tally: Tally, *, is_top: bool) -> None:
    if is_top:
        raise UsageError(f"{uri} is a lake, not a source: give the folder of images first, then the lake")
    tally.ignored["(lake)"] += 1


_STAMP_KEYS = ("etag", "md5hash", "generation", "mtime", "lastmodified", "last_modified", "created")


def remote_stamp(info: dict[str, Any]) -> str:
    """What tells that an object changed, as KEY:VALUE: its etag, else a checksum, generation or time; or ""."""
    values = {str(key).lower(): value for key, value in info.items()}
    for key in _STAMP_KEYS:
        if values.get(key) is not None:
            return f"{key}:{_stamp_text(values[key])}"
    return ""


def stamp_differs(info: dict[str, Any], stamp: str) -> bool:
    """Whether an object's info contradicts its stamp; what it does not tell contradicts nothing.

    Listings and single queries of one store may tell different things, so the stamp's own key is compared.
    """
    key, _, value = stamp.partition(":")
    values = {str(name).lower(): known for name, known in info.items()}
    return values.get(key) is not None and _stamp_text(values[key]) != value


def _stamp_text(value: object) -> str:
    # fsspec's file systems give times as datetime in one call and as a number in another.
    return str(value.timestamp()) if isinstance(value, datetime) else str(value).strip('"')
