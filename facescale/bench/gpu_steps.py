"""Photographs, faces and models of `facescale bench gpu`, and the steps of extract, each by itself.

Called by facescale.bench.gpu.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import cv2
import numpy as np

from facescale.errors import UsageError
from facescale.imaging.decode import decode
from facescale.imaging.hashes import perceptual
from facescale.models.registry import card, choose_scheme
from facescale.models.weights import MissingWeightsError, local_weights
from facescale.vision.align import extract_chips, landmark_scheme
from facescale.vision.backbones import BACKBONES, create
from facescale.vision.embedder import NetworkEmbedder
from facescale.vision.extract import cut_and_score, image_spans
from facescale.vision.protocols import Detections
from facescale.vision.registry import (
    DEFAULT_QUALITY_SCORER,
    load_detector,
    load_embedder,
    load_landmarker,
    load_quality_scorer,
    resolve_device,
)
from facescale.vision.torch_network import TorchNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from facescale.driver.context import Reporter
    from facescale.models.card import ModelCard
    from facescale.vision.protocols import Detector, Embedder, Landmarker

LANDMARKER = "dlib_5pt"
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


def make_photos(folder: Path, count: int, width_px: int, height_px: int) -> list[bytes]:
    """Write JPEG files that take as long to decode as photographs: smooth shapes, fine grain. Returns their bytes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        coarse = rng.integers(0, 256, (18, 32, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        grain = rng.integers(-4, 5, (height_px, width_px, 1), dtype=np.int16)
        done, data = cv2.imencode(".jpg", np.clip(smooth + grain, 0, 255).astype(np.uint8))
        assert done
        files.append(data.tobytes())
        (folder / f"{number:06d}.jpg").write_bytes(files[-1])
    return files


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
    found = load_detector(detector, device=device, precision=precision)
    network, real = load_or_make_embedder(embedder, device=device, precision=precision, batch=batch)
    scheme, own = choose_scheme(found.card, card(LANDMARKER, "landmarker"), network.card)
    landmarker = None if own else load_landmarker(LANDMARKER, device=device)
    given = GivenFaces(found, faces)
    if own and len(landmark_scheme(scheme).points) != 5:
        raise UsageError(
            f"{detector} gives landmarks of scheme {scheme!r}: only five points are made up here"
        )
    return Models(given, landmarker, network, scheme, () if real else (embedder,))


def load_or_make_embedder(name: str, *, device: str, precision: str, batch: int) -> tuple[Embedder, bool]:
    """An embedder, and whether its weights are real: random ones where they are not on this machine."""
    found = card(name, "embedder")
    if found.architecture in BACKBONES:
        try:
            local_weights(found)
        except MissingWeightsError:
            import torch

            torch.manual_seed(0)
            where = resolve_device(device)
            module = create(found.architecture, dim=found.dim or BACKBONES[found.architecture].dim)
            made = TorchNetwork(module, device=where, precision=precision, name=name)
            return NetworkEmbedder(found, made, device=where, batch=batch), False
    runtime = "auto" if precision == "fp32" else "torch"  # ONNX files run in fp32 only
    loaded = load_embedder(name, device=device, precision=precision, batch=batch, backend=runtime)
    return loaded, True


class Steps:
    """The steps of extract, each by itself, over all photographs.

    Args:
        models: on their device.
        device: that one.
        files: bytes of the photographs.
        threads: for decoding, hashes and crops.
        micro_batch: photographs detected together.
        embed_batch: faces embedded together.
    """

    def __init__(
        self,
        models: Models,
        device: torch.device,
        files: list[bytes],
        threads: int,
        micro_batch: int,
        embed_batch: int,
    ) -> None:
        self.models, self.device, self.files, self.threads = models, device, files, threads
        self.pool = ThreadPoolExecutor(threads)
        self.micro_batch, self.embed_batch = micro_batch, embed_batch
        # One micro-batch stands for all in the steps after decoding: their inputs must not fill the memory.
        self.images = [read_pixels(data) for data in files[:micro_batch]]
        self.faces = [models.detector.faces] * len(self.images)
        self.scorer = load_quality_scorer(DEFAULT_QUALITY_SCORER)
        self.landmarks = self._landmarks(self.images, self.faces)
        self.chips = self._align()

    def measure(self, rounds: int, reporter: Reporter) -> dict[str, float]:
        """Seconds of each step for all photographs: the best of some rounds, after one that warms up."""
        steps: dict[str, Callable[[], object]] = {
            "decode": lambda: list(self.pool.map(read_pixels, self.files)),
            "hash": partial(self._repeat, lambda: list(self.pool.map(perceptual, self.images))),
            "upload": partial(self._repeat, self._upload),
            "detect": partial(self._repeat, lambda: self.models.detector.detect(self.images)),
            "align": partial(self._repeat, self._align),
            "crops and quality": partial(self._repeat, self._cut),
            "embed": self._embed,
        }
        if self.models.landmarker is not None:
            steps["landmarks"] = partial(self._repeat, lambda: self._landmarks(self.images, self.faces))
        best = dict.fromkeys(steps, float("inf"))
        for number in range(rounds + 1):
            for name, run in steps.items():
                start = time.perf_counter()
                run()
                wait(self.device)
                if number:
                    best[name] = min(best[name], time.perf_counter() - start)
        reporter.say(
            ", ".join(f"{name} {len(self.files) / s:.0f}" for name, s in best.items()) + " images/s alone"
        )
        return best

    def _repeat(self, call: Callable[[], object]) -> None:
        for _ in range(max(1, len(self.files) // len(self.images))):
            call()

    def _upload(self) -> None:
        import torch

        for image in self.images:
            torch.from_numpy(image).to(self.device)

    def _landmarks(self, images: list[np.ndarray], faces: list[Detections]) -> list[np.ndarray]:
        if self.models.landmarker is None:
            return [found.landmarks for found in faces if found.landmarks is not None]
        return self.models.landmarker.landmarks(images, [found.boxes for found in faces])

    def _align(self) -> np.ndarray:
        return extract_chips(self.images, self.landmarks, self.models.embedder.card.template or "")

    def align_best(self, images: list[np.ndarray], faces: list[Detections]) -> np.ndarray:
        """The chip of the best face of each image that has one."""
        some = [(image, found.best(1)) for image, found in zip(images, faces, strict=True) if len(found)]
        with_face, best = [image for image, _ in some], [found for _, found in some]
        template = self.models.embedder.card.template or ""
        return extract_chips(with_face, self._landmarks(with_face, best), template)

    def _cut(self) -> None:
        spans = image_spans([len(points) for points in self.landmarks], self.threads)
        list(self.pool.map(self._cut_span, spans))

    def _cut_span(self, span: slice) -> None:
        cut_and_score(self.images[span], self.landmarks[span], self.models.scheme, self.scorer)

    def _embed(self) -> None:
        wanted = len(self.files) * len(self.models.detector.faces)
        batch = np.resize(self.chips, (self.embed_batch, *self.chips.shape[1:]))
        for start in range(0, wanted, self.embed_batch):
            self.models.embedder.embed(batch[: wanted - start])


def read_pixels(data: bytes) -> np.ndarray:
    """Decode a file that is known to be an image."""
    pixels = decode(data).pixels
    assert pixels is not None
    return pixels


def wait(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
