"""InceptionResnetV1, FaceNet's network (Schroff et al. 2015, Szegedy et al. 2016), as facenet-pytorch names it.

Made by facescale.vision.backbones.create. Descriptors are of unit length.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_EPS = 1e-3  # of every normalization: the weights came from TensorFlow, whose default it was


class InceptionResnetV1(nn.Module):
    """See the module's head.

    Args:
        dim: D.
    """

    def __init__(self, *, dim: int = 512) -> None:
        super().__init__()
        self.conv2d_1a = _Conv(3, 32, 3, stride=2)
        self.conv2d_2a = _Conv(32, 32, 3)
        self.conv2d_2b = _Conv(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = _Conv(64, 80, 1)
        self.conv2d_4a = _Conv(80, 192, 3)
        self.conv2d_4b = _Conv(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(_block35() for _ in range(5)))
        self.mixed_6a = _Mixed(
            _Conv(256, 384, 3, stride=2),
            nn.Sequential(_Conv(256, 192, 1), _Conv(192, 192, 3, padding=1), _Conv(192, 256, 3, stride=2)),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_2 = nn.Sequential(*(_block17() for _ in range(10)))
        self.mixed_7a = _Mixed(
            nn.Sequential(_Conv(896, 256, 1), _Conv(256, 384, 3, stride=2)),
            nn.Sequential(_Conv(896, 256, 1), _Conv(256, 256, 3, stride=2)),
            nn.Sequential(_Conv(896, 256, 1), _Conv(256, 256, 3, padding=1), _Conv(256, 256, 3, stride=2)),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_3 = nn.Sequential(*(_block8(0.2) for _ in range(5)))
        self.block8 = _block8(1.0, activate=False)
        self.last_linear = nn.Linear(1792, dim, bias=False)
        self.last_bn = nn.BatchNorm1d(dim, eps=_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Descriptors [B, D] of unit length, of [B, 3, 160, 160]."""
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(self.maxpool_3a(x))))
        x = self.repeat_2(self.mixed_6a(self.repeat_1(x)))
        x = self.block8(self.repeat_3(self.mixed_7a(x)))
        return functional.normalize(self.last_bn(self.last_linear(x.mean(dim=(2, 3)))))


class _Conv(nn.Module):
    """Convolution, normalization, ReLU."""

    def __init__(
        self,
        before: int,
        after: int,
        side: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, side, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches side by side; what they give is stacked."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.num_branches = len(branches)
        for i, branch in enumerate(branches):
            self.add_module(f"branch{i}", branch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.get_submodule(f"branch{i}")(x) for i in range(self.num_branches)], dim=1)


class _Residual(_Mixed):
    """Branches whose stack is projected, scaled and added to the input."""

    def __init__(self, *branches: nn.Module, inner: int, width: int, scale: float, activate: bool) -> None:
        super().__init__(*branches)
        self.conv2d = nn.Conv2d(inner, width, 1)
        self.scale, self.activate = scale, activate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.scale * self.conv2d(super().forward(x))
        return functional.relu(x) if self.activate else x


def _block35() -> _Residual:
    return _Residual(
        _Conv(256, 32, 1),
        nn.Sequential(_Conv(256, 32, 1), _Conv(32, 32, 3, padding=1)),
        nn.Sequential(_Conv(256, 32, 1), _Conv(32, 32, 3, padding=1), _Conv(32, 32, 3, padding=1)),
        inner=96,
        width=256,
        scale=0.17,
        activate=True,
    )


def _block17() -> _Residual:
    return _Residual(
        _Conv(896, 128, 1),
        nn.Sequential(
            _Conv(896, 128, 1),
            _Conv(128, 128, (1, 7), padding=(0, 3)),
            _Conv(128, 128, (7, 1), padding=(3, 0)),
        ),
        inner=256,
        width=896,
        scale=0.10,
        activate=True,
    )


def _block8(scale: float, *, activate: bool = True) -> _Residual:
    return _Residual(
        _Conv(1792, 192, 1),
        nn.Sequential(
            _Conv(1792, 192, 1),
            _Conv(192, 192, (1, 3), padding=(0, 1)),
            _Conv(192, 192, (3, 1), padding=(1, 0)),
        ),
        inner=384,
        width=1792,
        scale=scale,
        activate=activate,
    )
