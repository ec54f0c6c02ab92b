"""Model cards by name: those that ship with facescale, the user's own, and those a plug-in registers.

The user's own lie in the folder FACESCALE_CARDS names (`facescale models register` puts them there). A worker has the
cards of its job before all of them (facescale.models.access), as its machine may have others, or none.

Called wherever a model is named: the command line, planning, and facescale.vision.registry.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from facescale.errors import MismatchError, UsageError
from facescale.models import access
from facescale.models.cache import CALIBRATION_SUFFIX, cards_folder, write_file
from facescale.models.card import ModelCard, parse_card, read_card

if TYPE_CHECKING:
    from pathlib import Path


@cache
def _registered() -> dict[str, ModelCard]:
    """The table of cards, filled from facescale/models/cards and the user's folder on first use."""
    table: dict[str, ModelCard] = {}
    folder = resources.files("facescale.models") / "cards"
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".yaml"):
            _add(table, parse_card(entry.read_text(encoding="utf-8"), where=entry.name))
    for path in sorted(cards_folder().glob("*.yaml")):
        if path.name.endswith(CALIBRATION_SUFFIX):
            continue
        own = read_card(path)
        if own.name in table:
            raise UsageError(
                f"{path}: a model {own.name!r} is there already; rename this one, or delete the file"
            )
        table[own.name] = own
    return table


def _known() -> dict[str, ModelCard]:
    return _registered() | {card.name: card for card in access.current().cards}


def _add(table: dict[str, ModelCard], card: ModelCard) -> None:
    if card.name in table:
        raise UsageError(f"model {card.name!r} is registered already; give the other card another name")
    table[card.name] = card


def register_card(card: ModelCard) -> None:
    """Add a card for this process.

    Raises:
        UsageError: the name is taken; silently replacing it would run other weights under the same name.
    """
    _add(_registered(), card)


def own_card_path(name: str) -> Path:
    """Where the user's card of this name lies, or would."""
    return cards_folder() / f"{name}.yaml"


def check_own_name(card: ModelCard, *, replace: bool) -> None:
    """Check that the user may register a card under its name.

    Args:
        card: the user's.
        replace: whether it may take the place of another card of the user's.

    Raises:
        UsageError: the name is taken, or is that of another card of the user's and `replace` is not set.
    """
    path = own_card_path(card.name)
    if card.name not in _registered() and not path.is_file():
        return
    if not path.is_file():
        raise UsageError(f"model {card.name!r} is registered already; give the other card another name")
    if not replace and read_card(path) != card:
        raise UsageError(
            f"{path} is another card of the name {card.name!r}: give this one another name, or replace that with "
            "--replace"
        )


def put_own_card(card: ModelCard, text: str) -> Path:
    """Write a card into the user's folder, for this process and all later ones; see `check_own_name`."""
    path = own_card_path(card.name)
    write_file(path, text.encode())
    _registered()[card.name] = card
    return path


def cards(task: str | None = None) -> list[ModelCard]:
    """Every registered card, or those of one task, in order of name."""
    return [entry for _, entry in sorted(_known().items()) if task is None or entry.task == task]


def choose_scheme(detector: ModelCard, landmarker: ModelCard, embedder: ModelCard) -> tuple[str, bool]:
    """Whose landmarks are used: the detector's where the embedder wants them, else the landmarker's.

    Landmark schemes are not converted into each other: five eye corners and five face parts are both five points.

    Returns:
        The scheme, and whether the landmarks are the detector's own.

    Raises:
        MismatchError: neither gives what the embedder's template is made for; names landmarkers that do.
    """
    wanted = embedder.landmark_scheme or ""
    if wanted == detector.landmark_scheme:
        return wanted, True
    if wanted == landmarker.landmark_scheme:
        return wanted, False
    able = [entry.name for entry in cards("landmarker") if entry.landmark_scheme == wanted]
    remedy = f"add --landmarker {able[0]}" if able else "choose another --landmarker"
    raise MismatchError(
        f"embedder {embedder.name} is aligned by {wanted} landmarks, but {detector.name} gives "
        f"{detector.landmark_scheme or 'none'} and {landmarker.name} gives {landmarker.landmark_scheme}: {remedy}, or "
        "choose another --detector or --embedder"
    )


def card(name: str, task: str | None = None) -> ModelCard:
    """Look a card up.

    Args:
        name: registry name.
        task: the task it must have, where the caller needs one.

    Raises:
        UsageError: no such model, or not of this task; names near matches.
    """
    known = [entry.name for entry in cards(task)]
    if name in known:
        return _known()[name]
    if name in _known():
        raise UsageError(
            f"{name!r} is a model of task {_known()[name].task}, expected {task}; known: {', '.join(known)}"
        )
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    raise UsageError(f"there is no {task or 'model'} {name!r}; {hint}")
