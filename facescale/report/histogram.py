"""Histograms of values that stream by: numbers come in block by block, counts in fixed memory come out.

Called by the sections of the report. Neither range nor number of the values has to be known: when a value lies beyond
the bins, neighboring bins are added up until it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FINE_BINS = 1 << 16


class Histogram:
    """Counts in FINE_BINS equal bins that grow with the data: 512 KiB, whatever is added."""

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(FINE_BINS, np.int64)
        self.low, self.width = 0.0, 0.0  # of the first bin; width 0 before anything was added
        self.smallest, self.largest = np.inf, -np.inf
        self.missing = 0

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def add(self, values: NDArray[Any]) -> None:
        """Count values, any shape; those that are not finite are counted as missing."""
        values = np.asarray(values, np.float64).ravel()
        finite = values[np.isfinite(values)]
        self.missing += len(values) - len(finite)
        if not len(finite):
            return
        self.smallest = min(self.smallest, float(finite.min()))
        self.largest = max(self.largest, float(finite.max()))
        self._cover(self.smallest, self.largest)
        bins = np.clip(((finite - self.low) / self.width).astype(np.int64), 0, FINE_BINS - 1)
        self.counts += np.bincount(bins, minlength=FINE_BINS)

    def quantile(self, share: float) -> float:
        """The value below which this share of the values lies, to the width of a bin; NaN when there are none."""
        if not self.total:
            return float("nan")
        at = int(np.searchsorted(np.cumsum(self.counts), share * self.total, side="left"))
        middle = self.low + (min(at, FINE_BINS - 1) + 0.5) * self.width
        if abs(middle) <= self.width / 2:  # the bin that holds 0, which many values are exactly
            middle = 0.0
        return float(np.clip(middle, self.smallest, self.largest))

    def share_above(self, value: float) -> float:
        """Share of the values above one, to the width of a bin; NaN when there are none."""
        if not self.total:
            return float("nan")
        middles = self.low + (np.arange(FINE_BINS) + 0.5) * self.width
        return float(self.counts[middles >= value].sum() / self.total)

    def bars(self, low: float, high: float, number: int) -> Bars:
        """Counts in `number` equal bins from low to high; what lies beyond is counted in the first and the last."""
        middles = self.low + (np.arange(FINE_BINS) + 0.5) * self.width
        bins = np.clip(((middles - low) / (high - low) * number).astype(np.int64), 0, number - 1)
        return Bars(low, high, np.bincount(bins, weights=self.counts, minlength=number).astype(np.int64))

    def trimmed_range(self, tail: float = 0.002) -> tuple[float, float]:
        """From where to where to draw: without a share `tail` at each end, unless the rest is all the same."""
        low, high = self.quantile(tail), self.quantile(1 - tail)
        if not np.isfinite(low):
            return 0.0, 1.0
        if high - low <= 2 * self.width:
            low, high = self.smallest, self.largest
        margin = (high - low) * 0.03 or 0.5
        return low - margin, high + margin

    def _cover(self, low: float, high: float) -> None:
        """Make the bins reach from low to high, at least."""
        if not self.width:
            spread = max(high - low, abs(high) * 1e-6, 1e-9)
            self.low, self.width = low - spread / 16, spread * 1.125 / FINE_BINS
        while low < self.low or high >= self.low + self.width * FINE_BINS:
            paired = self.counts.reshape(-1, 2).sum(axis=1)
            upward = low >= self.low
            self.low -= 0.0 if upward else self.width * FINE_BINS
            self.width *= 2
            empty = np.zeros(FINE_BINS // 2, np.int64)
            self.counts = np.concatenate([paired, empty] if upward else [empty, paired])


@dataclass(frozen=True, eq=False)
class Bars:
    """What is drawn.

    Attributes:
        low: left edge of the first bar.
        high: right edge of the last.
        counts: int64 [number of bars].
    """

    low: float
    high: float
    counts: NDArray[np.int64]

    @property
    def total(self) -> int:
        """All that was counted."""
        return int(self.counts.sum())
