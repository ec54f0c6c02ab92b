"""Simulated people and their embeddings: random numbers that belong to things, shares as asked for, fitted geometry."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.errors import UsageError
from facescale.synth.fit_geometry import fit_geometry
from facescale.synth.geometry import FaceModel, load_geometry
from facescale.synth.hashing import keys_of, normals, permute, uniforms, unpermute
from facescale.synth.population import KINDS, NOBODY, Mixture, Population, load_mixture

ROOT = Path(__file__).resolve().parents[2]
PLAIN = Mixture()


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**40))
def test_permutations(size: int, seed: int) -> None:
    values = np.arange(size)
    sent = permute(seed, "rows", values, size)
    assert np.array_equal(np.sort(sent), values)
    assert np.array_equal(unpermute(seed, "rows", sent, size), values)
    if size > 100:
        assert abs(np.corrcoef(values, sent)[0, 1]) < 0.5


def test_streams_and_seeds_are_independent_even_if_their_names_begin_alike() -> None:
    values = np.arange(20_000)
    draws = [
        uniforms(seed, stream, values)
        for seed, stream in (
            (0, "a long name of a stream, 1"),
            (0, "a long name of a stream, 2"),
            (1, "a"),
            (0, "a"),
        )
    ]
    correlation = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlation).max() < 0.03
    for draw in draws:
        assert np.histogram(draw, 20, (0, 1))[0].std() < 60  # of 1,000 each; 31 is expected
    assert len(np.unique(keys_of(0, "a", values))) == len(values)


def test_normal_vectors() -> None:
    vectors = normals(3, "x", np.arange(4000), 33).astype(np.float64)
    assert vectors.shape == (4000, 33)
    np.testing.assert_allclose(np.cov(vectors.T), np.eye(33), atol=0.1)
    np.testing.assert_allclose(vectors.mean(axis=0), 0, atol=0.08)
    tails = np.mean(np.abs(vectors) > 3)
    assert 0.0020 < tails < 0.0034  # 0.0027
    np.testing.assert_array_equal(
        normals(3, "x", np.array([7, 3999]), 33), vectors[[7, 3999]].astype(np.float32)
    )


def test_every_label_has_photographs_and_few_have_many() -> None:
    people = Population(1000, 30_000, 0, PLAIN)
    counts = np.diff(people.starts)
    assert counts.sum() == 30_000 and counts.min() >= 1 and (np.diff(counts) <= 1).all()
    rank = np.arange(1000)
    expected = (rank + 10.0) ** -1.0
    expected = 1 + 29_000 * expected / expected.sum()
    np.testing.assert_allclose(counts, expected, atol=1.01)
    found = people.photos_of(np.arange(30_000))
    assert np.array_equal(np.bincount(found.label), counts)
    assert (found.person == found.label).all() and (found.kind == 0).all()
    assert np.array_equal(Population(50, 50, 0, PLAIN).starts, np.arange(51))


def test_kinds_are_as_many_as_asked_for() -> None:
    mixture = load_mixture("noisy", {"copies": "0", "families": "0.5", "second_person_labels": "0"})
    labels, photos = 4000, 80_000
    people = Population(labels, photos, 1, mixture)
    found = people.photos_of(np.arange(photos))
    share = {name: np.mean(found.kind == code) for code, name in enumerate(KINDS)}
    for name in ("shuffled", "outsiders", "outliers", "lookalike"):
        assert share[name.rstrip("s")] == pytest.approx(getattr(mixture, name), abs=0.008), name
    right = (found.kind == KINDS.index("clean")) | (found.kind == KINDS.index("alias"))
    assert (found.person[right] == found.label[right]).all()
    wrong = np.isin(found.kind, [KINDS.index(n) for n in ("shuffled", "outsider", "namesake")])
    assert (found.person[wrong] != found.label[wrong]).all()
    assert (found.person[found.kind == KINDS.index("outlier")] == NOBODY).all()
    outsiders = found.person[found.kind == KINDS.index("outsider")]
    assert len(np.unique(outsiders)) == len(outsiders) and outsiders.min() >= labels
    relatives = found.kind == KINDS.index("lookalike")
    named = relatives & (found.label == people.label_of(found.slot))
    family = [people.family_of(who[named])[0] for who in (found.person, found.label)]
    assert np.array_equal(*family)


def test_blocks_are_of_one_other_person() -> None:
    mixture = Mixture(second_person_labels=0.4, second_person_share=0.3)
    people = Population(300, 30_000, 2, mixture)
    found = people.photos_of(np.arange(30_000))
    block = found.kind == KINDS.index("second_person")
    pairs = np.unique(np.column_stack([found.label, found.person])[block], axis=0)
    assert len(pairs) == len(np.unique(pairs[:, 0])) == pytest.approx(0.4 * 300, abs=25)
    assert 0.3 < np.mean(pairs[:, 1] < 300) < 0.7
    large = np.bincount(found.label, minlength=300) >= 50
    shares = (
        np.bincount(found.label, block, 300)[pairs[:, 0]]
        / np.bincount(found.label, minlength=300)[pairs[:, 0]]
    )
    np.testing.assert_allclose(shares[large[pairs[:, 0]]].mean(), 0.3, atol=0.02)


def test_copies_of_early_photographs_and_of_wrong_ones() -> None:
    people = Population(200, 20_000, 3, Mixture(copies=0.3, virality=3.0, shuffled=0.2))
    found = people.photos_of(np.arange(20_000))
    copied = found.slot != found.original
    assert np.mean(copied) == pytest.approx(0.3, abs=0.02)
    by_slot = np.argsort(found.slot)
    original = found.original[by_slot]
    assert np.array_equal(original[original], original)  # an original is no copy
    assert np.array_equal(found.person[by_slot][original], found.person[by_slot])
    assert np.array_equal(people.label_of(found.original), people.label_of(found.slot))
    place = found.original - people.starts[people.label_of(found.slot)]
    size = np.diff(people.starts)[people.label_of(found.slot)]
    many = copied & (size > 100)
    assert np.mean((place / size)[many] < 0.1) > 0.25


def model(mixture: Mixture, labels: int = 400, dim: int = 128, seed: int = 0) -> FaceModel:
    return FaceModel(load_geometry(), Population(labels, labels * 10, seed, mixture), dim)


def faces_of(simulated: FaceModel, who: np.ndarray) -> np.ndarray:
    keys = np.arange(len(who))
    return simulated.vectors(keys, who, np.ones(len(who)), np.full(len(who), -1))


def test_relatives_are_alike_and_twins_more() -> None:
    simulated = model(Mixture(families=1.0, twins=0.5, family_likeness=0.4))
    people = np.arange(400)
    family, has, twin = simulated.population.family_of(people)
    unit = faces_of(simulated, people)
    unit -= simulated.mean
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    similarity = unit @ unit.T
    same = family[:, None] == family
    np.fill_diagonal(same, False)
    twins = same & twin[:, None] & twin
    means = [similarity[mask].mean() for mask in (~(same | np.eye(400, dtype=bool)), same & ~twins, twins)]
    assert has.all() and abs(means[0]) < 0.02
    assert 0.2 < means[1] < 0.4 < means[2]


def test_bad_faces_are_alike_whoever_they_show() -> None:
    simulated = model(Mixture(low_quality=0.5))
    who = np.repeat(np.arange(100), 2)
    keys, none = np.arange(200), np.full(200, -1)
    good, bad = (simulated.vectors(keys, who, np.full(200, level), none) for level in (0.9, 0.05))
    across = ~(who[:, None] == who)
    assert (bad @ bad.T)[across].mean() > (good @ good.T)[across].mean() + 0.05
    latent = simulated.latent_quality(np.arange(5000))
    assert np.mean(latent < 0.6) == pytest.approx(0.5, abs=0.05)


def test_people_of_two_ages_spread_wider() -> None:
    who = np.repeat(np.arange(50), 10)
    within = []
    for share in (0.0, 1.0):
        unit = faces_of(model(Mixture(ages=share, age_shift=0.6)), who).reshape(50, 10, -1)
        within.append(np.einsum("pnd,pmd->pnm", unit, unit).mean())
    assert within[1] < within[0] - 0.005


def test_a_copy_is_nearly_its_original() -> None:
    simulated = model(Mixture(copies=0.5))
    keys, who = np.zeros(50, np.int64), np.zeros(50, np.int64)
    copies = np.arange(50) - 1  # the first is the original
    unit = simulated.vectors(keys, who, np.ones(50), copies)
    similarity = unit[1:] @ unit[0]
    assert similarity.min() > 0.99 and similarity.max() < 0.9999


def test_faces_do_not_depend_on_which_are_made_together() -> None:
    simulated = model(load_mixture("bridges"))
    rng = np.random.default_rng(0)
    who, keys, latent = rng.integers(-1, 400, 300), rng.integers(0, 4000, 300), rng.random(300)
    copies = np.where(rng.random(300) < 0.3, keys + 1, -1)
    together = simulated.vectors(keys, who, latent, copies)
    order = rng.permutation(300)[:37]
    alone = simulated.vectors(keys[order], who[order], latent[order], copies[order])
    np.testing.assert_allclose(alone, together[order], atol=1e-6)


def documented() -> tuple[list[str], np.ndarray]:
    """The table of docs/SIMULATOR.md: which quantiles, and [2 kinds x levels, columns]."""
    text = (ROOT / "docs" / "SIMULATOR.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (impostors|genuines) \| ([\d.]+) \| (.*) \|$", text, re.MULTILINE)
    return [kind for kind, _, _ in rows], np.array(
        [[float(level), *map(float, cells.split(" | "))] for _, level, cells in rows]
    )


def test_similarities_are_those_of_the_photographs() -> None:
    """Against the quantiles of the photographs of fold 1, which were not fitted, as the page tells them."""
    kinds, table = documented()
    sizes = np.maximum(1, np.round(12 * (np.arange(530) + 20.0) ** -1 * 20)).astype(int)
    who = np.repeat(np.arange(530), sizes)
    simulated = model(PLAIN, 530, seed=11)
    latent = simulated.latent_quality(np.arange(len(who)))
    unit = simulated.vectors(np.arange(len(who)), who, latent, np.full(len(who), -1))
    similarity = (unit @ unit.T)[np.triu_indices(len(who), 1)]
    same = (who[:, None] == who)[np.triu_indices(len(who), 1)]
    for kind, (level, _, _, photographs, _) in zip(kinds, table, strict=True):
        if kind == "impostors" and level < 0.05:
            continue  # said on the page: lower than real ones
        found = np.quantile(similarity[same if kind == "genuines" else ~same], level)
        assert found == pytest.approx(photographs, abs=0.045 if level == 0.001 else 0.02), (kind, level)


def test_fitting_finds_what_was_put_in() -> None:
    truth = load_geometry()
    who = np.repeat(np.arange(1000), 9)
    simulated = model(PLAIN, 1000)
    latent = simulated.latent_quality(np.arange(len(who)))
    unit = simulated.vectors(np.arange(len(who)), who, latent, np.full(len(who), -1)).astype(np.float64)
    found = fit_geometry(unit, who, latent, quality_noise=0.03, copy_noise=0.06)
    assert found.mean == pytest.approx(truth.mean, rel=0.02)
    assert found.between.variance == pytest.approx(truth.between.variance, rel=0.06)
    assert found.within.variance == pytest.approx(truth.within.variance, rel=0.06)
    assert found.person_spread == pytest.approx(truth.person_spread, abs=0.03)
    assert found.face_spread == pytest.approx(truth.face_spread, abs=0.03)
    np.testing.assert_allclose(found.quality, truth.quality, atol=0.02)
    for ours, theirs in ((found.between, truth.between), (found.within, truth.within)):
        assert np.abs(ours.scales(128) - theirs.scales(128)).max() < 0.01


@pytest.mark.parametrize(
    ("preset", "change", "says"),
    [
        ("dirty", {}, "no preset 'dirty'; known: bridges, clean, noisy"),
        ("noisy", {"twin": "0.5"}, "no such share; known: zipf_exponent"),
        ("noisy", {"twins": "many"}, "twins=many: expected a number"),
        ("noisy", {"twins": "1.5"}, "twins is 1.5"),
        ("noisy", {"shuffled": "0.9"}, "add up to"),
    ],
)
def test_wrong_shares_are_refused(preset: str, change: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_mixture(preset, change)
