"""Similarities in, chips out: which patch of an image a chip needs, how often halved, how resampled.

Called by facescale.vision.align. Everything here counts pixels from center to center (the first one lies
at 0), as dlib and OpenCV do; complex numbers are points of the plane.

Shape legend: N faces of a batch, S chip side.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

# dlib truncates doubles. Added first, this keeps float32 noise from pushing whole values down by one.
_ROUNDING = np.float32(1e-4)


@dataclass(frozen=True, eq=False)
class Plan:
    """How to cut N chips.

    Args:
        size: S, px.
        patch: int64 [N, 4] left, top, right, bottom in the image, the last two exclusive; may be empty.
        halvings: int64 [N], how often the patch is halved before it is sampled.
        step: complex128 [N], from one chip pixel to the next on the right, in px of the halved patch.
        origin: complex128 [N], where the first chip pixel lies in the halved patch.
        like_dlib: halve, round and black out as dlib does.
    """

    size: int
    patch: np.ndarray
    halvings: np.ndarray
    step: np.ndarray
    origin: np.ndarray
    like_dlib: bool


def plan(turn: np.ndarray, shift: np.ndarray, size: int, shapes: np.ndarray) -> Plan:
    """Plan chips that are sampled plainly: bilinear, halved first where over two image pixels fall on one.

    Args:
        turn: complex128 [N], chip → image.
        shift: complex128 [N], chip → image.
        size: S, px.
        shapes: int [N, 2], height and width of the images.
    """
    scale = np.abs(turn)
    halvings = np.ceil(np.log2(np.maximum(scale, 1e-9) / 2)).clip(0, 30).astype(np.int64)
    corners = turn[:, None] * _corners(0, size - 1) + shift[:, None]
    # Each halving looks two of its own pixels further, and the bilinear filter one.
    patch = _patch(corners, 4.0 * 2.0**halvings, shapes)
    factor = 2.0**-halvings
    return Plan(size, patch, halvings, turn * factor, (shift - _top_left(patch)) * factor, like_dlib=False)


def plan_like_dlib(turn: np.ndarray, shift: np.ndarray, size: int, shapes: np.ndarray) -> Plan:
    """Plan chips as dlib's extract_image_chips cuts them; arguments as in `plan`.

    dlib turns the similarity into a rectangle of `size` · scale px around the chip's center and
    stretches the chip over it from first to last pixel, so that a chip pixel is (size · scale - 1) /
    (size - 1) image pixels. Halving maps p to p / 2 - (1.25, 0.75), although its filter is centered on p
    / 2 - 1; descriptors were trained on that.
    """
    scale = np.abs(turn)
    rotation = np.where(scale > 0, turn / np.where(scale > 0, scale, 1), 1)
    middle = turn * (size / 2 + size / 2 * 1j) + shift
    side = size * scale
    halvings = np.zeros(len(turn), np.int64)
    grow = np.full(len(turn), 2.0)
    smaller = (side + 1) / 2
    while (large := smaller**2 > size**2).any():
        halvings += large
        grow = np.where(large, 2 * grow + 2, grow)
        smaller = np.where(large, (smaller + 1) / 2, smaller)
    half = (side - 1) / 2
    corners = middle[:, None] + (rotation * half)[:, None] * _corners(-1, 1)
    patch = _patch(corners, grow, shapes)
    middle = middle - _top_left(patch)
    for level in range(int(halvings.max(initial=0))):
        deeper = halvings > level
        middle = np.where(deeper, middle / 2 - (1.25 + 0.75j), middle)
        half = np.where(deeper, half / 2, half)
    reach = (size - 1) / 2
    step = rotation * half / reach
    return Plan(size, patch, halvings, step, middle - step * (reach + reach * 1j), like_dlib=True)


def cut(image: np.ndarray, plan: Plan, i: int, out: np.ndarray) -> None:
    """Resample chip `i` of a plan from its image.

    Args:
        image: uint8 [H, W, 3].
        plan: from `plan` or `plan_like_dlib`.
        i: which of its N chips.
        out: uint8 [S, S, 3], zeroed; left black where the chip has no pixels.
    """
    left, top, right, bottom = plan.patch[i]
    if right - left < 2 or bottom - top < 2:
        return
    pixels = image[top:bottom, left:right].astype(np.float32)
    for _ in range(plan.halvings[i]):
        pixels = _halve_like_dlib(pixels) if plan.like_dlib else cv2.pyrDown(pixels)
        if min(pixels.shape[:2]) < 2:
            return
    height, width = pixels.shape[:2]
    step, origin = plan.step[i], plan.origin[i]
    along = np.arange(plan.size, dtype=np.float32)
    down = along[:, None]
    x = np.float32(step.real) * along + (np.float32(origin.real) - np.float32(step.imag) * down)
    y = np.float32(step.imag) * along + (np.float32(origin.imag) + np.float32(step.real) * down)
    # grid_sample and not cv2.warpAffine: OpenCV before 5.0 rounds positions to 1/32 px, which moves
    # descriptors by up to 0.007.
    grid = np.stack([x * np.float32(2 / (width - 1)) - 1, y * np.float32(2 / (height - 1)) - 1], axis=-1)
    sampled = torch.nn.functional.grid_sample(
        torch.from_numpy(pixels).permute(2, 0, 1)[None],
        torch.from_numpy(grid)[None],
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    )[0]
    chip = sampled.permute(1, 2, 0).numpy()
    if not plan.like_dlib:
        out[:] = np.rint(chip)
        return
    out[:] = chip + _ROUNDING
    if x[:, [0, -1]].min() < 0 or y[[0, -1]].min() < 0 or x.max() >= width - 1 or y.max() >= height - 1:
        # dlib wants all four neighbors inside; padding with zeros would fade the edge pixels out.
        out[(x < 0) | (y < 0) | (x >= width - 1) | (y >= height - 1)] = 0


def _halve_like_dlib(pixels: np.ndarray) -> np.ndarray:
    """What dlib calls pyramid_down<2>: [1, 4, 6, 4, 1]² / 256, truncated, only where all pixels exist."""
    rows, columns = (pixels.shape[0] - 3) // 2, (pixels.shape[1] - 3) // 2
    if rows < 1 or columns < 1:
        return pixels[:0, :0]
    halved: np.ndarray = np.floor(cv2.pyrDown(pixels)[1 : rows + 1, 1 : columns + 1])  # exact in float32
    return halved


def _corners(low: float, high: float) -> np.ndarray:
    return np.array([low + low * 1j, high + low * 1j, low + high * 1j, high + high * 1j])


def _patch(corners: np.ndarray, grow: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Whole-pixel bounds of the corners, grown, inside the image; int64 [N, 4], end exclusive."""
    height, width = shapes[:, 0], shapes[:, 1]
    left = np.maximum(corners.real.min(axis=1) - grow, 0)
    top = np.maximum(corners.imag.min(axis=1) - grow, 0)
    right = np.minimum(corners.real.max(axis=1) + grow, width - 1)
    bottom = np.minimum(corners.imag.max(axis=1) + grow, height - 1)
    bounds = np.floor(np.stack([left, top, right, bottom], axis=1) + 0.5)
    # A face far outside would give bounds that no integer holds; what counts is that its patch stays empty.
    bounds = bounds.clip(-1, np.stack([width, height, width, height], axis=1)).astype(np.int64)
    bounds[:, 2:] += 1
    return bounds


def _top_left(patch: np.ndarray) -> np.ndarray:
    return patch[:, 0] + 1j * patch[:, 1]
