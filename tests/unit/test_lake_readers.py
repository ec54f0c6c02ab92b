"""Other tools read a lake's folders with no help: DuckDB, Polars, and Arrow's data sets (which pandas uses)."""

from __future__ import annotations

import numpy as np
import pyarrow.dataset as ds
import pytest
from lake_samples import sample_lake

duckdb = pytest.importorskip("duckdb")
pl = pytest.importorskip("polars")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return sample_lake(str(tmp_path_factory.mktemp("readers") / "lake"))


def folder(sample, table: str) -> str:
    return f"{sample.lake.uri}/{sample.versions[table].folder}"


@pytest.mark.parametrize("table", ["images", "faces", "crops", "embeddings"])
@pytest.mark.parametrize("pattern", ["*/*.parquet", "**/*.parquet"])
def test_duckdb_reads_every_column(sample, table, pattern):
    expected = sample.expected(table)
    found = duckdb.sql(f"SELECT * FROM '{folder(sample, table)}/{pattern}' ORDER BY 1").fetchall()
    assert len(found) == expected.num_rows
    rows = expected.to_pylist()
    for got, want in zip(found, rows, strict=True):
        for value, (name, right) in zip(got, want.items(), strict=True):
            if isinstance(right, list):
                assert np.allclose(value, right, rtol=0, atol=0), name
            else:
                assert value == right, name


@pytest.mark.parametrize("table", ["images", "faces", "crops", "embeddings"])
@pytest.mark.parametrize("pattern", ["*/*.parquet", "**/*.parquet"])
def test_polars_reads_every_column(sample, table, pattern):
    expected = sample.expected(table)
    found = pl.scan_parquet(f"{folder(sample, table)}/{pattern}").collect()
    assert found.columns == expected.column_names
    assert found.height == expected.num_rows
    first = expected.column_names[0]
    assert found.sort(first)[first].to_list() == expected.column(0).to_pylist()
    for name in expected.column_names[1:]:
        for got, want in zip(
            found.sort(first)[name].to_list(), expected.column(name).to_pylist(), strict=True
        ):
            assert np.array_equal(got, want) if isinstance(want, list) else got == want, name


def test_duckdb_joins_tables_and_filters_by_id(sample):
    faces, images = folder(sample, "faces"), folder(sample, "images")
    query = f"""
        SELECT i.uri, count(*) AS faces, max(f.det_score)
        FROM '{faces}/*/*.parquet' f SEMI JOIN '{images}/*/*.parquet' s ON f.face_id & ~255 = s.image_id
        JOIN '{images}/*/*.parquet' i ON i.image_id = f.face_id & ~255
        GROUP BY ALL ORDER BY i.uri
    """
    counts = {uri: faces for uri, faces, _ in duckdb.sql(query).fetchall()}
    table = sample.expected("images")
    wanted = zip(table.column("uri").to_pylist(), table.column("num_faces").to_pylist(), strict=True)
    assert counts == {uri: count for uri, count in wanted if count}


def test_duckdb_computes_cosines(sample):
    path = f"{folder(sample, 'embeddings')}/*/*.parquet"
    query = f"SELECT list_inner_product(embedding::FLOAT[], embedding::FLOAT[]) FROM '{path}'"
    squares = np.array(duckdb.sql(query).fetchall())
    assert len(squares) == sample.expected("embeddings").num_rows
    assert np.allclose(squares, 1, atol=2e-3)


@pytest.mark.parametrize("table", ["images", "faces", "crops", "embeddings"])
def test_a_whole_folder_is_a_data_set(sample, table):
    found = (
        ds.dataset(folder(sample, table), format="parquet")
        .to_table()
        .sort_by(sample.expected(table).column_names[0])
    )
    assert found.equals(sample.expected(table))


def test_version_json_does_not_get_in_the_way(sample):
    assert sample.lake.store.exists(f"{sample.versions['faces'].folder}/_version.json")
    found = ds.dataset(folder(sample, "faces"), format="parquet")
    assert len(found.files) == len(sample.parts)
