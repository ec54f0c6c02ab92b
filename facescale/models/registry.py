"""Model cards by name: those that ship with facescale, and those a plug-in registers.

Called wherever a model is named: the command line, planning, and facescale.vision.registry.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources

from facescale.errors import MismatchError, UsageError
from facescale.models.card import ModelCard, parse_card


@cache
def _registered() -> dict[str, ModelCard]:
    """The table of cards, filled from facescale/models/cards on first use."""
    table: dict[str, ModelCard] = {}
    folder = resources.files("facescale.models") / "cards"
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".yaml"):
            _add(table, parse_card(entry.read_text(encoding="utf-8"), where=entry.name))
    return table


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


def cards(task: str | None = None) -> list[ModelCard]:
    """Every registered card, or those of one task, in order of name."""
    return [entry for _, entry in sorted(_registered().items()) if task is None or entry.task == task]


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
        return _registered()[name]
    if name in _registered():
        raise UsageError(
            f"{name!r} is a model of task {_registered()[name].task}, expected {task}; known: {', '.join(known)}"
        )
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    raise UsageError(f"there is no {task or 'model'} {name!r}; {hint}")
