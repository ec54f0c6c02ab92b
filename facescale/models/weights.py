"""Where a card's weights lie on this machine, and whether they are the ones the card means.

A card in, a verified path or the file's bytes out; called by the model factories and by `facescale models`.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.errors import CorruptError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from facescale.models.card import ModelCard

WEIGHTS_FOLDER_VARIABLE = "FACESCALE_WEIGHTS"


def use_weights_folder(folder: str | None) -> None:
    """Search this folder first, in this process and those it starts; None leaves what the environment says."""
    if folder is not None:
        others = os.environ.get(WEIGHTS_FOLDER_VARIABLE, "").split(os.pathsep)
        wanted = [os.path.abspath(folder), *(other for other in others if other)]
        os.environ[WEIGHTS_FOLDER_VARIABLE] = os.pathsep.join(dict.fromkeys(wanted))


def find_weights(card: ModelCard) -> Path:
    """Find a card's weights: in the folders of FACESCALE_WEIGHTS (separated by ":"), then in a package.

    In a folder the file may have any name, as it is known by its sha256; a file of the card's own name is taken
    as it is, so that `verify` can say what is wrong with it. The package is located, never
    imported: the one that ships dlib's weights imports pkg_resources, which recent setuptools dropped.

    Raises:
        MissingExtraError: the package that ships them is not installed.
        UsageError: no package ships them and they are not in the folder.
        CorruptError: the package is installed without the file.
    """
    folder = os.environ.get(WEIGHTS_FOLDER_VARIABLE)
    for place in folder.split(os.pathsep) if folder else ():
        if place and (found := _in_folder(card, Path(place))) is not None:
            return found
    if card.package is None:
        place = (
            f"{folder} (from {WEIGHTS_FOLDER_VARIABLE})"
            if folder
            else f"the folder {WEIGHTS_FOLDER_VARIABLE}"
        )
        raise UsageError(
            f"model {card.name!r}: no {Path(card.file).name} in {place}; "
            f"get it from {card.source} and put it there"
        )
    spec = find_spec(card.package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(card.package, card.extra or "", f"the model {card.name!r}")
    path = Path(spec.submodule_search_locations[0]) / card.file
    if not path.is_file():
        raise CorruptError(
            f"model {card.name!r}: {path} is missing from the installed package {card.package}; "
            f"reinstall it: pip install --force-reinstall {card.package}"
        )
    return path


def _in_folder(card: ModelCard, folder: Path) -> Path | None:
    """The card's file in a folder of weights: by its digest as name, its content, or its name."""
    if card.sha256 is not None:
        if (folder / card.sha256).is_file():
            return folder / card.sha256
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_file() and path.stat().st_size == card.size_bytes and sha256_of(path) == card.sha256:
                return path
    named = folder / Path(card.file).name
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

    Raises:
        CorruptError: another size or another sha256.
    """
    _check(card, path, path.stat().st_size, sha256_of(path))


def _check(card: ModelCard, path: Path, size_bytes: int, sha256: str) -> None:
    if card.size_bytes not in (None, size_bytes) or card.sha256 not in (None, sha256):
        raise CorruptError(
            f"{path}: not the weights of model {card.name!r}: {size_bytes} bytes with sha256 {sha256}, "
            f"expected {card.size_bytes} bytes with {card.sha256}; "
            f"delete the file and get it again from {card.source}"
        )
