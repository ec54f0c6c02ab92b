"""Photographs of `facescale bench gpu`, and the steps of extract over them, each by itself.

Called by facescale.bench.gpu.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import cv2
import numpy as np

from facescale.imaging.decode import decode
from facescale.imaging.hashes import perceptual
from facescale.vision.align import extract_chips
from facescale.vision.extract import cut_and_score, image_spans
from facescale.vision.registry import DEFAULT_QUALITY_SCORER, load_quality_scorer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from facescale.bench.gpu_models import Models
    from facescale.driver.context import Reporter
    from facescale.vision.protocols import Detections


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
