"""Merging clusters that are each other's best: labels and pairs in, coarser labels out. Called by curate.cluster.

Two clusters are compared by the mean similarity of all their pairs of faces, which for unit vectors is the dot product
of their sums over the product of their sizes: exact, whatever the lists left out. In each round the pairs of clusters
merge that exceed their bound by more than either does with any other cluster, so that no chain forms within a round.
(Merging one best pair at a time takes as many rounds as merges; reciprocal pairs give the same tree for average
linkage, see curate.linkage.)

A pair below its bound is never looked at again: the mean of a merged cluster lies between those of its parts, and
bounds only rise with size. Nor is one that would put two faces of an image into one cluster.

Shape legend: N faces, D dimension, C clusters, P pairs of faces, Q pairs of clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array, csr_array

from facescale.curate.linkage import mix
from facescale.curate.products import row_products, sums_of
from facescale.curate.propagate import densify

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.curate.graph import Pairs

    Ints = NDArray[np.int64]
    Labels = NDArray[np.int32]
    Floats = NDArray[np.float32]
    Bools = NDArray[np.bool_]

_BLOCK = 32_768


@dataclass(frozen=True)
class Bound:
    """Least mean similarity of two clusters that merge; it rises with 1 − 1 / (size of the smaller).

    The mean of many pairs is less noisy than that of one, so a true match of large clusters lies well above where two
    single faces may already be one person, and a large wrong merge does more harm.

    Attributes:
        small: cosine, for a cluster of one face.
        large: cosine, for two large clusters.
    """

    small: float
    large: float

    def of(self, size: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bound by the size of the smaller cluster."""
        bounds: NDArray[np.float64] = self.small + (self.large - self.small) * (1 - 1 / size)
        return bounds


def merge(
    labels: Labels, unit: Floats, pairs: Pairs, image: Ints, bound: Bound, *, max_size: int
) -> tuple[Labels, int]:
    """Merge clusters, round by round, until no pair reaches its bound.

    Args:
        labels: int32 [N], 0 .. C - 1, no two faces of one image alike.
        unit: float32 [N, D].
        pairs: of faces; their clusters are the candidates.
        image: int64 [N].
        bound: see there; `large` is not below `small`.
        max_size: no cluster becomes larger.

    Returns:
        (labels int32 [N], 0 .. L - 1; how many merges the largest size has prevented).
    """
    state = _State(labels, unit, image, bound, max_size)
    first, second = _distinct(labels[pairs.first], labels[pairs.second], state.num)
    first, second, excess = state.judge(first, second)
    while len(first):
        chosen = _reciprocal(first, second, excess, state.num)
        into, touched = state.join(first[chosen], second[chosen])
        first, second = into[first], into[second]
        changed = touched[first] | touched[second]
        new = state.judge(*_distinct(first[changed], second[changed], state.num))
        old = (first[~changed], second[~changed], excess[~changed])
        first, second, excess = (np.concatenate(both) for both in zip(old, new, strict=True))
    return densify(state.labels), state.prevented


class _State:
    """Clusters while they merge: a cluster is a sum, a size and the crowded images it has a face on."""

    def __init__(self, labels: Labels, unit: Floats, image: Ints, bound: Bound, max_size: int) -> None:
        self.labels, self.bound, self.max_size, self.prevented = labels, bound, max_size, 0
        self.num = int(labels.max(initial=-1)) + 1
        self.sums = sums_of(labels, unit, self.num)
        self.sizes = np.bincount(labels, minlength=self.num).astype(np.float64)
        # Only images with several faces can bar a merge.
        _, self._image, faces = np.unique(image, return_inverse=True, return_counts=True)
        self._crowded = np.flatnonzero(faces[self._image] > 1)
        self._on = self._table()

    def judge(self, first: Ints, second: Ints) -> tuple[Ints, Ints, NDArray[np.float64]]:
        """The pairs that may merge, and by how much each exceeds its bound."""
        sizes = self.sizes[first], self.sizes[second]
        mean = row_products(self.sums, first, self.sums, second) / (sizes[0] * sizes[1])
        excess = mean - self.bound.of(np.minimum(*sizes))
        fits = sizes[0] + sizes[1] <= self.max_size
        self.prevented += int(((excess >= 0) & ~fits).sum())
        at = np.flatnonzero((excess >= 0) & fits)
        at = at[~self._share_an_image(first[at], second[at])]
        return first[at], second[at], excess[at]

    def join(self, first: Ints, second: Ints) -> tuple[Ints, Bools]:
        """Merge each second into its first; (new number of every cluster, whether it has changed)."""
        into = np.arange(self.num)
        into[second] = first
        self.sums[first] += self.sums[second]
        self.sizes[first] += self.sizes[second]
        self.labels = into[self.labels].astype(np.int32)
        self._on = self._table()
        touched = np.zeros(self.num, bool)
        touched[first] = True
        return into, touched

    def _table(self) -> csr_array:
        """Clusters × images with several faces: 1 where the cluster has a face on the image."""
        at = self._crowded
        entries = (np.ones(len(at), np.int32), (self.labels[at], self._image[at]))
        return coo_array(entries, shape=(self.num, int(self._image.max(initial=-1)) + 1)).tocsr()

    def _share_an_image(self, first: Ints, second: Ints) -> Bools:
        barred = np.zeros(len(first), bool)
        crowded = np.diff(self._on.indptr) > 0
        at = np.flatnonzero(crowded[first] & crowded[second])
        for start in range(0, len(at), _BLOCK):
            block = at[start : start + _BLOCK]
            both = self._on[first[block]].multiply(self._on[second[block]])
            barred[block] = np.asarray(both.sum(axis=1)).ravel() > 0
        return barred


def _distinct(first: NDArray[np.integer], second: NDArray[np.integer], num: int) -> tuple[Ints, Ints]:
    """Different clusters, each pair once, the smaller number first."""
    low, high = np.minimum(first, second).astype(np.int64), np.maximum(first, second).astype(np.int64)
    key = np.unique((low * num + high)[low != high])
    return key // max(num, 1), key % max(num, 1)


def _reciprocal(first: Ints, second: Ints, excess: NDArray[np.float64], num: int) -> Bools:
    """Which pairs are the best of both their clusters; equal ones are told apart by a hash of the pair."""
    order = np.lexsort((second, first, mix(mix(first) ^ second.astype(np.uint64)), -excess))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    best = np.full(num, len(order), np.int64)
    np.minimum.at(best, first, rank)
    np.minimum.at(best, second, rank)
    chosen: Bools = (rank == best[first]) & (rank == best[second])
    return chosen
