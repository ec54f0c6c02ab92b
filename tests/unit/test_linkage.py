"""Average linkage against scipy's, and against merging the best pair again and again where some must stay apart."""

from __future__ import annotations

import numpy as np
import pytest
from cleaning_samples import simulate, unit
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage

from facescale.curate.linkage import average_linkage, mix


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    pairs = len(np.unique(np.stack([first, second]), axis=1).T)
    return pairs == len(np.unique(first)) == len(np.unique(second))


def greedy(vectors: np.ndarray, cut: float, apart: np.ndarray) -> np.ndarray:
    """Merge the two most similar clusters that may be merged, until none is as similar as the cut."""
    members = [[i] for i in range(len(vectors))]
    kinds = [int(kind) for kind in apart]
    similarity = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    while True:
        best, at = cut, None
        for i in range(len(members)):
            for j in range(i):
                if kinds[i] >= 0 and kinds[j] >= 0 and kinds[i] != kinds[j]:
                    continue
                value = similarity[np.ix_(members[i], members[j])].mean()
                if value >= best:
                    best, at = value, (i, j)
        if at is None:
            break
        i, j = at
        members[j] += members.pop(i)
        kinds[j] = max(kinds[j], kinds.pop(i))
    cluster = np.empty(len(vectors), np.int64)
    for number, rows in enumerate(members):
        cluster[rows] = number
    return cluster


@pytest.mark.parametrize("cut", [0.1, 0.4, 0.6, 0.9])
def test_equals_scipy_in_every_group(cut: float) -> None:
    vectors, person = simulate(12, 9, seed=3, spread=1.0)
    group = person % 4
    found = average_linkage(vectors, group, cut, key=mix(np.arange(len(vectors))))
    assert len(set(zip(found, group, strict=True))) == found.max() + 1  # clusters never span groups
    for number in range(4):
        rows = np.flatnonzero(group == number)
        distance = 1 - np.clip(vectors[rows].astype(np.float64) @ vectors[rows].T.astype(np.float64), -1, 1)
        tree = linkage(distance[np.triu_indices(len(rows), 1)], "average")
        assert same_partition(found[rows], fcluster(tree, 1 - cut, "distance"))


def test_sums_stand_for_their_members() -> None:
    vectors, person = simulate(6, 8, seed=1)
    key = mix(np.arange(len(vectors)))
    pieces = average_linkage(vectors, person, 0.75, key=key)
    num = pieces.max() + 1
    sums = np.zeros((num, vectors.shape[1]), np.float32)
    np.add.at(sums, pieces, vectors)
    whole = average_linkage(
        sums, np.zeros(num, np.int64), 0.3, key=mix(np.arange(num)), sizes=np.bincount(pieces)
    )
    assert num > 6 and same_partition(whole[pieces], person)


@given(st.integers(0, 10_000), st.floats(0.2, 0.7))
def test_equals_greedy_merging_where_some_stay_apart(seed: int, cut: float) -> None:
    vectors, _ = simulate(4, 6, seed=seed, spread=1.1)
    apart = np.random.default_rng(seed).integers(-2, 3, len(vectors)).clip(-1)
    zeros = np.zeros(len(vectors), np.int64)
    found = average_linkage(vectors, zeros, cut, key=mix(np.arange(len(vectors))), apart=apart)
    for number in range(found.max() + 1):
        kinds = set(apart[found == number].tolist()) - {-1}
        assert len(kinds) <= 1
    assert same_partition(found, greedy(vectors, cut, apart))


@given(st.integers(0, 10_000))
def test_order_changes_nothing(seed: int) -> None:
    """Also among equal vectors, which no similarity tells apart."""
    rng = np.random.default_rng(seed)
    vectors = np.repeat(unit(rng.standard_normal((9, 8))), 3, axis=0).astype(np.float32)
    group, key = rng.integers(0, 3, len(vectors)), mix(np.arange(len(vectors)))
    order = rng.permutation(len(vectors))
    found = average_linkage(vectors, group, 0.2, key=key)
    again = average_linkage(vectors[order], group[order], 0.2, key=key[order])
    np.testing.assert_array_equal(again, found[order])
