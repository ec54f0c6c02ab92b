"""Local weighted propagation of labels (Chinese whispers): a weighted graph in, a label for each face out.

Called by curate.cluster. Every face begins with a label of its own and, turn by turn, takes the label that its
neighbors' links give most weight to (Biemann 2006, "Chinese Whispers: an efficient graph clustering algorithm").
What a face decides depends on its neighbors alone, not on the size of the graph: a modularity would merge more the
larger the crawl is.

Half of the faces move in each turn, chosen by a hash, and the other half in the next, since two neighbors that move
at once swap labels for ever. A face that has the best label already keeps it. Only faces next to a change are looked
at again, so late turns cost little.

Shape legend: N faces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from facescale.curate.linkage import mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Labels = NDArray[np.int32]
    Bools = NDArray[np.bool_]

MAX_TURNS = 60
"""Turns come to rest after 20 to 30 on every graph tried; stopping early leaves valid, finer clusters."""

_EQUAL = 1e-6
"""Relative difference of float32 sums that are equal."""
_KEEP_OWN = np.uint64(1 << 63)


def propagate(graph: csr_array, *, turns: int = MAX_TURNS) -> Labels:
    """Spread labels until nothing changes.

    Args:
        graph: symmetric, positive weights, no diagonal; float32 [N, N].
        turns: at most so many.

    Returns:
        int32 [N], labels 0 .. L - 1; a face without links has its own.
    """
    N = graph.shape[0]
    labels = np.arange(N, dtype=np.int32)
    hashes = mix(np.arange(N))
    waiting = np.diff(graph.indptr) > 0
    half = np.zeros(N, bool)
    for turn in range(turns):
        if not waiting.any():
            break
        half = _half(hashes, turn) if turn % 2 == 0 else ~half
        at = np.flatnonzero(half & waiting)
        waiting[at] = False
        if not len(at):
            continue
        chosen = _heaviest(graph[at], labels, labels[at], hashes)
        changed = at[chosen != labels[at]]
        labels[at] = chosen
        waiting[graph[changed].indices] = True
    return densify(labels)


def separate(labels: Labels, image: Ints, support: NDArray[np.float32]) -> tuple[Labels, int]:
    """Let no two faces of one image share a label: the best supported one stays, the others are alone.

    Args:
        labels: int32 [N].
        image: int64 [N].
        support: float32 [N], how well each face belongs to its label.

    Returns:
        (labels int32 [N], 0 .. L - 1; how many faces were put out).
    """
    N = len(labels)
    order = np.lexsort((np.arange(N), -support, image, labels))
    same = (labels[order[1:]] == labels[order[:-1]]) & (image[order[1:]] == image[order[:-1]])
    out = order[1:][same]
    separated = labels.copy()
    separated[out] = labels.max(initial=-1) + 1 + np.arange(len(out), dtype=np.int32)
    return densify(separated), len(out)


def support_of(graph: csr_array, labels: Labels) -> NDArray[np.float32]:
    """Weight of each face's links within its own label, float32 [N]."""
    rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    inside = labels[rows] == labels[graph.indices]
    weight = np.bincount(rows[inside], graph.data[inside].astype(np.float64), minlength=graph.shape[0])
    support: NDArray[np.float32] = weight.astype(np.float32)
    return support


def densify(labels: NDArray[np.integer]) -> Labels:
    """The same labels as 0 .. L - 1, by rising old label."""
    dense: Labels = np.unique(labels, return_inverse=True)[1].ravel().astype(np.int32)
    return dense


def _half(hashes: NDArray[np.uint64], turn: int) -> Bools:
    half: Bools = (mix(hashes ^ mix(np.array([turn]))) & np.uint64(1)).astype(bool)
    return half


def _heaviest(links: csr_array, labels: Labels, own: Labels, hashes: NDArray[np.uint64]) -> Labels:
    """The label with most weight for each row of `links`, every one of which has entries: int32 [rows]."""
    N = len(labels)
    one_hot = csr_array(
        (np.ones(N, np.float32), labels, np.arange(N + 1, dtype=np.int32)), shape=(N, N), copy=False
    )
    votes = links @ one_hot
    starts = votes.indptr[:-1]
    row = np.repeat(np.arange(len(own)), np.diff(votes.indptr))
    best = votes.data >= np.maximum.reduceat(votes.data, starts)[row] * np.float32(1 - _EQUAL)
    rank = np.where(best, hashes[votes.indices] >> np.uint64(1), np.uint64(0))
    rank[best & (votes.indices == own[row])] = _KEEP_OWN
    winner = np.flatnonzero(rank == np.maximum.reduceat(rank, starts)[row])
    chosen = np.empty(len(own), np.int32)
    chosen[row[winner]] = votes.indices[winner]
    return chosen
