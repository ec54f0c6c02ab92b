"""Clusters of faces: thresholds, propagation, merges, the quality gate, the size cap and confidence."""

from __future__ import annotations

import numpy as np
import pytest
from clustered_people import DIM, RULES, calibration, cluster, lists_of, partition, simulate, unit_of
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from facescale.curate.cluster import LEAST_COUNT, resolve, threshold_at
from facescale.curate.cluster_copies import inherit
from facescale.curate.cluster_fit import UNASSIGNED, confidence_of
from facescale.curate.graph import Pairs, adjacency, pairs_of
from facescale.curate.merge import Bound, merge
from facescale.curate.propagate import propagate, separate
from facescale.evaluate.clusters import score_clusters

NO_IMAGES = np.empty(0, np.int64)


@pytest.mark.parametrize("count", [LEAST_COUNT, 50_000, 10_000_000])
@pytest.mark.parametrize("ratio", [0.3, 10.0, 30.0])
def test_a_threshold_balances_false_links_with_lost_ones(count: int, ratio: float) -> None:
    known = calibration()
    found = threshold_at(known, count, ratio)
    lost = max(np.interp(found, known.genuine.pairs.values, known.genuine.pairs.levels), 1e-3)
    assert count * known.pairs.fmr_of(found) == pytest.approx(ratio * lost, rel=1e-3)


def test_thresholds_rise_with_the_lake_and_fall_with_the_ratio() -> None:
    counts = [threshold_at(calibration(), count, 1.0) for count in (1_000, 10_000, 100_000, 10**6)]
    assert counts == sorted(set(counts))
    assert threshold_at(calibration(), 1, 1.0) == threshold_at(calibration(), LEAST_COUNT, 1.0)
    ratios = [threshold_at(calibration(), 10_000, ratio) for ratio in (0.1, 1.0, 10.0)]
    assert ratios == sorted(set(ratios), reverse=True)


def test_labels_spread_inside_groups_and_not_over_a_weak_link() -> None:
    """Two groups of six, all of whose members are linked, with one link between the groups; and one face alone."""
    weights = np.zeros((13, 13), np.float32)
    weights[:6, :6] = weights[6:12, 6:12] = 0.1
    weights[0, 6] = weights[6, 0] = 0.15
    np.fill_diagonal(weights, 0)
    labels = propagate(csr_array(weights))
    assert partition(labels) == {frozenset(range(6)), frozenset(range(6, 12)), frozenset([12])}
    assert connected_components(csr_array(weights))[0] == 2  # which is what a threshold alone makes of it
    assert partition(propagate(csr_array(weights), turns=0)) == {frozenset([i]) for i in range(13)}


def test_the_best_supported_face_of_an_image_stays() -> None:
    labels = np.array([0, 0, 0, 1], np.int32)
    image = np.array([7, 7, 8, 7])
    kept, put_out = separate(labels, image, np.array([0.1, 0.5, 0.3, 0.2], np.float32))
    assert put_out == 1
    assert partition(kept) == {frozenset([0]), frozenset([1, 2]), frozenset([3])}


def test_pairs_are_undirected_and_leave_out_faces_below_the_gate_and_of_one_image() -> None:
    unit = unit_of(np.array([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3]]))
    links, _ = lists_of(unit, 2, 0.0)
    usable, image = np.array([True, True, True, False]), np.array([1, 2, 2, 3])
    pairs = pairs_of(links, usable, image)
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(0, 1), (0, 2)]
    np.testing.assert_allclose(pairs.similarity, unit[0] @ unit[1:3].T, rtol=1e-6)
    matrix = adjacency(4, pairs, float(pairs.similarity[1])).toarray()
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(pairs.similarity[0] - pairs.similarity[1])
    assert matrix[0, 2] == 0  # at the threshold is not above it


def greedy(
    unit: np.ndarray, image: np.ndarray, allowed: set[tuple[int, int]], bound: Bound, max_size: int
) -> set[frozenset[int]]:
    """Merge the best pair of clusters again and again, comparing every pair of faces: slow and plain."""
    similarity = unit.astype(np.float64) @ unit.T.astype(np.float64)
    clusters = [[row] for row in range(len(unit))]
    while True:
        best, which = 0.0, None
        for i, a in enumerate(clusters):
            for j, b in enumerate(clusters[:i]):
                linked = any((min(x, y), max(x, y)) in allowed for x in a for y in b)
                apart = not set(image[a]) & set(image[b])
                if not (linked and apart and len(a) + len(b) <= max_size):
                    continue
                smaller = np.array([float(min(len(a), len(b)))])
                excess = similarity[np.ix_(a, b)].mean() - bound.of(smaller)[0]
                if excess >= best:
                    best, which = excess, (i, j)
        if which is None:
            return {frozenset(members) for members in clusters}
        i, j = which
        clusters[j] += clusters.pop(i)


@pytest.mark.parametrize("seed", range(40))
def test_merging_reciprocal_pairs_is_merging_the_best_pair_again_and_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    unit, _ = simulate(rng.integers(1, 7, 6), seed, spread=1.2)
    image = rng.integers(0, len(unit) - 3, len(unit))
    first, second = np.triu_indices(len(unit), 1)
    similarity = (unit[first] * unit[second]).sum(axis=1)
    bound = Bound(0.3, 0.42)
    kept = (image[first] != image[second]) & (similarity > bound.small)
    pairs = Pairs(first[kept].astype(np.int32), second[kept].astype(np.int32), similarity[kept])
    max_size = int(rng.choice([3, 5, 100]))
    labels, prevented = merge(
        np.arange(len(unit), dtype=np.int32), unit, pairs, image, bound, max_size=max_size
    )
    expected = greedy(
        unit, image, set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)), bound, max_size
    )
    assert partition(labels) == expected
    assert max_size < 100 or prevented == 0


def test_people_are_found_and_better_than_by_components() -> None:
    """2,000 faces of people with 1 to 30; components at whichever threshold is best for them."""
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.zipf(1.7, 450), 30)
    unit, who = simulate(sizes, seed=1)
    found = score_clusters(who, cluster(unit).label)
    assert found.bcubed_f > 0.93 and found.pairwise_f > 0.93
    assert found.bcubed_precision > 0.93
    links, _ = lists_of(unit, 50, 0.0)
    pairs = pairs_of(links, np.ones(len(unit), bool), np.arange(len(unit)))
    rivals = [
        score_clusters(
            who,
            connected_components(adjacency(len(unit), pairs, cut), directed=False)[1].astype(np.int64),
        )
        for cut in np.linspace(0.2, 0.8, 25)
    ]
    assert found.bcubed_f > max(rival.bcubed_f for rival in rivals) + 0.02
    assert found.pairwise_f > max(rival.pairwise_f for rival in rivals) + 0.02


def test_a_person_with_many_more_faces_than_a_list_holds_is_one_cluster() -> None:
    unit, who = simulate([400, *[5] * 60], seed=2)
    found = cluster(unit, k=20)
    assert score_clusters(who, found.label).pairwise_f > 0.97
    assert found.counts["largest_cluster"] > 380


def blurred(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """20 people with 8 faces, and blurred faces of them that resemble each other most: (unit, who, blurred)."""
    unit, who = simulate([8] * 20, seed)
    rng = np.random.default_rng(seed + 1)
    common = unit_of(rng.standard_normal((1, DIM)))
    of = rng.integers(0, 20, count)
    centers = unit_of(np.stack([unit[who == person].mean(axis=0) for person in range(20)]))
    noise = 0.5 * rng.standard_normal((count, DIM)) / np.sqrt(DIM)
    strength = np.linspace(0.2, 3, count)[:, None]
    dull = unit_of(centers[of] + strength * common + noise)
    return np.concatenate([unit, dull]), np.concatenate([who, of]), np.arange(len(who) + count) >= len(who)


def test_blurred_faces_join_nobody_together_and_are_attached_afterwards() -> None:
    unit, who, dull = blurred(60, seed=3)
    hubs = cluster(unit)
    assert len(set(who[hubs.label == hubs.label[-1]])) > 5  # as usable faces they make a crowd of one
    gated = cluster(unit, usable=~dull)
    assert partition(gated.label[~dull]) == partition(cluster(unit[~dull]).label)
    attached = dull & (gated.label != UNASSIGNED)
    assert gated.counts["attached"] == attached.sum() > 5
    owner = np.array(
        [np.bincount(who[~dull & (gated.label == label)]).argmax() for label in gated.label[attached]]
    )
    assert (owner == who[attached]).mean() > 0.9
    assert (gated.label[-15:] == UNASSIGNED).mean() > 0.9  # blurred beyond recognition
    assert np.isnan(gated.confidence[gated.label == UNASSIGNED]).all()
    assert not np.isnan(gated.confidence[gated.label != UNASSIGNED]).any()


def test_two_blurred_faces_of_an_image_do_not_join_one_cluster() -> None:
    unit, _ = simulate([8], seed=4)
    center = unit_of(unit.mean(axis=0, keepdims=True))
    unit = np.concatenate([unit, center, unit_of(center + 0.1), unit[:1]])
    image = np.array([*range(8), 8, 8, 0])  # the last is on the image of the first
    usable = np.arange(11) < 8
    found = cluster(unit, image=image, usable=usable)
    assert len(set(found.label[:8])) == 1
    assert found.label[8] == found.label[0] and found.label[9] == found.label[10] == UNASSIGNED


def test_the_size_cap_holds_and_says_so() -> None:
    unit, who = simulate([60, 8, 8], seed=5)
    whole = cluster(unit)
    assert whole.counts["largest_cluster"] > 50 and whole.counts["merges_prevented"] == 0
    capped = cluster(unit, max_size=20)
    sizes = np.bincount(capped.label)
    assert sizes.max() == capped.counts["largest_cluster"] <= 20
    assert capped.counts["merges_prevented"] > 0 and capped.counts["oversized"] == 0
    assert score_clusters(who, capped.label).bcubed_precision > 0.99


@pytest.mark.parametrize("max_size", [100_000, 10])
def test_identical_faces_are_one_cluster_also_above_the_cap(max_size: int) -> None:
    unit = np.repeat(simulate([1], seed=6)[0], 64, axis=0)
    found = cluster(unit, max_size=max_size, k=20)
    assert found.counts["oversized"] == (max_size < 64)
    assert (found.label == 0).all()
    assert (found.confidence > 0.99).all()


def test_a_mirror_image_on_one_photograph_is_kept_apart() -> None:
    unit = np.repeat(simulate([1], seed=7)[0], 6, axis=0)
    found = cluster(unit, image=np.array([1, 1, 2, 2, 3, 3]))
    assert sorted(len(rows) for rows in partition(found.label)) == [3, 3]


@pytest.mark.parametrize("usable", [True, False])
def test_no_face_and_one_face(usable: bool) -> None:
    none = cluster(np.empty((0, DIM), np.float32))
    assert len(none.label) == len(none.confidence) == 0
    one = cluster(simulate([1], seed=8)[0], usable=np.array([usable]))
    assert one.label.tolist() == [0 if usable else UNASSIGNED]
    assert np.isnan(one.confidence[0]) != usable
    if usable:
        assert one.confidence[0] > 0.9


def test_confidence_is_that_of_the_formula() -> None:
    """f / (f + F(own)) with f the rate at the best rival, or at the bound where being alone is a better rival."""
    curve, bound = calibration().pairs, resolve(RULES, calibration(), 2_000).bound.small
    own = np.array([0.6, 0.6, 0.6, np.nan, np.nan, bound])
    rival = np.array([bound + 0.05, 0.0, -np.inf, -0.2, bound, -np.inf])
    found = confidence_of(own, rival, bound, curve)
    near, limit, mine = curve.fmr_of(bound + 0.05), curve.fmr_of(bound), curve.fmr_of(0.6)
    expected = [near / (near + mine), limit / (limit + mine), limit / (limit + mine)]
    expected += [curve.fmr_of(-0.2) / (curve.fmr_of(-0.2) + limit), 0.5, 0.5]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_doubtful_faces_have_low_confidence() -> None:
    unit, who = simulate([10, 10], seed=9)
    first, second = (unit[who == person].mean(axis=0) for person in (0, 1))
    both = first @ second
    between = unit_of(((second @ second - both) * first + (first @ first - both) * second)[None])
    np.testing.assert_allclose(between[0] @ first, between[0] @ second, rtol=1e-4)
    found = cluster(np.concatenate([unit, between]))
    assert found.label[-1] in found.label[:-1]
    assert found.confidence[-1] == pytest.approx(0.5, abs=0.02)
    assert np.median(found.confidence) > 0.95


def test_copies_inherit_the_cluster_of_the_face_they_copy() -> None:
    """Image 1 copies image 0; one of its faces is no copy, and two resemble the same face."""
    unit, _ = simulate([1, 1, 1], seed=11)
    near = unit_of(unit[0] + np.array([[0.02], [0.05]]) * unit[1])
    unit = np.concatenate([unit[:2], near[::-1], unit[2:], unit[1:2]])
    face_id = np.array([0x001, 0x002, 0x101, 0x102, 0x103, 0x201])
    label = np.array([5, 6, -1, -1, -1, 7])
    confidence = np.array([0.9, 0.8, np.nan, np.nan, np.nan, 0.7], np.float32)
    copies, keepers = np.array([0x100]), np.array([0x000])
    lost = inherit(label, confidence, unit, face_id, copies, keepers, 0.98)
    assert lost == 2
    assert label.tolist() == [5, 6, -1, 5, -1, 7]
    assert confidence[3] == np.float32(0.9) and np.isnan(confidence[[2, 4]]).all()
    assert inherit(label, confidence, unit, face_id, NO_IMAGES, NO_IMAGES, 0.98) == 0
    assert inherit(label, confidence, unit, face_id, copies, np.array([0x300]), 0.98) == 3
