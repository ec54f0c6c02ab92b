"""Cells of neighbors: a sample comes in, centers go out; faces and centers come in, the cells of each face go out.

Called by the stages of curate.neighbors_cells. Every face belongs to the cell of its most similar center; which cells
it visits is facescale.curate.cells_search's business.

Shape legend: T faces of the sample, Q queries, N members of the base, D dimension, C cells, P probes, M members of a
cell.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import UsageError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]
    Cells = NDArray[np.uint16]
    Keys = NDArray[np.uint64]

_ITERATIONS = 10
_RANK_ROWS = 4096  # fixed, so that no rounding depends on how the work was cut
_BF16_GAIN = 1.5
_BF16_STEPS = 16
_TRAIN_ENTRIES = 1 << 20  # similarities at once, which stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Base:
    """The faces compared with, by cell and then by id.

    Attributes:
        ids: int64 [N].
        lengths: float32 [N], of the vectors as stored.
        starts: int64 [C + 1], first row of each cell; the last is N.
        pieces: float16 [n, D] each, runs of whole cells; they may be memory-mapped.
        piece_rows: int64 [R + 1], first row of each piece; the last is N.
    """

    ids: Ints
    lengths: Floats
    starts: Ints
    pieces: tuple[torch.Tensor, ...]
    piece_rows: Ints

    def members(self, cell: int) -> torch.Tensor:
        """Vectors of a cell that is not empty, as stored: float16 [M, D]."""
        first, last = int(self.starts[cell]), int(self.starts[cell + 1])
        piece = int(np.searchsorted(self.piece_rows, first, side="right")) - 1
        begin = int(self.piece_rows[piece])
        return self.pieces[piece][first - begin : last - begin]

    def unit(self, rows: Ints) -> torch.Tensor:
        """Vectors of some rows at unit length, float32 [n, D]: the same numbers as index.vectors gives."""
        import torch

        if len(self.pieces) == 1:
            half = self.pieces[0].index_select(0, torch.from_numpy(rows))
        else:
            half = torch.empty((len(rows), self.pieces[0].shape[1]), dtype=torch.float16)
            piece = np.searchsorted(self.piece_rows, rows, side="right") - 1
            for number in np.unique(piece):
                mine = np.flatnonzero(piece == number)
                local = torch.from_numpy(rows[mine] - self.piece_rows[number])
                half[torch.from_numpy(mine)] = self.pieces[number].index_select(0, local)
        return half.float().div_(torch.from_numpy(self.lengths[rows])[:, None])


def train_cells(sample_TD: Floats, cells: int, *, seed: int) -> Floats:
    """Centers by k-means on the sphere.

    Args:
        sample_TD: float32 [T, D], unit vectors.
        cells: C, at most T.
        seed: of the first centers.

    Returns:
        float32 [C, D], unit vectors. A center that loses all faces starts again at the face that fits its own worst.

    Notes:
        Memory: 8 bytes × T, and 4 · D × C.
    """
    import torch

    if not 1 <= cells <= len(sample_TD):
        raise UsageError(f"{cells} cells cannot be found on {len(sample_TD)} faces")
    sample = torch.from_numpy(sample_TD)
    first = np.random.default_rng(seed).choice(len(sample_TD), cells, replace=False)
    centers = sample[torch.from_numpy(np.sort(first))].clone()
    rows = max(1, _TRAIN_ENTRIES // cells)
    with torch.inference_mode():
        for _ in range(_ITERATIONS):
            best = [(part @ centers.T).max(dim=1) for part in torch.split(sample, rows)]
            nearest, fit = torch.cat([found.indices for found in best]), torch.cat([f.values for f in best])
            sums = torch.zeros_like(centers).index_add_(0, nearest, sample)
            empty = torch.bincount(nearest, minlength=cells) == 0
            num_empty = int(empty.sum())
            if num_empty:
                sums[empty] = sample[torch.argsort(fit, stable=True)[:num_empty]]
            centers = torch.nn.functional.normalize(sums, dim=1)
    found: Floats = centers.numpy()
    return found


def rank_cells(vectors_QD: Floats, centers_CD: Floats, probes: int) -> Cells:
    """The cells whose centers are most similar to each face.

    Args:
        vectors_QD: float32 [Q, D], unit vectors.
        centers_CD: float32 [C, D].
        probes: P, at most C.

    Returns:
        uint16 [Q, P], most similar first; the first is the cell that the face belongs to.
    """
    import torch

    centers = torch.from_numpy(centers_CD).T
    ranked = np.empty((len(vectors_QD), probes), np.uint16)
    number = np.arange(len(centers_CD), dtype=np.int64)
    for start in range(0, len(vectors_QD), _RANK_ROWS):
        block = torch.from_numpy(vectors_QD[start : start + _RANK_ROWS])
        with torch.inference_mode():
            bits = (block @ centers).numpy().view(np.int32)
        rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # orders as the similarities do
        keys = ((~rising).astype(np.int64) << 16) | number
        if probes < keys.shape[1]:
            keys = np.partition(keys, probes - 1, axis=1)[:, :probes]
        ranked[start : start + _RANK_ROWS] = np.sort(keys, axis=1) & 0xFFFF
    return ranked


def rank_of_cell(vectors_QD: Floats, face_E: Ints, cell_E: NDArray[np.integer], centers_CD: Floats) -> Ints:
    """Rank of a given cell among those of a face, 0 for the first, for each pair of both.

    Args:
        vectors_QD: float32 [Q, D], unit vectors.
        face_E: int64 [E], rows of them.
        cell_E: integers [E], cells.
        centers_CD: float32 [C, D].

    Returns:
        int64 [E].
    """
    import torch

    centers = torch.from_numpy(centers_CD).T
    ranks = np.empty(len(face_E), np.int64)
    with torch.inference_mode():
        for start in range(0, len(face_E), _RANK_ROWS):
            span = slice(start, start + _RANK_ROWS)
            similarity = torch.from_numpy(vectors_QD[face_E[span]]) @ centers
            cell = torch.from_numpy(cell_E[span].astype(np.int64))[:, None]
            ranks[span] = (similarity > similarity.gather(1, cell)).sum(dim=1).numpy()
    return ranks


def choose_precision(dim: int, floor: float, spread: float) -> str:
    """Kind of the proposing products: bfloat16 where this processor is faster at it and it tells similarities apart.

    Args:
        dim: D.
        floor: cosine near which it matters; bfloat16 has steps of 1/128 to 1/256 of a value.
        spread: deviation of the similarity of two random faces; where a sixteenth of it is below a step, too many
            faces would have to be compared again.
    """
    import torch

    if abs(floor) / 128 > spread / _BF16_STEPS:
        return "fp32"
    seconds = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        matrix = torch.ones((512, dim)).to(dtype)
        matrix @ matrix.T  # the first time it is compiled
        times = []
        for _ in range(5):
            start = time.perf_counter()
            matrix @ matrix.T
            times.append(time.perf_counter() - start)
        seconds[name] = min(times)
    return "bf16" if seconds["fp32"] > _BF16_GAIN * seconds["bf16"] else "fp32"
