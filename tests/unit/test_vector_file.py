"""Files of embeddings: what is read from each kind, at any rows in any order of runs, against numpy."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.sources.containers import ContainerError
from facescale.sources.vector_file import open_vectors, vector_format
from facescale.sources.vector_labels import RowLabels, label_texts
from facescale.sources.vector_types import EMPTY, OK, WRONG_DIMENSION, WRONG_TYPE

COUNT, DIM = 20_000, 4
VALUES = np.random.default_rng(0).integers(-100, 100, (COUNT, DIM))


def lists(kind: pa.DataType, values: np.ndarray = VALUES) -> pa.Array:
    return pa.array(list(values), kind)


COLUMNS = {
    "list of float": lambda: lists(pa.list_(pa.float32())),
    "large list of double": lambda: lists(pa.large_list(pa.float64())),
    "fixed list of half": lambda: pa.FixedSizeListArray.from_arrays(
        pa.array(VALUES.astype(np.float16).ravel()), DIM
    ),
    "list of int8": lambda: lists(pa.list_(pa.int8())),
}
ARRAYS = {"<f4": "little", ">f8": "big", "f2": "half", "i1": "int8", "u2": "uint16"}


@functools.cache
def file_of(kind: str) -> str:
    """The vectors in a file, with row numbers as their labels."""
    path = Path(tempfile.mkdtemp()) / "faces"
    if kind in COLUMNS:
        table = pa.table({"embedding": COLUMNS[kind](), "label": np.arange(COUNT)})
        pq.write_table(table, f"{path}.parquet", row_group_size=7000)
        return f"{path}.parquet"
    if kind == "bin":
        VALUES.astype("<f4").tofile(f"{path}.bin")
        Path(f"{path}.meta").write_text("".join(f"{row}\n" for row in range(COUNT)))
        return f"{path}.bin"
    np.save(f"{path}.npy", VALUES.astype(kind))
    np.save(f"{path}.label.npy", np.arange(COUNT))
    return f"{path}.npy"


KINDS = [*COLUMNS, *ARRAYS, "bin"]
rows_of_a_run = st.tuples(st.integers(0, COUNT - 1), st.integers(1, 9000), st.integers(1, 700))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(runs=st.lists(rows_of_a_run, min_size=1, max_size=4))
def test_rows_are_those_of_the_array(kind: str, runs: list[tuple[int, int, int]]) -> None:
    uri = file_of(kind)
    expected = VALUES.astype(kind if kind in ARRAYS else "f4").astype(np.float32)
    with open_vectors(uri, str(vector_format(uri))) as file:
        assert (file.num_rows, file.likely_dim()) == (COUNT, DIM)
        for start, length, step in runs:
            rows = np.arange(start, min(start + length, COUNT), step)
            found = file.vectors(rows, DIM)
            assert (found.state == OK).all() and found.values.dtype == np.float32
            np.testing.assert_array_equal(found.values, expected[rows])
            assert file.column("label", rows).cast(pa.int64()).to_pylist() == rows.tolist()


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64())], ids=str)
def test_what_a_row_lacks_is_its_state(tmp_path: Path, kind: pa.DataType) -> None:
    rows: list[Any] = [[1, 2], None, [], [1], [3, None], [1, 2, 3], [5, 1e300]]
    pq.write_table(pa.table({"embedding": pa.array(rows, kind)}), tmp_path / "a.parquet")
    with open_vectors(str(tmp_path / "a.parquet"), "vectors_parquet") as file:
        assert file.likely_dim() == 2
        found = file.vectors(np.arange(7), 2)
        tail = file.vectors(np.arange(3, 7), 2)
    assert found.state.tolist() == [OK, EMPTY, EMPTY, WRONG_DIMENSION, OK, WRONG_DIMENSION, OK]
    assert (
        found.values[0].tolist() == [1, 2] and np.isnan(found.values[4, 1]) and np.isinf(found.values[6, 1])
    )
    np.testing.assert_array_equal(found.values[3:], tail.values)


def test_fixed_lists_with_nulls(tmp_path: Path) -> None:
    column = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"embedding": column}), tmp_path / "a.parquet")
    with open_vectors(str(tmp_path / "a.parquet"), "vectors_parquet") as file:
        found = file.vectors(np.arange(3), 2)
        assert file.vectors(np.array([0]), 5).state.tolist() == [WRONG_DIMENSION]
    assert found.state.tolist() == [OK, EMPTY, OK] and found.values.tolist() == [[1, 2], [0, 0], [3, 4]]


def test_texts_are_no_embeddings(tmp_path: Path) -> None:
    pq.write_table(pa.table({"embedding": ["[1, 2]", "x"]}), tmp_path / "a.parquet")
    with open_vectors(str(tmp_path / "a.parquet"), "vectors_parquet") as file:
        assert file.likely_dim() is None
        assert file.vectors(np.arange(2), 3).state.tolist() == [WRONG_TYPE] * 2


def spoiled(path: Path, name: str, write: Any) -> str:
    write(path / name)
    return str(path / name)


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("a.npy", lambda p: p.write_bytes(b"no array"), "is no .npy file"),
        ("a.npy", lambda p: np.save(p, np.zeros(5)), r"array of shape \(5,\)"),
        ("a.npy", lambda p: np.save(p, np.asfortranarray(np.ones((3, 2)))), "stored column by column"),
        ("a.npy", lambda p: np.save(p, np.array([[{}]])), "holds Python objects"),
        ("a.parquet", lambda p: p.write_bytes(b"PAR1"), "no Parquet file, or damaged"),
        (
            "a.parquet",
            lambda p: pq.write_table(pa.table({"x": [1]}), p),
            r"no column 'embedding' \(it has x\)",
        ),
        ("a.bin", lambda p: p.write_bytes(bytes(24)), "tell their dimension with --dim"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, write: Any, says: str) -> None:
    uri = spoiled(tmp_path, name, write)
    with pytest.raises(ContainerError, match=says):
        open_vectors(uri, str(vector_format(uri)))


def test_sidecars_must_be_of_as_many_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 2)))
    np.save(tmp_path / "a.quality.npy", np.ones(4))
    with pytest.raises(
        ContainerError, match=r"has 3 rows, and .*a\.quality\.npy beside it is of shape \(4,\)"
    ):
        open_vectors(str(tmp_path / "a.npy"), "vectors_npy")
    np.ones((3, 2), np.float32).tofile(tmp_path / "b.bin")
    (tmp_path / "b.meta").write_text("0\n1\n")
    with pytest.raises(ContainerError, match=r"3 vectors of 2 dimensions, and .* 2 labels"):
        open_vectors(str(tmp_path / "b.bin"), "vectors_bin", dim=2)


def test_labels_of_any_type() -> None:
    assert label_texts(pa.array([3, -1, None])).to_pylist() == ["3", None, None]
    assert label_texts(pa.array([3.0, float("nan"), None, -1.0])).to_pylist() == ["3", None, None, None]
    assert label_texts(pa.array([0.5, 1.0])).to_pylist() == ["0.5", "1"]
    assert label_texts(pa.array([" a ", "", "-1", None])).to_pylist() == ["a", None, None, None]
    assert label_texts(pa.array(["a", "b", "a"]).dictionary_encode()).to_pylist() == ["a", "b", "a"]
    assert label_texts(pa.array([{"x": 1}])).to_pylist() == [None]


@pytest.mark.parametrize("name", ["l.npy", "l.meta", "l.csv", "l.parquet"])
def test_files_of_labels(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "l.npy":
        np.save(path, np.array([4, -1, 7]))
    elif name == "l.meta":
        path.write_text("4\n\n7\n")
    elif name == "l.csv":
        path.write_text("label,more\n4,x\n,y\n7,z\n")
    else:
        pq.write_table(pa.table({"label": [4, None, 7]}), path)
    labels = RowLabels(str(path)).load()
    assert labels is not None and labels.to_pylist() == ["4", None, "7"]
