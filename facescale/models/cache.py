"""The folder of downloaded and registered weights: a card in, the file's place, its lock or its recorded digest out.

    CACHE/weights/<sha256>/<file name>       a file, under the digest of its bytes; appears whole or not at all
    CACHE/recorded/<model>-<12 hex>.json     digest of the file of a card that does not say it, seen at first use
    CACHE/archives/<64 hex>/<name>           zip archives that weights were taken from; may be deleted at any time
    CACHE/partial/…                          downloads on their way, and their locks

CACHE is FACESCALE_CACHE, or facescale in the user's cache folder. Called by weights, fetch and user_cards.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.errors import UsageError
from facescale.lake.storage_errors import DiskFullError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from facescale.models.card import ModelCard

CACHE_VARIABLE = "FACESCALE_CACHE"
CARDS_VARIABLE = "FACESCALE_CARDS"
CALIBRATION_SUFFIX = ".calibration.yaml"
"""Of the files beside the user's cards that say what similarities of a model mean; see curate.calibration."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_folder() -> Path:
    """The cache; it need not exist."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "facescale"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "facescale"


def cards_folder() -> Path:
    """The folder of the user's own cards; it need not exist."""
    named = os.environ.get(CARDS_VARIABLE)
    if named:
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "facescale" / "cards"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "facescale" / "cards"


def stored_path(sha256: str, name: str) -> Path:
    """Where the file of a digest lies, or would."""
    return cache_folder() / "weights" / sha256 / name


def archive_path(url: str) -> Path:
    """Where an archive is kept; the address says which one it is, as its digest is not known."""
    name = Path(url.partition("?")[0]).name or "archive"
    return cache_folder() / "archives" / hashlib.sha256(url.encode()).hexdigest() / name


def partial_path(key: str) -> Path:
    """Where a download of this key grows."""
    return cache_folder() / "partial" / hashlib.sha256(key.encode()).hexdigest()


def find_stored(card: ModelCard) -> Path | None:
    """A card's file in the cache, by its digest or the one recorded for it; None when it is not there."""
    digest = card.sha256 or recorded_digest(card)
    if digest is None:
        return None
    path = stored_path(digest, Path(card.file).name)
    if path.is_file():
        return path
    # The same bytes under another name: another card's, or put there by hand.
    return next((entry for entry in sorted(path.parent.glob("*")) if entry.is_file()), None)


def recorded_digest(card: ModelCard) -> str | None:
    """The digest that was recorded for a card without one; None before its first use.

    Raises:
        UsageError: the record is damaged.
    """
    path = record_path(card)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return str(record["sha256"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: this record of a model's digest cannot be read ({error}); delete it"
        ) from None


def record_path(card: ModelCard) -> Path:
    """Where the digest of a card's file is recorded; a card that names another file has another record."""
    identity = json.dumps([card.file, card.member, list(card.urls)])
    return (
        cache_folder() / "recorded" / f"{card.name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.json"
    )


def record_digest(card: ModelCard, sha256: str, size_bytes: int, origin: str) -> Path:
    """Record what the file of a card without a digest was at first use.

    Args:
        card: the card.
        sha256: of the file.
        size_bytes: of the file.
        origin: where it came from: a path, or a URL without credentials.

    Returns:
        Where the record is.
    """
    path = record_path(card)
    record = {
        "model": card.name,
        "file": card.file,
        "sha256": sha256,
        "size_bytes": size_bytes,
        "from": origin,
    }
    write_file(path, (json.dumps(record, indent=2) + "\n").encode())
    return path


def write_file(path: Path, content: bytes) -> None:
    """Write a small file whole: a reader finds the old content or the new."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says while `path` is written into errors that name it and the remedy.

    Raises:
        DiskFullError: no space or quota left.
        UsageError: the folder cannot be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"no space left for {path}: free some, or let {CACHE_VARIABLE} name a folder on another disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise UsageError(
                f"cannot write {path}: {error.strerror}; let {CACHE_VARIABLE} (weights) and {CARDS_VARIABLE} (cards) "
                "name folders that you may write to"
            ) from error
        raise


@contextlib.contextmanager
def locked(partial: Path) -> Iterator[bool]:
    """Hold the lock of a partial file, so that two processes never write it at once; waits for the other.

    Yields:
        Whether it is held; False where the file system knows no locks, and the caller takes a name of its own.
    """
    import fcntl

    path = partial.with_name(partial.name + ".lock")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True  # closing the file lets go
