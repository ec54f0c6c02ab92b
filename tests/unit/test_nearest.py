"""Exact neighbors: against float64, and the same to the last bit however the work is cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.curate import nearest as module
from facescale.curate.nearest import NearestFaces
from facescale.curate.neighbors import lists_table
from facescale.errors import UsageError

NONE = -1


def unit(count: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim))
    units: np.ndarray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return units


def search(
    ids: np.ndarray,
    vectors: np.ndarray,
    k: int,
    *,
    cuts: Sequence[int] = (),
    rows: slice = slice(None),
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbors of some rows among all, the base in blocks that end at the cuts."""
    found = NearestFaces(ids[rows], vectors[rows], k, threads=threads)
    for block_ids, block in zip(np.split(ids, cuts), np.split(vectors, cuts), strict=True):
        found.add(block_ids, torch.from_numpy(block))
    return found.ids_QK, found.sims_QK


def oracle(ids: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs in float64, rounded once; equal ones by id."""
    wide = vectors.astype(np.float64)
    sims = (wide @ wide.T).astype(np.float32)
    np.fill_diagonal(sims, -np.inf)
    order = np.lexsort((np.broadcast_to(ids, sims.shape), -sims), axis=1)[:, :k]
    best = np.take_along_axis(sims, order, axis=1)
    found = np.where(np.isneginf(best), NONE, ids[order])
    pad = ((0, 0), (0, k - found.shape[1]))
    return np.pad(found, pad, constant_values=NONE), np.pad(best, pad, constant_values=-np.inf)


def assert_equal(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 120),
    distinct=st.integers(1, 120),
    dim=st.sampled_from([1, 3, 16, 128]),
    k=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 120), max_size=4),
)
def test_like_float64_however_it_is_cut(
    seed: int, count: int, distinct: int, dim: int, k: int, cuts: list[int]
) -> None:
    """Few distinct vectors make many ties, which go to the lowest ids."""
    rng = np.random.default_rng(seed)
    vectors = unit(distinct, dim, seed)[rng.integers(0, distinct, count)]
    ids = np.sort(rng.choice(10 * count, count, replace=False)).astype(np.int64)
    cuts = sorted(min(cut, count) for cut in cuts)
    assert_equal(search(ids, vectors, k, cuts=cuts), oracle(ids, vectors, k))


@pytest.mark.parametrize("threads", [1, 2])
def test_blocks_threads_and_parts_change_no_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, ids = unit(3000, 128), np.arange(3000, dtype=np.int64) << 8
    expected = oracle(ids, vectors, 50)
    assert_equal(search(ids, vectors, 50, threads=threads), expected)
    assert_equal(search(ids, vectors, 50, cuts=[1, 70, 2999], threads=threads), expected)
    part = search(ids, vectors, 50, rows=slice(777, 780), threads=threads)
    assert_equal(part, (expected[0][777:780], expected[1][777:780]))
    monkeypatch.setattr(module, "BLOCK_ROWS", 333)
    monkeypatch.setattr(module, "_QUERY_ROWS", 100)
    monkeypatch.setattr(module, "_AT_ONCE", 7)
    assert_equal(search(ids, vectors, 50, threads=threads), expected)


def test_neighbors_closer_together_than_float32_can_tell() -> None:
    """Within 1e-7 of each other, more of them than are proposed: they are told apart in float64."""
    rng = np.random.default_rng(0)
    near = unit(1, 128) + 3e-8 * rng.standard_normal((600, 128))
    vectors = np.concatenate([unit(400, 128, 1), near.astype(np.float32)])
    ids = np.arange(1000, dtype=np.int64)
    assert_equal(search(ids, vectors, 20), oracle(ids, vectors, 20))


def test_all_faces_identical() -> None:
    vectors, ids = np.repeat(unit(1, 128), 500, axis=0), np.arange(500, dtype=np.int64)
    found, sims = search(ids, vectors, 10, cuts=[100])
    assert found[0].tolist() == list(range(1, 11))
    assert found[499].tolist() == list(range(10))
    assert len(np.unique(sims)) == 1


def test_one_face_has_no_neighbors() -> None:
    found, sims = search(np.array([7]), unit(1, 8), 3)
    assert found.tolist() == [[NONE] * 3] and np.isneginf(sims).all()
    table = lists_table(np.array([7]), found, sims, -1.0)
    assert table.to_pylist() == [{"face_id": 7, "neighbor_ids": [], "similarities": [], "saturated": False}]


def test_no_queries_and_no_base() -> None:
    nothing = NearestFaces(np.empty(0, np.int64), np.empty((0, 8), np.float32), 3)
    nothing.add(np.arange(4), torch.from_numpy(unit(4, 8)))
    assert nothing.ids_QK.shape == (0, 3)
    alone = NearestFaces(np.array([1]), unit(1, 8), 3)
    alone.add(np.empty(0, np.int64), torch.empty((0, 8)))
    assert alone.ids_QK.tolist() == [[NONE] * 3]
    with pytest.raises(UsageError, match="at least 1"):
        NearestFaces(np.array([1]), unit(1, 8), 0)


def test_lists_end_where_the_base_does() -> None:
    ids = np.array([1, 2, 3])
    found, sims = search(ids, np.array([[1, 0], [0, 1], [1, 0]], np.float32), 2)
    table = lists_table(ids, found, sims, 0.5)
    assert table["neighbor_ids"].to_pylist() == [[3, 2], [1, 3], [1, 2]]
    assert table["similarities"].to_pylist() == [[1, 0], [0, 0], [1, 0]]
    assert table["saturated"].to_pylist() == [False, False, False]
    assert lists_table(ids, found, sims, -0.5)["saturated"].to_pylist() == [True] * 3
    wider = lists_table(ids, *search(ids, np.eye(3, 2, dtype=np.float32), 5), -0.5)
    assert [len(row) for row in wider["neighbor_ids"].to_pylist()] == [2, 2, 2]
    assert wider["saturated"].to_pylist() == [False] * 3
