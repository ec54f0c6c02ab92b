"""Where a card's weights lie on this machine, and whether they are the ones the card means.

A card in, a verified path or the file's bytes out; called by the model factories and by `facescale models`.
"""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.errors import CorruptError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from facescale.models.card import ModelCard

WEIGHTS_FOLDER_VARIABLE = "FACESCALE_WEIGHTS"


def find_weights(card: ModelCard) -> Path:
    """Find a card's weights: in the folder FACESCALE_WEIGHTS names, then in the package that ships them.

    In the folder the file may have its own name or its sha256 as name. The package is located, never
    imported: the one that ships dlib's weights imports pkg_resources, which recent setuptools dropped.

    Raises:
        MissingExtraError: the package that ships them is not installed.
        UsageError: no package ships them and they are not in the folder.
        CorruptError: the package is installed without the file.
    """
    folder = os.environ.get(WEIGHTS_FOLDER_VARIABLE)
    if folder:
        for name in (Path(card.file).name, card.sha256):
            candidate = Path(folder) / name
            if candidate.is_file():
                return candidate
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
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    _check(card, path, path.stat().st_size, digest)


def _check(card: ModelCard, path: Path, size_bytes: int, sha256: str) -> None:
    if (size_bytes, sha256) != (card.size_bytes, card.sha256):
        raise CorruptError(
            f"{path}: not the weights of model {card.name!r}: {size_bytes} bytes with sha256 {sha256}, "
            f"expected {card.size_bytes} bytes with {card.sha256}; "
            f"delete the file and get it again from {card.source}"
        )
