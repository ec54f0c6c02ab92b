"""YuNet (Wu, Peng, Yu: "YuNet: A tiny millisecond-level face detector", 2023): how its outputs are read.

Anchor-free, strides 8, 16 and 32, one place a cell; boxes and five landmarks relative to the cell's corner, in strides.
Used by facescale.vision.registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from facescale.vision.dense import Candidates, Canvas, DenseDetector, build_detector, cell_corners

if TYPE_CHECKING:
    from facescale.models.card import ModelCard

STRIDES = (8, 16, 32)


def load(card: ModelCard, **options: Any) -> DenseDetector:
    """Load the detector of `card`; options and errors as of facescale.vision.dense.build_detector."""
    return build_detector(card, decode, Canvas(multiple=max(STRIDES)), **options)


def decode(outputs: dict[str, torch.Tensor], height: int, width: int) -> Candidates:
    """Read the outputs cls_S, obj_S, bbox_S and kps_S of each stride S, each [B, cells, 1, 1, 4 or 10].

    score = √(cls · obj); center = (cell + b01) · S; size = exp(b23) · S; landmark = (cell + k) · S.
    """
    scores, boxes, landmarks = [], [], []
    for stride in STRIDES:
        cells = cell_corners(height // stride, width // stride, outputs[f"bbox_{stride}"].device)
        quality = outputs[f"cls_{stride}"].clamp(0, 1) * outputs[f"obj_{stride}"].clamp(0, 1)
        batch = len(quality)
        scores.append(quality.sqrt().flatten(1))
        box = outputs[f"bbox_{stride}"].reshape(batch, -1, 2, 2)
        center, half = (cells + box[..., 0, :]) * stride, box[..., 1, :].exp() * (stride / 2)
        boxes.append(torch.cat([center - half, center + half], dim=-1))
        points = outputs[f"kps_{stride}"].reshape(batch, len(cells), -1, 2)
        landmarks.append((points + cells[:, None]) * stride)
    return Candidates(torch.cat(scores, 1), torch.cat(boxes, 1), torch.cat(landmarks, 1))
