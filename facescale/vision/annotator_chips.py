"""Stored crops in, the chips that an annotator looks at out, and the way from a chip back to the photograph.

Called by the annotate stage. A card says how its chips are cut: by a template, as an embedder's are, or as a square
around the eyes (facescale.models.annotator_card.EyeCrop).

Shape legend: N faces, K landmarks, S chip side, P points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import UsageError
from facescale.vision import warp
from facescale.vision.align import check_scheme, chip_template, eye_centers, placement
from facescale.vision.crops import chips_from_crops

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from facescale.models.annotator_card import AnnotatorPart, EyeCrop
    from facescale.models.card import ModelCard

_MIN_EYES_PX = (
    1.0  # px of the photograph: crops of faces whose eyes are nearer were cut as if they had this distance
)


@dataclass(frozen=True, eq=False)
class AnnotatorChips:
    """What an annotator is shown.

    Args:
        pixels: uint8 [N, S, S, 3] RGB.
        turn: complex128 [N], with `shift` the similarity from px of the chip to px of the photograph (centers at .5).
        shift: complex128 [N].
    """

    pixels: np.ndarray
    turn: np.ndarray
    shift: np.ndarray

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Points of the chips [N, 2 P] (x1, y1, …, px, centers at .5) → px of the photographs, float32 [N, 2 P]."""
        pairs = np.asarray(points, np.float64).reshape(len(points), -1, 2)
        moved = self.turn[:, None] * (pairs[..., 0] + 1j * pairs[..., 1]) + self.shift[:, None]
        flat: np.ndarray = np.stack([moved.real, moved.imag], axis=-1).reshape(len(points), -1)
        return flat.astype(np.float32)


def check_crop(card: ModelCard, part: AnnotatorPart, scheme: str) -> None:
    """Refuse, before any work is done, a card whose chips cannot be cut from the faces of a lake.

    Args:
        card: of the annotator.
        part: its section.
        scheme: landmark scheme of the faces.

    Raises:
        MismatchError: the template is for other landmarks.
        UsageError: there is no such template, it has another size than the card, or points cannot be led back.
    """
    if card.template is None:
        return
    template = chip_template(card.template)
    check_scheme(card.template, scheme, embedder=f"annotator {card.name}")
    if template.size != card.input_size:
        raise UsageError(
            f"model card {card.name!r}: field 'input_size' is {card.input_size}, and chips of the template "
            f"{template.name} are {template.size} px: use that, or an annotator crop (eyes_at, eye_distance)"
        )
    if template.like_dlib and any(column.how == "points" for column in part.columns):
        raise UsageError(
            f"model card {card.name!r}: points cannot be led back from chips of {template.name}, which are resampled "
            "as dlib does: use an annotator crop (eyes_at, eye_distance)"
        )


def annotator_chips(
    crops: Sequence[np.ndarray],
    matrices: np.ndarray,
    landmarks: np.ndarray,
    scheme: str,
    card: ModelCard,
    part: AnnotatorPart,
    *,
    pool: Executor | None = None,
) -> AnnotatorChips:
    """Cut the chips of some faces.

    Args:
        crops: N arrays uint8 [side, side, 3] RGB, as decoded.
        matrices: [N, 2, 3], px of the photograph → px of the crop.
        landmarks: [N, K, 2] px of the photograph.
        scheme: of the landmarks.
        card: of the annotator; checked by `check_crop`.
        part: its section.
        pool: threads to spread the faces over.

    Raises:
        MismatchError: another number of landmarks than the scheme has.
    """
    matrices = matrices.astype(np.float64)
    inside = np.einsum("nij,nkj->nki", matrices[:, :, :2], landmarks) + matrices[:, None, :, 2]
    if part.crop is None:
        template = chip_template(card.template or "")
        pixels = chips_from_crops(crops, matrices, landmarks, template.name, pool=pool)
        turn, shift = placement(template, inside)
    else:
        size = card.input_size or 0
        turn, shift = _around_eyes(part.crop, inside, scheme, matrices, size)
        half = 0.5 + 0.5j
        shapes = np.array([crop.shape[:2] for crop in crops], np.int64).reshape(-1, 2)
        plan = warp.plan(turn, shift + (turn - 1) * half, size, shapes)
        pixels = np.zeros((len(crops), size, size, 3), np.uint8)
        for _ in (map if pool is None else pool.map)(
            lambda i: warp.cut(crops[i], plan, i, pixels[i]), range(len(crops))
        ):
            pass
    # crop = a · photograph + b, as complex numbers (crops turn and scale, they do not mirror)
    a, b = matrices[:, 0, 0] + 1j * matrices[:, 1, 0], matrices[:, 0, 2] + 1j * matrices[:, 1, 2]
    return AnnotatorChips(pixels, turn / a, (shift - b) / a)


def _around_eyes(
    crop: EyeCrop, inside: np.ndarray, scheme: str, matrices: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Similarity from px of the chip to px of the crop, both with centers at .5: turn, shift complex128 [N]."""
    left, right = eye_centers(inside, scheme)
    scale = np.hypot(matrices[:, 0, 0], matrices[:, 1, 0])
    distance = np.maximum(np.hypot(*(right - left).T), _MIN_EYES_PX * scale)
    middle = (left + right) / 2
    side = distance / crop.eye_distance
    at = complex(*crop.eyes_at)
    return side / size + 0j, middle[:, 0] + 1j * middle[:, 1] - at * side
