"""Careful mode: a part that has killed two workers runs in a child process, one row at a time.

The child notes each row before it touches it. When the child dies, or stops noting for too long, the row noted last
gets the status `poison` and the child starts again without it; every other row of the part survives.
`run_careful` is called by a worker; this module is also the child's main program.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facescale.engine.worker import PartDone, PartFailed, PartWorker, key_of, worker_environment
from facescale.errors import InfrastructureError
from facescale.lake.stage import Guard

if TYPE_CHECKING:
    from facescale.lake.stage import Stage
    from facescale.lake.store import Store

OPEN_DEADLINE_S = 300.0  # loading models may be slow; it is no row's fault
_OPENED = "opened"
_FINISHING = "finishing"


def run_careful(
    stage: Stage, store: Store, unit: Any, *, threads: int, item_deadline_s: float
) -> PartDone | PartFailed:
    """Run one part in child processes until it is through, marking the rows that kill them.

    Args:
        stage: not opened; each child opens its own copy.
        store: where the child commits.
        unit: the unit of work.
        threads: thread pool size in the child.
        item_deadline_s: a row that takes longer than this is treated as deadly.
    """
    from ray import cloudpickle  # stages defined in __main__ or in tests pickle by value

    key = key_of(unit)
    guard = Guard()
    while True:
        with tempfile.TemporaryDirectory(prefix="facescale-careful-") as folder:
            base = Path(folder)
            with (base / "task.pickle").open("wb") as file:
                cloudpickle.dump((stage, store, unit, threads, guard), file)
            death = _run_child(base, threads, item_deadline_s)
            result = base / "result.pickle"
            if result.exists():
                outcome: PartDone | PartFailed = pickle.loads(result.read_bytes())
                if isinstance(outcome, PartDone) or outcome.error is not None:
                    return outcome
                death = f"raised {outcome.text.splitlines()[-1]}"
            last = (base / "note").read_text() if (base / "note").exists() else ""
        if not last.isdigit():
            where = {"": "while starting", _OPENED: "before its first row", _FINISHING: "after its last row"}
            text = f"part {key.path}: its careful child died {where.get(last, last)}: {death}"
            return PartFailed(key, InfrastructureError(text), text)
        row = int(last)
        guard = Guard(poison=guard.poison | {row}, reasons={**guard.reasons, row: death})


def _run_child(base: Path, threads: int, item_deadline_s: float) -> str:
    """Start one child, watch its notes, and say how it ended."""
    environment = {**os.environ, **worker_environment(threads)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    environment["FACESCALE_CAREFUL_PARENT"] = str(os.getpid())
    command = [sys.executable, "-m", "facescale.engine.careful", str(base)]
    with (base / "stderr").open("wb") as errors:
        child = subprocess.Popen(command, env=environment, stderr=errors, stdout=errors)
        try:
            note, last, since = base / "note", "", time.monotonic()
            while True:
                try:
                    code = child.wait(timeout=0.05)
                    break
                except subprocess.TimeoutExpired:
                    pass
                now = note.read_text() if note.exists() else ""
                if now != last:
                    last, since = now, time.monotonic()
                limit = item_deadline_s if now.isdigit() else OPEN_DEADLINE_S
                if time.monotonic() - since > limit:
                    return f"took longer than {limit:g} s"
        finally:
            child.kill()
            child.wait()
    if code < 0:
        return f"killed its worker process with {signal.Signals(-code).name}"
    return f"ended its worker process with exit code {code}"


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, so that no stray child commits later."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(os.environ["FACESCALE_CAREFUL_PARENT"]):
        os._exit(1)


def main(folder: str) -> None:
    """Run the task pickled in `folder` and leave its outcome there."""
    _die_with_parent()
    base = Path(folder)
    note = base / "note"

    def write_note(text: str) -> None:
        temporary = base / "note.new"  # replaced, so that the parent never reads half a number
        temporary.write_text(text)
        temporary.replace(note)

    stage, store, unit, threads, guard = pickle.loads((base / "task.pickle").read_bytes())
    worker = PartWorker(stage, store, threads)
    opened = worker.open()
    outcome: PartDone | PartFailed
    if isinstance(opened, PartFailed):
        outcome = opened
    else:
        write_note(_OPENED)
        last_row = key_of(unit).first_row + key_of(unit).num_rows - 1

        def on_row(row: int) -> None:
            write_note(_FINISHING if row > last_row else str(row))

        outcome = worker.run(unit, Guard(guard.poison, guard.reasons, on_row))
    temporary = base / "result.new"
    temporary.write_bytes(pickle.dumps(outcome))
    temporary.replace(base / "result.pickle")


if __name__ == "__main__":
    main(sys.argv[1])
