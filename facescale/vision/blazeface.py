"""BlazeFace (Bazarevsky et al.: "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs", 2019).

Card in, detector out: the network of the front and of the back camera, whose module names are those of the public
PyTorch checkpoints, and how its 896 anchors are read. Used by facescale.vision.registry.

Shape legend: B images of a batch, C channels, A = 896 anchors.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from facescale.errors import UsageError
from facescale.vision.dense import Candidates, Canvas, DenseDetector, build_detector, cell_corners

if TYPE_CHECKING:
    from facescale.models.card import ModelCard

GRIDS = ((16, 2), (8, 6))
"""Cells a side, and anchors a cell, of the two maps."""
_VALUES = 16  # of an anchor: center, size, six keypoints
_SIDES = {"front": 128, "back": 256}


def load(card: ModelCard, **options: Any) -> DenseDetector:
    """Load the detector of `card`; options and errors as of facescale.vision.dense.build_detector.

    Raises:
        UsageError: options.camera of the card is neither front nor back.
    """
    camera = card.options.get("camera")
    if camera not in _SIDES:
        raise UsageError(
            f"model {card.name!r}: options.camera of its card must be front or back, got {camera!r}"
        )
    side = _SIDES[camera]
    build = partial(BlazeFace, back=camera == "back")
    return build_detector(card, decode, Canvas(fixed=(side, side)), build=lambda _: build(), **options)


def decode(outputs: dict[str, torch.Tensor], height: int, width: int) -> Candidates:
    """Read `scores` [B, A] before the sigmoid and `places` [B, A, 16] in px of the canvas from the anchors' centers.

    The anchors are the centers of the cells of two maps over the canvas. Keypoints count from the canvas's edge.
    """
    anchors = torch.cat(
        [
            ((cell_corners(side, side, outputs["places"].device) + 0.5) / side).repeat_interleave(
                count, dim=0
            )
            for side, count in GRIDS
        ]
    )
    centers = anchors * anchors.new_tensor([width, height])  # [A, 2]
    values = outputs["places"].reshape(*outputs["scores"].shape, _VALUES // 2, 2)
    center, half = centers + values[..., 0, :], values[..., 1, :].abs() / 2
    return Candidates(
        outputs["scores"].sigmoid(),
        torch.cat([center - half, center + half], dim=-1),
        centers[:, None] + values[..., 2:, :] - 0.5,
    )


class BlazeFace(nn.Module):
    """The network: [B, 3, side, side] in -1..1 to `scores` and `places` of the anchors.

    Args:
        back: the network of the back camera (256 px); else that of the front camera (128 px).
    """

    def __init__(self, *, back: bool) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 24, 5, stride=2), nn.ReLU(inplace=True)]
        if back:
            widths = [24] * 7 + [-24] + [24] * 7 + [-48] + [48] * 7 + [-96] + [96] * 7
            self.backbone = nn.Sequential(*stem, *_blocks(24, widths))
            self.final = _Shrink(96)
        else:
            widths = [24, 28, -32, 36, 42, -48, 56, 64, 72, 80, 88]
            self.backbone1 = nn.Sequential(*stem, *_blocks(24, widths))
            self.backbone2 = nn.Sequential(*_blocks(88, [-96, 96, 96, 96, 96]))
        fine = 96 if back else 88
        self.classifier_8 = nn.Conv2d(fine, 2, 1)
        self.classifier_16 = nn.Conv2d(96, 6, 1)
        self.regressor_8 = nn.Conv2d(fine, 2 * _VALUES, 1)
        self.regressor_16 = nn.Conv2d(96, 6 * _VALUES, 1)
        self.back = back

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run a batch."""
        padded = F.pad(batch, (1, 2, 1, 2))
        fine = self.backbone(padded) if self.back else self.backbone1(padded)
        coarse = self.final(fine) if self.back else self.backbone2(fine)
        scores = [_per_anchor(self.classifier_8(fine), 1), _per_anchor(self.classifier_16(coarse), 1)]
        places = [
            _per_anchor(self.regressor_8(fine), _VALUES),
            _per_anchor(self.regressor_16(coarse), _VALUES),
        ]
        return {"scores": torch.cat(scores, 1).squeeze(-1), "places": torch.cat(places, 1)}


def _per_anchor(maps: torch.Tensor, values: int) -> torch.Tensor:
    """[B, anchors · values, h, w] → [B, h · w · anchors, values]."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, values)


def _blocks(width: int, widths: list[int]) -> list[nn.Module]:
    """Blocks that widen to each of `widths`; a negative one halves the map too."""
    blocks: list[nn.Module] = []
    for target in widths:
        blocks.append(_Block(width, abs(target), stride=2 if target < 0 else 1))
        width = abs(target)
    return blocks


def _separable(width: int, out: int, stride: int, padding: int) -> nn.Sequential:
    """A convolution of each channel, and one that mixes them."""
    return nn.Sequential(
        nn.Conv2d(width, width, 3, stride=stride, padding=padding, groups=width), nn.Conv2d(width, out, 1)
    )


class _Block(nn.Module):
    """A separable convolution and a shortcut, whose missing channels are zeros."""

    def __init__(self, width: int, out: int, *, stride: int) -> None:
        super().__init__()
        self.convs = _separable(width, out, stride, padding=stride % 2)
        self.stride, self.missing = stride, out - width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.convs(F.pad(x, (0, 2, 0, 2)) if self.stride == 2 else x)
        short = F.max_pool2d(x, 2) if self.stride == 2 else x
        if self.missing:
            short = F.pad(short, (0, 0, 0, 0, 0, self.missing))
        return F.relu(inner + short)


class _Shrink(nn.Module):
    """A separable convolution of stride 2 without a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = _separable(width, width, 2, padding=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.convs(F.pad(x, (0, 2, 0, 2))))
