"""The job neighbors by cells, in this process: beside the exact lists, interrupted at every file, where it gives up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from index_lakes import EMBEDDINGS, FACES, make_lake, people, write_parts

from facescale import pipeline
from facescale.config.job import JobConfig
from facescale.curate import calibration as calibrations
from facescale.curate.cells_lists import MAX_LIST
from facescale.driver import neighbors as driver
from facescale.errors import CorruptError, UsageError
from facescale.lake.lake import Lake
from facescale.lake.local_storage import LocalBatch
from facescale.lake.parts import TableVersion, list_done
from facescale.lake.scan import scan
from facescale.lake.store import Store
from facescale.lake.verify import verify

MODEL = "dlib_resnet"
VECTORS = TableVersion("embeddings", EMBEDDINGS.fingerprint, MODEL)
COUNT, PART, K = 1500, 256, 12


def build(folder: str | Path, vectors: np.ndarray, *, quality: np.ndarray | None = None) -> Lake:
    lake, _ = make_lake(folder, vectors[:1])
    lake.write_version(VECTORS, stage="embed", settings={}, revision=1, inputs={"faces": FACES.fingerprint})
    write_parts(lake, vectors, part_rows=PART, embeddings=VECTORS, quality=quality)
    return lake


def run(lake: Lake, **neighbors: Any) -> Any:
    sections = {"engine": {"workers": 0, "threads": 1}, "neighbors": {"k": K, **neighbors}}
    (stage,) = pipeline.run_job("neighbors", JobConfig.model_validate({"lake": lake.uri, **sections})).stages
    return stage


def read(lake: Lake) -> pa.Table:
    version = lake.current("neighbors", MODEL)
    assert version is not None
    return pa.concat_tables(list(scan(lake, version)))


def problems(lake: Lake) -> list[str]:
    """What `lake verify` says of neighbors; these lakes have no plan."""
    return [problem.what for problem in verify(lake).problems if problem.path.startswith("neighbors/")]


def scratch(lake: Lake) -> list[str]:
    return [path for path, _ in lake.store.list("_scratch")]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return build(tmp_path / "lake", people(COUNT, 128, spread=1.0))


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The calibration of these simulated faces: strangers around 0, as the default embedder's are not."""
    known = calibrations.load_calibration(MODEL)
    vectors = people(400, 128, spread=1.0, faces_each=1, seed=9)
    sims = np.sort((vectors @ vectors.T)[np.triu_indices(400, 1)])
    rates = np.array([1.0, 0.1, 0.01, 1e-3, 1e-4])
    levels = np.quantile(sims, 1 - rates)
    pairs = type(known.pairs)(
        fmr=rates, similarity=levels + np.arange(5) * 1e-6, count=len(sims), tail_scale=0.02
    )
    random = type(known.random)(0.0, 0.088)
    made = calibrations.Calibration(**{**vars(known), "pairs": pairs, "random": random})
    monkeypatch.setattr("facescale.driver.neighbors.require_calibration", lambda embedder, lake: made)
    yield


@pytest.mark.usefixtures("calibrated")
def test_every_cell_visited_gives_the_exact_lists(lake: Lake) -> None:
    """But for those that are saturated: these are made as long as they have to be."""
    k = 8
    exact = run(lake, method="exact", k=k)
    by_pairs = read(lake)
    summary = run(lake, method="cells", nprobe=65_536, k=k)
    table = read(lake)
    assert summary.counters["faces"] == exact.counters["faces"] == COUNT
    assert (summary.parts_run, summary.parts_kept) == (-(-COUNT // PART), 0)
    assert table["face_id"].equals(by_pairs["face_id"])
    floor = lake.describe_version(lake.current("neighbors", MODEL))["settings"]["floor"]  # type: ignore[arg-type,index]
    longer = 0
    for row, other in zip(table.to_pylist(), by_pairs.to_pylist(), strict=True):
        assert row["neighbor_ids"][:k] == other["neighbor_ids"]
        assert row["similarities"][:k] == other["similarities"]
        longer += len(row["neighbor_ids"]) > k
        assert len(row["neighbor_ids"]) == k or row["similarities"][-1] >= np.float32(floor)
        assert not row["saturated"]
    assert 0 < longer
    assert summary.counters["met_self"] == summary.counters["in_lists"] == COUNT
    assert 0 < summary.counters["sample_edges"] == summary.counters["sample_edges_found"]
    assert summary.counters["pairs"] == COUNT * COUNT
    assert "self-match 1,500 of 1,500" in summary.notes[0]
    assert problems(lake) == []
    assert scratch(lake) == []


@pytest.mark.usefixtures("calibrated")
def test_visits_are_chosen_for_the_recall_asked_for(lake: Lake) -> None:
    rate = {"floor_fmr": 1e-4}
    run(lake, method="exact", **rate)
    by_pairs = read(lake).to_pylist()
    probes = {}
    for goal in (0.6, 0.95):
        summary = run(lake, method="cells", edge_recall=goal, **rate)
        version = lake.current("neighbors", MODEL)
        assert version is not None
        described = lake.describe_version(version)
        assert described is not None
        settings = described["settings"]
        probes[goal] = settings["probes"]
        found = {row["face_id"]: set(row["neighbor_ids"]) for row in read(lake).to_pylist()}
        edges = hits = 0
        for row in by_pairs:
            above = [
                face
                for face, similarity in zip(row["neighbor_ids"], row["similarities"], strict=True)
                if similarity >= settings["floor"]
            ]
            edges += len(above)
            hits += len(found[row["face_id"]].intersection(above))
        counters = summary.counters
        assert hits / edges >= goal - 0.01
        measured = counters["sample_edges_found"] / counters["sample_edges"]
        assert measured == pytest.approx(hits / edges, abs=0.02) and measured >= goal
        assert f"{measured:.4f}" in summary.notes[0]
        assert counters["pairs"] < COUNT * COUNT / 2
        again = run(lake, method="cells", edge_recall=goal, **rate)
        assert (again.parts_run, again.counters, again.notes) == (0, counters, summary.notes)
    assert probes[0.6] < probes[0.95] <= 8
    assert run(lake, **rate).parts_run == 0  # exact lists are there, and as good as any


@pytest.mark.usefixtures("calibrated")
def test_a_goal_out_of_reach_makes_it_compare_all_pairs(tmp_path: Path) -> None:
    shapeless = build(tmp_path / "shapeless", people(COUNT, 128, faces_each=1))
    options = {"method": "cells", "edge_recall": 0.98, "edge_ratio": 1000}
    summary = run(shapeless, **options)
    assert (
        "all pairs were compared, as cells were given up: 16 of 64 cells reach a recall of 0."
        in summary.notes[0]
    )
    assert scratch(shapeless) == []
    by_pairs = read(shapeless)
    assert run(shapeless, **options).parts_run == 0  # and does not try again
    assert run(shapeless, method="exact").parts_run == 0
    assert read(shapeless).equals(by_pairs)


def test_without_an_edge_there_is_nothing_to_measure(lake: Lake) -> None:
    """Strangers of this lake are far less similar than those that the embedder was calibrated on."""
    summary = run(lake, method="cells")
    assert "no two faces of the sample are as similar as 0.9" in summary.notes[0]
    assert read(lake).num_rows == COUNT


@pytest.mark.usefixtures("calibrated")
def test_interrupted_at_every_file_it_ends_with_the_same_table(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kill -9 leaves it: whatever was put in place is there, and nothing of what was to come."""
    options = {"method": "cells", "nprobe": 3, "memory_gib": 0.0004}  # several runs of cells
    run(lake, **options)
    expected, version = read(lake), lake.current("neighbors", MODEL)
    assert version is not None
    parts = {
        path: lake.store.read_bytes(path) for path, _ in lake.store.list(version.folder) if "parquet" in path
    }
    original = LocalBatch.publish
    interruptions = 0
    points = (1, 2, 9, 17, 22, 26, 29)
    for stop_after in points:
        lake.store.delete_tree(version.folder)
        lake.store.delete_tree("_scratch")
        left = stop_after

        def failing(batch: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return original(batch, **options)

        monkeypatch.setattr(LocalBatch, "publish", failing)
        try:
            run(lake, **options)
        except KeyboardInterrupt:
            interruptions += 1
        monkeypatch.setattr(LocalBatch, "publish", original)
        kept = set(list_done(lake.store, version).pairs())
        summary = run(lake, **options | {"memory_gib": 1.0})
        assert summary.parts_run == len(parts) - len(kept)
        assert read(lake).equals(expected)
        found = {path: lake.store.read_bytes(path) for path in parts}
        assert found == parts
        assert scratch(lake) == []
    assert interruptions == len(points)


@pytest.mark.usefixtures("calibrated")
def test_faces_below_the_gate_are_in_nobodys_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quality = np.linspace(0, 1, COUNT).astype(np.float32)
    lake = build(tmp_path / "gated", people(COUNT, 128, spread=1.0), quality=quality)
    made = driver.require_calibration(MODEL, lake)
    gated = calibrations.Calibration(**{**vars(made), "min_quality": 0.3})
    monkeypatch.setattr("facescale.driver.neighbors.require_calibration", lambda embedder, lake: gated)
    summary = run(lake, method="cells", nprobe=2)
    table = read(lake)
    ids = table["face_id"].to_numpy()
    assert summary.counters["faces"] == COUNT == len(ids)
    assert summary.counters["in_lists"] == (quality >= 0.3).sum() == summary.counters["met_self"]
    listed = np.unique(table["neighbor_ids"].combine_chunks().flatten().to_numpy())
    assert np.isin(listed, ids[quality >= 0.3]).all()
    assert problems(lake) == []


@pytest.mark.usefixtures("calibrated")
def test_a_crowd_that_fills_every_list(tmp_path: Path) -> None:
    """One person on 300 photographs: lists of 12 are made longer, to all 299 others."""
    crowd = np.concatenate(
        [people(300, 128, faces_each=300, spread=0.5), people(1200, 128, faces_each=1, seed=1)]
    )
    lake = build(tmp_path / "crowd", crowd)
    summary = run(lake, method="cells", nprobe=8)
    lengths = [len(row) for row in read(lake)["neighbor_ids"].to_pylist()]
    assert min(lengths[:300]) >= 299 and np.median(lengths[300:]) == K
    assert summary.counters["saturated"] == 0 and MAX_LIST > 300
    assert problems(lake) == []


@pytest.mark.usefixtures("calibrated")
def test_what_is_damaged_is_said(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    from facescale.curate.cells_search import CellSearch

    search = CellSearch.search

    def deaf(self: Any, *arguments: Any, **options: Any) -> Any:
        found = search(self, *arguments, **options)
        found.met_self[::7] = False
        return found

    monkeypatch.setattr(CellSearch, "search", deaf)
    with pytest.raises(CorruptError, match="faces met themselves, so lists are incomplete; delete it"):
        run(lake, method="cells", nprobe=1)


def test_settings_that_make_no_sense_are_refused(lake: Lake) -> None:
    for wrong in ({"method": "ivf"}, {"nprobe": 0}, {"nprobe": "all"}, {"edge_recall": 1.0}):
        with pytest.raises((UsageError, ValueError)):
            run(lake, **wrong)


def test_a_dry_run_says_which_method(lake: Lake) -> None:
    config = {"lake": lake.uri, "engine": {"workers": 0}}
    (stage,) = pipeline.dry_run("neighbors", JobConfig.model_validate(config)).stages
    assert "exact" not in stage.note and stage.parts == -(-COUNT // PART)
    by_cells = config | {"neighbors": {"method": "cells"}}
    (stage,) = pipeline.dry_run("neighbors", JobConfig.model_validate(by_cells)).stages
    assert "64 cells: 1,500 faces" in stage.note
    assert scratch(lake) == []


@pytest.mark.usefixtures("calibrated")
def test_a_lake_elsewhere() -> None:
    """Without a path of this machine the base is copied to one before it is mapped into memory."""
    memory = build("memory://cells-elsewhere", people(600, 128, spread=1.0))
    assert isinstance(memory.store, Store) and memory.store.is_memory
    assert run(memory, method="cells", nprobe=2).counters["met_self"] == 600
