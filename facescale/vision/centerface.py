"""CenterFace (Xu et al.: "CenterFace: Joint Face Detection and Alignment Using Face as Point", 2019): its outputs read.

A heatmap of face centers at stride 4 with the size, the offset and five landmarks of each. Used by
facescale.vision.registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from facescale.errors import MismatchError
from facescale.vision.dense import Candidates, Canvas, DenseDetector, build_detector, cell_corners

if TYPE_CHECKING:
    from facescale.models.card import ModelCard

STRIDE = 4


def load(card: ModelCard, **options: Any) -> DenseDetector:
    """Load the detector of `card`; options and errors as of facescale.vision.dense.build_detector."""
    return build_detector(card, decode, Canvas(multiple=32), **options)


def decode(outputs: dict[str, torch.Tensor], height: int, width: int) -> Candidates:
    """Read heatmap [B, 1, h, w], sizes [B, 2, h, w], offsets [B, 2, h, w] and landmarks [B, 10, h, w], in this order.

    Pairs are y, x. center = (cell + offset + 0.5) · 4; size = exp(s) · 4; landmark = corner + k · size. A place is a
    face where the heatmap has a peak among its eight neighbors.

    Raises:
        MismatchError: other outputs.
    """
    heat, sizes, offsets, points = _four(outputs)
    rows, columns = heat.shape[2:]
    cells = cell_corners(rows, columns, heat.device)
    peak = heat == torch.nn.functional.max_pool2d(heat, 3, 1, 1)
    size = _per_cell(sizes).exp() * STRIDE
    center = (cells + _per_cell(offsets) + 0.5) * STRIDE
    corner = center - size / 2
    pairs = (
        points.reshape(len(points), -1, 2, rows * columns).flip(2).permute(0, 3, 1, 2)
    )  # [B, cells, K, (x, y)]
    return Candidates(
        (heat * peak).flatten(1),
        torch.cat([corner, corner + size], dim=-1),
        corner[:, :, None] + pairs * size[:, :, None],
    )


def _per_cell(maps: torch.Tensor) -> torch.Tensor:
    """[B, (y, x), h, w] → [B, cells, (x, y)]."""
    return maps.flip(1).flatten(2).transpose(1, 2)


def _four(outputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    found = list(outputs.values())
    channels = [values.shape[1] for values in found]
    if channels != [1, 2, 2, 10]:
        raise MismatchError(f"CenterFace has outputs of 1, 2, 2 and 10 channels, this network of {channels}")
    return found
