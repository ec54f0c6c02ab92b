"""IR, the residual network of ArcFace as AdaFace's checkpoints name it (Kim et al. 2022).

Made by facescale.vision.backbones.create. As IResNet, but a block that halves the map without widening it has a
shortcut without parameters, and the last normalization has none either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from facescale.vision.backbones.iresnet import MAP_SIDE, WIDTHS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


class IR(nn.Module):
    """See the module's head.

    Args:
        layers: blocks of each of the four stages; the first of each halves the map.
        dim: D.
    """

    def __init__(self, layers: Sequence[int], *, dim: int = 512) -> None:
        super().__init__()
        first = WIDTHS[0]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first)
        )
        blocks = []
        for before, width, count in zip((first, *WIDTHS), WIDTHS, layers, strict=False):
            blocks += [_Block(width if i else before, width, 1 if i else 2) for i in range(count)]
        self.body = nn.Sequential(*blocks)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(WIDTHS[-1]),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(WIDTHS[-1] * MAP_SIDE**2, dim),
            nn.BatchNorm1d(dim, affine=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Descriptors [B, D] of [B, 3, 112, 112]; their length is AdaFace's measure of quality."""
        found: torch.Tensor = self.output_layer(self.body(self.input_layer(x)))
        return found


class _Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer = (
            nn.MaxPool2d(1, stride)
            if before == width
            else nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.Conv2d(before, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return found
