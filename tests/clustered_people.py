"""Simulated faces of people with a calibration fitted on other people, and their exact lists, for tests of clusters."""

from __future__ import annotations

import functools

import numpy as np

from facescale.curate.calibration import Calibration
from facescale.curate.calibration_fit import fit
from facescale.curate.cluster import ClusterRules, Clusters, Cuts, Faces, cluster_faces, resolve
from facescale.curate.graph import Links

DIM = 64
SPREAD = 0.9  # of a person's faces, times the length of the person's own direction
RULES = ClusterRules()


def unit_of(vectors: np.ndarray) -> np.ndarray:
    """float32, rows of unit length."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


def simulate(
    sizes: list[int] | np.ndarray, seed: int, spread: float = SPREAD
) -> tuple[np.ndarray, np.ndarray]:
    """Faces of people, one after the other, of as many faces each: (unit float32 [N, D], identity int64 [N])."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(len(sizes)), sizes)
    centers = unit_of(rng.standard_normal((len(sizes), DIM)))
    noise = spread * rng.standard_normal((len(who), DIM)) / np.sqrt(DIM)
    return unit_of(centers[who] + noise), who


@functools.cache
def calibration() -> Calibration:
    """Of 300 simulated people who are in no test."""
    unit, who = simulate([8] * 300, seed=10_000)
    return fit(unit, who, np.arange(len(who)) << 8, embedder="simulated", re_encode=0.98)


def lists_of(
    unit: np.ndarray, k: int, floor: float, listed: np.ndarray | None = None
) -> tuple[Links, np.ndarray]:
    """The k most similar of every face, exactly: (entries above the floor, similarity of the first of each list).

    Args:
        unit: float32 [N, D].
        k: of each list.
        floor: cosine.
        listed: bool [N], who may be in a list; None for all.
    """
    N = len(unit)
    similarity = (unit.astype(np.float64) @ unit.T.astype(np.float64)).astype(np.float32)
    np.fill_diagonal(similarity, -np.inf)
    if listed is not None:
        similarity[:, ~listed] = -np.inf
    order = np.lexsort((np.broadcast_to(np.arange(N), (N, N)), -similarity), axis=1)[:, : min(k, N)]
    best = np.take_along_axis(similarity, order, axis=1)
    kept = best >= np.float32(floor)
    starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    nearest = (
        np.where(np.isfinite(best[:, 0]), best[:, 0], -1).astype(np.float32) if N else np.zeros(0, np.float32)
    )
    return Links(starts, order[kept].astype(np.int32), best[kept]), nearest


def cluster(
    unit: np.ndarray,
    *,
    image: np.ndarray | None = None,
    usable: np.ndarray | None = None,
    k: int = 50,
    max_size: int = 100_000,
    face_id: np.ndarray | None = None,
    cuts: Cuts | None = None,
) -> Clusters:
    """Cluster faces as the job does; each on an image of its own unless told otherwise."""
    N = len(unit)
    image = np.arange(N) << 8 if image is None else image
    usable = np.ones(N, bool) if usable is None else usable
    face_id = np.arange(N) * 256 + 1 if face_id is None else face_id
    cuts = cuts or resolve(RULES, calibration(), int(usable.sum()))
    links, nearest = lists_of(unit, k, cuts.floor, usable)
    faces = Faces(face_id, image, unit, usable, nearest)
    return cluster_faces(faces, links, calibration(), cuts, max_size=max_size)


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    """Sets of rows with one label; those below 0 are left out."""
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels[labels >= 0])}
