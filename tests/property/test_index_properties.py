"""What must hold for any input: cuts cover all, merges equal the whole, samples do not depend on order."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.index.exact import exact_top_k, merge_top_k, recall_at_k
from facescale.index.plan import KINDS, choose, estimate_bytes, split_evenly
from facescale.index.vectors import choose_parts, random_keys


@given(st.lists(st.integers(0, 1000), max_size=60), st.integers(1, 20))
def test_runs_cover_every_part_once(weights: list[int], runs: int) -> None:
    offsets = split_evenly(np.array(weights, np.int64), runs)
    assert offsets[0] == 0 and offsets[-1] == len(weights)
    assert (np.diff(offsets) > 0).all() and len(offsets) - 1 <= runs
    if weights:
        # No run is heavier than its fair share by more than the heaviest part.
        loads = np.add.reduceat(weights, offsets[:-1])
        assert loads.max() <= sum(weights) / runs + max(weights) + 1e-6


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 2**32 - 1), st.data())
def test_blocks_in_any_order_give_the_whole(count: int, k: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    # Small integers: sums are exact, and equals are common.
    vectors = rng.integers(-1, 2, (count, 3)).astype(np.float32)
    queries = rng.integers(-1, 2, (4, 3)).astype(np.float32)
    ids = rng.permutation(count).astype(np.int64)
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    edges = [0, *cuts, count]
    blocks = [(ids[a:b], vectors[a:b]) for a, b in itertools.pairwise(edges)]
    blocks = [blocks[i] for i in data.draw(st.permutations(range(len(blocks))))]
    found, sims = exact_top_k(queries, blocks, k)
    every = queries @ vectors.T
    for row in range(4):
        order = np.lexsort((ids, -every[row]))[:k]
        assert found[row, : len(order)].tolist() == ids[order].tolist()
        assert (found[row, len(order) :] == -1).all()
        assert (np.diff(sims[row, : len(order)]) <= 0).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_merging_shards_equals_searching_them_together(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(40).reshape(2, 20).astype(np.int64)
    sims = (rng.integers(0, 5, (2, 20)) / 4).astype(np.float32)
    whole = merge_top_k(ids, sims, k)
    halves = [merge_top_k(ids[:, :9], sims[:, :9], k), merge_top_k(ids[:, 9:], sims[:, 9:], k)]
    merged = merge_top_k(*(np.concatenate(column, axis=1) for column in zip(*halves, strict=True)), k)
    np.testing.assert_array_equal(whole[0], merged[0])
    np.testing.assert_array_equal(whole[1], merged[1])


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_recall_is_one_for_the_truth_and_zero_for_strangers(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.stack([rng.permutation(30)[:10] for _ in range(5)]).astype(np.int64)
    sims = -np.sort(-rng.random((5, 10)).astype(np.float32), axis=1)
    assert (recall_at_k(truth, truth, sims, k) == 1).all()
    assert (recall_at_k(truth + 1000, truth, sims, k) == 0).all()


@given(st.lists(st.integers(0, 2**62), unique=True, max_size=50), st.integers(0, 1000))
def test_random_keys_belong_to_the_id_and_the_seed(ids: list[int], seed: int) -> None:
    array = np.array(ids, np.int64)
    keys = random_keys(array, seed)
    np.testing.assert_array_equal(random_keys(array[::-1], seed), keys[::-1])
    assert len(np.unique(keys)) == len(ids)
    if ids:
        assert (random_keys(array, seed + 1) != keys).any()


@given(st.integers(257, 5000), st.integers(0, 100))
def test_chosen_parts_are_distinct_sorted_and_enough(num_parts: int, seed: int) -> None:
    parts = [(0, row) for row in range(num_parts)]
    chosen = choose_parts(parts, count=100 * num_parts, wanted=500, seed=seed)
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(parts)
    assert len(chosen) >= 256


@given(
    st.integers(10_000, 10**9),
    st.sampled_from([64, 128, 512]),
    st.sampled_from(KINDS),
    st.integers(1, 20_000_000),
)
def test_estimates_grow_with_count_and_shards(count: int, dim: int, kind: str, shard_vectors: int) -> None:
    plan = choose(count, dim, memory_bytes=1 << 60, recall_target=0.9, kind=kind, shard_vectors=shard_vectors)
    assert plan.estimated_bytes == estimate_bytes(plan.layout, count, num_shards=plan.num_shards)
    assert estimate_bytes(plan.layout, count + 1, num_shards=plan.num_shards) > plan.estimated_bytes
    assert estimate_bytes(plan.layout, count, num_shards=plan.num_shards + 1) >= plan.estimated_bytes
