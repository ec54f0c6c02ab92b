"""An embedder in, one that describes each face twice out: as it is and mirrored.

Made by facescale.vision.registry for `extract.flip`. The mean of raw descriptors is what most published figures are
made with; its length still says how recognizable a face is, for models where it does.

Shape legend: N faces, S chip side, D descriptor length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from facescale.vision.protocols import Embedder


class Flipped:
    """See `facescale.vision.protocols.Embedder`.

    Args:
        embedder: runs twice.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder, self.card, self.dim = embedder, embedder.card, embedder.dim

    def embed(self, chips: np.ndarray) -> np.ndarray:
        """The mean of the descriptors of each chip, uint8 [N, S, S, 3], and of its mirror image: float32 [N, D]."""
        mirrored = np.ascontiguousarray(chips[:, :, ::-1])
        found: np.ndarray = (self.embedder.embed(chips) + self.embedder.embed(mirrored)) / np.float32(2)
        return found
