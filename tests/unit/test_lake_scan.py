"""Scans: what they yield, what they leave out, what they refuse, and what they do not open."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from lake_samples import TABLES, commit, new_uri, part_tables, sample_lake, versions_of, write_plan

from facescale.errors import CorruptError, DataError
from facescale.lake.ids import image_id_of, make_image_id, split_ids
from facescale.lake.lineage import images_of
from facescale.lake.parts import PartKey, TableVersion, commit_part, list_done
from facescale.lake.scan import count_rows, scan, scan_ids, sum_counters


@pytest.fixture(params=["local", "memory"])
def sample(request, tmp_path):
    return sample_lake(new_uri(request.param, tmp_path))


def opened(monkeypatch, store) -> list[str]:
    """Paths of the Parquet files opened from now on."""
    paths, open_parquet = [], type(store).open_parquet
    monkeypatch.setattr(
        type(store), "open_parquet", lambda self, path: (paths.append(path), open_parquet(self, path))[1]
    )
    return paths


@pytest.mark.parametrize("table", TABLES)
def test_a_scan_gives_every_row_in_order(sample, table):
    tables = list(scan(sample.lake, sample.versions[table]))
    assert len(tables) == len(sample.parts)
    assert pa.concat_tables(tables).equals(sample.expected(table))


def test_columns_in_the_order_asked(sample):
    tables = list(scan(sample.lake, sample.versions["embeddings"], columns=["norm", "face_id"]))
    assert all(table.column_names == ["norm", "face_id"] for table in tables)
    assert pa.concat_tables(tables).equals(sample.expected("embeddings").select(["norm", "face_id"]))
    with pytest.raises(DataError, match="table faces has no column 'age'; it has face_id, box"):
        list(scan(sample.lake, sample.versions["faces"], columns=["age"]))


@pytest.mark.parametrize("batch_rows", [1, 10, 37, 64, 10**6])
def test_batches_are_bounded(sample, batch_rows):
    tables = list(scan(sample.lake, sample.versions["images"], batch_rows=batch_rows))
    assert max(table.num_rows for table in tables) <= batch_rows
    assert pa.concat_tables(tables).equals(sample.expected("images"))


def test_row_groups_are_read_as_they_are_needed(tmp_path):
    lake = sample_lake(str(tmp_path / "lake"), {0: 64}).lake
    version = TableVersion("labels", "0" * 12)
    N = 150_000
    labels = pa.table(
        {"image_id": np.zeros(N, np.int64), "label": ["x"] * N, "origin": np.arange(N).astype(str)}
    )
    commit_part(lake.store, PartKey(0, 0, 64), [(version, labels)])
    sizes = [table.num_rows for table in scan(lake, version, columns=["origin"], batch_rows=65_536)]
    assert sizes == [65_536, 65_536, N - 2 * 65_536]
    assert [t.num_rows for t in scan(lake, version, batch_rows=2 * 65_536)] == [2 * 65_536, N - 2 * 65_536]


def test_only_the_parts_asked_for_are_opened(sample, monkeypatch):
    paths = opened(monkeypatch, sample.lake.store)
    wanted = [sample.parts[2], sample.parts[0], PartKey(99, 0, 64)]
    tables = list(scan(sample.lake, sample.versions["faces"], parts=wanted, drop_superseded=False))
    expected = [part_tables(part)["faces"].num_rows for part in wanted[:2]]
    assert [table.num_rows for table in tables] == expected
    assert {path for path in paths if path.startswith("faces")} == {
        sample.path("faces", 2),
        sample.path("faces", 0),
    }


def test_unfinished_parts_are_not_seen(sample):
    sample.lake.store.delete(sample.path("images", 1))
    left = [part for i, part in enumerate(sample.parts) if i != 1]
    for table in TABLES:
        tables = list(scan(sample.lake, sample.versions[table]))
        assert [t.num_rows for t in tables] == [part_tables(part)[table].num_rows for part in left]
        assert count_rows(sample.lake, sample.versions[table]) == sum(t.num_rows for t in tables)


def test_a_listing_at_hand_is_used(sample):
    done = list_done(sample.lake.store, sample.versions["images"])
    commit(sample.lake, PartKey(5, 0, 30), sample.versions)
    for kind in ({"done": done}, {"done": done, "parts": [*sample.parts, PartKey(5, 0, 30)]}):
        tables = list(scan(sample.lake, sample.versions["faces"], **kind))
        assert pa.concat_tables(tables).equals(sample.expected("faces"))
    assert count_rows(sample.lake, sample.versions["faces"], done=done) == sample.expected("faces").num_rows
    assert count_rows(sample.lake, sample.versions["faces"]) > sample.expected("faces").num_rows


def test_a_sibling_with_other_rows_is_corrupt(sample):
    version, part = sample.versions["faces"], sample.parts[1]
    sample.lake.store.write_table(version.part_path(part), sample.expected("faces").slice(0, 5))
    with pytest.raises(CorruptError, match="has 5 rows, and its `images` file was committed with") as caught:
        list(scan(sample.lake, version))
    assert sample.path("faces", 1) in str(caught.value)


def test_a_sibling_with_other_bytes_is_corrupt(sample):
    version, part = sample.versions["faces"], sample.parts[1]
    table = sample.lake.store.read_table(version.part_path(part))
    sample.lake.store.write_table(version.part_path(part), table, footer={"extra": "x" * 100})
    with pytest.raises(CorruptError, match="bytes, and its `images` file was committed with"):
        list(scan(sample.lake, version))


def test_a_sibling_remade_by_a_later_job_may_have_other_bytes(sample):
    version, part = sample.versions["embeddings"], sample.parts[1]
    table = sample.lake.store.read_table(version.part_path(part))
    sample.lake.store.delete(version.part_path(part))
    commit_part(sample.lake.store, part, [(version, table)], counters={"faces": table.num_rows})
    assert pa.concat_tables(list(scan(sample.lake, version))).equals(sample.expected("embeddings"))


def test_a_missing_sibling_of_a_done_part_is_corrupt(sample):
    sample.lake.store.delete(sample.path("crops", 1))
    with pytest.raises(
        CorruptError, match=r"is missing, though its part is done; delete .*images/.* and rerun"
    ):
        list(scan(sample.lake, sample.versions["crops"]))


def test_a_table_that_a_later_job_is_still_making_gives_what_there_is(sample):
    later = TableVersion("embeddings", "e" * 12, "other")
    inputs = {"faces": sample.versions["faces"].fingerprint}
    sample.lake.write_version(later, stage="embed", settings={}, revision=1, inputs=inputs)
    table = part_tables(sample.parts[2])["embeddings"]
    commit_part(sample.lake.store, sample.parts[2], [(later, table)])
    assert [t.num_rows for t in scan(sample.lake, later)] == [table.num_rows]


def test_superseded_images_are_left_out(sample):
    gone = make_image_id(0, np.array([2, 5, 70]))
    write_plan(sample.lake, 7, [1, 1, 0], format=["image", "image", "gone"], supersedes=gone.tolist())
    for table in TABLES:
        column = "image_id" if table == "images" else "face_id"
        everything = sample.expected(table)
        keep = ~np.isin(image_id_of(everything.column(column).to_numpy()), gone)
        assert 0 < keep.sum() < len(keep)
        kept = everything.filter(pa.array(keep))
        version = sample.versions[table]
        assert pa.concat_tables(list(scan(sample.lake, version))).equals(kept)
        without_id = everything.column_names[1:]
        found = pa.concat_tables(list(scan(sample.lake, version, columns=without_id)))
        assert found.equals(kept.select(without_id))
        found = pa.concat_tables(list(scan(sample.lake, version, drop_superseded=gone)))
        assert found.equals(kept)
        found = pa.concat_tables(list(scan(sample.lake, version, drop_superseded=False)))
        assert found.equals(everything)


def test_a_wholly_superseded_part_yields_nothing(tmp_path):
    sample = sample_lake(str(tmp_path / "lake"), {0: 10})
    gone = make_image_id(0, np.arange(10))
    assert list(scan(sample.lake, sample.versions["images"], drop_superseded=gone)) == []


def test_files_older_than_a_nullable_column_are_filled(tmp_path):
    sample = sample_lake(str(tmp_path / "lake"), {0: 64})
    path = sample.path("faces")
    footer = sample.lake.store.read_footer(sample.path("images"))
    old = sample.lake.store.read_table(path).drop(["roll_deg"])
    size = sample.lake.store.write_table(path, old)
    said = footer["facescale.siblings"].replace(str(dict(sample.lake.store.list())[path]), str(size))
    images = sample.lake.store.read_table(sample.path("images"))
    import json

    siblings = json.loads(said)
    siblings[sample.versions["faces"].folder]["bytes"] = size
    sample.lake.store.write_table(
        sample.path("images"), images, footer={"facescale.siblings": json.dumps(siblings)}
    )
    table = pa.concat_tables(list(scan(sample.lake, sample.versions["faces"])))
    assert table.column_names == sample.expected("faces").column_names
    assert table.column("roll_deg").null_count == table.num_rows
    ids = table.column("face_id").to_numpy()[:2]
    assert (
        scan_ids(sample.lake, sample.versions["faces"], ids, ["roll_deg"]).to_pylist()
        == [{"roll_deg": None}] * 2
    )


def test_sum_counters(sample):
    images = sample.versions["images"]
    faces = sample.expected("faces").num_rows
    assert sum_counters(sample.lake, images) == {"faces": faces, "images": 190}
    assert sum_counters(sample.lake, images, iter(sample.parts[:2])) == {
        "faces": sum(part_tables(part)["faces"].num_rows for part in sample.parts[:2]),
        "images": 128,
    }
    assert sum_counters(sample.lake, images, []) == {}


def test_ids_come_back_in_the_order_asked(sample):
    everything = sample.expected("embeddings")
    ids = everything.column("face_id").to_numpy()
    order = np.random.default_rng(0).permutation(len(ids))[:50]
    order = np.concatenate([order, order[:5]])
    found = scan_ids(sample.lake, sample.versions["embeddings"], ids[order], ["norm", "face_id", "embedding"])
    assert found.equals(everything.take(order).select(["norm", "face_id", "embedding"]))
    assert scan_ids(sample.lake, sample.versions["embeddings"], ids[:0]).num_rows == 0
    assert (
        scan_ids(sample.lake, sample.versions["embeddings"], ids[:0]).column_names == everything.column_names
    )


def test_ids_open_only_their_parts(sample, monkeypatch):
    version = sample.versions["faces"]
    ids = sample.expected("faces").column("face_id").to_numpy()
    shards, rows, _ = split_ids(ids)
    wanted = ids[(shards == 0) & (rows >= 64) & (rows < 70)]
    paths = opened(monkeypatch, sample.lake.store)
    assert scan_ids(sample.lake, version, wanted, ["face_id"]).column(0).to_pylist() == wanted.tolist()
    assert paths == [sample.path("faces", 1)]


def test_ids_read_only_their_row_groups(tmp_path, monkeypatch):
    sample = sample_lake(str(tmp_path / "lake"), {0: 64})
    table = pa.table({"face_id": make_image_id(0, np.arange(1000)) + 1, "jpeg": [b"\xff" * 20_000] * 1000})
    sample.lake.store.write_table(sample.path("crops"), table)
    from facescale.lake import parquet

    read, groups = parquet.read_rows, []
    monkeypatch.setattr(
        parquet, "read_rows", lambda f, w, c, g=None: (groups.append(list(g)), read(f, w, c, g))[1]
    )
    ids = table.column("face_id").to_numpy()
    scan_ids(sample.lake, sample.versions["crops"], ids[[130, 140, 990]], ["face_id", "jpeg"])
    assert groups == [[1, 7]]


def test_ids_without_a_row(sample):
    version = sample.versions["faces"]
    ids = sample.expected("faces").column("face_id").to_numpy()
    nowhere = np.array([ids[0] + 200, make_image_id(1, 0) + 1, make_image_id(4, 9) + 1])
    with pytest.raises(DataError, match=f"3 ids have no row in .*{version.folder}, among them {nowhere[0]}"):
        scan_ids(sample.lake, version, np.concatenate([ids[:3], nowhere]))
    with pytest.raises(DataError, match="1 ids have no row"):
        scan_ids(sample.lake, version, nowhere[1:2])
    found = scan_ids(sample.lake, version, np.concatenate([nowhere, ids[:3]]), ["face_id"], missing="skip")
    assert found.column(0).to_pylist() == ids[:3].tolist()
    assert scan_ids(sample.lake, version, nowhere, ["face_id"], missing="skip").num_rows == 0


def test_ids_with_several_rows(sample):
    version = TableVersion("labels", "0" * 12)
    ids = make_image_id(0, np.array([1, 1, 4]))
    labels = pa.table({"image_id": ids, "label": ["a", "b", "c"], "origin": ["folder"] * 3})
    commit_part(sample.lake.store, sample.parts[0], [(version, labels)])
    wanted = make_image_id(0, np.array([4, 2, 1, 4]))
    found = scan_ids(sample.lake, version, wanted, ["label"], missing="skip")
    assert found.column(0).to_pylist() == ["c", "a", "b", "c"]


def test_images_of_several_versions(tmp_path):
    sample = sample_lake(str(tmp_path / "lake"))
    lake = sample.lake
    assert images_of(lake, sample.versions["images"]) is None
    other = versions_of("b")
    commit(lake, sample.parts[0], other)
    for version in other.values():
        lake.write_version(version, stage="extract", settings={}, revision=1, inputs={})
    for versions in (sample.versions, other):
        for table in ("faces", "crops", "embeddings"):
            assert images_of(lake, versions[table]) == versions["images"]
    by_embed = TableVersion("embeddings", "e" * 12, "other")
    inputs = {"crops": other["crops"].fingerprint}
    lake.write_version(by_embed, stage="embed", settings={}, revision=1, inputs=inputs)
    assert images_of(lake, by_embed) == other["images"]
    assert images_of(lake, TableVersion("embeddings", "f" * 12)) == sample.versions["images"]
    # Faces of the other version: only its one finished part.
    assert [t.num_rows for t in scan(lake, other["faces"])] == [
        part_tables(sample.parts[0])["faces"].num_rows
    ]
