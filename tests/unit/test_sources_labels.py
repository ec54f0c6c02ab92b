"""Claims on images: from folders, from files keyed by path, and from what travels with the image."""

from __future__ import annotations

import csv
import json
import pickle
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources_samples import tar_bytes, write_files, write_parquet

from facescale.errors import DataError, UsageError
from facescale.lake.lake import Lake
from facescale.lake.parts import TableVersion, commit_part
from facescale.lake.stage import Guard
from facescale.sources.labels import LabelSpec, LabelsStage, label_rows
from facescale.sources.plan import plan_sources, planned_parts
from facescale.sources.read import read_part

if TYPE_CHECKING:
    from pathlib import Path

VERSION = TableVersion("labels", "0123456789ab")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open_or_create(str(tmp_path / "lake"))


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    return folder


def claims(lake: Lake, src: Path, spec: LabelSpec) -> dict[str, list[tuple[str, str]]]:
    """(label, origin) of every planned image by its uri below the source; commits the parts, which checks ids."""
    stage = pickle.loads(pickle.dumps(LabelsStage(spec, lake.store, VERSION)))  # as a worker gets it
    stage.open()
    found: dict[str, list[tuple[str, str]]] = {}
    images = labels = 0
    for part in planned_parts(lake):
        members = read_part(lake.store, part, max_bytes=1 << 20)
        uris = {part.key.shard << 40 | m.row << 8: m.uri.removeprefix(f"{src}/") for m in members}
        result = stage.process(part, Guard())
        commit_part(lake.store, part.key, result.tables, counters=result.counters)
        ((version, table),) = result.tables
        assert version == VERSION
        for row in table.to_pylist():
            found.setdefault(uris[row["image_id"]], []).append((row["label"], row["origin"]))
        images, labels = images + result.counters["images"], labels + result.counters["labels"]
        assert result.counters["unlabeled"] == len(uris) - len(set(table.column("image_id").to_pylist()))
    assert labels == sum(len(values) for values in found.values())
    return found


def write_csv(path: Path, rows: list[list[str]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def test_the_parent_folder_is_the_label(lake: Lake, src: Path) -> None:
    write_files(
        src, {"Ann/1.jpg": b"", "deep/er/Bob\nB/2.jpg": b"", "direct.jpg": b"", b"Jos\xe9/3.jpg": b""}
    )
    plan_sources(lake, str(src))
    assert claims(lake, src, LabelSpec("folder")) == {
        "Ann/1.jpg": [("Ann", "folder")],
        "deep/er/Bob\nB/2.jpg": [("Bob\nB", "folder")],
        f"file://{src}/Jos%E9/3.jpg": [("Jos\\xe9", "folder")],
    }


def test_a_file_gives_labels_by_path(lake: Lake, src: Path, tmp_path: Path) -> None:
    write_files(src, {"a/1.jpg": b"", "b/1.jpg": b"", "b/2.jpg": b"", "c/3.jpg": b"", "d/4.jpg": b""})
    plan_sources(lake, str(src))
    write_csv(
        tmp_path / "labels.csv",
        [
            ["identity", "path", "extra"],
            ["Ann", "./a/1.jpg", "x"],
            ["Bob, the \"B\"", f"{src}/b/1.jpg", "y"],
            ["Cy", "3.jpg", ""],
            ["", "d/4.jpg", ""],
            ["Ann", "a/1.jpg", "again"],
            ["Zed", "not/there.jpg", ""],
            ["Nobody", "1.jpg", "two files have this name"],
        ],
    )  # fmt: skip
    spec = LabelSpec(str(tmp_path / "labels.csv"), "identity")
    origin = "file:identity"
    assert claims(lake, src, spec) == {
        "a/1.jpg": [("Ann", origin)],
        "b/1.jpg": [('Bob, the "B"', origin)],
        "c/3.jpg": [("Cy", origin)],
    }
    file = spec.load(lake.store)
    assert file is not None
    assert (file.num_rows, file.num_unlabeled, file.num_repeated, file.num_ambiguous) == (5, 1, 1, 1)
    assert [line.split()[0] for line in file.remarks()] == ["1", "1", "1"]


def test_two_labels_for_one_path_are_two_claims(lake: Lake, src: Path, tmp_path: Path) -> None:
    write_files(src, {"1.jpg": b"", "2.jpg": b""})
    plan_sources(lake, str(src))
    write_csv(
        tmp_path / "l.tsv", [["path", "who"], ["1.jpg", "Ann"], ["2.jpg", "Cy"], ["1.jpg", "Bob"]], "\t"
    )
    spec = LabelSpec(str(tmp_path / "l.tsv"), "who")
    assert claims(lake, src, spec)["1.jpg"] == [("Ann", "file:who"), ("Bob", "file:who")]
    file = spec.load(lake.store)
    assert file is not None
    assert file.num_conflicting == 1


def test_numbers_and_dictionaries_of_a_parquet_file_become_text(
    lake: Lake, src: Path, tmp_path: Path
) -> None:
    write_files(src, {"1.jpg": b"", "2.jpg": b""})
    plan_sources(lake, str(src))
    pq.write_table(
        pa.table({"file": pa.array(["1.jpg", "2.jpg"]).dictionary_encode(), "id": pa.array([7, None])}),
        tmp_path / "l.parquet",
    )
    spec = LabelSpec(str(tmp_path / "l.parquet"), "id", path_column="file")
    assert claims(lake, src, spec) == {"1.jpg": [("7", "file:id")]}


def test_leading_zeros_of_a_csv_are_kept(lake: Lake, src: Path, tmp_path: Path) -> None:
    write_files(src, {"001.jpg": b""})
    plan_sources(lake, str(src))
    write_csv(tmp_path / "l.csv", [["path", "id"], ["001.jpg", "0042"]])
    assert claims(lake, src, LabelSpec(str(tmp_path / "l.csv"), "id")) == {"001.jpg": [("0042", "file:id")]}


@pytest.mark.parametrize(
    ("name", "content", "column", "error", "says"),
    [
        ("l.csv", "path,label\nx,y\n", None, UsageError, "--label-column"),
        ("l.csv", "path,label\nx,y\n", "identity", UsageError, "no column 'identity'"),
        ("l.csv", "file,label\nx,y\n", "label", UsageError, "no column 'path'"),
        ("l.csv", "path,label\nx,y,z\n", "label", DataError, "cannot be parsed"),
        ("l.parquet", "no parquet", "label", DataError, "cannot be parsed"),
        ("l.xlsx", "x", "label", UsageError, "no .csv, .tsv or .parquet"),
        (None, None, "label", UsageError, "cannot be read"),
    ],
)
def test_unusable_files_are_named(
    lake: Lake,
    tmp_path: Path,
    name: str | None,
    content: str | None,
    column: str | None,
    error: type[Exception],
    says: str,
) -> None:
    path = tmp_path / (name or "missing.csv")
    if content is not None:
        path.write_text(content)
    spec = LabelSpec(str(path), column)
    with pytest.raises(error, match=says) as raised:
        spec.load(lake.store)
    assert path.name in str(raised.value)
    with pytest.raises(error, match=says) as checked:  # already before any image is read
        spec.check()
    assert path.name in str(checked.value)


def test_the_check_reads_only_the_beginning(lake: Lake, tmp_path: Path) -> None:
    """Usable files pass; a line far down is not its business."""
    LabelSpec("folder").check()
    path = tmp_path / "l.csv"
    path.write_text("path,label\n" + "x.jpg,Ann\n" * 300_000 + "x,y,z\n")
    LabelSpec(str(path), "label").check()
    with pytest.raises(DataError, match="cannot be parsed"):
        LabelSpec(str(path), "label").load(lake.store)
    pq.write_table(pa.table({"label": ["Ann"], "path": ["x.jpg"]}), tmp_path / "l.parquet")
    LabelSpec(str(tmp_path / "l.parquet"), "label").check()


def test_the_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("path,who\n1.jpg,Ann\n")
    a, b = (LabelSpec(str(tmp_path / name), "who") for name in ("a.csv", "b.csv"))
    assert a.settings() == b.settings()
    (tmp_path / "b.csv").write_text("path,who\n1.jpg,Bob\n")
    assert a.settings() != b.settings()
    assert LabelSpec(str(tmp_path / "a.csv"), "path").settings() != a.settings()
    with pytest.raises(UsageError, match="cannot be read"):
        LabelSpec(str(tmp_path / "c.csv"), "who").settings()


MEMBERS = [
    ("0.cls", b"7\n"),
    ("0.jpg", b""),
    ("1.jpg", b""),
    ("1.json", json.dumps({"label": "Ann", "identity": "Bob", "w": 3}).encode()),
    ("2.jpg", b""),
    ("2.txt", b" Cy "),
    ("3.jpg", b""),
    ("3.txt", b"a caption\nof two lines"),
    ("Dee/4.jpg", b""),
    ("5.json", b"[broken"),
    ("5.jpg", b""),
    ("6.left.jpg", b""),
    ("6.right.jpg", b""),
    ("6.txt", b"Eve"),
    ("7.jpg", b""),
    ("7.json", b'{"label": "\\ud800x", "identity": 5}'),
]


@pytest.mark.parametrize("part_rows", [1, 2, 64])
def test_sidecars_of_a_tar(lake: Lake, src: Path, part_rows: int) -> None:
    write_files(src, {"t.tar": tar_bytes(MEMBERS)})
    plan_sources(lake, str(src), part_rows=part_rows)
    assert claims(lake, src, LabelSpec("folder")) == {
        "t.tar#0.jpg": [("7", "sidecar:cls")],
        "t.tar#1.jpg": [("Ann", "sidecar:json")],
        "t.tar#2.jpg": [("Cy", "sidecar:txt")],
        "t.tar#Dee/4.jpg": [("Dee", "folder")],
        "t.tar#6.left.jpg": [("Eve", "sidecar:txt")],
        "t.tar#6.right.jpg": [("Eve", "sidecar:txt")],
        "t.tar#7.jpg": [("?x", "sidecar:json")],
    }


def test_a_named_field_of_sidecars(lake: Lake, src: Path) -> None:
    write_files(src, {"t.tar": tar_bytes(MEMBERS)})
    plan_sources(lake, str(src))
    found = claims(lake, src, LabelSpec("folder", "identity"))
    assert found["t.tar#1.jpg"] == [("Bob", "sidecar:json")]
    assert found["t.tar#7.jpg"] == [("5", "sidecar:json")]


def test_a_file_names_members_of_a_tar(lake: Lake, src: Path, tmp_path: Path) -> None:
    write_files(src, {"sub/t.tar": tar_bytes(MEMBERS)})
    plan_sources(lake, str(src))
    write_csv(
        tmp_path / "l.csv",
        [["path", "who"], ["0.jpg", "A"], ["sub/t.tar#1.jpg", "B"], [f"{src}/sub/t.tar#2.jpg", "C"]],
    )
    assert claims(lake, src, LabelSpec(str(tmp_path / "l.csv"), "who")) == {
        "sub/t.tar#0.jpg": [("A", "file:who")],
        "sub/t.tar#1.jpg": [("B", "file:who")],
        "sub/t.tar#2.jpg": [("C", "file:who")],
    }


def test_a_column_beside_the_image(lake: Lake, src: Path, tmp_path: Path) -> None:
    labels = [None if i == 3 else i for i in range(25)]
    write_parquet(src / "p.parquet", {"image": [b"x"] * 25, "label": labels, "name": ["n"] * 25})
    plan_sources(lake, str(src), part_rows=8)
    assert claims(lake, src, LabelSpec("folder")) == {
        f"p.parquet#{i}": [(str(i), "sidecar:label")] for i in range(25) if i != 3
    }
    assert claims(lake, src, LabelSpec("folder", "name"))["p.parquet#3"] == [("n", "sidecar:name")]
    assert claims(lake, src, LabelSpec("folder", "absent")) == {}
    write_csv(tmp_path / "l.csv", [["path", "who"], ["p.parquet#4", "Ann"]])
    assert claims(lake, src, LabelSpec(str(tmp_path / "l.csv"), "who")) == {
        "p.parquet#4": [("Ann", "file:who")]
    }


def test_an_empty_part_of_claims_is_a_table(lake: Lake, src: Path) -> None:
    write_files(src, {"a.jpg": b"", "t.tar": tar_bytes([("x.jpg", b"")])})
    plan_sources(lake, str(src))
    for part in planned_parts(lake):
        table = label_rows(lake.store, part, LabelSpec("folder"))
        assert (table.num_rows, table.column_names) == (0, ["image_id", "label", "origin"])


def test_real_labels(lake: Lake, test_data: Path) -> None:
    plan_sources(lake, str(test_data))
    with (test_data / "labels.csv").open(encoding="utf-8") as file:
        expected = {row["path"]: row["identity"] for row in csv.DictReader(file) if row["identity"]}
    assert len(expected) > 3000
    spec = LabelSpec(str(test_data / "labels.csv"), "identity")
    found = claims(lake, test_data, spec)
    assert {path: label for path, ((label, _),) in found.items()} == expected
