"""Counts of (identity, cluster) pairs, gathered block by block: int64 arrays in, one sorted table of counts out.

What scores need of 10⁸ faces is only how many of each identity are in each cluster. Called by evaluate.clusters.

Shape legend: N items, P distinct pairs, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

UNASSIGNED = -1
_MERGE_ROWS = 1 << 20


@dataclass(frozen=True, eq=False)
class Pairs:
    """The table of counts, sorted by identity and then cluster.

    Attributes:
        identity: int64 [P].
        cluster: int64 [P]; UNASSIGNED for items without one, each of which is a cluster of its own.
        counts: int32 [P, B], items of the pair in each bin; up to 2 × 10⁹.
    """

    identity: Ints
    cluster: Ints
    counts: NDArray[np.int32]


class Contingency:
    """Counts pairs of a stream.

    Args:
        bins: B, into which items are told apart (by quality, say).

    Notes:
        Memory: 16 + 4 B bytes a distinct pair, and some 400 at the peak of merging and scoring, whatever the number of
        items (measured with B = 6: 20 million items, 3.4 million pairs, 1.3 GB). What comes in is merged whenever it is
        as large as what is held, so all together costs little more than sorting once.
    """

    def __init__(self, bins: int = 1) -> None:
        self.bins = bins
        none = np.empty(0, np.int64)
        self._held = Pairs(none, none, np.empty((0, bins), np.int32))
        self._blocks: list[Pairs] = []
        self._waiting = 0

    def add(self, identity: Ints, cluster: Ints, bins: Ints | None = None) -> None:
        """Count items.

        Args:
            identity: int64 [N], any numbers.
            cluster: int64 [N], any numbers from 0 on; UNASSIGNED for none.
            bins: int64 [N] of 0..B - 1; None puts all in bin 0.
        """
        counts = np.zeros((len(identity), self.bins), np.int32)
        counts[np.arange(len(identity)), 0 if bins is None else bins] = 1
        self._blocks.append(_summed(identity, cluster, counts))
        self._waiting += len(self._blocks[-1].identity)
        if self._waiting > max(_MERGE_ROWS, len(self._held.identity)):
            self._merge()

    def pairs(self) -> Pairs:
        """What was counted."""
        self._merge()
        return self._held

    def _merge(self) -> None:
        every = [self._held, *self._blocks]
        self._held = _summed(
            np.concatenate([block.identity for block in every]),
            np.concatenate([block.cluster for block in every]),
            np.concatenate([block.counts for block in every]),
        )
        self._blocks, self._waiting = [], 0


def _summed(identity: Ints, cluster: Ints, counts: NDArray[np.int32]) -> Pairs:
    """Rows with equal keys added up."""
    order = np.lexsort((cluster, identity))
    identity, cluster = identity[order], cluster[order]
    if not len(order):
        return Pairs(identity, cluster, counts)
    starts = np.flatnonzero(np.append(True, (identity[1:] != identity[:-1]) | (cluster[1:] != cluster[:-1])))
    return Pairs(identity[starts], cluster[starts], np.add.reduceat(counts[order], starts, axis=0))
