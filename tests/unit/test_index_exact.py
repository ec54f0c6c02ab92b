"""Exact search against plain numpy; recall and its ties against hand-made lists."""

from __future__ import annotations

import numpy as np
import pytest

from facescale.errors import UsageError
from facescale.index import exact
from facescale.index.exact import drop_self, exact_top_k, merge_top_k, recall_at_k


def _unit(count: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_equals_a_full_sort(block: int) -> None:
    vectors, queries = _unit(900, 16, 0), _unit(40, 16, 1)
    ids = np.random.default_rng(2).permutation(900).astype(np.int64) + (1 << 50)
    blocks = ((ids[i : i + block], vectors[i : i + block]) for i in range(0, 900, block))
    found, sims = exact_top_k(queries, blocks, 12, threads=1)
    every = queries @ vectors.T
    order = np.argsort(-every, axis=1)[:, :12]
    np.testing.assert_array_equal(found, ids[order])
    np.testing.assert_allclose(sims, np.take_along_axis(every, order, 1), atol=1e-6)


def test_many_queries_and_vectors_pass_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = _unit(500, 8, 0), _unit(50, 8, 1)
    whole = exact_top_k(queries, [(np.arange(500), vectors)], 5)
    monkeypatch.setattr(exact, "_BLOCK_ROWS", 64)
    monkeypatch.setattr(exact, "_QUERY_ROWS", 16)
    chunked = exact_top_k(queries, [(np.arange(500), vectors)], 5)
    np.testing.assert_array_equal(whole[0], chunked[0])


@pytest.mark.parametrize("block", [3, 10, 100])
def test_equals_are_taken_by_id_also_at_the_border(block: int) -> None:
    copies = np.repeat(_unit(1, 8, 0), 30, axis=0)
    ids = np.random.default_rng(1).permutation(30).astype(np.int64)
    blocks = [(ids[i : i + block], copies[i : i + block]) for i in range(0, 30, block)]
    found, _ = exact_top_k(copies[:2], blocks, 7)
    assert found.tolist() == [list(range(7))] * 2


def test_fewer_vectors_than_asked_for() -> None:
    vectors = _unit(3, 4, 0)
    found, sims = exact_top_k(vectors, [(np.array([5, 6, 7]), vectors)], 5)
    assert (found[:, 3:] == -1).all() and np.isneginf(sims[:, 3:]).all()
    assert found[:, 0].tolist() == [5, 6, 7]
    nothing, _ = exact_top_k(vectors, [], 2)
    assert (nothing == -1).all()


def test_no_neighbors_asked_for() -> None:
    with pytest.raises(UsageError, match="k: 0"):
        exact_top_k(_unit(1, 4, 0), [], 0)


def test_threads_are_given_back() -> None:
    import torch

    before = torch.get_num_threads()
    with exact.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_merge_orders_by_similarity_then_id_and_pads() -> None:
    ids = np.array([[9, 4, -1, 7]])
    sims = np.array([[0.5, 0.5, -np.inf, 0.9]], np.float32)
    merged, values = merge_top_k(ids, sims, 6)
    assert merged.tolist() == [[7, 4, 9, -1, -1, -1]]
    assert values[0, :3].tolist() == pytest.approx([0.9, 0.5, 0.5])


def test_drop_self() -> None:
    ids = np.array([[1, 2, 3], [5, 2, 3], [7, 8, 9]])
    sims = np.array([[0.9, 0.8, 0.7]] * 3, np.float32)
    kept, kept_sims = drop_self(ids, sims, np.array([1, 2, 100]))
    assert kept.tolist() == [[2, 3], [5, 3], [7, 8]]
    np.testing.assert_allclose(kept_sims, [[0.8, 0.7], [0.9, 0.7], [0.9, 0.8]])


def test_recall_counts_equals_of_the_last_as_found() -> None:
    truth = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, -1, -1], [-1, -1, -1, -1]])
    sims = np.array(
        [[0.9, 0.8, 0.8, 0.1], [0.9, 0.8, 0.7, 0.1], [0.9, 0.8, -np.inf, -np.inf], [-np.inf] * 4], np.float32
    )
    found = np.array([[1, 3], [1, 3], [2, 1], [-1, -1]])
    recall = recall_at_k(found, truth, sims, 2)
    np.testing.assert_array_equal(recall, [1.0, 0.5, 1.0, np.nan])
    assert (
        recall_at_k(found[2:3, [0, 0]][:, :1], truth[2:3], sims[2:3], 3)[0] == 0.5
    )  # two neighbors, one found
