"""Simulated lakes: sound, the same however they are made, resumed, with a truth that fits, and good for all jobs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import facescale
from facescale.driver import simulate as driver
from facescale.driver.simulate import run_simulate
from facescale.errors import FacescaleError, UsageError
from facescale.lake.ids import image_id_of
from facescale.lake.lake import Lake
from facescale.lake.scan import scan
from facescale.synth.population import load_mixture
from facescale.synth.simulate import SimulateStage, Simulation

TABLES = (("images", "-"), ("faces", "-"), ("embeddings", "simulated"), ("labels", "-"))


def simulation(faces: int = 3000, **changes: Any) -> Simulation:
    values = {"identities": 150, "faces": faces, "dim": 128, "seed": 4, "mixture": load_mixture("noisy")}
    return Simulation(**{**values, **changes})


def read(lake: Path, table: str, model: str = "-") -> pa.Table:
    opened = Lake.open(str(lake))
    version = opened.current(table, model)
    assert version is not None
    return pa.concat_tables(list(scan(opened, version))).combine_chunks()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = tmp_path_factory.mktemp("simulated") / "lake"
    run_simulate(str(lake), simulation(), workers=0)
    return lake


def test_the_tables_and_the_truth_agree(made: Path) -> None:
    report = facescale.Lake.open(str(made)).verify()
    assert report.ok, report.problems
    truth, faces, labels = pq.read_table(made / "truth.parquet"), read(made, "faces"), read(made, "labels")
    assert faces.num_rows == truth.num_rows == 3000
    assert truth["face_id"].equals(faces["face_id"])
    side = np.array([kind == "bystander" for kind in truth["kind"].to_pylist()])
    assert side.sum() == int(0.05 * 3000)
    meant = truth.filter(pa.array(~side))
    assert np.array_equal(image_id_of(meant["face_id"].to_numpy()), labels["image_id"].to_numpy())
    uris = dict(zip(*(read(made, "images")[c].to_pylist() for c in ("image_id", "uri")), strict=True))
    ids = image_id_of(meant["face_id"].to_numpy()).tolist()
    assert meant["path"].to_pylist() == [uris[image] for image in ids]
    rows = list(
        zip(*(c.to_pylist() for c in (meant["kind"], meant["identity"], labels["label"])), strict=True)
    )
    for kind, identity, label in rows:
        right = {
            "clean": identity == label,
            "alias": f"{identity} alias" == label,
            "outlier": identity is None,
        }
        assert right.get(kind, identity != label.removesuffix(" alias") or kind == "second_person"), (
            kind,
            identity,
            label,
        )
    quality = faces["quality"].to_numpy()
    assert 0 <= quality.min() < 0.3 and 0.9 < quality.max() <= 1


def test_parts_may_be_cut_otherwise(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "choose_part_rows", lambda members: 1024)
    run_simulate(str(tmp_path / "lake"), simulation(), workers=0)
    for table, model in TABLES[:2] + TABLES[3:]:
        assert read(tmp_path / "lake", table, model).equals(read(made, table, model)), table
    # A matrix product may round otherwise in another block: by one step of float16 at most.
    vectors = [
        np.array(read(lake, *TABLES[2])["embedding"].to_pylist()) for lake in (made, tmp_path / "lake")
    ]
    assert np.abs(vectors[0] - vectors[1]).max() <= 2**-11
    assert pq.read_table(tmp_path / "lake" / "truth.parquet").equals(pq.read_table(made / "truth.parquet"))


def test_a_job_that_fails_goes_on_where_it_was(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, seen = SimulateStage.process, []

    def fail_at_the_fourth(self: Any, part: Any, guard: Any) -> Any:
        seen.append(part.key)
        if len(seen) == 4:
            raise MemoryError("too little")
        return process(self, part, guard)

    monkeypatch.setattr(SimulateStage, "process", fail_at_the_fourth)
    with pytest.raises(FacescaleError, match="too little"):
        run_simulate(str(tmp_path / "lake"), simulation(), workers=0)
    assert not (tmp_path / "lake" / "truth.parquet").exists()
    (stage,) = run_simulate(str(tmp_path / "lake"), simulation(), workers=0).stages
    assert stage.parts_kept == 3 and stage.parts_run > 3
    for table, model in TABLES:
        assert read(tmp_path / "lake", table, model).equals(read(made, table, model)), table
    with pytest.raises(UsageError, match="give each simulation a lake of its own"):
        run_simulate(str(tmp_path / "lake"), simulation(seed=5), workers=0)


def test_copies_are_found_and_all_jobs_run(made: Path, tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    run_simulate(lake, simulation(identities=100, mixture=load_mixture("noisy")), workers=0)
    truth_file = f"{lake}/truth.parquet"
    facescale.dedup(lake)
    truth = pq.read_table(truth_file)
    meant = truth.filter(pa.compute.is_valid(truth["original"]))
    images, original = image_id_of(meant["face_id"].to_numpy()), meant["original"].to_numpy()
    copies = read(Path(lake), "duplicates")
    at = [np.searchsorted(images, copies[name].to_numpy()) for name in ("image_id", "representative")]
    assert np.array_equal(original[at[0]], original[at[1]])
    planted = len(original) - len(np.unique(original))
    assert copies.num_rows > 0.95 * planted
    assert {"exact", "near"} == set(copies["kind"].to_pylist())

    calibration = facescale.calibrate(lake, embedder="simulated", labels=truth_file, label_column="identity")
    assert "copies that dedup found" in calibration.evidence["re_encode"]["measured"]
    assert 0.98 < calibration.thresholds["re_encode"] < 1
    facescale.neighbors(lake, embedder="simulated", workers=0)
    facescale.cluster(lake, embedder="simulated")
    facescale.clean(lake, embedder="simulated")
    evaluation = facescale.evaluate_clusters(lake, truth_file, embedder="simulated")
    clusters = evaluation.scores["all identities"]
    assert clusters["bcubed_precision"] > 0.85 and clusters["bcubed_f"] > 0.6
    by_quality = evaluation.by_quality
    quality = read(Path(lake), "faces")["quality"].to_numpy()[truth["identity"].is_valid().to_numpy()]
    inside = np.bincount(np.minimum(quality // np.float32(0.2), 4).astype(int), minlength=5)
    assert [scores["items"] for scores in by_quality.values()] == inside.tolist()
    mean = sum(scores["items"] * scores["bcubed_recall"] for scores in by_quality.values()) / inside.sum()
    assert mean == pytest.approx(clusters["bcubed_recall"])
    assert by_quality["0.8 to 1.0"]["bcubed_f"] > by_quality["0.0 to 0.2"]["bcubed_f"] + 0.1
    cleaning = facescale.evaluate_cleaning(lake, truth_file, embedder="simulated").scores["labels"]
    assert cleaning["purity_before"] < 0.8 < cleaning["kept_purity"]
    assert facescale.Lake.open(lake).verify().ok
    with pytest.raises(UsageError, match="without photographs or crops, which embed needs"):
        facescale.embed(lake, workers=0)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "facescale", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


def test_commands(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = ("--identities", "1.5e2", "--faces", "3e3", "--dim", "128", "--seed", "4", "--workers", "0")
    done = command("synth", "embeddings", tmp_path / "lake", *numbers, "--json")
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "lake", "embeddings", "simulated").equals(read(made, "embeddings", "simulated"))
    for arguments, says in (
        (("--identities", "1.5"), "--identities: expected a whole number such as 20000 or 2e4"),
        (("--identities", "500", "--faces", "100"), "500 identities on 95 photographs"),
        (("--dim", "4"), "dimension 4: 8 to 8192 are possible"),
    ):
        done = command("synth", "embeddings", tmp_path / "other", *arguments, "--workers", "0")
        assert done.returncode in (1, 2) and says in done.stderr, done.stderr
    monkeypatch.chdir(tmp_path)
    done = command("synth", "crawl", "--identities", "3", "--images-per-identity", "2")
    assert done.returncode == 0 and (tmp_path / "crawl" / "images").is_dir(), done.stderr
