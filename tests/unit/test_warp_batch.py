"""Chips cut together are those cut one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.errors import DataError, MismatchError, UsageError
from facescale.vision.align import TEMPLATES, chips_on_device, extract_chips

CPU = torch.device("cpu")
PLAIN = sorted(name for name, template in TEMPLATES.items() if not template.like_dlib)


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Soft edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + seed), np.cos(y / 11), np.sin((x + y) / 23)], axis=-1)
    return (127 + 90 * waves + rng.normal(0, 12, waves.shape)).clip(0, 255).astype(np.uint8)


def placed(name: str, scale: float, turn: float, where: tuple[float, float]) -> np.ndarray:
    """A template's landmarks as a face of a size, turned, would have them; float32 [K, 2]."""
    points = TEMPLATES[name].points - TEMPLATES[name].points.mean(axis=0)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return (scale * points @ rotation + where).astype(np.float32)


def check(images: list[np.ndarray], landmarks: list[np.ndarray], name: str) -> np.ndarray:
    expected = extract_chips(images, landmarks, name)
    found = chips_on_device(images, landmarks, name, CPU)
    assert found.dtype == torch.uint8 and found.shape == expected.shape
    difference = np.abs(found.numpy().astype(int) - expected)
    assert difference.max(initial=0) <= 1 and (difference == 0).mean() >= 0.999
    return expected


@pytest.mark.parametrize("name", PLAIN)
def test_many_faces_of_many_sizes(name: str) -> None:
    """From enlarged twice to halved three times; 37 faces are more than two groups."""
    rng = np.random.default_rng(1)
    images = [picture(700, 900, 0), picture(90, 60, 1), picture(300, 2000, 2), picture(20, 20, 3)]
    landmarks = [
        np.stack(
            [
                placed(
                    name, 2.0 ** rng.uniform(-1, 4), rng.uniform(-3, 3), tuple(rng.uniform(0, 1, 2) * (w, h))
                )
                for _ in range(count)
            ]
        )
        for (h, w, _), count in zip((image.shape for image in images), (14, 8, 9, 6), strict=True)
    ]
    chips = check(images, landmarks, name)
    assert len(np.unique(chips.reshape(len(chips), -1), axis=0)) > 30


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(0.01, 30),
    turn=st.floats(-4, 4),
    where=st.tuples(st.floats(-300, 900), st.floats(-300, 900)),
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
def test_any_face(scale: float, turn: float, where: tuple[float, float], shape: tuple[int, int]) -> None:
    check([picture(*shape, 0)], [placed("arcface_112", scale, turn, where)[None]], "arcface_112")


def test_no_face_and_images_without_faces() -> None:
    empty = np.zeros((0, 5, 2), np.float32)
    images = [picture(50, 50, 0), picture(200, 200, 1)]
    assert chips_on_device(images, [empty, empty], "arcface_112", CPU).shape == (0, 112, 112, 3)
    assert len(check(images, [empty, placed("arcface_112", 1, 0, (90, 90))[None]], "arcface_112")) == 1


def test_refusals() -> None:
    image, face = picture(200, 200, 0), placed("arcface_112", 1, 0, (90, 90))[None]
    with pytest.raises(UsageError, match="as dlib does"):
        chips_on_device([image], [face], "dlib_150", CPU)
    with pytest.raises(MismatchError, match="scheme"):
        chips_on_device([image], [face[:, :3]], "arcface_112", CPU)
    with pytest.raises(DataError, match="not finite"):
        chips_on_device([image], [face * np.nan], "arcface_112", CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_cuts_as_the_cpu() -> None:
    image, face = picture(700, 900, 0), placed("arcface_112", 3, 0.4, (400, 300))[None]
    expected = extract_chips([image], [face], "arcface_112")
    found = chips_on_device([image], [face], "arcface_112", torch.device("cuda"))
    difference = np.abs(found.cpu().numpy().astype(int) - expected)
    assert found.is_cuda and difference.max() <= 1 and (difference == 0).mean() >= 0.999
