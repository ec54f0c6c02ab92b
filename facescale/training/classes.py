"""Which faces become a training set, and which class each is: names and qualities in, class ids out. Arrays only.

Called by driver.export. Deterministic: neither the order of faces nor chance outside the seed matters.

Shape legend: N faces of the lake, L names.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ClassRules:
    """What a training set may hold.

    Attributes:
        min_faces: identities with fewer are left out.
        max_faces: of an identity the best so many are kept; None keeps all.
        min_quality: faces below are left out, and those of unknown quality where it is above 0.
        val_share: share of the identities that is held out for validation.
        seed: of the split and of ties.
    """

    min_faces: int = 2
    max_faces: int | None = None
    min_quality: float = 0.0
    val_share: float = 0.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Classes:
    """The training set.

    Attributes:
        row: int64 [M], the faces that are in, by row of the input, rising.
        class_id: int64 [M]; training and validation count from 0 each.
        is_val: bool [M].
        names: of the identities that are in, sorted.
        ids: int64, class id of each name.
        name_is_val: bool, of each name.
        counts: int64, faces of each name.
        left_out: faces by why they are not in: no_label, copy, low_quality, condition, few_faces, over_cap.
        num_classes: (training, validation); larger than the names where earlier names are gone.
    """

    row: Ints
    class_id: Ints
    is_val: NDArray[np.bool_]
    names: list[str]
    ids: Ints
    name_is_val: NDArray[np.bool_]
    counts: Ints
    left_out: dict[str, int]
    num_classes: tuple[int, int]


def choose(
    label_N: Ints,
    names_L: Sequence[str],
    quality_N: NDArray[np.float32],
    is_copy_N: NDArray[np.bool_],
    tie_N: NDArray[np.uint64],
    rules: ClassRules,
    *,
    wanted_N: NDArray[np.bool_] | None = None,
    together_L: Ints | None = None,
    before: Mapping[str, tuple[int, bool]] | None = None,
) -> Classes:
    """Choose faces and number the identities.

    Args:
        label_N: index into `names_L`; -1 for faces without a name.
        names_L: sorted, each once.
        quality_N: 0 to 1; NaN where unknown.
        is_copy_N: faces of images that another image stands for.
        tie_N: decides between faces of one quality, e.g. index.vectors.random_keys.
        rules: see there.
        wanted_N: faces that meet the user's condition; None where there is none.
        together_L: names of one number go to the same side of the split (they may be one person); None: each alone.
        before: (class id, whether validation) of names of an earlier round: these keep both, new names count on from
            the largest, and the ids of names that are gone stay unused.
    """
    left_out = {}
    fits = label_N >= 0
    left_out["no_label"] = int((~fits).sum())
    left_out["copy"] = int((fits & is_copy_N).sum())
    fits &= ~is_copy_N
    good = quality_N >= rules.min_quality if rules.min_quality > 0 else np.ones(len(fits), bool)
    left_out["low_quality"] = int((fits & ~good).sum())
    if wanted_N is not None:
        left_out["condition"] = int((fits & good & ~wanted_N).sum())
        good = good & wanted_N
    rows = np.flatnonzero(fits & good)
    counts = np.bincount(label_N[rows], minlength=len(names_L))
    enough = counts >= max(rules.min_faces, 1)
    left_out["few_faces"] = int((~enough[label_N[rows]]).sum())
    rows = rows[enough[label_N[rows]]]
    if rules.max_faces is not None:
        order = rows[np.lexsort((tie_N[rows], -np.nan_to_num(quality_N[rows]), label_N[rows]))]
        rank = np.arange(len(order)) - np.searchsorted(label_N[order], label_N[order])
        left_out["over_cap"] = int((rank >= rules.max_faces).sum())
        rows = np.sort(order[rank < rules.max_faces])
    chosen = np.flatnonzero(enough)
    names = [names_L[i] for i in chosen.tolist()]
    is_val = _held_out(names, chosen if together_L is None else together_L[chosen], rules)
    ids, is_val, totals = _number(names, is_val, before or {})
    place = np.zeros(len(names_L), np.int64)
    place[chosen] = np.arange(len(chosen))
    mine = place[label_N[rows]]
    sizes = np.bincount(mine, minlength=len(chosen))
    return Classes(rows, ids[mine], is_val[mine], names, ids, is_val, sizes, left_out, totals)


def _held_out(names: list[str], together: Ints, rules: ClassRules) -> NDArray[np.bool_]:
    """Which names are for validation: a hash of the first name of those that belong together, below the share."""
    _, first, of = np.unique(together, return_index=True, return_inverse=True)
    digests = (hashlib.sha256(f"{rules.seed}:{names[i]}".encode()).digest() for i in first.tolist())
    draws = np.array([int.from_bytes(digest[:8], "big") / 2**64 for digest in digests])
    held: NDArray[np.bool_] = (draws < rules.val_share)[of] if len(names) else np.zeros(0, bool)
    return held


def _number(
    names: list[str], is_val: NDArray[np.bool_], before: Mapping[str, tuple[int, bool]]
) -> tuple[Ints, NDArray[np.bool_], tuple[int, int]]:
    """Class ids, which are for validation, and how many classes there are on each side."""
    ids = np.full(len(names), -1, np.int64)
    is_val = is_val.copy()
    for row, name in enumerate(names):
        if name in before:
            ids[row], is_val[row] = before[name]
    totals = []
    for side in (False, True):
        used = max((number for number, val in before.values() if val == side), default=-1) + 1
        fresh = np.flatnonzero((ids < 0) & (is_val == side))
        ids[fresh] = used + np.arange(len(fresh))
        totals.append(used + len(fresh))
    return ids, is_val, (totals[0], totals[1])
