"""Where a card's weights lie on this machine, and whether they are the ones the card means.

A card in, a verified path or the file's bytes out; called by the model factories and by `facescale models`. Weights
that are nowhere on the machine are downloaded when they are first needed (facescale.models.fetch).
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.errors import CorruptError, FacescaleError, MissingExtraError, UsageError
from facescale.models.cache import find_stored, record_digest, record_path, recorded_digest
from facescale.models.fetch import MIRROR_VARIABLE, fetch

if TYPE_CHECKING:
    from facescale.models.card import ModelCard

WEIGHTS_FOLDER_VARIABLE = "FACESCALE_WEIGHTS"
_log = logging.getLogger(__name__)


def use_weights_folder(folder: str | None) -> None:
    """Search this folder first, in this process and those it starts; None leaves what the environment says."""
    if folder is not None:
        others = os.environ.get(WEIGHTS_FOLDER_VARIABLE, "").split(os.pathsep)
        wanted = [os.path.abspath(folder), *(other for other in others if other)]
        os.environ[WEIGHTS_FOLDER_VARIABLE] = os.pathsep.join(dict.fromkeys(wanted))


def find_weights(card: ModelCard) -> Path:
    """Find a card's weights on this machine, and where they are not on it, download them.

    Looked for in this order: the folders of --weights-dir and FACESCALE_WEIGHTS (separated by ":"), the package that
    ships them, the cache; then the card's urls. The file is not checked here, unless it is downloaded (`verify`,
    `read_weights`).

    Raises:
        MissingExtraError: the package that ships them is not installed.
        UsageError: they are nowhere, and cannot be downloaded: the card has no urls, or downloads are forbidden.
        CorruptError: the package is installed without the file, or a server gave other bytes.
        DownloadError: no server gave them.
        TransientError: network or servers failed; trying again can help.
    """
    try:
        return local_weights(card)
    except MissingWeightsError:
        if not (card.urls or os.environ.get(MIRROR_VARIABLE)):
            raise
    return fetch(card)


class MissingWeightsError(UsageError):
    """A card's weights are not on this machine."""


def local_weights(card: ModelCard) -> Path:
    """Find a card's weights on this machine; never downloads.

    In a folder the file may have any name, as it is known by its sha256; a file of the card's own name is taken
    as it is, so that `verify` can say what is wrong with it. The package is located, never
    imported: the one that ships dlib's weights imports pkg_resources, which recent setuptools dropped.

    Raises:
        MissingWeightsError: they are not on this machine.
        MissingExtraError: the package that ships them is not installed.
        CorruptError: the package is installed without the file.
    """
    folder = os.environ.get(WEIGHTS_FOLDER_VARIABLE)
    for place in folder.split(os.pathsep) if folder else ():
        if place and (found := _in_folder(card, Path(place))) is not None:
            return found
    if card.package is not None:
        return _in_package(card, card.package)
    if (found := find_stored(card)) is not None:
        return found
    place = (
        f"{folder} (from {WEIGHTS_FOLDER_VARIABLE})" if folder else f"the folder {WEIGHTS_FOLDER_VARIABLE}"
    )
    get = (
        f"run `facescale models pull {card.name}`, or get it from {card.source} and put it there"
        if card.urls
        else f"get it from {card.source} and put it there"
    )
    raise MissingWeightsError(f"model {card.name!r}: no {Path(card.file).name} in {place}; {get}")


def _in_package(card: ModelCard, package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(package, card.extra or "", f"the model {card.name!r}")
    path = Path(spec.submodule_search_locations[0]) / card.file
    if not path.is_file():
        raise CorruptError(
            f"model {card.name!r}: {path} is missing from the installed package {package}; "
            f"reinstall it: pip install --force-reinstall {package}"
        )
    return path


def _in_folder(card: ModelCard, folder: Path) -> Path | None:
    """The card's file in a folder of weights: by its digest as name, its content, or its name."""
    name = Path(card.file).name
    if card.sha256 is not None:
        for path in (
            folder / card.sha256,
            folder / card.sha256 / name,
        ):  # the latter: as the cache keeps them
            if path.is_file():
                return path
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (
                path.is_file()
                and card.size_bytes in (None, path.stat().st_size)
                and sha256_of(path) == card.sha256
            ):
                return path
    named = folder / name
    return named if named.is_file() else None


def sha256_of(path: Path) -> str:
    """Digest of a file's bytes; remembered while size and time of change stay the same."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_weights(card: ModelCard) -> bytes:
    """Read a card's weights and check them (see `find_weights` and `verify` for what is raised)."""
    path = find_weights(card)
    data = path.read_bytes()
    _check(card, path, len(data), hashlib.sha256(data).hexdigest())
    return data


def verify(card: ModelCard, path: Path) -> None:
    """Check a weights file against its card, reading it as a stream.

    A card without a sha256 takes the first file it meets at its word: the digest is recorded, with a warning, and has
    to match from then on.

    Raises:
        CorruptError: another size or another sha256.
    """
    _check(card, path, path.stat().st_size, sha256_of(path))


def with_digest(card: ModelCard, backend: str | None = None) -> ModelCard:
    """The card with the sha256 of the file that a backend runs, whether its author wrote it there or not.

    What was made with a model is named by this digest. A card that gives it is returned as it is, and nothing is read;
    else the weights are found, downloaded if need be, and their digest recorded.

    Args:
        card: the card.
        backend: one of its `backends`; None for its own.

    Raises:
        FacescaleError: as `find_weights` and `verify`.
    """
    used = card.for_backend(backend or card.backend)
    if used.sha256 is not None:
        return card
    path = find_weights(used)
    verify(used, path)
    digest = sha256_of(path)
    if used is card:
        return dataclasses.replace(card, sha256=digest)
    variant = {**card.variants[used.backend], "sha256": digest}
    return dataclasses.replace(card, variants={**card.variants, used.backend: variant})


def _check(card: ModelCard, path: Path, size_bytes: int, sha256: str) -> None:
    recorded = recorded_digest(card) if card.sha256 is None else None
    wanted = card.sha256 or recorded
    if card.size_bytes not in (None, size_bytes) or wanted not in (None, sha256):
        record = f" (or {record_path(card)}, if the new file is meant)" if recorded else ""
        raise CorruptError(
            f"{path}: not the weights of model {card.name!r}: {size_bytes} bytes with sha256 {sha256}, "
            f"expected {card.size_bytes or 'any number of'} bytes with {wanted}; "
            f"delete the file{record} and get it again from {card.source}"
        )
    if wanted is None:
        _record(card, path, size_bytes, sha256)


def _record(card: ModelCard, path: Path, size_bytes: int, sha256: str) -> None:
    """Record a digest at first use; where that cannot be written the warning comes every time."""
    try:
        where = str(record_digest(card, sha256, size_bytes, str(path)))
    except FacescaleError as error:
        where = f"nowhere ({error})"
    _log.warning(
        "model %s: its card gives no sha256; that of %s, %s, is recorded in %s and has to match from now on",
        card.name,
        path,
        sha256,
        where,
    )
