"""What a detector, a landmarker, an embedder, an annotator and a quality scorer are: arrays in, arrays out, a card.

Implemented by the models of this package and by plug-ins (see facescale.vision.registry), called by the
extract, embed and annotate stages. Images are uint8 [H, W, 3] RGB, C-contiguous, of any size down to 1 x 1, and are
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


@runtime_checkable
class Annotator(Protocol):
    """Says things about faces: the columns that its card declares (facescale.models.annotator_card)."""

    card: ModelCard

    def annotate(self, chips: np.ndarray) -> dict[str, np.ndarray]:
        """Look at each chip; large batches are split inside.

        Args:
            chips: uint8 [N, S, S, 3] RGB, cut as the card's template or crop says, S its input_size; N may be 0.

        Returns:
            An array for each column, by its name: float [N] for `float`, float [N, L] for `list<float>` (of `points`:
            x1, y1, … px of the chip), object [N] of str or None for `string`, numbers or bools [N] for `int32` and
            `bool`, NaN where there is none. NaN and infinity in a `float` or a list is a face's status `not_finite`.
            An optional bool [N] called `not_finite` says so where the other types cannot.
        """
        ...


@dataclass(frozen=True, eq=False)
class FaceViews:
    """Faces as the lake keeps them, for a scorer: what it needs is in the tables images, faces and crops.

    Args:
        crops: N arrays uint8 [side, side, 3] RGB, as facescale.vision.crops.wide_crops cuts them.
        matrices: float64 [N, 2, 3], px of the image → px of the crop.
        landmarks: [N, K, 2] px of the image.
        scheme: name of their landmark scheme.
        image_sizes: int [N, 2], height and width of each face's image, px.
    """

    crops: Sequence[np.ndarray]
    matrices: np.ndarray
    landmarks: np.ndarray
    scheme: str
    image_sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.crops)

    def slice(self, start: int, stop: int) -> FaceViews:
        """The faces from `start` to before `stop`."""
        span = slice(start, stop)
        return FaceViews(
            self.crops[span], self.matrices[span], self.landmarks[span], self.scheme, self.image_sizes[span]
        )

    def take(self, chosen: np.ndarray) -> FaceViews:
        """The faces of a bool [N]."""
        crops = [self.crops[i] for i in np.flatnonzero(chosen).tolist()]
        return FaceViews(
            crops, self.matrices[chosen], self.landmarks[chosen], self.scheme, self.image_sizes[chosen]
        )


@dataclass(frozen=True, eq=False)
class FaceQuality:
    """What a scorer says of N faces; the columns of `faces` of the same names. NaN is unknown (null in the table).

    Args:
        sharpness: float32 [N] in 0..1.
        brightness: float32 [N] in 0..1, mean luminance of the face.
        contrast: float32 [N] in 0..1.
        yaw_deg: float32 [N] in -90..90, positive when the face looks to the right of the image.
        pitch_deg: float32 [N] in -90..90, positive when it looks down.
        truncation: float32 [N] in 0..1, share of the face that lies outside the image.
        quality: float32 [N] in 0..1, higher is better.
    """

    sharpness: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    yaw_deg: np.ndarray
    pitch_deg: np.ndarray
    truncation: np.ndarray
    quality: np.ndarray


@runtime_checkable
class QualityScorer(Protocol):
    """Says how good faces are for recognition; called from several threads at once.

    What it says under its name never changes: other results, other name.
    """

    name: str

    def score(self, faces: FaceViews) -> FaceQuality:
        """Score each face.

        Args:
            faces: N faces, perhaps none.

        Returns:
            N values of each kind; a face's do not depend on the others.
        """
        ...
