"""CAST, the baseline: votes (a face each, standing for a photograph's label) come in, a ruling about each goes out.

    largest DBSCAN cluster of each label ─► labels with like centers are merged, or the smaller is dropped

Called by curate.clean and bench.cleaning.

One cleaning round of WebFace260M (Zhu et al. 2021, arXiv 2103.04098, section 3.3): inside a label, DBSCAN, of which the
largest cluster is kept; between labels, centers at or above `merge` are one person, and of two between `drop` and
`merge` the one with fewer faces is dropped. The paper gives no radius for DBSCAN. Its centers are those from before the
merges, and every pair counts, so that the result does not depend on the order of the labels.

Shape legend: V votes, D dimension, L labels, C clusters, E pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.curate.decisions import DROP, KEEP, MERGE, QUARANTINE, REASON_CODES, Ruling
from facescale.curate.evidence import nearest_of
from facescale.curate.linkage import batches, mix, relabel
from facescale.curate.refine import sum_by

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.curate.calibration import Calibration, Preset
    from facescale.curate.claims import Votes

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]
    Keys = NDArray[np.uint64]

_BLOCK = 1 << 24
"""Similarities of centers computed at a time (64 MiB)."""


@dataclass(frozen=True, kw_only=True)
class CastRules:
    """Thresholds as false-match rates of two faces.

    Attributes:
        link_fmr: faces of a label at or above it are DBSCAN neighbors.
        merge_fmr: label centers at or above it are one person.
        drop_fmr: of two label centers between it and the merge threshold, the smaller label is dropped.
        min_faces: DBSCAN's least number of neighbors of a core face, itself included.
    """

    link_fmr: float = 5e-4
    merge_fmr: float = 1e-8
    drop_fmr: float = 1e-7
    min_faces: int = 2


@dataclass(frozen=True, kw_only=True)
class CastCuts:
    """The rules as cosines of one embedder; see CastRules."""

    link: float
    merge: float
    drop: float
    min_faces: int


def resolve_cast(rules: CastRules, calibration: Calibration, preset: Preset | None = None) -> CastCuts:
    """Turn false-match rates into cosines; a preset has published cosines for merge and drop."""
    pairs = calibration.pairs
    return CastCuts(
        link=pairs.similarity_at(rules.link_fmr),
        merge=pairs.similarity_at(rules.merge_fmr) if preset is None else preset.merge,
        drop=pairs.similarity_at(rules.drop_fmr) if preset is None else preset.drop,
        min_faces=rules.min_faces,
    )


def largest_clusters(
    unit: Floats, label: Ints, key: Keys, voting: Bools, num_labels: int, link: float, min_faces: int
) -> tuple[Ints, Ints, Floats]:
    """DBSCAN in every label at once, and the largest cluster of each.

    Args:
        unit: float32 [V, D], unit vectors.
        label: int64 [V], 0 .. L - 1.
        key: uint64 [V], a hash of each face's id; decides between equally large clusters.
        voting: bool [V], faces that make clusters; the others are attached to the largest one or not.
        num_labels: L.
        link: least cosine of neighbors.
        min_faces: neighbors of a core face, itself included.

    Returns:
        (int64 [V], the label whose largest cluster holds the face or -1; int64 [L], faces of each largest cluster, 0
        where there is none of two or more; float32 [V], similarity with the nearest core face of that cluster,
        another than itself, -inf without one).

    Notes:
        A border face goes to the cluster of its nearest core face, so that nothing depends on the order of rows.
    """
    at = np.flatnonzero(voting)
    first, second = _neighbors(unit[at], label[at], link)
    core = np.bincount(first, minlength=len(at)) + 1 >= min_faces
    cluster = np.full(len(unit), -1)
    cluster[at[core]] = _components(first, second, core, key[at])
    # What a core face joins is settled; a border face joins the nearest core face of its label.
    cores = np.full(len(unit), -1)
    cores[at[core]] = label[at[core]]
    others = at[~core]
    near, score = nearest_of(unit, others, label[others], cores, key)
    joined = score >= np.float32(link)
    cluster[others[joined]] = cluster[near[joined]]

    clustered = np.flatnonzero(cluster >= 0)
    C = int(cluster.max(initial=-1)) + 1
    sizes = np.bincount(cluster[clustered], minlength=C)
    label_of = np.zeros(C, np.int64)
    label_of[cluster[clustered]] = label[clustered]
    order = np.lexsort((np.arange(C), sizes, label_of))  # clusters are numbered by a hash
    order = order[sizes[order] >= 2]
    largest = np.full(num_labels, -1)
    largest[label_of[order]] = order
    size = np.where(largest >= 0, sizes[np.maximum(largest, 0)] if C else 0, 0)
    majority = (cluster >= 0) & (cluster == largest[label])
    answers = np.where(majority & (cores >= 0), label, -1)
    _, score = nearest_of(unit, np.arange(len(unit)), label, answers, key)
    late = ~voting & (score >= np.float32(link))
    return np.where(majority | late, label, -1), size, score


def _neighbors(unit: Floats, label: Ints, link: float) -> tuple[Ints, Ints]:
    """Ordered pairs of faces of a label at or above the link: (int64 [E], int64 [E])."""
    order = np.argsort(label, kind="stable")
    grouped = unit[order]
    firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for rows, columns in batches(label[order]):
        near = np.matmul(grouped[rows], grouped[columns].transpose(0, 2, 1)) >= np.float32(link)
        near &= (rows >= 0)[:, :, None] & (columns >= 0)[:, None, :]
        near &= rows[:, :, None] != columns[:, None, :]
        group, row, column = np.nonzero(near)
        firsts.append(order[rows[group, row]])
        seconds.append(order[columns[group, column]])
    return np.concatenate(firsts), np.concatenate(seconds)


def _components(first: Ints, second: Ints, core: Bools, key: Keys) -> Ints:
    """Cluster of each core face, numbered by its smallest key: int64 [core faces]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    inside = core[first] & core[second]
    place = np.cumsum(core) - 1
    edges = (np.ones(int(inside.sum()), bool), (place[first[inside]], place[second[inside]]))
    size = int(core.sum())
    number = connected_components(coo_array(edges, shape=(size, size)), directed=False)[1]
    return relabel(number.astype(np.int64), key[core])


def similar_centers(centers: Floats, drop: float) -> tuple[Ints, Ints, Floats]:
    """Pairs (first < second) of centers at or above a cosine, and their similarity; blocked.

    Args:
        centers: float32 [L, D], unit vectors or zeros.
        drop: cosine.
    """
    firsts, seconds, scores = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    step = max(1, _BLOCK // max(len(centers), 1))
    for start in range(0, len(centers), step):
        similarity = centers[start : start + step] @ centers[start:].T
        row, column = np.nonzero(similarity >= np.float32(drop))
        upper = row < column
        firsts.append(row[upper] + start)
        seconds.append(column[upper] + start)
        scores.append(similarity[row[upper], column[upper]])
    return np.concatenate(firsts), np.concatenate(seconds), np.concatenate(scores)


@dataclass(frozen=True, eq=False)
class _Between:
    """What cleaning between labels found.

    Attributes:
        merged: int64 [L], the label that each is another name of; itself for most.
        other: int64 [L], the label for whose sake it is dropped; -1 for those that stay.
        score: float32 [L], similarity with that one, or with the one it is merged into.
    """

    merged: Ints
    other: Ints
    score: Floats


def _between_labels(centers: Floats, size: Ints, key: Keys, cuts: CastCuts) -> _Between:
    """Merge and drop labels by their centers."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    L = len(size)
    first, second, score = similar_centers(centers, min(cuts.drop, cuts.merge))
    same = score >= np.float32(cuts.merge)
    graph = coo_array((np.ones(int(same.sum()), bool), (first[same], second[same])), shape=(L, L))
    component = connected_components(graph, directed=False)[1] if L else np.empty(0, np.int64)
    rank = np.lexsort((key, size))  # the largest last
    head = np.full(L, -1)
    head[component[rank]] = rank
    merged = head[component] if L else np.empty(0, np.int64)
    with_head = np.einsum("ld,ld->l", centers, centers[merged]).astype(np.float32)
    total = np.zeros(L, np.int64)
    np.add.at(total, merged, size)
    # Whole people now: of two in the band the smaller goes, with all of its names.
    a, b, near = merged[first[~same]], merged[second[~same]], score[~same]
    a, b, near = a[a != b], b[a != b], near[a != b]
    smaller = (total[a] < total[b]) | ((total[a] == total[b]) & (key[a] < key[b]))
    loser, winner = np.where(smaller, a, b), np.where(smaller, b, a)
    order = np.lexsort((key[winner], near, loser))
    other, by = np.full(L, -1), np.full(L, -np.inf, np.float32)
    other[loser[order]], by[loser[order]] = winner[order], near[order]
    dropped = other[merged] >= 0
    return _Between(merged, np.where(dropped, other[merged], -1), np.where(dropped, by[merged], with_head))


def rule_by_cast(unit: Floats, votes: Votes, voting: Bools, num_labels: int, cuts: CastCuts) -> Ruling:
    """Decide about every candidate.

    Args:
        unit: float32 [V, D], unit vectors of the candidates.
        votes: whose they are.
        voting: bool [V], which faces say who a label's people are: one of each photograph, recognizable, no copies.
        num_labels: L.
        cuts: thresholds.

    Returns:
        What to do with each face; `person` and `members` are labels.
    """
    label, key = votes.label[votes.vote], votes.key
    majority, size, score = largest_clusters(unit, label, key, voting, num_labels, cuts.link, cuts.min_faces)
    member = np.where(voting, majority, -1)
    sums, counts = sum_by(unit, member, num_labels)
    centers = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    keys = np.zeros(num_labels, np.uint64)
    np.bitwise_xor.at(keys, label[member >= 0], key[member >= 0])
    between = _between_labels(centers.astype(np.float32), counts, mix(keys), cuts)

    photos = np.bincount(votes.label, minlength=num_labels)
    heard = np.bincount(label[voting], minlength=num_labels) > 0
    kept = majority >= 0
    nobody = size[label] < 2
    ambiguous = kept & (between.other[label] >= 0)
    other_name = kept & (between.merged[label] != label)
    cases = [
        (nobody & (photos[label] <= 1), KEEP, "single_photo"),
        (nobody & ~heard[label], QUARANTINE, "low_quality"),
        (nobody, QUARANTINE, "no_majority"),
        (ambiguous, DROP, "ambiguous_label"),
        (other_name, MERGE, "same_person"),
        (kept, KEEP, "majority"),
        (np.ones(len(label), bool), DROP, "minority"),
    ]
    case = np.select([condition for condition, _, _ in cases], range(len(cases)))
    verdict = np.array([code for _, code, _ in cases], np.int8)[case]
    reason = np.array([REASON_CODES[name] for _, _, name in cases], np.int8)[case]
    label_out = np.where(np.isin(verdict, (KEEP, MERGE)), between.merged[label], -1)
    label_out[nobody] = np.where(verdict[nobody] == KEEP, label[nobody], -1)
    threshold = np.full(len(label), cuts.link, np.float32)
    by_center = (reason == REASON_CODES["ambiguous_label"]) | (reason == REASON_CODES["same_person"])
    score[by_center] = between.score[label[by_center]]
    threshold[reason == REASON_CODES["ambiguous_label"]] = cuts.drop
    threshold[reason == REASON_CODES["same_person"]] = cuts.merge
    unscored = nobody | ~np.isfinite(score)
    score[unscored], threshold[unscored] = np.nan, np.nan
    person = np.where(reason == REASON_CODES["ambiguous_label"], between.other[label], label)
    person = np.where(reason == REASON_CODES["same_person"], between.merged[label], person)
    return Ruling(verdict, reason, label_out, score, threshold, np.where(nobody, -1, person), member)
