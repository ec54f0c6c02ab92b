"""What every registered detector, landmarker, embedder and quality scorer must hold to; being there tests a new one.

Models whose package or weights are not on this machine are skipped by name, but never the default ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from quality_samples import LANDMARKS, blurred, joined, resized, views
from skimage import data

from facescale.errors import FacescaleError, UsageError
from facescale.models.registry import cards
from facescale.vision.align import SCHEMES, TEMPLATES
from facescale.vision.protocols import Detections, Detector, Embedder, Landmarker, QualityScorer
from facescale.vision.registry import (
    DEFAULT_QUALITY_SCORER,
    load_detector,
    load_embedder,
    load_landmarker,
    load_quality_scorer,
    quality_scorers,
    register_quality_scorer,
)

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULTS = {"dlib_mmod", "dlib_5pt", "dlib_resnet"}
FACE = np.array([[91, 62, 191, 161]], np.float32)  # in the portrait
TOLERANCE = 1e-4  # of a score or a descriptor's value: another shape may get another convolution kernel


def loaded(load: Callable[[str], Any], name: str) -> Any:
    try:
        return load(name)
    except FacescaleError as error:
        if name in DEFAULTS:
            raise
        pytest.skip(f"{name}: {error}")


def names(task: str) -> list[str]:
    return [card.name for card in cards(task)]


@pytest.fixture(scope="module", params=names("detector"))
def detector(request: pytest.FixtureRequest) -> Detector:
    return loaded(load_detector, request.param)


@pytest.fixture(scope="module", params=names("landmarker"))
def landmarker(request: pytest.FixtureRequest) -> Landmarker:
    return loaded(load_landmarker, request.param)


@pytest.fixture(scope="module", params=names("embedder"))
def embedder(request: pytest.FixtureRequest) -> Embedder:
    return loaded(load_embedder, request.param)


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """One face, about 100 px, in 320 x 300 px."""
    return np.ascontiguousarray(data.astronaut()[:320, 80:380])


@pytest.fixture(scope="module")
def odd_images(portrait: np.ndarray) -> list[np.ndarray]:
    """Sizes that break things: one pixel, one row, one column, slivers; flat, noisy and read-only ones."""
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 2), (2, 1), (1, 1500), (1500, 1), (3, 700), (700, 3), (4, 4), (28, 29)]
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    images += [np.full((90, 90, 3), value, np.uint8) for value in (0, 255)]
    read_only = portrait[:200, :211].copy()
    read_only.setflags(write=False)
    return [*images, read_only]


def test_defaults_are_among_them() -> None:
    assert set(names("detector") + names("landmarker") + names("embedder")) >= DEFAULTS


# Detectors


def check_detections(found: Detections, scheme: str | None) -> None:
    assert isinstance(found, Detections)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert found.boxes.shape == (len(found), 4) and found.scores.shape == (len(found),)
    assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert (np.diff(found.scores) <= 0).all()
    if scheme is None:
        assert found.landmarks is None
    else:
        assert found.landmarks is not None and found.landmarks.dtype == np.float32
        assert found.landmarks.shape == (len(found), len(SCHEMES[scheme].points), 2)


def assert_same_detections(one: Detections, other: Detections) -> None:
    np.testing.assert_allclose(one.boxes, other.boxes, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=TOLERANCE)


def test_detector_meets_its_protocol(detector: Detector) -> None:
    assert isinstance(detector, Detector)
    assert detector.card.task == "detector"
    assert detector.card.landmark_scheme is None or detector.card.landmark_scheme in SCHEMES


def test_detector_finds_the_face(detector: Detector, portrait: np.ndarray) -> None:
    (found,) = detector.detect([portrait])
    check_detections(found, detector.card.landmark_scheme)
    center = (found.boxes[0, :2] + found.boxes[0, 2:]) / 2
    assert len(found) == 1
    np.testing.assert_allclose(center, (FACE[0, :2] + FACE[0, 2:]) / 2, atol=20)


def test_detector_takes_no_images(detector: Detector) -> None:
    assert detector.detect([]) == []


def test_detector_takes_odd_images(detector: Detector, odd_images: list[np.ndarray]) -> None:
    together = detector.detect(odd_images)
    assert len(together) == len(odd_images)
    for image, found in zip(odd_images, together, strict=True):
        check_detections(found, detector.card.landmark_scheme)
        assert_same_detections(found, detector.detect([image])[0])
    assert all(len(found) == 0 for found in together[:-1])


def test_detector_is_independent_of_the_batch(detector: Detector, portrait: np.ndarray) -> None:
    images = [portrait, portrait[:240], portrait[10:, :260], portrait[:100, :100], portrait]
    together = detector.detect(images)
    assert sum(len(found) for found in together) >= 3
    for image, found in zip(images, together, strict=True):
        assert_same_detections(found, detector.detect([image])[0])
    for found, expected in zip(detector.detect(images[::-1])[::-1], together, strict=True):
        assert_same_detections(found, expected)


def test_detector_repeats_itself_and_leaves_its_input(detector: Detector, portrait: np.ndarray) -> None:
    images = [portrait.copy(), portrait[:240].copy()]
    first, second = detector.detect(images), detector.detect(images)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(images[0], portrait)
    np.testing.assert_array_equal(images[1], portrait[:240])


# Landmarkers


def assert_same_points(landmarker: Landmarker, one: np.ndarray, other: np.ndarray) -> None:
    """Bit by bit for dlib's trees; a network may get another convolution kernel for another batch."""
    tolerance = 0.0 if landmarker.card.name in DEFAULTS else 10 * TOLERANCE
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def test_landmarker_meets_its_protocol(landmarker: Landmarker) -> None:
    assert isinstance(landmarker, Landmarker)
    assert landmarker.card.task == "landmarker"
    assert landmarker.card.landmark_scheme in SCHEMES


def test_landmarker_finds_points_in_the_box(landmarker: Landmarker, portrait: np.ndarray) -> None:
    (points,) = landmarker.landmarks([portrait], [FACE])
    assert points.dtype == np.float32
    assert points.shape == (1, len(SCHEMES[landmarker.card.landmark_scheme or ""].points), 2)
    assert (points >= FACE[0, :2]).all() and (points <= FACE[0, 2:]).all()


def test_landmarker_takes_no_faces(landmarker: Landmarker, portrait: np.ndarray) -> None:
    none = np.zeros((0, 4), np.float32)
    assert landmarker.landmarks([], []) == []
    points = landmarker.landmarks([portrait, portrait, portrait], [none, FACE, none])
    assert [len(one) for one in points] == [0, 1, 0]
    assert all(one.shape[1:] == points[1].shape[1:] and one.dtype == np.float32 for one in points)


def test_landmarker_takes_odd_images_and_boxes(landmarker: Landmarker, odd_images: list[np.ndarray]) -> None:
    boxes = np.array([[0, 0, 1, 1], [-40, -50, 60, 50], [500, 500, 600, 600], [0, 0, 2, 90]], np.float32)
    for image, points in zip(
        odd_images, landmarker.landmarks(odd_images, [boxes] * len(odd_images)), strict=True
    ):
        assert points.shape[0] == len(boxes) and np.isfinite(points).all()
        assert_same_points(landmarker, points, landmarker.landmarks([image], [boxes])[0])


def test_landmarker_is_independent_of_the_batch(landmarker: Landmarker, portrait: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    boxes = (FACE + rng.integers(-9, 10, (6, 4))).astype(np.float32)
    kept = boxes.copy(), portrait.copy()
    alone = np.concatenate([landmarker.landmarks([portrait], [box[None]])[0] for box in boxes])
    for _ in range(2):
        split = landmarker.landmarks([portrait, portrait], [boxes[:2], boxes[2:]])
        assert_same_points(landmarker, np.concatenate(split), alone)
    np.testing.assert_array_equal(boxes, kept[0])
    np.testing.assert_array_equal(portrait, kept[1])


# Embedders


@pytest.fixture(scope="module")
def chips(embedder: Embedder, portrait: np.ndarray) -> np.ndarray:
    """uint8 [5, S, S, 3]: parts of the portrait, and noise."""
    size = embedder.card.input_size or 0
    rng = np.random.default_rng(2)
    cut = [portrait[y : y + 150, x : x + 150] for x, y in ((60, 40), (70, 50), (90, 80), (0, 0))]
    return np.stack(
        [
            *[cv2.resize(pixels, (size, size)) for pixels in cut],
            rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
        ]
    )


def test_embedder_meets_its_protocol(embedder: Embedder) -> None:
    assert isinstance(embedder, Embedder)
    card = embedder.card
    assert card.task == "embedder" and embedder.dim == card.dim
    template = TEMPLATES[card.template or ""]
    assert (template.size, template.scheme) == (card.input_size, card.landmark_scheme)


def test_embedder_tells_chips_apart(embedder: Embedder, chips: np.ndarray) -> None:
    vectors = embedder.embed(chips)
    assert vectors.shape == (len(chips), embedder.dim) and vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
    assert (distances[~np.eye(len(chips), dtype=bool)] > 0.05).all()
    assert distances[0, 1] < distances[0, 4]  # the shifted face is nearer than noise


def test_embedder_takes_no_chips(embedder: Embedder, chips: np.ndarray) -> None:
    vectors = embedder.embed(chips[:0])
    assert vectors.shape == (0, embedder.dim) and vectors.dtype == np.float32


def test_embedder_is_independent_of_the_batch(embedder: Embedder, chips: np.ndarray) -> None:
    many = np.concatenate([chips] * 9)  # more than one batch inside
    kept = many.copy()
    vectors = embedder.embed(many)
    alone = np.concatenate([embedder.embed(chip[None]) for chip in chips])
    np.testing.assert_allclose(vectors, np.concatenate([alone] * 9), rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(vectors, embedder.embed(many))
    np.testing.assert_array_equal(many, kept)


def test_embedder_takes_read_only_chips(embedder: Embedder, chips: np.ndarray) -> None:
    locked = chips.copy()
    locked.setflags(write=False)
    np.testing.assert_array_equal(embedder.embed(locked), embedder.embed(chips))


# Quality scorers

QUALITY_RANGES = {
    "sharpness": (0, 1),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "yaw_deg": (-90, 90),
    "pitch_deg": (-90, 90),
    "truncation": (0, 1),
    "quality": (0, 1),
}


@pytest.fixture(scope="module", params=quality_scorers())
def scorer(request: pytest.FixtureRequest) -> QualityScorer:
    if request.param == DEFAULT_QUALITY_SCORER:
        return load_quality_scorer(request.param)
    return loaded(load_quality_scorer, request.param)


def test_the_default_scorer_is_registered_and_no_other_takes_its_name() -> None:
    assert DEFAULT_QUALITY_SCORER in quality_scorers()
    with pytest.raises(UsageError, match="registered already"):
        register_quality_scorer(
            DEFAULT_QUALITY_SCORER, lambda **_: load_quality_scorer(DEFAULT_QUALITY_SCORER)
        )
    with pytest.raises(UsageError, match="did you mean iso_v1"):
        load_quality_scorer("iso_v2")


def test_scorer_meets_its_protocol(scorer: QualityScorer, portrait: np.ndarray) -> None:
    assert isinstance(scorer, QualityScorer) and scorer.name in quality_scorers()
    found = scorer.score(views(portrait))
    assert set(vars(found)) == set(QUALITY_RANGES)
    assert 0.5 < found.quality[0] <= 1


def test_scorer_takes_no_faces(scorer: QualityScorer, portrait: np.ndarray) -> None:
    found = scorer.score(views(portrait, np.zeros((0, 5, 2))))
    assert all(values.shape == (0,) and values.dtype == np.float32 for values in vars(found).values())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scorer_takes_odd_images_and_landmarks(
    scorer: QualityScorer, odd_images: list[np.ndarray], scheme: str
) -> None:
    rng = np.random.default_rng(3)
    shape = len(SCHEMES[scheme].points), 2
    points = np.stack(
        [
            np.zeros(shape),
            np.full(shape, 900.0),
            rng.uniform(-30, 120, shape),
            np.resize(LANDMARKS / 5, shape),
        ]
    )
    for image in odd_images:
        faces = views(image, points, scheme)
        found = scorer.score(faces)
        for name, (low, high) in QUALITY_RANGES.items():
            values = getattr(found, name)
            assert values.dtype == np.float32 and values.shape == (4,)
            assert (np.isnan(values) | ((values >= low) & (values <= high))).all(), name


def test_scorer_is_independent_of_the_batch(scorer: QualityScorer, portrait: np.ndarray) -> None:
    singles = [views(blurred(portrait, sigma)) for sigma in (0, 1, 3)]
    singles += [views(resized(portrait, factor), LANDMARKS * factor) for factor in (0.2, 2)]
    singles.append(views(np.ascontiguousarray(portrait[:, 120:]), LANDMARKS - (120, 0)))
    kept = [one.crops[0].copy() for one in singles]
    alone = [scorer.score(one) for one in singles]
    many = joined(singles * 15)
    for _ in range(2):
        together = scorer.score(many)
        for name in QUALITY_RANGES:
            expected = np.concatenate([getattr(one, name) for one in alone] * 15)
            np.testing.assert_allclose(getattr(together, name), expected, rtol=0, atol=TOLERANCE)
    assert all(np.array_equal(one.crops[0], pixels) for one, pixels in zip(singles, kept, strict=True))


def test_scorer_prefers_the_better_face(scorer: QualityScorer, portrait: np.ndarray) -> None:
    spoiled = [views(blurred(portrait, 8)), views(resized(portrait, 0.12), LANDMARKS * 0.12)]
    good, *bad = scorer.score(joined([views(portrait), *spoiled])).quality
    assert max(bad) < good
