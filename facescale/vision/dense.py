"""Detectors that judge every place of an image at once: images of any sizes in, scored boxes and landmarks out.

Resizing, padding, batching by size, thresholds, non-maximum suppression and the way back to the image are common to
all of them (YuNet, SCRFD, RetinaFace, UltraFace, CenterFace, BlazeFace …) and are here; what differs is how a
network's outputs are read: a `Decoder`. Built by facescale.vision.registry, called by the extract stage.

Shape legend: B images of a batch, H and W height and width of its canvas, A places judged, K landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
import torch

from facescale.vision.align import points_from_dlib
from facescale.vision.networks import load_network, normalize
from facescale.vision.nms import greedy_nms, intersection_over_union
from facescale.vision.protocols import Detections

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from facescale.models.card import ModelCard
    from facescale.vision.networks import Build, Network

DEFAULT_BATCH_PIXELS = {"cpu": 1 << 19, "cuda": 1 << 24}
MAX_SIDE_PX = 640
"""Larger images are reduced to this side, unless faces of the smallest wanted size would then be missed."""
MAX_CANVAS_PIXELS = 1 << 24
"""Images are reduced until they fit into this, whatever the smallest face: bounds the memory of a canvas."""
_MAX_CANDIDATES = 4096  # of one image, best first: bounds the suppression


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a network says of every place.

    Args:
        scores: float32 [B, A].
        boxes: float32 [B, A, 4], x1, y1, x2, y2 in px of the canvas, its left edge at 0.
        landmarks: float32 [B, A, K, 2] px of the canvas, centers of its pixels at integers (as these networks are
            trained), or None. A network that counts in shares of the canvas has its left edge at 0: its decoder
            takes half a pixel off.
    """

    scores: torch.Tensor
    boxes: torch.Tensor
    landmarks: torch.Tensor | None = None


class Decoder(Protocol):
    """Reads a network's outputs."""

    def __call__(self, outputs: dict[str, torch.Tensor], height: int, width: int) -> Candidates:
        """Read the outputs for a canvas of `height` × `width` px."""
        ...


@dataclass(frozen=True)
class Canvas:
    """How the network's input is made of an image.

    Args:
        multiple: sides are multiples of this; what is missing is filled on the right and below.
        fixed: (height, width) of networks that take one size only; images are fitted into it.
        max_side_px: see MAX_SIDE_PX.
        fill: value of the filling on the 0..255 scale.
    """

    multiple: int = 32
    fixed: tuple[int, int] | None = None
    max_side_px: int = MAX_SIDE_PX
    fill: int = 0


@dataclass(frozen=True)
class _Plan:
    """How one image of a call is prepared: its size when resized, and the canvas it lies on."""

    position: int
    height: int
    width: int
    canvas: tuple[int, int]


class DenseDetector:
    """One network and one decoder; construct it through `facescale.vision.registry.load_detector`.

    Memory of a forward pass is bounded by `max_batch_pixels` of canvas; a canvas larger than that runs alone.

    Args:
        card: of the model; its threshold, nms_iou and min_face_px apply.
        network: runs it.
        decoder: reads it.
        device: where to run.
        min_face_px: faces of a smaller side (root of the box's area) are not reported; where the network cannot see
            them at the size of the image, the image is enlarged.
        max_batch_pixels: canvas pixels of one forward pass; None for DEFAULT_BATCH_PIXELS of the device.
        canvas: how inputs are made.
    """

    def __init__(
        self,
        card: ModelCard,
        network: Network,
        decoder: Decoder,
        *,
        device: torch.device,
        min_face_px: int,
        max_batch_pixels: int | None = None,
        canvas: Canvas | None = None,
    ) -> None:
        self.card, self.network, self.decoder = card, network, decoder
        self.device, self.min_face_px = device, min_face_px
        self.max_batch_pixels = max_batch_pixels or DEFAULT_BATCH_PIXELS[device.type]
        self.canvas = canvas or Canvas()
        self._threshold = 0.5 if card.threshold is None else card.threshold
        self._iou = card.nms_iou or 0.4

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Find the faces of each image; see `facescale.vision.protocols.Detector`."""
        plans = [self._plan(position, *image.shape[:2]) for position, image in enumerate(images)]
        results = [Detections.none()] * len(plans)
        for batch in _batches(plans, self.max_batch_pixels):
            pixels = self._pixels([images[plan.position] for plan in batch], batch)
            outputs = self.network(normalize(pixels, self.card))
            found = self._read(self.decoder(outputs, *batch[0].canvas), batch, images)
            for plan, detections in zip(batch, found, strict=True):
                results[plan.position] = detections
        return results

    def _plan(self, position: int, height: int, width: int) -> _Plan:
        """Choose the size at which an image is searched."""
        c = self.canvas
        if c.fixed is not None:
            scale = min(c.fixed[0] / height, c.fixed[1] / width)
            size = (
                min(max(round(height * scale), 1), c.fixed[0]),
                min(max(round(width * scale), 1), c.fixed[1]),
            )
            return _Plan(position, *size, c.fixed)
        needed = (
            self.card.min_face_px or 1
        ) / self.min_face_px  # below it the smallest faces would be missed
        scale = max(needed, min(1.0, c.max_side_px / max(height, width)))
        scale = min(scale, (MAX_CANVAS_PIXELS / (height * width)) ** 0.5)
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        canvas = tuple(-(-side // c.multiple) * c.multiple for side in size)
        return _Plan(position, *size, (canvas[0], canvas[1]))

    def _pixels(self, images: list[np.ndarray], plans: list[_Plan]) -> torch.Tensor:
        """The canvases of a batch, uint8 [B, H, W, 3] on the device."""
        pixels = np.full((len(images), *plans[0].canvas, 3), self.canvas.fill, np.uint8)
        for image, plan, out in zip(images, plans, pixels, strict=True):
            if image.shape[:2] != (plan.height, plan.width):
                smaller = plan.height < image.shape[0]
                how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
                image = cv2.resize(image, (plan.width, plan.height), interpolation=how)
            out[: plan.height, : plan.width] = image
        return torch.from_numpy(pixels).to(self.device)

    def _read(self, found: Candidates, plans: list[_Plan], images: Sequence[np.ndarray]) -> list[Detections]:
        """Threshold, order, thin out, and map what is left to the images; one transfer from the device."""
        scores = found.scores
        if scores.shape[1] > _MAX_CANDIDATES:
            floor = scores.topk(_MAX_CANDIDATES, dim=1).values[:, -1:].clamp(min=self._threshold)
            image, place = ((scores >= floor) & (scores > self._threshold)).nonzero().unbind(1)
        else:
            image, place = (scores > self._threshold).nonzero().unbind(1)
        confidence, order = scores[image, place].sort(descending=True, stable=True)
        image, place = image[order], place[order]
        boxes = found.boxes[image, place]
        kept = greedy_nms(boxes, image, self._iou, intersection_over_union)
        image, place, boxes, confidence = image[kept], place[kept], boxes[kept], confidence[kept]
        points = None if found.landmarks is None else found.landmarks[image, place].cpu().numpy()
        owner, boxes_px, scores_n = image.cpu().numpy(), boxes.cpu().numpy(), confidence.cpu().numpy()
        sizes = np.array([images[plan.position].shape[1::-1] for plan in plans], np.float32)
        scale = sizes / np.array([(plan.width, plan.height) for plan in plans], np.float32)  # [B, 2] x, y
        boxes_px = boxes_px * np.tile(scale, 2)[owner]
        if points is not None:
            points = points_from_dlib(points) * scale[owner][:, None]
        sides = np.sqrt(np.prod(np.maximum(boxes_px[:, 2:] - boxes_px[:, :2], 0), axis=1))
        large = sides >= self.min_face_px
        results = []
        for index in range(len(plans)):
            chosen = large & (owner == index)
            landmarks = None if points is None else points[chosen].astype(np.float32)
            results.append(Detections(boxes_px[chosen].astype(np.float32), scores_n[chosen], landmarks))
        return results


def build_detector(
    card: ModelCard,
    decoder: Decoder,
    canvas: Canvas,
    *,
    device: torch.device,
    precision: str,
    min_face_px: int,
    max_batch_pixels: int | None,
    build: Build | None = None,
) -> DenseDetector:
    """The detector of `card`; errors as of facescale.vision.networks.load_network, which explains `build`."""
    return DenseDetector(
        card,
        load_network(card, device=device, precision=precision, build=build),
        decoder,
        device=device,
        min_face_px=min_face_px,
        max_batch_pixels=max_batch_pixels,
        canvas=canvas,
    )


def cell_corners(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Column and row of each cell of a map, row by row: float32 [rows · columns, 2]."""
    row, column = torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
    )
    return torch.stack([column, row], dim=-1).reshape(-1, 2).float()


def _batches(plans: list[_Plan], max_pixels: int) -> Iterator[list[_Plan]]:
    """Group images of one canvas size."""
    batch: list[_Plan] = []
    for plan in sorted(plans, key=lambda plan: (plan.canvas, plan.position)):
        full = (len(batch) + 1) * plan.canvas[0] * plan.canvas[1] > max_pixels
        if batch and (full or plan.canvas != batch[0].canvas):
            yield batch
            batch = []
        batch.append(plan)
    if batch:
        yield batch
