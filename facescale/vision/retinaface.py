"""RetinaFace (Deng et al., CVPR 2020): a card in, a detector out: how the outputs are read, and which network runs.

Two anchors a cell at strides 8, 16 and 32, boxes and five landmarks relative to the anchor. The networks are in
facescale.vision.retinaface_network. Used by facescale.vision.registry.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from facescale.errors import UsageError
from facescale.vision.dense import Candidates, Canvas, DenseDetector, build_detector, cell_corners
from facescale.vision.retinaface_network import BACKBONES, RetinaFace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.models.card import ModelCard

STRIDES = (8, 16, 32)
_CENTER, _SIZE = 0.1, 0.2  # in which centers and sizes are learned: the anchor's, and logarithms of it


def load(card: ModelCard, **options: Any) -> DenseDetector:
    """Load the detector of `card`; options and errors as of facescale.vision.dense.build_detector.

    Raises:
        UsageError: options.backbone or options.anchors_px of the card is missing or wrong.
    """
    backbone, anchors = card.options.get("backbone"), card.options.get("anchors_px")
    if backbone not in BACKBONES:
        raise UsageError(
            f"model {card.name!r}: options.backbone of its card must be one of {', '.join(BACKBONES)}, got {backbone!r}"
        )
    if not isinstance(anchors, list) or [len(sides) for sides in anchors] != [2, 2, 2]:
        raise UsageError(
            f"model {card.name!r}: options.anchors_px of its card must be two sides for each of the strides "
            f"8, 16 and 32, got {anchors!r}"
        )
    return build_detector(
        card,
        partial(decode, anchors_px=anchors),
        Canvas(multiple=max(STRIDES)),
        build=lambda _: RetinaFace(backbone, slope=float(card.options.get("slope", 0.0))),
        **options,
    )


def decode(
    outputs: dict[str, torch.Tensor], height: int, width: int, *, anchors_px: Sequence[Sequence[float]]
) -> Candidates:
    """Read `scores` [B, A, 2] of background and face, `boxes` [B, A, 4] and `landmarks` [B, A, 10].

    An anchor of side a sits at the center c of its cell: center = c + 0.1 · a · b01; size = a · exp(0.2 · b23);
    landmark = c + 0.1 · a · k.

    Args:
        outputs: of the network, before softmax.
        height: of the canvas, px.
        width: of the canvas, px.
        anchors_px: sides of the two anchors of each stride.
    """
    device = outputs["boxes"].device
    centers, sides = [], []
    for stride, pair in zip(STRIDES, anchors_px, strict=True):
        cells = (cell_corners(height // stride, width // stride, device) + 0.5) * stride
        centers.append(cells.repeat_interleave(len(pair), dim=0))
        sides.append(torch.tensor(pair, device=device, dtype=torch.float32).repeat(len(cells)))
    at, side = torch.cat(centers), torch.cat(sides)[:, None]  # [A, 2], [A, 1]
    box = outputs["boxes"]
    center, half = at + box[..., :2] * _CENTER * side, (box[..., 2:] * _SIZE).exp() * side / 2
    points = outputs["landmarks"].reshape(*box.shape[:2], -1, 2)
    return Candidates(
        outputs["scores"].softmax(-1)[..., 1],
        torch.cat([center - half, center + half], dim=-1),
        at[:, None] + points * _CENTER * side[:, None],
    )
