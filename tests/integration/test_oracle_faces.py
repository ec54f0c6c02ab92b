"""Landmarks, chips and descriptors against dlib itself (package dlib-bin).

Faces are boxes around where a face is known to be, shifted and stretched, so that no detector is needed: in a
public-domain portrait always, in the real photographs where they are on this machine. `facescale bench oracle`
compares detections too, over everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from PIL import Image

from facescale.errors import FacescaleError
from facescale.vision import crops
from facescale.vision.align import box_from_dlib, extract_chips, points_from_dlib, points_to_dlib
from facescale.vision.registry import load_embedder, load_landmarker

if TYPE_CHECKING:
    from pathlib import Path

    from facescale.vision.protocols import Embedder, Landmarker

pytest.importorskip("dlib", reason="needs the oracle, package dlib-bin")
import oracle


@dataclass
class Faces:
    """Images and, for each, boxes in dlib's convention, int [n, 4]."""

    images: list[np.ndarray]
    rects: list[np.ndarray]


@pytest.fixture(scope="module")
def landmarker() -> Landmarker:
    return _loaded(load_landmarker, "dlib_5pt")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return _loaded(load_embedder, "dlib_resnet")


def _loaded(load: Any, name: str) -> Any:
    try:
        return load(name)
    except FacescaleError as error:
        pytest.skip(f"the default models are not installed: {error}")


@pytest.fixture(scope="module", params=["portrait", "photographs"])
def faces(request: pytest.FixtureRequest) -> Faces:
    """60 faces of one portrait, or one each of 150 photographs."""
    rng = np.random.default_rng(6)
    if request.param == "portrait":
        data = pytest.importorskip("skimage.data", reason="needs scikit-image for its portrait")
        images = [np.ascontiguousarray(data.astronaut())]
        face, count = np.array([170, 65, 280, 175]), 60
    else:
        folder: Path = request.getfixturevalue("test_data") / "lfw"
        paths = sorted(folder.glob("*.jpg"))[::20][:150]
        images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
        face, count = np.array([75, 75, 175, 175]), 1
    rects = []
    for _ in images:
        shift = rng.integers(-12, 13, (count, 1)) * [1, 0, 1, 0] + rng.integers(-12, 13, (count, 1)) * [
            0,
            1,
            0,
            1,
        ]
        rects.append(face + shift + rng.integers(-8, 9, (count, 1)) * [-1, -1, 1, 1])
    return Faces(images, rects)


@pytest.fixture(scope="module")
def landmarks(landmarker: Landmarker, faces: Faces) -> list[np.ndarray]:
    return landmarker.landmarks(faces.images, [box_from_dlib(rects) for rects in faces.rects])


@pytest.fixture(scope="module")
def shapes(faces: Faces) -> list[tuple[np.ndarray, Any]]:
    """Image and dlib's own landmarks of every 5th face."""
    pairs = [(image, rect) for image, rects in zip(faces.images, faces.rects, strict=True) for rect in rects]
    return [(image, oracle.dlib_shape(image, tuple(rect.tolist()))) for image, rect in pairs[::5]]


def _points(shape: Any) -> np.ndarray:
    return points_from_dlib(np.array([[(p.x, p.y) for p in shape.parts()]], np.float64))


def _shape(points: np.ndarray) -> Any:
    """dlib's full_object_detection of whole-numbered points [5, 2], dlib's convention."""
    import dlib

    corner, extent = points.min(axis=0), np.ptp(points, axis=0)
    rect = dlib.rectangle(*(int(v) for v in (*corner, *(corner + extent))))
    return dlib.full_object_detection(rect, dlib.points([dlib.point(int(x), int(y)) for x, y in points]))


def test_landmarks_are_dlib_s(faces: Faces, landmarks: list[np.ndarray]) -> None:
    errors = [
        np.abs(points_to_dlib(points) - oracle.dlib_landmarks(image, tuple(rect.tolist()))).max()
        for image, rects, of_image in zip(faces.images, faces.rects, landmarks, strict=True)
        for rect, points in zip(rects, of_image, strict=True)
    ]
    assert len(errors) in (60, 150)
    assert np.mean(np.array(errors) == 0) >= 0.99
    assert max(errors) <= 1


def test_landmarks_of_boxes_off_the_image_and_of_any_size(faces: Faces, landmarker: Landmarker) -> None:
    rng = np.random.default_rng(7)
    image = faces.images[0]
    height, width = image.shape[:2]
    corner = rng.integers((-width // 2, -height // 2), (width, height), (40, 2))
    rects = np.concatenate([corner, corner + rng.integers(3, 500, (40, 1))], axis=1)
    (found,) = landmarker.landmarks([image], [box_from_dlib(rects)])
    expected = [oracle.dlib_landmarks(image, tuple(rect.tolist())) for rect in rects]
    np.testing.assert_array_equal(points_to_dlib(found), expected)


def test_chips_are_dlib_s(shapes: list[tuple[np.ndarray, Any]]) -> None:
    images, points = [image for image, _ in shapes], [_points(shape) for _, shape in shapes]
    chips = extract_chips(images, points, "dlib_150").astype(int)
    for chip, (image, shape) in zip(chips, shapes, strict=True):
        _assert_same_chip(chip, oracle.dlib_chip(image, shape))


@pytest.mark.parametrize("enlarged", [1.0, 2.7, 5.2, 9.5])
def test_chips_of_large_turned_and_cut_faces_are_dlib_s(faces: Faces, enlarged: float) -> None:
    """Up to three halvings, any turn, faces that the image cuts off, faces of a few pixels."""
    rng = np.random.default_rng(8)
    image = cv2.resize(faces.images[0][:260, :300], None, fx=enlarged, fy=enlarged)
    base = _points(oracle.dlib_shape(faces.images[0], tuple(faces.rects[0][0].tolist())))[0]
    for scale in (1.0, 1.0, 0.5, 0.1):
        turn = enlarged * scale * np.exp(1j * rng.uniform(-np.pi, np.pi))
        moved = (base - base.mean(axis=0)) @ (1, 1j) * turn
        at = rng.uniform((0, 0), (image.shape[1], image.shape[0]))
        points = np.round(np.stack([moved.real, moved.imag], axis=-1) + at)
        (chip,) = extract_chips([image], [points_from_dlib(points)[None]], "dlib_150")
        _assert_same_chip(chip.astype(int), oracle.dlib_chip(image, _shape(points)))


def _assert_same_chip(chip: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for single steps where float32 and dlib's float64 truncate apart."""
    error = np.abs(chip - expected)
    assert error.max() <= 1
    assert (error > 0).mean() < 1e-3
    assert expected.any()


def test_descriptors_of_the_same_chip_are_dlib_s(
    shapes: list[tuple[np.ndarray, Any]], embedder: Embedder
) -> None:
    chips = np.array([oracle.dlib_chip(image, shape) for image, shape in shapes])
    expected = np.array([oracle.dlib_descriptor(chip) for chip in chips])
    assert len(chips) >= 12
    distance = np.linalg.norm(embedder.embed(chips) - expected, axis=1)
    assert distance.max() < 1e-5
    assert np.linalg.norm(expected[0] - expected[-1]) > 0.01


def test_end_to_end_descriptors_are_within_two_thousandths(
    faces: Faces, landmarks: list[np.ndarray], shapes: list[tuple[np.ndarray, Any]], embedder: Embedder
) -> None:
    ours = embedder.embed(extract_chips(faces.images, landmarks, "dlib_150")[::5])
    theirs = np.array([oracle.dlib_descriptor(oracle.dlib_chip(image, shape)) for image, shape in shapes])
    assert np.linalg.norm(ours - theirs, axis=1).max() < 2e-3


def test_stored_crops_give_the_embeddings_of_the_source_pixels(
    faces: Faces, landmarks: list[np.ndarray], embedder: Embedder
) -> None:
    source = embedder.embed(extract_chips(faces.images, landmarks, "dlib_150"))
    cut = [crops.wide_crops(i, p, "dlib5") for i, p in zip(faces.images, landmarks, strict=True)]
    stored = [crops.encode_jpeg(crop) for of_image, _ in cut for crop in of_image]
    matrices = np.concatenate([matrices for _, matrices in cut]).astype(np.float32)
    decoded = [crops.decode_jpeg(data) for data in stored]
    chips = crops.chips_from_crops(decoded, matrices, np.concatenate(landmarks), "dlib_150")
    again = embedder.embed(chips)
    norms = np.linalg.norm(source, axis=1) * np.linalg.norm(again, axis=1)
    cosine = (source * again).sum(axis=1) / norms
    assert np.median(cosine) > 0.999  # 0.995 is promised
    assert np.percentile(cosine, 1) > 0.995
    assert np.mean([len(data) for data in stored]) < 16_000
