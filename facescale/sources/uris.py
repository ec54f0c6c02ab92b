"""Names of files: paths and fsspec URLs to the `uri` column and back, and what a name's extension promises.

A local file is its absolute path where that is valid UTF-8, else file:// with percent-encoded bytes, so that every
name that a file system can hold survives the table. Members of containers are `container#member`.
Called by walk, containers, plan, read and labels.
"""

from __future__ import annotations

import functools
import os
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit

import fsspec

from facescale.errors import MissingExtraError, UsageError

# Decoded, or recognized and refused with a status of their own (the last line): rows of `images` either way.
_IMAGES = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff"),
    *("heic", "heif", "avif", "jp2", "jxl"),
)
_FORMAT_OF = dict.fromkeys(_IMAGES, "image") | {"tar": "tar", "parquet": "parquet", "pq": "parquet"}


def extension_of(name: str | bytes) -> str:
    """Lower-case extension without its dot; "" when there is none."""
    text = os.fsdecode(name)
    stem, dot, extension = text.rpartition("/")[2].rpartition(".")
    return extension.lower() if dot and stem else ""


def format_of(name: str | bytes) -> str | None:
    """image, tar or parquet by extension; None for files that are no input. Content decides later."""
    return _FORMAT_OF.get(extension_of(name))


def is_hidden(name: str | bytes) -> bool:
    """Whether the last part of a name begins with a dot: version control, .DS_Store, macOS's ._ twins."""
    return os.fsdecode(name).rstrip("/").rpartition("/")[2].startswith(".")


def is_remote(src: str) -> bool:
    """Whether a source is an fsspec URL rather than a local path or file:// URL."""
    return "://" in src and not src.startswith(("file://", "local://"))


def root_uri(src: str) -> str:
    """The `uri` form of a source argument, absolute and without a trailing slash.

    Raises:
        UsageError: it holds credentials, which would reach tables and logs, or its protocol is unknown.
    """
    if not is_remote(src):
        return uri_of_path(os.path.abspath(path_of_uri(src) if "://" in src else os.path.expanduser(src)))
    parts = urlsplit(src)
    if "@" in parts.netloc:
        raise UsageError(
            f"{parts.scheme}://...@{parts.netloc.rpartition('@')[2]}{parts.path} holds credentials, which would "
            "reach tables and logs; give the address alone and the credentials through the environment"
        )
    fs = filesystem(parts.scheme)
    return str(fs.unstrip_protocol(fs._strip_protocol(src))).rstrip("/")


def uri_of_path(path: str | bytes) -> str:
    """The `uri` of an absolute local path."""
    raw = os.fsencode(path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "file://" + quote(raw)


def path_of_uri(uri: str) -> bytes:
    """The local path of a `uri` that is not remote."""
    if uri.startswith(("file://", "local://")):
        return unquote_to_bytes(uri.partition("://")[2])
    return os.fsencode(uri)


def member_uri(container: str, member: str) -> str:
    """The `uri` of a member of a tar or Parquet file.

    Args:
        container: its `uri`.
        member: its name; undecodable bytes as surrogates, as tarfile gives them.
    """
    try:
        member.encode("utf-8")
    except UnicodeEncodeError:
        member = quote(member.encode("utf-8", "surrogateescape"))
    return f"{container}#{member}"


@functools.lru_cache(maxsize=16)
def filesystem(protocol: str) -> Any:
    """The fsspec file system of a protocol, options from the environment; listings are never cached.

    Raises:
        UsageError: fsspec does not know the protocol, or a package for it is missing.
    """
    if protocol not in fsspec.available_protocols():
        raise UsageError(f"unknown protocol {protocol}://; use a local path, s3://, gs:// or memory://")
    try:
        return fsspec.filesystem(protocol, use_listings_cache=False)
    except ImportError as error:
        if protocol in ("s3", "s3a"):
            raise MissingExtraError("s3fs", "s3", f"{protocol}://") from None
        raise UsageError(f"{protocol}:// needs another package: {error}") from None
