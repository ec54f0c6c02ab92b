"""Average linkage inside many groups at once, by merging reciprocal nearest neighbors round after round.

Vectors and the group of each come in, cluster numbers go out. Called by curate.ownership: with a label as the group it
splits labels into people, with one group for all it merges people across labels.

For unit vectors the mean similarity of all pairs of two clusters is the dot product of the clusters' mean vectors, so a
cluster is its sum and its size, and nothing of size [N, N] is ever kept. Average linkage is reducible: merging two
clusters brings neither nearer to a third than the nearer of them was. Hence every pair of clusters that are each
other's nearest may merge at once, and the tree is that of merging the best pair of all again and again (Bruynooghe
1977; Murtagh 1983, "A survey of recent advances in hierarchical clustering algorithms"). Clusters that must stay apart
change nothing of that: a merged cluster may join no more than both of its halves might.

Equal similarities are decided by a hash of the pair, never by position: the result does not depend on the order of the
rows, and a thousand identical vectors merge in a dozen rounds instead of a thousand.

Shape legend: N vectors, D dimension, G groups, C clusters that are left, W widest group of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

_GRID = 2.0**20
"""Similarities closer than half of 1 / _GRID are equal: float32 products differ by that much with their order."""

_BLOCK = 1 << 22
"""Similarities computed at a time (32 MiB as float64)."""


def mix(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Hash of integers, uint64 of the same shape: the finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = np.asarray(values).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def average_linkage(
    vectors: Floats,
    group: Ints,
    cut: float,
    *,
    key: NDArray[np.uint64],
    sizes: Ints | None = None,
    apart: Ints | None = None,
) -> Ints:
    """Cluster the vectors of each group until no two clusters are as similar as the cut.

    Args:
        vectors: float32 [N, D]: unit vectors, or sums of `sizes` of them.
        group: int64 [N], any numbers; clusters never span two.
        cut: least mean similarity of the pairs of two clusters that merge.
        key: uint64 [N], a hash of what each vector is; decides between equal similarities.
        sizes: int64 [N], how many unit vectors each is the sum of; None for one each.
        apart: int64 [N], vectors of different numbers never share a cluster, -1 may be with any; None for all -1.

    Returns:
        int64 [N], 0 .. C - 1. Numbers follow the smallest key of each cluster, so they do not depend on the order.

    Notes:
        Time is that of a few rounds (a dozen, in practice) of the similarities inside groups; memory a few
        copies of `vectors` and 150 MiB.
    """
    N = len(vectors)
    if N == 0:
        return np.empty(0, np.int64)
    # A canonical order makes sums, and with them the last bit of every similarity, independent of that of the rows.
    order = np.lexsort((key, group))
    sums = vectors[order].astype(np.float32)
    counts = np.ones(N, np.int64) if sizes is None else sizes[order].astype(np.int64)
    groups, keys = group[order], key[order]
    kinds = np.full(N, -1) if apart is None else apart[order]
    cluster = np.arange(N)
    busy = np.ones(N, bool)  # clusters of groups that merged something in the round before
    while busy.any():
        at = np.flatnonzero(busy)
        first, second = _reciprocal(sums[at], counts[at], groups[at], keys[at], kinds[at], cut)
        first, second = at[first], at[second]
        sums[first] += sums[second]
        counts[first] += counts[second]
        keys[first] = mix(keys[first] ^ keys[second])
        kinds[first] = np.maximum(kinds[first], kinds[second])
        into = np.arange(len(sums))
        into[second] = first
        kept = np.ones(len(sums), bool)
        kept[second] = False
        place = np.cumsum(kept) - 1
        cluster = place[into[cluster]]
        merging = np.isin(groups, groups[first])
        sums, counts, groups, keys = sums[kept], counts[kept], groups[kept], keys[kept]
        kinds, busy = kinds[kept], merging[kept]
    result = np.empty(N, np.int64)
    result[order] = cluster
    return relabel(result, key)


def relabel(cluster: Ints, key: NDArray[np.uint64]) -> Ints:
    """Number clusters 0 .. C - 1 by the smallest key of their members.

    Args:
        cluster: int64 [N], any numbers.
        key: uint64 [N].
    """
    if not len(cluster):
        return cluster
    dense = np.unique(cluster, return_inverse=True)[1].ravel()
    smallest = np.full(dense.max() + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, dense, key)
    rank = np.empty(len(smallest), np.int64)
    rank[np.argsort(smallest, kind="stable")] = np.arange(len(smallest))
    return rank[dense]


def _reciprocal(
    sums: Floats, counts: Ints, groups: Ints, keys: NDArray[np.uint64], kinds: Ints, cut: float
) -> tuple[Ints, Ints]:
    """Pairs (first < second) of rows that are each other's nearest in their group and as similar as the cut."""
    means: Floats = np.divide(sums, counts[:, None], dtype=np.float32, casting="same_kind")
    nearest = np.full(len(sums), -1)
    for rows, columns in batches(groups):
        found = _nearest(means, keys, kinds, rows, columns, cut)
        real = rows >= 0
        nearest[rows[real]] = found[real]
    at = np.arange(len(sums))
    first = np.flatnonzero((nearest > at) & (nearest[np.maximum(nearest, 0)] == at))
    return first, nearest[first]


def batches(groups: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Rows to compare with columns: ([B, R], [B, W]) positions, filled up with -1; groups of like width together.

    Groups of one are left out, as they have nobody to be compared with.

    Args:
        groups: int64 [N], sorted.
    """
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
    widths = np.diff(np.append(starts, len(groups)))
    order = np.flatnonzero(widths > 1)
    order = order[np.argsort(widths[order], kind="stable")[::-1]]
    done = 0
    while done < len(order):
        W = int(widths[order[done]])
        # At least half full, so that no more than three quarters of a product are waste.
        alike = int(np.searchsorted(-widths[order[done:]], -(W // 2), side="left"))
        batch = order[done : done + max(1, min(alike, _BLOCK // (W * W)))]
        done += len(batch)
        step = np.arange(W)
        columns = np.where(step < widths[batch, None], starts[batch, None] + step, -1)
        height = max(1, _BLOCK // (W * len(batch)))
        for top in range(0, W, height):
            yield columns[:, top : top + height], columns


def _nearest(
    means: Floats, keys: NDArray[np.uint64], kinds: Ints, rows: Ints, columns: Ints, cut: float
) -> Ints:
    """The nearest column of each row, int64 [B, R]; -1 where none is as similar as the cut."""
    similarity = np.matmul(means[rows], means[columns].transpose(0, 2, 1)).astype(np.float64)
    barred = (columns < 0)[:, None, :] | (rows[:, :, None] == columns[:, None, :]) | (similarity < cut)
    if (kinds >= 0).any():
        mine, theirs = kinds[rows][:, :, None], kinds[columns][:, None, :]
        barred |= (mine >= 0) & (theirs >= 0) & (mine != theirs)
    pair = (keys[rows][:, :, None] ^ keys[columns][:, None, :]) * np.uint64(0x9E3779B97F4A7C15)
    np.multiply(similarity, _GRID, out=similarity)
    np.rint(similarity, out=similarity)
    similarity += (pair >> np.uint64(40)).astype(np.float64) * 2.0**-25
    similarity[barred] = -np.inf
    at = similarity.argmax(axis=2)
    found = np.take_along_axis(columns, at.reshape(len(columns), -1), axis=1)
    best = np.take_along_axis(similarity, at[:, :, None], axis=2)[:, :, 0]
    return np.where((rows >= 0) & np.isfinite(best), found, -1)
