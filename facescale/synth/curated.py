"""What curation made of a synthetic crawl: duplicates, clusters and decisions held against the truth.

In: who is on which face of the crawl, the tables of curation. Out: (planted, found) by name. Called by
facescale.synth.compare; a table that a lake does not have leaves its lines out.

Shape legend: T truth rows, F found faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.synth.plan import CLEAN, EXACT_DUPLICATE, NEAR_DUPLICATE, TWO_FACES, WRONG_LABEL

if TYPE_CHECKING:
    from collections.abc import Mapping

_NONE = -1
_UNASSIGNED = -2  # the table has the face, and no cluster for it


@dataclass(frozen=True, eq=False)
class FoundCrawl:
    """The crawl as the lake holds it.

    Attributes:
        kind: object [T], what was planted.
        claimed: object [T], label of the folder.
        original: int64 [T], row that a copy copies; itself for all others.
        group: int64 [T], equal for copies of one another.
        num_faces: int64 [T], planted faces.
        image_id: int64 [T], -1 where the lake has no such image.
        whole: bool [T], files that could be decoded; damaged ones may be equal byte by byte.
        face_id: int64 [F], ascending.
        row: int64 [F], truth row of each face, -1 for none.
        who: int64 [F], whom it shows, -1 where nobody was planted.
    """

    kind: np.ndarray
    claimed: np.ndarray
    original: np.ndarray
    group: np.ndarray
    num_faces: np.ndarray
    image_id: np.ndarray
    whole: np.ndarray
    face_id: np.ndarray
    row: np.ndarray
    who: np.ndarray


def curated_lines(planted: FoundCrawl, tables: Mapping[str, pa.Table]) -> dict[str, tuple[int, int]]:
    """(planted, found) of what the tables of curation say.

    Args:
        planted: the crawl.
        tables: those there are of duplicates (image_id, representative), clusters (face_id, cluster_id) and
            decisions (face_id, label_in, label_out, verdict).
    """
    lines: dict[str, tuple[int, int]] = {}
    if "duplicates" in tables:
        lines |= _duplicates(planted, tables["duplicates"])
    if "clusters" in tables:
        lines |= _clusters(planted, tables["clusters"])
    if "decisions" in tables:
        lines |= _decisions(planted, tables["decisions"])
    return lines


def _duplicates(planted: FoundCrawl, table: pa.Table) -> dict[str, tuple[int, int]]:
    """A copy and its original must end in one group; an image must never end in another's."""
    copy, representative = _ints(table["image_id"]), _ints(table["representative"])
    order = np.argsort(copy)
    at = _find(copy[order], planted.image_id)
    kept = np.where(at >= 0, np.append(representative[order], _NONE)[at], planted.image_id)
    is_copy = np.isin(planted.kind, (EXACT_DUPLICATE, NEAR_DUPLICATE))
    there = planted.image_id >= 0
    collapsed = there & there[planted.original] & (kept == kept[planted.original])
    by_id = np.argsort(planted.image_id)
    place = _find(planted.image_id[by_id], kept)
    group_of_kept = np.where(place >= 0, planted.group[by_id][place], _NONE)
    unharmed = group_of_kept == planted.group
    return {
        "copies_collapsed": _count(is_copy, collapsed),
        "others_untouched": _count(planted.whole, there & unharmed),
    }


def _clusters(planted: FoundCrawl, table: pa.Table) -> dict[str, tuple[int, int]]:
    """Faces of images without planted difficulties, copies apart; and pairs of people on one image."""
    cluster = _of_faces(planted, table, pc.fill_null(table["cluster_id"], _UNASSIGNED))
    kind = np.where(planted.row >= 0, planted.kind[planted.row], "")
    plain = np.flatnonzero((planted.who >= 0) & np.isin(kind, (CLEAN, WRONG_LABEL)))
    who, own = planted.who[plain], cluster[plain]
    # An unassigned face is in nobody's cluster: neither with its person nor with another.
    main_of_person = _most_common(who, own, own >= 0)
    main_of_cluster = _most_common(own, who, own >= 0)
    whole = (own >= 0) & (own == main_of_person)
    pure = (own >= 0) & (who == main_of_cluster)
    pairs = np.flatnonzero((planted.who >= 0) & (kind == TWO_FACES) & (cluster != _NONE))
    both = np.bincount(planted.row[pairs], minlength=len(planted.kind)) == 2
    seen = pairs[cluster[pairs] >= 0]
    keys = np.stack([planted.row[seen], cluster[seen]])
    together = np.zeros(len(planted.kind), bool)
    distinct, times = np.unique(keys, axis=1, return_counts=True)
    together[distinct[0, times > 1]] = True
    num = int(planted.num_faces[np.isin(planted.kind, (CLEAN, WRONG_LABEL))].sum())
    return {
        "cluster_whole": (num, int(whole.sum())),
        "cluster_pure": (num, int(pure.sum())),
        "two_people_apart": _count(planted.kind == TWO_FACES, both & ~together),
    }


def _decisions(planted: FoundCrawl, table: pa.Table) -> dict[str, tuple[int, int]]:
    """Of images with one person: does a face of a wrong label leave it, and a face of a right one keep it."""
    label = np.array(table["label_out"].to_pylist(), object)
    after = _of_faces(planted, table, np.arange(len(label)))
    left, kept = np.zeros(len(planted.kind), bool), np.zeros(len(planted.kind), bool)
    known = np.flatnonzero((planted.who >= 0) & (planted.row >= 0) & (after >= 0))
    row = planted.row[known]
    same = label[after[known]] == planted.claimed[row]
    kept[row[same]] = True
    left[row[~same]] = True
    return {
        "wrong_label_left": _count(planted.kind == WRONG_LABEL, left & ~kept),
        "right_label_kept": _count(planted.kind == CLEAN, kept),
    }


def _of_faces(planted: FoundCrawl, table: pa.Table, values: pa.ChunkedArray | np.ndarray) -> np.ndarray:
    """A column of a table keyed by face_id in the order of the crawl's faces, int64 [F]; -1 for faces it lacks."""
    ids = _ints(table["face_id"])
    order = np.argsort(ids)
    at = _find(ids[order], planted.face_id)
    column: np.ndarray = np.append(np.asarray(values).astype(np.int64)[order], _NONE)[at]
    return column


def _most_common(of: np.ndarray, value: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """For each row the value that most counted rows with the same `of` have; -1 where none is counted.

    Of equally common ones it is the smallest, so a person in two halves has one of them.
    """
    pairs, times = np.unique(np.stack([of[counted], value[counted]]), axis=1, return_counts=True)
    order = np.lexsort((-pairs[1], times, pairs[0]))
    owner, best = pairs[0][order], pairs[1][order]
    last = np.flatnonzero(np.diff(owner, append=owner[-1:] + 1))
    at = _find(owner[last], of)
    found: np.ndarray = np.append(best[last], _NONE)[at]
    return found


def _find(ascending: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Position of each number in an ascending array, -1 where it is not there."""
    if not len(ascending):
        return np.full(len(wanted), _NONE)
    at = np.searchsorted(ascending, wanted).clip(max=len(ascending) - 1)
    position: np.ndarray = np.where(ascending[at] == wanted, at, _NONE)
    return position


def _count(planted: np.ndarray, found: np.ndarray) -> tuple[int, int]:
    return int(planted.sum()), int((planted & found).sum())


def _ints(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column).astype(np.int64)
