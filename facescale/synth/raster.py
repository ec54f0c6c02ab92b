"""OpenCV as typed functions of arrays: what this package draws, blurs and resamples with.

In and out: numpy arrays. Called by the other modules of facescale.synth. Points and ellipses have pixel centers at
integers and may be fractions of a px.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

_FRACTION_BITS = 4  # OpenCV draws at sixteenths of a px
_FINE = 4  # strokes are drawn at four times the resolution, so that their width may be a fraction of a px


def blur(values: np.ndarray, sigma_px: float) -> np.ndarray:
    """Gaussian blur of float32 [H, W] or [H, W, 3]."""
    return cast("np.ndarray", cv2.GaussianBlur(values, (0, 0), sigma_px))


def box_mean(values: np.ndarray, radius_px: int) -> np.ndarray:
    """Mean over squares of side 2 · radius + 1, float32, of at most 4 channels."""
    side = 2 * radius_px + 1
    return cast("np.ndarray", cv2.boxFilter(values, -1, (side, side), borderType=cv2.BORDER_REFLECT))


def enlarge(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to (width, height) smoothly; may overshoot."""
    return cast("np.ndarray", cv2.resize(values, size, interpolation=cv2.INTER_CUBIC))


def reduce(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to (width, height), averaging what falls into one px."""
    return cast("np.ndarray", cv2.resize(values, size, interpolation=cv2.INTER_AREA))


def sample(
    values: np.ndarray, at: np.ndarray, *, linear: bool = False, outside: float | None = None
) -> np.ndarray:
    """Values at places.

    Args:
        values: float32 [H, W] or [H, W, C], C at most 4.
        at: float32 [h, w, 2] x, y px.
        linear: bilinear, which never overshoots; else bicubic.
        outside: value beyond the border; None repeats the border.

    Returns:
        float32 [h, w] or [h, w, C].
    """
    how = cv2.INTER_LINEAR if linear else cv2.INTER_CUBIC
    border = cv2.BORDER_REPLICATE if outside is None else cv2.BORDER_CONSTANT
    return cast("np.ndarray", cv2.remap(values, at, None, how, borderMode=border, borderValue=outside or 0.0))


def convert(values: np.ndarray, code: int) -> np.ndarray:
    """Another color space: float32 [H, W, 3] by an OpenCV conversion code."""
    return cast("np.ndarray", cv2.cvtColor(values, code))


def polygon(shape: tuple[int, int], outline: np.ndarray) -> np.ndarray:
    """Inside of an outline, float64 [n, 2] x, y px → float32 [H, W] in 0..1."""
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [_fixed(outline)], 255, cv2.LINE_AA, _FRACTION_BITS)
    return mask.astype(np.float32) / 255


def ellipse(
    shape: tuple[int, int], center: Sequence[float], axes: Sequence[float], angle_deg: float = 0.0
) -> np.ndarray:
    """Inside of an ellipse of half widths `axes`, px → float32 [H, W] in 0..1."""
    mask = np.zeros(shape, np.uint8)
    middle, half = _fixed(np.array(center)).tolist(), _fixed(np.array(axes)).tolist()
    cv2.ellipse(mask, middle, half, angle_deg, 0, 360, 255, -1, cv2.LINE_AA, _FRACTION_BITS)
    return mask.astype(np.float32) / 255


def strokes(
    shape: tuple[int, int], lines: Sequence[np.ndarray], width_px: float, soft_px: float
) -> np.ndarray:
    """Lines through points, each float64 [n, 2] x, y px → float32 [H, W] in 0..1, blurred by `soft_px`."""
    H, W = shape
    mask = np.zeros((H * _FINE, W * _FINE), np.uint8)
    # A px center at x lies at 4x + 1.5 of the finer grid.
    fine = [_fixed(line * _FINE + (_FINE - 1) / 2) for line in lines]
    cv2.polylines(mask, fine, False, 255, max(1, round(width_px * _FINE)), cv2.LINE_AA, _FRACTION_BITS)
    return blur(reduce(mask, (W, H)).astype(np.float32) / 255, soft_px)


def _fixed(values: np.ndarray) -> np.ndarray:
    return np.round(values * (1 << _FRACTION_BITS)).astype(np.int32)
