"""The face that shows why: for each face and a person, the most similar of the person's faces.

Called by curate.clean.

Shape legend: Q faces that ask, V faces that can answer, D dimension, P people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

_PAIRS = 1 << 17
"""Pairs compared at a time: 128 MiB of vectors at D = 128."""


def nearest_of(
    unit: Floats, asking: Ints, person: Ints, members: Ints, key: NDArray[np.uint64]
) -> tuple[Ints, Floats]:
    """The most similar other face of a person.

    Args:
        unit: float32 [V, D], unit vectors.
        asking: int64 [Q], rows of `unit`.
        person: int64 [Q], whose faces to look at; -1 for nobody's.
        members: int64 [V], whose face each row is; -1 for nobody's.
        key: uint64 [V], a hash; decides between equal similarities.

    Returns:
        (rows of `unit` int64 [Q], similarities float32 [Q]); -1 and -inf where the person has no other face.
    """
    by_person = np.lexsort((key, members))
    first = np.searchsorted(members[by_person], person, side="left")
    number = np.searchsorted(members[by_person], person, side="right") - first
    number = np.where(person >= 0, number, 0)
    best, score = np.full(len(asking), -1), np.full(len(asking), -np.inf, np.float32)
    for rows in _runs(number):
        which = np.repeat(rows, number[rows])
        starts = np.cumsum(number[rows]) - number[rows]
        other = by_person[np.arange(len(which)) + np.repeat(first[rows] - starts, number[rows])]
        similarity = np.einsum("pd,pd->p", unit[asking[which]], unit[other])
        similarity[other == asking[which]] = -np.inf
        order = np.lexsort((key[other], similarity, which))
        last = order[np.flatnonzero(np.diff(which[order], append=-1))]
        score[which[last]] = similarity[last]
        best[which[last]] = np.where(np.isfinite(similarity[last]), other[last], -1)
    return best, score


def _runs(number: Ints) -> list[Ints]:
    """Consecutive questions, together of about _PAIRS pairs; those without any are left out."""
    asked = np.flatnonzero(number)
    if not len(asked):
        return []
    block = (np.cumsum(number[asked]) - number[asked]) // _PAIRS
    return np.split(asked, np.flatnonzero(np.diff(block)) + 1)
