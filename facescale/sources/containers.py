"""Looks into tars and Parquet files: a container's uri in, its number of images and where parts begin out.

Nothing is extracted to disk and no member is read here: a tar is walked header by header with seeks, a Parquet file
gives its footer. Called by plan (scan), read and labels (open_container, tar_members, image_column).

A tar's rows are its regular members with an image extension, in file order; json, txt and cls members are sidecars
that labels.py reads. A damaged tar keeps the rows before the damage; what follows is unknown and is reported.
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from facescale.sources.uris import extension_of, filesystem, format_of, is_hidden, is_remote, path_of_uri

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDECARS = ("json", "cls", "txt")
# The image's column, by preference; Hugging Face data sets have `image` as a struct {bytes, path}.
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes", "content", "data")

# Headers are 512 bytes apart from each other by one image: a small read-ahead costs little and often holds the next.
_REMOTE_BLOCK_BYTES = 64 << 10


class ContainerError(Exception):
    """A container, or the rest of one, cannot be read; the message says why. Never leaves facescale.sources."""


@dataclass
class Scan:
    """What a container holds.

    Attributes:
        num_rows: images in it.
        offsets: tar: for every `granularity`-th image the byte offset of its sample's first header (a sidecar may
            come before its image); None for Parquet.
        ignored: members that are no images, by reason or extension.
        problem: why it could be read only in part, or not at all; None when all is well.
        no_images: a sound Parquet file that is a table of something else.
    """

    num_rows: int = 0
    offsets: list[int] | None = None
    ignored: Counter[str] = field(default_factory=Counter)
    problem: str | None = None
    no_images: bool = False


@contextmanager
def open_container(uri: str, *, block_bytes: int | None = None) -> Iterator[IO[bytes]]:
    """A seekable binary stream of a local or remote file.

    Args:
        uri: where it is.
        block_bytes: how much to read ahead from remote storage; None leaves it to fsspec (5 MiB).
    """
    if not is_remote(uri):
        with open(path_of_uri(uri), "rb") as stream:
            yield stream
        return
    fs = filesystem(uri.partition("://")[0])
    path = fs._strip_protocol(uri)
    if uri.startswith("memory://"):  # its file objects are shared between readers, position and all
        yield io.BytesIO(fs.cat_file(path))
        return
    with fs.open(path, "rb", **({} if block_bytes is None else {"block_size": block_bytes})) as stream:
        yield stream


def scan(uri: str, kind: str, granularity: int) -> Scan:
    """Look into a container; never raises for what is in it.

    Args:
        uri: where it is.
        kind: tar or parquet.
        granularity: offsets are noted for every so many images.

    Notes:
        A tar costs one seek and one 512-byte read a member; over the network that is one small request each.
    """
    found = Scan()
    try:
        with open_container(uri, block_bytes=_REMOTE_BLOCK_BYTES) as stream:
            if kind == "tar":
                _scan_tar(stream, granularity, found)
            else:
                _scan_parquet(stream, found)
    except ContainerError as error:
        found.problem = str(error)
    except OSError as error:
        found.problem = f"cannot be read: {error.strerror or error}; grant access or replace it, then rerun"
    return found


def _scan_tar(stream: IO[bytes], granularity: int, found: Scan) -> None:
    found.offsets = []
    sample, sample_offset = "", 0
    try:
        for member in tar_members(stream):
            if sample_key(member.name) != sample:
                sample, sample_offset = sample_key(member.name), member.offset
            if is_image_member(member):
                if found.num_rows % granularity == 0:
                    found.offsets.append(sample_offset)
                found.num_rows += 1
                sample_offset = archive_end(
                    member
                )  # a second image of the sample must not begin at the first
            elif member.isreg() and not is_hidden(member.name):
                extension = extension_of(member.name)
                found.ignored["(sidecar)" if extension in SIDECARS else f".{extension}"] += 1
            elif not member.isdir():
                found.ignored["(hidden)" if is_hidden(member.name) else "(link or special member)"] += 1
    except ContainerError as error:
        raise ContainerError(
            f"{error}; the {found.num_rows:,} images before that are rows, the rest is lost"
        ) from None
    if not found.num_rows:
        raise ContainerError("holds no member with an image extension")


def tar_members(stream: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Headers of a tar from the stream's position on, by seeking over the data; memory does not grow.

    Args:
        stream: positioned at a header, which need not be the first.

    Yields:
        One TarInfo a member. The last one's data may be cut off by the end of the file.

    Raises:
        ContainerError: this is no tar, or it is damaged from here on.
    """
    try:
        archive = tarfile.TarFile(fileobj=stream, mode="r", encoding="utf-8", errors="surrogateescape")
        end = -1
        while (member := archive.next()) is not None:
            if (
                member.offset_data <= end or member.size < 0
            ):  # hostile sizes can make a tar point back into itself
                raise ContainerError(f"damaged at byte {member.offset:,}: its members overlap")
            end = member.offset_data
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header
            yield member
        stream.seek(archive.offset)
        rest = stream.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise ContainerError(f"no tar, or damaged ({error})") from None
    if rest.strip(b"\0"):  # tarfile ends without a word at a header that it cannot read
        raise ContainerError(f"damaged at byte {archive.offset:,}: no readable header")


def archive_end(member: tarfile.TarInfo) -> int:
    """Byte offset of the header after a member."""
    return int(member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)


def sample_key(name: str) -> str:
    """WebDataset's sample: the path up to the first dot of its last part; its members follow one another."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def is_image_member(member: tarfile.TarInfo) -> bool:
    """Whether a member is a row: a regular file with an image extension that is not hidden."""
    return (
        member.isreg()
        and not member.issparse()
        and format_of(member.name) == "image"
        and not is_hidden(member.name)
    )


def _scan_parquet(stream: IO[bytes], found: Scan) -> None:
    try:
        with pq.ParquetFile(stream) as file:
            schema, num_rows = file.schema_arrow, file.metadata.num_rows
    except pa.ArrowException as error:
        raise ContainerError(f"no Parquet file, or damaged ({error})") from None
    if image_column(schema) is None:
        found.no_images = True
        raise ContainerError(
            f"has no column of image bytes: looked for {', '.join(IMAGE_COLUMNS)}, found {', '.join(schema.names)}"
        )
    if not num_rows:
        raise ContainerError("holds no rows")
    found.num_rows = num_rows


def image_column(schema: pa.Schema) -> str | None:
    """Parquet path of the image bytes: a binary column, or the binary field `bytes` of a struct column.

    Returns:
        e.g. "jpg" or "image.bytes"; None when no column of a known name is of such a type.
    """
    names = {name.lower(): name for name in reversed(schema.names)}
    for candidate in IMAGE_COLUMNS:
        if candidate not in names:
            continue
        column = schema.field(names[candidate])
        if _is_binary(column.type):
            return str(column.name)
        if pa.types.is_struct(column.type):
            index = column.type.get_field_index("bytes")
            if index >= 0 and _is_binary(column.type.field(index).type):
                return f"{column.name}.bytes"
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
