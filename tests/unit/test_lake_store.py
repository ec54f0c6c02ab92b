"""The store: atomic writes, listings, Parquet and errors, on a local folder and in memory."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_samples import new_uri, part_tables

from facescale.errors import CorruptError, FacescaleError, TransientError, UsageError
from facescale.lake import local_storage
from facescale.lake.parts import PartKey
from facescale.lake.schema import check_table
from facescale.lake.storage_errors import DiskFullError
from facescale.lake.store import Store

TABLE = pa.table({"a": np.arange(10), "b": ["x", "y"] * 5})


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    return Store(new_uri(request.param, tmp_path))


@pytest.fixture
def local(tmp_path):
    return Store(str(tmp_path / "lake"))


def files_below(folder: str) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def test_bytes_round_trip(store):
    assert not store.exists("a/b.bin")
    assert store.write_bytes("a/b.bin", b"one")
    assert store.exists("a/b.bin")
    assert not store.exists("a")
    assert store.read_bytes("a/b.bin") == b"one"
    assert store.size("a/b.bin") == 3
    assert store.write_bytes("a/b.bin", b"")
    assert store.read_bytes("a/b.bin") == b""


def test_if_absent_has_one_winner(store):
    assert store.write_bytes("plan", b"first", if_absent=True)
    assert not store.write_bytes("plan", b"second", if_absent=True)
    assert store.read_bytes("plan") == b"first"


def test_if_absent_without_hard_links(local, monkeypatch):
    def no_links(*_args, **_kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert local.write_bytes("plan", b"first", if_absent=True)
    assert not local.write_bytes("plan", b"second", if_absent=True)
    assert local.read_bytes("plan") == b"first"


def test_open_gives_each_reader_its_own_position(store):
    store.write_bytes("f", b"0123456789")
    with store.open("f") as one, store.open("f") as two:
        assert one.read(3) == b"012"
        one.seek(7)
        assert two.read(2) == b"01"
        assert one.read() == b"789"


def test_list_is_recursive_sorted_and_has_sizes(store):
    for path in ("t/2/b", "t/1/a", "t/c", "u/d"):
        store.write_bytes(path, path.encode())
    assert sorted(store.list("t")) == [("t/1/a", 5), ("t/2/b", 5), ("t/c", 3)]
    assert [path for path, _ in store.list("t")] == sorted(path for path, _ in store.list("t"))
    assert {path for path, _ in store.list()} == {"t/2/b", "t/1/a", "t/c", "u/d"}
    assert list(store.list("nothing")) == []
    assert list(store.list("t/1/a/x")) == []
    assert store.folders("t") == ["1", "2"]
    assert store.folders("nothing") == []


def test_list_hides_temporaries(local):
    local.write_bytes("a", b"")
    with local.temporary_folder() as folder:
        (folder / "big").write_bytes(b"x")
        assert list(local.list()) == [("a", 0)]
    assert not folder.exists()


def test_delete(store):
    store.write_bytes("t/a", b"")
    store.write_bytes("t/b/c", b"")
    store.delete("t/a")
    assert not store.exists("t/a")
    store.delete_tree("t")
    assert list(store.list("t")) == []
    store.delete_tree("t")
    with pytest.raises(FileNotFoundError):
        store.delete("t/a")
    with pytest.raises(UsageError, match="refusing to delete the whole"):
        store.delete_tree("")


def test_big_file_is_moved_in(store, tmp_path):
    with store.temporary_folder() as folder:
        (folder / "index.faiss").write_bytes(b"x" * 1000)
        store.write_file("index/0000000.faiss", folder / "index.faiss")
        assert not (folder / "index.faiss").exists()
    assert not folder.exists()
    assert store.read_bytes("index/0000000.faiss") == b"x" * 1000
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"y")
    store.write_file("index/0000000.faiss", elsewhere)
    assert store.read_bytes("index/0000000.faiss") == b"y"
    assert not elsewhere.exists()


def test_missing_files_are_file_not_found(store):
    for read in (store.read_bytes, store.size, store.read_table, store.read_footer):
        with pytest.raises(FileNotFoundError):
            read("nothing.parquet")
    with pytest.raises(FileNotFoundError):
        store.open("nothing")


def test_table_round_trip_with_footer(store):
    size = store.write_table("t.parquet", TABLE, footer={"facescale.k": "v"})
    assert store.size("t.parquet") == size
    assert store.read_table("t.parquet").equals(TABLE)
    assert store.read_table("t.parquet", ["b", "absent"]).column_names == ["b"]
    assert store.read_footer("t.parquet") == {"facescale.k": "v"}


def test_equal_tables_give_equal_bytes(store):
    table = check_table("crops", part_tables(PartKey(1, 0, 64))["crops"])
    pieces = pa.concat_tables([table.slice(0, 5), table.slice(5, 20), table.slice(25)])
    assert pieces.column(0).num_chunks == 3
    store.write_table("one.parquet", table)
    store.write_table("two.parquet", pieces)
    assert store.read_bytes("one.parquet") == store.read_bytes("two.parquet")


def test_parquet_is_laid_out_for_scans(local):
    N = 20_000
    wide = pa.table(
        {
            "face_id": np.arange(N),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(N * 128, np.float16)), 128),
            "label": ["a"] * N,
        }
    )
    crops = pa.table({"face_id": np.arange(1000), "jpeg": [b"\xff" * 16_000] * 1000})
    local.write_table("narrow.parquet", pa.table({"a": np.arange(100_000)}))
    local.write_table("wide.parquet", wide)
    local.write_table("crops.parquet", crops)
    rows = {}
    for name in ("narrow", "wide", "crops"):
        meta = pq.read_metadata(Path(local.uri) / f"{name}.parquet")
        rows[name] = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
        for g in range(meta.num_row_groups):
            for c in range(meta.num_columns):
                column = meta.row_group(g).column(c)
                dictionary = "RLE_DICTIONARY" in column.encodings
                assert dictionary == (column.path_in_schema == "label"), column.path_in_schema
                assert column.compression == ("UNCOMPRESSED" if column.path_in_schema == "jpeg" else "ZSTD")
    assert rows["narrow"] == [65_536, 34_464]
    assert rows["wide"] == [4096] * 4 + [3616]
    assert rows["crops"] == [256, 256, 256, 232]


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_damaged_parquet_names_file_and_remedy(store, cut):
    store.write_table("t.parquet", TABLE)
    store.write_bytes("t.parquet", store.read_bytes("t.parquet")[:cut])
    with pytest.raises(CorruptError, match=r"t\.parquet is damaged .*delete it and rerun") as caught:
        store.read_table("t.parquet")
    assert store.uri in str(caught.value)


def test_a_flipped_bit_is_noticed(store):
    table = pa.table({"jpeg": [bytes(range(256)) * 20] * 3})
    store.write_table("t.parquet", table)
    data = bytearray(store.read_bytes("t.parquet"))
    data[data.index(bytes(range(256))) + 1000] ^= 1
    store.write_bytes("t.parquet", bytes(data))
    with pytest.raises(CorruptError, match=r"t\.parquet is damaged"):
        store.read_table("t.parquet")


def test_pickles_as_its_uri(store):
    store.write_bytes("a", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert again.read_bytes("a") == b"1"
    assert (again.is_local, again.is_memory) == (store.is_local, store.is_memory)
    assert len(pickle.dumps(store)) < 300


def test_uris(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Store("x/../lake").uri == str(tmp_path / "lake")
    assert Store(f"file://{tmp_path}/a%20b").uri == f"{tmp_path}/a b"
    assert Store("memory://lake/").uri == "memory://lake"
    assert Store("memory://lake").location("a/b") == "memory://lake/a/b"
    with pytest.raises(UsageError, match="unknown protocol 'sss'"):
        Store("sss://bucket/lake")
    with pytest.raises(UsageError, match="holds credentials") as caught:
        Store("s3://key:secret@bucket/lake")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
def test_paths_stay_inside(store, path):
    with pytest.raises(UsageError, match="no path inside"):
        store.write_bytes(path, b"")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("write", ["write_bytes", "write_table", "batch"])
def test_full_disk_leaves_nothing_behind(local, monkeypatch, number, write):
    local.write_bytes("keep", b"1")
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == (2 if write == "batch" else 1):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="free space, then rerun the same command") as caught:
        if write == "write_bytes":
            local.write_bytes("t.parquet", b"x")
        elif write == "write_table":
            local.write_table("t.parquet", TABLE)
        else:
            with local.batch() as batch:
                batch.add_bytes("s.parquet", b"x")
                batch.add_table("t.parquet", TABLE)
    assert f"{local.uri}/t.parquet" in str(caught.value) or write == "batch"
    monkeypatch.undo()
    assert files_below(local.uri) == ["keep"]
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), DiskFullError)


def test_full_disk_for_real(tmp_path):
    script = f"""
import os, sys
from facescale.lake.store import Store
from facescale.lake.storage_errors import DiskFullError
store = Store({str(tmp_path / "mnt" / "lake")!r})
store.write_bytes("small", b"1")
try:
    with store.batch() as batch:
        batch.add_bytes("a", b"x" * 200_000)
        batch.add_bytes("b", b"x" * 2_000_000)
except DiskFullError as error:
    print(error)
    print(sorted(path for path, _ in store.list()))
"""
    (tmp_path / "mnt").mkdir()
    mount = f'mount -t tmpfs -o size=1m none {tmp_path / "mnt"} && exec {sys.executable} -c "$SCRIPT"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount],
        env={**os.environ, "SCRIPT": script},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"no private mounts here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    message, listing = done.stdout.splitlines()
    assert message.endswith("No space left on device; free space, then rerun the same command")
    assert "/mnt/lake/b:" in message
    assert listing == "['small']"


@pytest.mark.parametrize(
    ("number", "kind", "remedy"),
    [
        (errno.EACCES, UsageError, "grant access"),
        (errno.EROFS, UsageError, "grant access"),
        (errno.ESTALE, TransientError, "rerun the same command"),
        (errno.EIO, FacescaleError, "check the disk"),
    ],
)
def test_other_failures_name_file_and_remedy(local, monkeypatch, number, kind, remedy):
    def fail(*_args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(kind, match=remedy) as caught:
        local.write_bytes("a/b", b"x")
    assert type(caught.value) is kind
    assert f"{local.uri}/a/b" in str(caught.value)


class BotocoreLikeError(Exception):
    __module__ = "botocore.exceptions"


class NoCredentialsError(BotocoreLikeError):
    __module__ = "botocore.exceptions"


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (ConnectionResetError("peer"), TransientError, "rerun the same command"),
        (TimeoutError("slow"), TransientError, "rerun the same command"),
        (OSError("Could not connect"), TransientError, "rerun the same command"),
        (OSError(errno.EBUSY, "SlowDown"), TransientError, "rerun the same command"),
        (BotocoreLikeError("endpoint"), TransientError, "rerun the same command"),
        (NoCredentialsError("none"), UsageError, "no credentials"),
        (PermissionError("Forbidden"), UsageError, "grant access"),
        (FileNotFoundError("The specified bucket does not exist"), UsageError, "create it first"),
    ],
)
def test_failures_of_object_stores(monkeypatch, error, kind, says):
    store = Store(f"memory://{uuid.uuid4().hex}")

    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(type(store._backend.fs), "pipe_file", fail)
    with pytest.raises(kind, match=says) as caught:
        store.write_bytes("a/b", b"x")
    assert f"{store.uri}/a/b" in str(caught.value)


def test_a_file_where_a_folder_should_be(store, tmp_path):
    store.write_bytes("a", b"")
    with pytest.raises(UsageError, match="one of its parents is a file"):
        store.write_bytes("a/b", b"x")
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="one of its parents is a file"):
        Store(str(tmp_path / "photo.jpg")).write_bytes("a", b"x")


def test_temporaries_of_dead_processes_are_removed(local):
    local.write_bytes("a", b"1")
    host = local_storage._host()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    unreaped = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, unreaped.pid, os.WEXITED | os.WNOWAIT)
    root = Path(local.uri) / "_tmp"
    for name in (
        f"{host}-{dead.pid}-{uuid.uuid4().hex}",
        f"{host}-{unreaped.pid}-{uuid.uuid4().hex}",
        f"{host}-{os.getpid()}-{uuid.uuid4().hex}",  # of an earlier process that had our number
        f"{host}-{os.getppid()}-{uuid.uuid4().hex}",
        f"elsewhere-{dead.pid}-{uuid.uuid4().hex}",
    ):
        (root / name).mkdir()
        (root / name / "0").write_bytes(b"half")
    with local.temporary_folder() as mine:
        assert mine.name.startswith(f"{host}-{os.getpid()}-")
        assert local.clean_temporaries() == 3
        assert mine.exists()
        left = {path.name.rsplit("-", 1)[0] for path in root.iterdir()}
    assert left == {f"{host}-{os.getppid()}", f"elsewhere-{dead.pid}", f"{host}-{os.getpid()}"}
    assert local.clean_temporaries() == 0
    unreaped.wait()


def test_clean_temporaries_of_memory(store):
    assert store.clean_temporaries() == 0
