"""The frozen plan: what is found, what is left alone, what changed, and two planners at once."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from unittest.mock import patch

import fsspec
import numpy as np
import pytest
from sources_samples import by_uri, plan_table, read_all, tar_bytes, write_files, write_parquet

from facescale.errors import UsageError
from facescale.lake.ids import make_image_id
from facescale.lake.lake import Lake
from facescale.sources import plan as plan_module
from facescale.sources import walk as walk_module
from facescale.sources.plan import (
    check_source,
    choose_part_rows,
    plan_sources,
    planned_parts,
    planned_rows,
)
from facescale.sources.walk import Tally, walk

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open_or_create(str(tmp_path / "lake"))


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    return folder


def listing(lake: Lake) -> dict[str, tuple[int, bytes]]:
    """Inode and content of each file of the plan: what must not change."""
    paths = [path for path, _ in lake.store.list("sources")]
    return {p: (os.stat(f"{lake.uri}/{p}").st_ino, lake.store.read_bytes(p)) for p in paths}


def test_a_folder_becomes_one_shard_in_byte_order(lake: Lake, src: Path) -> None:
    write_files(src, {"b/2.jpg": b"two", "a.jpg": b"a", "b/1.PNG": b"one", "b.jpg": b"b", "a-/x.webp": b"x"})
    report = plan_sources(lake, str(src))
    assert (report.new_members, report.new_parts, report.new_shards, report.new_bytes) == (5, 1, 1, 9)
    uris = plan_table(lake).column("uri").to_pylist()
    assert uris == sorted(uris, key=os.fsencode)
    assert by_uri(lake, src) == {
        "a-/x.webp": b"x",
        "a.jpg": b"a",
        "b.jpg": b"b",
        "b/1.PNG": b"one",
        "b/2.jpg": b"two",
    }
    assert planned_rows(lake) == 5


def test_running_again_writes_nothing(lake: Lake, src: Path) -> None:
    write_files(src, {f"{i}.jpg": b"x" for i in range(10)} | {"t.tar": tar_bytes([("m.jpg", b"m")])})
    plan_sources(lake, str(src))
    before = listing(lake)
    report = plan_sources(lake, str(src), accept_changes=True)
    assert listing(lake) == before
    assert (report.new_members, report.new_shards, report.known_members) == (0, 0, 11)
    assert (report.num_changed, report.num_vanished, report.remarks()) == (0, 0, [])


def test_new_files_get_new_shards_and_old_ones_keep_their_ids(lake: Lake, src: Path) -> None:
    write_files(src, {"m.jpg": b"m", "p.jpg": b"p"})
    plan_sources(lake, str(src))
    before = listing(lake)
    write_files(src, {"a.jpg": b"a", "z.jpg": b"z"})
    report = plan_sources(lake, str(src))
    assert (report.new_members, report.known_members, report.new_shards) == (2, 2, 1)
    after = listing(lake)
    assert {path: after[path] for path in before} == before
    assert {key: m.data for key, m in read_all(lake).items()} == {
        (0, 0): b"m",
        (0, 1): b"p",
        (1, 0): b"a",
        (1, 1): b"z",
    }


def test_another_root_that_overlaps_plans_nothing_twice(lake: Lake, src: Path) -> None:
    write_files(src, {"a/1.jpg": b"1", "b/2.jpg": b"2"})
    plan_sources(lake, str(src / "a"))
    report = plan_sources(lake, str(src))
    assert (report.new_members, report.known_members) == (1, 1)
    # Seen from a/ alone, b/ has not vanished: it was never planned under it.
    assert plan_sources(lake, str(src / "a")).num_vanished == 0


def test_what_is_not_input_is_counted(lake: Lake, src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(
        src,
        {
            "a.jpg": b"a",
            "notes.txt": b"",
            "list.CSV": b"",
            "README": b"",
            ".DS_Store": b"",
            "._a.jpg": b"",
            ".git/x.jpg": b"",
            "odd.\xe9\xe9": b"",
        },
    )
    os.symlink(src, src / "loop")
    os.symlink(src / "nowhere.jpg", src / "broken.jpg")
    os.mkfifo(src / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(src)  # socket names are short
        server.bind("socket.jpg")
        report = plan_sources(lake, str(src))
    assert report.new_members == 1
    assert report.ignored == {
        ".txt": 1,
        ".csv": 1,
        "(no extension)": 2,
        "(hidden)": 3,
        "(linked folder)": 1,
        "(broken link)": 1,
        "(special file)": 2,
    }
    assert "3 (hidden)" in report.remarks()[-1]


def test_links_to_files_are_followed(lake: Lake, src: Path, tmp_path: Path) -> None:
    write_files(tmp_path, {"elsewhere/real.jpg": b"real"})
    os.symlink(tmp_path / "elsewhere" / "real.jpg", src / "link.jpg")
    plan_sources(lake, str(src))
    assert by_uri(lake, src) == {"link.jpg": b"real"}


@pytest.mark.parametrize(
    "name",
    [
        "ünï/çödé.jpg",
        "new\nline.jpg",
        "tab\t.jpg",
        "#hash#.jpg",
        "per%20cent.jpg",
        "sp ace.jpg",
        "'quote\".jpg",
    ],
)
def test_odd_names_survive(lake: Lake, src: Path, name: str) -> None:
    write_files(src, {name: b"data"})
    plan_sources(lake, str(src))
    assert plan_table(lake).column("uri").to_pylist() == [f"{src}/{name}"]
    assert by_uri(lake, src) == {name: b"data"}
    assert plan_sources(lake, str(src)).known_members == 1


def test_names_that_are_not_utf8_survive(lake: Lake, src: Path) -> None:
    write_files(src, {b"caf\xe9/\xff 1.jpg": b"latin", b"caf\xe9/\xfe.jpg": b"other"})
    assert plan_sources(lake, str(src)).new_members == 2
    uris = plan_table(lake).column("uri").to_pylist()
    assert uris[1] == f"file://{src}/caf%E9/%FF%201.jpg"
    assert sorted(m.data or b"" for m in read_all(lake).values()) == [b"latin", b"other"]
    assert plan_sources(lake, str(src)).known_members == 2


def test_a_lake_inside_the_source_is_not_input(src: Path) -> None:
    lake = Lake.open_or_create(str(src / "my-lake"))
    write_files(src, {"a.jpg": b"a"})
    write_parquet(src / "my-lake" / "crops.parquet", {"jpg": [b"x"]})
    report = plan_sources(lake, str(src))
    assert (report.new_members, report.ignored) == (1, {"(lake)": 1})
    with pytest.raises(UsageError, match="is a lake, not a source"):
        plan_sources(lake, str(src / "my-lake"))


@pytest.mark.parametrize("content", [{}, {"notes.txt": b"", "sub/.hidden.jpg": b""}])
def test_an_empty_source_is_a_usage_error(lake: Lake, src: Path, content: dict[str, bytes]) -> None:
    write_files(src, content)
    for check in (lambda: plan_sources(lake, str(src)), lambda: check_source(str(src))):
        with pytest.raises(UsageError) as raised:
            check()
        assert str(src) in str(raised.value)
        assert raised.value.exit_code == 2
        assert ("1 .txt" in str(raised.value)) == bool(content)
    assert list(lake.store.list("sources")) == []


def test_sources_that_cannot_be_are_usage_errors(lake: Lake, src: Path) -> None:
    write_files(src, {"a.doc": b"", "broken.tar": b"not a tar" * 100, "empty.parquet": b""})
    for path, says in (
        ("nowhere", "does not exist"),
        ("a.doc", "no image, .tar or .parquet"),
        ("broken.tar", "no tar"),
        ("empty.parquet", "no Parquet"),
    ):
        with pytest.raises(UsageError, match=says) as raised:
            plan_sources(lake, str(src / path))
        assert path in str(raised.value)
    with pytest.raises(UsageError, match="holds credentials") as raised:
        plan_sources(lake, "s3://key:SECRET@bucket/x")
    assert "SECRET" not in str(raised.value)
    with pytest.raises(UsageError, match="unknown protocol"):
        plan_sources(lake, "nonsense://bucket/x")


def test_an_unreadable_folder_is_reported_and_its_files_have_not_vanished(
    lake: Lake, src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(src, {"a.jpg": b"a", "locked/b.jpg": b"b"})
    plan_sources(lake, str(src))
    scandir = os.scandir

    def refuse(path: bytes | str) -> object:
        if os.fsencode(path).endswith(b"locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(walk_module.os, "scandir", refuse)
    report = plan_sources(lake, str(src), accept_changes=True)
    assert (report.num_vanished, report.new_shards) == (0, 0)
    assert report.ignored == {"(unreadable folder)": 1}
    assert [problem.uri for problem in report.problems] == [f"{src}/locked", str(src)]
    assert "Permission denied" in report.remarks()[1]


def change(path: Path, data: bytes, *, seconds: int = 10) -> None:
    stamp = path.stat().st_mtime_ns + seconds * 10**9
    path.write_bytes(data)
    os.utime(path, ns=(stamp, stamp))


def test_changed_and_vanished_files_are_reported_then_accepted(lake: Lake, src: Path) -> None:
    write_files(src, {f"{n}.jpg": n.encode() for n in "abcd"})
    plan_sources(lake, str(src))
    before = listing(lake)
    change(src / "a.jpg", b"longer")
    change(src / "b.jpg", b"B")  # same size
    (src / "c.jpg").unlink()

    report = plan_sources(lake, str(src))
    assert listing(lake) == before
    assert (report.num_changed, report.num_vanished, report.new_members, report.known_members) == (2, 1, 0, 3)
    assert [tuple(c) for c in report.changed] == [
        (f"{src}/a.jpg", "was 1 bytes, is 6"),
        (f"{src}/b.jpg", "same size, but written again"),
    ]
    assert [c.uri for c in report.vanished] == [f"{src}/c.jpg"]
    assert any("--accept-changes" in line for line in report.remarks())
    statuses = {m.uri[-5:]: m.status for m in read_all(lake).values()}
    assert statuses == {
        "a.jpg": "source_changed",
        "b.jpg": "source_changed",
        "c.jpg": "source_changed",
        "d.jpg": None,
    }

    accepted = plan_sources(lake, str(src), accept_changes=True)
    after = listing(lake)
    assert {path: after[path] for path in before} == before
    assert (accepted.new_members, accepted.new_shards) == (2, 2)
    old_ids = make_image_id(0, np.arange(3))
    np.testing.assert_array_equal(Lake.open(lake.uri).superseded(), old_ids)
    new = {m.uri[-5:]: m.data for (shard, _), m in read_all(lake).items() if shard == 1}
    assert new == {"a.jpg": b"longer", "b.jpg": b"B"}
    assert planned_rows(lake) == sum(part.key.num_rows for part in planned_parts(lake)) == 6

    again = plan_sources(lake, str(src), accept_changes=True)
    assert (again.new_shards, again.num_changed, again.num_vanished, again.known_members) == (0, 0, 0, 3)


def test_a_file_that_comes_back_is_new(lake: Lake, src: Path) -> None:
    write_files(src, {"a.jpg": b"a", "b.jpg": b"b"})
    plan_sources(lake, str(src))
    (src / "b.jpg").unlink()
    plan_sources(lake, str(src), accept_changes=True)
    write_files(src, {"b.jpg": b"b again"})
    report = plan_sources(lake, str(src))
    assert (report.new_members, report.num_changed) == (1, 0)
    plan_sources(lake, str(src), accept_changes=True)
    np.testing.assert_array_equal(Lake.open(lake.uri).superseded(), [make_image_id(0, 1)])


def test_an_emptied_source_has_vanished(lake: Lake, src: Path) -> None:
    write_files(src, {"a.jpg": b"a"})
    plan_sources(lake, str(src))
    (src / "a.jpg").unlink()
    assert plan_sources(lake, str(src)).num_vanished == 1


def test_a_changed_tar_supersedes_all_its_members(lake: Lake, src: Path) -> None:
    write_files(src, {"t.tar": tar_bytes((f"{i}.jpg", b"old") for i in range(100))})
    plan_sources(lake, str(src))
    change(src / "t.tar", tar_bytes((f"{i}.jpg", b"new") for i in range(3)))
    assert plan_sources(lake, str(src)).new_shards == 0
    report = plan_sources(lake, str(src), accept_changes=True)
    assert report.new_members == 3
    np.testing.assert_array_equal(Lake.open(lake.uri).superseded(), make_image_id(0, np.arange(100)))
    assert {m.data for (shard, _), m in read_all(lake).items() if shard == 1} == {b"new"}


def test_dry_run_counts_and_writes_nothing(lake: Lake, src: Path) -> None:
    write_files(src, {"a.jpg": b"a", "t.tar": tar_bytes([("1.jpg", b"1"), ("2.jpg", b"2")])})
    dry = plan_sources(lake, str(src), dry_run=True)
    assert list(lake.store.list("sources")) == []
    assert (dry.new_members, dry.new_shards) == (3, 2)
    assert plan_sources(lake, str(src)) == dry


@pytest.mark.parametrize(
    ("members", "expected"),
    [(1, 64), (4_096, 64), (4_097, 128), (65_536, 1024), (524_288, 8192), (10**9, 8192)],
)
def test_part_rows_make_about_64_parts(members: int, expected: int) -> None:
    assert choose_part_rows(members) == expected
    assert expected in (64, 8192) or 32 <= -(-members // expected) <= 64


@pytest.mark.parametrize("part_rows", [0, 3, 100, 16_384, -64])
def test_part_rows_are_powers_of_two(lake: Lake, src: Path, part_rows: int) -> None:
    write_files(src, {"a.jpg": b"a"})
    with pytest.raises(UsageError, match="power of two"):
        plan_sources(lake, str(src), part_rows=part_rows)


def test_many_files_fill_shards_and_the_look_ahead_does_not_change_the_plan(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "FILES_PER_SHARD", 64)
    monkeypatch.setattr(plan_module, "MAX_PART_ROWS", 16)
    monkeypatch.setattr(plan_module, "MIN_PART_ROWS", 4)
    monkeypatch.setattr(plan_module, "PARTS_WANTED", 8)
    monkeypatch.setattr(plan_module, "LOOK_AHEAD", 8 * 16)
    write_files(src, {f"{i:04}.jpg": str(i).encode() for i in range(500)})
    lake = Lake.open_or_create(str(tmp_path / "lake"))
    report = plan_sources(lake, str(src))
    table = plan_table(lake)
    assert (report.new_members, report.new_shards) == (500, 8)
    assert table.column("shard").value_counts().to_pylist()[-1] == {"values": 7, "counts": 52}
    assert set(table.column("part_rows").to_pylist()) == {16}
    assert [m.data for m in read_all(lake).values()] == [str(i).encode() for i in range(500)]


def test_large_tars_get_smaller_parts(lake: Lake, src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(src, {"t.tar": tar_bytes((f"{i}.jpg", bytes(1000)) for i in range(1000))})
    monkeypatch.setattr(plan_module, "choose_part_rows", lambda members: 8192)
    monkeypatch.setattr(plan_module, "MAX_PART_BYTES", 300_000)
    plan_sources(lake, str(src))
    table = plan_table(lake)
    assert table.column("part_rows").to_pylist() == [128]
    assert len(table.column("part_offsets")[0]) == 8
    assert len(read_all(lake)) == 1000


def test_a_planner_that_loses_the_race_drops_what_the_winner_planned(lake: Lake, src: Path) -> None:
    write_files(src, {"a.jpg": b"a", "b.jpg": b"b", "t.tar": tar_bytes([("m.jpg", b"m")])})
    create = plan_module._Planner._create
    raced = []

    def late(self: object, number: int, table: object) -> bool:
        if not raced:
            raced.append(True)
            (src / "b.jpg").rename(src / "b.away")  # the other planner sees a.jpg and the tar only
            assert plan_sources(Lake.open(lake.uri), str(src)).new_members == 2
            (src / "b.away").rename(src / "b.jpg")
        return create(self, number, table)  # type: ignore[arg-type]

    with patch.object(plan_module._Planner, "_create", late):
        report = plan_sources(lake, str(src))
    assert (report.new_members, report.known_members, report.num_vanished) == (1, 2, 0)
    assert by_uri(lake, src) == {"a.jpg": b"a", "b.jpg": b"b", "t.tar#m.jpg": b"m"}
    assert plan_sources(lake, str(src)).new_shards == 0


@pytest.mark.parametrize("where", ["local", "memory"])
def test_planners_at_once_plan_everything_once(src: Path, tmp_path: Path, where: str) -> None:
    uri = str(tmp_path / "lake") if where == "local" else f"memory://race-{tmp_path.name}"
    lake = Lake.open_or_create(uri)
    write_files(src, {f"{i:03}.jpg": str(i).encode() for i in range(50)})
    write_files(src, {f"{i}.tar": tar_bytes([(f"{i}.jpg", b"m")]) for i in range(6)})
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: plan_sources(Lake.open(uri), str(src)), range(4)))
    uris = plan_table(lake).column("uri").to_pylist()
    assert len(uris) == len(set(uris)) == 56
    assert sum(report.new_members for report in reports) == 56
    assert all(report.new_members + report.known_members == 56 for report in reports)


def test_a_hash_that_collides_is_caught_by_the_name(lake: Lake, src: Path) -> None:
    write_files(src, {"a.jpg": b"a"})
    plan_sources(lake, str(src))
    write_files(src, {"b.jpg": b"b"})
    with patch(
        "facescale.sources.known._hashes",
        lambda values: np.array([hash(v) if isinstance(v, tuple) else 7 for v in values], np.int64),
    ):
        report = plan_sources(lake, str(src))
    assert report.num_changed == 0
    assert by_uri(lake, src) == {"a.jpg": b"a", "b.jpg": b"b"}


def test_urls_are_planned_and_read_like_folders(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    root = f"/crawl-{tmp_path.name}"
    fs.pipe(f"{root}/b/2.jpg", b"two")
    fs.pipe(f"{root}/a.jpg", b"a")
    fs.pipe(f"{root}/notes.txt", b"")
    fs.pipe(f"{root}/.hidden/x.jpg", b"")
    fs.pipe(f"{root}/t.tar", tar_bytes([("1.jpg", b"1"), ("1.json", b"{}")]))
    lake = Lake.open_or_create(f"memory://lake-{tmp_path.name}")
    report = plan_sources(lake, f"memory:/{root}")
    assert (report.new_members, report.new_shards) == (3, 2)
    assert report.ignored == {".txt": 1, "(hidden)": 1, "(sidecar)": 1}
    assert by_uri(lake, f"memory://{root}") == {"a.jpg": b"a", "b/2.jpg": b"two", "t.tar#1.jpg": b"1"}
    assert plan_sources(lake, f"memory:/{root}").known_members == 3
    fs.pipe(f"{root}/a.jpg", b"changed")
    assert plan_sources(lake, f"memory:/{root}").num_changed == 1
    one = plan_sources(lake, f"memory:/{root}/b/2.jpg")
    assert (one.new_members, one.known_members) == (0, 1)
    with pytest.raises(UsageError, match="does not exist"):
        plan_sources(lake, f"memory:/{root}/nowhere")


def test_walking_is_lazy(src: Path) -> None:
    write_files(src, {f"{i}/x.jpg": b"" for i in range(50)})
    with patch.object(walk_module.os, "scandir", wraps=os.scandir) as scandir:
        next(walk(str(src), Tally()))
    assert scandir.call_count == 2
