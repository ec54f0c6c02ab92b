"""Label cleaning: faces, claims on images and duplicates come in, a decision about every face goes out.

    claims ─► one vote per label and duplicate group ─► one face per vote ─► method ─► decisions ─► copies inherit

Arrays only; called by driver.clean and bench.cleaning. The methods are `ownership` (curate.ownership), which decides
over the whole set, and `cast` (curate.cast), the baseline, which looks at every label by itself first.

Shape legend: N faces, C claims, T votes, R candidates (a face of a vote's image), L labels, P people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from facescale.curate.cast import rule_by_cast
from facescale.curate.claims import Claims, Faces, Votes, choose_faces, count_votes, faces_of, pick, spread
from facescale.curate.counterparts import counterparts
from facescale.curate.decisions import DROP, KEEP, MERGE, QUARANTINE, REASON_CODES, RELABEL, Decisions, Ruling
from facescale.curate.evidence import nearest_of
from facescale.curate.ownership import OwnershipRules, decide, resolve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.curate.calibration import Calibration
    from facescale.curate.cast import CastCuts
    from facescale.curate.ownership import Cuts, Ownership

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]
    Bools = NDArray[np.bool_]


REVISION = 1
"""Raised whenever decisions change at equal settings."""


def clean_by_ownership(
    faces: Faces, claims: Claims, calibration: Calibration, rules: OwnershipRules
) -> Decisions:
    """Clean labels by deciding over the whole set whose name each is.

    Args:
        faces: all faces of the lake.
        claims: what is said about images.
        calibration: of the embedder.
        rules: thresholds.

    Returns:
        A row for every face.
    """
    votes = count_votes(faces, claims)
    cuts = resolve(rules, calibration, claims.num_labels)
    unit = faces.unit[votes.face]
    label = votes.label[votes.vote]
    chosen, good = choose_faces(faces, votes, cuts.split), faces.good[votes.face]
    heard = np.bincount(label[chosen & good], minlength=claims.num_labels) > 0
    unowned = np.zeros(claims.num_labels, bool)
    for turn in range(2):
        voting = chosen & (good | unowned[label])
        found = decide(unit, label, votes.key, voting, chosen, claims.num_labels, cuts, rules)
        again = _choose_again(faces, votes, found, cuts)
        # Where the recognizable faces of a label leave it without an owner, its others are heard, too.
        claim = found.merged[label]
        owners = voting & (found.owner[claim] >= 0) & (found.person == found.owner[claim])
        seen = np.bincount(claim[owners], minlength=claims.num_labels)
        unowned = (seen[found.merged] < rules.min_photos) & heard
        if turn or ((again == chosen).all() and not (unowned[label] & chosen & ~good).any()):
            break
        # Whose face an image's claim means is known better now that it is known whose the label is.
        chosen = again
    return _write(faces, claims, votes, chosen, rule(found, votes, voting, cuts), calibration.re_encode)


def clean_by_cast(faces: Faces, claims: Claims, calibration: Calibration, cuts: CastCuts) -> Decisions:
    """Clean labels one by one, then drop or merge those that look alike.

    Args:
        faces: all faces of the lake.
        claims: what is said about images.
        calibration: of the embedder; says which faces of copies are the same face.
        cuts: thresholds, see curate.cast.

    Returns:
        A row for every face.
    """
    votes = count_votes(faces, claims)
    chosen = choose_faces(faces, votes, cuts.link)
    ruling = rule_by_cast(
        faces.unit[votes.face],
        votes,
        chosen & faces.good[votes.face],
        claims.num_labels,
        cuts,
    )
    return _write(faces, claims, votes, chosen, ruling, calibration.re_encode)


def _choose_again(faces: Faces, votes: Votes, found: Ownership, cuts: Cuts) -> Bools:
    """The face of each vote that shows the label's owner; else one that shows another name's; else the main one."""
    named = (found.rival >= 0) & (found.name[np.maximum(found.rival, 0)] >= 0)
    relabeled = named & (found.rival_score >= np.float32(cuts.relabel))
    rank = np.where(found.keep, 2.0, np.where(relabeled, 1.0, 0.0))
    score = np.where(found.keep, found.own, np.where(relabeled, found.rival_score, 0.0)).astype(np.float64)
    return pick(votes, rank, score, faces.prominence[votes.face].astype(np.float64))


def rule(found: Ownership, votes: Votes, voting: Bools, cuts: Cuts) -> Ruling:
    """Put what was found about each candidate into verdicts."""
    label = votes.label[votes.vote]
    R = len(label)
    claim = found.merged[label]
    owner = found.owner[claim]
    photos = np.bincount(votes.label, minlength=len(found.owner))
    heard = np.bincount(label[voting], minlength=len(found.owner)) > 0
    rival_name = np.where(found.rival >= 0, found.name[np.maximum(found.rival, 0)], -1)
    to_rival = (rival_name >= 0) & (found.rival_score >= np.float32(cuts.relabel)) & ~found.keep
    second = found.second[claim]
    shared = (second >= 0) & (found.keep | (found.person == second))
    nobody = owner < 0
    cases = [
        (shared, QUARANTINE, "two_people"),
        (found.keep & (claim != label), MERGE, "same_person"),
        (found.keep, KEEP, "owner"),
        (to_rival, RELABEL, "other_name"),
        (nobody & (photos[label] <= 1), KEEP, "single_photo"),
        (nobody & ~heard[label], QUARANTINE, "low_quality"),
        (nobody, QUARANTINE, "no_majority"),
        (found.own < np.float32(cuts.keep), DROP, "unlike_owner"),
        (np.ones(R, bool), DROP, "rival"),
    ]
    case = np.select([condition for condition, _, _ in cases], range(len(cases)))
    verdict = np.array([code for _, code, _ in cases], np.int8)[case]
    reason = np.array([REASON_CODES[name] for _, _, name in cases], np.int8)[case]
    label_out = np.where(np.isin(verdict, (KEEP, MERGE)), claim, np.where(verdict == RELABEL, rival_name, -1))
    by_rival = reason == REASON_CODES["other_name"]
    score = np.where(by_rival, found.rival_score, found.own)
    threshold = np.full(R, cuts.keep, np.float32)
    threshold[by_rival] = cuts.relabel
    by_nearer = reason == REASON_CODES["rival"]
    threshold[by_nearer] = found.rival_score[by_nearer] - np.float32(cuts.margin)
    unscored = nobody & ~by_rival
    score[unscored | ~np.isfinite(score)], threshold[unscored] = np.nan, np.nan
    # Of two people who share a name, each is shown beside the other.
    person = np.where(by_rival | by_nearer, found.rival, owner)
    person = np.where(shared, np.where(found.keep, second, owner), person)
    members = np.where(voting, found.person, -1)
    return Ruling(verdict, reason, label_out, score.astype(np.float32), threshold, person, members)


def _write(
    faces: Faces, claims: Claims, votes: Votes, chosen: Bools, ruling: Ruling, re_encode: float
) -> Decisions:
    """Rows for all faces: the chosen ones as ruled, bystanders, copies, and those that nothing is said about."""
    rows = Decisions.blank(faces.face_id)
    _drop_bystanders(rows, faces, claims)
    at = np.flatnonzero(chosen)
    into = votes.face[at]
    evidence, _ = nearest_of(faces.unit[votes.face], at, ruling.person[at], ruling.members, votes.key)
    rows.label_in[into] = votes.label[votes.vote[at]]
    rows.verdict[into], rows.reason[into] = ruling.verdict[at], ruling.reason[at]
    rows.label_out[into] = ruling.label_out[at]
    rows.score[into], rows.threshold[into] = ruling.score[at], ruling.threshold[at]
    rows.evidence_id[into] = np.where(evidence >= 0, faces.face_id[votes.face[evidence]], -1)
    _inherit(rows, faces, claims, votes, re_encode)
    return rows


def _drop_bystanders(rows: Decisions, faces: Faces, claims: Claims) -> None:
    """Mark all faces of images with a claim; those that stand for one are overwritten afterwards."""
    _, at = spread(*faces_of(faces.face_id, np.unique(claims.image_id)))
    rows.verdict[at], rows.reason[at] = DROP, REASON_CODES["bystander"]


def _inherit(rows: Decisions, faces: Faces, claims: Claims, votes: Votes, re_encode: float) -> None:
    """Give faces of copies the decisions of the most similar face on the image that voted for them.

    At most one face of an image inherits a claim. A face below the re-encode quantile to all of them has no
    counterpart: it may be another crop, or no copy after all.
    """
    known = np.flatnonzero(votes.vote_of >= 0)
    vote = votes.vote_of[known]
    copies = known[claims.image_id[known] != votes.image_id[vote]]
    if not len(copies):
        return
    source = votes.image_id[votes.vote_of[copies]]
    claim, face = spread(*faces_of(faces.face_id, claims.image_id[copies]))
    other, similarity = counterparts(faces.unit, faces.face_id, face, source[claim])
    label = claims.label[copies][claim]
    same = similarity >= np.float32(re_encode)
    standing = same & (rows.label_in[other] == label)
    # The most similar of several faces stands for the claim.
    order = np.lexsort((faces.face_id[face], similarity, standing, claim))
    last = np.zeros(len(order), bool)
    last[order[np.flatnonzero(np.diff(claim[order], append=-1))]] = True
    heir = standing & last
    lonely = ~same & (rows.label_in[face] < 0)
    rows.reason[face[lonely]] = REASON_CODES["no_counterpart"]
    rows.score[face[lonely]], rows.threshold[face[lonely]] = similarity[lonely], re_encode
    to, source_face = face[heir], other[heir]
    for column in (
        rows.label_in,
        rows.label_out,
        rows.verdict,
        rows.reason,
        rows.score,
        rows.threshold,
        rows.evidence_id,
    ):
        column[to] = column[source_face]
