"""A plug-in annotator in Python, `tone`: mean color of the chip; where FACESCALE_TEST_DEADLY is set, light chips kill.

It needs no weights. The color is rounded, so that it does not depend on how many chips are looked at together.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np

from facescale.models.card import ModelCard
from facescale.models.registry import register_card
from facescale.vision.registry import register_annotator

NAME = "tone"
LIGHT = 250
CARD = ModelCard(
    name=NAME,
    task="annotator",
    architecture=NAME,
    file="none",
    sha256="0" * 64,
    licence="Apache-2.0",
    non_commercial=False,
    source="these tests",
    input_size=48,
    annotator={
        "columns": [
            {"name": "level", "type": "float", "description": "Mean level."},
            {"name": "colors", "type": "list<float>", "description": "Mean red, green and blue."},
            {"name": "main", "type": "string", "description": "The strongest color.", "how": "given"},
        ]
    },
)


class Tone:
    """See the module."""

    card = CARD

    def annotate(self, chips: np.ndarray) -> dict[str, np.ndarray]:
        colors = np.round(chips.astype(np.float64).mean(axis=(1, 2)), 3).reshape(-1, 3)
        if os.environ.get("FACESCALE_TEST_DEADLY") and (colors.min(axis=1, initial=255) > LIGHT).any():
            os.kill(os.getpid(), signal.SIGKILL)
        names = np.array(["red", "green", "blue"], object)
        return {
            "level": colors.mean(axis=1),
            "colors": colors,
            "main": names[colors.argmax(axis=1)] if len(colors) else names[:0],
        }


def _load(card: ModelCard, **options: Any) -> Tone:
    return Tone()


register_card(CARD)
register_annotator(NAME, _load)
