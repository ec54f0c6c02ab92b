"""Plants wrong labels among right ones: identities of photographs come in, claimed labels and the truth go out.

Called by bench.cleaning_trials. Every kind is a way that crawls go wrong; rows come out shuffled, so that nothing can
be told from the order of files.

Shape legend: I photographs, L identities, D embedding dimension, M photographs of a trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

KINDS = {
    "clean": "nothing is planted",
    "uniform": "labels of photographs drawn at random are shuffled among them",
    "lookalike": "photographs drawn at random move to the label whose person is most similar to them",
    "named": "a share of each person moves, as a block, to the label of one other person",
    "unnamed": "half of the labels take in a block of one person who has no label",
    "outside": "photographs drawn at random are replaced by those of people without a label, a different one each",
}
"""What can be planted, in words."""

_SHUFFLES = 100


@dataclass(frozen=True, eq=False)
class Planted:
    """A data set with known noise.

    Attributes:
        rows: int64 [M], which photographs are in it, in random order.
        label: int64 [M], what each is said to show.
        truth: int64 [M], whom it shows.
    """

    rows: Ints
    label: Ints
    truth: Ints

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Bool [M], where the label is not the truth."""
        wrong: NDArray[np.bool_] = self.label != self.truth
        return wrong


def plant(
    kind: str, rate: float, identity: Ints, unit: Floats, rng: np.random.Generator, *, min_photos: int = 4
) -> Planted:
    """Make one trial.

    Args:
        kind: a key of KINDS.
        rate: share of wrong photographs, 0 .. 0.5; of each label that is hit, for blocks.
        identity: int64 [I], whom each photograph shows.
        unit: float32 [I, D], its face; only "lookalike" looks at them.
        rng: decides everything that is left open.
        min_photos: identities with fewer have no label; "outside" takes its strangers from them.

    Raises:
        UsageError: an unknown kind, or fewer than three identities with enough photographs.
    """
    if kind not in KINDS:
        raise UsageError(f"no kind of label noise is called {kind!r}; there are {', '.join(KINDS)}")
    names, index, counts = np.unique(identity, return_inverse=True, return_counts=True)
    index = index.ravel()
    named = np.flatnonzero(counts >= min_photos)
    if len(named) < 3:
        raise UsageError(
            f"planting label noise takes three identities of {min_photos} photographs or more; there are {len(named)}"
        )
    rows = rng.permutation(np.flatnonzero(counts[index] >= min_photos))
    truth = index[rows]
    label = truth.copy()
    if kind == "uniform":
        label = _shuffle(label, _draw(truth, rate, rng), rng)
    elif kind == "lookalike":
        moved = np.flatnonzero(_draw(truth, rate, rng))
        label[moved] = _most_similar(truth, unit[rows], moved)
    elif kind == "named":
        label = _chain(truth, counts, named, rate, rng)
    elif kind == "unnamed":
        kept, label = _blocks(truth, counts, named, rate, rng)
        rows, truth, label = rows[kept], truth[kept], label[kept]
    elif kind == "outside":
        strangers = rng.permutation(np.flatnonzero(counts[index] < min_photos))
        rows, label = _replace(rows, truth, strangers, rate, rng)
        truth = index[rows]
    order = rng.permutation(len(rows))
    return Planted(rows[order], names[label[order]], names[truth[order]])


def _draw(truth: Ints, rate: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A share of each identity's photographs, bool [M]; fractions are rounded up or down by chance."""
    order = np.lexsort((rng.random(len(truth)), truth))
    counts = np.bincount(truth)
    rank = np.empty(len(truth), np.int64)
    rank[order] = np.arange(len(truth)) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = np.floor(counts * rate + rng.random(len(counts)))
    drawn: NDArray[np.bool_] = rank < wanted[truth]
    return drawn


def _shuffle(label: Ints, drawn: NDArray[np.bool_], rng: np.random.Generator) -> Ints:
    """The labels drawn, shuffled so that none stays where it was (as far as that can be, when one label has most)."""
    at = np.flatnonzero(drawn)
    mixed = label[rng.permutation(at)]
    for _ in range(_SHUFFLES):
        stuck = np.flatnonzero(mixed == label[at])
        if not len(stuck):
            break
        mixing = np.union1d(stuck, rng.choice(len(at), len(stuck), replace=False))
        mixed[mixing] = mixed[rng.permutation(mixing)]
    shuffled = label.copy()
    shuffled[at] = mixed
    return shuffled


def _most_similar(truth: Ints, unit: Floats, moved: Ints) -> Ints:
    """The other identity whose mean is nearest to each photograph moved."""
    identities, index = np.unique(truth, return_inverse=True)
    sums = np.zeros((len(identities), unit.shape[1]))
    np.add.at(sums, index.ravel(), unit)
    centers = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    similarity = unit[moved] @ centers.T
    similarity[np.arange(len(moved)), index.ravel()[moved]] = -np.inf
    nearest: Ints = identities[similarity.argmax(axis=1)]
    return nearest


def _chain(truth: Ints, counts: Ints, named: Ints, rate: float, rng: np.random.Generator) -> Ints:
    """Each identity gives a share of its photographs to the next in a ring of like sizes."""
    ring = named[np.lexsort((rng.random(len(named)), counts[named]))]
    following = np.arange(len(counts))
    following[ring] = np.roll(ring, -1)
    return np.where(_draw(truth, rate, rng), following[truth], truth)


def _blocks(
    truth: Ints, counts: Ints, named: Ints, rate: float, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Donors give photographs to hosts and keep no label: (positions kept, labels of all).

    A third of the identities are donors, each of a host of like size; of what would make a block larger or smaller
    than the rate, photographs are left out.
    """
    shuffled = rng.permutation(named)
    donors, hosts = shuffled[: len(named) // 3], shuffled[len(named) // 3 : 2 * (len(named) // 3)]
    donors, hosts = donors[np.argsort(counts[donors])], hosts[np.argsort(counts[hosts])]
    share = rate / (1 - rate)
    block = np.floor(np.minimum(counts[donors], counts[hosts] * share) + rng.random(len(donors))).astype(int)
    block = np.minimum(block, counts[donors])
    most, host = np.full(len(counts), np.iinfo(np.int64).max), np.arange(len(counts))
    most[donors], host[donors] = block, hosts
    hit = block > 0
    most[hosts[hit]] = np.maximum(np.round(block[hit] / share), 1)
    order = np.lexsort((rng.random(len(truth)), truth))
    sizes = np.bincount(truth, minlength=len(counts))
    rank = np.empty(len(truth), np.int64)
    rank[order] = np.arange(len(truth)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.flatnonzero(rank < most[truth]), host[truth]


def _replace(
    rows: Ints, truth: Ints, strangers: Ints, rate: float, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Photographs drawn are replaced by strangers; labels for which none are left are left out: (rows, labels)."""
    drawn = _draw(truth, rate, rng)
    labels = rng.permutation(np.unique(truth))
    wanted = np.bincount(truth, drawn, minlength=int(truth.max()) + 1)[labels]
    kept = np.isin(truth, labels[np.cumsum(wanted) <= len(strangers)])
    at = np.flatnonzero(drawn & kept)
    rows = rows.copy()
    rows[at] = strangers[: len(at)]
    return rows[kept], truth[kept]
