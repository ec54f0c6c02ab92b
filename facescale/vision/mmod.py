"""dlib's max-margin face detector (MMOD) in torch: images of any sizes in, scored boxes out.

Built by facescale.vision.registry, called by the extract stage. An image becomes a plane that holds its whole
pyramid (facescale.vision.pyramid), a network of seven convolutions scores one window of 80 x 80 px for every
8 x 8 px of the plane, and windows that score above zero are mapped back and thinned out (facescale.vision.nms).
Boxes equal those of dlib's cnn_face_detection_model_v1 with no upsampling (min_face_px 80) and with one
(min_face_px 40); scores differ by rounding, 3e-6 at most on 150 faces.

Shape legend: B images of a forward pass, H and W height and width of its planes, n candidates, L levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from facescale.errors import MismatchError
from facescale.models.dlib_dat import DatReader
from facescale.models.weights import find_weights, read_weights
from facescale.vision.align import box_from_dlib
from facescale.vision.mmod_weights import read_mmod
from facescale.vision.nms import greedy_nms, overlap_of_hulls
from facescale.vision.precision import DTYPES, exact_convolutions
from facescale.vision.protocols import Detections
from facescale.vision.pyramid import (
    TiledLayout,
    doubled_size,
    draw_levels,
    place_first_level,
    tiled_layout,
    upsample,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from facescale.models.card import ModelCard
    from facescale.models.dlib_layers import Convolution
    from facescale.vision.mmod_weights import MmodWeights

# A CPU is as fast with one plane as with eight, and caches like small ones; a GPU wants to be filled.
DEFAULT_BATCH_PIXELS = {"cpu": 1 << 20, "cuda": 1 << 25}
MAX_PLANE_PIXELS = 1 << 26
STRIDE_PX = 8  # of the network
FIRST_CENTER_PX = 14  # center of the window that the first cell of the score map judges
_SMALLEST_PLANE_PX = 29  # below this the strided convolutions have no output
_FILLED = 0.8  # smallest share of a batch that may be image: the rest is padding to a common size


@dataclass(frozen=True)
class _Plan:
    """How one image of a call is prepared."""

    position: int
    source: tuple[int, int]
    doubled: bool
    size: tuple[int, int]
    layout: TiledLayout


class MmodDetector:
    """The detector; construct it through `facescale.vision.registry.load_detector`.

    The smallest face the window finds is 80 px. For another smallest face the image is resized first: for 40
    px just as dlib upsamples, for any other size (and where a plane would pass `max_plane_pixels`) smoothly,
    bilinear with antialiasing, so that a face of `min_face_px` becomes 80 px.

    Memory is about 40 bytes a plane pixel in fp32, and a plane is 4.2 times its (resized) image. A forward
    pass holds at most `max_batch_pixels`; an image whose plane is larger runs alone, and one whose plane
    would pass `max_plane_pixels` (by default 2.4 GB; at min_face_px 40 a photo above 3.8 megapixels, at 80
    above 15) is made smaller until it fits, which raises its smallest face in proportion.

    Args:
        card: of the model.
        weights: as read from its file.
        device: where to run.
        precision: "fp32", "bf16" or "fp16"; halves move scores by up to about 0.02.
        min_face_px: smallest face to find.
        max_batch_pixels: plane pixels of one forward pass; None for DEFAULT_BATCH_PIXELS of the device.
        max_plane_pixels: limit on the plane of one image.
    """

    def __init__(
        self,
        card: ModelCard,
        weights: MmodWeights,
        *,
        device: torch.device,
        precision: str = "fp32",
        min_face_px: int = 40,
        max_batch_pixels: int | None = None,
        max_plane_pixels: int = MAX_PLANE_PIXELS,
    ) -> None:
        self.card = card
        self.device = device
        self.min_face_px = min_face_px
        self.max_batch_pixels = max_batch_pixels or DEFAULT_BATCH_PIXELS[device.type]
        self.max_plane_pixels = max_plane_pixels
        self._window_px = weights.window_px
        self._max_overlap = weights.max_overlap
        self._threshold = card.threshold or 0.0
        self._mean = torch.tensor(card.mean, device=device)
        self._scale = torch.tensor(card.scale, device=device)
        self._network = _Network(weights, device, DTYPES[precision])

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Find the faces of each image; see `facescale.vision.protocols.Detector`.

        Boxes may reach outside the image; whole pixels at min_face_px 80 and 40.
        """
        plans = [self._plan(position, *image.shape[:2]) for position, image in enumerate(images)]
        results = [Detections.none()] * len(plans)
        for batch in _batches(plans, self.max_batch_pixels):
            found = self._detect_batch([images[plan.position] for plan in batch], batch)
            for plan, detections in zip(batch, found, strict=True):
                results[plan.position] = detections
        return results

    def _plan(self, position: int, height: int, width: int) -> _Plan:
        """Choose the size at which an image is searched."""
        scale = self._window_px / self.min_face_px
        size = doubled_size(height, width) if scale == 2 else _scaled(height, width, scale)
        layout = tiled_layout(*size)
        doubled = scale == 2
        while layout.area > self.max_plane_pixels and size != (1, 1):
            scale *= min(math.sqrt(self.max_plane_pixels / layout.area), 0.99)
            size, doubled = _scaled(height, width, scale), False
            layout = tiled_layout(*size)
        return _Plan(position, (height, width), doubled, size, layout)

    def _detect_batch(self, images: list[np.ndarray], plans: list[_Plan]) -> list[Detections]:
        """Detect in images that share one forward pass."""
        scores = self._network(self._planes(images, plans), [plan.layout for plan in plans])
        image, row, column = (scores > self._threshold).nonzero().unbind(1)
        if len(image) == 0:
            return [Detections.none()] * len(plans)
        confidence = scores[image, row, column]
        confidence, order = confidence.sort(descending=True, stable=True)
        image, row, column = image[order], row[order], column[order]
        boxes = _boxes_in_image(image, row, column, [plan.layout for plan in plans], self._window_px)
        kept = greedy_nms(boxes, image, self._max_overlap, overlap_of_hulls)
        return _split(
            plans, image[kept].cpu().numpy(), boxes[kept].cpu().numpy(), confidence[kept].cpu().numpy()
        )

    def _planes(self, images: list[np.ndarray], plans: list[_Plan]) -> torch.Tensor:
        """The pyramids of a batch, float32 [B, H, W, 3], zeros beyond each image's own plane."""
        height = max(_SMALLEST_PLANE_PX, *(plan.layout.height for plan in plans))
        width = max(_SMALLEST_PLANE_PX, *(plan.layout.width for plan in plans))
        planes = torch.zeros(len(plans), height, width, 3, device=self.device)
        first = 0
        while first < len(plans):
            plan, last = plans[first], first + 1
            while last < len(plans) and plans[last].source == plan.source:
                last += 1
            pixels = torch.from_numpy(np.stack(images[first:last])).to(self.device)
            place_first_level(planes[first:last], plan.layout, self._prepare(pixels, plan))
            draw_levels(planes[first:last], plan.layout)
            first = last
        return planes

    def _prepare(self, pixels: torch.Tensor, plan: _Plan) -> torch.Tensor:
        """uint8 [b, h, w, 3] to what level 0 holds, float32 [b, h, w, 3]."""
        values = pixels.float()
        if plan.doubled:
            values = upsample(values, *plan.size)
        elif plan.size != plan.source:
            planar = values.permute(0, 3, 1, 2)
            values = F.interpolate(planar, plan.size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        return values.sub_(self._mean).div_(self._scale)


class _Network:
    """The seven convolutions, batch norm folded in: planes in, one score a window out."""

    def __init__(self, weights: MmodWeights, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._strided = [self._layer(layer) for layer in weights.convolutions[:-1] if layer.padding == 0]
        self._padded = [self._layer(layer) for layer in weights.convolutions[:-1] if layer.padding > 0]
        # The last convolution has a single output, for which kernels are poor: a fifth of the whole time. So
        # each of its columns becomes an output of its own, and a second convolution adds them up, shifted.
        last = weights.convolutions[-1]
        size = last.weight.shape[-1]
        shift = np.zeros((1, size, 1, size), np.float32)
        shift[0, np.arange(size), 0, np.arange(size)] = 1
        self._columns = self._filters(last.weight[0].transpose(2, 0, 1)[..., None])
        self._shift = self._filters(shift)
        self._bias = torch.from_numpy(last.bias).to(device, dtype)
        self._last_padding = last.padding

    def _layer(self, layer: Convolution) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        bias = torch.from_numpy(layer.bias).to(self._device, self._dtype)
        return self._filters(layer.weight), bias, layer.stride, layer.padding

    def _filters(self, weight: np.ndarray) -> torch.Tensor:
        filters = torch.from_numpy(np.ascontiguousarray(weight)).to(self._device, self._dtype)
        return filters.contiguous(memory_format=torch.channels_last)

    def __call__(self, planes: torch.Tensor, layouts: list[TiledLayout]) -> torch.Tensor:
        """Score every window.

        Planes smaller than the batch's must not see what lies beyond their own edge, which is zeros where
        they are alone. The strided convolutions do not pad, so none of their outputs inside an image's own
        extent reads beyond it; before each padding one everything beyond is zeroed.

        Args:
            planes: float32 [B, H, W, 3].
            layouts: of each image.

        Returns:
            float32 [B, rows, columns]; -inf beyond an image's own extent.
        """
        values = planes.permute(0, 3, 1, 2).to(self._dtype)  # channels_last without a copy
        with exact_convolutions(self._device):
            for weight, bias, stride, padding in self._strided:
                values = F.relu_(F.conv2d(values, weight, bias, stride, padding))
            inside = self._inside(layouts, values)
            if inside is not None:
                values *= inside
            for weight, bias, stride, padding in self._padded:
                values = F.relu_(F.conv2d(values, weight, bias, stride, padding))
                if inside is not None:
                    values *= inside
            values = F.conv2d(values, self._columns, None, 1, (self._last_padding, 0))
            scores = F.conv2d(values, self._shift, self._bias, 1, (0, self._last_padding)).float()
        if inside is not None:
            scores.masked_fill_(inside == 0, -math.inf)
        return scores[:, 0]

    def _inside(self, layouts: list[TiledLayout], values: torch.Tensor) -> torch.Tensor | None:
        """1 inside each image's own extent and 0 beyond, [B, 1, rows, columns]; None if all fill the map."""
        heights, widths = [layout.height for layout in layouts], [layout.width for layout in layouts]
        for weight, _, stride, _ in self._strided:
            heights = [max((size - weight.shape[2]) // stride + 1, 0) for size in heights]
            widths = [max((size - weight.shape[3]) // stride + 1, 0) for size in widths]
        rows, columns = values.shape[2:]
        if min(heights) == rows and min(widths) == columns:
            return None
        row = torch.arange(rows, device=self._device) < torch.tensor(heights, device=self._device)[:, None]
        column = (
            torch.arange(columns, device=self._device) < torch.tensor(widths, device=self._device)[:, None]
        )
        return (row[:, None, :, None] & column[:, None, None, :]).to(values.dtype)


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _batches(plans: list[_Plan], max_pixels: int) -> Iterator[list[_Plan]]:
    """Group images whose planes are of nearly one size, so that little of a batch is padding."""
    batch: list[_Plan] = []
    height = width = area = 0
    for plan in sorted(plans, key=lambda plan: (plan.layout.width, plan.layout.height, plan.source)):
        new_height, new_width = max(height, plan.layout.height), max(width, plan.layout.width)
        padded = (len(batch) + 1) * new_height * new_width
        if batch and (padded > max_pixels or area + plan.layout.area < _FILLED * padded):
            yield batch
            batch, area = [], 0
            new_height, new_width = plan.layout.height, plan.layout.width
        batch.append(plan)
        height, width, area = new_height, new_width, area + plan.layout.area
    if batch:
        yield batch


def _boxes_in_image(
    image: torch.Tensor,
    row: torch.Tensor,
    column: torch.Tensor,
    layouts: list[TiledLayout],
    window_px: int,
) -> torch.Tensor:
    """Map cells of the score map to boxes in level 0.

    A cell belongs to the level that holds the center of its window, else to the nearest one. The arithmetic
    is dlib's, in double and level by level: a tenth of a pixel is often at stake in its final rounding.

    Args:
        image: int64 [n], index into `layouts`; n at least 1.
        row: int64 [n], of the score map.
        column: int64 [n].
        layouts: of the images of the batch.
        window_px: side of the detection window.

    Returns:
        float64 [n, 4], left, top, right, bottom; whole numbers, the last pixel included.
    """
    device = image.device
    most = max(len(layout.levels) for layout in layouts)
    rects = torch.zeros(len(layouts), most, 4, dtype=torch.int64)
    for index, layout in enumerate(layouts):
        levels = torch.tensor(layout.levels)
        rects[index, : len(levels)] = levels
        rects[index, len(levels) :] = levels[0]  # never nearer than the first of its kind
    rects = rects.to(device)[image]  # [n, L, 4]
    center = STRIDE_PX * torch.stack([column, row], 1) + FIRST_CENTER_PX  # [n, 2]
    low, high = rects[..., :2], rects[..., :2] + rects[..., 2:] - 1
    outside = (low - center[:, None]).clamp(min=0) + (center[:, None] - high).clamp(min=0)
    distance = outside.square().sum(-1)  # [n, L]
    level = (distance * most + torch.arange(most, device=device)).argmin(1)  # the first of the nearest
    origin = low.gather(1, level[:, None, None].expand(-1, 1, 2)).double()
    half = (window_px - 1) / 2
    reach = torch.tensor([[-half, -half], [half, half]], dtype=torch.float64, device=device)
    corners = (center[:, None] + reach) - origin  # [n, 2, 2]
    for step in range(int(level.max())):
        corners = torch.where((level > step)[:, None, None], corners * 1.2 + 0.3, corners)
    return _round(corners).flatten(1)


def _round(values: torch.Tensor) -> torch.Tensor:
    """Round halves away from zero, as dlib does."""
    return values.sign() * (values.abs() + 0.5).floor()


def _split(plans: list[_Plan], image: np.ndarray, rects: np.ndarray, scores: np.ndarray) -> list[Detections]:
    """Sort what was kept by image and map it from the searched size to the image's own.

    Args:
        plans: of the images of a batch.
        image: int64 [n], index into `plans`.
        rects: float64 [n, 4], as `_boxes_in_image` gives them.
        scores: float32 [n], descending.
    """
    found = []
    for index, plan in enumerate(plans):
        own = rects[image == index]
        if plan.doubled:
            halved = own / 2 - np.array([1.25, 0.75, 1.25, 0.75])
            boxes = box_from_dlib(np.floor(halved + 0.5))  # quarters: no halves to round
        else:
            factors = np.array(plan.source, np.float64)[::-1] / np.array(plan.size)[::-1]
            boxes = box_from_dlib(own) * np.tile(factors, 2)
        found.append(Detections(boxes.astype(np.float32), scores[image == index]))
    return found


def load(
    card: ModelCard,
    *,
    device: torch.device,
    precision: str = "fp32",
    min_face_px: int = 40,
    max_batch_pixels: int | None = None,
) -> MmodDetector:
    """Read and check the weights of a card and build its detector.

    Raises:
        MissingExtraError: the package that ships the weights is not installed.
        CorruptError: the weights are damaged or not those of the card.
        MismatchError: the card says something else about the input than the weights.
    """
    weights = read_mmod(DatReader(read_weights(card), str(find_weights(card))))
    says = (card.min_face_px, *(np.float32(value) for value in card.mean))
    if says != (weights.window_px, *weights.mean):
        raise MismatchError(
            f"model card {card.name!r}: min_face_px and mean are {card.min_face_px} and {card.mean}, but the "
            f"weights are for {weights.window_px} and {tuple(weights.mean.tolist())}; correct the card"
        )
    return MmodDetector(
        card,
        weights,
        device=device,
        precision=precision,
        min_face_px=min_face_px,
        max_batch_pixels=max_batch_pixels,
    )
