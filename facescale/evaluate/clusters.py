"""How well clusters agree with identities: counts of pairs or two int64 arrays in, scores out.

Everything is computed from the counts of (identity, cluster) pairs, over the items whose identity is known and no
others: a cluster's size is its known items. An unassigned item is a cluster of its own. Called by driver.evaluate and
benchmarks.

BCubed: Bagga and Baldwin 1998, "Algorithms for scoring coreference chains"; Amigó et al. 2009, "A comparison of
extrinsic clustering evaluation metrics". Pairwise: every two items, called same or different. NMI: mutual information
over the arithmetic mean of the entropies (Strehl and Ghosh 2002; Vinh et al. 2010). ARI: Hubert and Arabie 1985.

Shape legend: N items, P distinct pairs, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import UsageError
from facescale.evaluate.contingency import UNASSIGNED, Contingency, Pairs

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "UNASSIGNED",
    "BinScores",
    "ClusterScores",
    "images_sharing_a_cluster",
    "score_bins",
    "score_clusters",
    "score_pairs",
]


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
        nmi: normalized mutual information; 1 where both are one group, or every item is alone in both.
        ari: adjusted Rand index: 0 for what chance would give, 1 for agreement; may be negative.
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
    nmi: float
    ari: float
    singleton_precision: float | None
    singleton_recall: float | None
    cluster_count_ratio: float


@dataclass(frozen=True)
class BinScores:
    """BCubed over the items of one bin; clusters and identities are whole.

    Attributes:
        items: in the bin.
        bcubed_precision: see ClusterScores.
        bcubed_recall: see ClusterScores.
        bcubed_f: see ClusterScores.
        unassigned: share of the items that have no cluster.
    """

    items: int
    bcubed_precision: float
    bcubed_recall: float
    bcubed_f: float
    unassigned: float


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
    counted = Contingency()
    counted.add(true.astype(np.int64), clusters)
    return score_pairs(counted.pairs(), min_photos=min_photos)


def score_pairs(pairs: Pairs, *, min_photos: int = 1) -> ClusterScores:
    """Score counts of pairs; see score_clusters.

    Notes:
        Time and memory are those of the distinct pairs, not of the items; see Contingency.

    Raises:
        UsageError: no item is left.
    """
    true, cluster, count = pairs.identity, pairs.cluster, pairs.counts.sum(axis=1, dtype=np.int64)
    size = _sums(true, count)[0]
    kept = size >= min_photos
    if not kept.any():
        raise UsageError(
            f"nothing to score: no item of an identity with at least {min_photos} items has a known identity"
        )
    true, cluster, count, size = true[kept], cluster[kept], count[kept], size[kept]
    single = cluster == UNASSIGNED  # `count` clusters of one item each
    n, of_true = count[~single].astype(np.float64), size[~single].astype(np.float64)
    of_found, sizes = _sums(cluster[~single], count[~single])
    alone, alone_of = count[single].astype(np.float64), size[single].astype(np.float64)
    true_sizes = size[np.append(True, true[1:] != true[:-1])]
    num, num_alone = int(count.sum()), int(alone.sum())
    precision = float((n**2 / of_found).sum() + num_alone) / num
    recall = float((n**2 / of_true).sum() + (alone / alone_of).sum()) / num
    both, found_pairs, true_pairs = _pairs(n), _pairs(sizes), _pairs(true_sizes)
    pair_precision, pair_recall = _share(both, found_pairs), _share(both, true_pairs)
    mutual = float((n / num * np.log(n * num / (of_true * of_found))).sum())
    mutual += float((alone / num * np.log(num / alone_of)).sum())
    entropy = (_entropy(true_sizes, num) + _entropy(sizes, num) + num_alone / num * float(np.log(num))) / 2
    agreed = int(count[single & (size == 1)].sum()) + int(
        count[~single][(of_found == 1) & (of_true == 1)].sum()
    )
    singles, true_singles = num_alone + int((sizes == 1).sum()), int((true_sizes == 1).sum())
    return ClusterScores(
        items=num,
        identities=len(true_sizes),
        clusters=len(sizes) + num_alone,
        bcubed_precision=precision,
        bcubed_recall=recall,
        bcubed_f=harmonic(precision, recall),
        pairwise_precision=pair_precision,
        pairwise_recall=pair_recall,
        pairwise_f=harmonic(pair_precision, pair_recall),
        nmi=min(max(mutual / entropy, 0.0), 1.0) if entropy > 0 else 1.0,
        ari=_adjusted(both, found_pairs, true_pairs, num * (num - 1) / 2),
        singleton_precision=agreed / singles if singles else None,
        singleton_recall=agreed / true_singles if true_singles else None,
        cluster_count_ratio=(len(sizes) + num_alone) / len(true_sizes),
    )


def score_bins(pairs: Pairs) -> list[BinScores | None]:
    """BCubed by bin: B entries, None for a bin without items."""
    count = pairs.counts.sum(axis=1, dtype=np.int64)
    single = pairs.cluster == UNASSIGNED
    size = _sums(pairs.identity, count)[0].astype(np.float64)
    of_found, _ = _sums(pairs.cluster, count)
    precision = np.where(single, 1.0, count / of_found)
    recall = np.where(single, 1.0, count) / size
    scores: list[BinScores | None] = []
    for column in pairs.counts.T:
        items = int(column.sum())
        if not items:
            scores.append(None)
            continue
        p, r = float(column @ precision) / items, float(column @ recall) / items
        scores.append(BinScores(items, p, r, harmonic(p, r), float(column[single].sum()) / items))
    return scores


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


def _sums(group: NDArray[np.int64], count: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Size of each row's group [P], and the sizes of the groups; exact integers."""
    order = np.argsort(group, kind="stable")
    starts = (
        np.flatnonzero(np.append(True, np.diff(group[order]) != 0)) if len(group) else np.empty(0, np.int64)
    )
    sizes = np.add.reduceat(count[order], starts) if len(group) else np.empty(0, np.int64)
    rows = np.empty(len(group), np.int64)
    rows[order] = np.repeat(sizes, np.diff(np.append(starts, len(group))))
    return rows, sizes


def _entropy(sizes: NDArray[np.int64], num: int) -> float:
    """Of groups of these sizes among `num` items, in nats."""
    share = sizes / num
    return -float((share * np.log(share)).sum())


def _adjusted(both: float, found: float, true: float, every: float) -> float:
    """ARI of pairs together in both, in clusters, in identities, and of all pairs."""
    expected = found * true / every if every else 0.0
    most = (found + true) / 2
    return (both - expected) / (most - expected) if most != expected else 1.0


def _pairs(sizes: NDArray[np.generic]) -> float:
    values = sizes.astype(np.float64)
    return float((values * (values - 1) / 2).sum())


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
