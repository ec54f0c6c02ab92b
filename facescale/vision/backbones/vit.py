"""A vision transformer for aligned faces (An et al. 2022), as arcface_torch and LVFace name it.

Made by facescale.vision.backbones.create. No class token: every patch keeps its place and the head maps all of them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_HEAD_EPS = 2e-5


class FaceViT(nn.Module):
    """See the module's head.

    Args:
        width: channels of a patch.
        depth: blocks.
        heads: of each attention.
        dim: D.
        size: S, px.
        patch: side of a patch, px; pixels beyond the last whole patch are not seen.
    """

    def __init__(
        self, *, width: int, depth: int, heads: int = 8, dim: int = 512, size: int = 112, patch: int = 9
    ) -> None:
        super().__init__()
        num_patches = (size // patch) ** 2
        self.patch_embed = _PatchEmbed(width, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))  # of masked training; checkpoints hold it
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(width * num_patches, width, bias=False),
            nn.BatchNorm1d(width, eps=_HEAD_EPS),
            nn.Linear(width, dim, bias=False),
            nn.BatchNorm1d(dim, eps=_HEAD_EPS),
        )
        for values in (self.pos_embed, self.mask_token):
            nn.init.trunc_normal_(values, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Descriptors [B, D] of [B, 3, S, S]."""
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        found: torch.Tensor = self.feature(torch.flatten(self.norm(x), 1))
        return found


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Patches [B, T, C]."""
        found: torch.Tensor = self.proj(x)
        return found.flatten(2).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.mlp = _Mlp(width, 4 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        y: torch.Tensor = self.mlp(self.norm2(x))
        return x + y


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, tokens, width = x.shape
        qkv = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        found: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(count, tokens, width))
        return found


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc2(functional.relu6(self.fc1(x)))
        return found
