"""Lists of similar faces by cells: the base sorted by cell and the cells that each face visits come in, lists go out.

Called by the stages of curate.neighbors_cells.

All visitors of a cell meet its members in one matrix product. Its entries only propose: in bfloat16 (where the
processor has instructions for it) or float32, those near enough to the k-th best of a face become candidates, and the
candidates are compared once more in float64. So a list is exactly the k best of what was visited, and depends neither
on the kind of product nor on how the work was cut; only where more than some hundred faces lie that near to the k-th
(one picture many times, say), not all of them are compared once more.

A candidate is one uint64: face | 65535 − similarity in 16 bits | row of the base. Sorted as plain numbers, candidates
stand by face and descending similarity, which is what makes merging cheap.

Shape legend: Q queries, D dimension, P probes, K neighbors, V visitors of a cell, M members, B queries of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.errors import UsageError
from facescale.index.exact import NO_ID, merge_top_k

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from facescale.curate.cells import Base

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]
    Cells = NDArray[np.uint16]
    Keys = NDArray[np.uint64]

PRECISIONS = ("bf16", "fp32")
_TILE_ROWS, _TILE_COLUMNS = 1024, 1024  # of a product: 2 or 4 MiB, which stay in the processor's cache
_PAD_ROWS, _PAD_COLUMNS = 64, 64
_MAX_KEYS = 24 << 20  # candidates before they are merged: 192 MiB, and as much again while they are sorted
_PHASES = (0, 1, 4, 16, 64)  # ranks of cells between which candidates are merged and thresholds rise
_RESCORED = 512  # candidates at once: × D float64, which stay in the processor's cache
_STEPS = 65_535  # similarities are kept in 16 bits, from -1 to 1
_STEP = 2.0 / _STEPS
_MIN_CANDIDATES = (
    512  # of a face, and three times as many as wanted; what bounds memory where faces are all alike
)
_NONE = np.float32(-2)


@dataclass(frozen=True, eq=False)
class Found:
    """Lists of some faces.

    Attributes:
        ids: int64 [Q, K], best first, equally similar ones by ascending id; missing ones are -1 and last.
        sims: float32 [Q, K], cosine; -inf where missing.
        met_self: bool [Q], whether a face met itself, or K others that are as similar.
        compared: pairs in all products.
    """

    ids: Ints
    sims: Floats
    met_self: NDArray[np.bool_]
    compared: int


class CellSearch:
    """Finds lists; holds buffers, so one for each worker.

    Args:
        base: compared with.
        precision: of the proposing products, "bf16" or "fp32".
    """

    def __init__(self, base: Base, precision: str) -> None:
        import torch

        if precision not in PRECISIONS:
            raise UsageError(f"precision {precision!r}: there are {', '.join(PRECISIONS)}")
        self.base, self.precision = base, precision
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        dim = base.pieces[0].shape[1] if base.pieces else 1
        self._products = torch.empty(_TILE_ROWS * _TILE_COLUMNS, dtype=self._dtype)
        self._members = torch.zeros((_TILE_COLUMNS, dim), dtype=self._dtype)
        off = float(np.abs(base.lengths - 1).max()) if len(base.lengths) else 0.0
        if precision == "bf16":
            # Rounding both operands moves a similarity by some 2⁻⁹ · √(2/3 · Σ q²x²), 7e-5 where D = 512: 1e-3 is far
            # beyond what happens. The result is rounded to 8 bits, which keeps the order but for one step of them.
            self._absolute, self._relative = 2 * (1e-3 + off), 1.5 / 128
        else:
            self._absolute, self._relative = 2 * (dim * 2.0**-23 + off), 0.0
        self._absolute += 2 * _STEP

    def search(
        self, own_Q: Ints, queries_QD: Floats, cells_QP: Cells, k: int, *, floor: float | None = None
    ) -> Found:
        """The k most similar members of the cells that each face visits, the face itself left out.

        Args:
            own_Q: int64 [Q], ids of the faces.
            queries_QD: float32 [Q, D], unit vectors.
            cells_QP: uint16 [Q, P], cells to visit, most similar first.
            k: neighbors of each, at least 1.
            floor: look only for those at least this similar; None for all.

        Notes:
            Memory: 6 · D bytes × Q, 400 MiB of candidates, and 12 bytes × Q × k.
        """
        import torch

        Q, bits = len(own_Q), max(1, len(self.base.ids).bit_length())
        if max(1, Q).bit_length() + bits + 16 > 64:
            raise UsageError(f"{Q:,} faces against {len(self.base.ids):,}: too many for one group")
        pool = _Pool(Q, k + 1, bits, self._margin, floor)
        compared = 0
        with torch.inference_mode():
            queries = torch.from_numpy(queries_QD).to(self._dtype)
            for low, high in zip(_PHASES, (*_PHASES[1:], cells_QP.shape[1]), strict=True):
                for rows, cell in _visits(cells_QP[:, low : max(low, high)], self.base.starts):
                    compared += self._meet(pool, queries, rows, cell)
                pool.merge()
            ids, sims, met = self._rescore(pool, own_Q, queries_QD, k, floor)
        return Found(ids, sims, met, compared)

    def _margin(self, similarity: Floats) -> Floats:
        """How far below the k-th best proposal a member may seem to lie and still belong to the k best."""
        margin: Floats = (self._absolute + self._relative * np.abs(similarity)).astype(np.float32)
        return margin

    def _meet(self, pool: _Pool, queries: torch.Tensor, rows: Ints, cell: int) -> int:
        """Compare the visitors of a cell with its members, and keep what may belong to lists."""
        import torch

        first = int(self.base.starts[cell])
        members = self.base.members(cell)
        for start in range(0, len(members), _TILE_COLUMNS):
            block = members[start : start + _TILE_COLUMNS]
            self._members[: len(block)].copy_(block)
            wide = self._padded(len(block), _PAD_COLUMNS, _TILE_COLUMNS)
            for top in range(0, len(rows), _TILE_ROWS):
                visitors = rows[top : top + _TILE_ROWS]
                tall = self._padded(len(visitors), _PAD_ROWS, _TILE_ROWS, doubling=True)
                products = self._products[: tall * wide].view(tall, wide)
                taken = torch.from_numpy(np.pad(visitors, (0, tall - len(visitors)), mode="edge"))
                torch.mm(queries.index_select(0, taken), self._members[:wide].T, out=products)
                self._propose(pool, products[: len(visitors), : len(block)], visitors, first + start)
        return len(rows) * len(members)

    def _padded(self, count: int, step: int, most: int, *, doubling: bool = False) -> int:
        """Rows or columns of a product: oneDNN compiles each shape, which takes milliseconds, so few are used."""
        if self.precision == "fp32":
            return count
        if doubling:
            return int(min(most, max(step, 1 << (count - 1).bit_length())))
        return -(-count // step) * step

    def _propose(self, pool: _Pool, products: torch.Tensor, visitors: Ints, first: int) -> None:
        import torch

        M = products.shape[1]
        thresholds = pool.threshold[visitors]
        values = self._comparable(products)
        fresh = thresholds == _NONE
        if fresh.any() and pool.k < M:
            some = values if fresh.all() else values[fresh]
            if self.precision == "bf16":
                some = some ^ ((some >> 15) & 0x7FFF)  # orders as the similarities do, also below zero
            best = np.partition(some, M - pool.k, axis=1)[:, M - pool.k]
            level = self._similarity(best ^ ((best >> 15) & 0x7FFF) if self.precision == "bf16" else best)
            thresholds[fresh] = level - self._margin(level)
        if self.precision == "bf16":
            limits = torch.from_numpy(thresholds).bfloat16().view(torch.int16).numpy()
            if limits.min() <= 0:
                limits = limits ^ ((limits >> 15) & 0x7FFF)
                values = values ^ ((values >> 15) & 0x7FFF)
        else:
            limits = thresholds
        row, column = np.divmod(np.flatnonzero(values >= limits[:, None]), M)
        similarity = self._similarity(self._comparable(products)[row, column])
        pool.add(visitors[row], similarity, first + column)

    def _comparable(self, products: torch.Tensor) -> NDArray[Any]:
        """The products as numpy has them: bfloat16 as its bits, int16."""
        import torch

        return products.view(torch.int16).numpy() if self.precision == "bf16" else products.numpy()

    def _similarity(self, values: NDArray[Any]) -> Floats:
        if self.precision == "fp32":
            return values
        return (values.astype(np.int32) << 16).view(np.float32)

    def _rescore(
        self, pool: _Pool, own_Q: Ints, queries_QD: Floats, k: int, floor: float | None
    ) -> tuple[Ints, Floats, NDArray[np.bool_]]:
        """Compare candidates in float64 and keep the k best of each face."""
        import torch

        ids_QK = np.full((len(own_Q), k), NO_ID, np.int64)
        sims_QK = np.full((len(own_Q), k), -np.inf, np.float32)
        met = np.zeros(len(own_Q), bool)
        starts, rows = pool.candidates()
        for block, width in _blocks_of_equal_count(np.diff(starts)):
            at = starts[block][:, None] + np.arange(width)
            missing = at >= starts[block + 1][:, None]
            base_rows = rows[np.minimum(at, len(rows) - 1)]
            vectors = self.base.unit(base_rows.ravel()).double().view(len(block), width, -1)
            unit = torch.from_numpy(queries_QD[block]).double().unsqueeze(2)
            sims = torch.bmm(vectors, unit).squeeze(2).float().numpy()
            ids = self.base.ids[base_rows]
            is_self = (ids == own_Q[block][:, None]) & ~missing
            missing |= is_self if floor is None else is_self | (sims < np.float32(floor))
            ids[missing], sims[missing] = NO_ID, -np.inf
            ids_QK[block], sims_QK[block] = merge_top_k(ids, sims, k)
            met[block] = is_self.any(1) | (sims_QK[block, -1] >= 1 - 1e-6)
        return ids_QK, sims_QK, met


class _Pool:
    """Candidates of every face, cut back to those that may still be among its k best.

    Args:
        Q: faces.
        k: how many are wanted of each.
        row_bits: that hold a row of the base.
        margin: how far below the k-th best a candidate may seem to lie.
        floor: similarity below which nothing is wanted.
    """

    def __init__(self, Q: int, k: int, row_bits: int, margin: Any, floor: float | None) -> None:
        self.k, self._margin = k, margin
        self._rows = np.uint64(row_bits)
        self._faces = np.uint64(row_bits + 16)
        self._borders = np.arange(Q + 1, dtype=np.uint64) << self._faces
        self._lowest = _NONE
        if floor is not None:
            level = np.array([floor], np.float32)
            self._lowest = np.float32((level - margin(level))[0])
        self.threshold = np.full(Q, self._lowest, np.float32)
        self._kept = np.empty(0, np.uint64)
        self._fresh: list[Keys] = []
        self._num_fresh = 0

    def add(self, face: Ints, similarity: Floats, row: Ints) -> None:
        """Take in candidates: arrays of one length."""
        code = np.rint((np.clip(similarity, -1, 1) + 1) * (_STEPS / 2)).astype(np.uint64)
        keys = face.astype(np.uint64) << self._faces
        keys |= (np.uint64(_STEPS) - code) << self._rows
        keys |= row.astype(np.uint64)
        self._fresh.append(keys)
        self._num_fresh += len(keys)
        if self._num_fresh > _MAX_KEYS:
            self.merge()

    def merge(self) -> None:
        """Cut back, and raise the thresholds."""
        if not self._fresh:
            return
        keys = np.concatenate([self._kept, *self._fresh])
        self._fresh, self._num_fresh = [], 0
        keys.sort()
        starts = np.searchsorted(keys, self._borders)
        counts = np.diff(starts)
        full = np.flatnonzero(counts >= self.k)
        code = (keys[starts[full] + self.k - 1] >> self._rows).astype(np.int64) & 0xFFFF
        level = (1 - code * _STEP).astype(np.float32)
        self.threshold[full] = np.maximum(self._lowest, level - self._margin(level))
        limit = np.full(len(counts), np.iinfo(np.int64).max)
        limit[full] = np.ceil((1 - self.threshold[full]) / _STEP)
        found = (keys >> self._rows).astype(np.int64) & 0xFFFF
        rank = np.arange(len(keys)) - np.repeat(starts[:-1], counts)
        self._kept = keys[(found <= np.repeat(limit, counts)) & (rank < max(_MIN_CANDIDATES, 3 * self.k))]

    def candidates(self) -> tuple[Ints, Ints]:
        """(starts int64 [Q + 1], rows of the base int64): those of face q are rows[starts[q] : starts[q + 1]]."""
        starts = np.searchsorted(self._kept, self._borders).astype(np.int64)
        rows = (self._kept & ((np.uint64(1) << self._rows) - np.uint64(1))).astype(np.int64)
        return starts, rows


def _visits(cells_QP: Cells, starts: Ints) -> Iterator[tuple[Ints, int]]:
    """(rows int64 [V], cell) of each cell that has members and visitors."""
    if not cells_QP.size:
        return
    flat = cells_QP.ravel()
    order = np.argsort(flat, kind="stable")
    bounds = np.searchsorted(flat[order], np.arange(len(starts), dtype=np.int64))
    rows = order // cells_QP.shape[1]
    for cell in np.flatnonzero((np.diff(bounds) > 0) & (np.diff(starts) > 0)).tolist():
        yield rows[bounds[cell] : bounds[cell + 1]], cell


def _blocks_of_equal_count(counts_Q: Ints) -> Iterator[tuple[Ints, int]]:
    """(faces int64 [B], candidates of the one that has most) with little padding, faces without candidates left out."""
    order = np.argsort(counts_Q, kind="stable")
    stop = len(order)
    while stop and counts_Q[order[stop - 1]]:
        width = int(counts_Q[order[stop - 1]])
        start = max(0, stop - max(1, _RESCORED // width))
        block = order[start:stop]
        yield block[counts_Q[block] > 0], width
        stop = start
