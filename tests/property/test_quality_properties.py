"""Quality for every input: within 0..1, and never better when a component gets worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quality_samples import LANDMARKS, portrait, views

from facescale.vision.quality import IsoQuality, combine

share, angle = st.floats(0, 1), st.floats(-90, 90)
FACES = st.fixed_dictionaries(
    {
        "sharpness": share,
        "brightness": share,
        "contrast": share,
        "yaw_deg": st.one_of(angle, st.just(float("nan"))),
        "pitch_deg": st.one_of(angle, st.just(float("nan"))),
        "roll_deg": st.floats(-180, 180),
        "truncation": share,
        "inter_eye_px": st.floats(0, 2000),
    }
)


def quality(**components: float) -> float:
    return float(combine(**{name: np.array([value]) for name, value in components.items()})[0])


@given(FACES)
def test_quality_is_a_share(face: dict[str, float]) -> None:
    assert 0 <= quality(**face) <= 1


@pytest.mark.parametrize("name", ["sharpness", "contrast", "inter_eye_px"])
@given(face=FACES, step=st.floats(0, 100))
def test_more_is_better(name: str, face: dict[str, float], step: float) -> None:
    more = face[name] + step if name == "inter_eye_px" else min(1, face[name] + step)
    assert quality(**face | {name: more}) >= quality(**face)


@pytest.mark.parametrize("name", ["yaw_deg", "pitch_deg", "roll_deg", "truncation"])
@given(face=FACES, larger=st.floats(0, 180), share_kept=share)
def test_less_is_better(name: str, face: dict[str, float], larger: float, share_kept: float) -> None:
    most = {"truncation": 1.0, "roll_deg": 180.0}.get(name, 90.0)
    value = min(larger, most)
    smaller = value * share_kept
    worse = quality(**face | {name: value})
    assert quality(**face | {name: smaller}) >= worse
    if name != "truncation":
        assert quality(**face | {name: -value}) == pytest.approx(worse)


@given(face=FACES, one=share, other=share)
def test_brightness_is_best_in_the_middle(face: dict[str, float], one: float, other: float) -> None:
    """Of two values on the same side of 0.3 the one nearer to it is no worse."""
    low, high = sorted((one, other))
    if high <= 0.3:
        assert quality(**face | {"brightness": high}) >= quality(**face | {"brightness": low}) - 1e-5
    if low >= 0.3:
        assert quality(**face | {"brightness": low}) >= quality(**face | {"brightness": high}) - 1e-5


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.floats(-50, 150),
    st.floats(0.01, 3),
)
def test_any_pixels_and_landmarks_give_values_in_range(
    seed: int, size: tuple[int, int], offset: float, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    points = (LANDMARKS - LANDMARKS.mean(axis=0)) * scale + offset + rng.normal(0, 3, (4, 5, 2))
    found = IsoQuality().score(views(image, points))
    limits: dict[str, Any] = {"yaw_deg": (-90, 90), "pitch_deg": (-90, 90)}
    for name, values in vars(found).items():
        low, high = limits.get(name, (0, 1))
        assert values.dtype == np.float32 and values.shape == (4,), name
        assert (np.isnan(values) | ((values >= low) & (values <= high))).all(), name
    assert not np.isnan([found.quality, found.truncation]).any()


@settings(max_examples=20)
@given(st.floats(0.3, 5), st.floats(1.3, 3))
def test_more_blur_is_less_quality(sigma: float, times: float) -> None:
    import cv2

    image = portrait()
    some, more = (
        IsoQuality().score(views(cv2.GaussianBlur(image, (0, 0), deviation))).quality[0]
        for deviation in (sigma, sigma * times)
    )
    assert more < some + 1e-3
