"""Queries are checked before they are searched: dimension, zeros, NaN; tables of embeddings become queries."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from facescale.errors import DataError, MismatchError, UsageError
from facescale.index.results import query_vectors, results_json, write_results
from facescale.index.search import unit_queries


def test_raw_queries_become_unit_vectors() -> None:
    raw = np.array([[3.0, 4.0], [1e-30, 0.0], [1e30, 1e30]])
    unit = unit_queries(raw, 2, model="toy")
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(unit[0], [0.6, 0.8], atol=1e-6)
    assert unit.dtype == np.float32


@pytest.mark.parametrize(("value", "what"), [(0.0, "zero"), (np.nan, "not finite"), (np.inf, "not finite")])
def test_a_row_without_a_direction_is_named(value: float, what: str) -> None:
    queries = np.ones((4, 3), np.float32)
    queries[2] = value
    with pytest.raises(UsageError, match=rf"query row 2 \(c\.jpg\) is {what}, as are 1 of 4"):
        unit_queries(queries, 3, model="toy", names=["a.jpg", "b.jpg", "c.jpg", "d.jpg"])


def test_another_dimension_is_a_mismatch() -> None:
    with pytest.raises(MismatchError, match="dimension 3, and the index of toy has 4"):
        unit_queries(np.ones((1, 3), np.float32), 4, model="toy")


@pytest.mark.parametrize("queries", [np.ones(3, np.float32), np.ones((1, 3), np.int64)])
def test_what_is_no_matrix_of_floats(queries: np.ndarray) -> None:
    with pytest.raises(UsageError, match="expected a matrix of floats"):
        unit_queries(queries, 3, model="toy")


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float16(), 2), pa.large_list(pa.float64())]
)
def test_tables_of_embeddings(kind: pa.DataType) -> None:
    rows = [[np.float16(1), np.float16(2)], [np.float16(3), np.float16(4)], [np.float16(5), np.float16(6)]]
    table = pa.table({"embedding": pa.array(rows, kind), "uri": ["a", "b", "c"]})
    names, vectors = query_vectors(table.slice(1), where="q.parquet")
    assert names == ["b", "c"]
    assert vectors.dtype == np.float32 and vectors.tolist() == [[3, 4], [5, 6]]
    unnamed, _ = query_vectors(table.select(["embedding"]), where="q.parquet")
    assert unnamed == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"vector": [[1.0]]}), "no column embedding"),
        (pa.table({"embedding": ["x"]}), "is string; expected lists"),
        (pa.table({"embedding": [[1.0], [1.0, 2.0]]}), "different lengths"),
        (pa.table({"embedding": [[1.0], None]}), "nulls"),
        (pa.table({"embedding": [[1.0], [None]]}), "nulls"),
    ],
)
def test_tables_that_are_no_embeddings(table: pa.Table, message: str) -> None:
    with pytest.raises(DataError, match=f"q.parquet: .*{message}"):
        query_vectors(table, where="q.parquet")


def test_ids_are_texts_in_json_and_numbers_in_parquet(tmp_path) -> None:
    face = (1 << 60) + 1
    table = pa.table({"query": ["a"], "face_id": pa.array([face], pa.int64())})
    assert results_json(table) == [{"query": "a", "face_id": str(face)}]
    write_results(table, tmp_path / "out" / "hits.parquet")
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "out" / "hits.parquet")["face_id"].to_pylist() == [face]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["hits.parquet"]
