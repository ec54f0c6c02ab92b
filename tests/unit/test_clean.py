"""Cleaning by ownership, on simulated people: what is planted is found, and nothing hangs on order, names or copies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cleaning_samples import NONE, calibration, claims_of_images, faces_of_images, simulate, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.curate.claims import Claims, Faces
from facescale.curate.clean import clean_by_ownership
from facescale.curate.decisions import REASONS, VERDICTS, Decisions
from facescale.curate.ownership import OwnershipRules
from facescale.evaluate.cleaning import score_cleaning
from facescale.lake.ids import image_id_of, make_image_id
from facescale.synth.noise import plant

RULES = OwnershipRules()
PEOPLE, PHOTOS = 40, 10


def clean(faces: Faces, claims: Claims, rules: OwnershipRules = RULES) -> Decisions:
    return clean_by_ownership(faces, claims, calibration(), rules)


def verdicts(rows: Decisions) -> np.ndarray:
    return np.array(VERDICTS)[rows.verdict]


def reasons(rows: Decisions) -> np.ndarray:
    return np.array(list(REASONS))[rows.reason]


@pytest.mark.parametrize(
    ("kind", "rate", "precision", "recall"),
    [
        ("clean", 0.0, None, None),
        ("uniform", 0.3, 0.98, 0.98),
        ("lookalike", 0.3, 0.95, 0.95),
        ("named", 0.3, 0.97, 0.98),
        ("unnamed", 0.3, 0.97, 0.98),
        ("outside", 0.3, 0.98, 0.97),
    ],
)
def test_planted_noise_is_found(
    kind: str, rate: float, precision: float | None, recall: float | None
) -> None:
    vectors, person = simulate(PEOPLE, PHOTOS, seed=7, alike=0.3)
    few, stranger = simulate(40, 3, seed=8)
    everybody, who = np.concatenate([vectors, few]), np.concatenate([person, PEOPLE + stranger])
    trial = plant(kind, rate, who, everybody, np.random.default_rng(1))
    names, label = np.unique(trial.label, return_inverse=True)
    rows = clean(faces_of_images(everybody[trial.rows]), claims_of_images(label.ravel()))
    final = np.where(rows.label_out >= 0, names[np.maximum(rows.label_out, 0)], -1)
    found = score_cleaning(trial.label, trial.truth, final, verdicts(rows) == "quarantine")
    assert found.true_faces_lost is not None and found.true_faces_lost <= (0.02 if rate else 0.005)
    assert found.identities_hijacked == 0
    if precision is not None and recall is not None:
        assert found.precision is not None and found.precision >= precision
        assert found.recall is not None and found.recall >= recall
        assert found.kept_purity is not None and found.kept_purity >= 0.97
    if kind in ("uniform", "named"):
        assert found.relabel_recall is not None and found.relabel_recall >= 0.9


def test_half_a_label_from_one_outsider_is_set_aside() -> None:
    vectors, person = simulate(PEOPLE, PHOTOS, seed=3)
    trial = plant("unnamed", 0.5, person, vectors, np.random.default_rng(0))
    _, label = np.unique(trial.label, return_inverse=True)
    rows = clean(faces_of_images(vectors[trial.rows]), claims_of_images(label.ravel()))
    hit = np.isin(trial.label, trial.label[trial.wrong])
    aside = verdicts(rows) == "quarantine"
    assert aside[hit].mean() >= 0.9 and not aside[~hit].any()
    assert set(reasons(rows)[aside]) == {"two_people"}
    at = np.searchsorted(rows.face_id, rows.evidence_id[aside])
    assert (trial.truth[at] != trial.truth[aside]).all()  # each is shown beside the other
    assert (trial.label[at] == trial.label[aside]).all()
    assert (rows.label_out[aside] == -1).all()


def test_two_people_who_swapped_half_their_photographs_are_set_aside() -> None:
    vectors, person = simulate(12, PHOTOS, seed=4)
    label = person.copy()
    for one, other in ((0, 1), (1, 0)):
        label[np.flatnonzero(person == one)[: PHOTOS // 2]] = other
    rows = clean(faces_of_images(vectors), claims_of_images(label))
    assert (verdicts(rows)[label < 2] == "quarantine").all()
    assert (verdicts(rows)[label >= 2] == "keep").all()


def test_names_that_are_one_person_are_merged() -> None:
    vectors, person = simulate(12, 12, seed=5, alike=0.3)
    label = person.copy()
    label[np.flatnonzero(person == 4)[:4]] = 12
    label[np.flatnonzero(person == 7)[0]] = 12
    rows = clean(faces_of_images(vectors), claims_of_images(label))
    merged = verdicts(rows) == "merge"
    assert merged.tolist() == ((label == 12) & (person == 4)).tolist()
    assert (rows.label_out[merged] == 4).all() and set(reasons(rows)[merged]) == {"same_person"}
    assert (rows.label_out == person)[~merged].all()


def test_main_people_who_look_alike_stay_two() -> None:
    """More alike than a stray photograph needs to be to come home, less than two names of one person are."""
    known = calibration()
    between = 0.5 * (
        known.pairs.similarity_at(RULES.merge_fmr) + known.pairs.similarity_at(RULES.same_name_fmr)
    )
    vectors, person = simulate(12, PHOTOS, seed=6)
    mean = np.stack([vectors[person == name].mean(axis=0) for name in range(12)])
    first = person == 0
    wanted = _at_cosine(vectors, person, mean, between)
    rows = clean(faces_of_images(wanted), claims_of_images(person))
    mixed = wanted[first].mean(axis=0) @ wanted[person == 1].mean(axis=0)
    assert known.pairs.similarity_at(RULES.merge_fmr) < mixed < known.pairs.similarity_at(RULES.same_name_fmr)
    assert (rows.label_out == person).mean() > 0.95
    assert "merge" not in verdicts(rows)
    together = clean(faces_of_images(wanted), claims_of_images(person), replace(RULES, same_name_fmr=3e-4))
    assert (verdicts(together) == "merge").sum() >= PHOTOS // 2


def _at_cosine(vectors: np.ndarray, person: np.ndarray, mean: np.ndarray, cosine: float) -> np.ndarray:
    """Person 1's faces turned towards person 0 until the mean of pairs has this cosine."""
    moved = vectors.copy()
    low, high = 0.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        moved[person == 1] = unit(vectors[person == 1] + middle * mean[0])
        reached = moved[person == 0].mean(axis=0) @ moved[person == 1].mean(axis=0)
        low, high = (middle, high) if reached < cosine else (low, middle)
    return moved


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(["uniform", "lookalike", "named"]))
def test_order_of_rows_and_names_of_labels_change_nothing(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    vectors, person = simulate(8, 6, seed=seed, spread=0.8, alike=0.4)
    trial = plant(kind, 0.3, person, vectors, rng)
    claims = claims_of_images(trial.label)
    faces = faces_of_images(vectors[trial.rows])
    rows = clean(faces, claims)
    order, names = rng.permutation(len(claims.image_id)), rng.permutation(claims.num_labels)
    renamed = replace(claims, image_id=claims.image_id[order], label=names[claims.label[order]])
    again = clean(faces, renamed)
    number = np.append(names, -1)  # -1 stays
    for column in ("face_id", "verdict", "reason", "evidence_id"):
        np.testing.assert_array_equal(getattr(again, column), getattr(rows, column), err_msg=column)
    for column in ("score", "threshold"):  # sums of float32 in another order
        np.testing.assert_allclose(getattr(again, column), getattr(rows, column), atol=1e-6, err_msg=column)
    np.testing.assert_array_equal(again.label_in, number[rows.label_in])
    np.testing.assert_array_equal(again.label_out, number[rows.label_out])


def test_a_wrong_photograph_copied_fifty_times_has_one_vote() -> None:
    vectors, person = simulate(12, 5, seed=9)
    stranger = np.flatnonzero(person == 11)[0]
    label = np.where(person == 11, 0, person)[np.r_[np.flatnonzero(person != 11), stranger]]
    faces = vectors[np.r_[np.flatnonzero(person != 11), stranger]]
    single = len(label) - 1
    copies = np.arange(single + 1, single + 51)
    many = np.concatenate([faces, np.repeat(faces[-1:], 50, axis=0)])
    labels = np.concatenate([label, np.zeros(50, np.int64)])
    rows = clean(faces_of_images(many), claims_of_images(labels, copies, np.full(50, single)))
    assert (rows.label_out[:single] == label[:single]).all()
    assert set(verdicts(rows)[single:]) == {"drop"}
    assert len(set(rows.score[single:].tolist())) == 1  # copies inherit what their representative got
    without = clean(faces_of_images(many), claims_of_images(labels))
    assert (without.label_out[copies] == 0).all()  # what dedup is for


def test_one_face_of_an_image_inherits_the_label() -> None:
    """Every photograph of label 0 shows a bystander, too, and the same one on two of them."""
    vectors, person = simulate(12, 6, seed=10)
    order = np.argsort(person, kind="stable")
    vectors, person = vectors[order], person[order]
    crowd, _ = simulate(5, 1, seed=11)
    guests = np.concatenate([crowd, crowd[:1]])
    per_image = np.where(person == 0, 2, 1)
    first = np.cumsum(per_image) - per_image
    faces = np.empty((per_image.sum(), vectors.shape[1]), np.float32)
    faces[first], faces[first[person == 0] + 1] = vectors, guests
    rows = clean(faces_of_images(faces, per_image), claims_of_images(person))
    assert (rows.label_out[first] == person).all()
    assert set(reasons(rows)[first[person == 0] + 1]) == {"bystander"}
    assert (rows.label_in[first[person == 0] + 1] == -1).all()


def test_faces_of_low_quality_decide_nothing_and_are_decided_about() -> None:
    vectors, person = simulate(12, 8, seed=12)
    good = np.ones(len(person), bool)
    blurred = np.flatnonzero(person == 3)[:5]
    good[blurred] = False
    vectors[blurred] = vectors[np.flatnonzero(person == 5)[:5]]  # they look like somebody else
    rows = clean(faces_of_images(vectors, good=good), claims_of_images(person))
    assert (rows.label_out[good] == person[good]).all()
    assert not (rows.label_out[blurred] == 3).any()
    only = clean(faces_of_images(vectors, good=person != 3), claims_of_images(person))
    unsaid = reasons(only)[person == 3] == "low_quality"
    assert unsaid.any() and (verdicts(only)[person == 3][unsaid] == "quarantine").all()
    assert set(reasons(only)[person == 3]) <= {
        "low_quality",
        "other_name",
    }  # five of them look like somebody else
    assert (only.label_out[person != 3] == person[person != 3]).all()


def test_faces_of_low_quality_are_heard_where_the_others_leave_a_label_without_an_owner() -> None:
    """Two good faces that are not alike, and two poor ones between them."""
    split = calibration().pairs.similarity_at(RULES.split_fmr)
    vectors, person = simulate(12, 8, seed=14)
    middle, one, other = np.linalg.qr(np.random.default_rng(0).standard_normal((vectors.shape[1], 3)))[0].T
    slope = np.sqrt(1 / (split - 0.03) - 1)
    four = unit(np.stack([middle + slope * one, middle + slope * other, middle, middle + 0.1 * one]))
    assert four[0] @ four[1] < split
    faces, label = np.concatenate([vectors, four]), np.append(person, [12] * 4)
    poor = np.arange(len(label)) >= len(label) - 2
    rows = clean(faces_of_images(faces, good=~poor), claims_of_images(label))
    assert (rows.label_out == label).all()
    without = clean(faces_of_images(faces[~poor]), claims_of_images(label[~poor]))
    assert set(reasons(without)[-2:]) == {"no_majority"}


def test_every_face_has_a_row_and_every_score_its_threshold() -> None:
    vectors, person = simulate(20, 8, seed=13, alike=0.4)
    trial = plant("uniform", 0.4, person, vectors, np.random.default_rng(0))
    faces = faces_of_images(vectors[trial.rows])
    half = claims_of_images(trial.label)
    half = replace(half, image_id=half.image_id[::2], label=half.label[::2])
    rows = clean(faces, half)
    assert (rows.face_id == faces.face_id).all()
    assert set(reasons(rows)[1::2]) == {"no_claim"} and set(verdicts(rows)[1::2]) == {"keep"}
    assert (np.isnan(rows.score) == np.isnan(rows.threshold)).all()
    kept = reasons(rows) == "owner"
    assert (rows.score[kept] >= rows.threshold[kept]).all()
    lower = np.isin(reasons(rows), ["unlike_owner", "rival"])
    assert (rows.score[lower] < rows.threshold[lower] + 1e-6).all()
    shown = rows.evidence_id >= 0
    assert shown[kept].all() and (rows.evidence_id[shown] != rows.face_id[shown]).all()
    assert np.isin(image_id_of(rows.evidence_id[shown]), half.image_id).all()


@pytest.mark.parametrize("count", [1, 2, 60])
def test_all_faces_alike(count: int) -> None:
    same = np.repeat(simulate(1, 1, seed=0)[0], count, axis=0)
    rows = clean(faces_of_images(same), claims_of_images(np.zeros(count, np.int64)))
    assert (rows.label_out == 0).all() and set(verdicts(rows)) == {"keep"}
    assert set(reasons(rows)) == ({"owner"} if count > 1 else {"single_photo"})
    three = np.arange(count) % 3
    mixed = clean(faces_of_images(same), claims_of_images(three))
    assert len(set(mixed.label_out.tolist()) - {-1}) <= (1 if count > 3 else 3)


def test_nothing_to_do() -> None:
    vectors, _ = simulate(3, 2, seed=0)
    none = claims_of_images(NONE)
    assert set(reasons(clean(faces_of_images(vectors), none))) == {"no_claim"}
    assert len(clean(faces_of_images(vectors[:0]), none).face_id) == 0
    elsewhere = Claims(
        make_image_id(0, np.array([90])), np.array([0]), 1, NONE, NONE
    )  # an image without a face
    assert set(reasons(clean(faces_of_images(vectors), elsewhere))) == {"no_claim"}
