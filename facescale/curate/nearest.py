"""Exact nearest neighbors whose result does not depend on how the work was cut: blocks of vectors in, lists out.

Queries and blocks of (ids, vectors) come in, the k most similar ids of each query go out. Called by
curate.neighbors.

The float32 matrix product only proposes. How it rounds depends on the shapes of its operands, the number of threads
and the processor, so what it proposes (a few more than k) is compared once more in float64, where the order of a
sum no longer shows in the result rounded to float32. Two float32 similarities are off by less than 2 · D · 2⁻²⁴
together (Higham, Accuracy and Stability of Numerical Algorithms, 3.1, for unit vectors): where the last proposal is
not that far below the k-th, a neighbor may be missing, and that query is compared with the whole block in float64.

Shape legend: Q queries, N vectors of a block, D dimension, K neighbors, C proposals, R queries that are done again.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import UsageError
from facescale.index.exact import NO_ID, merge_top_k, torch_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

BLOCK_ROWS = 65_536
_QUERY_ROWS = 1024  # × BLOCK_ROWS float32: at most 256 MiB of similarities at once
_EXTRA = 16
_AT_ONCE = 64  # × C · D float64: a few MiB, which stay in the processor's cache
_AGAIN_ROWS = 64  # × BLOCK_ROWS float64: 32 MiB


class NearestFaces:
    """The k most similar vectors of a stream of blocks, for each query; the query itself left out.

    Args:
        ids_Q: int64 [Q], of the queries; a vector of the same id is not its neighbor.
        queries_QD: float32 [Q, D], unit vectors.
        k: neighbors kept, at least 1.
        threads: for torch; None leaves them as they are.
        device: torch device of the products.

    Notes:
        Memory: 256 MiB of similarities, and 12 bytes × Q × k.
    """

    def __init__(
        self, ids_Q: Ints, queries_QD: Floats, k: int, *, threads: int | None = None, device: str = "cpu"
    ) -> None:
        import torch

        if k < 1:
            raise UsageError(f"k: {k} neighbors; ask for at least 1")
        self.k, self.threads, self.device = k, threads, device
        self.own = ids_Q
        self.ids_QK = np.full((len(ids_Q), k), NO_ID, np.int64)
        self.sims_QK = np.full((len(ids_Q), k), -np.inf, np.float32)
        self._queries = torch.from_numpy(np.ascontiguousarray(queries_QD, np.float32)).to(device)

    def add(self, ids_N: Ints, block_ND: torch.Tensor) -> None:
        """Compare every query with every vector of a block.

        Args:
            ids_N: int64 [N], rising; no id may come twice, in this block or another.
            block_ND: float32 [N, D] unit vectors on the device.
        """
        import torch

        with torch_threads(self.threads), _full_precision(), torch.inference_mode():
            for start in range(0, len(ids_N), BLOCK_ROWS):
                ids, block = ids_N[start : start + BLOCK_ROWS], block_ND[start : start + BLOCK_ROWS]
                for row in range(0, len(self.own), _QUERY_ROWS):
                    rows = slice(row, row + _QUERY_ROWS)
                    columns, sims = _nearest(self._queries[rows], block, self._self(rows, ids), self.k)
                    found = np.where(np.isneginf(sims), NO_ID, ids[columns])
                    self.ids_QK[rows], self.sims_QK[rows] = merge_top_k(
                        np.concatenate([self.ids_QK[rows], found], axis=1),
                        np.concatenate([self.sims_QK[rows], sims], axis=1),
                        self.k,
                    )

    def _self(self, rows: slice, ids_N: Ints) -> torch.Tensor:
        """Column of each query's own vector in a block, or -1: int64 [Q]."""
        import torch

        at = np.minimum(np.searchsorted(ids_N, self.own[rows]), len(ids_N) - 1)
        return torch.from_numpy(np.where(ids_N[at] == self.own[rows], at, -1)).to(self.device)


def _nearest(
    queries_QD: torch.Tensor, block_ND: torch.Tensor, self_Q: torch.Tensor, k: int
) -> tuple[Ints, Floats]:
    """Columns of the top k of a block and their similarities, in any order; both [Q, at most C]."""
    import torch

    k = min(k, len(block_ND))
    num_proposed = min(k + _EXTRA, len(block_ND))
    proposed, columns = torch.topk(
        _without_self(queries_QD @ block_ND.T, self_Q), num_proposed, dim=1, sorted=True
    )
    exact = _in_double(queries_QD, block_ND, columns)
    exact[proposed == -torch.inf] = -torch.inf
    if num_proposed < len(block_ND):
        doubt = 2 * block_ND.shape[1] * 2.0**-24
        again = torch.nonzero(proposed[:, -1] >= proposed[:, k - 1] - doubt).flatten()
        for start in range(0, len(again), _AGAIN_ROWS):
            rows = again[start : start + _AGAIN_ROWS]
            columns[rows, :k], exact[rows, :k] = _nearest_in_double(
                queries_QD[rows], block_ND, self_Q[rows], k
            )
            exact[rows, k:] = -torch.inf
    return columns.cpu().numpy(), exact.cpu().numpy()


def _in_double(queries_QD: torch.Tensor, block_ND: torch.Tensor, columns_QC: torch.Tensor) -> torch.Tensor:
    """Similarity of each query with some columns, summed in float64 and rounded once: float32 [Q, C]."""
    import torch

    pieces = []
    for start in range(0, len(queries_QD), _AT_ONCE):
        queries, columns = queries_QD[start : start + _AT_ONCE], columns_QC[start : start + _AT_ONCE]
        vectors = block_ND.index_select(0, columns.flatten()).double().view(*columns.shape, -1)
        pieces.append(torch.bmm(vectors, queries.double().unsqueeze(2)).squeeze(2).float())
    return torch.cat(pieces)


def _nearest_in_double(
    queries_RD: torch.Tensor, block_ND: torch.Tensor, self_R: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Top k of a block, equally similar ones by ascending column: columns and similarities [R, k]."""
    import torch

    sims_RN = _without_self((queries_RD.double() @ block_ND.double().T).float(), self_R)
    border = torch.topk(sims_RN, k, dim=1).values[:, -1:]
    above, level = sims_RN > border, sims_RN == border
    room = k - above.sum(1, keepdim=True)
    taken = above | (level & (torch.cumsum(level, dim=1) <= room))
    columns = torch.nonzero(taken)[:, 1].reshape(-1, k)
    return columns, torch.gather(sims_RN, 1, columns)


def _without_self(sims_QN: torch.Tensor, self_Q: torch.Tensor) -> torch.Tensor:
    """The similarities, in place, with each query's own set to minus infinity."""
    import torch

    present = torch.nonzero(self_Q >= 0).flatten()
    sims_QN[present, self_Q[present]] = -torch.inf
    return sims_QN


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Keep float32 products from running in TF32, whose error is far beyond the bound above."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
