"""Boxes of many images in, square crops of one size out, in a few operations whatever their number.

Used by facescale.vision.mtcnn, whose second and third networks look at hundreds of candidates an image.

Shape legend: N boxes, S side of a crop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

_AT_ONCE_PIXELS = 1 << 20  # sampled in one go: bounds memory at about 100 bytes each
_OVERSAMPLED = 2  # samples a side of each pixel of a crop


class CropSource:
    """Images and their halves, quarters, … one after the other in memory, so that one lookup serves all boxes.

    Takes 4 bytes a pixel of the images.

    Args:
        images: uint8 [H, W, 3] each.
        device: where crops are made.
        largest_crop_px: largest S that will be asked for: halves smaller than that are not made.
    """

    def __init__(self, images: Sequence[np.ndarray], device: torch.device, *, largest_crop_px: int) -> None:
        flat: list[np.ndarray] = []
        offsets: list[int] = []
        sizes: list[tuple[int, ...]] = []
        first: list[int] = []
        at = 0
        for image in images:
            first.append(len(sizes))
            while True:
                flat.append(image.reshape(-1, 3))
                offsets.append(at)
                sizes.append(image.shape[:2])
                at += len(flat[-1])
                height, width = image.shape[0] // 2, image.shape[1] // 2
                if min(height, width) < largest_crop_px:
                    break
                # Odd rows and columns are squeezed in, not cut off: a level spans the whole image.
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        self.device = device
        self._pixels = torch.from_numpy(np.concatenate(flat)).to(device)
        self._offset = torch.tensor(offsets, device=device)
        self._size = torch.tensor(sizes, device=device)  # [levels of all images, 2], height and width
        self._first = torch.tensor(first, device=device)
        self._levels = torch.tensor(np.diff([*first, len(sizes)]), device=device)

    def crop(self, image: torch.Tensor, boxes: torch.Tensor, side: int) -> torch.Tensor:
        """Cut boxes out; what lies outside its image is black.

        Args:
            image: int64 [N], which image each is of.
            boxes: float32 [N, 4], x1, y1, x2, y2 px, of any size and shape.
            side: S.

        Returns:
            float32 [N, S, S, 3], 0..255.
        """
        crops = torch.empty(len(boxes), side, side, 3, device=self.device)
        step = max(1, _AT_ONCE_PIXELS // (side * _OVERSAMPLED) ** 2)
        for start in range(0, len(boxes), step):
            part = slice(start, start + step)
            crops[part] = self._some(image[part], boxes[part], side)
        return crops

    def _some(self, image: torch.Tensor, boxes: torch.Tensor, side: int) -> torch.Tensor:
        extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)
        # The level at which a sample is at most one pixel from the next: the crop then averages all of them.
        step = extent.amax(1) / (side * _OVERSAMPLED)
        level = step.log2().ceil().clamp(min=0).long()
        level = torch.minimum(level, self._levels[image] - 1)
        row = self._first[image] + level
        size, full = self._size[row], self._size[self._first[image]]
        scale = size.flip(1) / full.flip(1)  # x, y
        steps = (torch.arange(side * _OVERSAMPLED, device=self.device) + 0.5) / (side * _OVERSAMPLED)
        low, extent = boxes[:, :2] * scale, extent * scale
        x = low[:, :1] + extent[:, :1] * steps - 0.5  # [N, samples], centers of pixels at integers
        y = low[:, 1:] + extent[:, 1:] * steps - 0.5
        values = self._bilinear(self._offset[row], size, y, x)
        return values.reshape(-1, side, _OVERSAMPLED, side, _OVERSAMPLED, 3).mean(dim=(2, 4))

    def _bilinear(
        self, offset: torch.Tensor, size: torch.Tensor, y: torch.Tensor, x: torch.Tensor
    ) -> torch.Tensor:
        """Values at the positions `y` × `x` of each box's level, float32 [N, rows, columns, 3]."""
        inside_y = (y >= -0.5) & (y <= size[:, :1] - 0.5)
        inside_x = (x >= -0.5) & (x <= size[:, 1:] - 0.5)
        y0, x0 = y.floor(), x.floor()
        down, right = (y - y0)[:, :, None, None], (x - x0)[:, None, :, None]
        total = torch.zeros(*y.shape, x.shape[1], 3, device=self.device)
        for rows, weight_y in ((y0, 1 - down), (y0 + 1, down)):
            for columns, weight_x in ((x0, 1 - right), (x0 + 1, right)):
                line = rows.clamp(min=0).minimum(size[:, :1] - 1).long()
                column = columns.clamp(min=0).minimum(size[:, 1:] - 1).long()
                index = offset[:, None, None] + line[:, :, None] * size[:, 1:, None] + column[:, None]
                total += self._pixels[index] * (weight_y * weight_x)
        return total.mul_((inside_y[:, :, None] & inside_x[:, None])[..., None])
