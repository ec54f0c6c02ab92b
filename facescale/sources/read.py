"""Gives the bytes of a planned part: a SourcePart in, one Member per planned row out, in row order.

Every row comes out exactly once, whatever happened to its file: what cannot be read is a status, never an exception,
so that each image of the plan gets its row in `images`. Reading runs ahead of the consumer in threads, within
64 MiB. Called by vision.extract; `attempt` by vector_rows.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from facescale.errors import FacescaleError
from facescale.lake.storage_errors import AWAY
from facescale.sources.ahead import iterate_ahead, map_ahead
from facescale.sources.containers import (
    ContainerError,
    image_column,
    is_image_member,
    open_container,
    tar_members,
)
from facescale.sources.uris import filesystem, is_remote, member_uri, path_of_uri
from facescale.sources.walk import stamp_differs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from facescale.lake.store import Store
    from facescale.sources.plan import SourcePart

_T = TypeVar("_T")
AHEAD_BYTES = 64 << 20
_PARQUET_BATCH_ROWS = 16
_CHANGED = "run again with --accept-changes to take the new content"
# What a second attempt can mend: the network, a busy disk, a full table of open files.
_TRANSIENT = AWAY | {errno.EIO, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(slots=True)
class Member:
    """One planned image.

    Attributes:
        row: its row inside the shard.
        uri: where it is; `container#member` inside containers.
        data: its bytes; None when there is a status.
        status: None, or unreadable, source_changed, too_many_bytes or transient.
        detail: what is wrong and what to do, for a person.
    """

    row: int
    uri: str
    data: bytes | None = None
    status: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Source:
    """A row of the plan, as reading needs it."""

    uri: str
    bytes: int
    stamp: str
    offset: int | None = None


class _BadSourceError(Exception):
    """A source that cannot be read as planned: status and detail."""


def read_part(store: Store, part: SourcePart, *, max_bytes: int, threads: int = 8) -> Iterator[Member]:
    """Read the images of a part.

    Args:
        store: the lake's storage, for the plan.
        part: which rows.
        max_bytes: larger images are `too_many_bytes` and are not read.
        threads: how many files to read at once.

    Yields:
        Exactly part.key.num_rows members, rows ascending from part.key.first_row.

    Raises:
        FacescaleError: the plan itself cannot be read.

    Notes:
        Memory: 64 MiB read ahead, or one image if that is larger; a Parquet file's largest page besides.
    """
    if part.format == "image":
        sources = _file_sources(store, part)
        rows = range(part.key.first_row, part.key.first_row + part.key.num_rows)
        return map_ahead(
            lambda item: read_file(item[0], item[1], max_bytes),
            zip(rows, sources, strict=True),
            threads=threads,
            weigh=lambda item: min(item[1].bytes, max_bytes),
            budget=AHEAD_BYTES,
        )
    members = _read_container(_container_source(store, part), part, max_bytes)
    return iterate_ahead(members, weigh=lambda member: len(member.data or b""), budget=AHEAD_BYTES)


def attempt(source: Source, read: Callable[[], _T]) -> tuple[_T | None, tuple[str, str] | None]:
    """Read something of a container, making sure that it is the file that was planned.

    Args:
        source: the container.
        read: reads what is wanted.

    Returns:
        What was read and None; or None and the (status, detail) of what cannot be read.

    Raises:
        FacescaleError: what is no fault of the container's.
    """
    try:
        _check_container(source)
        return read(), None
    except _BadSourceError as verdict:
        status, detail = verdict.args
        return None, (status, detail)
    except (ContainerError, pa.ArrowException) as error:
        return None, ("unreadable", f"{error}; replace the file, then run again with --accept-changes")
    except FacescaleError:
        raise
    except OSError as error:
        return None, _container_verdict(error, source)


def _file_sources(store: Store, part: SourcePart) -> list[Source]:
    table = store.read_table(part.shard_path, ["uri", "bytes", "stamp"])
    rows = table.slice(part.key.first_row, part.key.num_rows)
    columns = (rows.column(name).to_pylist() for name in ("uri", "bytes", "stamp"))
    return [Source(*values) for values in zip(*columns, strict=True)]


def _container_source(store: Store, part: SourcePart) -> Source:
    columns = ["uri", "bytes", "stamp", "part_rows", "part_offsets"]
    (row,) = store.read_table(part.shard_path, columns).to_pylist()
    offsets = row["part_offsets"]
    offset = None if offsets is None else offsets[part.key.first_row // row["part_rows"]]
    return Source(row["uri"], row["bytes"], row["stamp"], offset)


def read_file(row: int, source: Source, max_bytes: int) -> Member:
    """Read one file, making sure that it is the file that was planned."""
    member = Member(row, source.uri)
    try:
        if source.bytes > max_bytes:
            raise _BadSourceError(
                "too_many_bytes", f"{source.bytes:,} bytes, the limit is {max_bytes:,} (max_bytes)"
            )
        member.data = _remote_bytes(source) if is_remote(source.uri) else _local_bytes(source)
    except _BadSourceError as verdict:
        member.status, member.detail = verdict.args
    except Exception as error:  # client libraries of object stores have errors of their own
        member.status, member.detail = _storage_verdict(error)
    return member


def _local_bytes(source: Source) -> bytes:
    with open(path_of_uri(source.uri), "rb", buffering=0, opener=_open_without_waiting) as file:
        _check_stat(os.fstat(file.fileno()), source)
        data = file.readall()
    if len(data) != source.bytes:
        raise _BadSourceError("source_changed", f"changed while it was read; {_CHANGED}")
    return data


def _open_without_waiting(path: str, flags: int) -> int:
    # A pipe that has taken the file's place must not block; for regular files O_NONBLOCK means nothing.
    return os.open(path, flags | os.O_NONBLOCK)


def _check_stat(info: os.stat_result, source: Source) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise _BadSourceError("source_changed", f"is no file any more; {_CHANGED}")
    _check_same(info.st_size, str(info.st_mtime_ns) != source.stamp, source)


def _check_same(size: int, written_again: bool, source: Source) -> None:
    if size != source.bytes:
        raise _BadSourceError("source_changed", f"was {source.bytes:,} bytes, is {size:,}; {_CHANGED}")
    if written_again:
        raise _BadSourceError("source_changed", f"was written again after it was planned; {_CHANGED}")


def _remote_bytes(source: Source) -> bytes:
    fs = filesystem(source.uri.partition("://")[0])
    path = fs._strip_protocol(source.uri)
    _check_remote(fs, path, source)
    data = bytes(fs.cat_file(path))
    if source.bytes and len(data) != source.bytes:  # 0 is also what a server says that does not tell sizes
        raise _BadSourceError("source_changed", f"was {source.bytes:,} bytes, is {len(data):,}; {_CHANGED}")
    return data


def _check_remote(fs: Any, path: str, source: Source) -> None:
    info = fs.info(path)
    size = int(info.get("size") or 0) if source.bytes else 0
    _check_same(size, stamp_differs(info, source.stamp), source)


def _storage_verdict(error: Exception) -> tuple[str, str]:
    """Status and detail of what reading raised."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return "source_changed", f"is no file any more; {_CHANGED}"
    if isinstance(error, PermissionError):
        return "unreadable", f"{reason}; grant read access, then run again with --retry-failed"
    if isinstance(error, OSError) and error.errno is not None and error.errno not in _TRANSIENT:
        return "unreadable", f"{reason}; make it readable, then run again with --retry-failed"
    return "transient", f"{reason}; run again with --retry-failed"


def _container_verdict(error: Exception, source: Source) -> tuple[str, str]:
    # Arrow reports pages that it cannot decode as an OSError without a number; so may remote storage a hiccup.
    if type(error) is OSError and error.errno is None and not is_remote(source.uri):
        return "unreadable", f"damaged ({error}); replace the file, then run again with --accept-changes"
    return _storage_verdict(error)


def _read_container(source: Source, part: SourcePart, max_bytes: int) -> Iterator[Member]:
    """Members of a part of a tar or Parquet file; when it breaks off, the rest of the rows with a status."""
    key = part.key
    row, end = key.first_row, key.first_row + key.num_rows
    try:
        _check_container(source)
        with open_container(source.uri) as stream:
            read = _read_tar if part.format == "tar" else _read_parquet
            for member in read(stream, source, row, end, max_bytes):
                yield member
                row = member.row + 1
        if row < end:
            raise _BadSourceError(
                "unreadable",
                f"the {part.format} ends after {row - key.first_row} of its images; replace the file, then run "
                "again with --accept-changes",
            )
        return
    except _BadSourceError as verdict:
        status, detail = verdict.args
    except (ContainerError, pa.ArrowException) as error:
        status, detail = "unreadable", f"{error}; replace the file, then run again with --accept-changes"
    except FacescaleError:
        raise
    except Exception as error:
        status, detail = _container_verdict(error, source)
    for left in range(row, end):
        yield Member(left, member_uri(source.uri, f"row={left}"), None, status, detail)


def _check_container(source: Source) -> None:
    if is_remote(source.uri):
        fs = filesystem(source.uri.partition("://")[0])
        _check_remote(fs, fs._strip_protocol(source.uri), source)
    else:
        _check_stat(os.stat(path_of_uri(source.uri)), source)


def _read_tar(stream: Any, source: Source, row: int, end: int, max_bytes: int) -> Iterator[Member]:
    """Images from the part's first header on. A member that the file's end cuts short gives what there is."""
    stream.seek(source.offset or 0)
    for info in tar_members(stream):
        if not is_image_member(info):
            continue
        member = Member(row, member_uri(source.uri, info.name))
        if info.size > max_bytes:
            member.status = "too_many_bytes"
            member.detail = f"{info.size:,} bytes, the limit is {max_bytes:,} (max_bytes)"
        else:
            stream.seek(info.offset_data)
            member.data = stream.read(info.size)
        yield member
        row += 1
        if row == end:
            return


def _read_parquet(stream: Any, source: Source, row: int, end: int, max_bytes: int) -> Iterator[Member]:
    """Rows by row group, a few at a time. Row groups are read from their start, so huge ones cost each part anew."""
    with pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20) as file:
        column = image_column(file.schema_arrow)
        if column is None:
            raise ContainerError("has no column of image bytes")
        start = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if start + count > row and start < end:
                batches = file.iter_batches(
                    _PARQUET_BATCH_ROWS, row_groups=[group], columns=[column], use_threads=False
                )
                for member in _parquet_rows(batches, start, range(row, end), source.uri, max_bytes):
                    yield member
                    row = member.row + 1
                    if row == end:
                        return
            start += count


def _parquet_rows(
    batches: Iterator[pa.RecordBatch], start: int, wanted: range, uri: str, max_bytes: int
) -> Iterator[Member]:
    for batch in batches:
        column = batch.column(0)
        while pa.types.is_struct(column.type):
            column = pc.struct_field(column, 0)
        lengths = pc.fill_null(pc.binary_length(column), 0).to_pylist()
        for index, length in enumerate(lengths):
            row = start + index
            if row not in wanted:
                continue
            member = Member(row, member_uri(uri, str(row)))
            if length > max_bytes:
                member.status = "too_many_bytes"
                member.detail = f"{length:,} bytes, the limit is {max_bytes:,} (max_bytes)"
            else:
                member.data = column[index].as_py() or b""  # a null has no bytes: it becomes `empty`
            yield member
        start += len(lengths)
