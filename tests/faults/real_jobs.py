"""Real `facescale` commands as child processes, for tests that kill them: start, find processes, wait, compare."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from facescale.lake.lake import Lake
from facescale.lake.schema import table_names
from facescale.lake.verify import verify

NUM_IMAGES = 24
PART_ROWS = 2
CONFIG = "job.yaml"
FLAGS = ("--min-face-px", "80", "--part-rows", str(PART_ROWS), "--threads", "1")
PATIENCE_S = 240.0  # on a machine that is busy with other things; never a sleep, always a limit
FAULT_VARIABLE = "FACESCALE_TEST_FAULT"
_JOB_VARIABLE = "FACESCALE_TEST_JOB"
_HERE = str(Path(__file__).parent)


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """Wait until a condition gives something true, and return that; fail with `what` when it never does."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.005)
    return found


@dataclass(frozen=True)
class Fault:
    """What fault_plugin is to do; see there. `markers` is a fresh folder."""

    points: Sequence[str]
    do: str
    markers: Path

    def environment(self) -> dict[str, str]:
        self.markers.mkdir(parents=True, exist_ok=True)
        content = {"points": list(self.points), "do": self.do, "markers": str(self.markers)}
        return {FAULT_VARIABLE: json.dumps(content)}

    def hit(self, job: Job, number: int = 0) -> int:
        """Wait until a point went off; returns the id of the process in which it did."""
        marker = self.markers / str(number)
        until(lambda: marker.exists() or job.process.poll() is not None, f"point {self.points[number]}")
        assert marker.exists(), f"the job ended before {self.points[number]}: {job.errors()}"
        return int(marker.read_text())


@dataclass
class Job:
    """One command on its way, in a process group of its own like a shell's job; all its processes carry a mark."""

    arguments: Sequence[str]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.out, self.err = self.folder / f"{self.mark}.out", self.folder / f"{self.mark}.err"
        command = [str(Path(sys.executable).with_name("facescale"))]
        if FAULT_VARIABLE in self.environment:
            command = [sys.executable, "-m", "fault_plugin"]  # the same, with the fault there from the start
        path = os.pathsep.join([_HERE, *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*command, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": path, _JOB_VARIABLE: self.mark, **self.environment},
                start_new_session=True,
            )

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)

    def errors(self) -> str:
        return self.err.read_text()

    def summary(self) -> dict[str, Any]:
        """The JSON document of a job that was run with --json."""
        summary: dict[str, Any] = json.loads(self.out.read_text())
        return summary

    def processes(self) -> list[psutil.Process]:
        """Every living process of this job, whoever its parent is by now."""
        return [process for process in psutil.process_iter() if _is_marked(process, self.mark)]

    def kill(self, whom: str, paused: int) -> None:
        """`kill -9` of "worker" (the paused process), "driver", or "tree": every process of the job."""
        if whom == "tree":
            for process in self.processes():
                _kill(process.pid)
        else:
            _kill(paused if whom == "worker" else self.process.pid)

    def assert_gone(self, seconds: float = 20.0) -> None:
        """The driver has ended and leaves no process behind, by itself and soon."""
        self.process.wait(PATIENCE_S)
        end = time.monotonic() + seconds
        while left := self.processes():
            names = [process.name() for process in left if process.is_running()]
            assert time.monotonic() < end, f"{names} still run {seconds:.0f} s after their driver ended"
            time.sleep(0.05)

    def end(self) -> None:
        """Leave nothing behind, whatever went wrong."""
        self.kill("tree", 0)
        self.process.wait(PATIENCE_S)


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(_JOB_VARIABLE) == mark and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def current_tables(lake: Path) -> dict[str, pa.Table]:
    """Every current table (not the index), its parts in order of their names."""
    opened = Lake.open(str(lake))
    tables = {}
    for version in opened.current_versions():
        if version.table in table_names():
            paths = sorted(path for path, _ in opened.store.list(version.folder) if path.endswith(".parquet"))
            tables[version.folder] = pa.concat_tables([opened.store.read_table(path) for path in paths])
    return tables


def assert_same_tables(lake: Path, undisturbed: Path, *, only: Sequence[str] | None = None) -> None:
    """The lakes' current tables hold the same rows in the same order, column by column.

    With `only`, the first lake has these tables and no others, as the job it was made by makes no more.
    """
    found, expected = current_tables(lake), current_tables(undisturbed)
    if only is not None:
        expected = {folder: table for folder, table in expected.items() if folder.split("/")[0] in only}
        assert len(expected) == len(only)
    assert sorted(found) == sorted(expected)
    for folder, table in expected.items():
        assert found[folder].column_names == table.column_names
        for name in table.column_names:
            assert found[folder][name].equals(table[name]), f"{folder}: column {name} differs"
        assert found[folder].equals(table)


def assert_same_parts(lake: Path, undisturbed: Path) -> None:
    """Every part that is done holds what the undisturbed lake's part does."""
    ours, theirs = Lake.open(str(lake)).store, Lake.open(str(undisturbed)).store
    for file in done_files(lake):
        path = str(Path(file).relative_to(lake))
        assert ours.read_table(path).equals(theirs.read_table(path)), f"{path} differs"


def assert_sound(lake: Path) -> None:
    """`facescale lake verify` finds nothing, no part is left to do, no temporary file is left over."""
    report = verify(Lake.open(str(lake)))
    assert [str(problem) for problem in report.problems] == []
    assert report.checked["parts_to_do"] == 0
    assert list(lake.glob("_tmp/*")) == []


def done_files(lake: Path) -> dict[str, tuple[int, int]]:
    """{file: (inode, mtime_ns)} of every file of every part that is done."""
    files = {}
    for images in sorted(lake.glob("images/*/*/*.parquet")):
        for path in sorted(lake.glob(f"*/*/{images.parent.name}/{images.name}")):
            status = path.stat()
            files[str(path)] = (status.st_ino, status.st_mtime_ns)
    return files
