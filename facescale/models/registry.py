"""Model cards by name: those that ship with facescale, and those a plug-in registers.

Called wherever a model is named: the command line, planning, and facescale.vision.registry.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources

from facescale.errors import UsageError
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
