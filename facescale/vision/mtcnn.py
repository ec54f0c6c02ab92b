"""MTCNN (Zhang et al., 2016): images of any sizes in, scored boxes and five landmarks out, by three networks in a row.

The first judges every place of a pyramid, levels of all images together by size; the second and the third look at
crops of what is left, those of all images together. Its third network alone is a landmarker: boxes of any detector in,
five landmarks out. Built by facescale.vision.registry, called by the extract stage.

Shape legend: N candidates of all images, B images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from facescale.errors import DataError, UsageError
from facescale.vision.align import points_from_dlib
from facescale.vision.dense import DEFAULT_BATCH_PIXELS
from facescale.vision.mtcnn_networks import ONet, PNet, RNet
from facescale.vision.networks import load_network, normalize
from facescale.vision.nms import greedy_nms, intersection_over_smaller, intersection_over_union
from facescale.vision.protocols import Detections
from facescale.vision.sampling import CropSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from facescale.models.card import ModelCard
    from facescale.vision.networks import Network

WINDOW_PX = 12
STRIDE_PX = 2
SHRINK = 0.709
"""Of a level of the pyramid against the one before, as its makers chose it: about half the area."""
CROPS_PX = {"rnet": 24, "onet": 48}
CROPS_AT_ONCE = 512
MAX_LEVEL_PIXELS = 1 << 24
_MAX_PROPOSALS = 4096  # of one image, best first
_CANVAS_MULTIPLE_PX = 16
_NUM_LANDMARKS = 5
_FARTHEST_PX = 1 << 30


@dataclass(frozen=True)
class Cascade:
    """What stands on the card about the stages.

    Args:
        thresholds: of the first and second network; the card's own is the third's.
        overlaps: suppression within a level, across levels, and after the second network: intersection over union.
    """

    thresholds: tuple[float, float] = (0.6, 0.7)
    overlaps: tuple[float, float, float] = (0.5, 0.7, 0.7)


@dataclass(frozen=True)
class _Level:
    """One image at one scale."""

    image: int
    height: int
    width: int
    canvas: tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Boxes:
    """Candidates of all images, best first.

    Args:
        image: int64 [N].
        boxes: float32 [N, 4] px of the image.
        scores: float32 [N].
    """

    image: torch.Tensor
    boxes: torch.Tensor
    scores: torch.Tensor

    def take(self, chosen: torch.Tensor) -> _Boxes:
        return _Boxes(self.image[chosen], self.boxes[chosen], self.scores[chosen])

    def sorted(self) -> _Boxes:
        return self.take(self.scores.sort(descending=True, stable=True).indices)


class MtcnnDetector:
    """The cascade; construct it through `facescale.vision.registry.load_detector`.

    Memory of a forward pass of the first network is bounded by `max_batch_pixels`; the crops of the others are made
    CROPS_AT_ONCE at a time, and the images of a call lie on the device with their halves (4 bytes a pixel).

    Args:
        card: of the model; its threshold is the last network's, its nms_iou the last suppression's.
        networks: pnet, rnet and onet.
        device: where to run.
        min_face_px: faces of a smaller side are not searched for.
        max_batch_pixels: None for DEFAULT_BATCH_PIXELS of the device.
        cascade: thresholds of the first stages.
    """

    def __init__(
        self,
        card: ModelCard,
        networks: dict[str, Network],
        *,
        device: torch.device,
        min_face_px: int,
        max_batch_pixels: int | None = None,
        cascade: Cascade | None = None,
    ) -> None:
        self.card, self.networks, self.device = card, networks, device
        self.min_face_px = min_face_px
        self.max_batch_pixels = max_batch_pixels or DEFAULT_BATCH_PIXELS[device.type]
        self.cascade = cascade or Cascade()

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Find the faces of each image; see `facescale.vision.protocols.Detector`."""
        if not images:
            return []
        proposals = self._propose(images)
        if not len(proposals.scores):
            return [Detections.none(_NUM_LANDMARKS) for _ in images]
        source = CropSource(images, self.device, largest_crop_px=max(CROPS_PX.values()))
        refined = self._refine(source, proposals)
        found, points = self._finish(source, refined)
        sides = (found.boxes[:, 2:] - found.boxes[:, :2]).clamp(min=0).prod(1).sqrt()
        large = sides >= self.min_face_px
        found, points = found.take(large), points[large]
        owner, boxes = found.image.cpu().numpy(), found.boxes.cpu().numpy()
        scores, marks = found.scores.cpu().numpy(), points_from_dlib(points.cpu().numpy())
        return [
            Detections(boxes[owner == i], scores[owner == i], marks[owner == i]) for i in range(len(images))
        ]

    def _propose(self, images: Sequence[np.ndarray]) -> _Boxes:
        """The first network over the pyramids of all images, corrected boxes made square."""
        levels = [level for i, image in enumerate(images) for level in self._levels(i, *image.shape[:2])]
        found: list[_Boxes] = []
        for batch in _batches(levels, self.max_batch_pixels):
            pixels = np.zeros((len(batch), *batch[0].canvas, 3), np.uint8)
            for level, out in zip(batch, pixels, strict=True):
                out[: level.height, : level.width] = cv2.resize(
                    images[level.image], (level.width, level.height), interpolation=cv2.INTER_AREA
                )
            outputs = self.networks["pnet"](normalize(torch.from_numpy(pixels).to(self.device), self.card))
            found.append(self._windows(outputs, batch, images))
        together = _join(found, self.device).sorted()
        together = _best_of_each(together, len(images), _MAX_PROPOSALS)
        kept = greedy_nms(
            together.boxes[:, :4], together.image, self.cascade.overlaps[1], intersection_over_union
        )
        return _corrected(together.take(kept))

    def _levels(self, index: int, height: int, width: int) -> Iterator[_Level]:
        """The sizes at which an image is searched, the largest first."""
        scale = min(WINDOW_PX / self.min_face_px, (MAX_LEVEL_PIXELS / (height * width)) ** 0.5)
        while True:
            size = round(height * scale), round(width * scale)
            if min(size) < WINDOW_PX:
                return
            canvas = tuple(-(-side // _CANVAS_MULTIPLE_PX) * _CANVAS_MULTIPLE_PX for side in size)
            yield _Level(index, *size, (canvas[0], canvas[1]))
            scale *= SHRINK

    def _windows(
        self, outputs: dict[str, torch.Tensor], batch: list[_Level], images: Sequence[np.ndarray]
    ) -> _Boxes:
        """Windows that score high enough, thinned out within their level; `boxes` [N, 8] with their corrections."""
        scores = outputs["scores"]
        # Windows that reach beyond their image would make its faces depend on the canvas.
        rows, columns = (torch.arange(side, device=self.device) for side in scores.shape[1:])
        limits = torch.tensor([(level.height, level.width) for level in batch], device=self.device)
        inside_y = rows * STRIDE_PX + WINDOW_PX <= limits[:, :1]
        inside_x = columns * STRIDE_PX + WINDOW_PX <= limits[:, 1:]
        good = (scores > self.cascade.thresholds[0]) & inside_y[:, :, None] & inside_x[:, None]
        level, row, column = good.nonzero().unbind(1)
        confidence, order = scores[level, row, column].sort(descending=True, stable=True)
        level, row, column = level[order], row[order], column[order]
        corner = torch.stack([column, row], 1) * STRIDE_PX
        sizes = [images[one.image].shape[1::-1] for one in batch]
        full = torch.tensor(sizes, device=self.device, dtype=torch.float32)
        scale = (full / limits.flip(1))[level]
        boxes = torch.cat([corner * scale, (corner + WINDOW_PX) * scale], 1)
        kept = greedy_nms(boxes, level, self.cascade.overlaps[0], intersection_over_union)
        corrections = outputs["boxes"][level[kept], :, row[kept], column[kept]]
        owner = torch.tensor([one.image for one in batch], device=self.device)
        return _Boxes(owner[level[kept]], torch.cat([boxes[kept], corrections], 1), confidence[kept])

    def _refine(self, source: CropSource, proposals: _Boxes) -> _Boxes:
        """The second network on the proposals."""
        outputs = _look(self.networks["rnet"], self.card, source, proposals.image, proposals.boxes, "rnet")
        good = outputs["scores"] > self.cascade.thresholds[1]
        boxes = torch.cat([proposals.boxes, outputs["boxes"]], 1)
        found = _Boxes(proposals.image, boxes, outputs["scores"]).take(good).sorted()
        kept = greedy_nms(found.boxes[:, :4], found.image, self.cascade.overlaps[2], intersection_over_union)
        return _corrected(found.take(kept))

    def _finish(self, source: CropSource, refined: _Boxes) -> tuple[_Boxes, torch.Tensor]:
        """The third network: faces, and their landmarks float32 [N, 5, 2] px."""
        outputs = _look(self.networks["onet"], self.card, source, refined.image, refined.boxes, "onet")
        points = _points(refined.boxes, outputs["landmarks"])
        boxes = _moved(refined.boxes, outputs["boxes"])
        threshold = 0.7 if self.card.threshold is None else self.card.threshold
        good = (outputs["scores"] > threshold).nonzero().squeeze(1)
        order = good[outputs["scores"][good].sort(descending=True, stable=True).indices]
        found = _Boxes(refined.image, boxes, outputs["scores"]).take(order)
        kept = greedy_nms(found.boxes, found.image, self.card.nms_iou or 0.7, intersection_over_smaller)
        return found.take(kept), points[order][kept]


class MtcnnLandmarker:
    """The third network as a landmarker; see facescale.vision.protocols.Landmarker.

    It looks twice: at the square around the box, and at the square around the box that it then says is the face's. So
    landmarks depend little on what a detector takes for a face's box.

    Args:
        card: of the model.
        network: onet.
        device: where to run.
    """

    def __init__(self, card: ModelCard, network: Network, *, device: torch.device) -> None:
        self.card, self.network, self.device = card, network, device

    @torch.inference_mode()
    def landmarks(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Locate the landmarks in each box.

        Args:
            images: uint8 [H, W, 3] RGB arrays.
            boxes: float [n, 4] x1, y1, x2, y2 px per image; they may reach outside the image, where it is black.

        Returns:
            float32 [n, 5, 2] per image, px.

        Raises:
            DataError: a box is not finite.
        """
        if not images:
            return []
        counts = [len(some) for some in boxes]
        splits = np.cumsum(counts)[:-1]
        together = np.concatenate([np.asarray(some, np.float32).reshape(-1, 4) for some in boxes])
        if not (np.abs(together) < _FARTHEST_PX).all():
            face = int(np.flatnonzero(~(np.abs(together) < _FARTHEST_PX).all(axis=1))[0])
            raise DataError(f"box of face {face} of {len(together)} is not one in an image: {together[face]}")
        if not len(together):
            return np.split(np.zeros((0, _NUM_LANDMARKS, 2), np.float32), splits)
        used = np.flatnonzero(counts)
        owner = torch.from_numpy(np.repeat(np.arange(len(used)), np.array(counts)[used])).to(self.device)
        side = CROPS_PX["onet"]
        source = CropSource([images[i] for i in used.tolist()], self.device, largest_crop_px=side)
        squares = _squared(torch.from_numpy(together).to(self.device))
        first = _look(self.network, self.card, source, owner, squares, "onet")
        squares = _squared(_moved(squares, first["boxes"].clamp(-0.5, 0.5)))
        second = _look(self.network, self.card, source, owner, squares, "onet")
        points = points_from_dlib(_points(squares, second["landmarks"]).cpu().numpy())
        return np.split(points.astype(np.float32), splits)


def _look(
    network: Network,
    card: ModelCard,
    source: CropSource,
    image: torch.Tensor,
    boxes: torch.Tensor,
    which: str,
) -> dict[str, torch.Tensor]:
    """Run a network on the crops of boxes, some at a time."""
    parts: list[dict[str, torch.Tensor]] = []
    for start in range(0, max(len(boxes), 1), CROPS_AT_ONCE):
        some = slice(start, start + CROPS_AT_ONCE)
        crops = source.crop(image[some], boxes[some], CROPS_PX[which])
        parts.append(network(normalize(crops, card)))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _points(squares: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Landmarks [N, 5, 2] px, centers of pixels at integers, from shares of the squares [N, 10]: all x, then all y."""
    shares = values.reshape(-1, 2, _NUM_LANDMARKS).transpose(1, 2)
    return squares[:, None, :2] + shares * (squares[:, None, 2:] - squares[:, None, :2]) - 0.5


def _moved(boxes: torch.Tensor, corrections: torch.Tensor) -> torch.Tensor:
    """Boxes whose corners move by shares of their sides."""
    extent = (boxes[:, 2:4] - boxes[:, :2]).repeat(1, 2)
    return boxes[:, :4] + corrections * extent


def _squared(boxes: torch.Tensor) -> torch.Tensor:
    """The squares of the longer side around the centers of boxes."""
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([center - half, center + half], 1)


def _corrected(found: _Boxes) -> _Boxes:
    """Apply the corrections in columns 4 to 7 and make the boxes square."""
    return _Boxes(found.image, _squared(_moved(found.boxes, found.boxes[:, 4:])), found.scores)


def _join(parts: list[_Boxes], device: torch.device) -> _Boxes:
    if not parts:
        none = torch.zeros(0, device=device)
        return _Boxes(none.long(), torch.zeros(0, 8, device=device), none)
    return _Boxes(
        torch.cat([part.image for part in parts]),
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.scores for part in parts]),
    )


def _best_of_each(found: _Boxes, num_images: int, limit: int) -> _Boxes:
    """The best candidates of each image; `found` is sorted by score and stays so."""
    if len(found.scores) <= limit:
        return found
    order = found.image.sort(stable=True).indices
    counts = torch.bincount(found.image, minlength=num_images)
    start = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - start[found.image[order]]
    return found.take(rank < limit)


def _batches(levels: list[_Level], max_pixels: int) -> Iterator[list[_Level]]:
    """Group levels of one canvas size."""
    batch: list[_Level] = []
    for level in sorted(levels, key=lambda level: (level.canvas, level.image)):
        full = (len(batch) + 1) * level.canvas[0] * level.canvas[1] > max_pixels
        if batch and (full or level.canvas != batch[0].canvas):
            yield batch
            batch = []
        batch.append(level)
    if batch:
        yield batch


def load(
    card: ModelCard,
    *,
    device: torch.device,
    precision: str,
    min_face_px: int,
    max_batch_pixels: int | None,
) -> MtcnnDetector:
    """Load the detector of `card`, whose parts are pnet and rnet; errors as of facescale.vision.networks.load_network.

    Raises:
        UsageError: the card does not name its parts, or options.thresholds is no pair.
    """
    parts = card.parts
    if set(parts) != {"pnet", "rnet"}:
        raise UsageError(
            f"model {card.name!r}: options.parts of its card must name pnet and rnet, got {sorted(parts)}"
        )
    thresholds = card.options.get("thresholds", [0.6, 0.7])
    if not isinstance(thresholds, list) or len(thresholds) != 2:
        raise UsageError(
            f"model {card.name!r}: options.thresholds of its card must be those of pnet and rnet, got {thresholds!r}"
        )
    networks = {
        name: load_network(part, device=device, precision=precision, build=build)
        for name, part, build in (
            ("pnet", parts["pnet"], lambda _: PNet()),
            ("rnet", parts["rnet"], lambda _: RNet()),
            ("onet", card, lambda _: ONet()),
        )
    }
    return MtcnnDetector(
        card,
        networks,
        device=device,
        min_face_px=min_face_px,
        max_batch_pixels=max_batch_pixels,
        cascade=Cascade(thresholds=(thresholds[0], thresholds[1])),
    )


def load_landmarker(card: ModelCard, *, device: torch.device) -> MtcnnLandmarker:
    """Load the landmarker of `card`; errors as of facescale.vision.networks.load_network."""
    return MtcnnLandmarker(card, load_network(card, device=device, build=lambda _: ONet()), device=device)
