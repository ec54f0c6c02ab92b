"""How neighbors are found, as pure functions of numbers: faces, dimension and device in, method, cells and bytes out.

No data is read and nothing is imported but numpy, so `facescale neighbors --dry-run` can print the plan. Called by the
driver; how many cells a face visits is measured (facescale.curate.cells_recall), not planned.

All pairs cost 2 · N² · D operations. Cells cost 2 · N · D · (C + P · N / C), where C is the number of cells and P the
number of them that a face visits; the smaller the cells, the smaller the share P / C that holds the edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from facescale.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Method = Literal["auto", "exact", "cells"]
METHODS: tuple[str, ...] = get_args(Method)

EXACT_FLOPS = {"cpu": 5e13, "cuda": 2e18}
"""All pairs up to here: some minutes on two CPU cores, and under two hours on a GPU of 300 TFLOP/s."""
MAX_CELLS = 65_536
"""Cells are numbered in 16 bits."""
TRAIN_PER_CELL = 32
MAX_SHARE = 1 / 4
"""Where faces would have to visit more of the cells than this, all pairs are compared instead."""
_PIECE_SHARE = 1 / 2
_MIN_FACES = 16


@dataclass(frozen=True, kw_only=True)
class NeighborsMethod:
    """What is done, and what it takes.

    Attributes:
        method: "exact" or "cells".
        count: faces N.
        dim: D.
        cells: C; 0 for exact.
        train_size: faces that the cells are found on; 0 for exact.
        exact_flops: operations of all pairs.
        scratch_bytes: of the files that are kept until the table is written: the embeddings in float16, twice (by part
            and by cell), with ids and lengths; 0 for exact.
        why: one sentence for people.
    """

    method: str
    count: int
    dim: int
    cells: int
    train_size: int
    exact_flops: float
    scratch_bytes: int
    why: str

    @property
    def max_probes(self) -> int:
        """Most cells that a face may visit before all pairs are the better choice."""
        return max(1, int(self.cells * MAX_SHARE))

    def flops(self, probes: int) -> float:
        """Operations, about: each face is compared with every center and with the members of the cells it visits."""
        if self.method == "exact":
            return self.exact_flops
        return 2.0 * self.count * self.dim * (self.cells + probes * self.count / self.cells)


def choose_method(count: int, dim: int, *, method: str = "auto", device: str = "cpu") -> NeighborsMethod:
    """Choose between all pairs and cells.

    Args:
        count: faces, 0 or more.
        dim: their dimension.
        method: "exact" or "cells" to insist, "auto" to take all pairs where they are affordable.
        device: "cpu" or "cuda".

    Raises:
        UsageError: an argument is out of range.
    """
    if count < 0 or dim < 1 or method not in METHODS or device not in EXACT_FLOPS:
        raise UsageError(
            f"{count} faces of dimension {dim}, method {method!r}, device {device!r}: need count ≥ 0, dim ≥ 1, a "
            f"method of {', '.join(METHODS)} and a device of {', '.join(EXACT_FLOPS)}"
        )
    exact_flops = 2.0 * count * count * dim
    limit = EXACT_FLOPS[device]
    if method == "exact" or count < 2 or (method == "auto" and exact_flops <= limit):
        asked = "all pairs were asked for" if method == "exact" else "few enough to compare all pairs"
        why = f"exact: {count:,} faces, {asked} ({exact_flops:.1e} operations)"
        return NeighborsMethod(
            method="exact",
            count=count,
            dim=dim,
            cells=0,
            train_size=0,
            exact_flops=exact_flops,
            scratch_bytes=0,
            why=why,
        )
    cells = cell_count(count)
    asked = (
        "cells were asked for" if method == "cells" else f"all pairs would take {exact_flops:.1e} operations"
    )
    return NeighborsMethod(
        method="cells",
        count=count,
        dim=dim,
        cells=cells,
        train_size=min(count, TRAIN_PER_CELL * cells),
        exact_flops=exact_flops,
        scratch_bytes=count * (4 * dim + 24),
        why=f"{cells:,} cells: {count:,} faces, {asked}",
    )


def cell_count(count: int) -> int:
    """Cells for N faces: the power of two nearest to 4 · √N, which leaves at least 16 faces for each.

    Many small cells follow people more closely than few large ones: among 20,000 simulated faces 24 of 512 held what 25
    of 128 did, a quarter of the pairs.
    """
    wanted = 2 ** round(np.log2(max(1.0, 4 * np.sqrt(count))))
    most = 2 ** int(np.log2(max(1.0, count / _MIN_FACES)))
    return int(min(wanted, most, MAX_CELLS))


def floor_rate(rate: float, k: int, count: int) -> float:
    """The false-match rate above which edges matter, for lists of k among N faces.

    At a rate f a face meets f · N strangers. Where those alone would fill more than half of a list, the list says
    nothing about the rate any more: the rate is lowered so that half of it stays free.

    Args:
        rate: as asked for, in (0, 1).
        k: length of the lists.
        count: faces.
    """
    return min(rate, k / (2 * max(1, count)))


def piece_bounds(sizes_C: NDArray[np.int64], row_bytes: int, memory_bytes: int) -> NDArray[np.int64]:
    """Cut the cells into runs that fit the memory, one scratch file each.

    Args:
        sizes_C: faces in each cell.
        row_bytes: of a face.
        memory_bytes: budget of a worker, of which half is used; a cell that is larger has a file of its own.

    Returns:
        int64 [R + 1], rising: run i is the cells from bounds[i] to before bounds[i + 1].
    """
    room = max(1, int(memory_bytes * _PIECE_SHARE / row_bytes))
    ends = np.cumsum(sizes_C)
    bounds = [0]
    while bounds[-1] < len(sizes_C):
        before = int(ends[bounds[-1] - 1]) if bounds[-1] else 0
        bounds.append(max(bounds[-1] + 1, int(np.searchsorted(ends, before + room, side="right"))))
    return np.array(bounds, np.int64)


def group_rows(dim: int, k: int, memory_bytes: int, count: int, workers: int) -> int:
    """Faces whose lists are found at once: more are faster, since every group passes over all cells.

    Does not change results. A face takes 6 · D bytes, and 8 for each of its candidates, of which there are some 3 · k
    and as many again while they are sorted.
    """
    fitting = int(memory_bytes / (6 * dim + 16 * 3 * k + 12 * k + 256))
    wanted = -(-count // max(1, 2 * workers))
    return max(1024, min(fitting, wanted, 1 << 18))
