"""Memory does not grow with the input: ten times the photographs, the same peak of driver, workers and Ray."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from facescale.bench.memory import GROWTH, Peak, extract_peak
from facescale.lake.lake import Lake
from facescale.lake.scan import count_rows
from facescale.synth.portrait import load_portrait

FEW, MANY = 300, 3_000
WORKERS = 2
SIDE_PX = 160
MIN_FACE_PX = 80
NUM_FACES = 8

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="PSS is read from /proc, which this system lacks"
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """48 small pictures: a portrait in eight sizes, noise and gradients."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for number in range(48):
        if number < NUM_FACES:
            pixels = portrait(reach=0.7 + 0.05 * number)
        elif number % 2:
            pixels = rng.integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)
        else:
            ramp = np.linspace(0, 255, SIDE_PX)
            pixels = np.broadcast_to(np.roll(ramp, number)[:, None, None], (SIDE_PX, SIDE_PX, 3)).astype(
                np.uint8
            )
        path = folder / f"{number}.jpg"
        assert cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        paths.append(path)
    return paths


def portrait(reach: float) -> np.ndarray:
    """The portrait's face and `reach` of its width around its center, at SIDE_PX."""
    picture = load_portrait()
    x1, y1, x2, y2 = picture.face_box
    half = int(reach * (x2 - x1))
    x, y = int(x1 + x2) // 2, int(y1 + y2) // 2
    part = picture.pixels[max(0, y - half) : y + half, max(0, x - half) : x + half]
    return cv2.resize(part, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)


def measure(photos: list[Path], count: int, work: Path) -> Peak:
    """Peak of extracting `count` photographs, whose faces must have been found."""
    peak = extract_peak(photos, count, work, min_face_px=MIN_FACE_PX, workers=WORKERS)
    lake = Lake.open(str(work / f"lake-{count}"))
    images, faces = lake.current("images"), lake.current("faces")
    assert images is not None
    assert faces is not None
    assert count_rows(lake, images) == count
    # Crops and embeddings are part of what is measured.
    assert count_rows(lake, faces) >= count // len(photos) * NUM_FACES
    return peak


@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_the_input(photos: list[Path], tmp_path: Path) -> None:
    few, many = measure(photos, FEW, tmp_path), measure(photos, MANY, tmp_path)
    assert min(few.samples, many.samples) > 10
    assert few.by_role["workers"] > 0
    growth = many.bytes / few.bytes
    assert 2 - GROWTH <= growth <= GROWTH, f"{few} at {FEW} photographs, {many} at {MANY}"
