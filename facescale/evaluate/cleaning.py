"""What cleaning did to labels, against the truth: integer arrays in, scores out. Called by driver.evaluate, benchmarks.

An item is a face whose person is known and whose image carries a label. It is *wrong* when that label is not the
person's name, and *flagged* when it does not keep the label: dropped, quarantined, or given another. Names are compared
as they are: where two labels are one person, the truth must give the name that should win.

Shape legend: N items; names are dense numbers 0..K - 1, NOBODY where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array

from facescale.errors import UsageError
from facescale.evaluate.clusters import harmonic

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOBODY = -1


@dataclass(frozen=True)
class CleaningScores:
    """What was found and what was lost; shares are 0..1, None where there is nothing to take a share of.

    Attributes:
        items: items scored.
        wrong: of them with a wrong label.
        flagged: of them that did not keep their label.
        precision: share of the flagged that are wrong.
        recall: share of the wrong that are flagged.
        f: harmonic mean of the two.
        true_faces_lost: share of the right items that no longer carry their label, for whatever reason.
        true_faces_dropped: of it, those dropped or given to another.
        true_faces_quarantined: of it, those in quarantine, where a person can find them again.
        purity_before: share of all labels that are right.
        kept_purity: share of the labels after cleaning that are right.
        relabel_precision: of items given another label, the share that got the right one.
        relabel_recall: of wrong items whose person has a label of their own, the share that got it.
        labels: labels that some right item carries.
        identities_lost: of them not in quarantine, those that keep no right item though nobody else holds them.
        identities_hijacked: of them not in quarantine, those whose largest group after cleaning is someone else.
        labels_quarantined: labels with at least half of their items in quarantine.
    """

    items: int
    wrong: int
    flagged: int
    precision: float | None
    recall: float | None
    f: float | None
    true_faces_lost: float | None
    true_faces_dropped: float | None
    true_faces_quarantined: float | None
    purity_before: float
    kept_purity: float | None
    relabel_precision: float | None
    relabel_recall: float | None
    labels: int
    identities_lost: int
    identities_hijacked: int
    labels_quarantined: int


def score_cleaning(
    claimed: NDArray[np.int64],
    true: NDArray[np.int64],
    final: NDArray[np.int64],
    quarantined: NDArray[np.bool_],
) -> CleaningScores:
    """Score cleaned labels.

    Args:
        claimed: int64 [N], the label that each item came with.
        true: int64 [N], who it is.
        final: int64 [N], the label it has now; NOBODY when it has none.
        quarantined: bool [N], whether it is set aside for a person to decide; `final` is NOBODY there.

    Raises:
        UsageError: there are no items, or an item lacks a label or an identity.
    """
    if not len(claimed):
        raise UsageError("nothing to score: no face with a known identity carries a label")
    if min(claimed.min(), true.min()) < 0 or (final[quarantined] != NOBODY).any():
        raise UsageError(
            "every item needs a claimed label and an identity, and none in quarantine a final label"
        )
    wrong, flagged, labeled = claimed != true, final != claimed, final != NOBODY
    right = ~wrong
    lost = right & flagged
    moved = labeled & flagged
    movable = wrong & np.isin(true, claimed)
    precision, recall = _share(wrong & flagged, flagged), _share(wrong & flagged, wrong)
    labels, in_quarantine, missing, hijacked = _labels(claimed, true, final, quarantined)
    return CleaningScores(
        items=len(claimed),
        wrong=int(wrong.sum()),
        flagged=int(flagged.sum()),
        precision=precision,
        recall=recall,
        f=None if precision is None or recall is None else harmonic(precision, recall),
        true_faces_lost=_share(lost, right),
        true_faces_dropped=_share(lost & ~quarantined, right),
        true_faces_quarantined=_share(lost & quarantined, right),
        purity_before=float(right.mean()),
        kept_purity=_share(labeled & (final == true), labeled),
        relabel_precision=_share(moved & (final == true), moved),
        relabel_recall=_share(movable & (final == true), movable),
        labels=labels,
        identities_lost=missing,
        identities_hijacked=hijacked,
        labels_quarantined=in_quarantine,
    )


def _labels(
    claimed: NDArray[np.int64],
    true: NDArray[np.int64],
    final: NDArray[np.int64],
    quarantined: NDArray[np.bool_],
) -> tuple[int, int, int, int]:
    """(labels with a right item, labels in quarantine, identities lost, identities hijacked)."""
    size = int(max(claimed.max(), true.max(), final.max())) + 1
    total = np.bincount(claimed, minlength=size)
    aside = np.bincount(claimed[quarantined], minlength=size) * 2 >= np.maximum(total, 1)
    owned = np.bincount(claimed[claimed == true], minlength=size) > 0
    labeled = final != NOBODY
    table = coo_array(
        (np.ones(int(labeled.sum()), np.int64), (final[labeled], true[labeled])), shape=(size, size)
    )
    held = table.tocsr()
    largest = held.max(axis=1).toarray().ravel()
    own = held.diagonal()
    judged = owned & ~aside
    hijacked = judged & (largest > own)
    missing = judged & (largest == 0)
    return int(owned.sum()), int((aside & (total > 0)).sum()), int(missing.sum()), int(hijacked.sum())


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float | None:
    count = int(whole.sum())
    return int(part.sum()) / count if count else None
