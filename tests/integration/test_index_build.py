"""Building: every kind, recall as measured, resume, determinism, fall-back, staleness, damage."""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pytest
from index_lakes import EMBEDDINGS, MODEL, brute_force, make_lake, people, stored, write_parts

from facescale.errors import CorruptError, IncompleteError, InfrastructureError, UsageError
from facescale.index import backends, stages
from facescale.index.build import IndexSettings, plan_index
from facescale.index.finish import build_index, check_training, finish_index
from facescale.index.manifest import read_manifest
from facescale.index.search import Index
from facescale.index.stages import IndexStage, TrainStage, training_units, units_to_do
from facescale.index.vectors import draw_sample, read_blocks
from facescale.lake.lake import Lake
from facescale.lake.parts import PartKey, TableVersion, list_done
from facescale.lake.stage import Guard

KINDS = [
    ("faiss", "flat"),
    ("faiss", "ivf_flat"),
    ("faiss", "ivf_fp16"),
    ("faiss", "ivf_sq8"),
    ("faiss", "hnsw"),
    ("hnswlib", "hnsw"),
]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return people(6000, 32)


def _settings(backend: str = "faiss", kind: str = "ivf_flat", **more) -> IndexSettings:
    return IndexSettings(
        **{"backend": backend, "kind": kind, "shard_vectors": 2500, "num_queries": 200, **more}
    )


def _run(stage, units) -> None:
    stage.open()
    for unit in units:
        stage.process(unit, Guard())


def _files(lake: Lake, folder: str) -> dict[str, bytes]:
    return {
        path: lake.store.read_bytes(path) for path, _ in lake.store.list(folder) if path.endswith(".faiss")
    }


@pytest.mark.parametrize(("backend", "kind"), KINDS)
def test_recall_meets_the_target_and_is_what_the_manifest_says(backend, kind, vectors, tmp_path) -> None:
    lake, ids = make_lake(tmp_path / "lake", vectors)
    build = build_index(lake, MODEL, _settings(backend, kind))
    manifest = read_manifest(lake.store, build.version)
    assert (manifest.count, len(manifest.shards), manifest.layout.kind) == (6000, 3, kind)
    measured = manifest.recall["measured"]
    assert measured["recall"] >= 0.95 and measured["self_match"] >= 0.99
    assert manifest.recall["queries"] == 200 and "torch" in manifest.recall["method"]
    assert manifest.fallback is None
    assert abs(manifest.num_bytes / build.plan.estimated_bytes - 1) < 0.03

    # The same queries, asked from outside, against a truth computed in float64.
    index = Index.open(lake, MODEL)
    queries = draw_sample(lake, EMBEDDINGS, build.parts, count=6000, train_size=0, num_queries=200, seed=0)
    found, sims = index.search(queries.queries, 11)
    truth = brute_force(stored(vectors), ids, queries.queries, 11)
    recall = np.mean(
        [
            len(set(a[a != q]) & set(b[b != q])) / 10
            for a, b, q in zip(found, truth, queries.query_ids, strict=True)
        ]
    )
    assert recall == pytest.approx(measured["recall"], abs=0.005 if manifest.layout.is_exact else 0.03)
    assert found.dtype == np.int64 and sims.dtype == np.float32
    assert (np.diff(sims, axis=1) <= 0).all() and sims.max() <= 1
    assert index.warnings == []
    # Nothing but the index is left.
    names = sorted(path.rsplit("/", 1)[1] for path, _ in lake.store.list(build.version.folder))
    assert names == ["0000000.faiss", "0000001.faiss", "0000002.faiss", "_version.json", "manifest.json"]
    assert list(lake.store.list("_scratch")) == []


@pytest.fixture
def few_vectors_train(monkeypatch) -> None:
    """Let codes be trained on 8 vectors each instead of 39: quick, and good enough for what is tested."""
    from facescale.index import plan

    monkeypatch.setattr(plan, "MIN_TRAIN_PER_LIST", 8)


@pytest.mark.usefixtures("few_vectors_train")
def test_product_codes_with_rotation(tmp_path) -> None:
    lake, _ = make_lake(tmp_path / "lake", people(3000, 32, spread=0.3))
    # So little memory that four dimensions share a byte.
    settings = _settings(kind="ivf_pq", memory_bytes=200_000, recall_target=0.5, shard_vectors=2000)
    build = build_index(lake, MODEL, settings)
    manifest = read_manifest(lake.store, build.version)
    assert manifest.layout.opq and manifest.layout.factory == "OPQ8,IVF256,PQ8x8np"
    assert 0.5 <= manifest.recall["measured"]["recall"] < 1
    assert manifest.training["vectors"] == 2048


@pytest.mark.parametrize(("backend", "kind"), KINDS)
def test_the_same_input_gives_the_same_bytes(backend, kind, vectors, tmp_path) -> None:
    written = []
    for name, threads in (("a", 1), ("b", 2)):
        lake, _ = make_lake(tmp_path / name, vectors[:3000])
        build = build_index(lake, MODEL, _settings(backend, kind, num_queries=50), threads=threads)
        written.append(_files(lake, build.version.folder))
    assert written[0] == written[1] and len(written[0]) == 2


def test_a_crash_costs_the_shard_it_hit(vectors, tmp_path, monkeypatch) -> None:
    whole, _ = make_lake(tmp_path / "whole", vectors)
    expected = _files(whole, build_index(whole, MODEL, _settings()).version.folder)
    lake, _ = make_lake(tmp_path / "lake", vectors)
    build = plan_index(lake, MODEL, _settings())
    _run(TrainStage(lake.store, build), training_units(lake, build))
    assert training_units(lake, build) == []

    stage = IndexStage(lake.store, build)
    stage.open()
    first, second, _ = units_to_do(lake, build)
    stage.process(first, Guard())
    # The file of the second shard is in place, its record is not: it does not count as done.
    with monkeypatch.context() as crash:
        crash.setattr(stages, "write_shard", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stage.process(second, Guard())
    with pytest.raises(IncompleteError, match=r"2 of 3 index shards are not done \(0000001.faiss"):
        finish_index(lake, build)

    again = plan_index(lake, MODEL, _settings())
    assert again == build
    assert [unit.key.shard for unit in units_to_do(lake, again)] == [1, 2]
    inode = (tmp_path / "lake" / build.version.folder / "0000000.faiss").stat().st_ino
    build_index(lake, MODEL, _settings())
    assert _files(lake, build.version.folder) == expected
    assert (tmp_path / "lake" / build.version.folder / "0000000.faiss").stat().st_ino == inode
    # Done is done.
    stamp = (tmp_path / "lake" / build.version.folder / "manifest.json").stat().st_mtime_ns
    build_index(lake, MODEL, _settings())
    assert (tmp_path / "lake" / build.version.folder / "manifest.json").stat().st_mtime_ns == stamp


def test_stages_cross_process_borders(vectors, tmp_path) -> None:
    lake, _ = make_lake(tmp_path / "lake", vectors[:1000])
    build = plan_index(lake, MODEL, _settings(kind="flat"))
    _run(pickle.loads(pickle.dumps(TrainStage(lake.store, build))), training_units(lake, build))
    stage = pickle.loads(pickle.dumps(IndexStage(lake.store, build, threads=1)))
    stage.open()
    (unit,) = pickle.loads(pickle.dumps(units_to_do(lake, build)))
    result = stage.process(unit, Guard())
    assert result.tables == [] and result.counters == {"shards": 1, "faces": 1000, "bytes": 1000 * 136 + 90}


def test_careful_mode_notes_the_end_and_poison_is_refused(vectors, tmp_path) -> None:
    lake, _ = make_lake(tmp_path / "lake", vectors[:1000])
    build = plan_index(lake, MODEL, _settings(kind="flat"))
    _run(TrainStage(lake.store, build), training_units(lake, build))
    stage, (unit,) = IndexStage(lake.store, build), units_to_do(lake, build)
    stage.open()
    noted: list[int] = []
    stage.process(unit, Guard(note=noted.append))
    assert noted == [1000]
    with pytest.raises(InfrastructureError, match=r"index shard 0 has killed its workers .*memory"):
        stage.process(unit, Guard(poison=frozenset({0}), reasons={0: "died"}))


@pytest.mark.usefixtures("few_vectors_train")
def test_codes_that_cannot_reach_the_target_are_given_up_before_encoding(tmp_path) -> None:
    vectors = people(3000, 32, spread=3.0)
    lake, ids = make_lake(tmp_path / "lake", vectors)
    settings = _settings(kind="ivf_pq", memory_bytes=130_000, recall_target=0.97, shard_vectors=20_000)
    build = plan_index(lake, MODEL, settings)
    _run(TrainStage(lake.store, build), training_units(lake, build))
    replaced = check_training(lake, build)
    assert replaced.plan.layout.kind == "flat" and not replaced.plan.fits
    assert replaced.fallback["from"] == build.plan.layout.factory and replaced.fallback["recall"] < 0.97
    assert not lake.store.exists(f"{build.version.folder}/_version.json")
    # A rerun finds the decision, also half-way.
    assert plan_index(lake, MODEL, settings) == replaced
    done = build_index(lake, MODEL, settings)
    assert done.version == replaced.version
    manifest = read_manifest(lake.store, done.version)
    assert manifest.fallback["when"] == "on its training sample"
    assert manifest.recall["measured"]["recall"] == 1.0
    assert "exact search instead" in manifest.why and "with 0.97 asked for" in manifest.why
    # Larger than the budget: streamed, and right.
    index = Index.open(lake, MODEL, memory_bytes=settings.memory_bytes)
    assert not index.shards.is_resident
    found, _ = index.search(vectors[:20], 5)
    assert (found == brute_force(stored(vectors), ids, vectors[:20], 5)).mean() > 0.99


def test_a_search_too_narrow_at_its_widest_falls_back(vectors, tmp_path, monkeypatch) -> None:
    """Lists whose search is capped below the target: the files go, exact search comes, and it is said why."""
    from facescale.index import finish

    monkeypatch.setattr(
        finish, "_probe_range", lambda build: (1, 1) if build.plan.layout.has_lists else (None, None)
    )
    lake, _ = make_lake(tmp_path / "lake", vectors)
    build = build_index(lake, MODEL, _settings())
    manifest = read_manifest(lake.store, build.version)
    assert manifest.layout.kind == "flat" and manifest.fallback["when"] == "with its widest search"
    assert manifest.fallback["recall"] < 0.95 and manifest.recall["measured"]["recall"] == 1.0
    assert [v.fingerprint for v in lake.versions() if v.table == "index"] == [build.version.fingerprint]
    assert lake.current("index", MODEL) == build.version
    # Asked again, the exact index is found; nothing is tried a second time.
    assert plan_index(lake, MODEL, _settings()).version == build.version


def test_lists_that_are_slower_than_exact_search_give_way_to_it(tmp_path, monkeypatch) -> None:
    from facescale.index import plan

    monkeypatch.setattr(plan, "FLAT_BYTES", 1000)
    shapeless = people(12_000, 48, faces_each=1)  # no clusters: neighbors are everywhere
    lake, _ = make_lake(tmp_path / "lake", shapeless)
    build = build_index(lake, MODEL, _settings(kind="auto"))
    manifest = read_manifest(lake.store, build.version)
    assert manifest.layout.kind == "flat" and manifest.fallback["from"] == "IVF256,Flat"
    assert re.search(r"reached recall@10 0\.9\d+ only by probing \d+ of 256 lists", manifest.why)
    # Not when exact search does not fit, and not when lists were asked for.
    tight = build_index(lake, MODEL, _settings(kind="auto", memory_bytes=12_000 * 4 * 48))
    assert tight.plan.layout.kind == "ivf_fp16"
    forced = build_index(lake, MODEL, _settings(kind="ivf_flat"))
    assert forced.plan.layout.kind == "ivf_flat" and forced.fallback is None


def test_the_sample_comes_from_everywhere_and_only_from_the_seed(tmp_path) -> None:
    lake, ids = make_lake(tmp_path / "lake", people(4000, 16), part_rows=128)
    parts = list(list_done(lake.store, EMBEDDINGS).pairs())
    options = {"count": 4000, "train_size": 600, "num_queries": 200, "seed": 5}
    sample = draw_sample(lake, EMBEDDINGS, parts, **options)
    again = draw_sample(lake, EMBEDDINGS, parts[::-1], **options)
    np.testing.assert_array_equal(sample.train, again.train)
    np.testing.assert_array_equal(sample.query_ids, again.query_ids)
    other = draw_sample(lake, EMBEDDINGS, parts, **{**options, "seed": 6})
    assert len(np.intersect1d(sample.query_ids, other.query_ids)) < 40

    at = np.searchsorted(ids, sample.query_ids)
    quarters = np.bincount(at * 4 // 4000, minlength=4)
    assert quarters.min() > 30  # not the first rows: expected 50 each
    blocks = [v for _, v in read_blocks(lake, EMBEDDINGS, parts)]
    vectors = dict(zip(ids.tolist(), np.concatenate(blocks), strict=True))
    trained = {row.tobytes() for row in sample.train}
    assert len(sample.train) == 600 and sample.parts_read == len(parts)
    assert not trained & {vectors[q].tobytes() for q in sample.query_ids.tolist()}


def test_sample_memory_is_bounded(tmp_path, monkeypatch) -> None:
    from facescale.index import vectors as module

    lake, _ = make_lake(tmp_path / "lake", people(4000, 16), part_rows=64)
    monkeypatch.setattr(module, "BLOCK_ROWS", 100)
    held = []
    cut = module._Pool._cut
    monkeypatch.setattr(module._Pool, "_cut", lambda pool: (held.append(pool.held), cut(pool)) and None)
    parts = list(list_done(lake.store, EMBEDDINGS).pairs())
    sample = draw_sample(lake, EMBEDDINGS, parts, count=4000, train_size=300, num_queries=100, seed=0)
    assert len(sample.train) == 300
    assert 400 < max(held) <= 500 + 100


def test_a_large_lake_is_sampled_from_some_parts_only(tmp_path, monkeypatch) -> None:
    from facescale.index import vectors as module

    monkeypatch.setattr(module, "_MIN_SAMPLE_PARTS", 16)
    lake, _ = make_lake(tmp_path / "lake", people(3000, 8), part_rows=64)
    parts = list(list_done(lake.store, EMBEDDINGS).pairs())
    sample = draw_sample(lake, EMBEDDINGS, parts, count=3000, train_size=20, num_queries=10, seed=0)
    assert len(parts) == 47 and sample.parts_read == 16 and len(sample.train) == 20


def test_new_parts_make_the_index_stale_and_a_new_one_is_built(vectors, tmp_path) -> None:
    lake, _ = make_lake(tmp_path / "lake", vectors[:2000])
    old = build_index(lake, MODEL, _settings(kind="flat"))
    more = write_parts(lake, vectors[2000:2600], shard=1)
    index = Index.open(lake, MODEL)
    assert len(index.warnings) == 1
    assert "stale: 3 parts of embeddings are not in it" in index.warnings[0]
    assert "facescale index" in index.warnings[0]
    assert index.search(vectors[2000:2001], 1)[0][0, 0] != more[0]
    new = build_index(lake, MODEL, _settings(kind="flat"))
    assert new.version != old.version
    index = Index.open(lake, MODEL)
    assert index.warnings == [] and index.manifest.count == 2600
    assert index.search(vectors[2000:2001], 1)[0][0, 0] == more[0]


def test_settings_name_the_version(vectors, tmp_path) -> None:
    lake, _ = make_lake(tmp_path / "lake", vectors[:2000])
    versions = {
        plan_index(lake, MODEL, _settings(**change), write=False).version.fingerprint
        for change in ({}, {"seed": 1}, {"recall_target": 0.9}, {"kind": "hnsw"}, {"shard_vectors": 500})
    }
    assert len(versions) == 5
    assert list(lake.store.list("index")) == []  # a dry run writes nothing
    roomy = plan_index(lake, MODEL, _settings(memory_bytes=8 << 30), write=False)
    assert roomy.version.fingerprint in versions  # memory matters only through what is chosen


def test_unfinished_parts_are_left_out(vectors, tmp_path) -> None:
    lake, _ = make_lake(tmp_path / "lake", vectors[:2000])
    lake.store.delete(f"images/{'1' * 12}/{PartKey(0, 256, 0).path}")
    build = build_index(lake, MODEL, _settings(kind="flat"))
    assert (build.plan.count, len(build.parts)) == (2000 - 256, 7)


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("backend", ["faiss", "hnswlib"])
def test_few_faces(count, backend, vectors, tmp_path) -> None:
    lake, ids = make_lake(tmp_path / "lake", vectors[:5], part_rows=1)
    if count < 5:
        for row in range(5):
            part = PartKey(0, row, 0)
            for table, fp in (("images", "1"), ("faces", "2")):
                if row >= max(count, 1):
                    lake.store.delete(f"{table}/{fp * 12}/{part.path}")
    if count == 0:
        lake, ids = _lake_without_faces(tmp_path / "empty")
    build = build_index(lake, MODEL, IndexSettings(backend=backend))
    manifest = read_manifest(lake.store, build.version)
    assert manifest.count == count and len(manifest.shards) == (count > 0)
    index = Index.open(lake, MODEL)
    found, sims = index.search(vectors[:3], 7)
    assert found.shape == sims.shape == (3, 7)
    assert (found != -1).sum(1).tolist() == [count] * 3
    assert np.isnan(sims[found == -1]).all() and not np.isnan(sims[found != -1]).any()
    if count == 5:
        assert found[:, 0].tolist() == ids[:3].tolist()


def _lake_without_faces(path) -> tuple[Lake, np.ndarray]:
    import pyarrow as pa
    from index_lakes import FACES, IMAGES

    from facescale.lake.parts import commit_part
    from facescale.lake.schema import table_schema

    lake = Lake.create(str(path))
    images = pa.table(
        {
            "image_id": pa.array([0], pa.int64()),
            "uri": ["/a.jpg"],
            "status": ["ok"],
            "num_faces": pa.array([0], pa.int16()),
        }
    )
    tables = [
        (FACES, table_schema("faces").empty_table()),
        (EMBEDDINGS, table_schema("embeddings", dim=32).empty_table()),
        (IMAGES, images),
    ]
    commit_part(lake.store, PartKey(0, 0, 1), tables)
    lake.set_current([IMAGES, FACES, EMBEDDINGS])
    return lake, np.empty(0, np.int64)


def test_a_lake_in_memory(vectors) -> None:
    lake, ids = make_lake("memory://index-build", vectors[:600])
    try:
        build_index(lake, MODEL, _settings(kind="flat"))
        found, _ = Index.open(lake, MODEL).search(vectors[:5], 1)
        assert found[:, 0].tolist() == ids[:5].tolist()
    finally:
        lake.store._backend.fs.rm(lake.store._backend.root, recursive=True)


def test_a_lake_without_embeddings_says_what_to_run(vectors, tmp_path) -> None:
    lake, _ = make_lake(tmp_path / "lake", vectors[:10])
    with pytest.raises(
        UsageError, match=r"no finished embeddings of arcface \(it has: toy\).*facescale embed"
    ):
        plan_index(lake, "arcface", IndexSettings())


def test_broken_embeddings_are_named(vectors, tmp_path) -> None:
    wrong = vectors[:500].copy()
    wrong[300] = 0
    lake, ids = make_lake(tmp_path / "lake", wrong)
    with pytest.raises(CorruptError, match=f"embedding of face {ids[300]} is zero or not finite"):
        build_index(lake, MODEL, _settings(kind="flat"))


def test_a_gpu_that_is_asked_for_and_absent_is_an_error(vectors, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stages, "visible_gpus", lambda: 0)
    lake, _ = make_lake(tmp_path / "lake", vectors)
    build = plan_index(lake, MODEL, _settings(gpu=True))
    assert build.gpu
    with pytest.raises(UsageError, match=r"planned for a GPU, and faiss sees none.*facescale\[gpu\]"):
        TrainStage(lake.store, build).open()


def test_with_a_gpu_centroids_are_found_and_lists_searched_there(vectors, tmp_path, monkeypatch) -> None:
    """The plumbing only, with CPU indexes standing in for GPU ones; results must be those of the CPU."""
    import faiss

    calls: list[str] = []
    clone = faiss.clone_index
    monkeypatch.setattr(backends, "visible_gpus", lambda: 1)
    monkeypatch.setattr(stages, "visible_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: calls.append("resources"), raising=False)
    monkeypatch.setattr(
        faiss, "index_cpu_to_gpu", lambda r, d, i: calls.append("search") or clone(i), raising=False
    )
    monkeypatch.setattr(
        faiss, "index_cpu_to_all_gpus", lambda i: calls.append("train") or clone(i), raising=False
    )
    lake, _ = make_lake(tmp_path / "gpu", vectors)
    build = build_index(lake, MODEL, _settings(gpu=True, shard_vectors=10_000))
    on_gpu = Index.open(lake, MODEL, gpu=True).search(vectors[:20], 5)
    assert calls == ["train", "resources", "search"]
    plain, _ = make_lake(tmp_path / "cpu", vectors)
    cpu_build = build_index(plain, MODEL, _settings(gpu=False, shard_vectors=10_000))
    on_cpu = Index.open(plain, MODEL).search(vectors[:20], 5)
    np.testing.assert_array_equal(on_gpu[0], on_cpu[0])
    assert build.version != cpu_build.version  # centroids of another device are another index


@pytest.mark.gpu
def test_gpu_and_cpu_agree(vectors, tmp_path) -> None:
    if backends.visible_gpus() == 0:
        pytest.skip("faiss sees no GPU")
    lake, _ = make_lake(tmp_path / "lake", vectors)
    build = build_index(lake, MODEL, _settings(gpu=True))
    assert read_manifest(lake.store, build.version).recall["measured"]["recall"] >= 0.95
    on_gpu = Index.open(lake, MODEL, gpu=True).search(vectors[:200], 10)
    on_cpu = Index.open(lake, MODEL).search(vectors[:200], 10)
    assert (on_gpu[0] == on_cpu[0]).mean() > 0.99


def test_manifest_is_json_with_everything_that_matters(vectors, tmp_path) -> None:
    lake, _ = make_lake(tmp_path / "lake", vectors)
    build = build_index(lake, MODEL, _settings())
    content = json.loads(lake.store.read_bytes(f"{build.version.folder}/manifest.json"))
    assert (content["model"], content["dim"], content["metric"], content["factory"]) == (
        "toy",
        32,
        "cosine",
        "IVF128,Flat",
    )
    assert content["inputs"] == {
        "embeddings": EMBEDDINGS.fingerprint,
        "parts": build.inputs["parts"],
        "num_parts": 24,
    }
    assert content["training"] == {"gpu": False, "parts_read": 24, "seed": 0, "vectors": 5800}
    assert content["recall"]["curve"] and content["library"].startswith("faiss 1.")
    described = lake.describe_version(build.version)
    assert described["requested"]["kind"] == "ivf_flat" and described["settings"]["layout"]["nlist"] == 128
    assert TableVersion.from_folder(build.version.folder) == build.version
