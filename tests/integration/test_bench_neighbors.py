"""`facescale bench neighbors` on 20,000 faces, in this process: what it says of recall holds, and all are measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facescale.bench.crowd import make_crowd
from facescale.bench.neighbors import bench_neighbors
from facescale.bench.neighbors_rivals import Edges, tune
from facescale.driver.context import SilentReporter
from facescale.errors import UsageError


def test_bench(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    pytest.importorskip("hnswlib")
    result = bench_neighbors(
        20_000,
        SilentReporter(),
        dim=32,
        k=20,
        edge_recall=0.95,
        rival_queries=100,
        hnsw_faces=1000,
        workers=0,
        work=str(tmp_path),
    )
    recall = result.goal("recall of pairs")
    assert recall.value is not None and recall.value >= 0.93 and recall.at_least == 0.95
    ours, others = result.figures["facescale neighbors"], result.figures["others, at least at that recall"]
    assert ours["self-match"] == 1 and ours["recall of pairs"] == recall.value
    assert 0 < ours["share of all pairs that were compared"] < 0.3
    assert [row["method"].split(",")[0] for row in others] == ["IndexIVFFlat", "IndexIVFFlat", "hnswlib"]
    for row in others:
        assert row["recall of pairs"] >= recall.value and row["seconds"] > 0
        assert row["times ours"] == pytest.approx(row["seconds"] / ours["seconds, the whole job"])
    assert list(tmp_path.iterdir()) == []


def test_pairs_are_found_from_either_end() -> None:
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 2]]
    edges = Edges.among(vectors, np.array([0, 2, 4]), 3, 0.5)
    assert list(zip(edges.first.tolist(), edges.second.tolist(), strict=True)) == [(0, 1), (2, 3)]
    assert edges.everyone.tolist() == [0, 1, 2, 3, 4]
    none = np.full((5, 2), -1)
    assert edges.recall(none) == 0
    none[1, 1] = 0  # 1 has 0, and 0 has not 1
    assert edges.recall(none) == 0.5


def test_the_narrowest_search_is_found() -> None:
    asked = []

    def measure(width: int) -> float:
        asked.append(width)
        return min(1.0, width / 100)

    assert tune(measure, 0.9, 4096) == (92, 0.92)  # to a sixteenth
    assert len(asked) < 14
    assert tune(measure, 0.9, 64) == (64, 0.64)  # the widest there is


def test_a_crowd_is_the_same_again_and_people_resemble_themselves() -> None:
    crowd = make_crowd(70_000, 32, 5)
    first, second = (np.concatenate(list(crowd.blocks())) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    order = np.argsort(crowd.person, kind="stable")
    same = crowd.person[order][1:] == crowd.person[order][:-1]
    sims = (first[order][1:] * first[order][:-1]).sum(1)
    assert np.median(sims[same]) > 0.5 > 0.3 > np.median(sims[~same])


def test_too_few_faces_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 2,000"):
        bench_neighbors(1999, SilentReporter())
