"""Similarity against false-match rate: a histogram of impostor similarities in, a small monotone curve out.

A curve is a list of points (false-match rate, similarity) where the sample decides, and an exponential tail beyond
them. Used by calibration and its fit; knows nothing of faces or files.

Exponential excesses are the generalized Pareto distribution with shape 0, the limit law of excesses over a high
threshold for light tails (Pickands 1975, "Statistical inference using extreme order statistics"; Coles 2001, "An
Introduction to Statistical Modeling of Extreme Values", chapter 4). The true shape is negative, as cosines end at 1:
so far beyond the sample the curve tends to ask for more similarity than needed rather than for less. How far it reaches
is `Curve.decades_beyond`; one decade is well supported, three are a guess on the safe side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from facescale.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

BIN = 1e-5
"""Width of a histogram's bins, in cosine; rates at their edges are exact."""
_NUM_BINS = round(2 / BIN) + 2  # [-1, 1], and one on each side for rounding beyond
TAIL_SAMPLE = 200
"""Impostors that must lie above the last point: their mean excess is known to about 7 %, were they independent."""
_STEPS = (7.0, 5.0, 3.0, 2.0, 1.5, 1.0)


class Histogram:
    """Counts of similarities, so that billions fit in 1.6 MB."""

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(_NUM_BINS, np.int64)

    def add(self, similarity: NDArray[Any]) -> None:
        """Count cosines, float [any shape]."""
        bins = ((similarity.ravel() + 1.0) * (1 / BIN)).astype(np.int32) + 1
        self.counts += np.bincount(np.clip(bins, 0, _NUM_BINS - 1), minlength=_NUM_BINS)

    @property
    def total(self) -> int:
        """How many were counted."""
        return int(self.counts.sum())

    def median_and_deviation(self) -> tuple[float, float]:
        """Median, and 1.4826 × median absolute deviation (the standard deviation of a Gaussian)."""
        middles = _edges() + BIN / 2
        median = _weighted_median(middles, self.counts)
        return median, 1.4826 * _weighted_median(np.abs(middles - median), self.counts)

    def curve(self, supported: float = 0.0) -> Curve:
        """The curve of the impostors counted.

        Args:
            supported: end the points at this rate even where more impostors are at hand, because they are not
                independent.

        Raises:
            DataError: fewer than two different similarities were counted.
        """
        total = self.total
        if np.count_nonzero(self.counts) < 2:
            raise DataError(f"a curve needs different similarities; {total} were counted, all alike")
        above = np.cumsum(self.counts[::-1])[::-1]  # how many lie at or above each bin's lower edge
        last = min(0.1, max(supported, TAIL_SAMPLE / total))
        rates = [0.999, 0.99, 0.97, 0.95, *np.linspace(0.9, 0.15, 16).tolist()]
        rates += [step * 10.0**-decade for decade in range(2, 18) for step in (10.0, *_STEPS[:-1])]
        wanted = np.array([rate for rate in rates if rate > last * 1.2] + [last])
        # The first edge that at most the wanted share reaches; what is stored is the share that does reach it.
        at = np.searchsorted(-above, -np.floor(wanted * total), side="left")
        at = np.concatenate([[np.flatnonzero(above == total)[-1]], at])
        _, first = np.unique(above[at], return_index=True)
        at = np.sort(at[first])
        at = at[above[at] > 0]
        edges, tail = _edges(), self.counts[at[-1] :]
        excess = float((tail * (edges[at[-1] :] + BIN / 2 - edges[at[-1]])).sum() / tail.sum())
        return Curve(tuple((above[at] / total).tolist()), tuple(edges[at].tolist()), excess, total)


@dataclass(frozen=True)
class Curve:
    """Similarity (cosine) ↔ share of impostor similarities at or above it.

    Between points the logarithm of the rate is linear in the similarity. Below the last point (the smallest rate that
    the sample shows) it goes on as a straight line of slope -1 / tail_scale: see the module's head. A similarity that
    would pass 1 is returned as 1, which only a face itself reaches.

    Attributes:
        fmr: falling from 1; the last is where the tail begins.
        similarity: rising, one for each rate.
        tail_scale: mean excess over the last similarity, in cosine.
        count: impostor similarities the curve was made of.
    """

    fmr: tuple[float, ...]
    similarity: tuple[float, ...]
    tail_scale: float
    count: int

    def __post_init__(self) -> None:
        rates, values = np.asarray(self.fmr), np.asarray(self.similarity)
        good = (
            len(rates) == len(values) >= 2
            and bool(np.isfinite(rates).all() and np.isfinite(values).all())
            and rates[0] == 1.0
            and rates[-1] > 0
            and bool((np.diff(rates) < 0).all() and (np.diff(values) > 0).all())
            and self.tail_scale > 0
        )
        if not good:
            raise DataError(
                "a calibration curve needs at least two points, rates that fall from 1, similarities that rise and a "
                f"positive tail_scale; got {len(rates)} rates, {len(values)} similarities, "
                f"tail_scale {self.tail_scale!r}"
            )

    @property
    def supported(self) -> float:
        """The smallest false-match rate that rests on the sample; smaller ones are extrapolated by the tail."""
        return self.fmr[-1]

    def decades_beyond(self, fmr: float) -> float:
        """How far a rate is extrapolated: 0 within the sample, 1 for a tenth of what it supports, and so on."""
        return max(0.0, float(np.log10(self.supported / fmr)))

    def similarity_at(self, fmr: float) -> float:
        """The similarity that this share of impostors reaches.

        Args:
            fmr: in (0, 1].

        Returns:
            Cosine; falls strictly with `fmr` until it is cut at 1.

        Raises:
            UsageError: the rate is not in (0, 1].
        """
        if not 0 < fmr <= 1:
            raise UsageError(f"a false-match rate lies above 0 and at most at 1, got {fmr!r}")
        if fmr < self.supported:
            return min(1.0, self.similarity[-1] + self.tail_scale * float(np.log(self.supported / fmr)))
        logs = np.log(self.fmr)
        return float(np.interp(np.log(fmr), logs[::-1], self.similarity[::-1]))

    @overload
    def fmr_of(self, similarity: float) -> float: ...
    @overload
    def fmr_of(self, similarity: NDArray[Any]) -> NDArray[np.float64]: ...
    def fmr_of(self, similarity: ArrayLike) -> float | NDArray[np.float64]:
        """The share of impostors that reach a similarity; the inverse of `similarity_at`.

        Args:
            similarity: cosine, a number or an array of any shape.

        Returns:
            In (0, 1], float64 of the same shape.
        """
        values = np.asarray(similarity, np.float64)
        inside = np.interp(values, self.similarity, np.log(self.fmr))
        excess = np.maximum(values - self.similarity[-1], 0.0)
        rates: NDArray[np.float64] = np.exp(inside - excess / self.tail_scale)
        return float(rates) if rates.ndim == 0 else rates

    def quantile(self, q: float) -> float:
        """Quantile of the impostor distribution, `q` in [0, 1), e.g. 0.5 or 0.999."""
        return self.similarity_at(1.0 - q)


@dataclass(frozen=True)
class Quantiles:
    """A distribution by its quantiles, linear in between.

    Attributes:
        levels: rising, from 0 to 1.
        values: cosine, not falling, one for each level.
        count: values it was made of.
    """

    levels: tuple[float, ...]
    values: tuple[float, ...]
    count: int

    def __post_init__(self) -> None:
        levels, values = np.asarray(self.levels), np.asarray(self.values)
        if len(levels) != len(values) or len(levels) < 2 or (np.diff(levels) <= 0).any():
            raise DataError(f"quantiles need rising levels, one a value; got {self.levels} and {self.values}")
        if not np.isfinite(values).all() or (np.diff(values) < 0).any():
            raise DataError(f"quantiles must not fall; got {self.values}")

    def quantile(self, q: float) -> float:
        """The value that a share `q` of the distribution stays below.

        Raises:
            UsageError: `q` is not in [0, 1].
        """
        if not 0 <= q <= 1:
            raise UsageError(f"a quantile lies between 0 and 1, got {q!r}")
        return float(np.interp(q, self.levels, self.values))

    @classmethod
    def of(cls, values: NDArray[Any]) -> Quantiles:
        """Take them from values [N], N ≥ 1."""
        found = np.quantile(np.asarray(values, np.float64), LEVELS)
        return cls(LEVELS, tuple(np.maximum.accumulate(found).tolist()), len(values))


LEVELS = (
    0.0,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.95,
    0.99,
    1.0,
)


def _edges() -> NDArray[np.float64]:
    """Lower edges of a histogram's bins."""
    return np.arange(_NUM_BINS, dtype=np.float64) * BIN - (1.0 + BIN)


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.int64]) -> float:
    order = np.argsort(values, kind="stable")
    at = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
    return float(values[order[min(int(at), len(values) - 1)]])
