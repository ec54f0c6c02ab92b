"""The scorer iso_v1: its measures against independent computations, and what spoils a portrait lowers its quality."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from quality_samples import (
    LANDMARKS,
    blurred,
    compressed,
    joined,
    noisy,
    portrait,
    resized,
    rotated,
    smeared,
    toned,
    views,
)
from scipy import ndimage

from facescale.vision.protocols import FaceQuality, FaceViews
from facescale.vision.quality import DETAIL, EYES_PX, IsoQuality, combine, sigmoid

COMPONENTS = ("sharpness", "brightness", "contrast", "yaw_deg", "pitch_deg", "truncation", "quality")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return portrait()


def score(faces: FaceViews) -> FaceQuality:
    return IsoQuality().score(faces)


def chip_views(chip: np.ndarray) -> FaceViews:
    """A face whose crop is the measured chip itself: eyes level and EYES_PX apart, no resampling."""
    side = len(chip)
    left, right = side / 2 - EYES_PX / 2, side / 2 + EYES_PX / 2
    y = side / 2
    points = np.array([[(right, y), (right, y), (left, y), (left, y), (side / 2, y + 27)]])
    identity = np.array([[[1.0, 0, 0], [0, 1, 0]]])
    return FaceViews([chip], identity, points, "dlib5", np.array([[side, side]]))


def oval(side: int) -> np.ndarray:
    """The measured pixels, from the documentation: 0.6 eye distances above the eyes to 1.6 below, 0.9 aside."""
    y, x = (np.mgrid[:side, :side] + 0.5 - side / 2) / EYES_PX
    return (x / 0.9) ** 2 + ((y - 0.5) / 1.1) ** 2 <= 1


def luma(chip: np.ndarray) -> np.ndarray:
    return np.rint(chip @ [0.299, 0.587, 0.114])


def textured(seed: int, smoothing: float = 2.0) -> np.ndarray:
    noise = ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=(162, 162, 3)), (smoothing,) * 2 + (0,)
    )
    return np.clip(120 + 160 * smoothing * noise, 0, 255).astype(np.uint8)


# Measures


@pytest.mark.parametrize("seed", range(3))
def test_brightness_and_contrast_are_mean_and_deviation_of_luminance_in_the_oval(seed: int) -> None:
    chip = textured(seed)
    values = luma(chip)[oval(162)]
    found = score(chip_views(chip))
    assert found.brightness[0] == pytest.approx(
        values.mean() / 255, abs=2e-3
    )  # OpenCV rounds luma its own way
    assert found.contrast[0] == pytest.approx(values.std() / 127.5, abs=2e-3)


@pytest.mark.parametrize(("value", "expected"), [(0, 0.0), (255, 1.0), (128, 128 / 255)])
def test_a_flat_face_has_no_contrast_and_its_own_brightness(value: int, expected: float) -> None:
    found = score(chip_views(np.full((162, 162, 3), value, np.uint8)))
    assert found.brightness[0] == pytest.approx(expected, abs=1e-6)
    assert found.contrast[0] == pytest.approx(0, abs=1e-6) and 0 <= found.quality[0] < 0.2


@pytest.mark.parametrize("smoothing", [1.0, 2.0, 4.0])
def test_sharpness_is_the_product_of_its_documented_terms(smoothing: float) -> None:
    """docs/QUALITY.md, written down once more with scipy in float64."""
    chip = textured(5, smoothing)
    gray = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY).astype(np.float64)
    mask = oval(162)
    deviation = gray[mask].std()
    smooth = ndimage.gaussian_filter(gray, 0.8, truncate=4)
    usual = {(0, 1): 0.095, (1, 0): 0.153, (1, 1): 0.111, (1, -1): 0.111}
    least = min(
        (np.roll(smooth, step, (0, 1)) + np.roll(smooth, (-step[0], -step[1]), (0, 1)) - 2 * smooth)[
            mask
        ].std()
        / (2 if 0 not in step else 1)
        / typical
        for step, typical in usual.items()
    )
    detail = np.log((least + 1) / (deviation + 2))
    down, across = np.gradient(gray)
    xx, xy, yy = (
        ndimage.gaussian_filter(p, 2.5, radius=8)[mask] for p in (across * across, across * down, down * down)
    )
    roots = np.sqrt(np.linalg.eigvalsh(np.stack([xx, xy, xy, yy], -1).reshape(-1, 2, 2)).clip(0))
    weak, strong = roots.T
    strength = np.log(((strong * (strong - weak) / (strong + weak + 1e-3)).mean() + 0.05) / (deviation + 2))
    coherence = np.log((strong**2 - weak**2).sum() / (strong**2 + weak**2).sum())
    expected = sigmoid(detail, *DETAIL) * sigmoid(strength, -2.85, 0.24) * sigmoid(coherence, -1.35, 0.2)
    assert score(chip_views(chip)).sharpness[0] == pytest.approx(float(expected), abs=2e-3)


@pytest.mark.parametrize("left", [60, 90, 100, 120, 200])
def test_truncation_is_the_share_of_the_oval_outside_the_image(image: np.ndarray, left: int) -> None:
    cut = np.ascontiguousarray(image[:, left:])
    (found,) = score(views(cut, LANDMARKS - (left, 0))).truncation
    right, other = LANDMARKS[:2].mean(axis=0), LANDMARKS[2:4].mean(axis=0)
    middle, axis = (right + other) / 2, right - other
    # By counting points of the unit disk, laid over the oval in image coordinates.
    y, x = np.mgrid[-1:1:400j, -1:1:400j]
    disk = x**2 + y**2 <= 1
    turned = np.array([-axis[1], axis[0]])
    across, down = 0.9 * x[disk], 0.5 + 1.1 * y[disk]
    points = middle + across[:, None] * axis + down[:, None] * turned
    outside = (points < (left, 0)).any(axis=1) | (points > (image.shape[1], image.shape[0])).any(axis=1)
    assert found == pytest.approx(outside.mean(), abs=0.01)


def test_pixels_beyond_the_border_do_not_count(image: np.ndarray) -> None:
    """What is left of a cut face is measured as if the rest had not been asked for: black is no darkness."""
    whole, cut = score(views(image)), score(views(np.ascontiguousarray(image[:, 115:]), LANDMARKS - (115, 0)))
    assert 0.02 < cut.truncation[0] < 0.4
    assert cut.brightness[0] == pytest.approx(whole.brightness[0], abs=0.03)
    assert cut.sharpness[0] == pytest.approx(whole.sharpness[0], abs=0.05)


def test_a_face_outside_the_image_is_worth_nothing(image: np.ndarray) -> None:
    found = score(views(image, LANDMARKS + np.array([2000, 0])))
    assert found.truncation[0] == 1 and found.quality[0] == 0
    assert np.isnan([found.sharpness[0], found.brightness[0], found.contrast[0]]).all()


def test_landmarks_that_coincide_are_no_error(image: np.ndarray) -> None:
    found = score(views(image, np.full((5, 2), 100.0)))
    assert np.isnan(found.yaw_deg[0]) and 0 <= found.quality[0] < 0.2


@pytest.mark.parametrize("factor", [1.5, 2, 4])
def test_a_larger_photograph_has_the_same_values(image: np.ndarray, factor: float) -> None:
    small, large = score(views(image)), score(views(resized(image, factor), LANDMARKS * factor))
    for name in COMPONENTS:
        one, other = getattr(small, name)[0], getattr(large, name)[0]
        assert other == pytest.approx(one, abs=0.01, nan_ok=True), name


def test_a_rotated_photograph_has_the_same_values_but_for_roll(image: np.ndarray) -> None:
    upright, turned = score(views(image)), score(views(*rotated(image, LANDMARKS, 40)))
    for name in ("sharpness", "brightness", "contrast", "yaw_deg", "truncation"):
        assert getattr(turned, name)[0] == pytest.approx(getattr(upright, name)[0], abs=0.02), name
    assert turned.quality[0] < upright.quality[0] - 0.05


# What spoils a portrait

SPOILED = {
    "blur": (blurred, (0, 0.7, 1.2, 2, 4, 8)),
    "motion": (smeared, (1, 9, 15, 25)),
    "darkness": (toned, (1, 0.4, 0.2, 0.1, 0.05, 0.01)),
    "glare": (lambda image, offset: toned(image, 1, offset), (0, 40, 70, 110, 160)),
    "flatness": (lambda image, gain: toned(image, gain, 110 * (1 - gain)), (1, 0.4, 0.15, 0.07, 0.02)),
    "noise": (noisy, (0, 5, 10, 20, 40, 80)),
    "compression": (compressed, (95, 30, 10, 5)),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_quality_falls_with(kind: str, image: np.ndarray) -> None:
    spoil, levels = SPOILED[kind]
    quality = [score(views(spoil(image, level))).quality[0] for level in levels]
    assert (np.diff(quality) < 0).all(), quality
    assert quality[-1] < 0.93 * quality[0]


def test_quality_falls_as_the_face_gets_smaller(image: np.ndarray) -> None:
    factors = (1, 0.5, 0.35, 0.25, 0.18, 0.12)
    quality = [score(views(resized(image, f), LANDMARKS * f)).quality[0] for f in factors]
    assert (np.diff(quality) < 0).all() and quality[-1] < 0.4 * quality[0], quality


def test_quality_falls_as_the_head_rolls(image: np.ndarray) -> None:
    quality = [
        score(views(*rotated(image, LANDMARKS, angle))).quality[0] for angle in (0, 20, 45, 90, 135, 175)
    ]
    assert (np.diff(quality) < 0).all() and quality[-1] < 0.05, quality


def test_quality_falls_as_the_image_cuts_the_face(image: np.ndarray) -> None:
    cuts = (60, 110, 120, 130, 145, 160)
    quality = [score(views(np.ascontiguousarray(image[:, x:]), LANDMARKS - (x, 0))).quality[0] for x in cuts]
    assert (np.diff(quality) < 0).all() and quality[-1] < 0.3 * quality[0], quality


# Batches


def test_a_face_does_not_depend_on_the_others(image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = [spoil(image, level) for spoil, levels in SPOILED.values() for level in levels]
    singles = [views(one) for one in spoiled] + [
        views(np.ascontiguousarray(image[:, 120:]), LANDMARKS - (120, 0))
    ]
    alone = [score(one) for one in singles]
    for at_once in (64, 5):
        monkeypatch.setattr("facescale.vision.quality._FACES_AT_ONCE", at_once)
        together = score(joined(singles))
        for name in COMPONENTS:
            expected = np.concatenate([getattr(one, name) for one in alone])
            np.testing.assert_array_equal(getattr(together, name), expected, err_msg=name)


def test_unknown_angles_count_as_frontal() -> None:
    known = {name: np.array([0.5]) for name in ("sharpness", "brightness", "contrast", "truncation")}
    rest = {"roll_deg": np.zeros(1), "inter_eye_px": np.array([40.0])}
    unknown, zero = (
        combine(yaw_deg=np.array([angle]), pitch_deg=np.array([angle]), **known, **rest)
        for angle in (np.nan, 0.0)
    )
    assert unknown == zero and unknown > 0
