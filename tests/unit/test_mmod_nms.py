"""Suppression on whole arrays against the loop that defines it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facescale.vision import nms
from facescale.vision.nms import greedy_nms, overlap_of_hulls


def overlap_of_two(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over bounding box, pixel by pixel."""
    low, high = np.minimum(one[:2], other[:2]), np.maximum(one[2:], other[2:])
    hull = np.zeros((high - low + 1).astype(int), int)
    for box in (one, other):
        left, top = (box[:2] - low).astype(int)
        right, bottom = (box[2:] - low).astype(int)
        hull[left : right + 1, top : bottom + 1] += 1
    return float((hull == 2).sum() / hull.size)


def loop_nms(boxes: np.ndarray, groups: np.ndarray, max_overlap: float) -> list[bool]:
    kept: list[int] = []
    for index, box in enumerate(boxes):
        rivals = [other for other in kept if groups[other] == groups[index]]
        if all(overlap_of_two(box, boxes[other]) <= max_overlap for other in rivals):
            kept.append(index)
    return [index in kept for index in range(len(boxes))]


def some_boxes(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 60, (count, 2))
    return np.concatenate([low, low + rng.integers(0, 40, (count, 2))], 1).astype(np.float64)


def test_overlap_counts_pixels() -> None:
    boxes = some_boxes(25, 0)
    matrix = overlap_of_hulls(torch.from_numpy(boxes), torch.from_numpy(boxes)).numpy()
    expected = [[overlap_of_two(one, other) for other in boxes] for one in boxes]
    np.testing.assert_allclose(matrix, expected, rtol=1e-12)
    np.testing.assert_array_equal(np.diag(matrix), 1)


@pytest.mark.parametrize("chunk", [nms.CHUNK, 16, 1])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_loop(monkeypatch: pytest.MonkeyPatch, chunk: int, seed: int) -> None:
    monkeypatch.setattr(nms, "CHUNK", chunk)
    boxes = some_boxes(90, seed)
    groups = np.random.default_rng(seed + 100).integers(0, 3, 90)
    kept = greedy_nms(torch.from_numpy(boxes), torch.from_numpy(groups), 0.2, overlap_of_hulls)
    expected = loop_nms(boxes, groups, 0.2)
    assert kept.tolist() == expected
    assert 3 < sum(expected) < 87


def test_a_dropped_box_drops_no_other() -> None:
    chain = torch.tensor([[10.0 * i, 0, 10.0 * i + 29, 9] for i in range(6)], dtype=torch.float64)
    kept = greedy_nms(chain, torch.zeros(6, dtype=torch.int64), 0.45, overlap_of_hulls)
    assert kept.tolist() == [True, False, True, False, True, False]


def test_no_boxes() -> None:
    none = torch.zeros(0, 4, dtype=torch.float64)
    assert greedy_nms(none, torch.zeros(0, dtype=torch.int64), 0.3, overlap_of_hulls).tolist() == []
