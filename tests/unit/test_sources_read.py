"""Reading parts: every planned row comes out once, with its bytes or with what is wrong with it."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
from typing import TYPE_CHECKING
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources_samples import NO_LIMIT, by_uri, plan_table, read_all, tar_bytes, write_files, write_parquet

from facescale.lake.lake import Lake
from facescale.sources import read as read_module
from facescale.sources.ahead import iterate_ahead, map_ahead
from facescale.sources.plan import plan_sources, planned_parts
from facescale.sources.read import read_part

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open_or_create(str(tmp_path / "lake"))


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    return folder


def test_parts_give_each_file_once_in_order(lake: Lake, src: Path) -> None:
    write_files(src, {f"{i:03}.jpg": str(i).encode() for i in range(30)})
    plan_sources(lake, str(src), part_rows=8)
    assert [part.key.num_rows for part in planned_parts(lake)] == [8, 8, 8, 6]
    assert [m.data for m in read_all(lake).values()] == [str(i).encode() for i in range(30)]


def test_what_happened_to_a_file_becomes_its_status(lake: Lake, src: Path) -> None:
    names = ("changed", "folder", "gone", "large", "ok", "pipe", "rewritten")
    write_files(src, {f"{name}.jpg": name.encode() for name in names} | {"large.jpg": bytes(1000)})
    plan_sources(lake, str(src))
    for name in ("folder", "gone", "pipe"):
        (src / f"{name}.jpg").unlink()
    (src / "folder.jpg").mkdir()
    os.mkfifo(src / "pipe.jpg")
    (src / "changed.jpg").write_bytes(b"of another length")
    os.utime(src / "rewritten.jpg", ns=(1, 1))
    members = {m.uri.removeprefix(f"{src}/")[:-4]: m for m in read_all(lake, max_bytes=999).values()}
    assert {name: m.status for name, m in members.items()} == {
        "changed": "source_changed",
        "folder": "source_changed",
        "gone": "source_changed",
        "large": "too_many_bytes",
        "ok": None,
        "pipe": "source_changed",
        "rewritten": "source_changed",
    }
    for name, member in members.items():
        assert (member.data is None) == (member.status is not None)
        assert (member.detail is None) == (name == "ok")
    assert "--accept-changes" in (members["gone"].detail or "")
    assert "1,000 bytes" in (members["large"].detail or "")


@pytest.mark.parametrize(
    ("error", "status", "remedy"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "unreadable", "grant read access"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "unreadable", "--retry-failed"),
        (OSError(errno.EIO, "Input/output error"), "transient", "--retry-failed"),
        (OSError(errno.EMFILE, "Too many open files"), "transient", "--retry-failed"),
        (TimeoutError("no answer"), "transient", "--retry-failed"),
        (RuntimeError("a client library's own"), "transient", "--retry-failed"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "source_changed", "--accept-changes"),
    ],
)
def test_what_storage_raises_becomes_a_status(
    lake: Lake, src: Path, error: Exception, status: str, remedy: str
) -> None:
    write_files(src, {"a.jpg": b"a", "t.tar": tar_bytes([("m.jpg", b"m"), ("n.jpg", b"n")])})
    plan_sources(lake, str(src))

    def fail(*_: object) -> None:
        raise error

    with patch.object(read_module.os, "fstat", fail), patch.object(read_module, "_check_container", fail):
        members = list(read_all(lake).values())
    assert [member.status for member in members] == [status] * 3
    assert all(remedy in (member.detail or "") for member in members)


def test_a_file_without_read_permission_is_unreadable(tmp_path: Path) -> None:
    """For real: in a process of an unprivileged user, when this one may become it."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    script = """
import os, sys
sys.path[:0] = sys.argv[2:]
from facescale.lake.lake import Lake
from facescale.sources.plan import plan_sources, planned_parts
from facescale.sources.read import read_part
root = sys.argv[1]
os.umask(0)
os.setgid(65534); os.setuid(65534)
os.makedirs(f"{root}/src/locked")
for name in ("a", "b"):
    open(f"{root}/src/{name}.jpg", "w").write(name)
open(f"{root}/src/locked/c.jpg", "w").close()
os.chmod(f"{root}/src/b.jpg", 0); os.chmod(f"{root}/src/locked", 0)
lake = Lake.open_or_create(f"{root}/lake")
report = plan_sources(lake, f"{root}/src")
print(report.new_members, report.ignored, report.problems[0].what)
for part in planned_parts(lake):
    for member in read_part(lake.store, part, max_bytes=100):
        print(member.uri[-5:], member.status, member.detail)
"""
    os.chmod(tmp_path, 0o777)
    for parent in (tmp_path.parent, tmp_path.parent.parent):
        os.chmod(parent, 0o755)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), *sys.path], capture_output=True, text=True, check=False
    )
    if "Permission denied" in done.stderr and "import" in done.stderr:
        pytest.skip("the unprivileged user cannot read the packages")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 {'(unreadable folder)': 1} folder cannot be listed: Permission denied")
    assert lines[1] == "a.jpg None None"
    assert lines[2].startswith("b.jpg unreadable Permission denied; grant read access")


@pytest.mark.parametrize("part_rows", [1, 4, 64])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_give_their_images_in_file_order(lake: Lake, src: Path, format: int, part_rows: int) -> None:
    long_name = "d/" * 45 + "long.jpg"
    members = [
        ("0.cls", b"7"),
        ("0.jpg", b"zero"),
        ("0.json", b"{}"),
        ("sub/1.b.png", b"one"),
        ("sub/1.b.txt", b"text"),
        ("readme.md", b"#"),
        (".hidden.jpg", b"no"),
        ("z.WEBP", b""),
        (long_name, bytes(2000)),
        ("../../etc/passwd.jpg", b"hostile"),
        ("/abs.jpg", b"absolute"),
    ]
    write_files(src, {"t.tar": tar_bytes(members, format=format)})
    report = plan_sources(lake, str(src / "t.tar"), part_rows=part_rows)
    assert report.ignored == {"(sidecar)": 3, ".md": 1, "(hidden)": 1}
    assert [(m.uri, m.data) for m in read_all(lake).values()] == [
        (f"{src}/t.tar#{name}", dict(members)[name])
        for name in ("0.jpg", "sub/1.b.png", "z.WEBP", long_name, "../../etc/passwd.jpg", "/abs.jpg")
    ]
    assert sorted(os.listdir(src)) == ["t.tar"]


def test_members_of_a_tar_are_limited_and_oddly_named(lake: Lake, src: Path) -> None:
    write_files(
        src, {"t.tar": tar_bytes([("big.jpg", bytes(100)), ("caf\udce9\n.jpg", b"odd"), ("z.jpg", b"z")])}
    )
    plan_sources(lake, str(src))
    big, odd, last = read_all(lake, max_bytes=99).values()
    assert (big.status, big.data) == ("too_many_bytes", None)
    assert (odd.uri, odd.data) == (f"{src}/t.tar#caf%E9%0A.jpg", b"odd")
    assert (last.uri, last.data) == (f"{src}/t.tar#z.jpg", b"z")


def test_links_and_special_members_of_a_tar_are_not_rows(lake: Lake, src: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind in (
            ("a.jpg", tarfile.SYMTYPE),
            ("b.jpg", tarfile.LNKTYPE),
            ("c.jpg", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        folder = tarfile.TarInfo("d.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        info = tarfile.TarInfo("real.jpg")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"real"))
    write_files(src, {"t.tar": out.getvalue()})
    report = plan_sources(lake, str(src))
    assert report.ignored == {"(link or special member)": 3}
    assert by_uri(lake, src) == {"t.tar#real.jpg": b"real"}


WHOLE_TAR = tar_bytes((f"{i:02}.jpg", bytes([i]) * 700) for i in range(20))


@pytest.mark.parametrize(
    ("data", "rows", "says"),
    [
        (WHOLE_TAR[: 1536 * 10 + 100], 10, "damaged"),  # inside a header
        (WHOLE_TAR[: 1536 * 10 + 512 + 300], 11, "damaged"),  # inside a member's data
        (WHOLE_TAR[: 1536 * 10], 10, None),  # between members: only the end mark is missing
        (WHOLE_TAR[: 1536 * 10] + b"garbage!" * 200, 10, "no readable header"),
        (WHOLE_TAR[: 1536 * 10] + bytes(1024) + b"tail" * 500, 10, None),
    ],
)
def test_a_damaged_tar_keeps_the_rows_before_the_damage(
    lake: Lake, src: Path, data: bytes, rows: int, says: str | None
) -> None:
    write_files(src, {"t.tar": data, "ok.jpg": b"ok"})
    report = plan_sources(lake, str(src), part_rows=4)
    assert report.new_members == rows + 1
    if says is None:
        assert report.problems == []
    else:
        assert [problem.uri for problem in report.problems] == [f"{src}/t.tar"]
        assert says in report.problems[0].what
        assert f"the {rows} images before that are rows" in report.problems[0].what
    members = [m for (shard, _), m in read_all(lake).items() if shard == 1]
    assert [m.data for m in members[:10]] == [bytes([i]) * 700 for i in range(10)]
    if rows == 11:  # the cut member is a row: its image is truncated
        assert members[10].data == bytes([10]) * 300
    assert plan_sources(lake, str(src)).new_shards == 0


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.tar", b"not a tar at all" * 100, "no tar"),
        ("a.tar", b"", "no tar"),
        ("a.tar", tar_bytes([("x.txt", b"t")]), "no member with an image extension"),
        ("a.parquet", b"PAR1 broken", "no Parquet file"),
        ("a.parquet", b"", "no Parquet file"),
    ],
)
def test_containers_that_hold_nothing_readable_are_reported(
    lake: Lake, src: Path, name: str, data: bytes, says: str
) -> None:
    write_files(src, {name: data, "ok.jpg": b"ok"})
    report = plan_sources(lake, str(src))
    assert (report.new_members, report.num_problems) == (1, 1)
    assert report.problems[0].uri == f"{src}/{name}"
    assert says in report.problems[0].what
    assert f"{src}/{name}" in "\n".join(report.remarks())


def test_an_unreadable_container_is_reported_and_tried_again(lake: Lake, src: Path) -> None:
    write_files(src, {"t.tar": WHOLE_TAR, "ok.jpg": b"ok"})
    with patch(
        "facescale.sources.containers.open", side_effect=PermissionError(13, "Permission denied"), create=True
    ):
        report = plan_sources(lake, str(src))
    assert (report.new_members, report.problems[0].what[:33]) == (1, "cannot be read: Permission denied")
    assert plan_sources(lake, str(src)).new_members == 20


def test_a_tar_that_lost_its_end_gives_the_rest_of_the_rows_a_status(lake: Lake, src: Path) -> None:
    write_files(src, {"t.tar": WHOLE_TAR})
    plan_sources(lake, str(src), part_rows=16)
    stat = (src / "t.tar").stat()
    (src / "t.tar").write_bytes(WHOLE_TAR[: 1536 * 10] + bytes(len(WHOLE_TAR) - 1536 * 10))
    os.utime(src / "t.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    statuses = [m.status for m in read_all(lake).values()]
    assert statuses == [None] * 10 + ["unreadable"] * 10
    (src / "t.tar").write_bytes(b"x")
    assert {m.status for m in read_all(lake).values()} == {"source_changed"}


@pytest.mark.parametrize("part_rows", [1, 8, 64])
@pytest.mark.parametrize("shape", ["binary", "struct", "large", "upper"])
def test_parquet_rows_come_out_by_row_group(lake: Lake, src: Path, shape: str, part_rows: int) -> None:
    data: list[bytes | None] = [str(i).encode() * (i + 1) for i in range(33)]
    data[5] = None
    columns: dict[str, object] = {
        "binary": {"id": list(range(33)), "jpg": data},
        "struct": {"image": [{"path": "x", "bytes": d} for d in data], "label": [1] * 33},
        "large": {"image_bytes": pa.array(data, pa.large_binary())},
        "upper": {"Image": data, "text": ["t"] * 33},
    }[shape]
    write_parquet(src / "p.parquet", columns, row_group_size=10)  # type: ignore[arg-type]
    report = plan_sources(lake, str(src), part_rows=part_rows)
    assert (report.new_members, report.new_parts) == (33, -(-33 // part_rows))
    members = list(read_all(lake, max_bytes=60).values())
    assert [m.uri for m in members] == [f"{src}/p.parquet#{i}" for i in range(33)]
    assert members[5].data == b""
    assert [m.data for m in members[:5] + members[6:30]] == data[:5] + data[6:30]
    assert {m.status for m in members[30:]} == {"too_many_bytes"}


def test_parquet_tables_of_something_else_are_not_input(lake: Lake, src: Path) -> None:
    write_parquet(src / "metadata.parquet", {"url": ["http://x"], "sha256": [b"x" * 32]})
    write_files(src, {"a.jpg": b"a"})
    report = plan_sources(lake, str(src))
    assert report.ignored == {"(Parquet without images)": 1}
    assert report.problems == []


def test_a_damaged_parquet_file_gives_its_rows_a_status(lake: Lake, src: Path) -> None:
    write_parquet(src / "p.parquet", {"jpg": [os.urandom(1000) for _ in range(30)]})
    plan_sources(lake, str(src))
    path = src / "p.parquet"
    stat, data = path.stat(), bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    data[start : start + 8] = bytes(8)  # the first page header of the second row group of three
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    members = list(read_all(lake).values())
    assert [m.status for m in members] == [None] * 10 + ["unreadable"] * 20
    assert "replace the file" in (members[15].detail or "")


def test_reading_ahead_is_bounded_and_stops_with_the_consumer(lake: Lake, src: Path) -> None:
    write_files(src, {f"{i:03}.jpg": bytes(10) for i in range(200)})
    write_files(src, {"t.tar": tar_bytes((f"{i:03}.jpg", bytes(1 << 20)) for i in range(100))})
    plan_sources(lake, str(src))
    before = threading.active_count()
    for part in planned_parts(lake):
        members = read_part(lake.store, part, max_bytes=NO_LIMIT, threads=4)
        next(iter(members))
        members.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_map_ahead_keeps_order_and_budget() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1
        return item * 10

    assert list(map_ahead(work, range(50), threads=4)) == [i * 10 for i in range(50)]
    assert 1 < most <= 4
    most = 0
    assert list(map_ahead(work, range(20), threads=4, weigh=lambda item: 60, budget=100)) == [
        i * 10 for i in range(20)
    ]
    assert most == 1


def test_map_ahead_raises_at_the_items_turn() -> None:
    results = map_ahead(lambda item: 10 // item, [5, 2, 0, 1], threads=2)
    assert [next(results), next(results)] == [2, 5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_iterate_ahead_waits_for_the_consumer() -> None:
    made: list[int] = []

    def produce() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    items = iterate_ahead(produce(), weigh=lambda item: 10, budget=30)
    assert next(items) == 0
    time.sleep(0.1)
    assert len(made) <= 6
    assert list(items) == list(range(1, 20))

    def fail() -> Iterator[int]:
        yield 1
        raise ValueError("from the thread")

    failing = iterate_ahead(fail(), weigh=lambda item: 1, budget=10)
    assert next(failing) == 1
    with pytest.raises(ValueError, match="from the thread"):
        next(failing)


def test_offsets_are_where_samples_begin(lake: Lake, src: Path) -> None:
    members = [(f"{i}.{ext}", b"x") for i in range(6) for ext in ("cls", "jpg", "txt")]
    write_files(src, {"t.tar": tar_bytes(members, format=tarfile.USTAR_FORMAT)})
    plan_sources(lake, str(src), part_rows=2)
    assert plan_table(lake).column("part_offsets").to_pylist() == [[0, 2 * 3 * 1024, 4 * 3 * 1024]]
