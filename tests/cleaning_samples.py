"""Simulated embeddings with known people, and a calibration of them, for the tests of label cleaning."""

from __future__ import annotations

from functools import cache

import numpy as np

from facescale.curate.calibration import Calibration
from facescale.curate.calibration_fit import fit
from facescale.curate.claims import Claims, Faces
from facescale.lake.ids import make_face_id, make_image_id

DIM = 64
NONE = np.empty(0, np.int64)


def simulate(
    num_people: int, photos: int, *, seed: int, spread: float = 0.7, alike: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around a random center for each person, in random order.

    Args:
        num_people: how many.
        photos: of each.
        seed: of everything.
        spread: length of what a photograph adds to a center of length 1.
        alike: 0 .. 1, how much of every second person's center is the one's before.

    Returns:
        (float32 [N, DIM], int64 [N] who it is).
    """
    rng = np.random.default_rng(seed)
    centers = unit(rng.standard_normal((num_people, DIM)))
    second = np.arange(1, num_people, 2)
    centers[second] = unit(alike * centers[second - 1] + (1 - alike) * centers[second])
    person = rng.permutation(np.repeat(np.arange(num_people), photos))
    noise = rng.standard_normal((len(person), DIM)) / np.sqrt(DIM)
    return unit(centers[person] + spread * noise).astype(np.float32), person


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@cache
def calibration(embedder: str = "simulated") -> Calibration:
    """Fitted on other simulated people than any test has."""
    vectors, person = simulate(300, 6, seed=12345, alike=0.4)
    return fit(vectors, person, np.arange(len(person)), embedder=embedder, re_encode=0.98)


def faces_of_images(vectors: np.ndarray, per_image: np.ndarray | None = None, **columns: np.ndarray) -> Faces:
    """Faces in the order of the vectors; `per_image` of each image, one where it is None."""
    counts = np.ones(len(vectors), np.int64) if per_image is None else per_image
    image = np.repeat(np.arange(len(counts)), counts)
    ordinal = np.arange(len(image)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    return Faces(
        make_face_id(make_image_id(0, image), ordinal),
        vectors.astype(np.float32),
        columns.get("prominence", np.ones(len(vectors), np.float32)),
        columns.get("good", np.ones(len(vectors), bool)),
    )


def claims_of_images(label: np.ndarray, copies: np.ndarray = NONE, of: np.ndarray = NONE) -> Claims:
    """One claim for each image, in order; copies and what they are copies of are image numbers."""
    images = make_image_id(0, np.arange(len(label)))
    num = int(label.max(initial=-1)) + 1
    return Claims(images, label.astype(np.int64), num, make_image_id(0, copies), make_image_id(0, of))
