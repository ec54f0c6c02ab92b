"""A full disk ends a job with code 1, the file's name and a remedy that works; no part of the lake is half-written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from real_jobs import (
    CONFIG,
    FLAGS,
    Fault,
    Job,
    assert_same_parts,
    assert_same_tables,
    assert_sound,
    done_files,
)

from facescale.lake.lake import Lake
from facescale.lake.verify import verify

REMEDY = "No space left on device; free space, then rerun the same command"
PLUGIN = ("--plugin", "fault_plugin")
# A tmpfs that fills up while parts are written; then it grows, and the same command runs again.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=320k none "$DISK" || exit 77
"$@" 2>"$OUT/full.err" >"$OUT/full.out"; echo $? >"$OUT/full.code"
cp -a "$DISK/lake" "$OUT/full"
mount -o remount,size=64m "$DISK"
"$@" 2>"$OUT/roomy.err" >"$OUT/roomy.out"; echo $? >"$OUT/roomy.code"
cp -a "$DISK/lake" "$OUT/roomy"
"""


def assert_whole(lake: Path, undisturbed: Path) -> None:
    """Every file of every table belongs to a part that is done and right; nothing temporary is left."""
    tables = {str(path) for path in lake.glob("*/*/*/*.parquet")}
    assert tables == set(done_files(lake))
    assert_same_parts(lake, undisturbed)
    assert verify(Lake.open(str(lake))).ok
    assert list(lake.glob("_tmp/*")) == []


def test_injected_at_every_stage(
    pictures: Path, undisturbed: Path, tmp_path: Path, start: Callable[..., Job]
) -> None:
    """No room for the plan, for a part in a worker, for a shard of the index; each time the command is repeated."""
    lake = tmp_path / "lake"
    command = ("run", pictures, lake, "--config", undisturbed.parent / CONFIG, *FLAGS, *PLUGIN)
    points = {"/sources/0000000.parquet": "0", "/0000000/0000000010.parquet": "1", "/0000001.faiss": "0"}
    kept: dict[str, tuple[int, int]] = {}
    for number, (point, workers) in enumerate(points.items()):
        fault = Fault([f"{point}$"], "full", tmp_path / f"markers-{number}")
        job = start(*command, "--workers", workers, environment=fault.environment())
        assert job.wait() == 1, job.errors()
        message = job.errors().splitlines()[-1]
        assert message.startswith(f"error: cannot write {lake}/") and f"{point}: {REMEDY}" in message
        assert_whole(lake, undisturbed)
        assert kept.items() <= done_files(lake).items()
        kept = done_files(lake)
    job = start(*command, "--workers", "0")
    assert job.wait() == 0, job.errors()
    assert done_files(lake) == kept  # only the index was missing
    assert Lake.open(str(lake)).current_models("index") == ["dlib_resnet"]
    assert_same_tables(lake, undisturbed)
    assert_sound(lake)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("unshare"), reason="needs Linux and unshare")
def test_real(pictures: Path, undisturbed: Path, tmp_path: Path) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    facescale = [str(Path(sys.executable).with_name("facescale")), "run", str(pictures), str(disk / "lake")]
    flags = [*FLAGS, "--workers", "0", "--config", str(undisturbed.parent / CONFIG)]
    job = subprocess.run(
        ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, "sh", *facescale, *flags],
        env={**os.environ, "DISK": str(disk), "OUT": str(out)},
        capture_output=True,
        text=True,
    )
    if not (out / "full.code").exists():
        pytest.skip(f"no mounts in user namespaces here: {job.stderr.strip()}")
    assert job.returncode == 0, job.stderr
    message = (out / "full.err").read_text().splitlines()[-1]
    assert message.startswith(f"error: cannot write {disk}/lake/") and message.endswith(REMEDY), message
    assert (out / "full.code").read_text() == "1\n"
    assert_whole(out / "full", undisturbed)
    assert 0 < len(done_files(out / "full")) < len(done_files(undisturbed)), "it filled up between parts"
    assert (out / "roomy.code").read_text() == "0\n", (out / "roomy.err").read_text()
    assert_same_tables(out / "roomy", undisturbed)
    assert_sound(out / "roomy")
