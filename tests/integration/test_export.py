"""Training sets out of a cleaned crawl: every format holds the same faces; exports resume and are not mixed up."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import facescale
from facescale.errors import UsageError
from facescale.training import export as stage_module
from facescale.training.recordio import read_records, unpack

FORMATS = ("webdataset", "parquet", "folder", "recordio")


def exported(lake: str, out: Path, **settings: Any) -> dict[str, Any]:
    settings = {"workers": 0, "threads": 1, "min_faces": 1, **settings}
    assert facescale.export(lake, out, **settings).exit_code == 0
    return json.loads((out / "dataset.json").read_text())


def samples(out: Path, kind: str) -> dict[str, dict[int, tuple[int, bytes]]]:
    """Split → face_id → (class id, JPEG)."""
    found: dict[str, dict[int, tuple[int, bytes]]] = {"train": {}, "val": {}}
    if kind == "webdataset":
        for path in sorted(out.glob("*.tar")):
            with tarfile.open(path) as tar:
                files = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
            for name, data in files.items():
                if name.endswith(".jpg"):
                    stem = name.removesuffix(".jpg")
                    assert json.loads(files[f"{stem}.json"])["face_id"] == str(int(stem))
                    found[path.name.split("-")[0]][int(stem)] = (int(files[f"{stem}.cls"]), data)
    elif kind == "parquet":
        for path in sorted(out.glob("*-*.parquet")):
            for row in pq.read_table(path).to_pylist():
                found[path.name.split("-")[0]][row["face_id"]] = (row["class_id"], row["jpeg"])
    elif kind == "folder":
        for path in out.glob("*/*/*.jpg"):
            found[path.parts[-3]][int(path.stem)] = (int(path.parts[-2]), path.read_bytes())
    return found


@pytest.fixture
def lake(crawl: Path) -> str:
    return str(crawl / "crawl.lake")


def test_every_format_holds_the_same_chips(lake: str, tmp_path: Path) -> None:
    made = {kind: tmp_path / kind for kind in FORMATS}
    cards = {kind: exported(lake, out, format=kind, shard_faces=5) for kind, out in made.items()}
    tar = samples(made["webdataset"], "webdataset")
    assert tar == samples(made["parquet"], "parquet") == samples(made["folder"], "folder")
    opened = facescale.Lake.open(lake)
    decisions = opened.table("decisions", ["face_id", "label_out"], model="dlib_resnet").to_pylist()
    names = {
        row["label"]: row["class_id"] for row in pq.read_table(made["folder"] / "classes.parquet").to_pylist()
    }
    label_of = {row["face_id"]: row["label_out"] for row in decisions}
    assert sorted(names.values()) == list(range(len(names)))
    assert all(names[label_of[face]] == class_id for face, (class_id, _) in tar["train"].items())
    copies = set(opened.table("duplicates", ["image_id"])["image_id"].to_pylist())
    wanted = {face for face, label in label_of.items() if label is not None and face & ~0xFF not in copies}
    assert set(tar["train"]) == wanted
    chip = cv2.imdecode(np.frombuffer(next(iter(tar["train"].values()))[1], np.uint8), 1)
    assert chip.shape == (150, 150, 3)
    records = read_as_arcface_torch(made["recordio"])
    assert sorted(records) == sorted(tar["train"].values())
    for card in cards.values():
        assert card["faces"] == [len(wanted), 0]
        assert sum(card["left_out"].values()) + len(wanted) == len(opened.faces().face_id)
        assert [model["name"] for model in card["models"]] == ["dlib_mmod", "dlib_5pt", "dlib_resnet"]


def read_as_arcface_torch(out: Path) -> list[tuple[int, bytes]]:
    """The samples as arcface_torch's MXFaceDataset addresses them: header at key 0, keys 1 to its first label."""
    data = (out / "train.rec").read_bytes()
    at = dict(read_records(data))
    index = {
        int(key): int(offset)
        for key, offset in (line.split("\t") for line in (out / "train.idx").read_text().splitlines())
    }
    assert sorted(index) == list(range(len(index))) and set(index.values()) == set(at)
    _, header, _ = unpack(at[index[0]])
    images = [unpack(at[index[key]]) for key in range(1, int(header[0]))]
    assert [key for key, _, _ in images] == list(range(1, len(images) + 1))
    classes = [int(labels[0]) for _, labels, _ in images]
    assert classes == sorted(classes)  # an identity is a range of keys
    for class_id, key in enumerate(range(int(header[0]), int(header[1]))):
        _, (start, stop), _ = unpack(at[index[key]])
        assert {classes[k - 1] for k in range(int(start), int(stop))} == {class_id}
    side = (out / "property").read_text().strip().split(",")
    assert side == [str(len(set(classes))), "150", "150"]
    return [(label, jpeg) for label, (_, _, jpeg) in zip(classes, images, strict=True)]


def test_an_interrupted_export_goes_on_and_is_the_same(
    lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facescale.driver.export._LEAST_FACES", 1)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    exported(lake, whole, shard_faces=3)
    real, left = stage_module.ExportStage.write_tar, [3]

    def failing(*given: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("the disk is gone")
        real(*given)

    monkeypatch.setitem(stage_module.WRITERS, "webdataset", failing)
    with pytest.raises(Exception, match="disk is gone"):
        facescale.export(lake, torn, workers=0, min_faces=1, shard_faces=3)
    assert not (torn / "dataset.json").exists() and list(torn.glob("*.tar"))
    monkeypatch.setitem(stage_module.WRITERS, "webdataset", real)
    exported(lake, torn, shard_faces=3)
    first = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert first == {path.name: path.read_bytes() for path in torn.iterdir()}
    assert len(list(whole.glob("*.tar"))) > 3
    exported(lake, torn, shard_faces=3)  # done: nothing is made again
    assert first == {path.name: path.read_bytes() for path in torn.iterdir()}


def test_a_folder_with_something_else_is_refused(lake: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"not empty \(it holds thesis.tex\)"):
        facescale.export(lake, tmp_path / "full", workers=0)
    exported(lake, tmp_path / "set")
    with pytest.raises(UsageError, match="another lake or other settings"):
        facescale.export(lake, tmp_path / "set", workers=0, min_faces=3)


def test_validation_identities_are_others(lake: str, tmp_path: Path) -> None:
    card = exported(lake, tmp_path / "set", format="parquet", val_share=0.5, seed=3)
    rows = pq.read_table(tmp_path / "set" / "classes.parquet").to_pylist()
    sides = {row["split"]: {r["label"] for r in rows if r["split"] == row["split"]} for row in rows}
    assert set(sides) == {"train", "val"} and sides["train"].isdisjoint(sides["val"])
    for split, faces in zip(("train", "val"), card["faces"], strict=True):
        table = pa.concat_tables(
            pq.read_table(path) for path in (tmp_path / "set").glob(f"{split}-*.parquet")
        )
        assert len(table) == faces and set(table["label"].to_pylist()) == sides[split]


def test_class_ids_of_an_earlier_export_stay(lake: str, tmp_path: Path) -> None:
    exported(lake, tmp_path / "first", val_share=0.5, seed=3)
    earlier = tmp_path / "first" / "classes.parquet"
    exported(lake, tmp_path / "second", names="claims", val_share=0.9, seed=8, classes=earlier)
    key = ["label", "class_id", "split"]
    first, second = (
        pq.read_table(path, columns=key).to_pylist()
        for path in (earlier, tmp_path / "second/classes.parquet")
    )
    assert {tuple(row.values()) for row in first} <= {tuple(row.values()) for row in second}
    with pytest.raises(UsageError, match="no such file"):
        facescale.export(lake, tmp_path / "x", workers=0, classes=tmp_path / "none.parquet")


def test_names_come_from_clusters_and_claims(lake: str, tmp_path: Path) -> None:
    exported(lake, tmp_path / "clusters", format="parquet", names="clusters")
    clusters = facescale.Lake.open(lake).table("clusters", ["face_id", "cluster_id"], model="dlib_resnet")
    cluster_of = dict(zip(*(column.to_pylist() for column in clusters.columns), strict=True))
    table = pa.concat_tables(pq.read_table(path) for path in (tmp_path / "clusters").glob("train-*.parquet"))
    assert all(str(cluster_of[row["face_id"]]) == row["label"] for row in table.to_pylist())
    card = exported(lake, tmp_path / "claims", names="claims")
    assert card["identities"][0] == 3


def test_what_is_missing_is_named(lake: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--names claims or clusters"):
        facescale.export(lake, tmp_path / "x", workers=0, embedder="other")
    with pytest.raises(UsageError, match=r"no face is left .*few_faces.*--min-faces"):
        facescale.export(lake, tmp_path / "y", workers=0, min_faces=1000)
    with pytest.raises(UsageError, match="template 'arcface' is not known"):
        facescale.export(lake, tmp_path / "z", workers=0, template="arcface")


def test_crops_may_go_out_as_they_are(lake: str, tmp_path: Path) -> None:
    exported(lake, tmp_path / "set", format="parquet", template="crop")
    table = pq.read_table(tmp_path / "set" / "train-000000.parquet")
    stored = facescale.Lake.open(lake).rows("crops", table["face_id"].to_numpy(), ["jpeg"])
    assert stored["jpeg"].to_pylist() == table["jpeg"].to_pylist()
    assert (
        max(cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape[0] for data in table["jpeg"].to_pylist())
        <= 256
    )
    assert io.BytesIO(table["jpeg"][0].as_py()).read(2) == b"\xff\xd8"
