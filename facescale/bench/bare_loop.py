"""The bare loop that extract is held against: one process, no Ray, no Parquet, no lake; the same functions in order.

Comes in: file names. Goes out: how many faces, and the seconds of each step: read, decode, hash, detect, landmarks,
crops, chips, embed. Every step has all cores: numeric libraries get as many threads as there are CPUs, and steps that
are Python calls run in as many threads. Steps do not overlap, so their seconds add up to the whole.

`python -m facescale.bench.bare_loop` serves requests, a line of JSON each, so that `facescale bench extract` can take
turns between this loop and the others in one run; see facescale.bench.contender.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from facescale.engine.session import usable_cpus
from facescale.engine.worker import limit_threads
from facescale.imaging.decode import decode
from facescale.imaging.hashes import perceptual, sha256
from facescale.models.registry import choose_scheme
from facescale.vision.align import extract_chips, landmark_scheme
from facescale.vision.crops import encode_jpeg, wide_crops
from facescale.vision.registry import load_detector, load_embedder, load_landmarker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from facescale.vision.protocols import Detections

LANDMARKER = "dlib_5pt"
"""For detectors that find no landmarks."""
STEPS = ("read", "decode", "hash", "detect", "landmarks", "crops", "chips", "embed")
PIXELS_AN_IMAGE = 1 << 20
"""Detector input pixels allowed for each image of a batch: a 250 x 250 photo at a smallest face of 40 px."""


class BareLoop:
    """Models and a loop over batches of photographs.

    Args:
        detector: registry name.
        embedder: registry name.
        min_face_px: smallest face.
        batch: photographs decoded, detected and embedded together.
        threads: of everything.
    """

    def __init__(self, *, detector: str, embedder: str, min_face_px: int, batch: int, threads: int) -> None:
        self.batch = batch
        self.detector = load_detector(
            detector, min_face_px=min_face_px, max_batch_pixels=batch * PIXELS_AN_IMAGE
        )
        self.embedder = load_embedder(embedder, batch=batch)
        landmarker = load_landmarker(LANDMARKER)
        self.scheme, own = choose_scheme(self.detector.card, landmarker.card, self.embedder.card)
        self.landmarker = None if own else landmarker
        self.pool = ThreadPoolExecutor(threads)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.descriptors: list[np.ndarray] = []

    def run(self, paths: Sequence[str]) -> int:
        """Take some photographs from file to descriptor; returns the number of faces."""
        self.seconds, self.descriptors = defaultdict(float), []
        for start in range(0, len(paths), self.batch):
            self._batch(paths[start : start + self.batch])
        return sum(len(raw) for raw in self.descriptors)

    def _batch(self, paths: Sequence[str]) -> None:
        with self._step("read"):
            files = list(self.pool.map(lambda path: Path(path).read_bytes(), paths))
        with self._step("decode"):
            decoded = list(self.pool.map(decode, files))
        images = [image.pixels for image in decoded if image.pixels is not None]
        with self._step("hash"):
            list(self.pool.map(sha256, files))
            list(self.pool.map(perceptual, images))
        if not images:
            return
        with self._step("detect"):
            found = self.detector.detect(images)
        with self._step("landmarks"):
            landmarks = self._landmarks(images, found)
        with self._step("crops"):
            wide = self.pool.map(
                lambda image, points: wide_crops(image, points, self.scheme)[0], images, landmarks
            )
            list(self.pool.map(encode_jpeg, [crop for crops in wide for crop in crops]))
        with self._step("chips"):
            template = self.embedder.card.template or ""
            chips = extract_chips(images, landmarks, template, pool=self.pool)
        with self._step("embed"):
            self.descriptors.append(self.embedder.embed(chips))

    def _landmarks(self, images: list[np.ndarray], found: list[Detections]) -> list[np.ndarray]:
        if self.landmarker is not None:
            return self.landmarker.landmarks(images, [faces.boxes for faces in found])
        none = np.zeros((0, len(landmark_scheme(self.scheme).points), 2), np.float32)
        return [none if faces.landmarks is None else faces.landmarks for faces in found]

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start


def serve(detector: str, embedder: str, min_face_px: int) -> None:
    """Answer requests from standard input until it ends.

    A request is {"photos": [paths], "batch": n}; the answer {"images", "faces", "seconds", "steps"}. Models are
    loaded when a batch size is first asked for, before its clock starts.
    """
    threads = usable_cpus()
    limit_threads(threads)
    loops: dict[int, BareLoop] = {}
    print(json.dumps({"ready": True, "threads": threads}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        batch = int(request["batch"])
        if batch not in loops:
            loops[batch] = BareLoop(
                detector=detector, embedder=embedder, min_face_px=min_face_px, batch=batch, threads=threads
            )
            limit_threads(threads)  # once more: loading has imported libraries
        start = time.perf_counter()
        faces = loops[batch].run(request["photos"])
        seconds = time.perf_counter() - start
        steps = {name: loops[batch].seconds[name] for name in STEPS}
        answer = {"images": len(request["photos"]), "faces": faces, "seconds": seconds, "steps": steps}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="serve the bare loop, a line of JSON a request")
    parser.add_argument("--detector", default="dlib_mmod")
    parser.add_argument("--embedder", default="dlib_resnet")
    parser.add_argument("--min-face-px", type=int, default=40)
    arguments = parser.parse_args()
    serve(arguments.detector, arguments.embedder, arguments.min_face_px)
