"""The arithmetic of the benchmarks, on arrays alone: verification, identification, boxes. No files, no models.

Called by facescale.bench.oracle and facescale.bench.verification.

Shape legend: P pairs, F folds, N faces, I images, Q queries, K neighbors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, eq=False)
class FoldedAccuracy:
    """Verification with thresholds from the other folds.

    Attributes:
        accuracy: mean of the folds'.
        folds: float64 [F], accuracy of each, in the order of their numbers.
        thresholds: float64 [F], chosen on the other folds.
        lowest: mean accuracy had the worst of equally good thresholds been taken in each fold.
        highest: likewise the best.
    """

    accuracy: float
    folds: np.ndarray
    thresholds: np.ndarray
    lowest: float
    highest: float


def best_thresholds(distances: np.ndarray, same: np.ndarray) -> np.ndarray:
    """The distances that best separate pairs of one person from pairs of two.

    A pair counts as same when its distance is below the threshold. Candidates lie halfway between neighboring
    distances, and just beyond both ends.

    Args:
        distances: float [P]; NaN where a face is missing, which no threshold can change, so those are left out.
        same: bool [P].

    Returns:
        float64, rising: all candidates of the highest accuracy, at least one.

    Raises:
        UsageError: no pair has a distance.
    """
    known = np.isfinite(distances)
    if not known.any():
        raise UsageError("no pair has both faces: there is nothing to choose a threshold from")
    order = np.argsort(distances[known], kind="stable")
    d, s = distances[known][order].astype(np.float64), same[known][order]
    # Cut i calls the first i pairs same. A cut between equal distances is none.
    correct = np.concatenate([[0], np.cumsum(s)]) + (~s).sum() - np.concatenate([[0], np.cumsum(~s)])
    allowed = np.concatenate([[True], d[1:] > d[:-1], [True]])
    ends = np.nextafter(d[[0, -1]], [-np.inf, np.inf])
    # Halfway between neighboring floats is rounded, perhaps down to the lower one, which must stay below.
    between = np.maximum((d[1:] + d[:-1]) / 2, np.nextafter(d[:-1], np.inf))
    candidates = np.concatenate([ends[:1], between, ends[1:]])
    best: np.ndarray = candidates[allowed & (correct == correct[allowed].max())]
    return best


def best_threshold(distances: np.ndarray, same: np.ndarray) -> float:
    """The middle one of `best_thresholds`."""
    best = best_thresholds(distances, same)
    return float(best[len(best) // 2])


def accuracy_at(distances: np.ndarray, same: np.ndarray, threshold: float) -> float:
    """Share of the pairs that `distance < threshold` judges rightly; a pair without a distance (NaN) is wrong."""
    return float((np.isfinite(distances) & ((distances < threshold) == same)).mean())


def folded_accuracy(distances: np.ndarray, same: np.ndarray, fold: np.ndarray) -> FoldedAccuracy:
    """Accuracy of each fold at the best threshold of all others, as the LFW protocol has it.

    Args:
        distances: float [P]; NaN where a face is missing: wrong.
        same: bool [P].
        fold: int [P], of at least two values.
    """
    thresholds, folds, lowest, highest = [], [], [], []
    for number in np.unique(fold):
        own = fold == number
        equals = best_thresholds(distances[~own], same[~own])
        accuracies = [accuracy_at(distances[own], same[own], threshold) for threshold in equals]
        middle = len(equals) // 2
        thresholds.append(equals[middle])
        folds.append(accuracies[middle])
        lowest.append(min(accuracies))
        highest.append(max(accuracies))
    return FoldedAccuracy(
        float(np.mean(folds)),
        np.array(folds),
        np.array(thresholds),
        float(np.mean(lowest)),
        float(np.mean(highest)),
    )


def pair_distances(vectors: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """L2 distances of pairs.

    Args:
        vectors: float32 [N, D].
        first: int64 [P], rows of `vectors`; -1 where there is no face.
        second: int64 [P].

    Returns:
        float64 [P], NaN where either is missing.
    """
    distances = np.full(len(first), np.nan)
    known = (first >= 0) & (second >= 0)
    gap = vectors[first[known]].astype(np.float64) - vectors[second[known]]
    distances[known] = np.sqrt((gap**2).sum(axis=1))
    return distances


def tar_at_far(
    vectors: np.ndarray, rows: np.ndarray, person: np.ndarray, fars: Sequence[float]
) -> list[float | None]:
    """The share of pairs of one person that are accepted where a share of the pairs of two people is.

    Every pair of photographs is taken. Holds 9 bytes a pair of photographs: 90 MB for 3,100 photographs.

    Args:
        vectors: float32 [N, D], of unit length.
        rows: int64 [M], the face of each photograph; -1 where there is none: never accepted as the person's.
        person: int64 [M], who is on it.
        fars: shares of the pairs of two people that may be accepted.

    Returns:
        For each of `fars`; None where there are too few pairs of two people for it, or none of one.
    """
    _, count = np.unique(person, return_counts=True)
    num_same = int((count * (count - 1) // 2).sum())
    known = rows >= 0
    chosen, who = vectors[rows[known]], person[known]
    upper = np.triu(np.ones((len(chosen), len(chosen)), bool), 1)
    same = who[:, None] == who[None]
    similarity = chosen @ chosen.T
    genuine, others = similarity[upper & same], np.sort(similarity[upper & ~same])
    rates: list[float | None] = []
    for far in fars:
        allowed = int(far * len(others))
        enough = allowed > 0 and num_same > 0
        rates.append(int((genuine > others[-allowed - 1]).sum()) / num_same if enough else None)
    return rates


def nearest_to_center(boxes: np.ndarray, image: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The face whose box's center is nearest to its image's center, of each image.

    Args:
        boxes: float [N, 4], x1, y1, x2, y2 px.
        image: int64 [N], which image each face is in, 0..I - 1.
        sizes: float [I, 2], width and height px.

    Returns:
        int64 [I], the face's row; -1 for an image without faces. Of equally near faces the first.
    """
    offset = (boxes[:, :2] + boxes[:, 2:]) / 2 - sizes[image] / 2
    order = np.lexsort([np.arange(len(image)), (offset**2).sum(axis=1), image])
    images, start = np.unique(image[order], return_index=True)
    nearest = np.full(len(sizes), -1, np.int64)
    nearest[images] = order[start]
    return nearest


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of one set with every box of another.

    Args:
        a: float [N, 4], x1, y1, x2, y2 px.
        b: float [M, 4].

    Returns:
        float64 [N, M].
    """
    a, b = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    both = np.prod(np.maximum(high - low, 0), axis=-1)
    area_a, area_b = (np.prod(x[..., 2:] - x[..., :2], axis=-1) for x in (a, b))
    union = area_a + area_b - both
    shares: np.ndarray = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return shares


def match_boxes(ours: np.ndarray, theirs: np.ndarray, tolerance_px: float) -> np.ndarray:
    """Pair boxes one to one: each other's nearest, no side further apart than a tolerance.

    Args:
        ours: float [n, 4] px.
        theirs: float [m, 4] px.
        tolerance_px: largest difference of any of the four sides.

    Returns:
        int64 [m], the row of ours for each of theirs; -1 where there is none.
    """
    match = np.full(len(theirs), -1, np.int64)
    if len(ours) == 0 or len(theirs) == 0:
        return match
    gap = np.abs(np.asarray(ours, np.float64)[:, None] - np.asarray(theirs, np.float64)[None]).max(axis=2)
    nearest = gap.argmin(axis=0)
    column = np.arange(len(theirs))
    mutual = (gap.argmin(axis=1)[nearest] == column) & (gap[nearest, column] <= tolerance_px)
    match[mutual] = nearest[mutual]
    return match


def first_other(
    neighbors: np.ndarray, query: np.ndarray, gallery: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each query's nearest neighbor that is in the gallery and not the query itself: leave-one-out search.

    Args:
        neighbors: int64 [Q, K], face ids from near to far; -1 = none.
        query: int64 [Q], face ids.
        gallery: int64 [G], the face ids that may be the answer.

    Returns:
        found: int64 [Q], face ids; -1 where none of the K qualifies.
        undecided: bool [Q], where none qualifies though all K are neighbors: a larger K might have one.
    """
    usable = np.isin(neighbors, gallery) & (neighbors != query[:, None])
    first = usable.argmax(axis=1)
    any_usable = usable.any(axis=1)
    found = np.where(any_usable, neighbors[np.arange(len(neighbors)), first], -1)
    return found, ~any_usable & (neighbors >= 0).all(axis=1)


def share(part: int, whole: int) -> float | None:
    """What share of the whole a part is; None when there is nothing to take a share of."""
    return part / whole if whole else None


def quantiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median, 1st and 99th percentile, smallest and largest; empty without values."""
    array = np.asarray(values, np.float64)
    if not len(array):
        return {}
    p1, median, p99 = np.quantile(array, [0.01, 0.5, 0.99])
    return {
        "min": float(array.min()),
        "p1": float(p1),
        "median": float(median),
        "p99": float(p99),
        "max": float(array.max()),
    }
