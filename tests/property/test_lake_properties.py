"""Properties of ids, fingerprints, listings and look-ups that must hold for any input."""

from __future__ import annotations

import json
import uuid

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facescale.errors import DataError
from facescale.lake.fingerprint import fingerprint, parts_digest
from facescale.lake.ids import (
    MAX_FACES,
    MAX_ROW,
    MAX_SHARD,
    image_id_of,
    make_face_id,
    make_image_id,
    split_ids,
)
from facescale.lake.lake import Lake
from facescale.lake.parquet import MAX_WIDE_ROWS, MIN_ROWS, row_group_rows
from facescale.lake.parts import DoneParts, PartKey, TableVersion, commit_part, list_done
from facescale.lake.scan import scan, scan_ids
from facescale.lake.sources_table import superseded_ids
from facescale.lake.store import Store

# A busy machine is no defect of the code under test.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

shards = st.integers(0, MAX_SHARD)
rows = st.integers(0, MAX_ROW)
ordinals = st.integers(1, MAX_FACES)
places = st.tuples(shards, rows, ordinals)


@CALM
@given(st.lists(places))
def test_ids_round_trip(where):
    s, r, o = (np.array([p[i] for p in where], np.int64) for i in range(3))
    images = make_image_id(s, r)
    faces = make_face_id(images, o)
    assert (faces > 0).all()
    assert (image_id_of(faces) == images).all()
    assert [part.tolist() for part in split_ids(faces)] == [s.tolist(), r.tolist(), o.tolist()]
    assert [part.tolist() for part in split_ids(images)] == [s.tolist(), r.tolist(), [0] * len(where)]
    for (shard, row, ordinal), face in zip(where, faces.tolist(), strict=True):
        assert make_face_id(make_image_id(shard, row), ordinal) == face
        assert split_ids(face) == (shard, row, ordinal)


@CALM
@given(places, places)
def test_ids_sort_as_their_places(one, two):
    ids = [make_face_id(make_image_id(s, r), o) for s, r, o in (one, two)]
    assert (ids[0] < ids[1]) == (one < two)
    assert (ids[0] == ids[1]) == (one == two)


@CALM
@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_no_id_out_of_range_is_ever_made(shard, row):
    legal = 0 <= shard <= MAX_SHARD and 0 <= row <= MAX_ROW
    if legal:
        assert split_ids(make_image_id(shard, row)) == (shard, row, 0)
    else:
        with pytest.raises(DataError):
            make_image_id(shard, row)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def shuffled(value, random):
    """The same JSON with the keys of every object in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, random)) for key, item in value.items()]
        random.shuffle(items)
        return dict(items)
    return [shuffled(item, random) for item in value] if isinstance(value, list) else value


@CALM
@given(st.dictionaries(st.text(), values, max_size=6), st.randoms(use_true_random=False))
def test_fingerprints_ignore_key_order_and_nothing_else(told, random):
    name = fingerprint("stage", told, 1, {"a": "x"})
    assert len(name) == 12
    assert int(name, 16) >= 0
    assert fingerprint("stage", shuffled(told, random), 1, {"a": "x"}) == name
    assert fingerprint("stage", json.loads(json.dumps(told)), 1, {"a": "x"}) == name
    assert fingerprint("stage", {**told, "another key": 0}, 1, {"a": "x"}) != fingerprint(
        "stage", {**told, "another key": 1}, 1, {"a": "x"}
    )


@CALM
@given(st.lists(st.tuples(shards, rows)), st.randoms(use_true_random=False))
def test_parts_digest_is_of_the_set(pairs, random):
    again = [*pairs, *pairs]
    random.shuffle(again)
    assert parts_digest(again) == parts_digest(pairs)
    extra = (MAX_SHARD, MAX_ROW)
    assert (parts_digest([*pairs, extra]) == parts_digest(pairs)) == (extra in pairs)


part_pairs = st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9).map(lambda i: 64 * i)), max_size=30)


@settings(CALM, max_examples=40)
@given(
    part_pairs,
    part_pairs,
    st.sets(st.sampled_from(["_version.json", "0000001/x.parquet", "0000001/1.parquet"])),
)
def test_list_done_is_the_set_of_files(present, asked, junk):
    store = Store(f"memory://{uuid.uuid4().hex}")
    version = TableVersion("images", "0" * 12)
    for shard, first_row in present:
        store.write_bytes(version.part_path(PartKey(shard, first_row, 1)), b"123")
    for name in junk:
        store.write_bytes(f"{version.folder}/{name}", b"")
    done = list_done(store, version)
    assert len(done) == len(present)
    assert list(done.pairs()) == sorted(present)
    assert done.num_bytes == 3 * len(present)
    for pair in asked | present:
        assert (pair in done) == (pair in present)
        assert (PartKey(*pair, 64) in done) == (pair in present)
        before = [p for p in present if p[0] == pair[0] and p[1] <= pair[1]]
        assert done.part_holding(*pair) == (max(before) if before else None)
    other = DoneParts(np.array([shard << 32 | row for shard, row in asked], np.int64))
    assert done.covers(other) == (asked <= present)
    store.delete_tree("images")


@settings(CALM, max_examples=40)
@given(
    st.dictionaries(
        st.integers(0, 2),
        st.lists(st.integers(0, 63), min_size=0, max_size=30),
        min_size=1,
    ),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 70)), max_size=20),
    st.integers(1, 40),
)
def test_looking_ids_up_is_a_dictionary(parts, asked, batch_rows):
    lake = Lake.create(f"memory://{uuid.uuid4().hex}")
    version = TableVersion("labels", "0" * 12)
    labels: dict[int, list[str]] = {}
    streamed = []
    for shard in sorted(parts):
        ids = [make_image_id(shard, row) for row in sorted(parts[shard])]
        names = [f"{shard}-{i}" for i in range(len(ids))]
        for image_id, name in zip(ids, names, strict=True):
            labels.setdefault(image_id, []).append(name)
        streamed += names
        table = pa.table(
            {
                "image_id": pa.array(ids, pa.int64()),
                "label": pa.array(names, pa.string()),
                "origin": ["folder"] * len(ids),
            }
        )
        commit_part(lake.store, PartKey(shard, 0, 64), [(version, table)])
    wanted = np.array([make_image_id(*place) for place in asked], np.int64)
    found = scan_ids(lake, version, wanted, ["label"], missing="skip").column("label").to_pylist()
    assert found == [name for image_id in wanted.tolist() for name in labels.get(image_id, [])]
    tables = list(scan(lake, version, columns=["label"], batch_rows=batch_rows))
    assert [name for table in tables for name in table.column("label").to_pylist()] == streamed
    assert all(0 < table.num_rows <= batch_rows for table in tables)
    lake.store.delete_tree("labels")


@settings(CALM, max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.data())
def test_superseded_ids_are_the_members_of_replaced_sources(counts, data):
    store = Store(f"memory://{uuid.uuid4().hex}")
    starts = np.cumsum([0, *counts])[:-1].tolist()
    replaced = data.draw(st.sets(st.sampled_from(range(len(counts)))))
    plans = {
        0: {"row": starts, "num_rows": counts, "supersedes": pa.nulls(len(counts), pa.int64())},
        1: {
            "row": list(range(len(replaced))),
            "num_rows": [1] * len(replaced),
            "supersedes": pa.array([make_image_id(0, starts[i]) for i in sorted(replaced)], pa.int64()),
        },
    }
    paths = []
    for shard, plan in plans.items():
        paths.append(f"sources/{shard:07d}.parquet")
        store.write_table(paths[-1], pa.table({k: pa.array(v, pa.int64()) for k, v in plan.items()}))
    expected = [make_image_id(0, starts[i] + k) for i in sorted(replaced) for k in range(counts[i])]
    assert superseded_ids(store, paths).tolist() == expected
    store.delete_tree("sources")


@CALM
@given(st.lists(st.integers(0, 40_000), max_size=30))
def test_row_groups_are_bounded_powers_of_two(sizes):
    table = pa.table({"jpeg": pa.array([b"x" * size for size in sizes], pa.binary())})
    count = row_group_rows(table)
    assert count & (count - 1) == 0
    if sum(sizes):
        assert MIN_ROWS <= count <= MAX_WIDE_ROWS
