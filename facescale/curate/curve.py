"""Similarity against false-match rate: a sample of impostor similarities in, a small monotone curve out.

A curve is a list of points (false-match rate, similarity) where the sample decides, and an exponential tail beyond
them. Used by calibration; knows nothing of faces or files.

Exponential excesses are the generalized Pareto distribution with shape 0, the limit law of excesses over a high
threshold for light tails (Pickands 1975, "Statistical inference using extreme order statistics"; Coles 2001, "An
Introduction to Statistical Modeling of Extreme Values", chapter 4). The true shape is negative, as cosines end at 1:
so far beyond the sample the curve asks for more similarity than needed, never for less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from facescale.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


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
    def of(cls, values: NDArray[Any], levels: tuple[float, ...]) -> Quantiles:
        """Take them from values [N], N ≥ 1."""
        found = np.quantile(np.asarray(values, np.float64), levels)
        return cls(levels, tuple(found.tolist()), len(values))
