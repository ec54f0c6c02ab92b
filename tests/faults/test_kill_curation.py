"""kill -9 during dedup, neighbors, cluster and clean: the same commands end with the same tables."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from real_jobs import FLAGS, NUM_IMAGES, PART_ROWS, Fault, Job, assert_same_tables, assert_sound

from facescale.config.job import JobConfig
from facescale.pipeline import run_job

NUM_PARTS = NUM_IMAGES // PART_ROWS
PLUGIN = ("--plugin", "fault_plugin")
TABLES = ("duplicates", "neighbors")


@pytest.fixture
def lake(undisturbed: Path, tmp_path: Path) -> Path:
    """The undisturbed lake as it was before dedup."""
    lake = tmp_path / "lake"
    shutil.copytree(undisturbed, lake)
    known = yaml.safe_load((lake / "lake.yaml").read_text())
    for table in TABLES:
        shutil.rmtree(lake / table)
        del known["current"][table]
    (lake / "lake.yaml").write_text(yaml.safe_dump(known))
    return lake


def parts(lake: Path, table: str) -> dict[str, int]:
    """Time of the last change of each part of a table."""
    return {str(path): path.stat().st_mtime_ns for path in lake.glob(f"{table}/*/*/*.parquet")}


def test_killed_while_it_looks_for_duplicates_and_neighbors(
    lake: Path, undisturbed: Path, tmp_path: Path, start: Callable[..., Job]
) -> None:
    """dedup's driver dies at its third part; neighbors as a whole at another, then its driver before the end."""
    dedup = ("dedup", lake, "--json")
    fault = Fault([r"/duplicates/.*/0000000004\.parquet$"], "pause", tmp_path / "dedup")
    job = start(*dedup, environment=fault.environment())
    job.kill("driver", fault.hit(job))
    job.assert_gone()
    assert len(kept := parts(lake, "duplicates")) == 3
    job = start(*dedup)
    assert job.wait() == 0, job.errors()
    assert counts(job) == {"deaths": 0, "parts_kept": 3, "parts_run": NUM_PARTS - 3}
    assert kept.items() <= parts(lake, "duplicates").items()

    neighbors = ("neighbors", lake, "--workers", "1", "--json", *PLUGIN)
    kept = {}
    for whom, point in (("tree", r"/neighbors/.*/0000000010\.parquet$"), ("driver", "lake.yaml$")):
        fault = Fault([point], "pause", tmp_path / whom)
        job = start(*neighbors, environment=fault.environment())
        job.kill(whom, fault.hit(job))
        job.assert_gone()
        assert job.process.returncode == -signal.SIGKILL
        found = parts(lake, "neighbors")
        assert kept.items() <= found.items() and len(found) > len(kept)
        kept = found
    job = start(*neighbors)
    assert job.wait() == 0, job.errors()
    assert counts(job) == {"deaths": 0, "parts_kept": NUM_PARTS, "parts_run": 0}
    assert parts(lake, "neighbors") == kept
    assert_same_tables(lake, undisturbed)
    assert_sound(lake)

    shutil.rmtree(lake / "neighbors")
    fault = Fault([r"/neighbors/.*/0000000004\.parquet$"], "pause", tmp_path / "worker")
    job = start(*neighbors, environment=fault.environment())
    job.kill("worker", fault.hit(job))
    assert job.wait() == 0, job.errors()
    assert counts(job) == {"deaths": 1, "parts_kept": 0, "parts_run": NUM_PARTS}
    assert_same_tables(lake, undisturbed)
    assert_sound(lake)


def test_killed_while_it_clusters(undisturbed: Path, tmp_path: Path, start: Callable[..., Job]) -> None:
    """At its first part, at a later one, and when all is written but not made known."""
    lake = tmp_path / "lake"
    shutil.copytree(undisturbed, lake)
    known = yaml.safe_load((lake / "lake.yaml").read_text())
    shutil.rmtree(lake / "clusters")
    del known["current"]["clusters"]
    (lake / "lake.yaml").write_text(yaml.safe_dump(known))
    kept: dict[str, int] = {}
    for number, point in enumerate(("0000000000", "0000000012", "lake.yaml$")):
        fault = Fault([rf"{point}\.parquet$" if number < 2 else point], "pause", tmp_path / str(number))
        job = start("cluster", lake, "--json", environment=fault.environment())
        job.kill("driver", fault.hit(job))
        job.assert_gone()
        found = parts(lake, "clusters")
        assert kept.items() <= found.items() and len(found) > len(kept)
        kept = found
    job = start("cluster", lake, "--json")
    assert job.wait() == 0, job.errors()
    assert counts(job) == {"deaths": 0, "parts_kept": NUM_PARTS, "parts_run": 0}
    assert parts(lake, "clusters") == kept
    assert_same_tables(lake, undisturbed)
    assert_sound(lake)


def test_killed_while_it_cleans(
    undisturbed: Path, pictures: Path, tmp_path: Path, start: Callable[..., Job]
) -> None:
    """Between two parts, and when all is written but not made known."""
    lake, other = tmp_path / "lake", tmp_path / "other"
    shutil.copytree(undisturbed, lake)
    labels = tmp_path / "labels.csv"
    labels.write_text("path,name\n" + "".join(f"{i:02d}.jpg,{'ab'[i % 4 == 0]}\n" for i in range(NUM_IMAGES)))
    job = start("extract", pictures, lake, *FLAGS, "--labels", labels, "--label-column", "name")
    assert job.wait() == 0, job.errors()
    shutil.copytree(lake, other)
    run_job("clean", JobConfig(lake=str(other)))
    kept: dict[str, int] = {}
    for number, point in enumerate((r"/decisions/.*/0000000012\.parquet$", "lake.yaml$")):
        fault = Fault([point], "pause", tmp_path / str(number))
        job = start("clean", lake, "--json", environment=fault.environment())
        job.kill("driver", fault.hit(job))
        job.assert_gone()
        found = parts(lake, "decisions")
        assert kept.items() <= found.items() and len(found) > len(kept)
        kept = found
    job = start("clean", lake, "--json")
    assert job.wait() == 0, job.errors()
    assert counts(job) == {"deaths": 0, "parts_kept": NUM_PARTS, "parts_run": 0}
    assert parts(lake, "decisions") == kept
    assert_same_tables(lake, other)
    assert_sound(lake)


def counts(job: Job) -> dict[str, int]:
    """What the one stage of a job did."""
    (stage,) = job.summary()["stages"]
    return {name: stage[name] for name in ("deaths", "parts_kept", "parts_run")}
