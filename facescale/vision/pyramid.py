"""dlib's tiled image pyramid: uint8 images of one size in, one plane that holds all their levels out.

Called by facescale.vision.mmod. A window of fixed size sees a face of any size at some level, each 5/6 of the
one before; all levels lie side by side in one plane of zeros, so that one pass of the network covers them.
Where a level lies decides at which phase of the network's stride its faces are seen, and how it is resized
decides the last bits of a score, so both follow dlib (image_transforms/image_pyramid.h and interpolation.h).

Shape legend: b images of one size, h and w their height and width, L levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

LEVEL_RATIO = 5 / 6
PADDING_PX = 10  # between levels
OUTER_PADDING_PX = 11  # around all of them
_SMALLEST_HEIGHT_PX = 5
_CACHED_AXES = 4096  # an axis of 500 px takes 10 kB


@dataclass(frozen=True)
class TiledLayout:
    """Where the levels of one image size lie in their plane.

    Args:
        height: of the plane, px.
        width: of the plane, px.
        levels: left, top, width and height of each level, largest first.
    """

    height: int
    width: int
    levels: tuple[tuple[int, int, int, int], ...]

    @property
    def area(self) -> int:
        """Pixels of the plane, what a forward pass costs."""
        return self.height * self.width


@lru_cache(maxsize=65536)
def tiled_layout(height: int, width: int) -> TiledLayout:
    """Lay out the pyramid of an image.

    Levels go down a left column; once the next one fits beside the last, the rest goes back up along the
    right edge, as far as it stays clear of level 0.

    Args:
        height: of level 0, at least 1 px.
        width: of level 0, at least 1 px.
    """
    sizes = [(width, height)]
    while True:
        next_width, next_height = (math.floor(LEVEL_RATIO * side) for side in sizes[-1])
        if next_width == 0 or next_height < _SMALLEST_HEIGHT_PX:
            break
        sizes.append((next_width, next_height))

    total = sum(level_height + PADDING_PX for _, level_height in sizes) - 2 * PADDING_PX
    column, previous_width, num_left = 0, 0, 0
    for level_width, level_height in sizes:
        fits_beside = level_width <= width - previous_width - PADDING_PX
        if fits_beside and 2 * (column - height) >= total - height:
            break
        column += level_height + PADDING_PX
        previous_width = level_width
        num_left += 1
    column -= PADDING_PX

    levels = []
    top = OUTER_PADDING_PX
    for level_width, level_height in sizes[:num_left]:
        levels.append((OUTER_PADDING_PX, top, level_width, level_height))
        top += level_height + PADDING_PX
    bottom = top - PADDING_PX
    for level_width, level_height in sizes[num_left:]:
        left, top = OUTER_PADDING_PX + width - level_width, bottom - level_height
        if top < OUTER_PADDING_PX + height:
            break
        levels.append((left, top, level_width, level_height))
        bottom = top - PADDING_PX
    return TiledLayout(column + 2 * OUTER_PADDING_PX, width + 2 * OUTER_PADDING_PX, tuple(levels))


def doubled_size(height: int, width: int) -> tuple[int, int]:
    """Size of an image that dlib has upsampled once."""
    return 2 * height + 1, 2 * width + 2


def draw_levels(plane: torch.Tensor, layout: TiledLayout) -> None:
    """Fill levels 1 to L-1 of a plane, each from the one before.

    Args:
        plane: float32 [b, H, W, 3], zeros but for level 0; changed in place.
        layout: of the images in it.
    """
    level = _view(plane, layout.levels[0])
    for rect in layout.levels[1:]:
        level = resize(level, rect[3], rect[2])
        _view(plane, rect).copy_(level)


def place_first_level(plane: torch.Tensor, layout: TiledLayout, pixels: torch.Tensor) -> None:
    """Write level 0, float [b, h, w, 3], into a plane, float [b, H, W, 3]."""
    _view(plane, layout.levels[0]).copy_(pixels)


def _view(plane: torch.Tensor, rect: tuple[int, int, int, int]) -> torch.Tensor:
    left, top, width, height = rect
    return plane[:, top : top + height, left : left + width]


def resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize as dlib's resize_image does float images: bilinear, corner pixels map onto each other.

    Args:
        pixels: float32 [b, h, w, 3].
        height: of the result, at least 1 px.
        width: of the result, at least 1 px.

    Returns:
        float32 [b, height, width, 3], as dlib's but for the last bit or two.
    """
    top, bottom, down, _ = _rows(pixels.shape[1], height, pixels.device)
    left, right, across = _columns(pixels.shape[2], width, pixels.device)
    rows = torch.lerp(
        pixels.index_select(1, top).flatten(2), pixels.index_select(1, bottom).flatten(2), down
    ).reshape(len(pixels), height, -1, 3)
    at_left, at_right = rows.index_select(2, left).flatten(2), rows.index_select(2, right).flatten(2)
    return torch.lerp(at_left, at_right, across).reshape(-1, height, width, 3)


def upsample(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize as dlib's resize_image does uint8 images: as `resize`, but cut to whole numbers.

    Cutting turns a last bit into a step of one, in every flat region. So this takes the longer way that rounds
    exactly as dlib does: weights first, then products, then their sum from left to right.

    Args:
        pixels: float32 [b, h, w, 3], whole numbers.
        height: of the result, at least 1 px.
        width: of the result, at least 1 px.

    Returns:
        float32 [b, height, width, 3], whole numbers, equal to dlib's but for at most a few pixels in the last
        seven columns.
    """
    top, bottom, down, up = _rows(pixels.shape[1], height, pixels.device)
    left, right, across = _columns(pixels.shape[2], width, pixels.device)
    back = 1 - across
    at_left, at_right = pixels.index_select(2, left).flatten(2), pixels.index_select(2, right).flatten(2)
    out = at_left.index_select(1, top).mul_(up * back)
    out += at_right.index_select(1, top).mul_(up * across)
    out += at_left.index_select(1, bottom).mul_(down * back)
    out += at_right.index_select(1, bottom).mul_(down * across)
    return out.floor_().reshape(-1, height, width, 3)


@lru_cache(maxsize=_CACHED_AXES)
def _rows(size: int, new_size: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Upper and lower source row (int64 [n]) and their weights, lower first (float32 [n, 1])."""
    position = _accumulate(-_step(size, new_size), _step(size, new_size), new_size)[1:]
    top = np.floor(position).astype(np.int64)
    fraction = position - top
    weights = [torch.from_numpy(w.astype(np.float32)[:, None]) for w in (fraction, 1 - fraction)]
    indices = [torch.from_numpy(i) for i in (top, np.minimum(top + 1, size - 1))]
    return tuple(tensor.to(device) for tensor in (*indices, *weights))


@lru_cache(maxsize=_CACHED_AXES)
def _columns(size: int, new_size: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Left and right source column (int64 [n]); the weight of the right one, once a channel (float32 [n * 3]).

    dlib walks along a row four columns at a time and adds up the position in float32, whose error grows to
    hundredths of a pixel on large images; the last columns, for which no four fit, it adds up in double.
    """
    step = _step(size, new_size)
    start = np.array([(lane - 4) * step for lane in range(4)]).astype(np.float32)
    fours = _accumulate(start, np.float32(4 * step), new_size // 4 + 1)[1:]
    inside = fours[:, 3].astype(np.int64) + 1 < size
    num_fours = int(np.argmin(inside)) if not inside.all() else len(fours)
    fast = fours[:num_fours].reshape(-1)[:new_size]
    slow = _accumulate(4 * num_fours * step - step, step, max(new_size - 4 * num_fours, 0))[1:]
    left = np.concatenate([np.trunc(fast), np.floor(slow)]).astype(np.int64)
    fraction = np.concatenate([fast - np.trunc(fast), (slow - np.floor(slow)).astype(np.float32)])
    indices = [torch.from_numpy(i) for i in (left, np.minimum(left + 1, size - 1))]
    return tuple(tensor.to(device) for tensor in (*indices, torch.from_numpy(np.repeat(fraction, 3))))


def _step(size: int, new_size: int) -> float:
    return (size - 1) / max(new_size - 1, 1)


def _accumulate(start: np.ndarray | float, step: np.floating | float, count: int) -> np.ndarray:
    """start, start + step, … by repeated addition (cumsum adds one by one), [count + 1, …]."""
    first = np.asarray(start)[None]
    steps = np.broadcast_to(np.asarray(step, first.dtype), (count, *first.shape[1:]))
    return np.cumsum(np.concatenate([first, steps]), axis=0, dtype=first.dtype)
