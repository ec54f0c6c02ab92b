"""lake verify: a sound lake passes, and every kind of damage is named with its file and a remedy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from lake_samples import commit, new_uri, part_tables, sample_lake, vectors, write_plan

from facescale.lake.ids import make_image_id
from facescale.lake.parts import PartKey, TableVersion, commit_part
from facescale.lake.verify import verify


@pytest.fixture
def sample(tmp_path):
    return sample_lake(new_uri("memory", tmp_path))


@pytest.mark.parametrize("kind", ["local", "memory"])
@pytest.mark.parametrize("quick", [False, True])
def test_a_sound_lake(kind, quick, tmp_path):
    sample = sample_lake(new_uri(kind, tmp_path))
    report = verify(sample.lake, quick=quick)
    assert report.problems == []
    assert report.ok
    files = [size for path, size in sample.lake.store.list() if path.split("/")[0] in sample.versions]
    assert report.checked == {
        "versions": 4,
        "parts": 16,
        "rows": sum(sample.expected(table).num_rows for table in sample.versions),
        "bytes": sum(files)
        - sum(sample.lake.store.size(f"{v.folder}/_version.json") for v in sample.versions.values()),
        "parts_to_do": 0,
    }


def test_unfinished_work_is_no_problem(sample):
    sample.lake.store.delete(sample.path("images", 1))
    write_plan(sample.lake, 5, [1] * 100)
    write_plan(sample.lake, 6, [1] * 10)
    write_plan(
        sample.lake, 7, [0] * 10, format=["gone"] * 10, supersedes=make_image_id(6, np.arange(10)).tolist()
    )
    report = verify(sample.lake)
    assert report.ok
    assert report.checked["parts_unfinished"] == 3
    # The deleted part, two of shard 5, one of shard 6 (planned members become rows even when they have vanished).
    assert report.checked["parts_to_do"] == 4


def rewrite(sample, table, change, part=0):
    """Commit a part anew with one table changed, so that only the rules of that table are broken."""
    tables = part_tables(sample.parts[part])
    tables[table] = change(tables[table])
    key = sample.parts[part]
    order = ("faces", "crops", "embeddings", "images")
    commit_part(sample.lake.store, key, [(sample.versions[t], tables[t]) for t in order])


def set_column(name, change):
    def apply(table):
        index = table.column_names.index(name)
        values = table.column(name).to_numpy(zero_copy_only=False).copy()
        return table.set_column(index, name, pa.array(change(values), table.schema.field(name).type))

    return apply


def set_vectors(name, change):
    def apply(table):
        width = table.schema.field(name).type.list_size
        values = table.column(name).combine_chunks().flatten().to_numpy().reshape(-1, width).copy()
        return table.set_column(table.column_names.index(name), name, vectors(change(values)))

    return apply


def add_column(name, at, value):
    """A column of sound values and nulls but for one."""

    def apply(table):
        values = np.full(table.num_rows, 0.5, np.float32)
        values[at] = value
        return table.append_column(name, pa.array(values, mask=np.arange(len(values)) == at + 1))

    return apply


def put(at, value):
    def change(values):
        values[at] = value
        return values

    return change


@pytest.mark.parametrize(
    ("table", "change", "says"),
    [
        ("images", set_column("status", put(1, "fine")), "unknown status"),
        ("images", set_column("status", put(1, "corrupt")), "faces of an image that is neither ok nor"),
        ("images", set_column("num_faces", put(1, -1)), "num_faces is not 0..255"),
        ("images", set_column("num_faces", put(1, 2)), "faces that `images` counts are missing"),
        ("images", set_column("status", put(2, "too_many_faces")), "too_many_faces without 255 faces"),
        ("images", set_column("sha256", put(1, None)), "sha256 of a decoded image is missing"),
        ("faces", set_vectors("box", put(3, np.nan)), "box is not finite"),
        ("faces", set_vectors("box", put(3, 5.0)), "box has no area"),
        ("faces", set_column("det_score", put(4, np.inf)), "det_score is not finite"),
        ("faces", set_column("det_score", put(2, 9.0)), "not ordered by descending det_score"),
        ("faces", set_column("landmarks", put(3, np.zeros(8))), "landmarks are not x, y pairs, as many as"),
        ("faces", set_column("landmarks", put(3, np.full(10, np.nan))), "landmarks are not finite"),
        ("faces", lambda table: table.slice(1), "1 faces that `images` counts are missing"),
        ("faces", add_column("quality", 3, 1.01), r"quality is not 0\.\.1"),
        ("faces", add_column("sharpness", 3, -0.1), r"sharpness is not 0\.\.1"),
        ("faces", add_column("pitch_deg", 0, np.inf), r"pitch_deg is not -90\.\.90"),
        ("faces", add_column("truncation", 1, np.nan), r"truncation is not 0\.\.1"),
        ("crops", set_column("jpeg", put(0, b"<html>")), "jpeg does not begin and end as JPEG does"),
        ("crops", set_column("width", put(0, 300)), r"width is not 1\.\.256 px"),
        ("crops", set_vectors("matrix", put((0, 0), -1.0)), "matrix mirrors or flattens"),
        ("crops", set_vectors("matrix", put((0, 2), np.inf)), "matrix is not finite"),
        (
            "embeddings",
            set_vectors("embedding", put((5, 0), np.float16(2))),
            "embedding is not of unit length",
        ),
        (
            "embeddings",
            set_vectors("embedding", put((5, 0), np.float16(np.nan))),
            "embedding is not of unit length",
        ),
        ("embeddings", set_column("norm", put(0, 0.0)), "norm is not positive"),
    ],
)
def test_broken_rules_are_named(sample, table, change, says):
    rewrite(sample, table, change)
    report = verify(sample.lake)
    named = [problem for problem in report.problems if problem.path == sample.path(table)]
    if table == "images" and "counts are missing" in says:
        named = report.problems
    assert [problem for problem in named if says.replace("\\", "") in problem.what], report.problems
    for problem in report.problems:
        assert problem.remedy.startswith("delete it")
        assert problem.path in str(problem)


def damage_flip(store, path):
    data = bytearray(store.read_bytes(path))
    at = data.index(b"\xff\xd8") + 100
    data[at] ^= 1
    store.write_bytes(path, bytes(data))


def damage_cut(store, path):
    store.write_bytes(path, store.read_bytes(path)[:-5])


def damage_delete(store, path):
    store.delete(path)


@pytest.mark.parametrize(
    ("table", "damage", "says"),
    [
        ("crops", damage_flip, "is damaged"),
        ("crops", damage_cut, "is damaged"),
        ("images", damage_cut, "is damaged"),
        ("faces", damage_delete, "is missing, though its part is done"),
        (
            "embeddings",
            lambda s, p: s.write_table(p, s.read_table(p).slice(1)),
            "rows, and its `images` file",
        ),
        (
            "embeddings",
            lambda s, p: s.write_table(p, s.read_table(p), footer={"a": "b" * 99}),
            "bytes, and its",
        ),
        (
            "faces",
            lambda s, p: s.write_table(p, s.read_table(p).replace_schema_metadata({"facescale.table": "x"})),
            "its footer says that it belongs to the table 'x'",
        ),
        ("faces", lambda s, p: s.write_table(p, s.read_table(p).drop(["box"])), "'box' is missing"),
    ],
)
def test_damage_names_the_file_and_a_remedy_that_works(sample, table, damage, says):
    path = sample.path(table, 1)
    damage(sample.lake.store, path)
    report = verify(sample.lake)
    assert not report.ok
    problems = [problem for problem in report.problems if problem.path == path]
    assert any(says in problem.what for problem in problems), report.problems
    remedy = problems[0].remedy
    assert remedy.startswith("delete ")
    if table != "images":
        assert sample.path("images", 1) in remedy
    # Do what it says.
    for file in {path, sample.path("images", 1)}:
        if sample.lake.store.exists(file):
            sample.lake.store.delete(file)
    commit(sample.lake, sample.parts[1], sample.versions)
    assert verify(sample.lake).ok


def test_quick_reads_no_pixels(sample):
    damage_flip(sample.lake.store, sample.path("crops"))
    assert verify(sample.lake, quick=True).ok
    assert not verify(sample.lake).ok


def test_rows_that_the_plan_does_not_have(sample):
    commit(sample.lake, PartKey(9, 0, 30), sample.versions)
    commit(sample.lake, PartKey(2, 0, 39), sample.versions)
    what = {problem.path: problem.what for problem in verify(sample.lake).problems}
    images = sample.versions["images"]
    assert what[images.part_path(PartKey(9, 0, 30))] == "the plan (sources) has no such part"
    assert what[images.part_path(PartKey(2, 0, 39))].startswith("39 rows for 40 planned members")


def test_versions_are_checked(sample):
    store, faces = sample.lake.store, sample.versions["faces"]
    store.delete(f"{faces.folder}/_version.json")
    store.write_bytes(f"{sample.versions['crops'].folder}/_version.json", b"{")
    store.write_bytes(f"{sample.versions['images'].folder}/_version.json", b'{"table": "faces"}')
    store.write_bytes(f"{faces.folder}/copy/of.parquet", b"")
    sample.lake.set_current([TableVersion("labels", "0" * 12)])
    what = {problem.path: problem.what for problem in verify(sample.lake).problems}
    assert what == {
        f"{faces.folder}/_version.json": "is missing, so nothing says what made this version",
        f"{sample.versions['crops'].folder}/_version.json": "cannot be read",
        f"{sample.versions['images'].folder}/_version.json": "describes another version",
        f"{faces.folder}/copy/of.parquet": "is no part of this table, but readers of the folder take it in",
        "labels/000000000000": "lake.yaml names this version as current, and it is not there",
    }


def test_a_later_jobs_embeddings(sample):
    later = TableVersion("embeddings", "e" * 12, "other")
    inputs = {"faces": sample.versions["faces"].fingerprint}
    sample.lake.write_version(later, stage="embed", settings={}, revision=1, inputs=inputs)
    full, given_up = (part_tables(part)["embeddings"] for part in sample.parts[:2])
    commit_part(sample.lake.store, sample.parts[0], [(later, full)])
    poison = [(later, given_up.slice(2))]
    commit_part(
        sample.lake.store, sample.parts[1], poison, counters={"faces": given_up.num_rows - 2, "poison": 2}
    )
    assert verify(sample.lake).ok
    commit_part(sample.lake.store, sample.parts[1], poison, counters={"faces": given_up.num_rows - 2})
    (problem,) = verify(sample.lake).problems
    assert problem.what.startswith("2 faces that `images` counts are missing")
    assert problem.remedy == "delete it and rerun the command that made it"


def test_labels(sample):
    version = TableVersion("labels", "0" * 12)
    sample.lake.write_version(version, stage="labels", settings={}, revision=1, inputs={})
    ids = make_image_id(0, np.array([1, 1, 2]))
    labels = pa.table({"image_id": ids, "label": ["a", "b", "c"], "origin": ["folder"] * 3})
    commit_part(sample.lake.store, sample.parts[0], [(version, labels)])
    assert verify(sample.lake).ok
    empty = labels.set_column(1, "label", pa.array(["a", "", "c"]))
    commit_part(sample.lake.store, sample.parts[0], [(version, empty)])
    assert [problem.what for problem in verify(sample.lake).problems] == [
        f"empty label (1 rows, the first has id {ids[1]})"
    ]


def test_pruned_siblings_are_no_problem(sample):
    sample.lake.store.delete_tree(sample.versions["embeddings"].folder)
    other = TableVersion("embeddings", "e" * 12, "other")
    sample.lake.store.write_bytes(
        "lake.yaml",
        sample.lake.store.read_bytes("lake.yaml").replace(
            sample.versions["embeddings"].folder.encode(), other.folder.encode()
        ),
    )
    report = verify(sample.lake)
    assert [problem.path for problem in report.problems] == [sample.versions["embeddings"].folder]
