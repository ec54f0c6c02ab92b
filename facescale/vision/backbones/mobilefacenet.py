"""MobileFaceNet (Chen et al. 2018) with ReLU6, as foamliu's checkpoint names it.

Made by facescale.vision.backbones.create. Inverted residuals of MobileNetV2, and in place of the global average a
7 x 7 depthwise convolution, which weighs the parts of a face.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

# Expansion, channels, blocks, stride of the first block (table 1 of the paper).
_STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


class MobileFaceNet(nn.Module):
    """See the module's head.

    Args:
        dim: D.
    """

    def __init__(self, *, dim: int = 128) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 3, 2)
        self.dw_conv = _Separable(64)
        blocks: list[nn.Module] = []
        width = 64
        for expansion, channels, count, stride in _STAGES:
            for i in range(count):
                blocks.append(_Inverted(width, channels, 1 if i else stride, expansion))
                width = channels
        self.features = nn.Sequential(*blocks)
        self.conv2 = _conv(width, 512, 1, 1)
        self.gdconv = _GlobalDepthwise(512)
        self.conv3 = nn.Conv2d(512, dim, 1)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Descriptors [B, D] of [B, 3, 112, 112]."""
        x = self.conv2(self.features(self.dw_conv(self.conv1(x))))
        return torch.flatten(self.bn(self.conv3(self.gdconv(x))), 1)


def _conv(before: int, after: int, side: int, stride: int, groups: int = 1) -> nn.Sequential:
    """Convolution, normalization, ReLU6."""
    convolution = nn.Conv2d(before, after, side, stride, side // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU6())


class _Separable(nn.Module):
    """Depthwise, then pointwise convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.depthwise(x)))
        return functional.relu(self.bn2(self.pointwise(x)))


class _Inverted(nn.Module):
    """Widen, filter each channel, narrow without an activation."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = before * expansion
        self.residual = stride == 1 and before == after
        self.conv = nn.Sequential(
            _conv(before, hidden, 1, 1),
            _conv(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return x + y if self.residual else y


class _GlobalDepthwise(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, groups=width, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.bn(self.depthwise(x))
        return found
