"""SCRFD (Guo et al.: "Sample and Computation Redistribution for Efficient Face Detection", 2021): its outputs read.

Anchor-free distances at strides 8, 16 and 32, two places a cell, as insightface's ONNX files have them. Used by
facescale.vision.registry.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from facescale.errors import MismatchError
from facescale.vision.dense import Candidates, Canvas, DenseDetector, build_detector, cell_corners

if TYPE_CHECKING:
    from facescale.models.card import ModelCard

STRIDES = (8, 16, 32)
PER_CELL = 2


def load(card: ModelCard, **options: Any) -> DenseDetector:
    """Load the detector of `card`; options and errors as of facescale.vision.dense.build_detector."""
    return build_detector(card, partial(decode, card=card), Canvas(multiple=max(STRIDES)), **options)


def decode(outputs: dict[str, torch.Tensor], height: int, width: int, *, card: ModelCard) -> Candidates:
    """Read scores [B, n, 1], then distances [B, n, 4], then landmarks [B, n, 10], each for strides 8, 16 and 32.

    With c = cell · S: box = c - d01 · S, c + d23 · S; landmark = c + k · S. The files name their outputs by number,
    so their order counts; the rows of a cell stand together.

    Raises:
        MismatchError: another number of outputs than the card's landmark scheme makes, or of places than the canvas.
    """
    kinds = 3 if card.landmark_scheme else 2
    values = list(outputs.values())
    if len(values) != kinds * len(STRIDES):
        raise MismatchError(
            f"model {card.name!r} has {len(values)} outputs; its card, whose landmark_scheme is "
            f"{card.landmark_scheme!r}, means {kinds * len(STRIDES)}: {kinds} kinds at {len(STRIDES)} strides"
        )
    scores, boxes, landmarks = [], [], []
    for level, stride in enumerate(STRIDES):
        cells = cell_corners(height // stride, width // stride, values[0].device)
        centers = cells.repeat_interleave(PER_CELL, dim=0) * stride
        score, distance = values[level], values[level + len(STRIDES)] * stride
        if score.shape[1] != len(centers):
            raise MismatchError(
                f"model {card.name!r} judges {score.shape[1]} places at stride {stride} of a canvas of "
                f"{width} x {height} px where SCRFD has {len(centers)}: is it another architecture?"
            )
        scores.append(score.flatten(1))
        boxes.append(torch.cat([centers - distance[..., :2], centers + distance[..., 2:]], dim=-1))
        if kinds == 3:
            offsets = values[level + 2 * len(STRIDES)].reshape(*score.shape[:2], -1, 2) * stride
            landmarks.append(offsets + centers[:, None])
    return Candidates(
        torch.cat(scores, 1), torch.cat(boxes, 1), torch.cat(landmarks, 1) if landmarks else None
    )
