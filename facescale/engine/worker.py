"""What happens to one part inside one worker: process, commit, report. Knows nothing of Ray.

Comes in: a stage, a store and units of work. Goes out: PartDone or PartFailed, small enough for any object store.
The Ray actor (map_parts), the inline runner (inline) and the careful child (careful) all call `PartWorker`.
"""

from __future__ import annotations

import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from facescale.errors import FacescaleError, TransientError
from facescale.lake.parts import PartKey, commit_part
from facescale.lake.stage import Guard

if TYPE_CHECKING:
    from facescale.lake.stage import Stage
    from facescale.lake.store import Store


@dataclass(frozen=True)
class WorkerInfo:
    """Where a worker lives: enough to make sure that it is dead."""

    pid: int
    create_time: float
    node_id: str


@dataclass(frozen=True)
class PartDone:
    """One committed part: its counters, and how long it took."""

    key: PartKey
    counters: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class PartFailed:
    """One part that raised. `error` is set for errors facescale raises on purpose, else only the text is."""

    key: PartKey
    error: FacescaleError | None
    text: str

    @property
    def transient(self) -> bool:
        """Whether storage or network failed in a way that trying again can mend."""
        return isinstance(self.error, TransientError)


def key_of(unit: Any) -> PartKey:
    """The part a unit of work makes: the unit itself, or its `key`."""
    return unit if isinstance(unit, PartKey) else unit.key


def worker_environment(threads: int) -> dict[str, str]:
    """Environment of a worker process, set before it starts: threads of numeric libraries, and malloc.

    Networks ask for and free tens of MiB for each layer. By default glibc maps and unmaps them each time, and the
    kernel clears every page again: an eighth of the detector's CPU time. Kept, they are reused.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    malloc = {"MALLOC_MMAP_THRESHOLD_": str(256 << 20), "MALLOC_TRIM_THRESHOLD_": str(512 << 20)}
    return {name: str(threads) for name in names} | malloc


def limit_threads(threads: int) -> None:
    """Set the thread pools of the libraries that are loaded; none is imported for it."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    if (cv2 := sys.modules.get("cv2")) is not None:
        cv2.setNumThreads(threads)
    if (faiss := sys.modules.get("faiss")) is not None:
        faiss.omp_set_num_threads(threads)
    if (pyarrow := sys.modules.get("pyarrow")) is not None:
        pyarrow.set_cpu_count(threads)


class PartWorker:
    """Runs a stage over parts, one at a time.

    Args:
        stage: opened by `open`.
        store: where results are committed.
        threads: size of every numeric library's thread pool in this process.
    """

    def __init__(self, stage: Stage, store: Store, threads: int) -> None:
        self.stage, self.store, self.threads = stage, store, threads

    def open(self, node_id: str = "") -> WorkerInfo | PartFailed:
        """Load the stage's models; says where this worker lives."""
        import psutil

        try:
            limit_threads(self.threads)
            self.stage.open()
            limit_threads(self.threads)  # once more: opening has loaded libraries
        except Exception as error:
            return _failed(PartKey(0, 0, 0), error)
        me = psutil.Process()
        return WorkerInfo(pid=me.pid, create_time=me.create_time(), node_id=node_id)

    def run(self, unit: Any, guard: Guard | None = None) -> PartDone | PartFailed:
        """Process and commit one part. Exceptions come back as values: they must cross process borders whole."""
        key, start = key_of(unit), time.monotonic()
        try:
            result = self.stage.process(unit, guard or Guard())
            if result.tables:
                commit_part(self.store, key, result.tables, counters=result.counters)
        except Exception as error:
            return _failed(key, error)
        return PartDone(key, result.counters, time.monotonic() - start)


def _failed(key: PartKey, error: Exception) -> PartFailed:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, FacescaleError):
        return PartFailed(key, error, text)
    return PartFailed(key, None, "".join(traceback.format_exception(error)))


def reap(pid: int, create_time: float) -> bool:
    """Kill a process unless it is gone already; True once it is. Runs on the process's own machine."""
    import psutil

    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - create_time) > 1.0:
            return True  # the pid belongs to somebody else by now
        process.kill()
        process.wait(30)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True
