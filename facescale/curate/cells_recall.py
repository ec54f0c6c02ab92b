"""How many cells a face must visit: exact lists of a sample and the cells of those in them come in, a number goes out.

What clustering needs of the lists is every pair above the floor, so that is what recall counts. A pair is found if one
of the two has the other in its list (curate.graph takes it either way): if and only if one of them visits the other's
cell. So one ranking of the cells gives the recall at every number of visits at once. Called by the training stage of
curate.neighbors_cells.

Shape legend: S sampled faces, K neighbors, C cells, P probes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.index.exact import NO_ID

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

_CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
_TIE = 1e-6


@dataclass(frozen=True)
class ProbeChoice:
    """What was chosen.

    Attributes:
        probes: cells to visit.
        recall: of pairs above the floor at that number, in the mean over all pairs of the sample.
        standard_error: of the recall; faces are drawn, edges come with them.
        edges: pairs above the floor in the exact lists of the sample.
        reached: whether the recall less one standard error meets the goal.
        curve: (probes, recall) at powers of two.
    """

    probes: int
    recall: float
    standard_error: float
    edges: int
    reached: bool
    curve: tuple[tuple[int, float], ...]


def choose_probes(ranks_SK: Ints, is_edge_SK: NDArray[np.bool_], goal: float, most: int) -> ProbeChoice:
    """The smallest number of visits whose recall, less one standard error, meets the goal.

    Args:
        ranks_SK: int64 [S, K], rank of the cell of each neighbor among the cells of the face, 0 for the nearest; the
            smaller of that and the rank of the face's cell among those of the neighbor.
        is_edge_SK: bool [S, K], which neighbors are above the floor; at least one is.
        goal: recall wanted, in (0, 1].
        most: visits beyond which it is not worth it, at least 1.
    """
    row, column = np.nonzero(is_edge_SK)
    rank = np.minimum(ranks_SK[row, column], most)
    hits_SP = np.zeros((len(ranks_SK), most + 1), np.int32)
    np.add.at(hits_SP, (row, rank), 1)
    found_SP = np.cumsum(hits_SP[:, :most], axis=1)  # column p: with p + 1 visits
    edges_S = is_edge_SK.sum(axis=1)
    edges = int(edges_S.sum())
    recall_P = found_SP.sum(axis=0) / edges
    off_P = np.sqrt((np.square(found_SP - recall_P * edges_S[:, None])).sum(axis=0)) / edges
    met = recall_P - off_P >= goal
    at = int(np.argmax(met)) if met.any() else most - 1
    curve = tuple((p, round(float(recall_P[p - 1]), 5)) for p in _CURVE if p <= most)
    return ProbeChoice(
        at + 1, round(float(recall_P[at]), 6), round(float(off_P[at]), 6), edges, bool(met.any()), curve
    )


def found_edges(
    found_ids_SK: Ints, found_sims_SK: Floats, truth_ids_SK: Ints, truth_sims_SK: Floats, floor: float
) -> tuple[int, int]:
    """How many entries above the floor that exact lists have are in lists that were made: (found, all).

    Args:
        found_ids_SK: int64 [S, K], lists; -1 where missing.
        found_sims_SK: float32 [S, K], falling; -inf where missing.
        truth_ids_SK: int64 [S, K], exact lists.
        truth_sims_SK: float32 [S, K].
        floor: cosine.

    Returns:
        Counts. One as similar as the last of a full list is found: among equals the choice is free.
    """
    is_edge = (truth_ids_SK != NO_ID) & (truth_sims_SK >= floor)
    found = (truth_ids_SK[:, :, None] == found_ids_SK[:, None, :]).any(axis=2)
    last = found_sims_SK[:, -1:]
    found |= (truth_sims_SK >= last - _TIE) & (truth_sims_SK <= last + _TIE)
    return int((found & is_edge).sum()), int(is_edge.sum())
