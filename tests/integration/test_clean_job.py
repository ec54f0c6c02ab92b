"""The job clean on small lakes, in this process: what it writes and keeps, when it decides anew, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cleaning_samples import calibration, simulate, unit
from index_lakes import FACES, IMAGES, LABELS, make_lake, write_parts

from facescale import pipeline
from facescale.bench.chosen import Models
from facescale.bench.cleaning import bench_cleaning
from facescale.config.job import JobConfig
from facescale.curate.calibration import Calibration, calibration_path, dump_calibration
from facescale.driver.context import SilentReporter
from facescale.errors import UsageError
from facescale.lake.ids import image_id_of, make_image_id
from facescale.lake.lake import Lake
from facescale.lake.parts import PartKey, TableVersion, commit_part
from facescale.lake.scan import scan
from facescale.lake.verify import verify

MODEL, PART = "simulated", 32
VECTORS = TableVersion("embeddings", "3" * 12, MODEL)


def build(folder: Path, vectors: np.ndarray, labels: list[str], **changes: Any) -> Lake:
    """One face an image; an image whose label is empty has none."""
    lake, _ = make_lake(folder, vectors, part_rows=PART)
    lake.write_version(VECTORS, stage="embed", settings={}, revision=1, inputs={"faces": FACES.fingerprint})
    write_parts(lake, vectors, part_rows=PART, embeddings=VECTORS)
    for first in range(0, len(labels), PART):
        part = PartKey(0, first, min(PART, len(labels) - first))
        mine = [(first + row, name) for row, name in enumerate(labels[first : first + PART]) if name]
        rows = {
            "image_id": pa.array([make_image_id(0, row) for row, _ in mine], pa.int64()),
            "label": pa.array([name for _, name in mine], pa.string()),
            "origin": pa.array(["file"] * len(mine), pa.string()),
        }
        commit_part(lake.store, part, [(LABELS, pa.table(rows))])
    known = Calibration(**{**vars(calibration(MODEL)), **changes})
    lake.store.write_bytes(calibration_path(MODEL), dump_calibration(known))
    return lake


def run(lake: Lake, job: str = "clean", **clean: Any) -> Any:
    sections = {"clean": {"embedder": MODEL, **clean}, "engine": {"workers": 0}}
    (stage,) = pipeline.run_job(job, JobConfig.model_validate({"lake": lake.uri, **sections})).stages
    return stage


def read(lake: Lake) -> pa.Table:
    version = lake.current("decisions", MODEL)
    assert version is not None
    return pa.concat_tables(list(scan(lake, version)))


def column(lake: Lake, name: str) -> np.ndarray:
    return np.array(read(lake)[name].to_pylist(), object)


def files(lake: Lake, *, but: str) -> dict[str, tuple[int, int, int]]:
    """Inode, time of the last change and size of all files outside a folder."""
    root = Path(lake.uri)
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_file() and not name.startswith(but) and name != "lake.yaml":
            status = path.stat()
            found[name] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found


@pytest.fixture
def people() -> tuple[np.ndarray, list[str]]:
    """15 people of 8 photographs; two photographs are under another's name, five without a label."""
    vectors, person = simulate(15, 8, seed=21)
    names = [f"person {number:02d}" for number in person]
    for row in (3, 70):
        names[row] = f"person {(person[row] + 1) % 15:02d}"
    for row in range(100, 105):
        names[row] = ""
    return vectors, names


def test_every_face_has_a_row(tmp_path: Path, people: tuple[np.ndarray, list[str]]) -> None:
    vectors, names = people
    lake = build(tmp_path / "lake", vectors, names)
    stage = run(lake)
    assert (stage.parts_run, stage.parts_kept) == (4, 0)
    table = read(lake)
    assert len(table) == len(names) == stage.counters["faces"]
    assert table["label_in"].to_pylist() == [name or None for name in names]
    _, person = simulate(15, 8, seed=21)
    for row in (3, 70):
        found = table.slice(row, 1).to_pylist()[0]
        assert (found["verdict"], found["reason"]) == ("relabel", "other_name")
        assert found["label_out"] == f"person {person[row]:02d}"
        assert found["score"] >= found["threshold"] > 0
        evidence = int(image_id_of(found["evidence_id"])) >> 8
        assert person[evidence] == person[row]
    assert stage.counters["verdict.keep"] == len(names) - 2
    assert stage.counters["reason.no_claim"] == 5
    assert [str(problem) for problem in verify(lake).problems if problem.path.startswith("decisions/")] == []


def test_a_threshold_recomputes_decisions_only(tmp_path: Path, people: tuple[np.ndarray, list[str]]) -> None:
    lake = build(tmp_path / "lake", *people)
    run(lake)
    before, first = files(lake, but="decisions/"), lake.current("decisions", MODEL)
    assert len(before) > 15
    old = files(lake, but="\0")
    assert run(lake).parts_run == 0
    assert files(lake, but="\0") == old  # nothing to do touches nothing
    again = run(lake, keep_fmr=0.1)
    assert again.parts_run == 4 and lake.current("decisions", MODEL) != first
    assert files(lake, but="decisions/") == before
    assert old.items() <= files(lake, but="\0").items()  # the version before is there, too
    assert run(lake, keep_fmr=0.1, cast_link_fmr=0.01).parts_run == 0  # a setting of the other method
    other = run(lake, method="cast")
    assert other.parts_run == 4 and files(lake, but="decisions/") == before
    assert set(column(lake, "reason")) <= {"majority", "minority", "no_claim"}
    assert run(lake, method="cast", keep_fmr=0.2).parts_run == 0
    assert run(lake, method="cast", preset="arcface").parts_run == 4
    assert run(lake).parts_run == 0 and lake.current("decisions", MODEL) == first


def test_a_resumed_job_writes_what_is_missing(tmp_path: Path, people: tuple[np.ndarray, list[str]]) -> None:
    lake = build(tmp_path / "lake", *people)
    run(lake)
    whole, version = read(lake), lake.current("decisions", MODEL)
    assert version is not None
    lake.store.delete(version.part_path(PartKey(0, PART, PART)))
    stage = run(lake)
    assert (stage.parts_run, stage.parts_kept) == (1, 3)
    assert read(lake).equals(whole)


@pytest.mark.parametrize("method", ["ownership", "cast"])
def test_a_wrong_photograph_planted_fifty_times_does_not_win(tmp_path: Path, method: str) -> None:
    """Files of the same bytes: dedup finds them, and clean gives them one vote."""
    pytest.importorskip("faiss")
    vectors, person = simulate(10, 6, seed=22)
    stranger = unit(np.random.default_rng(0).standard_normal((1, vectors.shape[1])))
    faces = np.concatenate([vectors, np.repeat(stranger, 50, axis=0)]).astype(np.float32)
    names = [f"person {number}" for number in [*person, *[0] * 50]]
    lake = build(tmp_path / "lake", faces, names)
    _hash(lake, len(vectors), len(faces))
    run(lake, method=method)
    assert (column(lake, "label_out")[len(vectors) :] == "person 0").all()  # fifty votes win
    assert run(lake, "dedup").counters["copies"] == 49
    assert run(lake, method=method).notes == []
    out = column(lake, "label_out")
    assert out[: len(vectors)].tolist() == names[: len(vectors)]
    assert set(column(lake, "verdict")[len(vectors) :]) == {"drop"}


def _hash(lake: Lake, first_copy: int, count: int) -> None:
    """Write images once more with hashes: all different, and from `first_copy` on the same file."""
    rng = np.random.default_rng(1)
    digest, look = [rng.bytes(32) for _ in range(count)], [rng.bytes(32) for _ in range(count)]
    for row in range(first_copy, count):
        digest[row], look[row] = digest[first_copy], look[first_copy]
    for first in range(0, count, PART):
        part = PartKey(0, first, min(PART, count - first))
        table = lake.store.read_table(IMAGES.part_path(part)).select(
            ["image_id", "uri", "status", "num_faces"]
        )
        mine = range(first, first + part.num_rows)
        columns = {
            "width": pa.array([100] * len(mine), pa.int32()),
            "height": pa.array([100] * len(mine), pa.int32()),
            "bytes": pa.array([1000] * len(mine), pa.int64()),
            "sha256": pa.array([digest[row] for row in mine], pa.binary(32)),
            "pdq": pa.array([look[row] for row in mine], pa.binary(32)),
            "pdq_quality": pa.array([100] * len(mine), pa.int16()),
        }
        for name, values in columns.items():
            table = table.append_column(name, values)
        others = [(version, lake.store.read_table(version.part_path(part))) for version in (FACES, VECTORS)]
        commit_part(lake.store, part, [*others, (IMAGES, table)])


@pytest.mark.parametrize("method", ["ownership", "cast"])
def test_no_faces_one_face_all_alike_no_labels(tmp_path: Path, method: str) -> None:
    one = simulate(1, 1, seed=0)[0]
    empty = build(tmp_path / "empty", one[:0], [])
    assert run(empty, method=method).parts_run == 0
    single = build(tmp_path / "single", one, ["somebody"])
    run(single, method=method)
    assert read(single).select(["verdict", "reason", "label_out"]).to_pylist() == [
        {"verdict": "keep", "reason": "single_photo", "label_out": "somebody"}
    ]
    same = np.repeat(one, 70, axis=0)
    alike = build(tmp_path / "alike", same, ["somebody"] * 70)
    run(alike, method=method)
    assert set(column(alike, "label_out")) == {"somebody"} and set(column(alike, "verdict")) == {"keep"}
    unsaid = build(tmp_path / "unsaid", same, [""] * 70)
    run(unsaid, method=method)
    assert set(column(unsaid, "reason")) == {"no_claim"} and set(column(unsaid, "label_out")) == {None}


def test_a_label_of_unrecognizable_faces_is_set_aside(
    tmp_path: Path, people: tuple[np.ndarray, list[str]]
) -> None:
    vectors, names = people
    lake = build(tmp_path / "lake", vectors, names, min_quality=0.5)
    poor = np.array([name == "person 04" for name in names])
    for first in range(0, len(names), PART):
        part = PartKey(0, first, min(PART, len(names) - first))
        others = [(version, lake.store.read_table(version.part_path(part))) for version in (VECTORS, IMAGES)]
        faces = lake.store.read_table(FACES.part_path(part))
        faces = faces.drop_columns([name for name in faces.column_names if name == "quality"])
        quality = np.where(poor[first : first + part.num_rows], 0.1, 0.9).astype(np.float32)
        faces = faces.append_column("quality", pa.array(quality))
        commit_part(lake.store, part, [(FACES, faces), *others])
    run(lake)
    reason = column(lake, "reason")
    assert set(reason[poor]) == {"low_quality"}
    assert set(column(lake, "verdict")[reason == "low_quality"]) == {"quarantine"}
    assert "low_quality" not in reason[~poor]


def test_what_is_missing_or_wrong_is_said(tmp_path: Path, people: tuple[np.ndarray, list[str]]) -> None:
    bare = Lake.create(str(tmp_path / "bare"))
    with pytest.raises(UsageError, match="has no finished images yet, which clean needs"):
        run(bare)
    lake = build(tmp_path / "lake", *people)
    with pytest.raises(UsageError, match=r"clean.preset arcface is for clean.method cast, not for ownership"):
        run(lake, preset="arcface")
    with pytest.raises(UsageError, match=r"cast_drop_fmr 1e-09 must be at least clean.cast_merge_fmr 1e-08"):
        run(lake, method="cast", cast_drop_fmr=1e-9)
    with pytest.raises(UsageError, match=r"'toy' is not calibrated|no finished embeddings"):
        run(lake, embedder="toy")


def test_the_benchmark(tmp_path: Path) -> None:
    """Simulated people: ownership reaches its goals, and beats the baselines where look-alikes came in."""
    vectors, person = simulate(60, 8, seed=23, alike=0.35)
    few, stranger = simulate(60, 3, seed=24)
    names = [f"person {number}" for number in person] + [f"stranger {number}" for number in stranger]
    lake = build(tmp_path / "lake", np.concatenate([vectors, few]), names)
    result = bench_cleaning(lake.uri, SilentReporter(), models=Models(embedder=MODEL), seeds=2)
    assert result.figures["photographs"] == {
        "with a label": 660,
        "with several": 0,
        "copies of others": 0,
        "without a face": 0,
        "used": 660,
        "identities": 120,
    }
    assert len(result.goals) == 24
    met = [goal.name for goal in result.goals if goal.met]
    assert len(met) >= 20, [goal for goal in result.goals if not goal.met]
    rows = {(row["noise"], row["method"]): row for row in result.figures["wrong faces found, %: everybody"]}
    assert len(rows) == 5 * 3 * 3
    ours, cast = rows["lookalike 30%", "ownership"], rows["lookalike 30%", "cast"]
    assert ours["recall"] > cast["recall"] and ours["precision"] > 90
    assert all(row["recall, worst"] <= row["recall"] for row in rows.values())
    left = result.figures["what is left: everybody"]
    assert {row["true lost"] for row in left if row["noise"] == "clean" and row["method"] == "ownership"} <= {
        0,
        0.1,
    }
    with pytest.raises(UsageError, match=r"has no labels.csv, and a lake needs no --lake"):
        bench_cleaning(
            lake.uri, SilentReporter(), lake=str(tmp_path / "other"), models=Models(embedder=MODEL)
        )
