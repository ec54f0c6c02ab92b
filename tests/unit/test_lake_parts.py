"""Parts: commits that are done or not, whatever kills them, and the listing that says which."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from lake_samples import TABLES, commit, new_uri, part_tables, versions_of, write_plan

from facescale.errors import CorruptError, DataError
from facescale.lake.lake import Lake
from facescale.lake.parts import (
    DoneParts,
    PartKey,
    TableVersion,
    commit_part,
    list_done,
    read_counters,
    read_siblings,
)
from facescale.lake.storage_errors import DiskFullError

PART = PartKey(17, 64, 64)
VERSIONS = versions_of()


@pytest.fixture(params=["local", "memory"])
def lake(request, tmp_path):
    return Lake.create(new_uri(request.param, tmp_path))


def test_paths():
    assert PART.path == "0000017/0000000064.parquet"
    assert TableVersion("faces", "0123456789ab").part_path(PART) == (
        "faces/0123456789ab/0000017/0000000064.parquet"
    )
    assert (
        TableVersion("embeddings", "0123456789ab", "dlib-resnet").folder
        == "embeddings/dlib-resnet-0123456789ab"
    )
    assert sorted([PartKey(2, 0, 1), PartKey(1, 64, 9), PartKey(1, 0, 64)])[0] == PartKey(1, 0, 64)
    assert pickle.loads(pickle.dumps(PART)) == PART


@pytest.mark.parametrize("model", ["-", "dlib_resnet", "arcface-r100", "a.b+c"])
def test_version_folders_are_read_back(model):
    version = TableVersion("embeddings", "0123456789ab", model)
    assert TableVersion.from_folder(version.folder) == version
    assert pickle.loads(pickle.dumps(version)) == version


@pytest.mark.parametrize(
    "folder", ["faces", "faces/x", "faces/0123456789ab0", "_tmp/host-1-0123456789ab", ""]
)
def test_other_folders_are_no_versions(folder):
    assert TableVersion.from_folder(folder) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: TableVersion("faces", "xyz"),
        lambda: TableVersion("../faces", "0123456789ab"),
        lambda: TableVersion("faces", "0123456789ab", "a/b"),
        lambda: PartKey(-1, 0, 1),
        lambda: PartKey(2**23, 0, 1),
    ],
)
def test_impossible_names_are_refused(make):
    with pytest.raises(DataError):
        make()


def test_commit_writes_every_table_and_says_so_in_the_primary(lake):
    written = commit(lake, PART, VERSIONS)
    sizes = {version.folder: lake.store.size(version.part_path(PART)) for version in VERSIONS.values()}
    assert written == sizes
    footer = lake.store.read_footer(VERSIONS["images"].part_path(PART))
    faces = part_tables(PART)["faces"].num_rows
    assert read_siblings(footer, "") == {
        VERSIONS[t].folder: {"rows": faces, "bytes": sizes[VERSIONS[t].folder]} for t in TABLES[:-1]
    }
    assert read_counters(footer) == {"faces": faces, "images": 64}
    assert footer["facescale.table"] == "images"
    face_footer = lake.store.read_footer(VERSIONS["faces"].part_path(PART))
    assert face_footer["facescale.landmark_scheme"] == "five"
    assert read_siblings(face_footer, "") is None
    assert read_counters(face_footer) == {}


def test_unreadable_siblings_entry_is_corrupt():
    with pytest.raises(
        CorruptError, match=r"a/b\.parquet: the footer entry facescale\.siblings cannot be read"
    ):
        read_siblings({"facescale.siblings": '{"faces/x": 3}'}, "a/b.parquet")


def test_primary_moves_last_and_after_every_write(tmp_path, monkeypatch):
    lake = Lake.create(str(tmp_path / "lake"))
    moves, replace = [], os.replace

    def spy(source, target):
        staged = sorted(p for p in (tmp_path / "lake" / "_tmp").rglob("*") if p.is_file())
        moves.append((Path(target).relative_to(lake.uri).parts[0], len(staged)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    commit(lake, PART, VERSIONS)
    # Four files wait when the first moves: all were written before.
    assert moves == [("faces", 4), ("crops", 3), ("embeddings", 2), ("images", 1)]


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from facescale.lake.lake import Lake
from lake_samples import PartKey, commit, versions_of
victim, calls, real = {victim!r}, [], getattr(os, {victim!r})
def deadly(*args):
    calls.append(args)
    if len(calls) > {survived}:
        os._exit(9)
    return real(*args)
setattr(os, victim, deadly)
commit(Lake.open({uri!r}), PartKey(17, 64, 64), versions_of())
"""


@pytest.mark.parametrize(
    ("victim", "survived", "present"),
    [("replace", moves, moves) for moves in range(4)] + [("fsync", 2, 0), ("fsync", 5, 0)],
)
def test_killed_in_the_middle_is_not_done_and_a_rerun_mends_it(tmp_path, victim, survived, present):
    whole = Lake.create(str(tmp_path / "whole"))
    commit(whole, PART, VERSIONS)
    lake = Lake.create(str(tmp_path / "lake"))
    script = KILLED.format(tests=str(Path(__file__).parent), victim=victim, survived=survived, uri=lake.uri)
    died = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert died.returncode == 9, died.stderr
    assert PART not in list_done(lake.store, VERSIONS["images"])
    assert sum(lake.store.exists(v.part_path(PART)) for v in VERSIONS.values()) == present
    assert lake.store.clean_temporaries() == 1
    commit(lake, PART, VERSIONS)
    assert PART in list_done(lake.store, VERSIONS["images"])
    for version in VERSIONS.values():
        path = version.part_path(PART)
        assert lake.store.read_bytes(path) == whole.store.read_bytes(path)


def test_full_disk_leaves_no_final_file(tmp_path, monkeypatch):
    lake = Lake.create(str(tmp_path / "lake"))
    calls, fsync = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        # Two folders and two files are synced before the third file.
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="free space, then rerun the same command"):
        commit(lake, PART, VERSIONS)
    monkeypatch.undo()
    assert [path for path, _ in lake.store.list()] == ["lake.yaml"]
    assert not list((tmp_path / "lake" / "_tmp").iterdir())


def test_a_fault_while_putting_leaves_the_part_undone(monkeypatch):
    lake = Lake.create(new_uri("memory", Path()))
    kind = type(lake.store._backend.fs)
    put = kind.pipe_file
    paths = []

    def fail(fs, path, data, **kwargs):
        paths.append(path)
        if len(paths) == 3:
            raise ConnectionResetError("peer")
        put(fs, path, data, **kwargs)

    monkeypatch.setattr(kind, "pipe_file", fail)
    with pytest.raises(Exception, match="rerun the same command"):
        commit(lake, PART, VERSIONS)
    assert len(list_done(lake.store, VERSIONS["images"])) == 0
    commit(lake, PART, VERSIONS)
    assert PART in list_done(lake.store, VERSIONS["images"])


def changed(table: str, **columns: object) -> list[tuple[TableVersion, pa.Table]]:
    tables = part_tables(PART)
    for name, values in columns.items():
        index = tables[table].column_names.index(name)
        tables[table] = tables[table].set_column(index, name, pa.array(values))
    return [(VERSIONS[t], tables[t]) for t in TABLES]


IMAGE_IDS = part_tables(PART)["images"].column("image_id").to_numpy()
FACE_IDS = part_tables(PART)["faces"].column("face_id").to_numpy()


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        (changed("images", image_id=IMAGE_IDS[::-1].copy()), r"images/.*image_id is not sorted and unique"),
        (changed("images", image_id=IMAGE_IDS + (64 << 8)), r"images/.*image_id .* is outside the part"),
        (changed("faces", face_id=FACE_IDS - (64 << 8)), r"faces/.*face_id .* is outside the part"),
        (changed("crops", face_id=np.full_like(FACE_IDS, FACE_IDS[0])), r"crops/.*is not sorted and unique"),
        (changed("images", status=[None] * 64), "'status' has 64 nulls"),
        (
            [(VERSIONS["images"], part_tables(PART)["images"].slice(1))],
            "63 rows for a part of 64; every member has a row",
        ),
        ([], "no tables to commit"),
    ],
)
def test_wrong_tables_are_refused_before_anything_is_written(lake, tables, says):
    with pytest.raises(DataError, match=says):
        commit_part(lake.store, PART, tables)
    assert [path for path, _ in lake.store.list()] == ["lake.yaml"]


def test_labels_may_repeat_an_image(lake):
    version = TableVersion("labels", "0123456789ab")
    labels = pa.table(
        {
            "image_id": np.repeat(IMAGE_IDS[:3], 2),
            "label": ["a", "b"] * 3,
            "origin": ["folder", "file:who"] * 3,
        }
    )
    commit_part(lake.store, PART, [(version, labels)])
    assert lake.store.read_table(version.part_path(PART)).num_rows == 6
    footer = lake.store.read_footer(version.part_path(PART))
    assert (read_siblings(footer, ""), read_counters(footer)) == ({}, {})


def test_list_done_takes_parts_and_nothing_else(lake):
    version = VERSIONS["images"]
    lake.write_version(version, stage="extract", settings={}, revision=1, inputs={})
    for part in (PartKey(0, 0, 64), PartKey(0, 64, 64), PART):
        commit(lake, part, VERSIONS)
    for junk in ("0000000/0000000128.parquet.tmp", "0000000/12.parquet", "x/0000000000.parquet", "notes.txt"):
        lake.store.write_bytes(f"{version.folder}/{junk}", b"")
    done = list_done(lake.store, version)
    assert len(done) == 3
    assert list(done.pairs()) == [(0, 0), (0, 64), (17, 64)]
    assert PartKey(0, 64, 999) in done
    assert (17, 64) in done
    assert PartKey(17, 0, 64) not in done
    assert "x" not in done
    assert done.keys.nbytes == 8 * 3
    assert done.num_bytes == sum(
        lake.store.size(version.part_path(PartKey(*pair, 0))) for pair in done.pairs()
    )
    assert len(list_done(lake.store, TableVersion("images", "0" * 12))) == 0


def test_list_done_opens_no_part(tmp_path, monkeypatch):
    lake = Lake.create(str(tmp_path / "lake"))
    commit(lake, PART, VERSIONS)

    def refuse(*_args):
        raise AssertionError("a part was opened")

    monkeypatch.setattr(type(lake.store), "open_parquet", refuse)
    monkeypatch.setattr(type(lake.store), "read_bytes", refuse)
    assert PART in list_done(lake.store, VERSIONS["images"])


def test_parts_know_their_rows_from_the_plan(lake):
    write_plan(lake, 0, [1] * 100)
    for part in (PartKey(0, 0, 64), PartKey(0, 64, 36)):
        commit(lake, part, VERSIONS)
    assert list(list_done(lake.store, VERSIONS["faces"]).parts()) == [PartKey(0, 0, 64), PartKey(0, 64, 36)]


def test_parts_without_a_plan_know_their_rows_from_their_footers(lake):
    commit(lake, PartKey(3, 128, 20), VERSIONS)
    assert list(list_done(lake.store, VERSIONS["faces"]).parts()) == [PartKey(3, 128, 20)]


def test_covers():
    one, two = DoneParts(np.array([1, 5, 9])), DoneParts(np.array([5, 9]))
    assert one.covers(two)
    assert not two.covers(one)
    assert one.covers(DoneParts(np.empty(0, np.int64)))


def test_part_holding_a_row():
    done = DoneParts(np.array([(1 << 32) | 0, (1 << 32) | 64, (3 << 32) | 0]))
    assert done.part_holding(1, 63) == (1, 0)
    assert done.part_holding(1, 64) == (1, 64)
    assert done.part_holding(1, 10**6) == (1, 64)
    assert done.part_holding(2, 5) is None
    assert done.part_holding(0, 0) is None


def test_footers_hold_nothing_of_the_moment(lake):
    commit(lake, PART, VERSIONS)
    before = lake.store.read_bytes(VERSIONS["images"].part_path(PART))
    commit(lake, PART, VERSIONS)
    assert lake.store.read_bytes(VERSIONS["images"].part_path(PART)) == before
    assert json.loads(lake.store.read_footer(VERSIONS["images"].part_path(PART))["facescale.counters"])
