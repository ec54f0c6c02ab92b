"""Detectors whose weights are in the test data, on photographs: who is found, where the eyes are, who is not there."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

import facescale
from facescale.bench.metrics import iou
from facescale.lake.lake import Lake
from facescale.vision.registry import load_detector, load_landmarker

if TYPE_CHECKING:
    from pathlib import Path

    from facescale.vision.protocols import Detections

DETECTORS = [
    "yunet_s",
    "ultraface_rfb_320",
    "ultraface_rfb_640",
    "retinaface_mnet025",
    "mtcnn",
    "blazeface",
    "blazeface_back",
]
EVERY = 100  # of LFW's: 32 photographs
SHARED = 3  # both eyes and the tip of the nose: what arcface5 and blazeface6 have in common


def read(folder: Path, kind: str, every: int, within: str = "") -> list[np.ndarray]:
    with (folder / "labels.csv").open(newline="") as stream:
        rows = [
            row for row in csv.DictReader(stream) if row["kind"] == kind and row["path"].startswith(within)
        ]
    files = [folder / row["path"] for row in rows][::every]
    return [np.ascontiguousarray(cv2.imread(str(file))[:, :, ::-1]) for file in files]


@pytest.fixture(scope="module")
def people(test_data: Path) -> list[np.ndarray]:
    return read(test_data, "single", EVERY, "lfw")


@pytest.fixture(scope="module")
def nobody(test_data: Path) -> list[np.ndarray]:
    return read(test_data, "noface", 4)


@pytest.fixture(scope="module")
def reference(people: list[np.ndarray]) -> list[Detections]:
    return load_detector("yunet_n").detect(people)


def distances(
    found: list[np.ndarray], boxes: list[np.ndarray], reference: list[Detections], num: int
) -> np.ndarray:
    """Mean distance of the first landmarks to the reference's, in its inter-eye distances, of faces that both have."""
    away = []
    for points, own, other in zip(found, boxes, reference, strict=True):
        shared = iou(own, other.boxes)
        assert other.landmarks is not None
        for ours, theirs in np.argwhere(shared >= 0.4):
            eyes = np.linalg.norm(other.landmarks[theirs, 1] - other.landmarks[theirs, 0])
            gap = np.linalg.norm(points[ours, :num] - other.landmarks[theirs, :num], axis=1)
            away.append(gap.mean() / eyes)
    return np.array(away)


@pytest.mark.parametrize("name", DETECTORS)
def test_people_are_found_and_their_eyes_are_where_another_detector_sees_them(
    name: str, people: list[np.ndarray], nobody: list[np.ndarray], reference: list[Detections]
) -> None:
    detector = load_detector(name)
    found = detector.detect(people)
    overlap = [iou(one.boxes, other.boxes[:1]) for one, other in zip(found, reference, strict=True)]
    assert np.mean([len(shared) > 0 and shared.max() > 0.4 for shared in overlap]) >= 0.95
    assert np.mean([len(one) for one in found]) <= 1.25  # LFW has a bystander here and there
    assert np.mean([len(one) == 0 for one in detector.detect(nobody)]) >= 0.75
    if detector.card.landmark_scheme is None:
        return
    marks = [one.landmarks for one in found if one.landmarks is not None]
    points = np.concatenate(marks)
    assert len(marks) == len(found) and (points[:, 0, 0] < points[:, 1, 0]).all()
    assert (points[:, :2, 1].mean(axis=1) < points[:, 3, 1]).all()  # the mouth is below
    away = distances(marks, [one.boxes for one in found], reference, SHARED)
    assert len(away) >= 0.95 * len(people) and np.median(away) < 0.1


@pytest.mark.parametrize("detector", ["dlib_mmod", "ultraface_rfb_320"])
def test_landmarker_makes_do_with_the_boxes_of_others(
    detector: str, people: list[np.ndarray], reference: list[Detections]
) -> None:
    some, other = people[::4], reference[::4]
    boxes = [one.boxes for one in load_detector(detector).detect(some)]
    points = load_landmarker("mtcnn_onet").landmarks(some, boxes)
    away = distances(points, boxes, other, 5)
    assert len(away) >= len(some) and np.median(away) < 0.1 and np.quantile(away, 0.9) < 0.25


def test_landmarks_hardly_depend_on_the_box(people: list[np.ndarray], reference: list[Detections]) -> None:
    landmarker = load_landmarker("mtcnn_onet")
    boxes = [one.boxes[:1] for one in reference]
    side = np.array([np.ptp(box.reshape(2, 2), axis=0).mean() for box in boxes])
    plain = np.concatenate(landmarker.landmarks(people, boxes))
    for shift in ((0.1, 0, 0.1, 0), (0, -0.1, 0, -0.1), (-0.1, -0.1, 0.1, 0.1)):
        moved = [box + np.float32(shift) * length for box, length in zip(boxes, side, strict=True)]
        again = np.concatenate(landmarker.landmarks(people, moved))
        assert np.median(np.linalg.norm(again - plain, axis=2).mean(axis=1) / side) < 0.03


def test_boxes_of_one_model_and_landmarks_of_another_through_the_main_job(
    test_data: Path, shared_root: Path, tmp_path: Path
) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for file in sorted((test_data / "lfw").rglob("*.jpg"))[:6]:
        (source / file.name).symlink_to(file)
    models = {
        "detector": "ultraface_rfb_320",
        "embedder": "mobilefacenet",
        "weights_dir": shared_root / "models",
    }
    where = tmp_path / "lake"
    facescale.extract(source, where, landmarker="mtcnn_onet", workers=0, threads=1, **models)
    lake = Lake.open(str(where))
    version = lake.current("faces")
    assert version is not None
    made = (lake.describe_version(version) or {})["settings"]
    assert (made["detector"], made["landmarker"], made["landmark_scheme"]) == (
        "ultraface_rfb_320",
        "mtcnn_onet",
        "arcface5",
    )
    assert len(facescale.Lake.open(where).embeddings("mobilefacenet").vectors) >= 6


def test_a_cascades_files_are_all_part_of_the_version(
    test_data: Path, shared_root: Path, tmp_path: Path
) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    file = sorted((test_data / "lfw").rglob("*.jpg"))[0]
    (source / file.name).symlink_to(file)
    where = tmp_path / "lake"
    models = {"detector": "mtcnn", "embedder": "mobilefacenet", "weights_dir": shared_root / "models"}
    facescale.extract(source, where, workers=0, threads=1, **models)
    lake = Lake.open(str(where))
    version = lake.current("images")
    assert version is not None
    made = (lake.describe_version(version) or {})["settings"]
    assert set(made["detector_parts_sha256"]) == {"pnet", "rnet"}
    assert len({made["detector_sha256"], *made["detector_parts_sha256"].values()}) == 3
