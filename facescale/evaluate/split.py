"""Which half of the people something is fitted on and which it is reported on: an identity in, 0 or 1 out.

The split is by identity, so that no person is on both sides, and by a hash of the name, so that it stays the same when
photographs are added. What is fitted (calibration, settings) uses fold 0; figures are reported on fold 1. Called by
driver.calibrate and by benchmarks.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


def fold_of(identity: str) -> int:
    """Fold of an identity: the lowest bit of the first byte of the SHA-256 of its UTF-8 text, 0 or 1."""
    return hashlib.sha256(identity.encode()).digest()[0] & 1


def folds_of(identities: Iterable[str]) -> NDArray[np.int64]:
    """Folds of many identities, int64 [N]; each distinct name is hashed once."""
    names = list(identities)
    known = {name: fold_of(name) for name in set(names)}
    return np.fromiter((known[name] for name in names), np.int64, len(names))
