"""Claims on images become votes of faces: one vote for each label and group of duplicates, one face for each vote.

Faces and claims come in, the faces that may stand for each claim go out. Called by curate.clean.

A label is a claim on the image. Its copies make the same claim, so one of them votes; and of the faces on it, at most
one is meant.

Shape legend: N faces of the lake, D dimension, C claims, T votes, R candidates (a face of a vote's image).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.curate.linkage import average_linkage, mix
from facescale.curate.refine import sum_by
from facescale.lake.ids import image_id_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]
    Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Faces:
    """The faces of a lake.

    Attributes:
        face_id: int64 [N], rising.
        unit: float32 [N, D], unit vectors.
        prominence: float32 [N], how much of a main subject it looks (its box's area, say); settles which of an image's
            faces is meant where similarity says nothing.
        good: bool [N], recognizable enough to say who a label's people are.
    """

    face_id: Ints
    unit: Floats
    prominence: Floats
    good: Bools


@dataclass(frozen=True, eq=False)
class Claims:
    """What images are said to show, and which images are copies.

    Attributes:
        image_id: int64 [C].
        label: int64 [C], 0 .. num_labels - 1; an image may have several.
        num_labels: L.
        copy_id: int64, rising: images that are copies.
        representative: int64, of each copy.
    """

    image_id: Ints
    label: Ints
    num_labels: int
    copy_id: Ints
    representative: Ints


@dataclass(frozen=True, eq=False)
class Votes:
    """Claims that vote, and the faces that may stand for them.

    Attributes:
        image_id: int64 [T], the image that votes.
        label: int64 [T].
        vote_of: int64 [C], the vote that stands for each claim; -1 where no image of its group has a face.
        face: int64 [R], row of each candidate among the faces.
        vote: int64 [R], rising.
        key: uint64 [R], hash of the candidate's id.
    """

    image_id: Ints
    label: Ints
    vote_of: Ints
    face: Ints
    vote: Ints
    key: NDArray[np.uint64]


def spread(starts: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Ranges written out: (which range [sum of counts], position [sum of counts])."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)


def faces_of(face_id: Ints, image_id: Ints) -> tuple[Ints, Ints]:
    """Where the faces of images lie in the sorted face ids: (first row, number of rows)."""
    images = image_id_of(face_id)
    first = np.searchsorted(images, image_id, side="left")
    return first, np.searchsorted(images, image_id, side="right") - first


def group_of(claims: Claims, image_id: Ints) -> Ints:
    """The representative of each image; an image that is no copy is its own."""
    if not len(claims.copy_id):
        return image_id
    at = np.minimum(np.searchsorted(claims.copy_id, image_id), len(claims.copy_id) - 1)
    groups: Ints = np.where(claims.copy_id[at] == image_id, claims.representative[at], image_id)
    return groups


def count_votes(faces: Faces, claims: Claims) -> Votes:
    """Choose the image that votes for each label and group of duplicates, and list its faces.

    The representative votes where it makes the claim itself and has a face; a copy where it does not, as the same
    photograph may be kept under two names.
    """
    group = group_of(claims, claims.image_id)
    first, number = faces_of(faces.face_id, claims.image_id)
    order = np.lexsort((mix(claims.image_id), claims.image_id != group, number == 0, group, claims.label))
    g, l = group[order], claims.label[order]  # noqa: E741 - two parallel columns
    new = np.concatenate([[True], (g[1:] != g[:-1]) | (l[1:] != l[:-1])])[: len(order)]
    voter = order[new]
    vote_of = np.empty(len(order), np.int64)
    vote_of[order] = np.cumsum(new) - 1
    has_face = number[voter] > 0
    place = np.where(has_face, np.cumsum(has_face) - 1, -1)
    vote_of, voter = place[vote_of], voter[has_face]
    vote, face = spread(first[voter], number[voter])
    return Votes(claims.image_id[voter], claims.label[voter], vote_of, face, vote, mix(faces.face_id[face]))


def choose_faces(faces: Faces, votes: Votes, split: float) -> Bools:
    """Which face is meant, at first: the one nearest to the person that most of the label's images show.

    Args:
        faces: all faces.
        votes: the candidates.
        split: pairs at least this similar, in the mean, are one person (cosine).

    Returns:
        bool [R], exactly one candidate of each vote, or none where another label's vote has the same face.
    """
    label = votes.label[votes.vote]
    score = np.zeros(len(votes.face), np.float64)
    several = np.bincount(votes.vote, minlength=len(votes.label)) > 1
    unclear = np.isin(label, votes.label[several])
    at = np.flatnonzero(unclear & faces.good[votes.face])
    if len(at):
        unit = faces.unit[votes.face[at]]
        piece = average_linkage(unit, label[at], split, key=votes.key[at])
        num = int(piece.max()) + 1
        # Photographs, not faces: a face and its mirror image on one photograph are one vote.
        pairs = np.unique(np.stack([piece, votes.vote[at]]), axis=1)
        photos = np.bincount(pairs[0], minlength=num)
        prominence = np.bincount(piece, faces.prominence[votes.face[at]], minlength=num)
        label_of = np.zeros(num, np.int64)
        label_of[piece] = label[at]
        # Pieces are numbered by a hash, so the last key is no position.
        order = np.lexsort((np.arange(num), prominence, photos, label_of))
        most = np.full(int(votes.label.max()) + 1, -1)
        most[label_of[order]] = order
        sums = sum_by(unit, piece, num)[0]
        known = unclear & (most[label] >= 0)
        direction = sums[most[label[known]]]
        direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12)
        score[known] = np.einsum("rd,rd->r", faces.unit[votes.face[known]], direction)
    return pick(votes, score, faces.prominence[votes.face].astype(np.float64))


def pick(votes: Votes, *scores: NDArray[np.float64]) -> Bools:
    """One candidate of each vote, the one with the best scores (the first decides, the next where it is equal).

    A face that two votes pick (an image with two labels) goes to the one with the better score, and the other has
    none.
    """
    R = len(votes.face)
    picked = np.zeros(R, bool)
    order = np.lexsort((votes.key, *scores[::-1], votes.vote))
    picked[order[np.flatnonzero(np.diff(votes.vote[order], append=-1))]] = True
    at = np.flatnonzero(picked)
    order = at[np.lexsort((mix(votes.label[votes.vote[at]]), *(s[at] for s in scores[::-1]), votes.face[at]))]
    picked[order[np.flatnonzero(np.diff(votes.face[order], append=-1) == 0)]] = False
    return picked
