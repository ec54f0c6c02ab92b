"""`facescale bench memory`, and the meter it uses: the memory that a process and all its descendants really take.

The measure is PSS, the proportional set size: private pages in full, a page that n processes share as 1/n in each, so
that the sum over a tree counts everything once (RSS would count torch once a worker). Linux only. Called by the command
line and by the tests, which hold small runs to the same limit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from facescale.bench.photos import find_photos
from facescale.bench.results import Goal, Result, timed
from facescale.engine.session import usable_cpus
from facescale.errors import FacescaleError, UsageError
from facescale.sources.plan import choose_part_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from facescale.driver.context import Reporter

DEFAULT_SIZES = (2_000, 20_000)
DEFAULT_MIN_FACE_PX = 80
GROWTH = 1.20
_PERIOD_S = 0.2
_PER_FOLDER = 1_000
_SHOWN_CHARACTERS = 2_000


@dataclass
class Peak:
    """The largest sum of PSS that was seen.

    Attributes:
        bytes: the sum.
        by_role: its parts: driver (the process itself), workers (Ray's actors), ray (everything else below it).
        processes: how many there were at that moment.
        samples: how often it was looked at.
    """

    bytes: int = 0
    by_role: dict[str, int] = field(default_factory=dict)
    processes: int = 0
    samples: int = 0


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process; 0 when it is gone or a zombie.

    Raises:
        UsageError: this system does not tell (it needs Linux 4.14 and /proc).
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        if not os.path.exists("/proc/self/smaps_rollup"):
            raise UsageError("memory is read from /proc/PID/smaps_rollup, which this system lacks") from None
    except (ProcessLookupError, PermissionError):
        pass  # it has ended, and what is left of it cannot be read
    return 0


def tree_pss(root: psutil.Process) -> dict[int, tuple[str, int]]:
    """PSS of a process and its descendants: pid → (role, bytes); roles as in `Peak`."""
    found = {}
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return {}
    for process in processes:
        size = pss_bytes(process.pid)
        if size:
            found[process.pid] = (_role(process, root), size)
    return found


def _role(process: psutil.Process, root: psutil.Process) -> str:
    if process.pid == root.pid:
        return "driver"
    try:
        title = " ".join(process.cmdline()[:1])
    except psutil.Error:
        title = ""
    return "workers" if title.startswith("ray::") and "IDLE" not in title else "ray"


class PssMeter:
    """Samples a process tree about five times a second, in a thread; use it as a context manager.

    Args:
        pid: root of the tree.
        period_s: seconds between samples.
    """

    def __init__(self, pid: int, *, period_s: float = _PERIOD_S) -> None:
        self.peak = Peak()
        self._root, self._period_s = psutil.Process(pid), period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pss", daemon=True)

    def __enter__(self) -> PssMeter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._sample()
            self._stop.wait(self._period_s)

    def _sample(self) -> None:
        found = tree_pss(self._root)
        total = sum(size for _, size in found.values())
        self.peak.samples += 1
        if total > self.peak.bytes:
            by_role = {role: 0 for role, _ in found.values()}
            for role, size in found.values():
                by_role[role] += size
            self.peak.bytes, self.peak.by_role, self.peak.processes = total, by_role, len(found)


def peak_pss(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> Peak:
    """Run a command to its end and measure it and all its descendants.

    Args:
        command: what to run; its output is kept back.
        env: its environment; None for this process's.

    Raises:
        FacescaleError: it failed; the message has the end of what it wrote.
    """
    pss_bytes(os.getpid())  # fails before anything is started where PSS cannot be read
    with tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)
        try:
            with PssMeter(process.pid) as meter:
                code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if code:
            output.seek(0)
            raise FacescaleError(
                f"{' '.join(command)}: exit code {code}: {output.read()[-_SHOWN_CHARACTERS:]}"
            )
    return meter.peak


def extract_command(src: Path, lake: Path, *, min_face_px: int, workers: int) -> list[str]:
    """`facescale extract` in this interpreter."""
    start = [sys.executable, "-c", "from facescale.cli import main; main()", "extract", str(src), str(lake)]
    return [*start, "--min-face-px", str(min_face_px), "--workers", str(workers), "--json"]


def multiply_photos(photos: Sequence[Path], count: int, out: Path) -> None:
    """Make a folder of `count` photographs out of fewer, by links under other names."""
    for number in range(count):
        photo = photos[number % len(photos)]
        link = out / f"{number // _PER_FOLDER:04d}" / f"{number:08d}{photo.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(photo.resolve())


def extract_peak(photos: Sequence[Path], count: int, work: Path, *, min_face_px: int, workers: int) -> Peak:
    """Peak memory of `facescale extract` over `count` photographs, in a process and a Ray of its own."""
    src, lake = work / f"photos-{count}", work / f"lake-{count}"
    multiply_photos(photos, count, src)
    # A cluster that RAY_ADDRESS names would hold the workers outside the tree that is measured.
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return peak_pss(extract_command(src, lake, min_face_px=min_face_px, workers=workers), env=env)


def bench_memory(
    folder: str,
    reporter: Reporter,
    *,
    sizes: Sequence[int] = DEFAULT_SIZES,
    min_face_px: int = DEFAULT_MIN_FACE_PX,
    workers: int | None = None,
    limit: int | None = None,
    work: str | None = None,
) -> Result:
    """Measure extract at several sizes of input; memory must not grow with it.

    Args:
        folder: of photographs; repeated under other names to make up the sizes.
        reporter: where remarks go.
        sizes: numbers of photographs, at least two.
        min_face_px: smallest face; 80 is quick, and memory per image is larger at 40 but does not depend on sizes.
        workers: of extract, the same at every size, since each takes memory of its own; None for one a core, but
            no more than the smallest size has parts.
        limit: take at most so many different photographs.
        work: folder for links and lakes; None for a temporary one.

    Raises:
        UsageError: fewer than two sizes, or PSS cannot be read here.
    """
    if len(set(sizes)) < 2 or min(sizes) < 1:
        raise UsageError(
            f"--sizes {','.join(map(str, sizes))}: give at least two different numbers of photographs"
        )
    photos = find_photos(Path(folder).absolute(), limit)
    smallest = min(sizes)
    workers = workers or min(usable_cpus(), -(-smallest // choose_part_rows(smallest)))
    settings = {
        "photos": len(photos),
        "sizes": list(sizes),
        "min_face_px": min_face_px,
        "workers": workers,
    }
    result = Result("memory", settings)
    rows, peaks = [], []
    with timed(result), tempfile.TemporaryDirectory(prefix="facescale-bench-", dir=work) as place:
        for count in sorted(set(sizes)):
            reporter.say(f"extracting {count:,} photographs")
            start = time.monotonic()
            peak = extract_peak(photos, count, Path(place), min_face_px=min_face_px, workers=workers)
            seconds = time.monotonic() - start
            reporter.say(f"{count:,} photographs: peak {peak.bytes / 2**20:,.0f} MiB, {seconds:,.0f} s")
            peaks.append(peak.bytes)
            mib = {f"{role}, MiB": round(size / 2**20, 1) for role, size in sorted(peak.by_role.items())}
            rows.append(
                {
                    "photographs": count,
                    "peak, MiB": round(peak.bytes / 2**20, 1),
                    **mib,
                    "processes": peak.processes,
                    "samples": peak.samples,
                    "seconds": round(seconds, 1),
                }
            )
    result.goals = [
        Goal("peak memory, the largest input against the smallest", peaks[-1] / peaks[0], at_most=GROWTH)
    ]
    result.figures["peak memory (summed PSS)"] = rows
    return result
