"""Searching: order, ties, labels, superseded images, batches, damage, and the table of results."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from index_lakes import EMBEDDINGS, MODEL, brute_force, make_lake, people, stored, write_parts

from facescale.errors import CorruptError, MismatchError, UsageError
from facescale.index import search as search_module
from facescale.index.build import IndexSettings
from facescale.index.finish import build_index
from facescale.index.manifest import read_manifest
from facescale.index.results import RESULTS_SCHEMA, join_hits, results_json, search_table, write_results
from facescale.index.search import Index
from facescale.index.verify import verify_indexes
from facescale.lake.ids import image_id_of, make_image_id, split_ids
from facescale.lake.lake import Lake
from facescale.lake.parts import TableVersion
from facescale.lake.schema import check_table

KINDS = [
    ("faiss", "flat"),
    ("faiss", "ivf_flat"),
    ("faiss", "ivf_sq8"),
    ("faiss", "hnsw"),
    ("hnswlib", "hnsw"),
]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return people(3000, 32)


@pytest.fixture(scope="module")
def flat(vectors, tmp_path_factory) -> tuple[Lake, np.ndarray]:
    """A lake of 3,000 faces, three on an image, with an exact index of two shards."""
    lake, ids = make_lake(tmp_path_factory.mktemp("flat") / "lake", vectors, faces_per_image=3)
    build_index(lake, MODEL, IndexSettings(kind="flat", shard_vectors=1500))
    return lake, ids


def _supersede(lake: Lake, rows: list[int], shard: int = 1) -> None:
    """Plan shard 0 as single images, and a new shard whose sources replace some of them."""

    def plan(number: int, count: int, replaced: list[int] | None) -> None:
        table = pa.table(
            {
                "shard": [number] * count,
                "row": range(count),
                "uri": [f"/photos/{number}/{row}.jpg" for row in range(count)],
                "format": ["image"] * count,
                "bytes": [1] * count,
                "stamp": ["1"] * count,
                "num_rows": [1] * count,
                "part_rows": [256] * count,
                "supersedes": pa.array(replaced or [None] * count, pa.int64()),
                "root": ["/photos"] * count,
            }
        )
        lake.store.write_table(f"sources/{number:07d}.parquet", check_table("sources", table))

    plan(0, 4000, None)
    plan(shard, len(rows), [make_image_id(0, row) for row in rows])


def test_answers_are_those_of_brute_force(flat, vectors) -> None:
    lake, ids = flat
    queries = people(50, 32, seed=9)
    found, sims = Index.open(lake, MODEL).search(7.5 * queries, 20)
    np.testing.assert_array_equal(found, brute_force(stored(vectors), ids, queries, 20))
    every = queries @ stored(vectors).T
    np.testing.assert_allclose(sims, -np.sort(-every, axis=1)[:, :20], atol=2e-6)


@pytest.mark.parametrize(("backend", "kind"), KINDS)
def test_copies_of_a_face_come_in_the_order_of_their_ids(backend, kind, tmp_path, vectors) -> None:
    copies = np.concatenate([np.repeat(vectors[:1], 60, axis=0), vectors[1:1500]])
    lake, _ = make_lake(tmp_path / "lake", copies[np.random.default_rng(0).permutation(len(copies))])
    build_index(lake, MODEL, IndexSettings(backend=backend, kind=kind, shard_vectors=800, num_queries=50))
    index = Index.open(lake, MODEL)
    found, sims = index.search(vectors[:1], 20)
    all_copies, all_sims = index.search(vectors[:1], 60)
    assert (np.diff(sims) <= 0).all() and np.ptp(all_sims) < 1e-6
    if np.ptp(all_sims) == 0:
        assert (np.diff(found) > 0).all() and found[0].tolist() == np.sort(all_copies[0])[:20].tolist()
    # However they are spread over shards, the answer for the same k is the same again.
    np.testing.assert_array_equal(found, index.search(vectors[:1], 20)[0])


@pytest.mark.parametrize(("backend", "kind"), KINDS)
def test_all_faces_can_be_asked_for(backend, kind, tmp_path, vectors) -> None:
    lake, ids = make_lake(tmp_path / "lake", vectors[:300])
    build_index(lake, MODEL, IndexSettings(backend=backend, kind=kind, num_queries=20))
    found, sims = Index.open(lake, MODEL).search(vectors[:4], 310)
    assert (found[:, 300:] == -1).all() and np.isnan(sims[:, 300:]).all()
    assert np.array_equal(np.sort(found[:, :300], axis=1), np.tile(ids, (4, 1)))


def test_thousands_of_queries_pass_in_batches(flat, vectors, monkeypatch) -> None:
    lake, _ = flat
    queries = people(5000, 32, seed=3)
    index = Index.open(lake, MODEL)
    whole = index.search(queries, 5)
    from facescale.index import shards

    seen: list[int] = []
    original = type(index.shards._resident[0]).search

    def spy(self, rows, *arguments, **options):
        seen.append(len(rows))
        return original(self, rows, *arguments, **options)

    monkeypatch.setattr(shards, "QUERY_ROWS", 512)
    monkeypatch.setattr(search_module, "_FETCH_ENTRIES", 20_000)
    monkeypatch.setattr(type(index.shards._resident[0]), "search", spy)
    batched = index.search(queries, 5)
    # Products of other sizes round differently, so faces within 1e-7 of each other may trade places.
    np.testing.assert_allclose(whole[1], batched[1], atol=1e-6)
    assert (whole[0] == batched[0]).mean() > 0.999
    assert max(seen) <= 512 and len(seen) >= 20


def test_streamed_shards_give_the_same_answers(flat, vectors) -> None:
    lake, _ = flat
    resident, streamed = Index.open(lake, MODEL), Index.open(lake, MODEL, memory_bytes=1000)
    assert resident.shards.is_resident and not streamed.shards.is_resident
    for a, b in zip(resident.search(vectors[:9], 7), streamed.search(vectors[:9], 7), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("backend", "kind"), KINDS)
def test_superseded_images_are_not_found_and_cost_no_places(backend, kind, tmp_path, vectors) -> None:
    copies = np.concatenate([np.repeat(vectors[:1], 40, axis=0), vectors[:1500]])
    lake, ids = make_lake(tmp_path / "lake", copies)
    build_index(lake, MODEL, IndexSettings(backend=backend, kind=kind, shard_vectors=900, num_queries=50))
    assert Index.open(lake, MODEL).search(vectors[:1], 5)[0].max() < ids[41]
    _supersede(lake, list(range(40)))
    found, sims = Index.open(lake, MODEL).search(vectors[:50], 5)
    assert not np.isin(image_id_of(found), image_id_of(ids[:40])).any()
    assert (found != -1).all() and not np.isnan(sims).any()
    if kind == "flat":
        np.testing.assert_array_equal(found, brute_force(stored(vectors[:1500]), ids[40:], vectors[:50], 5))
    # Also when next to nothing is left.
    found, _ = Index.open(lake, MODEL).search(vectors[:2], 1540)
    assert (found != -1).sum(1).tolist() == [1500, 1500]


@pytest.mark.parametrize(("backend", "kind"), KINDS)
@pytest.mark.parametrize("limit", [0, 200_000])
def test_a_label_filter_finds_the_best_of_the_label(
    backend, kind, limit, tmp_path, vectors, monkeypatch
) -> None:
    monkeypatch.setattr(search_module, "_EXACT_LABEL_FACES", limit)
    lake, ids = make_lake(tmp_path / "lake", vectors, faces_per_image=3)
    build_index(lake, MODEL, IndexSettings(backend=backend, kind=kind, num_queries=50))
    _supersede(lake, [2])
    _, rows, _ = split_ids(ids)
    of_label = (rows % 7 == 2) & (rows != 2)
    index = Index.open(lake, MODEL)
    found, _ = index.search(vectors[:30], 12, label="person 2")
    truth = brute_force(stored(vectors)[of_label], ids[of_label], vectors[:30], 12)
    assert np.isin(found, ids[of_label]).all()
    if limit or kind in ("flat", "hnsw"):  # brute force, or a graph, which cannot select
        np.testing.assert_array_equal(found, truth)
    else:
        assert (found[:, :, None] == truth[:, None, :]).any(2).mean() > 0.95
    every, _ = index.search(vectors[:2], of_label.sum() + 5, label="person 2")
    assert (every != -1).sum(1).tolist() == [of_label.sum()] * 2


def test_an_unknown_label_suggests_similar_ones(flat, vectors) -> None:
    lake, _ = flat
    with pytest.raises(UsageError, match=r"no image claims the label 'persn 2'; similar ones: .*'person 2'"):
        Index.open(lake, MODEL).search(vectors[:1], 3, label="persn 2")


def test_a_lake_without_labels_cannot_be_filtered(tmp_path, vectors) -> None:
    lake, _ = make_lake(tmp_path / "lake", vectors[:100])
    build_index(lake, MODEL, IndexSettings())
    content = lake.store.read_bytes("lake.yaml").decode()
    start = content.index("  labels:")
    lake.store.write_bytes(
        "lake.yaml", (content[:start] + content[content.index("format_version") :]).encode()
    )
    assert lake.current("labels") is None and lake.current("index", MODEL)
    index = Index.open(lake, MODEL)
    with pytest.raises(UsageError, match="no labels to filter by"):
        index.search(vectors[:1], 3, label="person 2")
    table = search_table(index, ["q"], vectors[:1], k=2)
    assert table["label"].to_pylist() == [None, None]


def test_wrong_queries_are_refused(flat, vectors) -> None:
    index = Index.open(flat[0], MODEL)
    with pytest.raises(MismatchError, match="dimension 16, and the index of toy has 32"):
        index.search(vectors[:1, :16], 3)
    with pytest.raises(UsageError, match="query row 1 is zero"):
        index.search(np.stack([vectors[0], np.zeros(32, np.float32)]), 3)
    with pytest.raises(UsageError, match="k: 0"):
        index.search(vectors[:1], 0)


def test_wrong_models_and_versions_are_refused(tmp_path, vectors) -> None:
    lake, _ = make_lake(tmp_path / "lake", vectors[:100])
    with pytest.raises(UsageError, match="no finished index of toy: run `facescale index"):
        Index.open(lake, MODEL)
    build = build_index(lake, MODEL, IndexSettings())
    with pytest.raises(UsageError, match="no finished index of arcface; there are indexes of toy"):
        Index.open(lake, "arcface")
    with pytest.raises(MismatchError, match="indexes toy, and the queries are of arcface"):
        Index.open(lake, "arcface", version=build.version)
    # Other embeddings became current: the ids of the index may mean other faces.
    newer = TableVersion("embeddings", "9" * 12, MODEL)
    write_parts(lake, vectors[:100], embeddings=newer)
    with pytest.raises(
        MismatchError, match=rf"was built from {EMBEDDINGS.folder}, and {newer.folder} is current"
    ):
        Index.open(lake, MODEL)


def test_an_index_whose_job_died_before_it_was_made_current_is_found(tmp_path, vectors) -> None:
    lake, _ = make_lake(tmp_path / "lake", vectors[:100])
    before = lake.store.read_bytes("lake.yaml")
    build = build_index(lake, MODEL, IndexSettings())
    lake.store.write_bytes("lake.yaml", before)
    assert lake.current("index", MODEL) is None
    assert Index.open(lake, MODEL).version == build.version


@pytest.mark.parametrize("backend", ["faiss", "hnswlib"])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_damaged_shards_are_named_with_the_remedy(backend, damage, tmp_path, vectors) -> None:
    lake, _ = make_lake(tmp_path / "lake", vectors[:500])
    build = build_index(lake, MODEL, IndexSettings(backend=backend))
    path = f"{build.version.folder}/0000000.faiss"
    data = bytearray(lake.store.read_bytes(path))
    if damage == "missing":
        lake.store.delete(path)
    elif damage == "cut":
        lake.store.write_bytes(path, bytes(data[:-5]))
    else:
        data[len(data) // 2] ^= 1
        lake.store.write_bytes(path, bytes(data))
    what = {"missing": "is missing", "cut": "bytes, and its record says", "flipped": "sha256"}[damage]
    with pytest.raises(CorruptError, match=rf"0000000\.faiss .*{what}.*delete .* and run `facescale index"):
        Index.open(lake, MODEL).search(vectors[:1], 1)
    (problem,) = verify_indexes(lake)
    assert problem.path == path and build.version.folder in problem.remedy
    # The remedy works.
    lake.store.delete_tree(build.version.folder)
    build_index(lake, MODEL, IndexSettings(backend=backend))
    assert Index.open(lake, MODEL).search(vectors[:1], 1)[0][0, 0] >= 0
    assert verify_indexes(lake) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda text: text[:-20], CorruptError, "manifest.json is damaged"),
        (lambda text: text.replace('"dim": 32,', ""), CorruptError, "manifest.json is damaged"),
        (
            lambda text: text.replace('"manifest_version": 1', '"manifest_version": 9'),
            MismatchError,
            "version 9",
        ),
        (lambda text: text.replace('"cosine"', '"l2"'), MismatchError, "metric 'l2'"),
    ],
)
def test_damaged_manifests(change, error, message, tmp_path, vectors) -> None:
    lake, _ = make_lake(tmp_path / "lake", vectors[:100])
    build = build_index(lake, MODEL, IndexSettings())
    path = f"{build.version.folder}/manifest.json"
    lake.store.write_bytes(path, change(lake.store.read_bytes(path).decode()).encode())
    with pytest.raises(error, match=rf"{message}.*run `facescale index`"):
        Index.open(lake, MODEL)
    assert [problem.path for problem in verify_indexes(lake)] == [path]


def test_a_manifest_survives_a_round_trip(flat) -> None:
    lake, _ = flat
    version = lake.current("index", MODEL)
    manifest = read_manifest(lake.store, version)
    assert manifest.to_bytes() == lake.store.read_bytes(f"{version.folder}/manifest.json")


def test_results_say_where_each_face_is(flat, vectors, tmp_path) -> None:
    lake, ids = flat
    index = Index.open(lake, MODEL)
    table = search_table(index, ["b.jpg", "a.jpg"], vectors[[500, 4]], k=4)
    assert table.schema.equals(RESULTS_SCHEMA)
    assert table["query"].to_pylist() == ["b.jpg"] * 4 + ["a.jpg"] * 4
    assert table["rank"].to_pylist() == [1, 2, 3, 4] * 2
    assert table["face_id"][0].as_py() == ids[500] and table["face_id"][4].as_py() == ids[4]
    for row in table.to_pylist():
        _, image_row, ordinal = split_ids(row["face_id"])
        assert row["uri"] == f"/photos/{image_id_of(row['face_id'])}.jpg"
        assert row["box"][:2] == [image_row % 1000, ordinal]
        assert row["label"] == f"person {image_row % 7}"

    write_results(table, tmp_path / "hits.parquet")
    found = duckdb.sql(f"select query, face_id from '{tmp_path}/hits.parquet' where rank = 1").fetchall()
    assert found == [("b.jpg", ids[500]), ("a.jpg", ids[4])]
    assert results_json(table)[0]["face_id"] == str(ids[500])


def test_results_can_be_cut_by_similarity(flat, vectors) -> None:
    lake, _ = flat
    index = Index.open(lake, MODEL)
    table = search_table(index, ["a", "b"], vectors[:2], k=10, min_similarity=0.99)
    assert table["rank"].to_pylist() == [1, 1]
    assert search_table(index, ["a"], vectors[:1], min_similarity=1.0).num_rows <= 1
    assert join_hits(lake, ["a"], np.full((1, 3), -1), np.full((1, 3), np.nan, np.float32)).num_rows == 0
    with pytest.raises(UsageError, match="2 queries with 1 names"):
        search_table(index, ["a"], vectors[:2])


@pytest.mark.parametrize(("backend", "kind"), KINDS)
def test_faces_below_a_quality_leave_their_places_to_others(backend, kind, tmp_path, vectors) -> None:
    """Nine of ten are poor, so that the first answers must be asked for again; what nobody measured stays."""
    quality = np.where(np.arange(1200) % 10 == 0, 0.8, 0.3)
    quality[5::50] = np.nan
    lake, ids = make_lake(tmp_path / "lake", vectors[:1200], faces_per_image=2, quality=quality)
    build_index(lake, MODEL, IndexSettings(backend=backend, kind=kind, shard_vectors=700, num_queries=50))
    good = ~(quality < 0.5)
    index = Index.open(lake, MODEL)
    found, sims = index.search(vectors[:30], 8, min_quality=0.5)
    assert np.isin(found, ids[good]).all() and (np.diff(sims) <= 0).all()
    if kind == "flat":
        np.testing.assert_array_equal(
            found, brute_force(stored(vectors[:1200])[good], ids[good], vectors[:30], 8)
        )
    # Also of a label's faces, and when all are asked for.
    labeled = (image_id_of(ids) >> 8) % 7 == 3
    mine, _ = index.search(vectors[:3], 1200, label="person 3", min_quality=0.5)
    np.testing.assert_array_equal(
        np.sort(mine[:, : (good & labeled).sum()]), np.tile(ids[good & labeled], (3, 1))
    )
    assert (mine[:, (good & labeled).sum() :] == -1).all()
    everything, _ = index.search(vectors[:2], 1200, min_quality=0.5)
    assert (everything != -1).sum(1).tolist() == [good.sum()] * 2
    table = search_table(index, ["a"], vectors[:1], k=5, min_quality=0.9)
    assert set(table["face_id"].to_pylist()) <= set(ids[np.isnan(quality)].tolist()) and table.num_rows == 5


def test_a_lake_without_measured_quality_is_searched_whole(flat, vectors) -> None:
    index = Index.open(flat[0], MODEL)
    np.testing.assert_array_equal(
        index.search(vectors[:5], 6, min_quality=1.0)[0], index.search(vectors[:5], 6)[0]
    )
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match=r"min_quality: expected 0\.\.1"):
            index.search(vectors[:1], 1, min_quality=wrong)


def test_several_claims_on_an_image_are_joined(tmp_path, vectors) -> None:
    lake, ids = make_lake(tmp_path / "lake", vectors[:50])
    build_index(lake, MODEL, IndexSettings())
    labels = lake.current("labels")
    path = f"{labels.folder}/0000000/0000000000.parquet"
    table = lake.store.read_table(path)
    extra = pa.table({"image_id": [image_id_of(int(ids[3]))], "label": ["alias"], "origin": ["file:name"]})
    merged = pa.concat_tables([table, check_table("labels", extra)]).sort_by("image_id")
    lake.store.write_table(path, merged.slice(0, 45).replace_schema_metadata(table.schema.metadata))
    table = search_table(Index.open(lake, MODEL), ["a", "b"], vectors[[3, 49]], k=1)
    assert table["label"].to_pylist() == ["alias; person 3", None]
