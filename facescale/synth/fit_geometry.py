"""Fits the geometry of simulated embeddings to real ones: unit vectors and identities in, a Geometry out.

Fitted are moments and spectra, nothing about clusters. Called by tools/fit_simulator.py, which measures how well the
quantiles of genuine and impostor similarities then agree.

Shape legend: N faces, D dimension, P people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from facescale.synth.geometry import QUALITY_LEVELS, Geometry, Spectrum

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_MANY = 8


def fit_geometry(
    unit: Floats, who: Ints, quality: Floats, *, quality_noise: float, copy_noise: float
) -> Geometry:
    """Fit the model to embeddings; people of eight faces or more tell how spreads vary.

    Args:
        unit: float64 [N, D], unit length.
        who: int64 [N], identities 0..P - 1.
        quality: float64 [N]; NaN where unknown.
        quality_noise: assumed, as one photograph has one quality.
        copy_noise: length of what saving again adds.
    """
    counts = np.bincount(who)
    centers = np.stack([np.bincount(who, unit[:, d]) for d in range(unit.shape[1])], axis=1) / counts[:, None]
    several = counts[who] >= 2
    residual = ((unit - centers[who]) * np.sqrt(counts / np.maximum(counts - 1, 1))[who][:, None])[several]
    within = residual.T @ residual / len(residual)
    mean = unit.mean(axis=0)
    total = np.cov(unit.T)
    values, vectors = np.linalg.eigh(total - within)
    between = np.maximum(values[::-1], 0)
    along = np.diag(vectors.T @ within @ vectors)[::-1]
    length = np.linalg.norm(residual, axis=1)
    people = who[several]
    spread = np.sqrt(np.bincount(people, length**2) / np.maximum(np.bincount(people), 1))
    many = np.flatnonzero(counts >= _MANY)
    # Lengths vary by chance, too: that of a normal vector with these variances, and for a person's the mean of n.
    chance = float((along**2).sum() / (2 * along.sum() ** 2))
    by_chance = np.mean(chance / counts[many]) if len(many) else 0.0
    varies = np.log(spread[many]).var() if len(many) > 1 else 0.0
    person_spread = max(0.0, float(varies - by_chance)) ** 0.5
    q05, q95 = np.quantile(np.log(length), [0.05, 0.95])
    face_spread = max(0.0, ((q95 - q05) / (2 * 1.645)) ** 2 - chance - person_spread**2) ** 0.5
    return Geometry(
        mean=float(mean @ mean),
        between=fit_spectrum(between, float(np.trace(total - within))),
        within=fit_spectrum(
            along, float(np.trace(within)) / float(np.exp(2 * (person_spread**2 + face_spread**2)))
        ),
        person_spread=person_spread,
        face_spread=face_spread,
        quality=tuple(np.quantile(quality[np.isfinite(quality)], QUALITY_LEVELS).tolist()),
        quality_noise=quality_noise,
        copy_noise=copy_noise,
    )


def fit_spectrum(variances: Floats, total: float) -> Spectrum:
    """The spectrum nearest to variances, float64 [D], falling: least squares of their square roots.

    Args:
        variances: of directions.
        total: their sum, which the spectrum gets.
    """
    from scipy.optimize import minimize

    dim = len(variances)
    wanted = np.sqrt(np.maximum(variances, 0) / np.maximum(variances, 0).sum())
    starts = [(2.0, 1.0, 60.0, 2.0), (20.0, 0.5, 80.0, 1.5), (5.0, 1.5, 90.0, 3.0)]

    def spectrum(values: Floats) -> Spectrum:
        bend, power, cut, steep = np.exp(np.clip(values, -8, 8))
        return Spectrum(total, float(bend), float(power), float(cut), float(steep))

    def distance(values: Floats) -> float:
        found = spectrum(values).scales(dim).astype(np.float64)
        return float((((found / np.sqrt(total)) - wanted) ** 2).sum())

    fits = [
        minimize(distance, np.log(start), method="Nelder-Mead", options={"maxiter": 4000, "fatol": 1e-10})
        for start in starts
    ]
    return spectrum(min(fits, key=lambda fit: float(fit.fun)).x)
