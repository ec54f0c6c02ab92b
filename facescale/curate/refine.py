"""How similar faces are to people: unit vectors and who they are come in, scores against centers go out.

A face that is a member of a center is left out of it (leave-one-out), as a face always looks like a mean that holds
it. Called by curate.ownership and curate.cast.

Shape legend: V faces, D dimension, P people, B block of faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

_BLOCK = 1 << 24
"""Similarities computed at a time (64 MiB)."""


@dataclass(frozen=True, eq=False)
class Centers:
    """Sums of unit vectors, one for each person.

    Attributes:
        sums: float32 [P, D].
        counts: int64 [P], faces in each sum.
        offset: float32 [P], what is added to a similarity with a center of few faces, so that one threshold serves
            all: a mean of two is less similar to everybody than a mean of twenty.
    """

    sums: Floats
    counts: Ints
    offset: Floats


def offset_of(counts: NDArray[np.int64], small_sample: float) -> Floats:
    """What to add to similarities with centers of `counts` faces.

    The length of a mean of n unit vectors falls with n as 1 / n does, towards what a center of very many has.
    Calibrated centers are of four faces and more.

    Args:
        counts: any shape.
        small_sample: what to add for a single face, cosine.
    """
    share = (1.0 / np.maximum(counts, 1) - 0.25) / 0.75
    result: Floats = (small_sample * np.clip(share, 0, None)).astype(np.float32)
    return result


def sum_by(unit: Floats, person: Ints, num_people: int) -> tuple[Floats, Ints]:
    """Sums [P, D] and counts [P] of the faces of each person; -1 is nobody."""
    from scipy.sparse import csr_matrix

    known = np.flatnonzero(person >= 0)
    ones = np.ones(len(known), np.float32)
    membership = csr_matrix((ones, (person[known], known)), (num_people, len(unit)))
    return np.asarray(membership @ unit, np.float32), np.bincount(person[known], minlength=num_people)


def make_centers(unit: Floats, person: Ints, num_people: int, *, small_sample: float) -> Centers:
    """Centers of people from their faces."""
    sums, counts = sum_by(unit, person, num_people)
    return Centers(sums, counts, offset_of(counts, small_sample))


def own_scores(
    unit: Floats, center: Ints, member: NDArray[np.bool_], centers: Centers, *, small_sample: float
) -> Floats:
    """Similarity of each face with one center, without the face itself where it is a member.

    Args:
        unit: float32 [V, D].
        center: int64 [V], which center; -1 for none.
        member: bool [V], whether the face is in that center's sum.
        centers: the centers.
        small_sample: see offset_of.

    Returns:
        float32 [V], offsets added; -inf where nothing is left to compare with.
    """
    at = np.maximum(center, 0)
    rest = centers.sums[at] - unit * member[:, None]
    left = centers.counts[at] - member
    length = np.linalg.norm(rest, axis=1)
    found = (center >= 0) & (left > 0) & (length > 0)
    score = np.full(len(unit), -np.inf, np.float32)
    dots = np.einsum("vd,vd->v", unit, rest)
    score[found] = dots[found] / length[found] + offset_of(left[found], small_sample)
    return score


def best_rivals(
    unit: Floats,
    person: Ints,
    not_this: Ints,
    centers: Centers,
    allowed: NDArray[np.bool_],
    *,
    small_sample: float,
) -> tuple[Ints, Floats]:
    """The center that each face is most similar to, another than that of its label's owner.

    Args:
        unit: float32 [V, D].
        person: int64 [V], whose center holds the face (it is left out of it); -1 for none.
        not_this: int64 [V], the center that does not count; -1 for none.
        centers: the centers.
        allowed: bool [P], which centers count at all.
        small_sample: see offset_of.

    Returns:
        (int64 [V] with -1 where there is none, float32 [V] scores with offsets added, -inf there).
    """
    V = len(unit)
    columns = np.flatnonzero(allowed & (centers.counts > 0))
    best, score = np.full(V, -1), np.full(V, -np.inf, np.float32)
    if not len(columns) or not V:
        return best, score
    place = np.full(len(allowed), -1)
    place[columns] = np.arange(len(columns))
    lengths = np.maximum(np.linalg.norm(centers.sums[columns], axis=1, keepdims=True), 1e-12)
    means = centers.sums[columns] / lengths
    own = own_scores(unit, person, person >= 0, centers, small_sample=small_sample)
    step = max(1, _BLOCK // len(columns))
    for start in range(0, V, step):
        block = np.arange(start, min(start + step, V))
        similarity = unit[block] @ means.T + centers.offset[columns]
        inside = place[np.maximum(person[block], 0)]
        held = np.flatnonzero((person[block] >= 0) & (inside >= 0))
        similarity[held, inside[held]] = own[block[held]]
        barred = place[np.maximum(not_this[block], 0)]
        out = np.flatnonzero((not_this[block] >= 0) & (barred >= 0))
        similarity[out, barred[out]] = -np.inf
        at = similarity.argmax(axis=1)
        score[block] = similarity[np.arange(len(block)), at]
        best[block] = np.where(np.isfinite(score[block]), columns[at], -1)
    return best, score
