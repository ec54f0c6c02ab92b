"""Quality on real photographs: faces of low quality are those that are not recognized.

Error-versus-discard curves (ISO/IEC 29794-1): the false-non-match rate at a fixed threshold must fall as the faces of
lowest quality are left out. Identities of fold 1 only; the scorer's numbers were fitted on fold 0.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from quality_samples import blurred, compressed, noisy, resized, smeared, toned, views
from scipy.stats import spearmanr

from facescale.evaluate.split import fold_of
from facescale.vision.align import extract_chips
from facescale.vision.quality import IsoQuality
from facescale.vision.registry import load_detector, load_embedder, load_landmarker

if TYPE_CHECKING:
    from pathlib import Path

PEOPLE, PHOTOS_EACH, FORMS_EACH = 30, 4, 3
SPOILS = {
    "nothing": (lambda image, level: image, (0,)),
    "blur": (blurred, (1, 2, 3, 5)),
    "motion": (smeared, (5, 9, 13)),
    "darkness": (toned, (0.3, 0.15, 0.07, 0.04)),
    "glare": (toned, (1.5, 2, 3)),
    "noise": (noisy, (10, 20, 40, 70)),
    "compression": (compressed, (30, 10, 5)),
    "size": (resized, (0.5, 0.3, 0.2, 0.14)),
}


@dataclass
class Faces:
    """Clean faces, one a photograph, and spoiled forms of them."""

    clean: np.ndarray  # float32 [N, D], unit length
    person: np.ndarray  # [N]
    forms: np.ndarray  # float32 [M, D]
    of: np.ndarray  # int [M], rows of clean
    quality: np.ndarray  # float32 [M]
    kind: np.ndarray  # [M]


@pytest.fixture(scope="module")
def faces(test_data: Path) -> Faces:
    photos: dict[str, list[str]] = {}
    with (test_data / "labels.csv").open() as file:
        for row in csv.DictReader(file):
            if row["kind"] == "single" and row["path"].startswith("lfw/") and fold_of(row["identity"]) == 1:
                photos.setdefault(row["identity"], []).append(row["path"])
    many = sorted(name for name, paths in photos.items() if len(paths) >= PHOTOS_EACH)[:PEOPLE]
    paths = [path for name in many for path in sorted(photos[name])[:PHOTOS_EACH]]
    images = [cv2.cvtColor(cv2.imread(str(test_data / path)), cv2.COLOR_BGR2RGB) for path in paths]
    found = load_detector("dlib_mmod", min_face_px=80).detect(images)
    boxes = [_central(one.boxes, image.shape) for one, image in zip(found, images, strict=True)]
    landmarks = load_landmarker("dlib_5pt").landmarks(images, boxes)
    seen = [row for row, box in enumerate(boxes) if len(box)]
    assert len(seen) > 0.9 * len(images)
    embedder, scorer, rng = load_embedder("dlib_resnet"), IsoQuality(), np.random.default_rng(0)
    chips, quality, of, kind = [], [], [], []
    for at, row in enumerate(seen):
        for name in rng.choice(list(SPOILS), FORMS_EACH, replace=False):
            spoil, levels = SPOILS[name]
            level = float(rng.choice(levels))
            image, points = spoil(images[row], level), landmarks[row] * (level if name == "size" else 1)
            chips.append(extract_chips([image], [points], "dlib_150")[0])
            quality.append(scorer.score(views(image, points[0])).quality[0])
            of.append(at)
            kind.append(name)
    clean = extract_chips([images[row] for row in seen], [landmarks[row] for row in seen], "dlib_150")
    vectors = embedder.embed(np.concatenate([clean, np.stack(chips)]))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    person = np.repeat(many, PHOTOS_EACH)[seen]
    return Faces(
        vectors[: len(seen)], person, vectors[len(seen) :], np.array(of), np.array(quality), np.array(kind)
    )


def _central(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The box nearest the image's center, or none."""
    offset = boxes[:, :2] + boxes[:, 2:] - (shape[1], shape[0])
    return boxes[np.argsort((offset**2).sum(axis=1))[:1]]


def test_errors_fall_as_the_lowest_quality_is_left_out(faces: Faces) -> None:
    similarity = faces.forms @ faces.clean.T
    same = faces.person[faces.of][:, None] == faces.person
    itself = faces.of[:, None] == np.arange(len(faces.clean))
    between = faces.clean @ faces.clean.T
    threshold = np.quantile(between[faces.person[:, None] != faces.person], 0.99)
    rates = []
    for discarded in (0, 0.05, 0.1, 0.2):
        kept = faces.quality >= np.quantile(faces.quality, discarded)
        rates.append((similarity[kept][(same & ~itself)[kept]] < threshold).mean())
    assert (np.diff(rates) < 0).all() and rates[-1] < 0.75 * rates[0], rates


def test_low_quality_is_where_a_face_no_longer_resembles_itself(faces: Faces) -> None:
    itself = (faces.forms * faces.clean[faces.of]).sum(axis=1)
    assert spearmanr(faces.quality, itself).statistic > 0.6
    lowest, highest = (
        faces.quality <= np.quantile(faces.quality, 0.1),
        faces.quality >= np.quantile(faces.quality, 0.5),
    )
    assert itself[lowest].mean() < itself[highest].mean() - 0.03


@pytest.mark.parametrize("kind", [name for name in SPOILS if name != "nothing"])
def test_every_kind_of_spoiling_lowers_the_mean(faces: Faces, kind: str) -> None:
    untouched = faces.quality[faces.kind == "nothing"].mean()
    assert faces.quality[faces.kind == kind].mean() < untouched
