"""The networks of RetinaFace: canvases in, class, box and landmark values of every anchor out.

A backbone (MobileNet of a quarter's width, or ResNet-50), a feature pyramid, a context module a level (SSH) and three
heads. Modules bear the names that the public PyTorch checkpoints have. Used by facescale.vision.retinaface.

Shape legend: B images of a batch, A anchors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

BACKBONES = ("mobilenet_025", "resnet_50")
PER_CELL = 2


class RetinaFace(nn.Module):
    """[B, 3, H, W] to `scores` [B, A, 2], `boxes` [B, A, 4] and `landmarks` [B, A, 10]; H and W multiples of 32.

    Args:
        backbone: one of BACKBONES.
        slope: of the rectifiers below zero: 0, or 0.1 for a leaky MobileNet; those of ResNet-50 have none.
    """

    def __init__(self, backbone: str, *, slope: float = 0.0) -> None:
        super().__init__()
        small = backbone == "mobilenet_025"
        self.body: nn.Module = _MobileNet(slope) if small else _ResNet50()
        width = 64 if small else 256
        self.fpn = _Pyramid((64, 128, 256) if small else (512, 1024, 2048), width, slope)
        self.ssh1, self.ssh2, self.ssh3 = (_Context(width, slope) for _ in range(3))
        self.ClassHead, self.BboxHead, self.LandmarkHead = (
            nn.ModuleList(_Head(width, values) for _ in range(3)) for values in (2, 4, 10)
        )

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run a batch."""
        levels = self.fpn(self.body(batch))
        contexts = zip((self.ssh1, self.ssh2, self.ssh3), levels, strict=True)
        seen = [context(level) for context, level in contexts]
        heads = {"scores": self.ClassHead, "boxes": self.BboxHead, "landmarks": self.LandmarkHead}
        return {
            name: torch.cat([head(level) for head, level in zip(three, seen, strict=True)], 1)
            for name, three in heads.items()
        }


def _conv(
    width: int, out: int, size: int = 3, *, stride: int = 1, slope: float | None = 0.0
) -> nn.Sequential:
    """Convolution, batch norm, leaky rectifier; none of it where `slope` is None."""
    layers: list[nn.Module] = [
        nn.Conv2d(width, out, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(out),
    ]
    if slope is not None:
        layers.append(nn.LeakyReLU(slope, inplace=True))
    return nn.Sequential(*layers)


def _separable(width: int, out: int, stride: int, slope: float) -> nn.Sequential:
    """A convolution of each channel and one that mixes them, each with batch norm and leaky rectifier."""
    return nn.Sequential(
        nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.LeakyReLU(slope, inplace=True),
        nn.Conv2d(width, out, 1, bias=False),
        nn.BatchNorm2d(out),
        nn.LeakyReLU(slope, inplace=True),
    )


class _MobileNet(nn.Module):
    """MobileNet of a quarter's width; gives its maps of strides 8, 16 and 32."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        first = [(8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        steps = [(64, 128, 2), *[(128, 128, 1)] * 5], [(128, 256, 2), (256, 256, 1)]
        stem = _conv(3, 8, stride=2, slope=slope)
        self.stage1 = nn.Sequential(stem, *(_separable(*step, slope) for step in first))
        self.stage2, self.stage3 = (
            nn.Sequential(*(_separable(*step, slope) for step in some)) for some in steps
        )

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        fine = self.stage1(batch)
        middle = self.stage2(fine)
        return [fine, middle, self.stage3(middle)]


class _ResNet50(nn.Module):
    """ResNet-50 without its classifier; gives its maps of strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 3, stride=1)
        self.layer2 = _stage(256, 128, 4, stride=2)
        self.layer3 = _stage(512, 256, 6, stride=2)
        self.layer4 = _stage(1024, 512, 3, stride=2)

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        stem = F.max_pool2d(F.relu(self.bn1(self.conv1(batch))), 3, 2, 1)
        fine = self.layer2(self.layer1(stem))
        middle = self.layer3(fine)
        return [fine, middle, self.layer4(middle)]


def _stage(width: int, inner: int, blocks: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _Bottleneck(width, inner, stride), *(_Bottleneck(4 * inner, inner, 1) for _ in range(blocks - 1))
    )


class _Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride) and 1 x 1 convolutions, and a shortcut."""

    def __init__(self, width: int, inner: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or width != 4 * inner:
            self.downsample = nn.Sequential(
                nn.Conv2d(width, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(self.bn3(self.conv3(inner)) + self.downsample(x))


class _Pyramid(nn.Module):
    """Brings three maps to one width and adds each coarser one to the next finer."""

    def __init__(self, widths: tuple[int, int, int], out: int, slope: float) -> None:
        super().__init__()
        self.output1, self.output2, self.output3 = (_conv(width, out, 1, slope=slope) for width in widths)
        self.merge1, self.merge2 = (_conv(out, out, slope=slope) for _ in range(2))

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        fine, middle, coarse = self.output1(maps[0]), self.output2(maps[1]), self.output3(maps[2])
        middle = self.merge2(middle + F.interpolate(coarse, size=middle.shape[2:], mode="nearest"))
        fine = self.merge1(fine + F.interpolate(middle, size=fine.shape[2:], mode="nearest"))
        return [fine, middle, coarse]


class _Context(nn.Module):
    """SSH: convolutions of reach 3, 5 and 7 side by side, the larger ones as chains of 3 x 3."""

    def __init__(self, width: int, slope: float) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.conv3X3 = _conv(width, half, slope=None)
        self.conv5X5_1 = _conv(width, quarter, slope=slope)
        self.conv5X5_2 = _conv(quarter, quarter, slope=None)
        self.conv7X7_2 = _conv(quarter, quarter, slope=slope)
        self.conv7x7_3 = _conv(quarter, quarter, slope=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shared = self.conv5X5_1(x)
        reaches = [self.conv3X3(x), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared))]
        return F.relu(torch.cat(reaches, 1))


class _Head(nn.Module):
    """`values` numbers for each anchor of a map."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(width, PER_CELL * values, 1)
        self.values = values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.conv1x1(x)
        return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, self.values)
