"""Who owns each name, decided over the whole set: votes in, people, owners and verdicts out.

    split each label into people ─► merge people across labels ─► match people and names one to one
        ─► refine against rival centers, twice ─► relabel, quarantine

A vote is the one face of a photograph that stands for its label. Arrays only; thresholds are cosines, resolved from
false-match rates by `resolve`. Called by curate.clean and bench.cleaning.

Shape legend: V votes, D dimension, L labels, P people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.curate.linkage import average_linkage
from facescale.curate.match import count_edges, match_names
from facescale.curate.refine import best_rivals, make_centers, own_scores, sum_by

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.curate.calibration import Calibration

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class OwnershipRules:
    """Every threshold of the method, none of them a cosine.

    Attributes:
        split_fmr: pairs of a label at or above it, in the mean, are one person.
        merge_fmr: people of different labels at or above it, in the mean of pairs, are one person; for
            `merge_labels` labels, and smaller in proportion for more.
        merge_labels: see merge_fmr.
        same_name_fmr: the same for the main people of two labels, which make two names one.
        keep_fmr: a face stays under its name at or above it, face to center.
        rival_margin: unless another center is nearer by this share of the spread (99.9 % quantile minus median) of the
            similarity of faces with centers of other people.
        rival_fmr: and only by a center at or above it, divided by the number of labels: the nearest of many is near.
        relabel_fmr: a face moves to another name at or above it, face to center, divided by the number of labels.
        min_photos: photographs of a person under a label that make a claim to the name.
        min_share: the same, as a share of those of the label's largest person.
        quarantine_share: a second person with this share of the owner's photographs makes it undecidable whose name it
            is, unless that person has a name with more than the inverse share of photographs.
        main_share: a label whose largest person has this share of its photographs, and none other more than half as
            many, has a main person.
        same_name_share: share of the photographs of each of two labels that must be of one person to make them one.
        rounds: of refinement.
    """

    split_fmr: float = 3e-3
    merge_fmr: float = 3e-4
    merge_labels: int = 300
    same_name_fmr: float = 5e-5
    keep_fmr: float = 2e-2
    rival_margin: float = 0.2
    rival_fmr: float = 0.1
    relabel_fmr: float = 0.005
    min_photos: int = 2
    min_share: float = 0.1
    quarantine_share: float = 0.67
    main_share: float = 0.5
    same_name_share: float = 0.7
    rounds: int = 2


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """The rules as cosines of one embedder and number of labels; see OwnershipRules."""

    split: float
    merge: float
    same_name: float
    keep: float
    margin: float
    rival: float
    relabel: float
    small_sample: float


def resolve(rules: OwnershipRules, calibration: Calibration, num_labels: int) -> Cuts:
    """Turn false-match rates into cosines."""
    pairs, centers = calibration.pairs, calibration.centers
    L = max(num_labels, 1)
    keep = centers.similarity_at(rules.keep_fmr)
    fewer = min(1.0, rules.merge_labels / L)
    return Cuts(
        split=pairs.similarity_at(rules.split_fmr),
        merge=pairs.similarity_at(rules.merge_fmr * fewer),
        same_name=pairs.similarity_at(rules.same_name_fmr * fewer),
        keep=keep,
        margin=rules.rival_margin * (centers.quantile(0.999) - centers.quantile(0.5)),
        rival=centers.similarity_at(min(1.0, rules.rival_fmr / L)),
        relabel=centers.similarity_at(min(rules.keep_fmr, rules.relabel_fmr / L)),
        small_sample=max(0.0, keep - pairs.similarity_at(rules.keep_fmr)),
    )


@dataclass(frozen=True, eq=False)
class Ownership:
    """What was decided about each face.

    Attributes:
        person: int64 [V], who it shows as far as known, -1 for nobody known.
        owner: int64 [L], person that each label belongs to; -1 for none.
        name: int64 [P], label of each person; -1 for none.
        merged: int64 [L], the label that each label is another name of; itself for most.
        keep: bool [V], it shows its label's owner.
        own: float32 [V], similarity with the owner's center, -inf without one.
        rival: int64 [V], the other person it is most similar to, -1 for none.
        rival_score: float32 [V].
        second: int64 [L], the person who shares the label with its owner so evenly that it cannot be told whose it is,
            and has no other name that is clearly theirs; -1 for none.
        second_share: float32 [L], photographs of that person as a share of the owner's.
    """

    person: Ints
    owner: Ints
    name: Ints
    merged: Ints
    keep: Bools
    own: Floats
    rival: Ints
    rival_score: Floats
    second: Ints
    second_share: Floats


def decide(
    unit: Floats,
    label: Ints,
    key: NDArray[np.uint64],
    voting: Bools,
    counted: Bools,
    num_labels: int,
    cuts: Cuts,
    rules: OwnershipRules,
) -> Ownership:
    """Decide whose name each label is and which faces show its owner.

    Args:
        unit: float32 [V, D], unit vectors.
        label: int64 [V], 0 .. L - 1.
        key: uint64 [V], a hash of each face's id.
        voting: bool [V], which faces say who a label's people are: one of each photograph, recognizable, no copies.
            The others are only compared with the result.
        counted: bool [V], which faces count as photographs of whoever they are found to show: those that vote, and
            those that only are not recognizable enough to.
        num_labels: L.
        cuts: thresholds.
        rules: those that are no cosines.
    """
    person = np.full(len(unit), -1)
    person[voting] = find_people(unit[voting], label[voting], key[voting], num_labels, cuts, rules)
    P = int(person.max(initial=-1)) + 1
    merged = same_names(person, label, key, num_labels, rules)
    claim = merged[label]
    shown = _attach(unit, person, counted & ~voting, P, cuts)
    owner = match_names(
        count_edges(shown, claim, key), P, num_labels, min_photos=rules.min_photos, min_share=rules.min_share
    )
    name = np.full(P, -1)
    name[owner[owner >= 0]] = np.flatnonzero(owner >= 0)
    for turn in range(rules.rounds + 1):
        own, rival, rival_score = _scores(unit, claim, person, owner, P, cuts)
        keep = (own >= np.float32(cuts.keep)) & ~beaten(own, rival_score, cuts)
        members = _members(np.where(voting, person, shown), owner[claim], keep, rival, rival_score, cuts)
        if turn < rules.rounds:
            person = np.where(voting, members, -1)
    shown = np.where(voting, person, np.where(counted, members, -1))
    second, second_share = _undecided(shown, claim, key, keep & counted, owner, name, rules)
    return Ownership(shown, owner, name, merged, keep, own, rival, rival_score, second, second_share)


def _attach(unit: Floats, person: Ints, late: Bools, num_people: int, cuts: Cuts) -> Ints:
    """Who each face shows, with those that had no say given to the nearest person: int64 [V], -1 for nobody known."""
    shown, at = person.copy(), np.flatnonzero(late)
    centers = make_centers(unit, person, num_people, small_sample=cuts.small_sample)
    nobody = np.full(len(at), -1)
    nearest, score = best_rivals(
        unit[at], nobody, nobody, centers, centers.counts > 0, small_sample=cuts.small_sample
    )
    shown[at] = np.where(score >= np.float32(cuts.keep), nearest, -1)
    return shown


def beaten(own: Floats, rival_score: Floats, cuts: Cuts) -> Bools:
    """Whether another person is so much nearer than the owner that a face cannot be the owner's: bool [V]."""
    nearer = rival_score >= own + np.float32(cuts.margin)
    beats: Bools = nearer & (rival_score >= np.float32(cuts.rival))
    return beats


def find_people(
    unit: Floats, label: Ints, key: NDArray[np.uint64], num_labels: int, cuts: Cuts, rules: OwnershipRules
) -> Ints:
    """Split labels into people, and merge people across labels: int64 [V], 0 .. P - 1.

    Photographs under a wrong name are common, two names of one person are not: so the main people of two labels stay
    apart unless they are much more similar than it takes to bring a stray photograph home.
    """
    piece = average_linkage(unit, label, cuts.split, key=key)
    if not len(piece):
        return piece
    num = int(piece.max()) + 1
    sums, counts = sum_by(unit, piece, num)
    keys = np.zeros(num, np.uint64)
    np.bitwise_xor.at(keys, piece, key)
    main = np.flatnonzero(main_pieces(piece, label, num_labels, rules))
    apart = np.full(num, -1)
    everyone = np.zeros(num, np.int64)
    apart[main] = average_linkage(
        sums[main], everyone[main], cuts.same_name, key=keys[main], sizes=counts[main]
    )
    whole = average_linkage(sums, everyone, cuts.merge, key=keys, sizes=counts, apart=apart)
    people: Ints = whole[piece]
    return people


def main_pieces(piece: Ints, label: Ints, num_labels: int, rules: OwnershipRules) -> Bools:
    """Which pieces of labels are a label's main person: bool [pieces].

    Args:
        piece: int64 [V], 0 .. the largest; each of one label.
        label: int64 [V].
        num_labels: L.
        rules: main_share, min_photos.
    """
    photos = np.bincount(piece)
    label_of = np.zeros(len(photos), np.int64)
    label_of[piece] = label
    total = np.bincount(label, minlength=num_labels)[label_of]
    order = np.lexsort((photos, label_of))
    last = np.flatnonzero(np.diff(label_of[order], append=-1))
    before = np.maximum(last - 1, 0)
    second = np.where(label_of[order[before]] == label_of[order[last]], photos[order[before]], 0)
    second[before == last] = 0  # the first label has one piece
    largest = order[last]
    main = np.zeros(len(photos), bool)
    main[largest] = (
        (photos[largest] >= rules.min_photos)
        & (photos[largest] >= rules.main_share * total[largest])
        & (2 * second <= photos[largest])
    )
    return main


def same_names(
    person: Ints, label: Ints, key: NDArray[np.uint64], num_labels: int, rules: OwnershipRules
) -> Ints:
    """Which labels are names of one person: int64 [L], the label with most of that person's photographs.

    A person must make up nearly all of a label: a label half taken over by somebody else stays a name of its own.
    """
    merged = np.arange(num_labels)
    edges = count_edges(person, label, key)
    total = np.bincount(label[person >= 0], minlength=num_labels)
    edges = edges[
        (edges.photos >= rules.min_photos) & (edges.photos >= rules.same_name_share * total[edges.label])
    ]
    edges = edges[np.lexsort((edges.key, edges.photos, edges.person))]
    last = np.flatnonzero(np.diff(edges.person, append=-1))
    merged[edges.label] = edges.label[np.repeat(last, np.diff(last, prepend=-1))]
    return merged


def _scores(
    unit: Floats, claim: Ints, person: Ints, owner: Ints, num_people: int, cuts: Cuts
) -> tuple[Floats, Ints, Floats]:
    """Scores against the label's owner, and against the nearest other person: (own, rival, rival score)."""
    mine = owner[claim]
    centers = make_centers(unit, person, num_people, small_sample=cuts.small_sample)
    own = own_scores(unit, mine, (person == mine) & (mine >= 0), centers, small_sample=cuts.small_sample)
    allowed = centers.counts >= 2
    allowed[owner[owner >= 0]] = True
    rival, score = best_rivals(unit, person, mine, centers, allowed, small_sample=cuts.small_sample)
    return own, rival, score


def _members(person: Ints, mine: Ints, keep: Bools, rival: Ints, rival_score: Floats, cuts: Cuts) -> Ints:
    """Who each face shows after a round: the owner, the rival, who it was before, or nobody known."""
    to_rival = (rival >= 0) & (rival_score >= np.float32(cuts.keep))
    members: Ints = np.where(
        keep, mine, np.where(to_rival, rival, np.where(person == mine, -1, person))
    ).astype(np.int64)
    return members


def _undecided(
    person: Ints,
    claim: Ints,
    key: NDArray[np.uint64],
    keep: Bools,
    owner: Ints,
    name: Ints,
    rules: OwnershipRules,
) -> tuple[Ints, Floats]:
    """The second person of each label that two share, and how evenly: (int64 [L], float32 [L])."""
    owned = np.maximum(np.bincount(claim[keep], minlength=len(owner)), 1)
    edges = count_edges(np.where(keep, -1, person), claim, key)
    share = (edges.photos / owned[edges.label]).astype(np.float32)
    other = name[edges.person]
    elsewhere = np.where(other >= 0, owned[np.maximum(other, 0)], 0)
    shared = (edges.photos >= rules.min_photos) & (owner[edges.label] >= 0)
    shared &= share >= np.float32(rules.quarantine_share)
    # Who has as many photographs here as under their own name may have been given the wrong one of the two.
    shared &= edges.photos >= rules.quarantine_share * elsewhere
    edges, share = edges[shared], share[shared]
    second, second_share = np.full(len(owner), -1), np.zeros(len(owner), np.float32)
    order = np.lexsort((edges.key, edges.photos, edges.label))
    second[edges.label[order]], second_share[edges.label[order]] = edges.person[order], share[order]
    return second, second_share
