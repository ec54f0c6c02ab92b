"""From directed lists of similar faces to a symmetric graph: lists in, pairs and a weighted adjacency out.

Called by curate.cluster. Rows of all arrays are the faces in `canonical_order`: their order in the lake says nothing,
so nothing may depend on it. Positions are int32, similarities float32: 12 bytes a pair.

Shape legend: N faces, E entries of lists, P pairs, D dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array

from facescale.curate.linkage import mix

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    Ints = NDArray[np.int64]
    Positions = NDArray[np.int32]
    Floats = NDArray[np.float32]
    Bools = NDArray[np.bool_]

_BLOCK = 16_384


@dataclass(frozen=True, eq=False)
class Links:
    """Entries of the lists of similar faces that are similar enough to matter, row after row.

    Attributes:
        starts: int64 [N + 1], where each face's entries begin; the last is E.
        neighbor: int32 [E], rows of the similar faces.
        similarity: float32 [E], cosine.
    """

    starts: Ints
    neighbor: Positions
    similarity: Floats

    def rows(self) -> Positions:
        """The face that each entry belongs to, int32 [E]."""
        return np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), np.diff(self.starts))

    def reordered(self, order: Ints) -> Links:
        """The same lists for faces in another order: face `order[i]` comes to row i."""
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        counts = np.diff(self.starts)[order]
        starts = np.concatenate([[0], np.cumsum(counts)])
        taken = np.arange(starts[-1]) + np.repeat(self.starts[:-1][order] - starts[:-1], counts)
        return Links(starts, place[self.neighbor[taken]], self.similarity[taken])


@dataclass(frozen=True, eq=False)
class Pairs:
    """Undirected pairs of faces, each once, sorted by (first, second).

    Attributes:
        first: int32 [P].
        second: int32 [P], greater than `first`.
        similarity: float32 [P], cosine.
    """

    first: Positions
    second: Positions
    similarity: Floats

    def where(self, kept: Bools) -> Pairs:
        """Some of them."""
        return Pairs(self.first[kept], self.second[kept], self.similarity[kept])


def canonical_order(unit: Floats, face_id: Ints) -> Ints:
    """An order that depends on what the faces are and not on where they are stored.

    Faces are sorted by a hash of their embedding; those with one and the same embedding by id. What comes after may
    go by position, and still gives the same clusters however files and parts were ordered.

    Args:
        unit: float32 [N, D].
        face_id: int64 [N].

    Returns:
        int64 [N], rows in the new order.
    """
    weights = mix(np.arange(unit.shape[1])) | np.uint64(1)
    keys = np.empty(len(unit), np.uint64)
    for start in range(0, len(unit), _BLOCK):
        bits = np.ascontiguousarray(unit[start : start + _BLOCK], np.float32).view(np.uint32)
        keys[start : start + _BLOCK] = mix((mix(bits) * weights).sum(axis=1, dtype=np.uint64))
    order: Ints = np.lexsort((face_id, keys))
    return order


def pairs_of(links: Links, usable: Bools, image: Ints) -> Pairs:
    """Pairs of usable faces of different images of which one has the other in its list.

    Args:
        links: directed entries.
        usable: bool [N], False for faces below the quality gate: they link nobody.
        image: int64 [N]; two faces of one image are two people.
    """
    rows, columns = links.rows(), links.neighbor
    kept = usable[rows] & usable[columns] & (image[rows] != image[columns])
    rows, columns, similarity = rows[kept], columns[kept], links.similarity[kept]
    N = len(usable)
    key = np.minimum(rows, columns).astype(np.int64) * N + np.maximum(rows, columns)
    order = np.argsort(key, kind="stable")
    key, similarity = key[order], similarity[order]
    new = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])[: len(key)])
    if not len(new):
        none = np.empty(0, np.int32)
        return Pairs(none, none, np.empty(0, np.float32))
    best = np.maximum.reduceat(similarity, new)
    return Pairs((key[new] // N).astype(np.int32), (key[new] % N).astype(np.int32), best)


def adjacency(num_faces: int, pairs: Pairs, threshold: float) -> csr_array:
    """Symmetric matrix [N, N] with weight similarity − threshold, float32, for pairs above the threshold."""
    kept = pairs.where(pairs.similarity > threshold)
    weight = kept.similarity - np.float32(threshold)
    kept, weight = kept.where(weight > 0), weight[weight > 0]
    rows = np.concatenate([kept.first, kept.second])
    columns = np.concatenate([kept.second, kept.first])
    return coo_array(
        (np.concatenate([weight, weight]), (rows, columns)), shape=(num_faces, num_faces)
    ).tocsr()
