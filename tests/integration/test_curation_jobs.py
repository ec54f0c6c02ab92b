"""The jobs dedup and neighbors on small lakes, in this process: what they read, write, keep, count and refuse."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from index_lakes import EMBEDDINGS, FACES, IMAGES, brute_force, make_lake, people, stored, write_parts

from facescale import pipeline
from facescale.config.job import JobConfig
from facescale.curate import calibration as calibrations
from facescale.curate.duplicates import representatives
from facescale.curate.neighbors import NeighborsInputs, NeighborsSettings, NeighborsStage
from facescale.driver import calibrate, dry_run, re_encoding
from facescale.driver.context import SilentReporter
from facescale.errors import InfrastructureError, UsageError
from facescale.lake.ids import image_id_of, make_face_id, make_image_id
from facescale.lake.lake import Lake
from facescale.lake.parts import PartKey, TableVersion, commit_part
from facescale.lake.scan import scan
from facescale.lake.stage import Guard
from facescale.lake.verify import verify

pytest.importorskip("faiss")
MODEL = "dlib_resnet"  # calibrated, with 128 numbers
VECTORS = TableVersion("embeddings", EMBEDDINGS.fingerprint, MODEL)
COUNT, PER_IMAGE, PART = 240, 2, 32


def config(lake: Lake, **sections: Any) -> JobConfig:
    return JobConfig.model_validate({"lake": lake.uri, "engine": {"workers": 0}, **sections})


def run(job: str, lake: Lake, **sections: Any) -> Any:
    """The one stage of a job."""
    (stage,) = pipeline.run_job(job, config(lake, **sections)).stages
    return stage


def read(lake: Lake, table: str, model: str = "-") -> pa.Table:
    version = lake.current(table, model)
    assert version is not None
    return pa.concat_tables(list(scan(lake, version)))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """120 images of two faces each; 4 files are the same, 3 others nearly, and 2 have no detail."""
    lake, _ = make_lake(
        tmp_path / "lake", people(COUNT, 128, spread=0.1), faces_per_image=PER_IMAGE, part_rows=PART
    )
    lake.write_version(VECTORS, stage="embed", settings={}, revision=1, inputs={"faces": FACES.fingerprint})
    write_parts(
        lake, people(COUNT, 128, spread=0.1), faces_per_image=PER_IMAGE, part_rows=PART, embeddings=VECTORS
    )
    _hash(lake, range(COUNT // PER_IMAGE))
    return lake


def _hash(lake: Lake, rows: range) -> None:
    """Write the parts of images once more, with hashes; those of rows 3, 40, 90 and 91 are the same files."""
    rng = np.random.default_rng(0)
    digest = {row: rng.bytes(32) for row in rows}
    look = {row: rng.bytes(32) for row in rows}
    for row in (40, 90, 91):
        digest[row], look[row] = digest[3], look[3]
    for row in (50, 60):
        look[row] = bytes([look[49][0] ^ 0b111]) + look[49][1:]
    look[70] = look[71] = bytes(32)  # black, both
    version = lake.current("images")
    assert version is not None
    for first in range(0, len(rows), PART):
        part = PartKey(0, first, min(PART, len(rows) - first))
        mine = rows[first : first + part.num_rows]
        table = lake.store.read_table(version.part_path(part)).select(
            ["image_id", "uri", "status", "num_faces"]
        )
        columns = {
            "width": pa.array([200 if row == 60 else 100 for row in mine], pa.int32()),
            "height": pa.array([100] * len(mine), pa.int32()),
            "bytes": pa.array([1000] * len(mine), pa.int64()),
            "sha256": pa.array([digest[row] for row in mine], pa.binary(32)),
            "pdq": pa.array([look[row] for row in mine], pa.binary(32)),
            "pdq_quality": pa.array([0 if row in (70, 71) else 100 for row in mine], pa.int16()),
        }
        for name, column in columns.items():
            table = table.append_column(name, column)
        faces, vectors = (lake.store.read_table(v.part_path(part)) for v in (FACES, VECTORS))
        commit_part(lake.store, part, [(FACES, faces), (VECTORS, vectors), (IMAGES, table)])


def problems(lake: Lake) -> list[str]:
    """What `lake verify` says of the tables of curation; these lakes have no plan."""
    tables = ("duplicates/", "neighbors/")
    return [problem.what for problem in verify(lake).problems if problem.path.startswith(tables)]


def face_ids() -> np.ndarray:
    rows = np.arange(COUNT)
    return make_face_id(make_image_id(0, rows // PER_IMAGE), rows % PER_IMAGE + 1)


def test_dedup(lake: Lake) -> None:
    summary = run("dedup", lake)
    assert summary.counters == {"copies": 5, "exact": 3, "groups": 2, "near": 2, "turned": 0}
    assert (summary.parts_run, summary.parts_kept) == (4, 0)
    rows = {row["image_id"] >> 8: row for row in read(lake, "duplicates").to_pylist()}
    same = {3, 40, 90, 91}
    (kept,) = same - rows.keys()
    assert {row for row in rows if row in same} == same - {kept}
    for row in same - {kept}:
        found = rows[row]
        assert (found["kind"], found["distance"]) == ("exact", 0)
        assert (found["representative"], found["group_id"]) == (kept << 8, 3 << 8)
    assert {row for row in rows if row not in same} == {49, 50}  # 60 has the most pixels
    assert [rows[row]["distance"] for row in (49, 50)] == [3, 0]
    assert all(rows[row]["representative"] == 60 << 8 and rows[row]["kind"] == "near" for row in (49, 50))
    copies, keepers = representatives(lake)
    assert copies.tolist() == sorted(row << 8 for row in rows)
    assert not set(copies) & set(keepers)
    assert problems(lake) == []
    assert verify(lake).checked["copies"] == 5

    again = run("dedup", lake)
    assert (again.parts_run, again.parts_kept, again.counters) == (0, 4, summary.counters)
    run("dedup", lake, dedup={"max_distance": 2})
    assert len(read(lake, "duplicates")) == 4


def test_no_duplicates_are_known_before_dedup(lake: Lake) -> None:
    assert [ids.tolist() for ids in representatives(lake)] == [[], []]
    assert "no duplicates are known" in run("neighbors", lake).notes[0]


@pytest.mark.parametrize("memory_gib", [2.0, 1e-6])
def test_neighbors(lake: Lake, memory_gib: float) -> None:
    """Also when nothing fits the memory and the base is read for each part."""
    run("dedup", lake)
    summary = run("neighbors", lake, neighbors={"k": 9, "memory_gib": memory_gib})
    left_out = np.isin(image_id_of(face_ids()), representatives(lake)[0])
    ids, vectors = face_ids()[~left_out], stored(people(COUNT, 128, spread=0.1))[~left_out]
    table = read(lake, "neighbors", MODEL)
    assert table["face_id"].to_pylist() == ids.tolist()
    assert summary.counters["faces"] == len(ids) == COUNT - 10
    found = np.array(table["neighbor_ids"].to_pylist())
    expected = brute_force(vectors, ids, vectors, 10)
    np.testing.assert_array_equal(expected[:, 0], ids)
    np.testing.assert_array_equal(found, expected[:, 1:])
    floor = calibrations.load_calibration(MODEL).pairs.similarity_at(1e-3)
    saturated = [row[-1] > floor for row in table["similarities"].to_pylist()]
    assert table["saturated"].to_pylist() == saturated
    assert 0 < summary.counters["saturated"] == sum(saturated) < len(ids)
    assert summary.notes == []
    assert problems(lake) == []
    assert run("neighbors", lake, neighbors={"k": 9, "memory_gib": 1.0}).parts_run == 0


def test_faces_below_the_gate_are_in_nobodys_list(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    known = calibrations.load_calibration(MODEL)
    quality = np.linspace(0, 1, COUNT).astype(np.float32)
    for part in (PartKey(0, first, min(PART, 120 - first)) for first in range(0, 120, PART)):
        faces, vectors, images = (lake.store.read_table(v.part_path(part)) for v in (FACES, VECTORS, IMAGES))
        mine = quality[part.first_row * PER_IMAGE :][: len(faces)]
        column = pa.array(mine, mask=np.arange(len(mine)) == 0)  # one a part that nobody measured
        faces = faces.select([name for name in faces.column_names if name != "quality"])
        faces = faces.append_column("quality", column)
        commit_part(lake.store, part, [(FACES, faces), (VECTORS, vectors), (IMAGES, images)])
    gated = calibrations.Calibration(**{**vars(known), "min_quality": 0.5})
    monkeypatch.setattr("facescale.driver.neighbors.require_calibration", lambda embedder, lake: gated)
    summary = run("neighbors", lake, neighbors={"k": 200})
    table = read(lake, "neighbors", MODEL)
    assert summary.counters["faces"] == COUNT
    present = set(np.concatenate(table["neighbor_ids"].to_pylist()).astype(int).tolist())
    unmeasured = np.arange(COUNT) % (PART * PER_IMAGE) == 0
    assert present == set(face_ids()[(quality >= 0.5) | unmeasured].tolist())


def test_calibration_stores_the_quality_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantile of the qualities that are known; None where none is, as in a lake of an earlier release."""
    vectors, quality = people(200, 128, spread=0.1), np.linspace(0.2, 0.9, 200)
    quality[::7] = np.nan
    monkeypatch.setattr(re_encoding, "_re_encoded", lambda *arguments: np.ones(3))
    names = np.array([f"person {row // 10}" for row in range(200)], object)
    for measured in (quality, None):
        lake, ids = make_lake(tmp_path / f"lake{measured is None}", vectors)
        write_parts(lake, vectors, embeddings=VECTORS, quality=measured)
        lake.set_current([TableVersion("crops", "6" * 12)])
        monkeypatch.setattr(calibrate, "_labels", lambda *arguments, ids=ids: (image_id_of(ids), names))
        settings = calibrate.CalibrateSettings(embedder=MODEL, fold=None)
        result = calibrate.run_calibrate(lake.uri, settings, SilentReporter())
        stored_gate = calibrations.load_calibration(MODEL, lake).min_quality
        if measured is None:
            assert stored_gate is None is result.thresholds["min_quality"]
            assert result.evidence["min_quality"].startswith("none")
        else:
            known = np.float32(measured[~np.isnan(measured)])
            assert stored_gate == pytest.approx(np.quantile(known, 0.02), abs=1e-4)
            assert result.evidence["counts"]["faces_with_quality"] == len(known)


def test_a_part_that_kills_its_workers_is_not_given_up_silently(lake: Lake) -> None:
    inputs = NeighborsInputs(VECTORS, FACES, ((0, 0), (0, 32)), np.empty(0, np.int64))
    stage = NeighborsStage(
        NeighborsSettings(3, 0.9, None), inputs, lake.store, TableVersion("neighbors", "5" * 12, MODEL)
    )
    stage.open()
    part = PartKey(0, 32, 32)
    with pytest.raises(InfrastructureError, match=r"killed its workers .signal 9.; most likely memory"):
        stage.process(part, Guard(poison=frozenset({40}), reasons={40: "signal 9"}))
    noted: list[int] = []
    result = stage.process(part, Guard(note=noted.append))
    assert noted == [64] and result.counters["faces"] == 64


def test_new_images_make_both_stale(lake: Lake) -> None:
    run("dedup", lake)
    run("neighbors", lake)
    before = lake.current("neighbors", MODEL)
    write_parts(lake, people(8, 128, seed=1), shard=1, embeddings=VECTORS)
    with pytest.raises(
        UsageError, match="images have changed since its duplicates were found: run `facescale dedup"
    ):
        run("neighbors", lake)
    assert run("dedup", lake).parts_run == 5
    assert run("neighbors", lake).parts_run == 5
    assert lake.current("neighbors", MODEL) != before
    assert len(read(lake, "neighbors", MODEL)) == COUNT - 10 + 8
    lake.prune(dry_run=False)
    assert verify(lake).checked["copies"] == 5


def test_all_faces_identical_and_one_face(tmp_path: Path) -> None:
    for count in (1, 90):
        vectors = np.repeat(people(1, 128), count, axis=0)
        lake, ids = make_lake(tmp_path / str(count), vectors, part_rows=PART, faces_per_image=3)
        lake.write_version(
            VECTORS, stage="embed", settings={}, revision=1, inputs={"faces": FACES.fingerprint}
        )
        write_parts(lake, vectors, part_rows=PART, faces_per_image=3, embeddings=VECTORS)
        assert run("dedup", lake).counters["copies"] == 0
        run("neighbors", lake, neighbors={"k": 4})
        lists = read(lake, "neighbors", MODEL)["neighbor_ids"].to_pylist()
        expected = [[other for other in ids[:5].tolist() if other != own][:4] for own in ids.tolist()]
        assert lists == expected
        assert problems(lake) == []


@pytest.mark.parametrize("parts", [0, 1])
def test_a_lake_without_faces(tmp_path: Path, parts: int) -> None:
    lake = Lake.create(f"memory://{uuid.uuid4().hex}" if parts else str(tmp_path / "lake"))
    for version, stage in ((IMAGES, "extract"), (FACES, "extract"), (VECTORS, "embed")):
        lake.write_version(version, stage=stage, settings={}, revision=1, inputs={})
    lake.set_current([IMAGES, FACES, VECTORS])
    if parts:
        write_parts(lake, np.empty((0, 128), np.float32), embeddings=VECTORS)
    for job in ("dedup", "neighbors"):
        summary = run(job, lake)
        assert (summary.parts_run, summary.left_over) == (0, [])
    assert lake.current("duplicates") is not None and lake.current("neighbors", MODEL) is not None
    assert problems(lake) == []


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    bare = Lake.create(str(tmp_path / "bare"))
    with pytest.raises(UsageError, match="no finished images yet: run `facescale extract SRC"):
        run("dedup", bare)
    with pytest.raises(UsageError, match="no finished embeddings of 'dlib_resnet'"):
        run("neighbors", bare)
    with pytest.raises(UsageError, match=r"'toy' is not calibrated.*facescale calibrate"):
        run("neighbors", bare, neighbors={"embedder": "toy"})
    for job in ("dedup", "neighbors"):
        with pytest.raises(UsageError, match="has no finished"):
            dry_run.plan_job(job, config(bare))


def test_dry_run(lake: Lake) -> None:
    def planned(job: str) -> tuple[int, int]:
        (stage,) = pipeline.dry_run(job, config(lake)).stages
        return stage.parts, stage.parts_done

    assert planned("dedup") == planned("neighbors") == (4, 0)
    run("dedup", lake)
    run("neighbors", lake)
    assert planned("dedup") == planned("neighbors") == (0, 4)


def test_verify_finds_what_is_wrong(lake: Lake) -> None:
    run("dedup", lake)
    run("neighbors", lake, neighbors={"k": 3})
    first = PartKey(0, 32, 32)

    def spoil(table: str, model: str, **columns: Any) -> str:
        version = lake.current(table, model)
        assert version is not None
        rows = lake.store.read_table(version.part_path(first))
        wrong = rows
        for name, change in columns.items():
            at = wrong.schema.get_field_index(name)
            wrong = wrong.set_column(at, name, pa.array(change(rows[name].to_pylist()), rows[name].type))
        commit_part(lake.store, first, [(version, wrong)])
        what = " | ".join(problems(lake))
        commit_part(lake.store, first, [(version, rows)])
        assert problems(lake) == []
        return what

    copies = representatives(lake)[0]
    assert "1 representatives are copies themselves" in spoil(
        "duplicates", "-", representative=lambda ids: [int(copies[-1]), *ids[1:]]
    )
    assert "images of groups are not in `images`" in spoil(
        "duplicates", "-", representative=lambda ids: [999 << 8, *ids[1:]]
    )
    assert "group_id is not the smallest" in spoil(
        "duplicates", "-", group_id=lambda ids: [1 << 30, *ids[1:]]
    )
    assert "a near copy without a distance" in spoil(
        "duplicates", "-", distance=lambda bits: [None] * len(bits)
    )
    near = ("neighbors", MODEL)
    assert "descending similarity" in spoil(*near, similarities=lambda rows: [row[::-1] for row in rows])
    assert "appears twice" in spoil(*near, neighbor_ids=lambda rows: [[row[0]] * 3 for row in rows])
    assert "differ in length" in spoil(*near, neighbor_ids=lambda rows: [row[:2] for row in rows])
    assert "no cosine" in spoil(*near, similarities=lambda rows: [[2.0, 1.0, 0.5] for _ in rows])
    own = make_face_id(make_image_id(0, 33), 1)
    assert "its own neighbor" in spoil(*near, neighbor_ids=lambda rows: [[own, *row[1:]] for row in rows])
    assert "1 embedded faces have no row, 1 rows have no embedded face" in spoil(
        *near, face_id=lambda ids: [ids[0], ids[1] + 7, *ids[2:]]
    )
