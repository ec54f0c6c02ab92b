"""The job cluster on small lakes, in this process: what it reads, writes, keeps, counts and refuses."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cluster_lakes import MODEL, PART, PER_IMAGE, VECTORS, calibrated, config, new_lake, read, run
from clustered_people import partition, simulate
from index_lakes import FACES, IMAGES, write_parts

from facescale import pipeline
from facescale.curate.calibration import calibration_path
from facescale.driver import cluster as driver
from facescale.errors import MismatchError, UsageError
from facescale.evaluate.clusters import score_clusters
from facescale.lake.ids import image_id_of, make_face_id, make_image_id
from facescale.lake.lake import Lake
from facescale.lake.parts import PartKey, TableVersion, commit_part
from facescale.lake.verify import verify

pytest.importorskip("faiss")
DUPLICATES = TableVersion("duplicates", "6" * 12)
PEOPLE = 24
COPIES = {70: 3, 71: 3, 90: 14}  # image rows: copy → what it is a copy of


def crowd() -> tuple[np.ndarray, np.ndarray]:
    """Faces of 24 people, two on an image; (unit, who). Copies hold the faces of the original, saved again."""
    unit, who = simulate([8] * PEOPLE, seed=20)
    order = np.random.default_rng(0).permutation(len(who))
    unit, who = unit[order], who[order]
    rng = np.random.default_rng(1)
    for copy, original in COPIES.items():
        for face in range(PER_IMAGE):
            noise = 0.02 * rng.standard_normal(unit.shape[1]) / np.sqrt(unit.shape[1])
            at, of = copy * PER_IMAGE + face, original * PER_IMAGE + PER_IMAGE - 1 - face
            unit[at], who[at] = unit[of] + noise, who[of]
            unit[at] /= np.linalg.norm(unit[at])
    return unit, who


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """96 images of two faces each, three of which copy others with the faces in the other order; with neighbors."""
    lake = new_lake(tmp_path / "lake", crowd()[0])
    settings = driver.input_digest(lake, driver.list_done(lake.store, IMAGES))
    lake.write_version(
        DUPLICATES, stage="dedup", settings=settings, revision=1, inputs={"images": IMAGES.fingerprint}
    )
    for first in range(0, 96, PART):
        rows = [row for row in sorted(COPIES) if first <= row < first + PART]
        table = pa.table(
            {
                "image_id": pa.array([row << 8 for row in rows], pa.int64()),
                "group_id": pa.array([COPIES[row] << 8 for row in rows], pa.int64()),
                "kind": pa.array(["near"] * len(rows), pa.string()),
                "distance": pa.array([3] * len(rows), pa.int16()),
                "representative": pa.array([COPIES[row] << 8 for row in rows], pa.int64()),
            }
        )
        commit_part(lake.store, PartKey(0, first, PART), [(DUPLICATES, table)])
    lake.set_current([DUPLICATES])
    run("neighbors", lake)
    return lake


def problems(lake: Lake) -> list[str]:
    """What `lake verify` says of clusters; these lakes have no plan."""
    return [problem.what for problem in verify(lake).problems if problem.path.startswith("clusters/")]


def test_cluster(lake: Lake) -> None:
    summary = run("cluster", lake)
    assert (summary.parts_run, summary.parts_kept, summary.notes) == (6, 0, [])
    table, (_, who) = read(lake), crowd()
    ids, clusters = table["face_id"].to_numpy(), table["cluster_id"].to_numpy()
    rows = np.arange(len(who))
    np.testing.assert_array_equal(
        ids, make_face_id(make_image_id(0, rows // PER_IMAGE), rows % PER_IMAGE + 1)
    )
    scores = score_clusters(who, clusters)
    assert scores.bcubed_f > 0.97 and scores.pairwise_f > 0.97
    smallest = pa.table({"cluster": clusters, "face": ids}).group_by("cluster").aggregate([("face", "min")])
    assert smallest["face_min"].equals(smallest["cluster"])
    for copy, original in COPIES.items():
        mine, theirs = (clusters[row * PER_IMAGE : (row + 1) * PER_IMAGE] for row in (copy, original))
        assert mine.tolist() == theirs.tolist()[::-1]
    assert len(np.unique(np.column_stack([image_id_of(ids), clusters]), axis=0)) == len(ids)
    sizes = np.unique(clusters, return_counts=True)[1]
    counters = summary.counters
    assert counters["faces"] == len(ids) and counters["clusters"] == len(sizes)
    assert counters["singletons"] == (sizes == 1).sum()
    assert counters["unassigned"] == counters["no_counterpart"] == counters["attached"] == 0
    assert problems(lake) == []

    again = run("cluster", lake)
    assert (again.parts_run, again.parts_kept, again.counters) == (0, 6, counters)


def test_copies_do_not_count_as_evidence(lake: Lake) -> None:
    """Where nobody looked for copies, a copy's faces are faces like others."""
    run("cluster", lake)
    with_copies_left_out = partition(read(lake)["cluster_id"].to_numpy())
    copies = {row * PER_IMAGE + face for row in COPIES for face in range(PER_IMAGE)}
    unit, _ = crowd()
    kept = np.array([row for row in range(len(unit)) if row not in copies])
    bare = new_lake(Path(lake.uri).parent / "bare", unit[kept])
    run("neighbors", bare)
    assert "no duplicates are known" in run("cluster", bare).notes[0]
    alone = {frozenset(kept[list(rows)].tolist()) for rows in partition(read(bare)["cluster_id"].to_numpy())}
    assert {rows - copies for rows in with_copies_left_out} == alone


def test_other_settings_make_another_version_and_leave_the_old_one(lake: Lake) -> None:
    run("cluster", lake)
    before = lake.current("clusters", MODEL)
    strict = run(
        "cluster", lake, cluster={"merge_ratio": 0.01, "merge_ratio_large": 0.01, "link_ratio": 0.01}
    )
    assert strict.parts_run == 6 and lake.current("clusters", MODEL) != before
    assert strict.counters["clusters"] > PEOPLE
    capped = run("cluster", lake, cluster={"max_size": 3})
    assert capped.counters["largest_cluster"] <= 3 < capped.counters["merges_prevented"]
    assert "no cluster grows beyond 3 faces" in capped.notes[0]
    assert run("cluster", lake).parts_kept == 6 and lake.current("clusters", MODEL) == before
    assert problems(lake) == []


def test_a_job_that_fails_goes_on_where_it_was(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    run("cluster", lake)
    expected, version = read(lake), lake.current("clusters", MODEL)
    assert version is not None
    for path, _ in list(lake.store.list(version.folder)):
        if path.endswith(".parquet"):
            lake.store.delete(path)
    commit, seen = driver.commit_part, []

    def fail_at_the_fourth(*arguments: Any, **options: Any) -> Any:
        seen.append(arguments[1])
        if len(seen) == 4:
            raise OSError("no space left")
        return commit(*arguments, **options)

    monkeypatch.setattr(driver, "commit_part", fail_at_the_fourth)
    with pytest.raises(OSError, match="no space"):
        run("cluster", lake)
    summary = run("cluster", lake)
    assert (summary.parts_run, summary.parts_kept) == (3, 3)
    assert read(lake).equals(expected)
    assert problems(lake) == []


def test_what_changed_since_neighbors_is_said(lake: Lake) -> None:
    write_parts(lake, simulate([4], seed=1)[0], shard=1, embeddings=VECTORS)
    with pytest.raises(
        UsageError, match=r"have changed since its neighbors were found: run `facescale neighbors"
    ):
        run("cluster", lake)


def test_another_gate_than_that_of_the_neighbors_is_refused(lake: Lake) -> None:
    calibrated(lake, min_quality=0.3)
    with pytest.raises(UsageError, match="the calibration have changed since its neighbors were found"):
        run("cluster", lake)


def test_faces_below_the_gate_are_attached_or_unassigned(lake: Lake) -> None:
    """Two faces of a person are blurred, one beyond recognition; nobody measured a third."""
    unit, who = crowd()
    mine = np.flatnonzero(who == 5)
    good = [row for row in mine if row // PER_IMAGE not in COPIES and row // PER_IMAGE not in COPIES.values()]
    slight, lost, unmeasured = good[:3]
    unit[lost] = simulate([1], seed=99)[0][0]
    quality = np.ones(len(unit))
    quality[[slight, lost]] = 0.1
    for first in range(0, 96, PART):
        part = PartKey(0, first, PART)
        faces, vectors, images = (lake.store.read_table(v.part_path(part)) for v in (FACES, VECTORS, IMAGES))
        rows = slice(first * PER_IMAGE, (first + PART) * PER_IMAGE)
        at = np.arange(rows.start, rows.stop)
        faces = faces.drop_columns([name for name in faces.column_names if name == "quality"])
        faces = faces.append_column("quality", pa.array(quality[rows], pa.float32(), mask=at == unmeasured))
        flat = pa.array(unit[rows].astype(np.float16).ravel())
        at_column = vectors.schema.get_field_index("embedding")
        column = pa.FixedSizeListArray.from_arrays(flat, unit.shape[1])
        vectors = vectors.set_column(at_column, vectors.schema.field(at_column), column)
        commit_part(lake.store, part, [(FACES, faces), (VECTORS, vectors), (IMAGES, images)])
    settings = driver.input_digest(lake, driver.list_done(lake.store, IMAGES))
    lake.write_version(
        DUPLICATES, stage="dedup", settings=settings, revision=1, inputs={"images": IMAGES.fingerprint}
    )
    calibrated(lake, min_quality=0.5)
    run("neighbors", lake)
    summary = run("cluster", lake)
    table = read(lake)
    clusters = table["cluster_id"].to_pylist()
    assert clusters[lost] is None and table["confidence"][int(lost)].as_py() is None
    main = max(set(clusters), key=[clusters[row] for row in mine].count)
    assert clusters[slight] == clusters[unmeasured] == main
    assert summary.counters["unassigned"] == 1 and summary.counters["attached"] == 1
    assert problems(lake) == []


@pytest.mark.parametrize("parts", [0, 1])
def test_a_lake_without_faces(tmp_path: Path, parts: int) -> None:
    lake = new_lake(tmp_path / "lake", np.empty((0, 64), np.float32))
    if parts:
        write_parts(lake, np.empty((0, 64), np.float32), embeddings=VECTORS)
    run("neighbors", lake)
    summary = run("cluster", lake)
    assert (summary.parts_run, summary.counters) == (0, {})
    assert lake.current("clusters", MODEL) is not None
    assert problems(lake) == []


@pytest.mark.parametrize("count", [1, 90])
def test_one_face_and_all_faces_identical(tmp_path: Path, count: int) -> None:
    """Of 90 identical faces on 45 images, the two of an image cannot be one person."""
    lake = new_lake(tmp_path / "lake", np.repeat(simulate([1], seed=3)[0], count, axis=0))
    run("neighbors", lake, neighbors={"k": 50})
    summary = run("cluster", lake)
    clusters = read(lake)["cluster_id"].to_numpy()
    sizes = sorted(np.unique(clusters, return_counts=True)[1].tolist())
    assert sizes == ([1] if count == 1 else [45, 45])
    assert summary.counters["clusters"] == len(sizes)
    assert problems(lake) == []


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    lake = new_lake(tmp_path / "lake", simulate([4], seed=3)[0])
    for attempt in (lambda: run("cluster", lake), lambda: pipeline.dry_run("cluster", config(lake))):
        with pytest.raises(
            UsageError, match=r"has no finished neighbors of simulated yet: run `facescale neighbors"
        ):
            attempt()
    with pytest.raises(UsageError, match=r"no finished embeddings of 'dlib_resnet'"):
        run("cluster", lake, cluster={"embedder": "dlib_resnet"})
    with pytest.raises(UsageError, match=r"'toy' is not calibrated.*facescale calibrate"):
        run("cluster", lake, cluster={"embedder": "toy"})
    bare = Lake.create(f"memory://{uuid.uuid4().hex}")
    calibrated(bare)
    with pytest.raises(UsageError, match="no finished embeddings of 'simulated'"):
        run("cluster", bare)
    lake.store.write_bytes(calibration_path(MODEL), b"format_version: 99\n")
    with pytest.raises(MismatchError, match="format version 99"):
        run("cluster", lake)


def test_dry_run(lake: Lake) -> None:
    def planned() -> tuple[int, int]:
        (stage,) = pipeline.dry_run("cluster", config(lake)).stages
        return stage.parts, stage.parts_done

    assert planned() == (6, 0)
    run("cluster", lake)
    assert planned() == (0, 6)


def test_verify_finds_what_is_wrong(lake: Lake) -> None:
    run("cluster", lake)
    version, first = lake.current("clusters", MODEL), PartKey(0, 32, 16)
    assert version is not None

    def spoil(**columns: Any) -> str:
        rows = lake.store.read_table(version.part_path(first))
        wrong = rows
        for name, change in columns.items():
            at = wrong.schema.get_field_index(name)
            wrong = wrong.set_column(
                at, wrong.schema.field(at), pa.array(change(rows[name].to_pylist()), rows[name].type)
            )
        commit_part(lake.store, first, [(version, wrong)])
        what = " | ".join(problems(lake))
        commit_part(lake.store, first, [(version, rows)])
        assert problems(lake) == []
        return what

    own = make_face_id(make_image_id(0, 32), 1)
    assert "1 images have two faces in one cluster" in spoil(cluster_id=lambda ids: [1, 1, *ids[2:]])
    table = read(lake).slice(0, 32)
    follower = next(row["face_id"] for row in table.to_pylist() if row["face_id"] != row["cluster_id"])
    assert f"1 clusters are named by a face that is not in them, the first by {follower}" in spoil(
        cluster_id=lambda ids: [follower, *ids[1:]]
    )
    assert "cluster_id is not the smallest of its cluster" in spoil(
        cluster_id=lambda ids: [own + 256, *ids[1:]]
    )
    assert "is an image id where a face id belongs" in spoil(cluster_id=lambda ids: [256, *ids[1:]])
    assert "confidence is not 0..1" in spoil(confidence=lambda values: [1.5, *values[1:]])
    assert "a confidence without a cluster" in spoil(cluster_id=lambda ids: [None, *ids[1:]])
    assert "1 embedded faces have no row, 1 rows have no embedded face" in spoil(
        face_id=lambda ids: [ids[0], ids[1] + 7, *ids[2:]]
    )
