"""The benchmarks' arithmetic against code that does the same the slow and obvious way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facescale.bench.metrics import (
    accuracy_at,
    best_threshold,
    best_thresholds,
    first_other,
    folded_accuracy,
    iou,
    match_boxes,
    nearest_to_center,
    pair_distances,
    quantiles,
    tar_at_far,
)
from facescale.errors import UsageError


def slow_accuracy(distances: list[float], same: list[bool], threshold: float) -> float:
    right = 0
    for distance, is_same in zip(distances, same, strict=True):
        if not np.isnan(distance):
            right += (distance < threshold) == is_same
    return right / len(distances)


def slow_best_accuracy(distances: list[float], same: list[bool]) -> float:
    """Best accuracy over every threshold that could matter."""
    known = sorted(d for d in distances if not np.isnan(d))
    tries = [known[0] - 1, *(np.nextafter(d, np.inf) for d in known)]
    return max(slow_accuracy(distances, same, t) for t in tries)


PAIRS = st.lists(
    st.tuples(st.one_of(st.sampled_from([0.1, 0.2, 0.3, float("nan")]), st.floats(0, 2)), st.booleans()),
    min_size=1,
    max_size=40,
)


@given(PAIRS)
def test_best_threshold_is_best(pairs: list[tuple[float, bool]]) -> None:
    distances, same = np.array([d for d, _ in pairs]), np.array([s for _, s in pairs])
    if np.isnan(distances).all():
        with pytest.raises(UsageError, match="no pair"):
            best_threshold(distances, same)
        return
    threshold = best_threshold(distances, same)
    assert slow_accuracy(distances, same, threshold) == slow_best_accuracy(distances, same)
    assert accuracy_at(distances, same, threshold) == slow_accuracy(distances, same, threshold)


def test_threshold_between_neighboring_floats() -> None:
    low = 0.5
    distances, same = np.array([low, np.nextafter(low, 1)]), np.array([True, False])
    assert accuracy_at(distances, same, best_threshold(distances, same)) == 1.0


def test_equally_good_thresholds() -> None:
    distances, same = np.array([0.1, 0.2, 0.3, 0.4]), np.array([True, False, True, False])
    assert best_thresholds(distances, same) == pytest.approx([0.15, 0.35])
    assert best_threshold(distances, same) == pytest.approx(0.35)


def test_folds_say_what_other_choices_would_have_given() -> None:
    one = np.array([0.1, 0.2, 0.3, 0.4]), np.array([True, False, True, False])
    other = np.array([0.2, 0.22]), np.array([True, True])
    found = folded_accuracy(
        *(np.concatenate(both) for both in zip(one, other, strict=True)), np.array([0] * 4 + [1] * 2)
    )
    # The second fold is all wrong at 0.15 and all right at 0.35.
    assert found.folds[1] == 1.0
    assert found.highest - found.lowest == pytest.approx(0.5)


def test_threshold_lies_in_the_middle_of_the_gap() -> None:
    distances, same = np.array([0.2, 0.8, 0.4, 1.0]), np.array([True, False, True, False])
    assert best_threshold(distances, same) == pytest.approx(0.6)


@pytest.mark.parametrize(("same", "accuracy"), [(True, 1.0), (False, 1.0)])
def test_threshold_beyond_the_ends(same: bool, accuracy: float) -> None:
    distances, labels = np.array([0.5, 0.5, 0.7]), np.full(3, same)
    assert accuracy_at(distances, labels, best_threshold(distances, labels)) == accuracy


def test_folds_use_each_others_thresholds() -> None:
    rng = np.random.default_rng(0)
    same = rng.random(300) < 0.5
    distances = np.where(same, 0.5, 0.8) + rng.normal(0, 0.15, 300)
    distances[rng.random(300) < 0.05] = np.nan
    fold = rng.integers(0, 3, 300)
    found = folded_accuracy(distances, same, fold)
    for number in range(3):
        threshold = best_threshold(distances[fold != number], same[fold != number])
        mine = fold == number
        assert found.thresholds[number] == threshold
        assert found.folds[number] == slow_accuracy(distances[mine].tolist(), same[mine].tolist(), threshold)
    assert found.accuracy == pytest.approx(sum(found.folds) / 3)
    assert found.lowest <= found.accuracy <= found.highest
    assert 0.7 < found.accuracy < 0.95


def test_missing_faces_are_wrong_whatever_the_pair() -> None:
    distances = np.array([np.nan, np.nan, 0.1, 0.9])
    assert accuracy_at(distances, np.array([True, False, True, False]), 0.5) == 0.5


def test_pair_distances() -> None:
    vectors = np.array([[0, 0], [3, 4], [0, 1]], np.float32)
    found = pair_distances(vectors, np.array([0, 1, -1]), np.array([1, 2, 0]))
    np.testing.assert_allclose(found, [5, np.sqrt(18), np.nan])


def test_nearest_to_center() -> None:
    boxes = np.array(
        [[0, 0, 10, 10], [40, 40, 60, 60], [41, 41, 61, 61], [10, 0, 20, 10], [0, 0, 4, 4]], np.float32
    )
    image = np.array([0, 0, 0, 2, 2])
    sizes = np.array([[100, 100], [50, 50], [20, 20]], np.float64)
    assert nearest_to_center(boxes, image, sizes).tolist() == [1, -1, 3]


def test_nearest_to_center_of_equals_is_the_first() -> None:
    boxes = np.array([[0, 0, 10, 10], [10, 10, 20, 20]], np.float32)
    assert nearest_to_center(boxes, np.zeros(2, np.int64), np.array([[20.0, 20.0]])).tolist() == [0]


def slow_iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union else 0.0


def test_iou() -> None:
    rng = np.random.default_rng(1)
    corners = rng.integers(0, 20, (12, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(float)
    found = iou(boxes[:5], boxes[5:])
    assert found.shape == (5, 7)
    for i in range(5):
        for j in range(7):
            assert found[i, j] == pytest.approx(slow_iou(boxes[i], boxes[5 + j]))


@pytest.mark.parametrize(
    ("ours", "theirs", "match"),
    [
        ([[0, 0, 9, 9], [50, 50, 60, 60]], [[51, 50, 60, 59], [0, 0, 9, 9]], [1, 0]),
        ([[0, 0, 9, 9]], [[2, 0, 9, 9]], [-1]),  # two px off
        ([[0, 0, 9, 9]], [[0, 0, 9, 9], [1, 0, 9, 9]], [0, -1]),  # one of ours is one match only
        ([], [[0, 0, 9, 9]], [-1]),
        ([[0, 0, 9, 9]], [], []),
    ],
)
def test_match_boxes(ours: list[list[int]], theirs: list[list[int]], match: list[int]) -> None:
    found = match_boxes(np.array(ours).reshape(-1, 4), np.array(theirs).reshape(-1, 4), 1.0)
    assert found.tolist() == match


def test_first_other() -> None:
    neighbors = np.array([[7, 3, 5], [5, 7, 9], [9, 8, -1], [9, 8, 1]])
    found, undecided = first_other(neighbors, np.array([7, 5, 9, 9]), np.array([5, 7, 3]))
    assert found.tolist() == [3, 7, -1, -1]
    assert undecided.tolist() == [False, False, False, True]


def test_quantiles() -> None:
    assert quantiles([]) == {}
    assert quantiles([3.0, 1.0, 2.0])["median"] == 2.0
    assert quantiles([3.0, 1.0, 2.0])["max"] == 3.0


def test_tar_at_far_is_what_counting_pair_by_pair_gives() -> None:
    rng = np.random.default_rng(5)
    centers = rng.normal(size=(8, 16))
    person = np.repeat(np.arange(8), 6)
    vectors = (centers[person] + rng.normal(size=(48, 16))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = rng.permutation(48)
    rows = np.where(np.arange(48) % 9 == 0, -1, order)
    person = person[order]
    genuine, others = [], []
    for i in range(48):
        for j in range(i + 1, 48):
            known = rows[i] >= 0 and rows[j] >= 0
            cosine = float(vectors[rows[i]] @ vectors[rows[j]]) if known else -2.0
            if person[i] == person[j]:
                genuine.append(cosine)
            elif known:
                others.append(cosine)
    for far, found in zip(
        (0.1, 0.01, 0.0001), tar_at_far(vectors, rows, person, (0.1, 0.01, 0.0001)), strict=True
    ):
        allowed = int(far * len(others))
        if not allowed:
            assert found is None
            continue
        best = max(
            sum(cosine > threshold for cosine in genuine)
            for threshold in others
            if sum(cosine > threshold for cosine in others) <= allowed
        )
        assert found == pytest.approx(best / len(genuine), abs=0.01)
    assert tar_at_far(vectors, np.full(48, -1), person, (0.1,)) == [None]
