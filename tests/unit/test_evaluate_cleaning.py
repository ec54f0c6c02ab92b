"""Scores of cleaning on a small example, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from facescale.errors import UsageError
from facescale.evaluate.cleaning import score_cleaning


def test_counted_by_hand() -> None:
    # Label 0 is of person 0, half of label 1 of person 9, label 2 is taken over by person 3.
    claimed = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3])
    true = np.array([0, 0, 0, 0, 1, 9, 1, 1, 9, 9, 2, 3, 3, 3])
    final = np.array([0, 0, 0, -1, 1, 0, -1, -1, -1, -1, -1, 2, 2, 3])
    aside = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0], bool)
    found = score_cleaning(claimed, true, final, aside)
    assert (found.items, found.wrong, found.flagged) == (14, 6, 7)
    assert (found.precision, found.recall) == (3 / 7, 3 / 6)
    assert found.true_faces_lost == 4 / 8
    assert (found.true_faces_dropped, found.true_faces_quarantined) == (2 / 8, 2 / 8)
    assert (found.purity_before, found.kept_purity) == (8 / 14, 5 / 8)
    assert (found.relabel_precision, found.relabel_recall) == (1.0, 1 / 3)
    assert (found.labels, found.labels_quarantined) == (4, 1)
    assert (found.identities_lost, found.identities_hijacked) == (0, 1)
    with pytest.raises(UsageError, match="nothing to score"):
        score_cleaning(claimed[:0], true[:0], final[:0], aside[:0])
    with pytest.raises(UsageError, match="none in quarantine a final label"):
        score_cleaning(claimed, true, np.where(aside, 1, final), aside)
