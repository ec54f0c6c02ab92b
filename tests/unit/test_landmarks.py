"""The regression trees against the plainest possible reading of dlib's algorithm, on a small random ensemble."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dat_stream import matrix, packed, real

from facescale.errors import CorruptError, DataError
from facescale.models.dlib_dat import DatReader
from facescale.models.registry import card
from facescale.vision import landmarks
from facescale.vision.align import box_from_dlib, points_from_dlib

NUM_CASCADES, NUM_TREES, NUM_PIXELS = 3, 20, 40


@pytest.fixture(scope="module")
def ensemble() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "mean": rng.uniform(0.2, 0.8, 10).astype(np.float32),
        "splits": rng.integers(0, NUM_PIXELS, (NUM_CASCADES, NUM_TREES, 15, 2)),
        "thresholds": rng.normal(0, 30, (NUM_CASCADES, NUM_TREES, 15)).astype(np.float32),
        "leaves": rng.normal(0, 0.01, (NUM_CASCADES, NUM_TREES, 16, 10)).astype(np.float32),
        "anchors": rng.integers(0, 5, (NUM_CASCADES, NUM_PIXELS)),
        "deltas": rng.normal(0, 0.3, (NUM_CASCADES, NUM_PIXELS, 2)).astype(np.float32),
    }


def _stream(e: dict[str, Any]) -> bytes:
    data = [packed(1), matrix(e["mean"][:, None]), packed(NUM_CASCADES)]
    for splits, thresholds, leaves in zip(e["splits"], e["thresholds"], e["leaves"], strict=True):
        data.append(packed(NUM_TREES))
        for tree in range(NUM_TREES):
            data.append(packed(15))
            for (first, second), threshold in zip(splits[tree], thresholds[tree], strict=True):
                data += [packed(int(first)), packed(int(second)), real(float(threshold))]
            data.append(packed(16))
            data += [matrix(leaf[:, None]) for leaf in leaves[tree]]
    data.append(packed(NUM_CASCADES))
    for anchors in e["anchors"]:
        data += [packed(NUM_PIXELS), *(packed(int(i)) for i in anchors)]
    data.append(packed(NUM_CASCADES))
    for deltas in e["deltas"]:
        data += [packed(NUM_PIXELS), *(real(float(v)) for v in deltas.ravel())]
    return b"".join(data)


def _plain(e: dict[str, Any], image: np.ndarray, rect: np.ndarray) -> np.ndarray:
    """One face, one tree, one split at a time; dlib's convention."""
    height, width = image.shape[:2]
    mean = e["mean"].astype(np.float64).reshape(5, 2)
    shape = e["mean"].copy()
    for cascade in range(NUM_CASCADES):
        current = shape.astype(np.float64).reshape(5, 2)
        a, b = mean - mean.mean(0), current - current.mean(0)
        scale = (a * b).sum() / (a**2).sum()
        skew = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / (a**2).sum()
        turn = np.array([[scale, -skew], [skew, scale]]).astype(np.float32)
        values = []
        for anchor, delta in zip(e["anchors"][cascade], e["deltas"][cascade], strict=True):
            x = turn[0, 0] * delta[0] + turn[0, 1] * delta[1] + shape[2 * anchor]
            y = turn[1, 0] * delta[0] + turn[1, 1] * delta[1] + shape[2 * anchor + 1]
            column = int(np.floor(rect[0] + np.float64(x) * (rect[2] - rect[0]) + 0.5))
            row = int(np.floor(rect[1] + np.float64(y) * (rect[3] - rect[1]) + 0.5))
            inside = 0 <= column < width and 0 <= row < height
            values.append(int(image[row, column].sum(dtype=int)) // 3 if inside else 0)
        for tree in range(NUM_TREES):
            node = 0
            while node < 15:
                first, second = e["splits"][cascade, tree, node]
                exceeds = values[first] - values[second] > e["thresholds"][cascade, tree, node]
                node = 2 * node + (1 if exceeds else 2)
            shape = shape + e["leaves"][cascade, tree, node - 15]
    corner, extent = rect[:2], rect[2:] - rect[:2]
    return np.floor(corner + shape.reshape(5, 2).astype(np.float64) * extent + 0.5)


@pytest.fixture(scope="module")
def model(ensemble: dict[str, Any]) -> landmarks.DlibLandmarker:
    mean, cascades = landmarks.read_cascades(DatReader(_stream(ensemble), "small.dat"))
    return landmarks.DlibLandmarker(card("dlib_5pt"), mean, cascades)


def test_reads_what_was_written(ensemble: dict[str, Any]) -> None:
    mean, cascades = landmarks.read_cascades(DatReader(_stream(ensemble)))
    np.testing.assert_array_equal(mean, ensemble["mean"])
    for i, cascade in enumerate(cascades):
        np.testing.assert_array_equal(cascade.anchors, ensemble["anchors"][i])
        np.testing.assert_array_equal(cascade.deltas, ensemble["deltas"][i])
        np.testing.assert_array_equal(cascade.first, ensemble["splits"][i, :, :, 0].T)
        np.testing.assert_array_equal(cascade.second, ensemble["splits"][i, :, :, 1].T)
        np.testing.assert_array_equal(cascade.leaves, ensemble["leaves"][i].reshape(-1, 10))


def test_equals_the_plain_algorithm(ensemble: dict[str, Any], model: landmarks.DlibLandmarker) -> None:
    rng = np.random.default_rng(1)
    images = [
        rng.integers(0, 256, (*size, 3), np.uint8) for size in ((60, 80), (200, 150), (7, 9), (900, 800))
    ]
    rects = [
        np.array([(10, 12, 50, 49), (-30, -20, 30, 41), (70, 50, 95, 80)]),
        np.zeros((0, 4)),
        np.array([(0, 0, 9, 9), (-500, 300, -400, 410)]),  # a tiny image, and a face wholly outside of it
        np.array([(50, 60, 720, 770), (700, 800, 780, 880)]),  # too large for a patch
    ]
    found = model.landmarks(images, [box_from_dlib(r) for r in rects])
    assert [len(points) for points in found] == [3, 0, 2, 2]
    for image, boxes, points in zip(images, rects, found, strict=True):
        assert points.dtype == np.float32 and points.shape[1:] == (5, 2)
        for rect, face in zip(boxes, points, strict=True):
            np.testing.assert_array_equal(face, points_from_dlib(_plain(ensemble, image, rect.astype(float))))


def test_a_face_does_not_depend_on_the_batch(model: landmarks.DlibLandmarker) -> None:
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (100, 100, 3), np.uint8) for _ in range(70)]
    boxes = [np.concatenate([rng.uniform(0, 40, 2), rng.uniform(60, 100, 2)])[None] for _ in images]
    together = np.concatenate(model.landmarks(images, boxes))
    alone = np.concatenate([model.landmarks([i], [b])[0] for i, b in zip(images, boxes, strict=True)])
    np.testing.assert_array_equal(together, alone)


def test_no_images_and_no_faces(model: landmarks.DlibLandmarker) -> None:
    assert model.landmarks([], []) == []
    image = np.zeros((5, 5, 3), np.uint8)
    assert model.landmarks([image], [np.zeros((0, 4), np.float32)])[0].shape == (0, 5, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e12])
def test_a_box_that_is_none_is_refused(model: landmarks.DlibLandmarker, bad: float) -> None:
    image = np.zeros((50, 50, 3), np.uint8)
    with pytest.raises(DataError, match="box of face 1 of 2"):
        model.landmarks([image], [np.array([(1, 2, 30, 40), (1, 2, bad, 40)])])


@pytest.mark.parametrize("num_faces", [1, 3, 64])
def test_terms_are_added_in_order(num_faces: int) -> None:
    terms = np.random.default_rng(3).normal(size=(501, num_faces, 10)).astype(np.float32)
    expected = terms[0]
    for term in terms[1:]:
        expected = expected + term
    np.testing.assert_array_equal(landmarks.sum_in_order(terms), expected)
    # The data tells the orders apart.
    assert (terms.transpose(1, 2, 0).copy().sum(axis=2) != expected).any()


def test_a_damaged_file_is_refused(ensemble: dict[str, Any]) -> None:
    data = _stream(ensemble)
    for damaged, what in (
        (data[:-2], "early"),
        (data + packed(1), "1 integers too many"),
        (packed(2) + data[2:], "version is 2"),
        (packed(1) + packed(-10) + packed(0), "mean shape of 10 x 0"),
    ):
        with pytest.raises(CorruptError, match=what):
            landmarks.read_cascades(DatReader(damaged, "small.dat"))
    wrong = {**ensemble, "anchors": ensemble["anchors"] + 1}
    with pytest.raises(CorruptError, match="outside its table"):
        landmarks.read_cascades(DatReader(_stream(wrong), "small.dat"))
    wrong = {**ensemble, "splits": ensemble["splits"] + 1}
    with pytest.raises(CorruptError, match="outside its table"):
        landmarks.read_cascades(DatReader(_stream(wrong), "small.dat"))
