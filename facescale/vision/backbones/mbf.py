"""MBF: insightface's wider MobileFaceNet with PReLU (its 0.45 GFLOPs network), as arcface_torch names it.

Made by facescale.vision.backbones.create.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


class MBF(nn.Module):
    """See the module's head.

    Args:
        dim: D.
        blocks: inverted residuals of each of the four resolutions; 1 at the first is a plain depthwise convolution.
        scale: widths are 64 and 128 times this.
    """

    def __init__(self, *, dim: int = 512, blocks: Sequence[int] = (1, 4, 6, 2), scale: int = 2) -> None:
        super().__init__()
        narrow, wide = 64 * scale, 128 * scale
        first = (
            _ConvBlock(narrow, narrow, 3, groups=64)
            if blocks[0] == 1
            else _Residuals(narrow, blocks[0], groups=128)
        )
        self.layers = nn.ModuleList(
            [
                _ConvBlock(3, narrow, 3, stride=2),
                first,
                _Inverted(narrow, narrow, groups=128, stride=2),
                _Residuals(narrow, blocks[1], groups=128),
                _Inverted(narrow, wide, groups=256, stride=2),
                _Residuals(wide, blocks[2], groups=256),
                _Inverted(wide, wide, groups=512, stride=2),
                _Residuals(wide, blocks[3], groups=256),
            ]
        )
        self.conv_sep = _ConvBlock(wide, 512, 1)
        self.features = _Layers(
            _ConvBlock(512, 512, 7, groups=512, padding=0, activate=False),
            nn.Flatten(),
            nn.Linear(512, dim, bias=False),
            nn.BatchNorm1d(dim),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Descriptors [B, D] of [B, 3, 112, 112]."""
        for layer in self.layers:
            x = layer(x)
        found: torch.Tensor = self.features(self.conv_sep(x))
        return found


class _Layers(nn.Module):
    """A sequence whose parts are named `layers.N`, as in the checkpoints."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(x)
        return found


class _ConvBlock(_Layers):
    """Convolution, normalization and, unless it is linear, PReLU."""

    def __init__(
        self,
        before: int,
        after: int,
        side: int,
        *,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
        activate: bool = True,
    ) -> None:
        pad = side // 2 if padding is None else padding
        convolution = nn.Conv2d(before, after, side, stride, pad, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(after), *([nn.PReLU(after)] if activate else []))


class _Inverted(_Layers):
    """Widen to `groups` channels, filter each of them, narrow without an activation."""

    def __init__(
        self, before: int, after: int, *, groups: int, stride: int = 1, residual: bool = False
    ) -> None:
        super().__init__(
            _ConvBlock(before, groups, 1),
            _ConvBlock(groups, groups, 3, stride=stride, groups=groups),
            _ConvBlock(groups, after, 1, activate=False),
        )
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return x + y if self.residual else y


class _Residuals(_Layers):
    def __init__(self, width: int, count: int, *, groups: int) -> None:
        super().__init__(*(_Inverted(width, width, groups=groups, residual=True) for _ in range(count)))
