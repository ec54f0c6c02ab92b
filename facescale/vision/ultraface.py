"""UltraFace (Linzaer, "Ultra-Light-Fast-Generic-Face-Detector-1MB"): how its outputs are read.

Anchors at strides 8 to 64 that the ONNX file itself turns into boxes; boxes only, one size of input. Used by
facescale.vision.registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from facescale.errors import UsageError
from facescale.vision.dense import Candidates, Canvas, DenseDetector, build_detector

if TYPE_CHECKING:
    import torch

    from facescale.models.card import ModelCard


def load(card: ModelCard, **options: Any) -> DenseDetector:
    """Load the detector of `card`; options and errors as of facescale.vision.dense.build_detector.

    Raises:
        UsageError: the card does not say for which canvas the file is.
    """
    size = card.options.get("canvas")
    if not isinstance(size, list) or len(size) != 2:
        raise UsageError(
            f"model {card.name!r}: options.canvas of its card must be [height, width], got {size!r}"
        )
    return build_detector(card, decode, Canvas(fixed=(size[0], size[1]), fill=127), **options)


def decode(outputs: dict[str, torch.Tensor], height: int, width: int) -> Candidates:
    """Read `scores` [B, A, 2], of background and face, and `boxes` [B, A, 4], corners in shares of the canvas."""
    boxes = outputs["boxes"]
    return Candidates(outputs["scores"][..., 1], boxes * boxes.new_tensor([width, height, width, height]))
