"""How this process finds models: a job's settings come in, the registry and the search for weights ask here.

The driver enters an access for the length of a job; it travels to the workers with the stage's settings, and they
enter it too. So a card that only the driver's machine has is known everywhere, with the digest that the driver saw.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from facescale.models.card import ModelCard

OFFLINE_VARIABLE = "FACESCALE_OFFLINE"
_YES = ("1", "true", "yes", "on")


@dataclass(frozen=True, kw_only=True)
class ModelAccess:
    """Which cards hold and whether downloads are allowed; travels in the settings of a stage.

    Args:
        offline: download nothing; False leaves it to the environment variable FACESCALE_OFFLINE.
        cards: cards that go before those of the registry: what the driver runs, so do the workers.
    """

    offline: bool = False
    cards: tuple[ModelCard, ...] = ()

    def enter(self) -> None:
        """Use this access in this process from now on."""
        global _current
        _current = self


_current = ModelAccess()


def current() -> ModelAccess:
    """The access of this process."""
    return _current


@contextlib.contextmanager
def entered(access: ModelAccess) -> Iterator[None]:
    """Use an access for a `with` block, then the one before it again."""
    before = _current
    access.enter()
    try:
        yield
    finally:
        before.enter()


def is_offline() -> bool:
    """Whether downloads are forbidden."""
    return _current.offline or os.environ.get(OFFLINE_VARIABLE, "").strip().lower() in _YES
