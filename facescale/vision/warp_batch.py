"""Images and a plan in, all chips out at once, on the device that runs the networks.

Called by facescale.vision.align for templates that are sampled plainly. What a face needs of its image is halved on
the CPU, where the image is, and moved over once; one call samples many faces. The numbers are those of
facescale.vision.warp but for the rounding of sums.

Shape legend: N faces, B faces of a group, S chip side, h and w height and width of the largest patch of a group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.vision.warp import Plan

GROUP = 16
"""Faces sampled together: patches are at most about 4 S wide when halved, so a group is at most 50 MB at S = 112."""


def cut_all(
    images: Sequence[np.ndarray], owner: np.ndarray, plan: Plan, device: torch.device, *, group: int = GROUP
) -> torch.Tensor:
    """Resample every chip of a plan.

    Args:
        images: uint8 [H, W, 3].
        owner: int [N], the image of each chip.
        plan: from facescale.vision.warp.plan.
        device: where to sample, and where the chips stay.
        group: faces sampled together.

    Returns:
        uint8 [N, S, S, 3] on `device`; black where a chip has no pixels.
    """
    count, size = len(owner), plan.size
    chips = torch.zeros(count, size, size, 3, dtype=torch.uint8, device=device)
    sides = (plan.patch[:, 2:] - plan.patch[:, :2]) >> plan.halvings[:, None]
    order = np.argsort(
        sides.max(axis=1, initial=0), kind="stable"
    )  # of like size together: little is padding
    for start in range(0, count, group):
        some = order[start : start + group]
        patches = [_patch(images[owner[i]], plan, i) for i in some.tolist()]
        seen = [i for i, patch in zip(some.tolist(), patches, strict=True) if patch is not None]
        if seen:
            kept = [patch for patch in patches if patch is not None]
            chips[torch.from_numpy(np.array(seen)).to(device)] = _sample(kept, seen, plan, device)
    return chips


def _patch(image: np.ndarray, plan: Plan, i: int) -> np.ndarray | None:
    """The pixels that chip `i` is sampled from, [height, width, 3]; None where there are fewer than two in a row."""
    left, top, right, bottom = plan.patch[i]
    pixels = image[top:bottom, left:right]
    if min(pixels.shape[:2]) < 2:
        return None
    if plan.halvings[i]:
        pixels = pixels.astype(np.float32)
        for _ in range(plan.halvings[i]):
            pixels = cv2.pyrDown(pixels)
            if min(pixels.shape[:2]) < 2:
                return None
    return pixels


def _sample(patches: list[np.ndarray], which: list[int], plan: Plan, device: torch.device) -> torch.Tensor:
    """Bilinear samples of patches, uint8 [B, S, S, 3]."""
    height, width = (max(patch.shape[axis] for patch in patches) for axis in (0, 1))
    kind = np.uint8 if all(patch.dtype == np.uint8 for patch in patches) else np.float32
    packed = np.zeros((len(patches), height, width, 3), kind)
    for row, patch in zip(packed, patches, strict=True):
        row[: patch.shape[0], : patch.shape[1]] = patch  # zeros beyond, as grid_sample pads
    pixels = torch.from_numpy(packed).to(device).permute(0, 3, 1, 2).float()
    step, origin = (
        torch.from_numpy(np.stack([part.real, part.imag], axis=-1).astype(np.float32)).to(device)
        for part in (plan.step[which], plan.origin[which])
    )
    along = torch.arange(plan.size, dtype=torch.float32, device=device)
    x_step, y_step = step[:, 0, None, None], step[:, 1, None, None]
    x = x_step * along + (origin[:, 0, None, None] - y_step * along[:, None])
    y = y_step * along + (origin[:, 1, None, None] + x_step * along[:, None])
    grid = torch.stack([x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1], dim=-1)
    sampled = torch.nn.functional.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=True
    )
    return sampled.round_().permute(0, 2, 3, 1).to(torch.uint8)
