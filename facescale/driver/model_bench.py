"""How fast a model is alone: a name comes in, milliseconds and faces or images a second at each batch size go out.

Input is random pixels in memory: no reading, decoding, alignment or storing, so this is what a pipeline could reach and
not what it does. Called by `facescale models bench`.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.errors import UsageError
from facescale.models.registry import card
from facescale.vision.registry import load_detector, load_embedder, load_landmarker, resolve_device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WARM_UP = 2
MIN_REPEATS = 5
DEFAULT_BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class BatchSpeed:
    """One batch size, over `repeats` calls: median and fastest, and what the median makes a second."""

    batch: int
    repeats: int
    median_ms: float
    fastest_ms: float
    per_second: float


@dataclass(frozen=True)
class ModelSpeed:
    """What was measured, and on what."""

    name: str
    unit: str
    input: str
    runtime: str
    device: str
    precision: str
    threads: int
    batches: list[BatchSpeed]


def bench_model(
    name: str,
    *,
    batches: Sequence[int] = DEFAULT_BATCHES,
    side_px: int = 640,
    min_face_px: int = 40,
    device: str = "cpu",
    precision: str = "fp32",
    runtime: str = "auto",
    threads: int = 1,
    seconds: float = 2.0,
) -> ModelSpeed:
    """Time one model on random input.

    Args:
        name: registry name.
        batches: batch sizes.
        side_px: of the square images that detectors and landmarkers are given; an embedder has its own size.
        min_face_px: for detectors.
        device: "cpu", "cuda" or "cuda:N".
        precision: "fp32", "bf16" or "fp16".
        runtime: "torch", "onnx" or "auto".
        threads: of torch; workers of a job have one each on a CPU.
        seconds: at least this long for each batch size, and at least MIN_REPEATS calls.

    Raises:
        UsageError: no such model, device or precision; a batch size or side below 1.
        FacescaleError: its weights cannot be had.
    """
    import torch

    if not batches or min(batches) < 1 or side_px < 1 or threads < 1:
        raise UsageError("batch sizes, side and threads are whole numbers from 1")
    known = card(name)
    rng = np.random.default_rng(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = []
        for batch in batches:
            call, shape = _call(
                name,
                known.task,
                batch,
                rng,
                side_px,
                min_face_px,
                {"device": device, "precision": precision, "backend": runtime},
            )
            rows.append(_time(call, batch, seconds))
    finally:
        torch.set_num_threads(before)
    return ModelSpeed(
        name=name,
        unit="images" if known.task == "detector" else "faces",
        input=shape,
        runtime=known.preferring(runtime).backend,
        device=str(resolve_device(device)),
        precision=precision,
        threads=threads,
        batches=rows,
    )


def _call(
    name: str,
    task: str,
    batch: int,
    rng: np.random.Generator,
    side_px: int,
    min_face_px: int,
    options: dict[str, Any],
) -> tuple[Callable[[], object], str]:
    """What is timed, with input of a batch in memory, and what that input is."""
    if task == "embedder":
        embedder = load_embedder(name, batch=batch, **options)
        side = embedder.card.input_size or 0
        chips = rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
        return lambda: embedder.embed(chips), f"{side} × {side} px"
    images = [rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8) for _ in range(batch)]
    shape = f"{side_px} × {side_px} px"
    if task == "detector":
        detector = load_detector(name, min_face_px=min_face_px, **options)
        return lambda: detector.detect(images), f"{shape}, faces from {min_face_px} px"
    landmarker = load_landmarker(name, device=options["device"])
    boxes = [np.array([[0.25, 0.25, 0.75, 0.75]], np.float32) * side_px for _ in images]
    return lambda: landmarker.landmarks(images, boxes), f"{shape}, one face in each"


def _time(call: Callable[[], object], batch: int, seconds: float) -> BatchSpeed:
    for _ in range(WARM_UP):
        call()
    took: list[float] = []
    start = time.perf_counter()
    while len(took) < MIN_REPEATS or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call()
        took.append(time.perf_counter() - before)
    median = statistics.median(took)
    return BatchSpeed(batch, len(took), 1000 * median, 1000 * min(took), batch / median)
