"""A plug-in for the tests, given to commands with --plugin: `tiny`, an embedder of 16 numbers without weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from facescale.models.card import ModelCard
from facescale.models.registry import register_card
from facescale.vision.registry import register_embedder

CARD = ModelCard(
    name="tiny",
    task="embedder",
    architecture="tiny_means",
    file="none",
    sha256="0" * 64,
    size_bytes=1,
    licence="Apache-2.0",
    non_commercial=False,
    source="these tests",
    input_size=150,
    template="dlib_150",
    landmark_scheme="dlib5",
    dim=16,
)


class TinyEmbedder:
    """The mean brightness of 4 × 4 fields of a chip."""

    card, dim = CARD, 16

    def embed(self, chips: np.ndarray) -> np.ndarray:
        gray = chips[:, :148, :148].astype(np.float32).mean(axis=3)
        return gray.reshape(len(chips), 4, 37, 4, 37).mean(axis=(2, 4)).reshape(len(chips), 16)


def _load(card: ModelCard, **options: Any) -> TinyEmbedder:
    return TinyEmbedder()


register_card(CARD)
register_embedder(CARD.architecture, _load)
