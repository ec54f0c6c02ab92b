"""How well clusters agree with identities: two int64 arrays in, scores out. Called by driver.evaluate and benchmarks.

Everything is computed from the sparse table of (identity, cluster) counts, over the items whose identity is known and
no others: a cluster's size is its known items. An unassigned item is a cluster of its own.

BCubed: Bagga and Baldwin 1998, "Algorithms for scoring coreference chains"; Amigó et al. 2009, "A comparison of
extrinsic clustering evaluation metrics". Pairwise: every two items, called same or different.

Shape legend: N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array

from facescale.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

UNASSIGNED = -1


@dataclass(frozen=True)
class ClusterScores:
    """Agreement of clusters and identities; all shares are 0..1.

    Attributes:
        items: items scored.
        identities: distinct identities among them.
        clusters: distinct clusters among them, each unassigned item one.
        bcubed_precision: mean over items of the share of its cluster that is of its identity.
        bcubed_recall: mean over items of the share of its identity that is in its cluster.
        bcubed_f: harmonic mean of the two.
        pairwise_precision: share of the pairs in one cluster that are of one identity; 1 where there is no such pair.
        pairwise_recall: share of the pairs of one identity that are in one cluster; 1 where there is no such pair.
        pairwise_f: harmonic mean of the two.
        singleton_precision: of items alone in their cluster, the share that is alone in its identity; None without any.
        singleton_recall: of items alone in their identity, the share that is alone in its cluster; None without any.
        cluster_count_ratio: clusters / identities; above 1 people are split, below 1 merged.
    """

    items: int
    identities: int
    clusters: int
    bcubed_precision: float
    bcubed_recall: float
    bcubed_f: float
    pairwise_precision: float
    pairwise_recall: float
    pairwise_f: float
    singleton_precision: float | None
    singleton_recall: float | None
    cluster_count_ratio: float


def score_clusters(
    identities: ArrayLike, clusters: NDArray[np.int64], *, min_photos: int = 1
) -> ClusterScores:
    """Score a clustering.

    Args:
        identities: [N], names or numbers.
        clusters: int64 [N], cluster ids; UNASSIGNED (-1) where there is none.
        min_photos: leave out items of identities with fewer items than this.

    Raises:
        UsageError: no item is left, or the arrays differ in length.
    """
    _, true = np.unique(np.asarray(identities), return_inverse=True)
    clusters = np.asarray(clusters, np.int64)
    if len(true) != len(clusters):
        raise UsageError(f"{len(true)} identities and {len(clusters)} clusters: one of each for every item")
    kept = np.bincount(true)[true] >= min_photos if len(true) else np.zeros(0, bool)
    if not kept.any():
        raise UsageError(
            f"nothing to score: no item of an identity with at least {min_photos} items has a known identity"
        )
    true = np.unique(true[kept], return_inverse=True)[1]
    found = _own_cluster_each(clusters[kept])
    of_true, of_found = np.bincount(true), np.bincount(found)
    table = coo_array((np.ones(len(true), np.int64), (true, found)), shape=(len(of_true), len(of_found)))
    table.sum_duplicates()
    both = table.data.astype(np.float64)
    rows, columns = table.coords
    num = len(true)
    precision = float((both**2 / of_found[columns]).sum() / num)
    recall = float((both**2 / of_true[rows]).sum() / num)
    pairs = _pairs(both)
    pair_precision, pair_recall = _share(pairs, _pairs(of_found)), _share(pairs, _pairs(of_true))
    alone_true, alone_found = of_true[true] == 1, of_found[found] == 1
    alone = int((alone_true & alone_found).sum())
    return ClusterScores(
        items=num,
        identities=len(of_true),
        clusters=len(of_found),
        bcubed_precision=precision,
        bcubed_recall=recall,
        bcubed_f=harmonic(precision, recall),
        pairwise_precision=pair_precision,
        pairwise_recall=pair_recall,
        pairwise_f=harmonic(pair_precision, pair_recall),
        singleton_precision=alone / int(alone_found.sum()) if alone_found.any() else None,
        singleton_recall=alone / int(alone_true.sum()) if alone_true.any() else None,
        cluster_count_ratio=len(of_found) / len(of_true),
    )


def images_sharing_a_cluster(images: NDArray[np.int64], clusters: NDArray[np.int64]) -> int:
    """Images with two faces in one cluster: people who stood beside themselves.

    Args:
        images: int64 [N], image of each face.
        clusters: int64 [N], UNASSIGNED where there is none.
    """
    known = clusters != UNASSIGNED
    pairs = np.column_stack([images[known], clusters[known]])
    if not len(pairs):
        return 0
    unique, counts = np.unique(pairs, axis=0, return_counts=True)
    return len(np.unique(unique[counts > 1, 0]))


def harmonic(precision: float, recall: float) -> float:
    """Their F-measure; 0 when both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _own_cluster_each(clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    """Dense cluster numbers, in which each unassigned item has its own."""
    found = np.empty(len(clusters), np.int64)
    known = clusters != UNASSIGNED
    names, codes = np.unique(clusters[known], return_inverse=True)
    found[known] = codes
    found[~known] = len(names) + np.arange(int((~known).sum()))
    return found


def _pairs(sizes: NDArray[np.generic]) -> float:
    values = sizes.astype(np.float64)
    return float((values * (values - 1) / 2).sum())


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
