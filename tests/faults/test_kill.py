"""kill -9 of a worker, of the driver, of every process, and Ctrl-C: the same command ends with the same tables."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from real_jobs import (
    CONFIG,
    FLAGS,
    NUM_IMAGES,
    PART_ROWS,
    Fault,
    Job,
    assert_same_parts,
    assert_same_tables,
    assert_sound,
    done_files,
)

from facescale.lake.lake import Lake

NUM_PARTS = NUM_IMAGES // PART_ROWS
TABLES = ("faces", "crops", "embeddings", "images")  # in the order in which a part's files get their names
PLUGIN = ("--plugin", "fault_plugin")
MODEL = "dlib_resnet"


def points(seed: int, count: int) -> list[str]:
    """Seeded moments in the life of a run: right after one file of one part got its name, in order of parts."""
    rng = random.Random(seed)
    parts = sorted(rng.sample(range(NUM_PARTS), count))
    # Every moment of the four occurs: after the last but `images` a part is whole, and yet not done.
    tables = rng.sample(TABLES, len(TABLES)) + rng.choices(TABLES, k=count)
    return [
        f"/{table}/.*/{part * PART_ROWS:010d}.parquet$" for part, table in zip(parts, tables, strict=False)
    ]


def test_killed_workers_cost_nothing(
    pictures: Path, undisturbed: Path, tmp_path: Path, start: Callable[..., Job]
) -> None:
    """Five workers die between sibling files, in one run that ends by itself."""
    lake, fault = tmp_path / "lake", Fault(points(seed=1, count=5), "pause", tmp_path / "markers")
    job = start(
        "extract",
        pictures,
        lake,
        *FLAGS,
        *PLUGIN,
        "--workers",
        "2",
        "--json",
        environment=fault.environment(),
    )
    for number in range(5):
        job.kill("worker", fault.hit(job, number))
    assert job.wait() == 0, job.errors()
    (stage,) = job.summary()["stages"]
    assert (stage["deaths"], stage["parts_run"]) == (5, NUM_PARTS)
    assert job.errors().count("the part runs once more") == 5
    job.assert_gone()
    assert_same_tables(lake, undisturbed, only=TABLES)
    assert_sound(lake)


def test_killed_jobs_resume(
    pictures: Path, undisturbed: Path, tmp_path: Path, start: Callable[..., Job]
) -> None:
    """Drivers and whole trees die in turns, while the lake is made and between sibling files; then all is well.

    One more driver and two more trees die in the test of the index.
    """
    lake = tmp_path / "lake"
    command = ("extract", pictures, lake, *FLAGS, *PLUGIN, "--workers", "1", "--json")
    kept: dict[str, tuple[int, int]] = {}
    early = ["/lake.yaml$", "/sources/.*.parquet$", "/crops/.*/_version.json$"]
    for number, point in enumerate([*early, *points(seed=2, count=5)]):
        fault = Fault([point], "pause", tmp_path / f"markers-{number}")
        job = start(*command, environment=fault.environment())
        job.kill(("driver", "tree")[number % 2], fault.hit(job))
        job.assert_gone()
        assert job.process.returncode == -signal.SIGKILL
        found = done_files(lake)
        assert kept.items() <= found.items(), (
            f"a part that was done was touched by the job that died at {point}"
        )
        kept = found
    job = start(*command)
    assert job.wait() == 0, job.errors()
    (stage,) = job.summary()["stages"]
    assert stage["parts_kept"] == len(kept) // len(TABLES) > 0
    assert stage["parts_kept"] + stage["parts_run"] == NUM_PARTS
    assert kept.items() <= done_files(lake).items(), "a part that was done was touched by the last job"
    assert_same_tables(lake, undisturbed, only=TABLES)
    assert_sound(lake)


def test_stopped_politely(
    pictures: Path, undisturbed: Path, tmp_path: Path, start: Callable[..., Job]
) -> None:
    """Ctrl-C, which a terminal sends to the whole process group; then SIGTERM, which a scheduler sends the driver."""
    lake = tmp_path / "lake"
    command = ("extract", pictures, lake, *FLAGS, *PLUGIN, "--workers", "1")
    kept: dict[str, tuple[int, int]] = {}
    first, second = points(seed=3, count=2)
    for point, stop, code in ((first, "Ctrl-C", 130), (second, "SIGTERM", 4)):
        fault = Fault([point], "pause", tmp_path / stop)
        job = start(*command, environment=fault.environment())
        fault.hit(job)
        if stop == "Ctrl-C":
            os.killpg(job.process.pid, signal.SIGINT)
        else:
            job.process.terminate()
        assert job.wait() == code, job.errors()
        job.assert_gone()
        assert "Traceback" not in job.errors()
        if stop == "Ctrl-C":
            assert "To resume, run the same command again (extract)" in job.errors()
        found = done_files(lake)
        assert kept.items() <= found.items(), "a part that was done has been touched"
        assert len(kept) < len(found) < NUM_PARTS * len(TABLES)
        kept = found
        assert Lake.open(str(lake)).current("images") is None
    assert_same_parts(lake, undisturbed)


def test_killed_while_it_indexes(
    pictures: Path, undisturbed: Path, tmp_path: Path, start: Callable[..., Job]
) -> None:
    """The job dies after training, between two shards, and before the manifest is current; then it is run again."""
    lake = tmp_path / "lake"
    shutil.copytree(undisturbed, lake)
    shutil.rmtree(lake / "index")
    command = ("run", pictures, lake, *FLAGS, *PLUGIN, "--config", undisturbed.parent / CONFIG)
    kept = done_files(lake)
    for number, point in enumerate(["/queries.npz$", r"/0000001\.faiss$", "/manifest.json$"]):
        fault = Fault([point], "pause", tmp_path / f"markers-{number}")
        job = start(*command, "--workers", "1", environment=fault.environment())
        job.kill(("tree", "driver")[number % 2], fault.hit(job))
        job.assert_gone()
    job = start(*command, "--workers", "1")
    assert job.wait() == 0, job.errors()
    assert manifest(lake) == manifest(undisturbed)
    assert len(manifest(lake)["shards"]) == 3
    assert done_files(lake) == kept
    assert_same_tables(lake, undisturbed)
    assert_sound(lake)


def manifest(lake: Path) -> dict[str, Any]:
    """The current index's manifest without times."""
    version = Lake.open(str(lake)).current("index", MODEL)
    assert version is not None
    content: dict[str, Any] = json.loads((lake / version.folder / "manifest.json").read_text())
    for point in [content["recall"]["measured"], *content["recall"]["curve"]]:
        del point["ms_per_query"]
    return content
