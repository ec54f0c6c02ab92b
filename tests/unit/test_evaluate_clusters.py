"""Scores of clusters against definitions written out pair by pair, and that streaming and order change nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.errors import UsageError
from facescale.evaluate import contingency
from facescale.evaluate.clusters import UNASSIGNED, score_bins, score_clusters, score_pairs
from facescale.evaluate.contingency import Contingency

pairs_of_items = st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 5)), min_size=1, max_size=25)


def own_clusters(found: list[int]) -> list[int]:
    """Unassigned items each in a cluster of their own."""
    return [cluster if cluster != UNASSIGNED else 1000 + item for item, cluster in enumerate(found)]


def by_definition(true: list[int], found: list[int]) -> dict[str, float]:
    """Every measure from its definition: loops over items, over pairs of items, over cells."""
    found, items = own_clusters(found), range(len(true))
    mates = [{j for j in items if true[j] == true[i]} for i in items]
    group = [{j for j in items if found[j] == found[i]} for i in items]
    precision = sum(len(mates[i] & group[i]) / len(group[i]) for i in items) / len(true)
    recall = sum(len(mates[i] & group[i]) / len(mates[i]) for i in items) / len(true)
    both = only_found = only_true = neither = 0
    for i, j in itertools.combinations(items, 2):
        same, together = true[i] == true[j], found[i] == found[j]
        both, only_found = both + (same and together), only_found + (together and not same)
        only_true, neither = only_true + (same and not together), neither + (not same and not together)

    def entropy(values: list[int]) -> float:
        return -sum(n / len(true) * math.log(n / len(true)) for n in Counter(values).values())

    cells, rows, columns = Counter(zip(true, found, strict=True)), Counter(true), Counter(found)
    mutual = sum(
        n / len(true) * math.log(n * len(true) / (rows[t] * columns[f])) for (t, f), n in cells.items()
    )
    most = (entropy(true) + entropy(found)) / 2
    # The form of ARI in terms of pair counts (Steinley 2004), independent of the one in the code.
    off = (both + only_true) * (only_true + neither) + (both + only_found) * (only_found + neither)
    return {
        "bcubed_precision": precision,
        "bcubed_recall": recall,
        "pairwise_precision": both / (both + only_found) if both + only_found else 1.0,
        "pairwise_recall": both / (both + only_true) if both + only_true else 1.0,
        "nmi": mutual / most if most else 1.0,
        "ari": 2 * (both * neither - only_true * only_found) / off if off else 1.0,
        "clusters": len(columns),
        "identities": len(rows),
        "items": len(true),
        "cluster_count_ratio": len(columns) / len(rows),
    }


@settings(max_examples=300, deadline=None)
@given(pairs_of_items)
def test_scores_are_those_of_the_definitions(items: list[tuple[int, int]]) -> None:
    true, found = map(list, zip(*items, strict=True))
    scores = dataclasses.asdict(score_clusters(np.array(true), np.array(found)))
    for name, expected in by_definition(true, found).items():
        assert scores[name] == pytest.approx(expected, abs=1e-9), name
    separate = own_clusters(found)
    alone_true = [true.count(t) == 1 for t in true]
    alone_found = [separate.count(f) == 1 for f in separate]
    agreed = sum(a and b for a, b in zip(alone_true, alone_found, strict=True))
    for name, whole in (("singleton_precision", sum(alone_found)), ("singleton_recall", sum(alone_true))):
        assert scores[name] == (agreed / whole if whole else None)


@settings(max_examples=100, deadline=None)
@given(pairs_of_items, st.integers(2, 4))
def test_rare_identities_are_left_out_with_what_they_add_to_clusters(
    items: list[tuple[int, int]], least: int
) -> None:
    true, found = map(list, zip(*items, strict=True))
    kept = [i for i, t in enumerate(true) if true.count(t) >= least]
    if not kept:
        with pytest.raises(UsageError, match="nothing to score"):
            score_clusters(np.array(true), np.array(found), min_photos=least)
        return
    whole = score_clusters(np.array(true), np.array(found), min_photos=least)
    assert whole == score_clusters(np.array([true[i] for i in kept]), np.array([found[i] for i in kept]))


def sample(count: int = 30_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    true = (rng.random(count) ** 3 * 3000).astype(np.int64)
    found = np.where(rng.random(count) < 0.8, true * 7, rng.integers(0, 9000, count))
    return true, np.where(rng.random(count) < 0.1, UNASSIGNED, found), rng.integers(0, 3, count)


def test_a_stream_in_any_order_gives_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contingency, "_MERGE_ROWS", 500)
    true, found, bins = sample()
    whole = Contingency(3)
    whole.add(true, found, bins)
    order = np.random.default_rng(1).permutation(len(true))
    stream = Contingency(3)
    for rows in np.array_split(order, 97):
        stream.add(true[rows], found[rows], bins[rows])
    one, other = whole.pairs(), stream.pairs()
    for name in ("identity", "cluster", "counts"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    cells = Counter(zip(true.tolist(), found.tolist(), bins.tolist(), strict=True))
    listed = np.argwhere(one.counts)
    assert {
        (int(one.identity[p]), int(one.cluster[p]), int(b)): int(one.counts[p, b]) for p, b in listed
    } == cells


def test_bins_are_parts_of_the_whole() -> None:
    true, found, bins = sample()
    counted = Contingency(4)
    counted.add(true, found, bins)
    whole, parts = score_pairs(counted.pairs()), score_bins(counted.pairs())
    assert parts[3] is None
    sizes = [np.bincount(true)[true], np.unique(found, return_inverse=True, return_counts=True)]
    group = sizes[1][2][sizes[1][1]]
    cells = Counter(zip(true.tolist(), found.tolist(), strict=True))
    both = np.array([cells[cell] for cell in zip(true.tolist(), found.tolist(), strict=True)])
    single = found == UNASSIGNED
    precision, recall = np.where(single, 1, both / group), np.where(single, 1, both) / sizes[0]
    for number, part in enumerate(parts[:3]):
        assert part is not None
        mine = bins == number
        assert part.bcubed_precision == pytest.approx(precision[mine].mean())
        assert part.bcubed_recall == pytest.approx(recall[mine].mean())
        assert (part.items, part.unassigned) == (mine.sum(), pytest.approx(single[mine].mean()))
    assert whole.bcubed_recall == pytest.approx(recall.mean())


def test_chance_is_nothing_and_agreement_is_one() -> None:
    rng = np.random.default_rng(2)
    true = rng.integers(0, 50, 20_000)
    assert abs(score_clusters(true, rng.integers(0, 50, 20_000)).ari) < 0.002
    same = score_clusters(true, true + 9)
    assert same.ari == pytest.approx(1) and same.nmi == pytest.approx(1)
    merged = score_clusters(true, np.zeros(20_000, np.int64))
    assert merged.ari == 0 and merged.nmi == 0 and merged.cluster_count_ratio == 1 / 50
    split = score_clusters(true, np.full(20_000, UNASSIGNED))
    assert split.ari == pytest.approx(0) and split.bcubed_precision == 1 and split.clusters == 20_000


def test_names_and_lengths() -> None:
    assert score_clusters(["a", "b", "a"], np.array([1, 2, 1])).ari == 1
    with pytest.raises(UsageError, match="3 identities and 2 clusters"):
        score_clusters(["a", "b", "a"], np.array([1, 2]))
