"""Fit a calibration, and check one on other people: unit embeddings and identities in, distributions and rates out.

Pure array work, called by driver.calibrate. Two faces of different people are an impostor pair; one vote each. All
pairs of the faces are used (blocked products, a histogram) up to a budget, above which a seeded sample of faces is, and
all pairs among those: at equal cost that is far more pairs than a sample of pairs would give.

Shape legend: N faces, D dimension, P people with a center, B block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.curate.calibration import Calibration, Genuine, RandomPairs
from facescale.curate.curve import Histogram, Quantiles
from facescale.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from facescale.curate.curve import Curve

CENTER_FACES = 4
"""Faces that a center is made of, at least: fewer make a noisy one, whose impostor similarities are lower."""
MIN_PEOPLE = 10
MIN_CENTERS = 3
MIN_QUALITY_QUANTILE = 0.02
"""Share of the calibration set's faces that the recognizability gate would hold back."""
MAX_PAIRS = 200_000_000
_CHECK_PAIRS = 20_000_000
_PAIRS_OF_A_FACE = 4
_INDEPENDENT = 20
_BLOCK = 1024
_REPLICATES = 500
_NOMINAL = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_Z95 = 1.959964


def fit(
    embeddings: NDArray[Any],
    identities: ArrayLike,
    images: NDArray[np.int64],
    quality: NDArray[Any] | None = None,
    *,
    embedder: str,
    re_encode: float,
    weights_sha256: str | None = None,
    evidence: dict[str, Any] | None = None,
    max_pairs: int = MAX_PAIRS,
) -> Calibration:
    """Fit every distribution of an embedder.

    Args:
        embeddings: float [N, D], unit length.
        identities: [N], names or numbers of the people; must be right, as a wrong one puts a pair of one person
            among the impostors.
        images: int64 [N], distinct ids; they order the faces, so that the result does not depend on the order given.
        quality: float [N], NaN where unknown; None without such a column.
        embedder: registry name.
        re_encode: similarity that a face keeps with its re-encoded self (see Calibration).
        weights_sha256: of the embedder's weights.
        evidence: written into the file as it is, beside the counts.
        max_pairs: budget of similarities.

    Raises:
        UsageError: too few people or faces to say anything; tells how many are needed.
    """
    order = np.argsort(images, kind="stable")
    emb_ND = _unit(np.asarray(embeddings, np.float32)[order])  # stored as float16: unit length to 1e-4
    names, codes = np.unique(np.asarray(identities)[order], return_inverse=True)
    per_person = np.bincount(codes, minlength=len(names))
    with_center = int((per_person > CENTER_FACES).sum())
    if len(names) < MIN_PEOPLE or with_center < MIN_CENTERS:
        raise UsageError(
            f"{len(emb_ND)} faces of {len(names)} people, {with_center} of them with more than {CENTER_FACES} faces, "
            f"cannot calibrate {embedder}: give labels of at least {MIN_PEOPLE} people, {MIN_CENTERS} of them with "
            f"more than {CENTER_FACES} photographs (hundreds of people are needed for rates below 1e-3)"
        )
    impostors, everyone = Histogram(), Histogram()
    sampled = sample_faces(len(emb_ND), max_pairs)
    who = codes[sampled]
    for rows, similarity in _pair_blocks(emb_ND[sampled]):
        first, second = who[rows], who[rows.start :]
        upper = np.arange(len(first))[:, None] < np.arange(len(second))
        everyone.add(similarity[upper])
        impostors.add(similarity[upper & (first[:, None] != second)])
    to_center, own = _center_similarities(emb_ND, codes, max_pairs)
    median, deviation = everyone.median_and_deviation()
    people, centers = len(np.unique(who)), int((per_person >= CENTER_FACES).sum())
    known = np.array([]) if quality is None else np.asarray(quality, np.float64)
    known = known[np.isfinite(known)]
    genuine = genuine_pairs(codes)
    counts = {
        "people": len(names),
        "people_with_two_or_more_faces": int((per_person >= 2).sum()),
        "people_with_a_center": centers,
        "faces": len(emb_ND),
        "faces_in_impostor_pairs": len(sampled),
        "impostor_pairs": impostors.total,
        "genuine_pairs": len(genuine),
        "impostor_faces_to_centers": to_center.total,
        "genuine_faces_to_centers": len(own),
    }
    if len(known):
        counts["faces_with_quality"] = len(known)
    return Calibration(
        embedder=embedder,
        weights_sha256=weights_sha256,
        dim=emb_ND.shape[1],
        pairs=impostors.curve(_INDEPENDENT / (people * (people - 1) / 2)),
        centers=to_center.curve(_INDEPENDENT / (len(names) * centers)),
        genuine=Genuine(
            Quantiles.of((emb_ND[genuine[:, 0]] * emb_ND[genuine[:, 1]]).sum(axis=1)), Quantiles.of(own)
        ),
        random=RandomPairs(median, deviation),
        re_encode=re_encode,
        min_quality=float(np.quantile(known, MIN_QUALITY_QUANTILE)) if len(known) else None,
        evidence={**(evidence or {}), "counts": counts},
    )


def check(
    calibration: Calibration,
    embeddings: NDArray[Any],
    identities: ArrayLike,
    images: NDArray[np.int64],
    *,
    nominal: tuple[float, ...] = _NOMINAL,
    max_pairs: int = _CHECK_PAIRS,
) -> dict[str, Any]:
    """Realize a calibration's thresholds on people it was not fitted on.

    Intervals are the wider, at each end, of Wilson's at 95 % (which takes pairs for independent) and the 2.5 and 97.5 %
    quantiles of 500 bootstrap samples of the people (which cannot see past zero).

    Args:
        calibration: to check.
        embeddings: float [N, D], unit length.
        identities: [N].
        images: int64 [N], distinct; they order the faces.
        nominal: false-match rates to ask for.
        max_pairs: budget of similarities.

    Returns:
        {"people", "faces", "pairs": rows, "centers": rows}; a row holds the nominal rate, its similarity, the share of
        impostors that reach it (`realized`) with its bounds `low` and `high`, how many impostors there were, the share
        of genuine similarities that reach it, and by how many decades the threshold is extrapolated.
    """
    order = np.argsort(images, kind="stable")
    emb_ND = _unit(np.asarray(embeddings, np.float32)[order])  # stored as float16: unit length to 1e-4
    kept = sample_faces(len(emb_ND), max_pairs)
    emb_ND = emb_ND[kept]
    names, codes = np.unique(np.asarray(identities)[order][kept], return_inverse=True)
    num = len(names)
    found: dict[str, Any] = {"people": num, "faces": len(emb_ND)}
    genuine = genuine_pairs(codes)
    same = (emb_ND[genuine[:, 0]] * emb_ND[genuine[:, 1]]).sum(axis=1)
    curve, lowest = calibration.pairs, calibration.pairs.similarity_at(max(nominal))
    above = [
        (first[i], second[j], similarity[i, j])
        for rows, similarity in _pair_blocks(emb_ND)
        for first, second in [(codes[rows], codes[rows.start :])]
        for i, j in [np.nonzero(_impostor(similarity, first, second) & (similarity >= lowest))]
    ]
    sizes = np.bincount(codes, minlength=num).astype(np.float64)
    found["pairs"] = _realized(curve, nominal, above, sizes, sizes, same, symmetric=True)
    centers_PD, person = centers_of(emb_ND, codes)
    lowest = calibration.centers.similarity_at(max(nominal))
    similarity = emb_ND @ centers_PD.T
    i, j = np.nonzero((codes[:, None] != person) & (similarity >= lowest))
    to_center = [(codes[i], person[j], similarity[i, j])]
    has_center = np.bincount(person, minlength=num).astype(np.float64)
    own = own_center_similarity(emb_ND, codes)
    found["centers"] = _realized(
        calibration.centers, nominal, to_center, sizes, has_center, own, symmetric=False
    )
    return found


def sample_faces(count: int, max_pairs: int) -> NDArray[np.int64]:
    """Rows to compare with each other so that their pairs stay within a budget: all, or a sample with seed 0."""
    most = int((1 + np.sqrt(1 + 8 * max_pairs)) / 2)
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def genuine_pairs(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs of faces of one person, int64 [M, 2] of rows.

    All pairs of a person of up to nine faces. Of larger ones each face meets its next four and last four in a seeded
    order, so that a person weighs as much as their faces, not their square.
    """
    shuffled = np.random.default_rng(0).permutation(len(codes))
    rows = shuffled[np.argsort(codes[shuffled], kind="stable")]
    sizes = np.bincount(codes)[codes[rows]]
    start = np.searchsorted(codes[rows], codes[rows])
    place = np.arange(len(rows)) - start
    pairs = []
    for step in range(1, _PAIRS_OF_A_FACE + 1):
        partner = start + (place + step) % np.maximum(sizes, 1)
        # In a ring of 2 × step faces, a step leads from both ends to the same pair; in a smaller one it repeats.
        fresh = (2 * step < sizes) | ((2 * step == sizes) & (place < step))
        pairs.append(np.column_stack([rows, rows[partner]])[fresh])
    return np.concatenate(pairs)


def centers_of(
    emb_ND: NDArray[Any], codes: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Normalized means of the people with at least CENTER_FACES faces: float32 [P, D], and whose they are [P]."""
    sums = _sums(emb_ND, codes)
    person = np.flatnonzero(np.bincount(codes) >= CENTER_FACES)
    return _unit(sums[person]).astype(np.float32), person


def own_center_similarity(emb_ND: NDArray[Any], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each face with the center of the person's other faces, where those are at least CENTER_FACES: float64 [M]."""
    rows = np.flatnonzero(np.bincount(codes)[codes] > CENTER_FACES)
    others = _unit(_sums(emb_ND, codes)[codes[rows]] - emb_ND[rows])
    similarity: NDArray[np.float64] = (others * emb_ND[rows]).sum(axis=1)
    return similarity


def _center_similarities(
    emb_ND: NDArray[Any], codes: NDArray[np.int64], max_pairs: int
) -> tuple[Histogram, NDArray[np.float64]]:
    """Faces with other people's centers, counted, and with their own (leave-one-out)."""
    centers_PD, person = centers_of(emb_ND, codes)
    rows = np.arange(len(emb_ND))
    if len(rows) * len(person) > max_pairs:
        most = max(1, max_pairs // len(person))
        rows = np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False))
    histogram = Histogram()
    for start in range(0, len(rows), _BLOCK):
        some = rows[start : start + _BLOCK]
        similarity = emb_ND[some] @ centers_PD.T
        histogram.add(similarity[codes[some][:, None] != person])
    return histogram, own_center_similarity(emb_ND, codes)


def _pair_blocks(emb_ND: NDArray[np.float32]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """(rows, their similarity with the faces from the first of them on): float32 [B, N - start]."""
    for start in range(0, len(emb_ND), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(emb_ND)))
        yield rows, emb_ND[rows] @ emb_ND[start:].T


def _impostor(similarity: NDArray[Any], first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.bool_]:
    """Which entries of a block are pairs of different people, each pair once."""
    upper = np.arange(similarity.shape[0])[:, None] < np.arange(similarity.shape[1])
    mask: NDArray[np.bool_] = upper & (first[:, None] != second)
    return mask


def _realized(
    curve: Curve,
    nominal: tuple[float, ...],
    above: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]],
    sizes: NDArray[np.float64],
    opposite: NDArray[np.float64],
    genuine: NDArray[Any],
    *,
    symmetric: bool,
) -> list[dict[str, float | int]]:
    """Rows of `check`.

    Args:
        curve: whose thresholds.
        nominal: rates.
        above: (person, other person, similarity) arrays of every impostor above the lowest threshold.
        sizes: faces of each person, float64 [people].
        opposite: what they are compared with: faces, or centers.
        genuine: similarities of one person's.
        symmetric: whether both sides of a pair are faces, and a pair is counted once.
    """
    from scipy.sparse import coo_array

    first, second, similarity = (np.concatenate([block[i] for block in above]) for i in range(3))
    half = 0.5 if symmetric else 1.0
    draws = np.random.default_rng(0).multinomial(
        len(sizes), np.full(len(sizes), 1 / len(sizes)), size=_REPLICATES
    )
    weights = np.vstack([np.ones(len(sizes)), draws])
    mine, theirs = weights * sizes, weights * opposite
    total = half * (mine.sum(axis=1) * theirs.sum(axis=1) - (mine * theirs).sum(axis=1))
    rows: list[dict[str, float | int]] = []
    for rate in nominal:
        threshold = curve.similarity_at(rate)
        over = similarity >= threshold
        matrix = coo_array(
            (np.ones(int(over.sum())), (first[over], second[over])), shape=(len(sizes), len(sizes))
        ).tocsr()
        hits = ((weights @ matrix) * weights).sum(axis=1)
        shares = hits / np.maximum(total, 1)
        low, high = wilson(float(hits[0]), float(total[0]))
        boot = np.quantile(shares[1:], [0.025, 0.975])
        rows.append(
            {
                "nominal": rate,
                "similarity": round(threshold, 5),
                "realized": _digits(shares[0]),
                "low": _digits(min(low, boot[0])),
                "high": _digits(max(high, boot[1])),
                "impostors": int(total[0]),
                "genuine_share": _digits((genuine >= threshold).mean()) if len(genuine) else 0.0,
                "decades_beyond": round(curve.decades_beyond(rate), 2),
            }
        )
    return rows


def wilson(hits: float, total: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927, JASA 22:209)."""
    if total <= 0:
        return 0.0, 1.0
    share, square = hits / total, _Z95**2
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = _Z95 / (1 + square / total) * np.sqrt(share * (1 - share) / total + square / (4 * total**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _digits(value: float) -> float:
    """Four digits, enough for a reader."""
    return float(f"{value:.4g}")


def _sums(emb_ND: NDArray[Any], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of each person's embeddings, float64 [people, D]; in float64 so that subtracting one is exact enough."""
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(int(codes.max()) + 1))
    sums: NDArray[np.float64] = np.add.reduceat(emb_ND[order].astype(np.float64), starts, axis=0)
    return sums


def _unit(vectors: NDArray[Any]) -> NDArray[Any]:
    unit: NDArray[Any] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit
