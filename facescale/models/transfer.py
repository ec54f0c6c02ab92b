"""One file over HTTP: an address and what is expected come in, a checked file on disk goes out, or why there is none.

A transfer goes on where it was cut off, if the server can and the file is still the same; every byte is hashed as it
arrives. Errors that time can mend are tried again, all others are final. Called by facescale.models.fetch.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import random
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import facescale
from facescale.errors import CorruptError, DownloadError, TransientError
from facescale.lake.storage_errors import DiskFullError
from facescale.models.ask import AgainError, RangeError, open_url, shown, words_of
from facescale.models.cache import write_file, writing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Progress = Callable[[int, int | None], None]

LIMIT_BYTES = 4 << 30
"""Largest file where the card does not say the size."""
TIMEOUT_S = 30.0
"""Longest wait for a connection, and for the next bytes."""
STALL_S = 60.0
"""Span over which less than STALL_BYTES is as good as nothing."""
STALL_BYTES = 4096
ATTEMPTS = 5
"""Failures in a row, without progress between them, after which an address is given up."""
MAX_ATTEMPTS = 100
"""Failures altogether."""
_CHUNK_BYTES = 1 << 18
_PROGRESS_BYTES = 1 << 16
_LONGEST_DELAY_S = 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is known of a file before it is there.

    Args:
        sha256: of its bytes, None where unknown.
        size_bytes: its length, None where unknown.
        limit_bytes: a longer file is refused.
    """

    sha256: str | None = None
    size_bytes: int | None = None
    limit_bytes: int = LIMIT_BYTES

    @property
    def most_bytes(self) -> int:
        """More than this is not it."""
        return self.limit_bytes if self.size_bytes is None else self.size_bytes


@dataclass(frozen=True)
class Received:
    """What came."""

    sha256: str
    size_bytes: int


def download(
    url: str,
    partial: Path,
    expected: Expected,
    *,
    timeout_s: float | None = None,
    sleep: Callable[[float], None] | None = None,
    progress: Progress | None = None,
) -> Received:
    """Bring a file to `partial`, going on with what is there of it.

    Args:
        url: http or https.
        partial: the file to write; beside it lies `<name>.json` with what the server said of it. Only one process
            may write it at a time (facescale.models.cache.locked).
        expected: digest, size, limit.
        timeout_s: longest wait for a connection and for the next bytes; None is TIMEOUT_S.
        sleep: waits between attempts; None is time.sleep.
        progress: called with bytes here and in all (None when the server does not say).

    Raises:
        TransientError: it failed ATTEMPTS times in a row; what came is kept for the next run.
        DownloadError: the server does not have it, refuses it, or gives something else; trying again is useless.
        CorruptError: the bytes are not those expected.
        DiskFullError: no space left; what was written is taken back.
        UsageError: the folder cannot be written to.
    """
    wait, failures, last = sleep or time.sleep, 0, ""
    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    for _ in range(MAX_ATTEMPTS):
        before = _size(partial)
        try:
            return _attempt(url, partial, expected, timeout_s, progress or (lambda done, total: None))
        except DiskFullError:
            discard(partial)
            raise
        except AgainError as error:
            failures = 1 if _size(partial) >= before + _PROGRESS_BYTES else failures + 1
            last = str(error)
            if failures >= ATTEMPTS:
                break
            _log.info("%s: %s; trying again", shown(url), error)
            if error.delay_s is None:
                wait(min(2.0 ** (failures - 1), _LONGEST_DELAY_S) * (0.5 + random.random() / 2))
            elif error.delay_s > 0:
                wait(min(error.delay_s, _LONGEST_DELAY_S))
    raise TransientError(f"{shown(url)}: {last}; what came is kept, the same command goes on from there")


def discard(partial: Path) -> None:
    """Remove a partial file and what is noted of it."""
    partial.unlink(missing_ok=True)
    _note_path(partial).unlink(missing_ok=True)


def _attempt(url: str, partial: Path, expected: Expected, timeout_s: float, progress: Progress) -> Received:
    """One request, from where the partial file ends or from the beginning."""
    note = _read_note(partial)
    offset = _size(partial) if _may_resume(note, url, expected) else 0
    if (
        offset and offset == expected.size_bytes
    ):  # whole, but the process ended before it was moved into place
        digest = _hash_of(partial)
        if digest.hexdigest() == expected.sha256:
            return Received(digest.hexdigest(), offset)
        offset = 0
    headers = {"User-Agent": f"facescale/{facescale.__version__}", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if note.get("url") == url and note.get("validator"):
            headers["If-Range"] = note["validator"]
    try:
        response = open_url(url, headers, timeout_s)
    except RangeError as error:
        discard(partial)
        raise AgainError(str(error), 0) from error
    with response:
        start, total = _extent(url, response, offset, note, partial)
        _check_answer(url, response, start, total, expected)
        validator = _validator(response)
        with writing(partial):
            partial.parent.mkdir(parents=True, exist_ok=True)
        write_file(_note_path(partial), json.dumps({"url": url, "validator": validator}).encode())
        digest = _hash_of(partial) if start else hashlib.sha256()
        size = _receive(url, response, partial, digest, start, total, expected, progress)
    if total is not None and size < total:
        raise AgainError(f"the connection ended after {size:,} of {total:,} bytes")
    found = digest.hexdigest()
    if expected.sha256 not in (None, found) or expected.size_bytes not in (None, size):
        discard(partial)
        if start:  # the first bytes may be another file's
            raise AgainError("what was there before and what came do not make the file", 0)
        raise CorruptError(
            f"{shown(url)} gave {size:,} bytes with sha256 {found}, not the expected "
            f"{'' if expected.size_bytes is None else f'{expected.size_bytes:,} bytes with '}{expected.sha256}: the "
            "file there was changed or damaged; get it from elsewhere, or correct the card if the new file is meant"
        )
    return Received(found, size)


def _extent(
    url: str, response: http.client.HTTPResponse, offset: int, note: dict[str, str], partial: Path
) -> tuple[int, int | None]:
    """Where the answer's bytes begin in the file, and how long the file is (None when that is not said)."""
    length = response.headers.get("Content-Length")
    length_bytes = int(length) if length is not None and length.isdigit() else None
    if response.status == 206 and offset:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
        same = (
            not note.get("validator") or note.get("url") != url or _validator(response) == note["validator"]
        )
        if match is None or int(match[1]) != offset or not same:
            discard(partial)
            raise AgainError("the server gave another part or another file than asked for", 0)
        return offset, None if match[3] == "*" else int(match[3])
    if response.status != 200:
        raise DownloadError(f"{shown(url)}: HTTP {response.status} where a file was expected")
    return 0, length_bytes


def _check_answer(
    url: str,
    response: http.client.HTTPResponse,
    start: int,
    total: int | None,
    expected: Expected,
) -> None:
    """Refuse what cannot be the file before its bytes are taken."""
    if response.headers.get_content_type() == "text/html":
        raise DownloadError(
            f"{shown(url)}: a web page, not a file (one to log in or to confirm?); get it by hand"
        )
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise DownloadError(
            f"{shown(url)}: sent compressed although asked not to; its bytes cannot be checked"
        )
    if total is not None and (
        total > expected.most_bytes or expected.size_bytes not in (None, total) or start > total
    ):
        want = f"the {expected.size_bytes:,}" if expected.size_bytes else f"at most {expected.limit_bytes:,}"
        raise DownloadError(f"{shown(url)}: a file of {total:,} bytes, not {want} that are expected")
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    if total is None and not chunked and expected.sha256 is None and expected.size_bytes is None:
        raise DownloadError(
            f"{shown(url)}: neither the server nor the card says how long the file is, so a cut one would not be "
            "noticed; give the card its sha256 or size_bytes"
        )


def _receive(
    url: str,
    response: http.client.HTTPResponse,
    partial: Path,
    digest: Any,
    start: int,
    total: int | None,
    expected: Expected,
    progress: Progress,
) -> int:
    """Write and hash the answer's bytes as they come; returns the length of the file so far."""
    size = window_start = start
    window_since = time.monotonic()
    with writing(partial):
        stream = partial.open("r+b" if start else "wb")
    with stream:
        stream.seek(start)
        while chunk := _read(response):
            size += len(chunk)
            if size > expected.most_bytes:
                discard(partial)
                raise DownloadError(
                    f"{shown(url)}: more than the {expected.most_bytes:,} bytes that are allowed"
                )
            with writing(partial):
                stream.write(chunk)
            digest.update(chunk)
            progress(size, total)
            if (now := time.monotonic()) - window_since >= STALL_S:
                if size - window_start < STALL_BYTES:
                    raise AgainError(f"only {size - window_start} bytes in {STALL_S:.0f} s")
                window_start, window_since = size, now
        with writing(partial):
            stream.flush()
    return size


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise AgainError(f"the connection broke: {words_of(error)}") from error


def _validator(response: http.client.HTTPResponse) -> str:
    """What tells that the file is still the same: a strong ETag, else the time of change, else nothing."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _may_resume(note: dict[str, str], url: str, expected: Expected) -> bool:
    """With a digest any server may continue, as the whole is checked; else the same one with the same file only."""
    return expected.sha256 is not None or (note.get("url") == url and bool(note.get("validator")))


def _note_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _read_note(partial: Path) -> dict[str, str]:
    try:
        note = json.loads(_note_path(partial).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _hash_of(path: Path) -> Any:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK_BYTES):
            digest.update(block)
    return digest
