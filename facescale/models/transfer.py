"""One file over HTTP: an address and what is expected come in, a checked file on disk goes out, or why there is none.

A transfer goes on where it was cut off, if the server can and the file is still the same; every byte is hashed as it
arrives. Errors that time can mend are tried again, all others are final. Called by facescale.models.fetch.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import logging
import random
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import facescale
from facescale.errors import CorruptError, DownloadError, TransientError
from facescale.lake.storage_errors import DiskFullError
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
MAX_REDIRECTS = 8
ATTEMPTS = 5
"""Failures in a row, without progress between them, after which an address is given up."""
MAX_ATTEMPTS = 100
"""Failures altogether."""
_CHUNK_BYTES = 1 << 18
_PROGRESS_BYTES = 1 << 16
_TRANSIENT_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})
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
        except _AgainError as error:
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


def shown(url: str) -> str:
    """A URL for messages and records: without user, password and query, which may hold secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class _AgainError(Exception):
    """Worth another attempt; `delay_s` None is the usual delay, 0 none."""

    def __init__(self, what: str, delay_s: float | None = None) -> None:
        super().__init__(what)
        self.delay_s = delay_s


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to http or out of HTTP."""

    max_redirections = MAX_REDIRECTS
    max_repeats = 2

    def redirect_request(
        self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("http", "https") or (before == "https" and after == "http"):
            fp.close()
            raise DownloadError(
                f"{shown(req.full_url)} redirects from {before} to {after} ({shown(newurl)}), which is not followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: dict[str, str], timeout_s: float) -> http.client.HTTPResponse:
    """Send a request, through the proxies that the environment names; other schemes than HTTP have no handler."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    try:
        request = urllib.request.Request(_without_user(url), headers=headers)
        if authorization := _authorization(url):
            request.add_unredirected_header("Authorization", authorization)  # for this server, no other
        answer: http.client.HTTPResponse | None = opener.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            raise _http_error(url, error) from error
    except urllib.error.URLError as error:
        raise _url_error(url, error.reason) from error
    except (http.client.InvalidURL, ValueError) as error:
        raise DownloadError(f"{shown(url)}: not an address that can be asked: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _AgainError(_words(error)) from error
    if answer is None:
        raise DownloadError(f"{shown(url)}: only http and https addresses can be asked")
    return answer


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _authorization(url: str) -> str | None:
    """What a server wants to see of the user and password in its address, None where there are none."""
    user = urlsplit(url).netloc.rpartition("@")[0]
    return "Basic " + base64.b64encode(unquote(user).encode()).decode() if user else None


def _http_error(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code == 416:
        return _RangeError("the server has no more of it")
    if error.code in _TRANSIENT_CODES:
        text = error.headers.get("Retry-After", "") if error.headers else ""
        return _AgainError(f"HTTP {error.code}", float(text) if text.isdigit() and int(text) else None)
    if 300 <= error.code < 400:
        return DownloadError(
            f"{shown(url)}: redirects in circles, more than {MAX_REDIRECTS} times, or out of HTTP"
        )
    return DownloadError(f"{shown(url)}: HTTP {error.code} {error.reason}")


def _url_error(url: str, reason: Any) -> Exception:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DownloadError(f"{shown(url)}: its certificate is not valid: {reason.verify_message}")
    if isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME:
        return DownloadError(f"{shown(url)}: there is no such host")
    if isinstance(reason, OSError):
        return _AgainError(_words(reason))
    return DownloadError(f"{shown(url)}: {reason}")


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


class _RangeError(Exception):
    """The server cannot go on from where the partial file ends."""


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
        response = _open(url, headers, timeout_s)
    except _RangeError as error:
        discard(partial)
        raise _AgainError(str(error), 0) from error
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
        raise _AgainError(f"the connection ended after {size:,} of {total:,} bytes")
    found = digest.hexdigest()
    if expected.sha256 not in (None, found) or expected.size_bytes not in (None, size):
        discard(partial)
        if start:  # the first bytes may be another file's
            raise _AgainError("what was there before and what came do not make the file", 0)
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
            raise _AgainError("the server gave another part or another file than asked for", 0)
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
                    raise _AgainError(f"only {size - window_start} bytes in {STALL_S:.0f} s")
                window_start, window_since = size, now
        with writing(partial):
            stream.flush()
    return size


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _AgainError(f"the connection broke: {_words(error)}") from error


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
