"""The README's claims that can be run: its queries on a lake, its commands, its exit codes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import typer.main

import facescale.errors
from facescale import cli, cli_tools
from facescale.lake.ids import make_face_id, make_image_id
from facescale.lake.lake import Lake
from facescale.lake.parts import PartKey, TableVersion, commit_part

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DIM = 128
FACES_OF = {0: 1, 1: 0, 2: 3}  # row of the image → its faces


def block(language: str) -> str:
    """The README's only code block in a language."""
    (code,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return str(code)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """photos.lake in the working directory: three images with 1, 0 and 3 faces, written as jobs write them."""
    monkeypatch.chdir(tmp_path)
    lake = Lake.create(str(tmp_path / "photos.lake"))
    part = PartKey(shard=2, first_row=0, num_rows=len(FACES_OF))
    image_ids = [make_image_id(2, row) for row in FACES_OF]
    face_ids = [
        make_face_id(image_id, ordinal)
        for image_id, num in zip(image_ids, FACES_OF.values(), strict=True)
        for ordinal in range(1, num + 1)
    ]
    num = len(face_ids)
    eyes = np.arange(num, dtype=np.float32) * 10 + 10  # 10, 20, 30, 40 px
    vectors = np.eye(num, DIM, dtype=np.float16)
    images = pa.table(
        {
            "image_id": pa.array(image_ids, pa.int64()),
            "uri": [f"/photos/{row}.jpg" for row in FACES_OF],
            "status": ["ok"] * len(FACES_OF),
            "num_faces": pa.array(FACES_OF.values(), pa.int16()),
        }
    )
    faces = pa.table(
        {
            "face_id": pa.array(face_ids, pa.int64()),
            "box": pa.array([[0, 0, 9, 9]] * num, pa.list_(pa.float32(), 4)),
            "landmarks": pa.array([[1, 2] * 5] * num, pa.list_(pa.float32())),
            "det_score": pa.array([1.0] * num, pa.float32()),
            "inter_eye_px": eyes,
        }
    )
    flat = pa.array(vectors.ravel(), pa.float16())
    embeddings = pa.table(
        {
            "face_id": pa.array(face_ids, pa.int64()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, DIM),
            "norm": pa.array([1.0] * num, pa.float32()),
        }
    )
    commit_part(
        lake.store,
        part,
        [
            (TableVersion("faces", "a" * 12), faces),
            (TableVersion("embeddings", "b" * 12, "dlib_resnet"), embeddings),
            (TableVersion("images", "c" * 12), images),
        ],
    )
    return lake


@pytest.mark.usefixtures("lake")
def test_duckdb_query() -> None:
    import duckdb

    rows = duckdb.sql(block("sql")).fetchall()
    assert rows == [("/photos/2.jpg", 3, 40.0), ("/photos/0.jpg", 1, 10.0)]


@pytest.mark.usefixtures("lake")
def test_duckdb_status_count() -> None:
    import duckdb

    (query,) = re.findall(r"`(SELECT status[^`]*)`", README)
    assert duckdb.sql(query.rstrip(".")).fetchall() == [("ok", 3)]


@pytest.mark.usefixtures("lake")
def test_polars_query() -> None:
    found: dict[str, Any] = {}
    exec(block("python"), found)
    assert found["large"]["inter_eye_px"].to_list() == [20.0, 30.0, 40.0]
    assert found["matrix"].shape == (3, DIM)
    np.testing.assert_array_equal(found["matrix"] @ found["matrix"].T, np.eye(3))


def test_every_command_is_in_the_readme_and_exists() -> None:
    cli_tools.register(cli.app)
    commands: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    shown = dict(re.findall(r"^\| `facescale (\w+)([^`]*)` \|", README, re.MULTILINE))
    assert set(shown) <= set(commands)
    assert set(commands) - set(shown) <= {"demo", "bench"}  # `make demo`, `make bench`
    for group in ("lake", "models"):
        listed = re.findall(r"(\w+)(?: \\\||$| LAKE)", shown[group])
        assert set(listed) == set(commands[group].commands)


def test_exit_codes_are_those_of_the_code() -> None:
    shown = {int(code) for code in re.findall(r"^\| (\d+) \| ", README, re.MULTILINE)}
    assert shown == {value for name, value in vars(facescale.errors).items() if name.startswith("EXIT_")}
