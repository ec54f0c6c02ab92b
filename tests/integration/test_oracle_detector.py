"""Our detector against dlib's on real photographs: the same boxes, the same scores, none extra.

40 photographs without upsampling and 10 with one: LFW, people of other origin, groups and no faces at all.
`facescale bench oracle` does the same on all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from oracle import Rect, dlib_boxes
from PIL import Image

from facescale.vision.align import box_to_dlib
from facescale.vision.registry import load_detector

if TYPE_CHECKING:
    from pathlib import Path

    from facescale.vision.protocols import Detections

SCORE_TOLERANCE = 1e-4  # measured: 3e-6
SAMPLES = {0: {"lfw": 24, "other": 6, "groups": 4, "nofaces": 6}, 1: {"lfw": 7, "other": 2, "nofaces": 1}}
MIN_FACE_PX = {0: 80, 1: 40}


class Case(NamedTuple):
    name: str
    pixels: np.ndarray
    expected: list[tuple[Rect, float]]


def evenly(folder: Path, count: int, max_pixels: int) -> list[Path]:
    """`count` photographs spread over a folder; the largest are left to the benchmark."""

    def pixels(path: Path) -> int:
        with Image.open(path) as image:
            return image.width * image.height

    fitting = [path for path in sorted(folder.iterdir()) if pixels(path) <= max_pixels]
    picked = np.linspace(0, len(fitting) - 1, count).round().astype(int)
    return [fitting[index] for index in picked]


def cases(test_data: Path, upsample: int) -> list[Case]:
    paths = [
        path
        for folder, count in SAMPLES[upsample].items()
        for path in evenly(test_data / folder, count, 600_000 >> (2 * upsample))
    ]
    pixels = [np.array(Image.open(path).convert("RGB")) for path in paths]
    return [
        Case(path.name, image, dlib_boxes(image, upsample)) for path, image in zip(paths, pixels, strict=True)
    ]


@pytest.fixture(scope="module", params=[0, 1], ids=["upsampling 0", "upsampling 1"])
def compared(request: pytest.FixtureRequest, test_data: Path) -> list[tuple[Case, Detections]]:
    """Every photograph with what dlib and what we found in it, ours all in one call."""
    chosen = cases(test_data, request.param)
    found = load_detector("dlib_mmod", min_face_px=MIN_FACE_PX[request.param]).detect(
        [case.pixels for case in chosen]
    )
    return list(zip(chosen, found, strict=True))


def test_sample_is_as_large_as_it_claims(compared: list[tuple[Case, Detections]]) -> None:
    assert len(compared) in (40, 10)
    assert sum(len(case.expected) for case, _ in compared) >= 0.8 * len(compared)
    assert len({case.pixels.shape for case, _ in compared}) >= 3
    assert any(not case.expected for case, _ in compared)


def test_boxes_are_equal_and_none_extra(compared: list[tuple[Case, Detections]]) -> None:
    ours = {case.name: box_to_dlib(found.boxes).astype(int).tolist() for case, found in compared}
    assert ours == {case.name: [list(rect) for rect, _ in case.expected] for case, _ in compared}


def test_scores_agree(compared: list[tuple[Case, Detections]]) -> None:
    for case, found in compared:
        expected = [score for _, score in case.expected]
        np.testing.assert_allclose(found.scores, expected, rtol=0, atol=SCORE_TOLERANCE, err_msg=case.name)
