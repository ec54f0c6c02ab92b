"""Dot products and sums of many embeddings in bounded memory: rows and numbers of groups in, numbers and sums out.

Called by curate.merge, curate.cluster_fit and curate.counterparts. For unit vectors the mean similarity of all pairs of
two groups of faces is the dot product of their sums over the product of their sizes: exact, and no pair is ever made.

Shape legend: N faces, D dimension, C groups, Q pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_BLOCK = 32_768
"""Pairs multiplied at a time: 2 x 16 MiB at 128 dimensions."""


def row_products(
    left: Floats, rows: NDArray[np.integer], right: Floats, columns: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Dot product of `left[rows[q]]` and `right[columns[q]]` for every q.

    Args:
        left: float32 [any, D].
        rows: int [Q].
        right: float32 [any, D].
        columns: int [Q].

    Returns:
        float64 [Q].
    """
    products = np.empty(len(rows), np.float64)
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        products[block] = np.einsum("qd,qd->q", left[rows[block]], right[columns[block]])
    return products


def sums_of(labels: NDArray[np.integer], unit: Floats, num: int) -> Floats:
    """Sum of the vectors of each label, float32 [num, D]; faces labeled -1 are left out."""
    rows = np.flatnonzero(labels >= 0)
    table = coo_array(
        (np.ones(len(rows), np.float32), (labels[rows], rows)), shape=(num, len(labels))
    ).tocsr()
    sums: Floats = table @ unit
    return sums
