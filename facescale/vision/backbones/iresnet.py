"""IResNet, the residual network of ArcFace (Duta et al. 2020, Deng et al. 2019), as insightface and MagFace name it.

Made by facescale.vision.backbones.create. Blocks normalize first and have no activation after the sum; the head
keeps the 7 x 7 map and maps it linearly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTHS = (64, 128, 256, 512)
MAP_SIDE = 7  # what 112 px become after four halvings


class IResNet(nn.Module):
    """See the module's head.

    Args:
        layers: blocks of each of the four stages; the first of each halves the map.
        dim: D.
        eps: of every normalization: 1e-5 in insightface's checkpoints, 2e-5 in MagFace's.
    """

    def __init__(self, layers: Sequence[int], *, dim: int = 512, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0], eps=eps)
        self.prelu = nn.PReLU(WIDTHS[0])
        inputs = (WIDTHS[0], *WIDTHS)
        stages = [
            nn.Sequential(
                *(_Block(before if not i else width, width, 1 if i else 2, eps) for i in range(blocks))
            )
            for before, width, blocks in zip(inputs, WIDTHS, layers, strict=False)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(WIDTHS[-1], eps=eps)
        self.fc = nn.Linear(WIDTHS[-1] * MAP_SIDE**2, dim)
        self.features = nn.BatchNorm1d(dim, eps=eps)
        # Its scale would change the norm that the margin losses fix; insightface freezes it at 1.
        self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Descriptors [B, D] of [B, 3, 112, 112]."""
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        found: torch.Tensor = self.features(self.fc(torch.flatten(self.bn2(x), 1)))
        return found


class _Block(nn.Module):
    """Normalize, convolve, normalize, PReLU, convolve with the stride, normalize; the shortcut is projected."""

    def __init__(self, before: int, width: int, stride: int, eps: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before, eps=eps)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps=eps)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width, eps=eps)
        self.downsample = (
            None
            if stride == 1 and before == width
            else nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width, eps=eps)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.bn2(self.conv1(self.bn1(x)))
        y = self.bn3(self.conv2(self.prelu(y)))
        shortcut: torch.Tensor = x if self.downsample is None else self.downsample(x)
        return y + shortcut
