"""Names and people one to one, against the dense assignment of scipy."""

from __future__ import annotations

import numpy as np
from cleaning_samples import NONE
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from facescale.curate.linkage import mix
from facescale.curate.match import count_edges, match_names


@given(st.integers(0, 100_000), st.integers(1, 7), st.integers(1, 9))
def test_most_photographs_are_under_their_own_name(seed: int, num_labels: int, num_people: int) -> None:
    rng = np.random.default_rng(seed)
    person, label = rng.integers(-1, num_people, 40), rng.integers(0, num_labels, 40)
    edges = count_edges(person, label, mix(np.arange(40)))
    assert edges.photos.sum() == (person >= 0).sum()
    owner = match_names(edges, num_people, num_labels, min_photos=2, min_share=0.1)
    owned = owner[owner >= 0]
    assert len(set(owned.tolist())) == len(owned)
    table = np.zeros((num_labels, num_people))
    np.add.at(table, (label[person >= 0], person[person >= 0]), 1)
    table[(table < 2) | (table < 0.1 * table.max(axis=1, keepdims=True))] = 0
    best = table[linear_sum_assignment(-table)].sum()
    assert table[np.flatnonzero(owner >= 0), owned].sum() == best
    assert (table[np.flatnonzero(owner >= 0), owned] > 0).all()


def test_a_person_under_two_names_gets_the_one_with_more() -> None:
    person = np.array([0] * 5 + [1] * 3 + [1] * 2)
    label = np.array([0] * 5 + [0] * 3 + [1] * 2)
    edges = count_edges(person, label, mix(np.arange(10)))
    assert match_names(edges, 2, 2, min_photos=2, min_share=0.1).tolist() == [0, 1]
    without_one = count_edges(np.where(person == 0, -1, person), label, mix(np.arange(10)))
    assert match_names(without_one, 2, 2, min_photos=2, min_share=0.1).tolist() == [1, -1]
    assert (
        match_names(count_edges(NONE, NONE, mix(NONE)), 0, 3, min_photos=2, min_share=0.1).tolist()
        == [-1] * 3
    )
