"""Exact search by blocked matrix products in plain torch: no ANN library is needed, none is trusted.

Queries and a stream of (ids, vectors) blocks come in; the k most similar ids of each query go out, ordered by
similarity and then by id. Called by the index stage (the truth that recall is measured against), by search (label
filters) and by tests.

Legend: Q queries, N vectors, D dimension, K neighbors.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch
    from numpy.typing import NDArray

    Block = tuple[NDArray[np.int64], NDArray[np.float32]]

NO_ID = -1
_QUERY_ROWS = 1024
_BLOCK_ROWS = 65_536  # × _QUERY_ROWS float32: at most 256 MiB of similarities at once


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Give torch this many threads inside the block; None leaves them as they are."""
    import torch

    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TopK:
    """The most similar vectors of a stream, kept for each query.

    Args:
        queries_QD: float32 [Q, D].
        k: neighbors kept, at least 1.
        threads: for torch; None leaves them as they are.
        device: torch device of the products.

    Notes:
        Memory: 256 MiB of similarities, and 24 bytes × Q × k.
    """

    def __init__(
        self, queries_QD: NDArray[np.float32], k: int, *, threads: int | None = None, device: str = "cpu"
    ) -> None:
        import torch

        if k < 1:
            raise UsageError(f"k: {k} neighbors; ask for at least 1")
        self.k, self.threads, self.device = k, threads, device
        self.ids_QK = np.full((len(queries_QD), k), NO_ID, np.int64)
        self.sims_QK = np.full((len(queries_QD), k), -np.inf, np.float32)
        self._queries = torch.from_numpy(np.ascontiguousarray(queries_QD, np.float32)).to(device)

    def add(self, ids_N: NDArray[np.int64], vectors_ND: NDArray[np.float32]) -> None:
        """Compare every query with every vector of a block; ids must not come twice."""
        import torch

        with torch_threads(self.threads), torch.inference_mode():
            for start in range(0, len(ids_N), _BLOCK_ROWS):
                ids = np.asarray(ids_N[start : start + _BLOCK_ROWS], np.int64)
                block = torch.from_numpy(np.ascontiguousarray(vectors_ND[start : start + _BLOCK_ROWS]))
                block = block.to(self.device)
                for row in range(0, len(self._queries), _QUERY_ROWS):
                    rows = slice(row, row + _QUERY_ROWS)
                    best_ids, best = _best_of_block(self._queries[rows] @ block.T, ids, self.k)
                    self.ids_QK[rows], self.sims_QK[rows] = merge_top_k(
                        np.concatenate([self.ids_QK[rows], best_ids], axis=1),
                        np.concatenate([self.sims_QK[rows], best], axis=1),
                        self.k,
                    )


def exact_top_k(
    queries_QD: NDArray[np.float32],
    blocks: Iterable[Block],
    k: int,
    *,
    threads: int | None = None,
    device: str = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k vectors with the largest inner product, for each query.

    Args:
        queries_QD: float32 [Q, D].
        blocks: (ids int64 [n], vectors float32 [n, D]), read once, in any order.
        k: neighbors wanted, at least 1.
        threads: for torch; None leaves them as they are.
        device: torch device of the products.

    Returns:
        (ids int64 [Q, k], similarities float32 [Q, k]), by descending similarity, equal ones by ascending id;
        missing ones are -1 and -inf.
    """
    best = TopK(queries_QD, k, threads=threads, device=device)
    for ids, vectors in blocks:
        best.add(ids, vectors)
    return best.ids_QK, best.sims_QK


def merge_top_k(
    ids_QM: NDArray[np.int64], sims_QM: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best of M candidates a row, by descending similarity, equal ones by ascending id.

    Args:
        ids_QM: int64 [Q, M]; -1 marks a missing candidate, whose similarity is -inf.
        sims_QM: float32 [Q, M].
        k: columns to return; filled with -1 and -inf when M < k.

    Returns:
        (ids int64 [Q, k], similarities float32 [Q, k]).
    """
    order = np.lexsort((ids_QM, -sims_QM), axis=-1)[:, :k]
    ids, sims = np.take_along_axis(ids_QM, order, 1), np.take_along_axis(sims_QM, order, 1)
    missing = k - ids.shape[1]
    if missing > 0:
        ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=NO_ID)
        sims = np.pad(sims, ((0, 0), (0, missing)), constant_values=-np.inf)
    return ids, sims


def drop_self(
    ids_QK: NDArray[np.int64], sims_QK: NDArray[np.float32], own_Q: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Take each query's own id out of its list; a list without it loses its last entry.

    Returns:
        (ids int64 [Q, K - 1], similarities float32 [Q, K - 1]).
    """
    is_self = ids_QK == own_Q[:, None]
    is_self[~is_self.any(1), -1] = True
    shape = (len(ids_QK), ids_QK.shape[1] - 1)
    # An id is in a list at most once, so every row keeps K - 1 entries.
    return ids_QK[~is_self].reshape(shape), sims_QK[~is_self].reshape(shape)


def recall_at_k(
    found_QK: NDArray[np.int64],
    truth_ids_QT: NDArray[np.int64],
    truth_sims_QT: NDArray[np.float32],
    k: int,
    *,
    tolerance: float = 1e-6,
) -> NDArray[np.float64]:
    """Share of the true k nearest neighbors that were found, for each query.

    A neighbor as similar as the true k-th (to within `tolerance`) counts as true: among equals the choice is free.

    Args:
        found_QK: ids found, int64 [Q, ≥ k]; the first k count.
        truth_ids_QT: exact lists, int64 [Q, T], T ≥ k; longer than k so that ties at the border are known.
        truth_sims_QT: their similarities.
        k: neighbors.
        tolerance: differences of similarity that are rounding.

    Returns:
        float64 [Q] in 0..1; NaN for a query that has no neighbors at all.
    """
    valid = truth_ids_QT != NO_ID
    border = np.where(valid[:, k - 1], truth_sims_QT[:, k - 1], -np.inf)
    accepted = np.where(valid & (truth_sims_QT >= border[:, None] - tolerance), truth_ids_QT, NO_ID - 1)
    hits = (found_QK[:, :k, None] == accepted[:, None, :]).any(2).sum(1)
    wanted = np.minimum(valid.sum(1), k)
    with np.errstate(invalid="ignore"):
        return np.where(wanted > 0, hits / np.where(wanted > 0, wanted, 1), np.nan)


def _best_of_block(
    sims_QN: torch.Tensor, ids_N: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Top k of one block of similarities, the border resolved by id."""
    import torch

    k = min(k, sims_QN.shape[1])
    best, columns = torch.topk(sims_QN, k, dim=1)
    ids = ids_N[columns.cpu().numpy()]
    sims = best.cpu().numpy()
    # topk picks any among equals; where more equals stand at the border than it could take, take those of least id.
    for row in torch.nonzero((sims_QN >= best[:, -1:]).sum(1) > k).flatten().tolist():
        equal = torch.nonzero(sims_QN[row] >= best[row, -1]).flatten()
        row_sims, row_ids = sims_QN[row, equal].cpu().numpy(), ids_N[equal.cpu().numpy()]
        order = np.lexsort((row_ids, -row_sims))[:k]
        ids[row], sims[row] = row_ids[order], row_sims[order]
    return ids, sims
