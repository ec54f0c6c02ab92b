"""Models of `facescale bench gpu`, with random weights where real ones are not on this machine, and faces for them.

Called by facescale.bench.gpu. Speed depends neither on weights nor on what is found: a detector does its work, and is
then overruled by faces that are laid into every photograph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import UsageError
from facescale.models.registry import card, choose_scheme
from facescale.models.weights import MissingWeightsError, local_weights
from facescale.vision import retinaface
from facescale.vision.align import landmark_scheme
from facescale.vision.backbones import BACKBONES, create
from facescale.vision.dense import Canvas, DenseDetector
from facescale.vision.embedder import NetworkEmbedder
from facescale.vision.networks import normalize
from facescale.vision.protocols import Detections
from facescale.vision.registry import (
    DEFAULT_MIN_FACE_PX,
    load_detector,
    load_embedder,
    load_landmarker,
    resolve_device,
)
from facescale.vision.retinaface_network import RetinaFace
from facescale.vision.torch_network import TorchNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from facescale.models.card import ModelCard
    from facescale.vision.protocols import Detector, Embedder, Landmarker

LANDMARKER = "dlib_5pt"
"""For detectors whose landmarks the embedder cannot use."""
_SIDE_PX = 128  # of the noise that a detector's random weights are adjusted to
_EYES_PX = 60.0  # of the faces that are laid into the photographs


@dataclass
class GivenFaces:
    """A detector that works like another and then says what it is told, so that the steps after it have faces.

    Args:
        inner: does the work.
        faces: what every image is said to hold.
    """

    inner: Detector
    faces: Detections
    card: ModelCard = field(init=False)

    def __post_init__(self) -> None:
        self.card = self.inner.card

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detect, and forget what was found."""
        self.inner.detect(images)
        return [self.faces] * len(images)


@dataclass(frozen=True)
class Models:
    """What is measured, on its device; `random` names those without real weights."""

    detector: GivenFaces
    landmarker: Landmarker | None
    embedder: Embedder
    scheme: str
    random: tuple[str, ...]


def lay_faces(count: int, width_px: int, height_px: int) -> Detections:
    """Upright faces side by side, with ArcFace's five points; a detector's answer.

    Raises:
        UsageError: they do not fit.
    """
    side = 3 * _EYES_PX
    if count < 1 or count * side > width_px or side > height_px:
        raise UsageError(
            f"{count} faces of {side:g} px do not fit side by side into {width_px} x {height_px} px: take fewer, or "
            "larger photographs"
        )
    x = (np.arange(count, dtype=np.float32) + 0.5) * (width_px / count)
    center = np.stack([x, np.full(count, height_px / 2, np.float32)], axis=1)
    points = np.array([(-0.5, -0.4), (0.5, -0.4), (0, 0.2), (-0.4, 0.75), (0.4, 0.75)], np.float32) * _EYES_PX
    boxes = np.concatenate([center - side / 2, center + side / 2], axis=1).astype(np.float32)
    landmarks = (center[:, None] + points).astype(np.float32)
    return Detections(boxes, np.linspace(0.99, 0.9, count, dtype=np.float32), landmarks)


def load_models(
    detector: str, embedder: str, device: str, precision: str, batch: int, faces: Detections
) -> Models:
    """Load both, and a landmarker where the detector gives no points that the embedder can use."""
    found, real_detector = load_or_make_detector(detector, device=device, precision=precision)
    network, real_embedder = load_or_make_embedder(embedder, device=device, precision=precision, batch=batch)
    scheme, own = choose_scheme(found.card, card(LANDMARKER, "landmarker"), network.card)
    landmarker = None if own else load_landmarker(LANDMARKER, device=device)
    given = GivenFaces(found, faces)
    if own and len(landmark_scheme(scheme).points) != 5:
        raise UsageError(
            f"{detector} gives landmarks of scheme {scheme!r}: only five points are made up here"
        )
    made = (*(() if real_detector else (detector,)), *(() if real_embedder else (embedder,)))
    return Models(given, landmarker, network, scheme, made)


def load_or_make_detector(name: str, *, device: str, precision: str) -> tuple[Detector, bool]:
    """A detector, and whether its weights are real: a RetinaFace gets random ones where its own are not here."""
    found = card(name, "detector")
    if found.architecture == "retinaface" and not _has_weights(found):
        where, options = resolve_device(device), found.options
        module = _randomized(
            lambda: RetinaFace(options["backbone"], slope=float(options.get("slope", 0.0))), found, _SIDE_PX
        )
        network = TorchNetwork(module, device=where, precision=precision, name=name)
        made = DenseDetector(
            found,
            network,
            partial(retinaface.decode, anchors_px=options["anchors_px"]),
            device=where,
            min_face_px=DEFAULT_MIN_FACE_PX,
            canvas=Canvas(multiple=max(retinaface.STRIDES)),
        )
        return made, False
    return load_detector(name, device=device, precision=precision), True


def load_or_make_embedder(name: str, *, device: str, precision: str, batch: int) -> tuple[Embedder, bool]:
    """An embedder, and whether its weights are real: a known architecture gets random ones where they are not here."""
    found = card(name, "embedder")
    if found.architecture in BACKBONES and not _has_weights(found):
        backbone, where = BACKBONES[found.architecture], resolve_device(device)
        dim = found.dim or backbone.dim
        module = _randomized(lambda: create(found.architecture, dim=dim), found, backbone.size)
        network = TorchNetwork(module, device=where, precision=precision, name=name)
        return NetworkEmbedder(found, network, device=where, batch=batch), False
    runtime = "auto" if precision == "fp32" else "torch"  # ONNX files run in fp32 only
    loaded = load_embedder(name, device=device, precision=precision, batch=batch, backend=runtime)
    return loaded, True


def _has_weights(found: ModelCard) -> bool:
    try:
        local_weights(found)
    except MissingWeightsError:
        return False
    return True


def _randomized(build: Callable[[], torch.nn.Module], found: ModelCard, side_px: int) -> torch.nn.Module:
    """A module with the same random weights each time, whose normalizations keep activations within bounds."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = build()
        for values in module.parameters():
            if values.dim() > 1:
                values.normal_(0, (2 / values[0].numel()) ** 0.5)
        norms = [part for part in module.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
        before = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0  # statistics of the one batch that follows
        module.train()(normalize(torch.randint(0, 256, (4, side_px, side_px, 3), dtype=torch.uint8), found))
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
    return module.eval()
