"""YuNet (Wu, Peng, Yu: "YuNet: A tiny millisecond-level face detector", 2023): how its outputs are read.

Anchor-free, strides 8, 16 and 32, one place a cell; boxes and five landmarks relative to the cell's corner, in strides.
Used by facescale.vision.registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from facescale.vision.dense import Candidates, Canvas, DenseDetector
from facescale.vision.networks import load_network

if TYPE_CHECKING:
    from facescale.models.card import ModelCard

STRIDES = (8, 16, 32)


def load(
    card: ModelCard,
    *,
    device: torch.device,
    precision: str,
    min_face_px: int,
    max_batch_pixels: int | None,
) -> DenseDetector:
    """Load the detector of `card`; errors as of facescale.vision.networks.load_network."""
    return DenseDetector(
        card,
        load_network(card, device=device, precision=precision),
        decode,
        device=device,
        min_face_px=min_face_px,
        max_batch_pixels=max_batch_pixels,
        canvas=Canvas(multiple=max(STRIDES)),
    )


def decode(outputs: dict[str, torch.Tensor], height: int, width: int) -> Candidates:
    """Read the outputs cls_S, obj_S, bbox_S and kps_S of each stride S, each [B, cells, 1, 1, 4 or 10].

    score = √(cls · obj); center = (cell + b01) · S; size = exp(b23) · S; landmark = (cell + k) · S.
    """
    scores, boxes, landmarks = [], [], []
    for stride in STRIDES:
        cells = _cells(height // stride, width // stride, outputs[f"bbox_{stride}"].device)
        quality = outputs[f"cls_{stride}"].clamp(0, 1) * outputs[f"obj_{stride}"].clamp(0, 1)
        batch = len(quality)
        scores.append(quality.sqrt().flatten(1))
        box = outputs[f"bbox_{stride}"].reshape(batch, -1, 2, 2)
        center, half = (cells + box[..., 0, :]) * stride, box[..., 1, :].exp() * (stride / 2)
        boxes.append(torch.cat([center - half, center + half], dim=-1))
        points = outputs[f"kps_{stride}"].reshape(batch, len(cells), -1, 2)
        landmarks.append((points + cells[:, None]) * stride)
    return Candidates(torch.cat(scores, 1), torch.cat(boxes, 1), torch.cat(landmarks, 1))


def _cells(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Column and row of each cell, row by row: float32 [rows · columns, 2]."""
    row, column = torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
    )
    return torch.stack([column, row], dim=-1).reshape(-1, 2).float()
