"""Non-maximum suppression on the device: scored boxes of many images in, a mask of those that stay out.

Called by detectors. Greedy by score like dlib and everyone else, without a Python loop over boxes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 2048  # boxes compared at a time: bounds memory at CHUNK * (boxes kept + CHUNK) overlaps


def greedy_nms(
    boxes: torch.Tensor,
    groups: torch.Tensor,
    max_overlap: float,
    overlap: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Keep each box that overlaps no better kept box of its group too much.

    Args:
        boxes: [n, 4], best first.
        groups: int [n], the image of each box; boxes of different images never suppress each other.
        max_overlap: largest overlap with a kept box at which a box stays.
        overlap: how much two sets of boxes [a, 4] and [b, 4] overlap, [a, b].

    Returns:
        bool [n].
    """
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for first in range(0, len(boxes), CHUNK):
        chunk = slice(first, first + CHUNK)
        better = kept.nonzero().squeeze(1)
        clashes = overlap(boxes[better], boxes[chunk]) > max_overlap
        clashes &= groups[better][:, None] == groups[chunk][None]
        free = ~clashes.any(0)
        inside = (overlap(boxes[chunk], boxes[chunk]) > max_overlap) & (
            groups[chunk][:, None] == groups[chunk][None]
        )
        kept[chunk] = _settle(inside.triu(1), free)
    return kept


def _settle(suppresses: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Boxes of one chunk that stay.

    A box stays when no better box that stays suppresses it. Starting from all, each round makes at least one
    more box final in the order of score, so the rounds end, after the longest chain of boxes of which each
    suppresses the next (a handful in practice), at the greedy answer.

    Args:
        suppresses: bool [n, n], strictly upper triangular: the better box of a row drops that of a column.
        free: bool [n], boxes that no earlier chunk dropped.
    """
    keep = free
    while True:
        settled = free & ~(suppresses & keep[:, None]).any(0)
        if torch.equal(settled, keep):
            return keep
        keep = settled


def overlap_of_hulls(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Intersection over the area of the bounding box of both, dlib's measure.

    It is at most the intersection over union, and smaller for boxes that lie diagonally.

    Args:
        first: float64 [a, 4], left, top, right, bottom, the last pixel included.
        second: float64 [b, 4].

    Returns:
        float64 [a, b].
    """
    one, other = first[:, None], second[None]
    inner = torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2]) + 1
    outer = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2]) + 1
    return inner.clamp_(min=0).prod(-1) / outer.prod(-1)


def intersection_over_union(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Intersection over union of areas.

    Args:
        first: float [a, 4], x1, y1, x2, y2.
        second: float [b, 4].

    Returns:
        float [a, b]; 0 where both are empty.
    """
    inner, one, other = _areas(first, second)
    return inner / (one[:, None] + other[None] - inner).clamp_(min=1e-9)


def intersection_over_smaller(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Intersection over the area of the smaller box: a box within another overlaps it wholly.

    Args:
        first: float [a, 4], x1, y1, x2, y2.
        second: float [b, 4].

    Returns:
        float [a, b]; 0 where either is empty.
    """
    inner, one, other = _areas(first, second)
    return inner / torch.minimum(one[:, None], other[None]).clamp_(min=1e-9)


def _areas(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Areas of what boxes [a, 4] and [b, 4] share, [a, b], and their own, [a] and [b]."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    inner = (high - low).clamp_(min=0).prod(-1)
    one, other = ((boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1) for boxes in (first, second))
    return inner, one, other
