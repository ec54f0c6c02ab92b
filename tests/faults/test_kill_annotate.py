"""kill -9 during annotate: the same command ends with the same table; a crop that kills workers costs itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from real_jobs import NUM_IMAGES, PART_ROWS, Fault, Job, assert_same_tables, assert_sound, current_tables

from facescale.lake.ids import image_id_of, make_image_id
from facescale.vision.crops import encode_jpeg

NUM_PARTS = NUM_IMAGES // PART_ROWS
COMMAND = ("--with", "tone", "--plugin", "tone_plugin", "--threads", "1", "--json")
CONFIG = "engine: {deadline_min_s: 30, deadline_item_s: 30}\n"
DEADLY_ROW = 6


@pytest.fixture(scope="module")
def annotated(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed lake with attributes that nothing happened to."""
    lake = tmp_path_factory.mktemp("annotated") / "lake"
    shutil.copytree(undisturbed, lake)
    job = Job([str(a) for a in ("annotate", lake, *COMMAND, "--workers", "0")], lake.parent)
    try:
        assert job.wait() == 0, job.errors()
    finally:
        job.end()
    assert counts(job) == {"deaths": 0, "parts_kept": 0, "parts_run": NUM_PARTS}
    assert_sound(lake)
    return lake


def test_killed_while_it_annotates(
    undisturbed: Path, annotated: Path, tmp_path: Path, start: Callable[..., Job]
) -> None:
    """The driver at its third part; the job as a whole at another; the driver before the end is made known."""
    lake = tmp_path / "lake"
    shutil.copytree(undisturbed, lake)
    kept: dict[str, int] = {}
    for whom, point, workers in (
        ("driver", r"/attributes/.*/0000000004\.parquet$", "0"),
        ("tree", r"/attributes/.*/0000000010\.parquet$", "1"),
        ("driver", "lake.yaml$", "0"),
    ):
        fault = Fault([point], "pause", tmp_path / f"{len(kept)} kept")
        command = ("annotate", lake, *COMMAND, "--plugin", "fault_plugin", "--workers", workers)
        job = start(*command, environment=fault.environment())
        job.kill(whom, fault.hit(job))
        job.assert_gone()
        found = parts(lake)
        assert kept.items() <= found.items() and len(found) > len(kept)
        kept = found
    job = start("annotate", lake, *COMMAND, "--workers", "0")
    assert job.wait() == 0, job.errors()
    assert counts(job) == {"deaths": 0, "parts_kept": NUM_PARTS, "parts_run": 0}
    assert parts(lake) == kept
    assert_same_tables(lake, annotated)
    assert_sound(lake)


def test_a_deadly_crop_costs_its_image(
    undisturbed: Path, annotated: Path, tmp_path: Path, start: Callable[..., Job]
) -> None:
    lake = tmp_path / "lake"
    shutil.copytree(undisturbed, lake)
    (path,) = lake.glob(f"crops/*/*/{DEADLY_ROW:010d}.parquet")
    crops = pq.read_table(path)
    white = encode_jpeg(np.full((200, 200, 3), 255, np.uint8))
    deadly = image_id_of(crops["face_id"].to_numpy()) == make_image_id(0, DEADLY_ROW)
    assert deadly.sum() == 1 and len(crops) == 2
    jpegs = [white if bad else jpeg for bad, jpeg in zip(deadly, crops["jpeg"].to_pylist(), strict=True)]
    changed = crops.set_column(1, crops.schema.field("jpeg"), pa.array(jpegs, pa.binary()))
    pq.write_table(changed, path)
    (tmp_path / "job.yaml").write_text(CONFIG)
    command = ("annotate", lake, *COMMAND, "--config", tmp_path / "job.yaml", "--workers", "1")
    job = start(*command, environment={"FACESCALE_TEST_DEADLY": "1"})
    assert job.wait() == 0, job.errors()
    (stage,) = job.summary()["stages"]
    assert stage["deaths"] >= 2
    assert stage["counters"]["poison"] == 1
    (found,) = (t for folder, t in current_tables(lake).items() if folder.startswith("attributes/"))
    (expected,) = (t for folder, t in current_tables(annotated).items() if folder.startswith("attributes/"))
    bad = image_id_of(found["face_id"].to_numpy()) == make_image_id(0, DEADLY_ROW)
    assert found["face_id"].equals(expected["face_id"])
    assert found.filter(~bad).equals(expected.filter(~bad))
    (row,) = found.filter(bad).to_pylist()
    assert (row["status"], row["level"], row["colors"], row["main"]) == ("poison", None, None, None)


def parts(lake: Path) -> dict[str, int]:
    """Time of the last change of each part of attributes."""
    return {str(path): path.stat().st_mtime_ns for path in lake.glob("attributes/*/*/*.parquet")}


def counts(job: Job) -> dict[str, int]:
    """What the one stage of a job did."""
    (stage,) = job.summary()["stages"]
    return {name: stage[name] for name in ("deaths", "parts_kept", "parts_run")}
