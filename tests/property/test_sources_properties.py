"""Properties of the plan: every file exactly once, ids that stay, parts that cover, tars read back whole."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "unit"))

from sources_samples import plan_table, read_all, tar_bytes, write_files

from facescale.lake.ids import make_image_id
from facescale.lake.lake import Lake
from facescale.sources.plan import choose_part_rows, plan_sources, planned_parts
from facescale.sources.uris import path_of_uri, uri_of_path

# Any bytes but the slash, the NUL and a leading dot may stand in a file's name.
NAME = st.binary(min_size=1, max_size=12).map(
    lambda raw: (b"n" + raw.replace(b"/", b"_").replace(b"\0", b"_")) + b".jpg"
)
FOLDER = st.sampled_from([b"", b"a/", b"a/b/", b"a-/", b"\xff/", "ü/".encode()])
TREE = st.dictionaries(st.tuples(FOLDER, NAME).map(b"".join), st.binary(max_size=20), min_size=1, max_size=12)
PART_ROWS = st.sampled_from([1, 2, 4, 64])


def data_by_path(lake: Lake) -> dict[bytes, bytes | None]:
    members = read_all(lake).values()
    by_path = {path_of_uri(m.uri): m.data for m in members}
    assert len(by_path) == len(members), "a file came out twice"
    return by_path


@settings(max_examples=40, deadline=None)
@given(st.lists(TREE, min_size=1, max_size=3), PART_ROWS)
def test_growing_folders_keep_ids_and_cover_each_file_once(
    trees: list[dict[bytes, bytes]], rows: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        src, lake = Path(name, "src"), Lake.open_or_create(f"{name}/lake")
        present: dict[bytes, bytes] = {}
        ids: dict[str, tuple[int, int]] = {}
        for tree in trees:
            fresh = {path: data for path, data in tree.items() if path not in present}
            write_files(src, fresh)
            present |= fresh
            report = plan_sources(lake, str(src), part_rows=rows)
            assert (report.new_members, report.num_changed, report.num_vanished) == (len(fresh), 0, 0)
            assert report.known_members == len(present) - len(fresh)
            now = {m.uri: key for key, m in read_all(lake).items()}
            assert ids.items() <= now.items()
            ids = now
        assert data_by_path(lake) == {os.fsencode(src) + b"/" + path: data for path, data in present.items()}


@settings(max_examples=25, deadline=None)
@given(TREE, st.randoms(use_true_random=False))
def test_the_plan_does_not_depend_on_the_order_of_creation(tree: dict[bytes, bytes], random: object) -> None:
    with tempfile.TemporaryDirectory() as name:
        orders = []
        for attempt in range(2):
            src = Path(name, str(attempt), "src")
            paths = list(tree)
            random.shuffle(paths)  # type: ignore[attr-defined]
            write_files(src, {path: tree[path] for path in paths})
            lake = Lake.open_or_create(f"{name}/{attempt}/lake")
            plan_sources(lake, str(src))
            uris = [path_of_uri(uri) for uri in plan_table(lake).column("uri").to_pylist()]
            orders.append([uri.removeprefix(os.fsencode(src)) for uri in uris])
        assert orders[0] == orders[1] == sorted(orders[0])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["jpg", "png", "json", "txt", "cls", "dat"]), st.binary(max_size=1500)),
        min_size=1,
        max_size=30,
    ),
    PART_ROWS,
)
def test_tars_read_back_whole_for_any_part_size(content: list[tuple[str, bytes]], rows: int) -> None:
    members = [(f"d/{i // 3}.{i}.{extension}", data) for i, (extension, data) in enumerate(content)]
    members.append(("last.jpg", b"last"))
    with tempfile.TemporaryDirectory() as name:
        Path(name, "t.tar").write_bytes(tar_bytes(members))
        lake = Lake.open_or_create(f"{name}/lake")
        plan_sources(lake, f"{name}/t.tar", part_rows=rows)
        got = [(m.uri.partition("#")[2], m.data) for m in read_all(lake).values()]
        assert got == [(path, data) for path, data in members if path.endswith((".jpg", ".png"))]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), PART_ROWS)
def test_parts_cover_the_rows_of_every_shard_once(files: int, members: int, rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name, "src"), {f"{i}.jpg": b"" for i in range(files)})
        write_files(Path(name, "src"), {"t.tar": tar_bytes((f"{i}.jpg", b"") for i in range(members))})
        lake = Lake.open_or_create(f"{name}/lake")
        plan_sources(lake, f"{name}/src", part_rows=rows)
        keys = [part.key for part in planned_parts(lake)]
        assert keys == sorted(keys)
        ids = list(
            itertools.chain.from_iterable(
                make_image_id(key.shard, np.arange(key.first_row, key.first_row + key.num_rows)).tolist()
                for key in keys
            )
        )
        expected = [*make_image_id(0, np.arange(files)), *make_image_id(1, np.arange(members))]
        assert ids == expected


@given(st.integers(1, 10**12))
def test_part_rows_are_a_power_of_two_within_bounds(members: int) -> None:
    rows = choose_part_rows(members)
    assert rows & (rows - 1) == 0
    assert 64 <= rows <= 8192
    if 64 < rows < 8192:
        assert 32 < -(-members // rows) <= 64


@given(st.binary(min_size=1, max_size=50).map(lambda raw: b"/" + raw.replace(b"\0", b"_")))
def test_paths_survive_the_uri_column(path: bytes) -> None:
    uri = uri_of_path(path)
    uri.encode("utf-8")
    assert path_of_uri(uri) == path
