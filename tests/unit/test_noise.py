"""Planted label noise: of every kind as much as was asked for, and of the right shape."""

from __future__ import annotations

import numpy as np
import pytest
from cleaning_samples import simulate

from facescale.errors import UsageError
from facescale.synth.noise import KINDS, Planted, plant


def planted(kind: str, rate: float, seed: int = 0) -> tuple[Planted, np.ndarray, np.ndarray]:
    unit, person = simulate(80, 10, seed=5, alike=0.3)
    person = person.copy()
    few = person >= 60  # 20 of them get three names each, so that they have fewer than four photographs
    person[few] = 1000 + np.arange(few.sum()) // 3
    return plant(kind, rate, person, unit, np.random.default_rng(seed)), unit, person


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.15, 0.3, 0.5])
def test_rate_and_truth(kind: str, rate: float) -> None:
    found, _, person = planted(kind, rate)
    np.testing.assert_array_equal(found.truth, person[found.rows])
    assert len(np.unique(found.rows)) == len(found.rows)
    assert (np.diff(found.rows) < 0).mean() == pytest.approx(0.5, abs=0.1)  # shuffled
    names, counts = np.unique(person, return_counts=True)
    assert np.isin(found.label, names[counts >= 4]).all()
    wrong = found.wrong
    if kind == "clean":
        assert not wrong.any()
        return
    if kind == "unnamed":
        wrong = wrong[np.isin(found.label, found.label[wrong])]  # of the labels that were hit
    assert wrong.mean() == pytest.approx(rate, abs=0.03)
    again, _, _ = planted(kind, rate)
    other, _, _ = planted(kind, rate, seed=1)
    np.testing.assert_array_equal(again.rows, found.rows)
    np.testing.assert_array_equal(again.label, found.label)
    assert not np.array_equal(other.rows[:50], found.rows[:50])


def test_uniform_scatters() -> None:
    """No two labels trade in blocks: hardly ever three photographs of a person under one wrong label."""
    found, _, _ = planted("uniform", 0.5)
    pairs, counts = np.unique(
        np.stack([found.truth, found.label])[:, found.wrong], axis=1, return_counts=True
    )
    assert (counts >= 3).sum() <= 5 and len(pairs.T) > 200


def test_lookalike_is_the_nearest_other_person() -> None:
    found, unit, person = planted("lookalike", 0.3)
    names = np.unique(found.truth)
    centers = np.stack([unit[person == name].mean(axis=0) for name in names])
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    similarity = unit[found.rows[found.wrong]] @ centers.T
    similarity[found.truth[found.wrong][:, None] == names] = -1
    np.testing.assert_array_equal(names[similarity.argmax(axis=1)], found.label[found.wrong])


def test_blocks_are_of_one_person() -> None:
    for kind in ("named", "unnamed"):
        found, _, _ = planted(kind, 0.3)
        pairs = np.unique(np.stack([found.label, found.truth])[:, found.wrong], axis=1)
        assert len(np.unique(pairs[0])) == len(pairs.T) > 15  # one stranger a label
        if kind == "named":
            assert np.isin(found.truth, found.label).all()
        else:
            assert not np.isin(pairs[1], found.label).any()


def test_outsiders_have_no_label_and_come_once() -> None:
    found, _, person = planted("outside", 0.3)
    assert not np.isin(found.truth[found.wrong], found.label).any()
    assert (person[found.rows[found.wrong]] >= 1000).all()


def test_what_cannot_be_planted() -> None:
    unit, person = simulate(2, 6, seed=0)
    with pytest.raises(
        UsageError, match="no kind of label noise is called 'twins'; there are clean, uniform"
    ):
        plant("twins", 0.1, person, unit, np.random.default_rng(0))
    with pytest.raises(UsageError, match="three identities of 4 photographs or more; there are 2"):
        plant("uniform", 0.1, person, unit, np.random.default_rng(0))
    both = plant(
        "uniform", 0.5, np.array([0] * 4 + [1] * 4 + [2] * 4), np.zeros((12, 2)), np.random.default_rng(0)
    )
    assert both.wrong.sum() == 6
