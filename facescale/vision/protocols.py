"""What a detector, a landmarker and an embedder are: arrays in, arrays out, a card that says how.

Implemented by the models of this package and by plug-ins (see facescale.vision.registry), called by the
extract and embed stages. Images are uint8 [H, W, 3] RGB, C-contiguous, of any size down to 1 x 1, and are
never written to. Coordinates are pixels of the given image, x right, y down, pixel centers at .5: the left
edge of the first pixel is 0 and its center 0.5.

Shape legend: N faces of a batch, n faces of one image, K landmarks, S chip side, D embedding dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.models.card import ModelCard


@dataclass(frozen=True, eq=False)
class Detections:
    """The faces found in one image, best first.

    Args:
        boxes: float32 [n, 4], x1, y1, x2, y2 in px; may reach outside the image.
        scores: float32 [n], descending, in the detector's own unit.
        landmarks: float32 [n, K, 2] px for detectors that produce them, else None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def best(self, limit: int) -> Detections:
        """The first `limit` faces, which are those of highest score."""
        landmarks = None if self.landmarks is None else self.landmarks[:limit]
        return Detections(self.boxes[:limit], self.scores[:limit], landmarks)

    @classmethod
    def none(cls, num_landmarks: int | None = None) -> Detections:
        """An image without faces; `num_landmarks` is K for detectors that produce landmarks."""
        landmarks = None if num_landmarks is None else np.zeros((0, num_landmarks, 2), np.float32)
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), landmarks)


@runtime_checkable
class Detector(Protocol):
    """Finds faces in a batch of images of any sizes."""

    card: ModelCard

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Find the faces of each image.

        Args:
            images: uint8 [H, W, 3] RGB arrays; the sequence may be empty.

        Returns:
            One `Detections` per image, in order. An image's faces do not depend on the others in the batch,
            save for the last bits of a score, as libraries choose other kernels for other shapes.
        """
        ...


@runtime_checkable
class Landmarker(Protocol):
    """Finds the landmarks of given boxes, in the scheme its card names."""

    card: ModelCard

    def landmarks(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Locate K landmarks in each box.

        Args:
            images: uint8 [H, W, 3] RGB arrays.
            boxes: float32 [n, 4] per image, as `Detections.boxes`; n may be 0.

        Returns:
            float32 [n, K, 2] per image, px.
        """
        ...


@runtime_checkable
class Embedder(Protocol):
    """Turns aligned chips into descriptors."""

    card: ModelCard
    dim: int

    def embed(self, chips: np.ndarray) -> np.ndarray:
        """Describe each chip; large batches are split inside.

        Args:
            chips: uint8 [N, S, S, 3] RGB, aligned to the card's template; N may be 0.

        Returns:
            float32 [N, D] as the network gives them: not normalized.
        """
        ...
