"""The three networks of MTCNN (Zhang et al.: "Joint Face Detection and Alignment using Multitask Cascaded CNNs", 2016).

Canvases or crops in; face probabilities, box corrections and landmarks out. Modules bear the names that the public
PyTorch checkpoints have. Used by facescale.vision.mtcnn.

Shape legend: B images or crops of a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn


class PNet(nn.Module):
    """Proposes: [B, 3, H, W] to `scores` [B, h, w] and `boxes` [B, 4, h, w]; cell i judges pixels 2i to 2i + 11."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run a batch."""
        x = _pool(self.prelu1(self.conv1(batch)), 2)
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return {"scores": self.conv4_1(x).softmax(1)[:, 1], "boxes": self.conv4_2(x)}


class RNet(nn.Module):
    """Refines: [B, 3, 24, 24] to `scores` [B] and `boxes` [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run a batch."""
        x = _pool(self.prelu1(self.conv1(batch)), 3)
        x = _pool(self.prelu2(self.conv2(x)), 3)
        x = self.prelu4(self.dense4(_by_column(self.prelu3(self.conv3(x)))))
        return {"scores": self.dense5_1(x).softmax(1)[:, 1], "boxes": self.dense5_2(x)}


class ONet(nn.Module):
    """Outputs: [B, 3, 48, 48] to `scores` [B], `boxes` [B, 4] and `landmarks` [B, 10], all x and then all y."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run a batch."""
        x = _pool(self.prelu1(self.conv1(batch)), 3)
        x = _pool(self.prelu2(self.conv2(x)), 3)
        x = _pool(self.prelu3(self.conv3(x)), 2)
        x = self.prelu5(self.dense5(_by_column(self.prelu4(self.conv4(x)))))
        return {
            "scores": self.dense6_1(x).softmax(1)[:, 1],
            "boxes": self.dense6_2(x),
            "landmarks": self.dense6_3(x),
        }


def _pool(x: torch.Tensor, size: int) -> torch.Tensor:
    return F.max_pool2d(x, size, 2, ceil_mode=True)


def _by_column(x: torch.Tensor) -> torch.Tensor:
    """Flatten column by column, channels last: the weights come from a library that stores images so."""
    return x.permute(0, 3, 2, 1).flatten(1)
