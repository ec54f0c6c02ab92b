"""A card's weights, from where the card says they can be had: a card comes in, a checked file in the cache goes out.

Addresses are tried in order, a mirror (FACESCALE_MIRROR) before them; zip archives are kept for the next model that
is in them. Two processes that want the same file share one download. Called by facescale.models.weights and pull.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import secrets
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote

from facescale.errors import CorruptError, DownloadError, FacescaleError, TransientError, UsageError
from facescale.lake.storage_errors import DiskFullError
from facescale.models.access import OFFLINE_VARIABLE, is_offline
from facescale.models.ask import shown
from facescale.models.cache import (
    CACHE_VARIABLE,
    archive_path,
    cache_folder,
    find_stored,
    locked,
    partial_path,
    record_digest,
    recorded_digest,
    stored_path,
    writing,
)
from facescale.models.transfer import LIMIT_BYTES, Expected, Received, discard, download

if TYPE_CHECKING:
    from collections.abc import Callable

    from facescale.models.card import ModelCard
    from facescale.models.transfer import Progress

MIRROR_VARIABLE = "FACESCALE_MIRROR"
_BLOCK_BYTES = 1 << 20
_log = logging.getLogger(__name__)


def fetch(
    card: ModelCard,
    *,
    progress: Progress | None = None,
    sleep: Callable[[float], None] | None = None,
) -> Path:
    """Download a card's weights into the cache, unless they are there.

    Without a sha256 on the card, that of the first download is recorded, with a warning; later downloads have to match.

    Args:
        card: with `urls`, or any where FACESCALE_MIRROR is set.
        progress: called with bytes here and in all (None where that is not known).
        sleep: waits between attempts; None is time.sleep.

    Returns:
        The file, checked against the card's or the recorded sha256.

    Raises:
        UsageError: offline, or there is no address, or the cache cannot be written to.
        DownloadError: no address gives the file.
        CorruptError: what they give is not the file that the card means.
        TransientError: network or servers failed; the same command goes on from where it stopped.
        DiskFullError: no space left.
    """
    addresses = _addresses(card)
    if not addresses:
        raise UsageError(
            f"model {card.name!r}: its card has no urls; get {Path(card.file).name} from {card.source}"
        )
    if is_offline():
        raise UsageError(
            f"model {card.name!r}: {Path(card.file).name} is not on this machine, and {OFFLINE_VARIABLE} or "
            f"--offline forbids to download it: run `facescale models pull {card.name}` where there is a network, "
            f"with the same {CACHE_VARIABLE}"
        )
    digest = card.sha256 or recorded_digest(card)
    expected = Expected(sha256=digest, size_bytes=card.size_bytes)
    partial = partial_path(digest or "\n".join(url for url, _ in addresses))
    failures: list[FacescaleError] = []
    with locked(partial) as held:
        if (found := find_stored(card)) is not None and _is_whole(found, digest):
            return found
        if not held:
            partial = partial.with_name(f"{partial.name}-{secrets.token_hex(8)}")
        for url, member in addresses:
            try:
                if member is None:
                    received = download(url, partial, expected, progress=progress, sleep=sleep)
                else:
                    received = _from_archive(
                        card, url, member, partial, expected, progress=progress, sleep=sleep
                    )
                return _place(card, partial, received, url)
            except (DownloadError, CorruptError, TransientError) as error:
                failures.append(error)
                _log.info("model %s: %s", card.name, error)
    raise _all_failed(card, failures)


def _addresses(card: ModelCard) -> list[tuple[str, str | None]]:
    """(URL, member of the archive there), in the order in which they are tried."""
    addresses: list[tuple[str, str | None]] = [(url, card.member) for url in card.urls]
    if mirror := os.environ.get(MIRROR_VARIABLE, "").rstrip("/"):
        digest, name = card.sha256 or recorded_digest(card), quote(Path(card.file).name)
        addresses.insert(0, (f"{mirror}/{digest}/{name}" if digest else f"{mirror}/{name}", None))
    return addresses


def _is_whole(path: Path, digest: str | None) -> bool:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == digest


def _place(card: ModelCard, partial: Path, received: Received, url: str) -> Path:
    """Move a finished file to where its digest says, and record the digest that the card does not give."""
    target = stored_path(received.sha256, Path(card.file).name)
    with writing(target):
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, target)
    discard(partial)
    if card.sha256 is None and recorded_digest(card) is None:
        record = record_digest(card, received.sha256, received.size_bytes, shown(url))
        _log.warning(
            "model %s: its card gives no sha256, so nobody vouches for the %d bytes from %s; their sha256 %s is "
            "recorded in %s and has to match from now on",
            card.name,
            received.size_bytes,
            shown(url),
            received.sha256,
            record,
        )
    return target


def _from_archive(
    card: ModelCard,
    url: str,
    member: str,
    partial: Path,
    expected: Expected,
    *,
    progress: Progress | None,
    sleep: Callable[[float], None] | None,
) -> Received:
    """Take one member out of a zip archive, which is downloaded first unless an earlier model brought it."""
    archive = archive_path(url)
    growing = partial_path(url)
    with locked(growing) as held:
        if not archive.is_file():
            if not held:
                growing = growing.with_name(f"{growing.name}-{secrets.token_hex(8)}")
            download(url, growing, Expected(limit_bytes=LIMIT_BYTES), progress=progress, sleep=sleep)
            with writing(archive):
                archive.parent.mkdir(parents=True, exist_ok=True)
                os.replace(growing, archive)
            discard(growing)
    try:
        return _extract(card, archive, member, partial, expected, shown(url))
    except CorruptError:
        archive.unlink(missing_ok=True)  # another attempt gets it anew
        raise


def _extract(
    card: ModelCard, archive: Path, member: str, target: Path, expected: Expected, origin: str
) -> Received:
    """Copy a member as a stream to `target`; its own path in the archive plays no part in where it goes."""
    digest, size = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(archive) as opened:
            if member not in opened.namelist():
                files = [name for name in opened.namelist() if not name.endswith("/")]
                near = difflib.get_close_matches(member, files, n=3, cutoff=0.3) or files[:5]
                raise DownloadError(
                    f"{origin}: the archive has no member {member!r}; it has {', '.join(near)}: correct `member` "
                    f"on the card of {card.name}"
                )
            with opened.open(member) as stream, _output(target) as output:
                while block := stream.read(_BLOCK_BYTES):
                    size += len(block)
                    if size > expected.most_bytes:
                        raise CorruptError(
                            f"{origin}: {member} unpacks to more than the {expected.most_bytes:,} bytes allowed"
                        )
                    digest.update(block)
                    with writing(target):
                        output.write(block)
                with writing(target):
                    output.flush()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        discard(target)
        raise CorruptError(f"{origin}: not a zip archive that can be read ({error})") from error
    except (CorruptError, DiskFullError):
        discard(target)
        raise
    found = digest.hexdigest()
    if expected.sha256 not in (None, found) or expected.size_bytes not in (None, size):
        discard(target)
        raise CorruptError(
            f"{origin}: {member} has {size:,} bytes with sha256 {found}, not "
            f"{'' if expected.size_bytes is None else f'{expected.size_bytes:,} bytes with '}{expected.sha256}"
        )
    return Received(found, size)


def _output(target: Path) -> BinaryIO:
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.open("wb")


def _all_failed(card: ModelCard, failures: list[FacescaleError]) -> FacescaleError:
    """One error that tells what each address said; its kind is that of the most hopeful one."""
    kinds: tuple[type[FacescaleError], ...] = (TransientError, CorruptError, DownloadError)
    kind = next(kind for kind in kinds if any(isinstance(error, kind) for error in failures))
    told = "; ".join(str(error) for error in failures)
    remedy = f"or get it from {card.source} by hand and put it into the folder that FACESCALE_WEIGHTS names"
    return kind(f"model {card.name!r}: {Path(card.file).name} cannot be had: {told}; {remedy}")


def store_file(path: Path, sha256: str, *, link: bool = False) -> Path:
    """Put a file that is on this machine into the cache.

    Args:
        path: the file.
        sha256: of its bytes.
        link: leave the bytes where they are, and put a symbolic link into the cache.

    Raises:
        CorruptError: the file changed while it was copied.
        DiskFullError: no space left.
        UsageError: the cache cannot be written to.
    """
    target = stored_path(sha256, path.name)
    if target.is_file() and _is_whole(target, sha256):
        return target
    temporary = cache_folder() / "partial" / f"{sha256}-{secrets.token_hex(8)}"
    with writing(target):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if link:
                temporary.symlink_to(path.resolve())
            else:
                shutil.copyfile(path, temporary)
                if not _is_whole(temporary, sha256):
                    raise CorruptError(f"{path} changed while it was copied; run the command again")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return target
