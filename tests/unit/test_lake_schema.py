"""Schemas: the YAML files, and tables checked against them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from lake_samples import part_tables, vectors

from facescale.errors import DataError
from facescale.lake.parts import PartKey
from facescale.lake.schema import check_table, fill_missing, table_names, table_schema, table_spec

PART = PartKey(0, 0, 20)


def test_the_tables_of_this_release():
    assert table_names() == [
        "attributes",
        "clusters",
        "crops",
        "decisions",
        "duplicates",
        "embeddings",
        "faces",
        "images",
        "labels",
        "neighbors",
        "sources",
    ]


@pytest.mark.parametrize("name", ["crops", "embeddings", "faces", "images", "labels", "sources"])
def test_every_column_is_described(name):
    spec = table_spec(name)
    assert spec.version == 1
    assert spec.description.endswith(".")
    assert set(spec.key) <= {column.name for column in spec.columns}
    for column in spec.columns:
        assert column.description.endswith("."), column.name
    schema = table_schema(name, dim=4)
    assert schema.metadata == {b"facescale.table": name.encode(), b"facescale.schema_version": b"1"}
    for column, field in zip(spec.columns, schema, strict=True):
        assert field.name == column.name
        assert field.nullable == column.nullable
        assert field.metadata == {b"description": column.description.encode(), b"unit": column.unit.encode()}


def test_types():
    faces = table_schema("faces")
    assert faces.field("box").type == pa.list_(pa.float32(), 4)
    assert faces.field("landmarks").type == pa.list_(pa.float32())
    assert table_schema("images").field("sha256").type == pa.binary(32)
    assert table_schema("embeddings", dim=512).field("embedding").type == pa.list_(pa.float16(), 512)


def test_embeddings_need_a_dimension():
    with pytest.raises(DataError, match="embeddings: column 'embedding' needs the model's dimension"):
        table_schema("embeddings")


def test_unknown_table_names_the_known_ones():
    with pytest.raises(DataError, match=r"no schema for table 'fases'; known tables: attributes, clusters"):
        table_schema("fases")


@pytest.mark.parametrize("name", ["images", "faces", "crops", "embeddings"])
def test_valid_tables_pass(name):
    table = check_table(name, part_tables(PART)[name])
    assert table.schema.equals(table_schema(name, dim=8), check_metadata=False)


def test_a_fitting_table_is_not_copied():
    once = check_table("embeddings", part_tables(PART)["embeddings"])
    twice = check_table("embeddings", once)
    assert twice.column("embedding").chunk(0).flatten().buffers()[1].address == (
        once.column("embedding").chunk(0).flatten().buffers()[1].address
    )


def test_columns_are_reordered_cast_and_filled():
    table = pa.table(
        {
            "norm": pa.array([1.0], pa.float64()),
            "embedding": vectors(np.ones((1, 4), np.float32)),
            "face_id": pa.array([257], pa.int32()),
        }
    )
    checked = check_table("embeddings", table)
    assert checked.schema.equals(table_schema("embeddings", dim=4))
    assert checked.to_pylist() == [{"face_id": 257, "embedding": [1.0] * 4, "norm": 1.0}]
    faces = check_table("faces", part_tables(PART)["faces"])
    assert faces.column("roll_deg").null_count == faces.num_rows


def test_metadata_of_the_table_is_kept():
    checked = check_table("faces", part_tables(PART)["faces"])
    assert checked.schema.metadata[b"facescale.landmark_scheme"] == b"five"
    assert checked.schema.metadata[b"facescale.table"] == b"faces"


LABELS = pa.table({"image_id": [256], "label": ["a"], "origin": ["folder"]})


@pytest.mark.parametrize(
    ("name", "table", "says"),
    [
        ("labels", LABELS.drop(["label"]), "table labels: column 'label' is missing"),
        ("labels", LABELS.append_column("x", pa.array([1])), "table labels: unknown column 'x'"),
        ("labels", LABELS.set_column(1, "label", pa.nulls(1, pa.string())), "'label' has 1 nulls"),
        (
            "labels",
            LABELS.set_column(0, "image_id", pa.array(["a"])),
            "'image_id' is string and does not fit int64",
        ),
        ("labels", LABELS.append_column("label", pa.array(["b"])), "a column appears twice"),
        (
            "images",
            part_tables(PART)["images"].set_column(10, "num_faces", pa.array([2**20] * 20)),
            "'num_faces' is int64 and does not fit int16",
        ),
        (
            "faces",
            part_tables(PART)["faces"].set_column(
                1, "box", pa.array([[1.0, 2.0, None, 4.0]] * 16, pa.list_(pa.float32(), 4))
            ),
            "'box' has 16 nulls inside its lists",
        ),
        (
            "embeddings",
            pa.table({"face_id": [1], "embedding": [[1.0]], "norm": [1.0]}),
            "'embedding' is list<.*>, expected fixed_size_list",
        ),
    ],
)
def test_problems_name_table_and_column(name, table, says):
    with pytest.raises(DataError, match=says):
        check_table(name, table)


def test_an_older_file_gets_nulls_for_new_nullable_columns():
    old = check_table("faces", part_tables(PART)["faces"]).drop(["roll_deg"])
    filled = fill_missing("faces", old, ["roll_deg", "face_id"])
    assert filled.column_names == ["roll_deg", "face_id"]
    assert filled.schema.field("roll_deg").type == pa.float32()
    with pytest.raises(DataError, match="'det_score' is missing from a file"):
        fill_missing("faces", old.drop(["det_score"]), ["det_score"])
