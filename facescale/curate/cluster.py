"""Clusters of faces that show one person: faces, their lists and a calibration in, cluster and confidence out.

    lists ─► pairs ─► propagation (strict links) ─► merges (exact means) ─► low-quality faces attached ─► confidence

Arrays only; called by driver.cluster and bench.clusters. Two faces of one image are kept apart at every step.

Shape legend: N faces, D dimension, E entries of lists, C clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.curate.cluster_fit import UNASSIGNED, Fit, confidence_of
from facescale.curate.graph import Links, Pairs, adjacency, canonical_order, pairs_of
from facescale.curate.merge import Bound, merge
from facescale.curate.propagate import densify, propagate, separate, support_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.curate.calibration import Calibration
    from facescale.curate.propagate import Labels

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]
    Bools = NDArray[np.bool_]

REVISION = 1
"""Raised whenever clusters change at equal settings."""

LEAST_COUNT = 1_000
"""Thresholds are those of a lake of at least so many faces: a handful of faces says nothing about who is common."""

_LEAST_LOST = 1e-3
"""Share of true links taken as lost where fewer are: calibration knows no smaller quantile."""

_ATTACH_ODDS = 3.0
"""A low-quality face joins a cluster that is this much better than the next, in false-match rates (confidence 0.75)."""

_CAP_ROUNDS = 12

_IDENTICAL = 0.9998
"""Cosine of two faces that are one photograph, as far as an embedding tells."""


@dataclass(frozen=True)
class ClusterRules:
    """Settings; config.cluster says what they mean."""

    link_ratio: float = 0.1
    merge_ratio: float = 20.0
    merge_ratio_large: float = 10.0
    max_size: int = 100_000


@dataclass(frozen=True)
class Cuts:
    """The rules as cosines of one embedder and a number of faces.

    Attributes:
        link: for links that labels spread over.
        bound: for merges.
    """

    link: float
    bound: Bound

    @property
    def floor(self) -> float:
        """No smaller similarity of two faces is looked at."""
        return min(self.link, self.bound.small)


@dataclass(frozen=True, eq=False)
class Faces:
    """What is clustered.

    Attributes:
        face_id: int64 [N], distinct.
        image: int64 [N], image of each face.
        unit: float32 [N, D], unit vectors.
        usable: bool [N], whether a face may link others: it is not below the quality gate.
        nearest: float32 [N], similarity of the first of each face's list; -1 without one.
    """

    face_id: Ints
    image: Ints
    unit: Floats
    usable: Bools
    nearest: Floats


@dataclass(frozen=True, eq=False)
class Clusters:
    """Who is with whom.

    Attributes:
        label: int64 [N], 0 .. C - 1; UNASSIGNED (-1) for low-quality faces that resemble no cluster clearly.
        confidence: float32 [N]; NaN where unassigned.
        counts: attached (low-quality faces that joined a cluster), largest_cluster (faces), put_out (faces that links
            would have put with another of their image), merges_prevented (by max_size), oversized (clusters above
            it that stricter links do not split).
    """

    label: Ints
    confidence: Floats
    counts: dict[str, int]


def resolve(rules: ClusterRules, calibration: Calibration, count: int) -> Cuts:
    """Thresholds for a number of faces that may link others."""
    link, small, large = (
        threshold_at(calibration, count, ratio)
        for ratio in (rules.link_ratio, rules.merge_ratio, rules.merge_ratio_large)
    )
    return Cuts(link, Bound(small, max(small, large)))


def threshold_at(calibration: Calibration, count: int, ratio: float) -> float:
    """The similarity where errors of both kinds balance.

    Among `count` faces, each expects count × FMR(s) false links above s; the share of true links below s is lost.
    The first falls and the second rises with s, so they meet once, at false = ratio × lost.

    Why not a fixed false-match rate: false links per face grow with the crawl, and clusters would run together. Why not
    a fixed number of false links (FMR = c / count): what it costs depends on the embedder. With 4,000 faces c = 2 is
    right for one that loses 10 % of its true links there, and far too loose for one that would lose 5 % at c = 0.1.

    Args:
        calibration: of the embedder.
        count: faces that may link others; LEAST_COUNT where there are fewer.
        ratio: false links of a face for each share of true ones lost; larger is looser.

    Returns:
        Cosine, at most 1.
    """
    count = max(count, LEAST_COUNT)
    genuine = calibration.genuine.pairs
    low, high = calibration.pairs.similarity[0], 1.0
    for _ in range(60):
        middle = (low + high) / 2
        lost = max(float(np.interp(middle, genuine.values, genuine.levels)), _LEAST_LOST)
        if count * calibration.pairs.fmr_of(middle) > ratio * lost:
            low = middle
        else:
            high = middle
    return high


def cluster_faces(
    faces: Faces, links: Links, calibration: Calibration, cuts: Cuts, *, max_size: int
) -> Clusters:
    """Cluster faces.

    Args:
        faces: all of them, in any order.
        links: their lists, down to `cuts.floor` at least.
        calibration: of the embedder.
        cuts: thresholds.
        max_size: no cluster becomes larger, unless the strictest links hold it together.

    Returns:
        Clusters that do not depend on the order of the faces.

    Notes:
        Memory: 12 D + 200 bytes a face (embeddings in canonical order, sums of clusters), and at most 65 bytes for
        each entry of the lists.
    """
    N = len(faces.face_id)
    order = canonical_order(faces.unit, faces.face_id)
    image, unit, usable = faces.image[order], faces.unit[order], faces.usable[order]
    links = links.reordered(order)
    pairs = pairs_of(links, usable, image)
    graph = adjacency(N, pairs, cuts.link)
    counts: dict[str, int] = {}
    labels, counts["oversized"] = _split_oversized(propagate(graph), pairs, cuts.link, max_size)
    labels, counts["put_out"] = separate(labels, image, support_of(graph, labels))
    labels, counts["merges_prevented"] = merge(labels, unit, pairs, image, cuts.bound, max_size=max_size)
    labels[~usable] = UNASSIGNED
    labels[usable] = densify(labels[usable])
    fit = Fit(labels, unit, image, links)
    own, rival = fit.own(), fit.best_rival()
    labels, joined = fit.attach(cuts.bound.large, calibration.pairs, _ATTACH_ODDS, max_size=max_size)
    attached = ~np.isnan(joined)
    own[attached] = joined[attached]
    rival = _second_of_attached(fit, labels, rival, attached)
    nearest = faces.nearest[order]
    # Of a face that is alone, the list tells how near any other comes, also below the thresholds.
    rival = np.where(np.isnan(own) & np.isinf(rival), np.minimum(nearest, cuts.floor), rival)
    confidence = confidence_of(own, rival, cuts.bound.small, calibration.pairs)
    confidence[labels == UNASSIGNED] = np.nan
    counts["attached"] = int(attached.sum())
    counts["largest_cluster"] = int(np.bincount(labels[labels >= 0]).max(initial=0))
    label, sure = np.empty(N, np.int64), np.empty(N, np.float32)
    label[order], sure[order] = labels, confidence
    return Clusters(label, sure, counts)


def _split_oversized(labels: Labels, pairs: Pairs, link: float, max_size: int) -> tuple[Labels, int]:
    """Propagate again inside clusters above the largest size, over ever stricter links; (labels, how many remain)."""
    for _ in range(_CAP_ROUNDS):
        over = np.bincount(labels) > max_size
        inside = over[labels[pairs.first]] & (labels[pairs.first] == labels[pairs.second])
        left = pairs.where(inside & (pairs.similarity > link))
        if not len(left.first):
            break
        # Halfway to the strongest link: what is left at the end is as good as identical.
        link = (link + float(left.similarity.max())) / 2
        finer = propagate(adjacency(len(labels), left, link))
        labels = densify(np.where(over[labels], labels.max() + 1 + finer.astype(np.int64), labels))
    # A chain of equally strong links has outlived every round: only faces as good as identical stay together.
    over = np.bincount(labels) > max_size
    if over.any():
        inside = over[labels[pairs.first]] & (labels[pairs.first] == labels[pairs.second])
        same = pairs.where(inside & (pairs.similarity > _IDENTICAL))
        finer = propagate(adjacency(len(labels), same, _IDENTICAL))
        labels = densify(np.where(over[labels], labels.max() + 1 + finer.astype(np.int64), labels))
    return labels, int((np.bincount(labels) > max_size).sum())


def _second_of_attached(
    fit: Fit, labels: Labels, rival: NDArray[np.float64], attached: Bools
) -> NDArray[np.float64]:
    """For faces that were attached, the nearest cluster but the one they joined."""
    rivals = fit.rivalries
    others = attached[rivals.face] & (labels[rivals.face] != rivals.cluster)
    result = rival.copy()
    result[attached] = -np.inf
    np.maximum.at(result, rivals.face[others], rivals.mean[others])
    return result
