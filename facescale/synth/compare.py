"""A truth table beside what a lake says: how much of each planted kind is there.

In: a truth table, images and faces as Arrow tables, a search function. Out: (planted, found) by name. Called by
facescale.synth.score, which reads the lake and knows the floors.

Shape legend: T truth rows, B planted faces, F found faces, Q queries, K hits of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.lake.ids import image_id_of
from facescale.synth.curated import FoundCrawl, curated_lines
from facescale.synth.plan import (
    CLEAN,
    EXACT_DUPLICATE,
    LOW_QUALITY,
    NEAR_DUPLICATE,
    NO_FACE,
    TWO_FACES,
    WRONG_LABEL,
)

Search = Callable[[np.ndarray], np.ndarray]
MIN_IOU = 0.5
MAX_PDQ_BITS = 31  # what PDQ's authors recommend
VOTERS = 3  # or 1, where people have fewer other clean images
_PDQ_BLOCK = 2048
_ONE_FACE = (CLEAN, WRONG_LABEL, EXACT_DUPLICATE, NEAR_DUPLICATE)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a lake says about a crawl.

    Args:
        images: image_id, uri, status, num_faces, sha256, pdq of the images table.
        faces: face_id, box of the faces table.
        search: face_ids int64 [Q] → the face_ids most similar to each, int64 [Q, K], best first, -1 where there
            are fewer; the query itself may be among them. None leaves the lines about identity out.
        curation: those there are of the tables duplicates, clusters and decisions; see curated.curated_lines.
    """

    images: pa.Table
    faces: pa.Table
    search: Search | None
    curation: Mapping[str, pa.Table] = field(default_factory=dict)


class Comparison:
    """Truth rows, image rows and faces brought together once; each method is one or two lines of the table."""

    def __init__(self, truth: pa.Table, evidence: Evidence) -> None:
        self._search, self._curation = evidence.search, evidence.curation
        self._truth = truth
        self._kind = np.array(truth["kind"].to_pylist(), object)
        row = _rows_by_path(truth["path"], evidence.images["uri"])
        self._present = row >= 0
        self._image = evidence.images.take(
            pa.array(np.maximum(row, 0))
        )  # rows of absent files are masked out
        self._status = np.where(self._present, self._image["status"].to_pylist(), "absent")
        self._num_found = np.where(self._present, _ints(self._image["num_faces"]), -1)
        self._num_true = _ints(truth["num_faces"])
        group = _ints(pc.fill_null(truth["group"], -1))
        self._group = np.where(group >= 0, group, len(truth) + np.arange(len(truth)))
        path = pa.array(truth["path"].to_pylist())
        original = _ints(pc.index_in(truth["original"], value_set=path))
        self._original = np.where(original >= 0, original, np.arange(len(truth)))
        self._face_ids, self._row_of_face, self._who, self._hits_of_row = self._match(evidence.faces)

    def lines(self) -> dict[str, tuple[int, int]]:
        """(planted, found) by name."""
        one = np.isin(self._kind, _ONE_FACE)
        pair, poor = self._kind == TWO_FACES, self._kind == LOW_QUALITY
        people = self._num_true > 0
        complete = self._hits_of_row == self._num_true
        lines = {
            "files": _count(np.ones(len(self._kind), bool), self._present),
            "one_face": _count(one, complete),
            "low_quality": _count(poor, complete),
            "two_faces": _count(pair, complete),
            "no_face": _count(self._kind == NO_FACE, (self._status == "ok") & (self._num_found == 0)),
            "no_extra_faces": _count(people, self._present & (self._num_found <= self._num_true)),
        }
        expected = np.array(self._truth["status"].to_pylist(), object)
        for kind in sorted({k for k in self._kind if k.startswith("damaged_")}):
            lines[kind] = _count(self._kind == kind, self._status == expected)
        lines |= self._copies()
        if self._search is not None:
            lines |= self._identity(self._search)
        return lines | curated_lines(self._planted(), self._curation)

    def _planted(self) -> FoundCrawl:
        return FoundCrawl(
            kind=self._kind,
            claimed=np.array(self._truth["claimed"].to_pylist(), object),
            original=self._original,
            group=self._group,
            num_faces=self._num_true,
            image_id=np.where(self._present, _ints(self._image["image_id"]), -1),
            whole=self._status == "ok",
            face_id=self._face_ids,
            row=self._row_of_face,
            who=self._who,
        )

    def _match(self, faces: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Pair planted with found faces by IoU.

        Returns:
            face_ids int64 [F] ascending; the truth row of each, int64 [F], -1 = of no file of the crawl; who it
            shows, an index into all identities, int64 [F], -1 = nobody planted; planted faces found per truth row,
            int64 [T].
        """
        order = np.argsort(_ints(faces["face_id"]))
        face_ids = _ints(faces["face_id"])[order]
        boxes = _boxes(faces["box"])[order]
        image_ids = np.where(self._present, _ints(self._image["image_id"]), -1)
        owners = image_id_of(face_ids)
        first = np.searchsorted(owners, image_ids, "left")
        counts = np.searchsorted(owners, image_ids, "right") - first
        row_of_face = np.full(len(face_ids), -1, np.int64)
        row_of_face[_ranges(first, counts)] = np.repeat(np.arange(len(first)), counts)

        row_of_box = np.repeat(np.arange(len(self._truth)), self._num_true)
        planted = _boxes(pc.list_flatten(self._truth["boxes"]))
        identity = pc.list_flatten(self._truth["identities"]).to_pylist()
        names = {name: i for i, name in enumerate(dict.fromkeys(identity))}
        pair_face = _ranges(first[row_of_box], counts[row_of_box])
        pair_box = np.repeat(np.arange(len(planted)), counts[row_of_box])
        overlap = iou(planted[pair_box], boxes[pair_face])
        best = np.lexsort((-overlap, pair_box))
        best = best[np.unique(pair_box[best], return_index=True)[1]]  # each planted face's best candidate
        best = best[overlap[best] >= MIN_IOU]
        who = np.full(len(face_ids), -1, np.int64)
        who[pair_face[best]] = np.array([names[name] for name in identity], np.int64)[pair_box[best]]
        hits = np.bincount(row_of_box[pair_box[best]], minlength=len(self._truth))
        return face_ids, row_of_face, who, hits

    def _copies(self) -> dict[str, tuple[int, int]]:
        original = self._original
        both = self._present & self._present[original]
        sha = np.array(self._image["sha256"].to_pylist(), object)
        hashed = self._present & np.array(self._image["pdq"].is_valid().to_pylist(), bool)
        bits = np.zeros((len(self._truth), 256), np.float32)
        packed = b"".join(self._image["pdq"].filter(pa.array(hashed)).to_pylist())
        bits[hashed] = np.unpackbits(np.frombuffer(packed, np.uint8).reshape(-1, 32), axis=1)
        near = (np.abs(bits - bits[original]).sum(axis=1) <= MAX_PDQ_BITS) & hashed & hashed[original]
        whole = hashed & (self._status == "ok")
        return {
            "exact_duplicate": _count(self._kind == EXACT_DUPLICATE, both & (sha == sha[original])),
            "near_duplicate": _count(self._kind == NEAR_DUPLICATE, both & near),
            "distinct": _count(whole, _isolated(bits, whole, self._group)),
        }

    def _identity(self, search: Search) -> dict[str, tuple[int, int]]:
        """Lines that need the index: is the nearest face the same person, and do neighbors agree with the label."""
        claimed = np.array(self._truth["claimed"].to_pylist(), object)
        clean = self._kind == CLEAN
        others = int(np.unique(claimed[clean], return_counts=True)[1].min(initial=len(claimed))) - 1
        num_voters = VOTERS if others >= VOTERS else 1
        query = np.flatnonzero(self._who >= 0)
        if others < 1:  # one image of each person: nobody has a neighbor to be found by
            return {}
        if not len(query):
            return {
                "same_person": (int(self._num_true.sum()), 0),
                "wrong_label": (int((self._kind == WRONG_LABEL).sum()), 0),
                "right_label": (int(clean.sum()), 0),
            }
        hit_ids = search(self._face_ids[query])
        position = np.searchsorted(self._face_ids, hit_ids).clip(max=len(self._face_ids) - 1)
        known = (hit_ids >= 0) & (self._face_ids[position] == hit_ids)
        own_row, hit_row = self._row_of_face[query], self._row_of_face[position]
        # The face itself, its image's other face and all copies prove nothing.
        known &= (hit_row >= 0) & (self._group[hit_row] != self._group[own_row][:, None])
        top = _first(known, 1)[:, 0]
        same = (top >= 0) & (self._who[position[np.arange(len(query)), top]] == self._who[query])

        voters = _first(known & (self._num_true[hit_row] == 1), num_voters)
        rows = hit_row[np.arange(len(query))[:, None], np.maximum(voters, 0)]
        agree = ((claimed[rows] == claimed[own_row][:, None]) & (voters >= 0)).sum(axis=1)
        majority = 2 * agree > np.maximum((voters >= 0).sum(axis=1), 1)
        agreeing, disagreeing = np.zeros(len(self._kind), bool), np.zeros(len(self._kind), bool)
        agreeing[own_row[majority]] = True
        disagreeing[own_row[~majority & (voters[:, 0] >= 0)]] = True
        return {
            "same_person": (
                int(self._num_true.sum()),
                int(same.sum()),
            ),  # a face that was not found is a miss
            "wrong_label": _count(self._kind == WRONG_LABEL, disagreeing),
            "right_label": _count(clean, agreeing),
        }


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes in pairs, float64 [n, 4] each → float64 [n]."""
    shared = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared
    return np.asarray(shared / np.maximum(union, 1e-9))


def _count(planted: np.ndarray, found: np.ndarray) -> tuple[int, int]:
    return int(planted.sum()), int((planted & found).sum())


def _ints(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(column, -1)).astype(np.int64)


def _boxes(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return np.asarray(pc.list_flatten(column)).astype(np.float64).reshape(-1, 4)


def _rows_by_path(paths: pa.ChunkedArray, uris: pa.ChunkedArray) -> np.ndarray:
    """Row of the images table for each path of the crawl, int64 [T]; -1 when absent or there more than once.

    A crawl's paths are `label/file`, so the last two components of a URI tell, wherever the crawl was.
    """
    tails = pc.replace_substring_regex(uris, r"^.*/([^/]+/[^/]+)$", r"\1").combine_chunks()
    rows = _ints(pc.index_in(paths, value_set=tails))
    counted = pc.value_counts(tails)
    times = _ints(
        counted.field("counts").take(pc.fill_null(pc.index_in(paths, value_set=counted.field("values")), 0))
    )
    return np.where((rows >= 0) & (times == 1), rows, -1)


def _ranges(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, … (counts[0] of them), then the same for the next, int64 [sum of counts]."""
    ends = np.cumsum(counts)
    return np.asarray(np.arange(counts.sum()) - np.repeat(ends - counts, counts) + np.repeat(first, counts))


def _first(usable: np.ndarray, count: int) -> np.ndarray:
    """Positions of the first `count` true values of each row, bool [Q, K] → int64 [Q, count], -1 = fewer."""
    padded = np.concatenate([usable, np.zeros((len(usable), count), bool)], axis=1)
    order = np.argsort(~padded, axis=1, kind="stable")[:, :count]
    return np.where(np.take_along_axis(padded, order, axis=1), order, -1)


def _isolated(bits: np.ndarray, considered: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Whether no image of another group is within MAX_PDQ_BITS; bool [T] from float32 [T, 256] in 0 and 1."""
    rows = np.flatnonzero(considered)
    signs, groups = 2 * bits[rows] - 1, group[rows]
    alone = np.zeros(len(considered), bool)
    for start in range(0, len(rows), _PDQ_BLOCK):
        block = slice(start, start + _PDQ_BLOCK)
        distance = (bits.shape[1] - signs[block] @ signs.T) / 2
        close = (distance <= MAX_PDQ_BITS) & (groups[block][:, None] != groups[None])
        alone[rows[block]] = ~close.any(axis=1)
    return alone
