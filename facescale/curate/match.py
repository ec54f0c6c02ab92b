"""Who owns which name: photographs of people under labels come in, a one-to-one matching goes out.

Called by curate.ownership, after labels were split into people and people merged across labels.

Shape legend: V votes (one face of one photograph), P people, L labels, E edges of a person and a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

_TIE = 2.0**-20
"""Weight that a hash may add to an edge: it decides between equal counts and between nothing else."""


@dataclass(frozen=True, eq=False)
class Edges:
    """How many photographs each person has under each label.

    Attributes:
        person: int64 [E].
        label: int64 [E].
        photos: int64 [E].
        key: uint64 [E], a hash of who was counted.
    """

    person: Ints
    label: Ints
    photos: Ints
    key: NDArray[np.uint64]

    def __getitem__(self, at: NDArray[Any]) -> Edges:
        return Edges(self.person[at], self.label[at], self.photos[at], self.key[at])


def count_edges(person: Ints, label: Ints, key: NDArray[np.uint64]) -> Edges:
    """Count votes by person and label.

    Args:
        person: int64 [V]; -1 for none, which counts for nothing.
        label: int64 [V].
        key: uint64 [V], a hash of each face.

    Returns:
        Edges sorted by label, then person.
    """
    known = np.flatnonzero(person >= 0)
    order = known[np.lexsort((person[known], label[known]))]
    p, l = person[order], label[order]  # noqa: E741 - two parallel columns
    first = np.flatnonzero(np.concatenate([[True], (p[1:] != p[:-1]) | (l[1:] != l[:-1])]) if len(p) else p)
    photos = np.diff(np.append(first, len(p)))
    keys = np.bitwise_xor.reduceat(key[order], first) if len(first) else key[:0]
    return Edges(p[first], l[first], photos, keys)


def match_names(edges: Edges, num_people: int, num_labels: int, *, min_photos: int, min_share: float) -> Ints:
    """Give each name to one person and each person one name, so that most photographs are under their own.

    Args:
        edges: who is under which label how often.
        num_people: P.
        num_labels: L.
        min_photos: an edge needs so many photographs.
        min_share: and this share of those of the label's largest person.

    Returns:
        int64 [L], the owner of each label, -1 for none.

    Notes:
        Each connected component of labels and people is solved by itself, exactly (a sparse solution of the assignment
        problem, scipy); most components are a name and its person and need no solver.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    largest = np.zeros(num_labels, np.int64)
    np.maximum.at(largest, edges.label, edges.photos)
    edges = edges[(edges.photos >= min_photos) & (edges.photos >= min_share * largest[edges.label])]
    owner = np.full(num_labels, -1)
    if not len(edges.photos):
        return owner
    weight = edges.photos + (edges.key >> np.uint64(11)).astype(np.float64) * 2.0**-53 * _TIE
    shape = (num_labels + num_people, num_labels + num_people)
    graph = coo_matrix((np.ones(len(weight)), (edges.label, num_labels + edges.person)), shape)
    part = connected_components(graph, directed=False)[1][edges.label]
    # A component with one label is settled by its largest edge; so are all labels there at once.
    labels_of = np.zeros(part.max() + 1, np.int64)
    np.add.at(labels_of, part[np.unique(edges.label, return_index=True)[1]], 1)
    alone = np.flatnonzero(labels_of[part] == 1)
    best = alone[np.lexsort((weight[alone], edges.label[alone]))]
    owner[edges.label[best]] = edges.person[
        best
    ]  # the last of equal indices wins, which has the largest weight
    rest = np.flatnonzero(labels_of[part] > 1)
    rest = rest[np.argsort(part[rest], kind="stable")]
    if len(rest):
        for component in np.split(rest, np.flatnonzero(np.diff(part[rest])) + 1):
            labels, people = _assign(edges.label[component], edges.person[component], weight[component])
            owner[labels] = people
    return owner


def _assign(label: Ints, person: Ints, weight: NDArray[np.float64]) -> tuple[Ints, Ints]:
    """The matching of the greatest total weight in one component: (labels, people), one pair each.

    The sparse solver wants every label matched, so each may also be matched to nobody, at no weight.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    labels, row = np.unique(label, return_inverse=True)
    people, column = np.unique(person, return_inverse=True)
    L, P = len(labels), len(people)
    # Costs must not be zero, which a sparse matrix takes for no edge.
    cost = np.concatenate([weight.max() + 1 - weight, np.full(L, weight.max() + 1)])
    rows = np.concatenate([row.ravel(), np.arange(L)])
    columns = np.concatenate([column.ravel(), P + np.arange(L)])
    row, column = min_weight_full_bipartite_matching(coo_matrix((cost, (rows, columns)), (L, P + L)).tocsr())
    real = column < P
    return labels[row[real]], people[column[real]]
