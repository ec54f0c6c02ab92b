"""Simulated unit embeddings for the benchmark of neighbors: sizes and a seed in, vectors and who is who out.

Not a model of faces: many people around random centers, with what makes searching for neighbors hard. Directions
differ in variance (the similarity of strangers has the deviation 0.07 at D = 512, as in usual embedders, and not
0.044), people differ in spread, one in twenty resembles another, and sizes follow a power law.

Shape legend: N faces, D dimension, P people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_MEAN_FACES = 12
_MAX_WEIGHT = 30
_SPREAD = 0.75  # of a person; two faces of one have similarity 1 / (1 + spread²), 0.64
_SPREAD_SIGMA = 0.2
_LOOK_ALIKES = 0.05
_LIKENESS = 0.6
_FLATNESS = 20
_BLOCK = 65_536


@dataclass(frozen=True, eq=False)
class Crowd:
    """Who is on which face.

    Attributes:
        person: int64 [N].
        centers: float32 [P, D], unit vectors.
        spread: float32 [P].
        seed: of the faces.
    """

    person: NDArray[np.int64]
    centers: Floats
    spread: Floats
    seed: int

    def blocks(self) -> Iterator[Floats]:
        """The faces in order, float32 [n, D] unit vectors, a block at a time; the same on every call."""
        dim = self.centers.shape[1]
        for number, start in enumerate(range(0, len(self.person), _BLOCK)):
            rng = np.random.default_rng([self.seed, number])
            who = self.person[start : start + _BLOCK]
            faces = directions(rng, len(who), dim)
            faces *= self.spread[who][:, None]
            faces += self.centers[who]
            faces /= np.linalg.norm(faces, axis=1, keepdims=True)
            yield faces


def make_crowd(faces: int, dim: int, seed: int) -> Crowd:
    """Draw people and sizes.

    Args:
        faces: N.
        dim: D.
        seed: any number from 0 up.
    """
    rng = np.random.default_rng(seed)
    people = max(2, faces // _MEAN_FACES)
    weight = np.minimum(1 + rng.pareto(2.0, people), _MAX_WEIGHT)
    person = rng.choice(people, faces, p=weight / weight.sum())
    centers = directions(rng, people, dim)
    alike = np.flatnonzero(rng.random(people) < _LOOK_ALIKES)
    model = rng.integers(0, people, len(alike))
    centers[alike] = _LIKENESS * centers[model] + np.sqrt(1 - _LIKENESS**2) * centers[alike]
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    spread = (_SPREAD * np.exp(_SPREAD_SIGMA * rng.standard_normal(people))).astype(np.float32)
    return Crowd(person, centers, spread, seed + 1)


def directions(rng: np.random.Generator, count: int, dim: int) -> Floats:
    """Random unit vectors, float32 [count, D]; the variance of the i-th direction falls as 1 / (i + 20)."""
    vectors = rng.standard_normal((count, dim), dtype=np.float32)
    vectors *= np.sqrt(1 / (np.arange(dim, dtype=np.float32) + _FLATNESS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
