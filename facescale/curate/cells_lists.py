"""Lists of k and longer ones as the rows of the table neighbors: arrays come in, an Arrow table goes out.

Called by the search stage of curate.neighbors_cells, which makes lists longer that are saturated at k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from facescale.index.exact import NO_ID

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

MAX_LIST = 2048
"""A list that is saturated at k is made longer, up to here."""


@dataclass(frozen=True, eq=False)
class Longer:
    """Entries of the lists that were made longer than k, in order of rows and places.

    Attributes:
        row: int64 [E], the face.
        place: int64 [E], in its list, from 0.
        ids: int64 [E], the neighbor.
        sims: float32 [E].
    """

    row: Ints
    place: Ints
    ids: Ints
    sims: Floats

    @classmethod
    def none(cls) -> Longer:
        """No entries."""
        none = np.empty(0, np.int64)
        return cls(none, none, none, np.empty(0, np.float32))

    @classmethod
    def joined(cls, pieces: list[Longer]) -> Longer:
        """The entries of all."""
        return cls(
            np.concatenate([piece.row for piece in pieces]),
            np.concatenate([piece.place for piece in pieces]),
            np.concatenate([piece.ids for piece in pieces]),
            np.concatenate([piece.sims for piece in pieces]),
        )

    def of(self, rows: slice) -> Longer:
        """The entries of some rows, which count from 0 then."""
        span = slice(*np.searchsorted(self.row, [rows.start, rows.stop]).tolist())
        return Longer(self.row[span] - rows.start, self.place[span], self.ids[span], self.sims[span])


def ragged_table(ids_Q: Ints, found_QK: Ints, sims_QK: Floats, longer: Longer, floor: float) -> pa.Table:
    """The rows of a part, some lists longer than k.

    Args:
        ids_Q: int64 [Q], the faces, rising.
        found_QK: int64 [Q, K], their neighbors, best first; missing ones are -1 and last.
        sims_QK: float32 [Q, K].
        longer: lists that take the place of some of them.
        floor: cosine above which a list that could not be made longer is saturated.
    """
    valid = found_QK != NO_ID
    saturated = valid.all(axis=1) & (sims_QK[:, -1] > floor) if len(valid) else np.empty(0, bool)
    replaced = np.bincount(longer.row, minlength=len(ids_Q))
    valid[replaced > 0] = False
    counts = valid.sum(axis=1) + replaced
    saturated &= (replaced == 0) | (replaced >= MAX_LIST)
    starts = np.concatenate([[0], np.cumsum(counts)])
    neighbors, sims = np.empty(starts[-1], np.int64), np.empty(starts[-1], np.float32)
    row, column = np.nonzero(valid)
    neighbors[starts[row] + column], sims[starts[row] + column] = found_QK[valid], sims_QK[valid]
    at = starts[longer.row] + longer.place
    neighbors[at], sims[at] = longer.ids, longer.sims
    offsets = pa.array(starts.astype(np.int32))
    return pa.table(
        {
            "face_id": ids_Q,
            "neighbor_ids": pa.ListArray.from_arrays(offsets, neighbors),
            "similarities": pa.ListArray.from_arrays(offsets, sims),
            "saturated": saturated,
        }
    )
