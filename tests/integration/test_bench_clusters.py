"""`bench clusters` on a small lake: who is scored, who is compared with, and that the GPL stays outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cluster_lakes import MODEL, PER_IMAGE, new_lake, run
from clustered_people import RULES, calibration, partition, simulate
from index_lakes import LABELS

from facescale.bench.chosen import Models
from facescale.bench.clusters import bench_clusters, shifted
from facescale.bench.contender import leiden, leiden_requirements
from facescale.bench.environment import default_folder
from facescale.curate.cluster import resolve
from facescale.driver.context import SilentReporter
from facescale.errors import UsageError
from facescale.lake.ids import make_image_id
from facescale.lake.lake import Lake
from facescale.lake.parts import commit_part, list_done

pytest.importorskip("faiss")
ROOT = Path(__file__).parents[2]


def labeled_lake(folder: Path, unit: np.ndarray, who: np.ndarray) -> Lake:
    """Each image is labeled with the person of its first face, and its other face is a bystander's."""
    lake = new_lake(folder, unit)
    for part in list_done(lake.store, LABELS).parts():
        rows = part.first_row + np.arange(part.num_rows)
        table = lake.store.read_table(LABELS.part_path(part))
        names = pa.array([f"person {who[row * PER_IMAGE]}" for row in rows])
        columns = {"image_id": pa.array(make_image_id(0, rows)), "label": names}
        columns |= {name: table[name] for name in table.column_names if name not in columns}
        commit_part(lake.store, part, [(LABELS, pa.table(columns))])
    lake.set_current([LABELS])
    run("neighbors", lake)
    return lake


off_by_half = "pairwise F lost where every threshold is 0.5 deviations off, all single photographs"


def test_a_lake_is_scored_by_its_labels_and_only_looked_at(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    unit, who = simulate([8] * 24, seed=30)
    order = rng.permutation(len(who))
    lake = labeled_lake(tmp_path / "lake", unit[order], who[order])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "lake").rglob("*")}
    result = bench_clusters(lake.uri, SilentReporter(), models=Models(embedder=MODEL), rival=False, steps=5)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "lake").rglob("*")} == before
    ours, *others = result.figures["all single photographs"]
    assert (ours["method"], ours["setting"]) == ("facescale cluster", "0.1 20 10")
    assert ours["F"] > 0.95 and ours["F "] > 0.95
    assert [row["method"] for row in others] == ["components"] * 2
    assert max(row["F"] for row in others) == others[0]["F"]
    assert max(row["F "] for row in others) == others[1]["F "]
    assert result.figures["lake"]["single photographs"] == 96 and result.figures["lake"]["faces"] == 192
    assert result.goal("BCubed F above the best of the others, all single photographs").value > -0.01
    assert result.settings["detector"] == "unknown"  # and so nothing is expected of these two models
    assert not any(goal.name == "BCubed F, all single photographs" for goal in result.goals)
    off = result.figures["with every threshold off"]
    (right,) = [row for row in off if row["as cosine"] == 0]
    assert (right["BCubed F"], right["pairwise F"]) == (ours["F"], ours["F "])
    assert max(row["their pairwise F"] for row in off) == right["their pairwise F"]  # off from their best one
    lost = right["pairwise F"] - min(row["pairwise F"] for row in off[1:-1])
    assert result.goal(off_by_half).value == pytest.approx(lost)
    assert len(result.figures["our setting, and around it"]) == 9


def test_a_shifted_calibration_shifts_every_threshold_of_clusters() -> None:
    right, wrong = calibration(), shifted(calibration(), 0.05)
    for count in (1_000, 50_000):
        cuts, off = resolve(RULES, right, count), resolve(RULES, wrong, count)
        assert off.link == pytest.approx(cuts.link + 0.05, abs=1e-6)
        assert off.bound.small == pytest.approx(cuts.bound.small + 0.05, abs=1e-6)


def test_what_cannot_be_scored_is_said(tmp_path: Path) -> None:
    lake = new_lake(tmp_path / "lake", simulate([4], seed=1)[0])
    with pytest.raises(UsageError, match=r"has no labels\.csv, and a lake needs no --lake"):
        bench_clusters(lake.uri, SilentReporter(), lake="other", models=Models(embedder=MODEL))
    bare = new_lake(tmp_path / "bare", np.empty((0, 64), np.float32))
    with pytest.raises(UsageError, match="has no labels, so there is nothing to score"):
        bench_clusters(bare.uri, SilentReporter(), models=Models(embedder=MODEL))
    with pytest.raises(UsageError, match="no finished neighbors of simulated"):
        bench_clusters(lake.uri, SilentReporter(), models=Models(embedder=MODEL), rival=False)


def test_packages_under_the_gpl_are_no_dependencies() -> None:
    for requirement in leiden_requirements():
        name = requirement.partition("==")[0]
        if name == "numpy":
            continue
        for file in ("pyproject.toml", "constraints.txt"):
            assert name not in (ROOT / file).read_text()


@pytest.mark.skipif(
    not (default_folder("leiden") / "complete").exists(),
    reason="the benchmark's own environment is not there",
)
@pytest.mark.parametrize("objective", ["modularity", "CPM"])
def test_leiden_finds_two_cliques(tmp_path: Path, objective: str) -> None:
    first, second = np.triu_indices(5, 1)
    pairs = {
        "first": np.concatenate([first, first + 5, [0]]).astype(np.int32),
        "second": np.concatenate([second, second + 5, [5]]).astype(np.int32),
        "similarity": np.concatenate([np.full(20, 0.9), [0.7]]).astype(np.float32),
    }
    np.savez(tmp_path / "graph.npz", **pairs)
    with leiden(default_folder("leiden")) as contender:
        request = {"graph": str(tmp_path / "graph.npz"), "faces": 11, "out": str(tmp_path / "out.npy")}
        answer = contender.ask(**request, objective=objective, threshold=0.6)
    labels = np.load(tmp_path / "out.npy")
    assert partition(labels) == {frozenset(range(5)), frozenset(range(5, 10)), frozenset([10])}
    assert answer["clusters"] == 3
