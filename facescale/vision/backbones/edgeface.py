"""EdgeFace (George et al. 2024): EdgeNeXt (Maaz et al. 2022) with linear layers of low rank, as its files name it.

Made by facescale.vision.backbones.create; the checkpoints' keys have the prefix "model." (a card's option `prefix`).
Depthwise convolutions, and at the end of a stage attention between channels, whose cost is linear in the pixels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPS = 1e-6
_KERNELS = (3, 5, 7, 9)
_SCALES = (2, 2, 3, 4)  # groups of channels that the last block of a stage filters one after the other
_HARMONICS = 32
_WAVELENGTH = 10_000


class EdgeFace(nn.Module):
    """See the module's head.

    Args:
        widths: channels of the four stages.
        depths: blocks of the four stages.
        heads: of the attention of each stage.
        rank_ratio: rank of linear layers as a share of their smaller side; None for full ones.
        dim: D.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int] = (3, 3, 9, 3),
        heads: Sequence[int] = (4, 4, 4, 4),
        rank_ratio: float | None = None,
        dim: int = 512,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), _ChannelNorm(widths[0], eps=_EPS))
        self.stages = nn.Sequential(
            *(
                _Stage(widths[max(i - 1, 0)], widths[i], depths[i], heads[i], stage=i, rank_ratio=rank_ratio)
                for i in range(4)
            )
        )
        self.head = nn.Sequential(
            OrderedDict(
                global_pool=nn.AdaptiveAvgPool2d(1),
                norm=_ChannelNorm(widths[-1], eps=_EPS),
                flatten=nn.Flatten(1),
                fc=_linear(widths[-1], dim, rank_ratio),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Descriptors [B, D] of [B, 3, S, S]."""
        found: torch.Tensor = self.head(self.stages(self.stem(x)))
        return found


def _linear(before: int, after: int, rank_ratio: float | None) -> nn.Module:
    """A linear layer, or two of low rank in its place."""
    if rank_ratio is None:
        return nn.Linear(before, after)
    rank = max(2, int(min(before, after) * rank_ratio))
    names = ("linear1", nn.Linear(before, rank, bias=False)), ("linear2", nn.Linear(rank, after))
    return nn.Sequential(OrderedDict(names))


class _ChannelNorm(nn.LayerNorm):
    """Normalizes the channels of each pixel of [B, C, H, W]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Mlp(nn.Module):
    def __init__(self, width: int, rank_ratio: float | None) -> None:
        super().__init__()
        self.fc1 = _linear(width, 4 * width, rank_ratio)
        self.fc2 = _linear(4 * width, width, rank_ratio)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return found


class _Stage(nn.Module):
    """Halve the map (not the first stage), filter, and attend in the last block (not in the first stage)."""

    def __init__(
        self, before: int, width: int, depth: int, heads: int, *, stage: int, rank_ratio: float | None
    ) -> None:
        super().__init__()
        self.downsample = (
            nn.Sequential(_ChannelNorm(before, eps=_EPS), nn.Conv2d(before, width, 2, stride=2))
            if stage
            else nn.Identity()
        )
        num_filters = depth - 1 if stage else depth
        blocks: list[nn.Module] = [_ConvBlock(width, _KERNELS[stage], rank_ratio) for _ in range(num_filters)]
        if stage:
            # Only the second stage tells the attention where a pixel is.
            attend = _AttentionBlock(width, heads, _SCALES[stage], stage == 1, rank_ratio)
            blocks.append(attend)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.blocks(self.downsample(x))
        return found


class _ConvBlock(nn.Module):
    def __init__(self, width: int, kernel: int, rank_ratio: float | None) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.mlp = _Mlp(width, rank_ratio)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_dw(x).permute(0, 2, 3, 1)
        y = self.gamma * self.mlp(self.norm(y))
        found: torch.Tensor = x + y.permute(0, 3, 1, 2)
        return found


class _AttentionBlock(nn.Module):
    def __init__(
        self, width: int, heads: int, scales: int, use_position: bool, rank_ratio: float | None
    ) -> None:
        super().__init__()
        group = math.ceil(width / scales)
        self.convs = nn.ModuleList(
            nn.Conv2d(group, group, 3, padding=1, groups=group) for _ in range(scales - 1)
        )
        self.pos_embd = _Position(width) if use_position else None
        self.norm_xca = nn.LayerNorm(width, eps=_EPS)
        self.gamma_xca = nn.Parameter(torch.full((width,), 1e-6))
        self.xca = _ChannelAttention(width, heads, rank_ratio)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.mlp = _Mlp(width, rank_ratio)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x
        groups = x.chunk(len(self.convs) + 1, dim=1)
        filtered, last = [], torch.zeros_like(groups[0])
        for group, conv in zip(groups, self.convs, strict=False):
            last = conv(group + last)
            filtered.append(last)
        x = torch.cat([*filtered, groups[-1]], dim=1)
        count, width, height, columns = x.shape
        pixels = x.flatten(2).transpose(1, 2)
        if self.pos_embd is not None:
            pixels = pixels + self.pos_embd(height, columns).flatten(2).transpose(1, 2)
        pixels = pixels + self.gamma_xca * self.xca(self.norm_xca(pixels))
        pixels = self.gamma * self.mlp(self.norm(pixels))
        found: torch.Tensor = shortcut + pixels.transpose(1, 2).reshape(count, width, height, columns)
        return found


class _ChannelAttention(nn.Module):
    """Attention between channels instead of pixels (Ali et al. 2021)."""

    def __init__(self, width: int, heads: int, rank_ratio: float | None) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = _linear(width, 3 * width, rank_ratio)
        self.proj = _linear(width, width, rank_ratio)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, H·W, C] of the same."""
        count, length, width = pixels.shape
        qkv = self.qkv(pixels).reshape(count, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 4, 1).unbind(0)
        likeness = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)
        mixed = (likeness * self.temperature).softmax(dim=-1) @ v
        found: torch.Tensor = self.proj(mixed.permute(0, 3, 1, 2).reshape(count, length, width))
        return found


class _Position(nn.Module):
    """Sines and cosines of where a pixel is, projected to the width of the map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * _HARMONICS, width, 1)

    def forward(self, height: int, columns: int) -> torch.Tensor:
        """[1, C, height, columns]."""
        weight = self.token_projection.weight
        steps = torch.arange(_HARMONICS, device=weight.device)
        wavelength = _WAVELENGTH ** (2 * torch.div(steps, 2, rounding_mode="floor") / _HARMONICS)

        def waves(length: int) -> torch.Tensor:
            place = torch.arange(1, length + 1, device=weight.device) / (length + _EPS) * 2 * math.pi
            angle = place[:, None] / wavelength
            return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

        down = waves(height)[:, None].expand(height, columns, _HARMONICS)
        along = waves(columns)[None].expand(height, columns, _HARMONICS)
        place = torch.cat((down, along), dim=2).permute(2, 0, 1)[None].to(weight.dtype)
        found: torch.Tensor = self.token_projection(place)
        return found
