"""Map parts through stateful Ray actors: who gets which part, and what happens when a worker dies or hangs.

Comes in: a stage, units of work (streamed), a placement. Goes out: every part committed, or an exception that says
why not. The rules:

- a part is given to one worker at a time; it is given again only after its worker is confirmed dead;
- a worker that dies, or is past its deadline, costs its part one life; a part that has lost two runs in careful mode,
  after all others: by then it is known whether the machine is at fault, and no image is called poison for its sake;
- more than max(5, 1 %) parts in careful mode is the machine's fault, not the input's: the job stops;
- transient errors are tried again at the end, up to three times, then left over (exit code 4).
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from facescale.engine.careful import run_careful
from facescale.engine.worker import (
    PartDone,
    PartFailed,
    PartWorker,
    WorkerInfo,
    key_of,
    reap,
    worker_environment,
)
from facescale.errors import EXIT_INCOMPLETE, FacescaleError, InfrastructureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from facescale.engine.placement import Placement
    from facescale.lake.stage import Stage
    from facescale.lake.store import Store

log = logging.getLogger(__name__)

_LIVES = 2  # deaths before careful mode
_TRANSIENT_TRIES = 3
_MAX_OPEN_DEATHS = 3
_POLL_S = 0.2
_REAP_DEADLINE_S = 60.0
_PATIENCE_S = 60.0  # without any worker, before saying so


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """When a worker counts as hung.

    Attributes:
        min_s: no part is given up earlier than this.
        factor: times the median seconds a row of the parts done so far.
        first_row_s: seconds a row before any part is done.
        item_s: seconds for one row in careful mode.
    """

    min_s: float = 300.0
    factor: float = 10.0
    first_row_s: float = 2.0
    item_s: float = 60.0


@dataclass
class MapSummary:
    """What a map did. `counters` are summed over the parts it ran."""

    parts: int = 0
    deaths: int = 0
    careful: int = 0
    left_over: list[str] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)


@dataclass
class _Task:
    unit: Any
    deaths: int = 0
    tries: int = 0
    last_trouble: str = ""


@dataclass
class _Slot:
    """One actor and the one part it is working on."""

    actor: Any
    opening: Any = None
    info: WorkerInfo | None = None
    task: _Task | None = None
    ref: Any = None
    since: float = 0.0


class _Actor(PartWorker):
    """The Ray actor: a PartWorker that can also run a part in careful mode."""

    def __init__(self, stage: Stage, store: Store, threads: int) -> None:
        super().__init__(stage, store, threads)
        self.unopened = copy.copy(stage)  # models and thread pools do not pickle

    def open(self, node_id: str = "") -> WorkerInfo | PartFailed:
        import ray

        return super().open(ray.get_runtime_context().get_node_id())

    def run_careful(self, unit: Any, item_deadline_s: float) -> PartDone | PartFailed:
        return run_careful(
            self.unopened, self.store, unit, threads=self.threads, item_deadline_s=item_deadline_s
        )


def map_parts(
    stage: Stage,
    units: Iterable[Any],
    *,
    num_parts: int,
    store: Store,
    placement: Placement,
    deadlines: Deadlines | None = None,
    on_done: Callable[[PartDone], None] = lambda done: None,
    on_trouble: Callable[[str], None] = log.warning,
) -> MapSummary:
    """Run a stage over every unit of work.

    Args:
        stage: pickled to every worker and opened there.
        units: PartKeys, or objects with a `key`; streamed, never held as a whole.
        num_parts: how many there are, for the limit of parts in careful mode.
        store: where results are committed.
        placement: workers and what each gets; with 0 workers everything runs in this process.
        deadlines: when a worker counts as hung.
        on_done: called in the driver for each part as it is committed.
        on_trouble: called with a sentence when a worker dies, hangs or must try again.

    Raises:
        FacescaleError: what the stage raised on purpose.
        InfrastructureError: workers keep dying.
    """
    if placement.workers == 0:
        return _map_inline(stage, units, store=store, threads=placement.threads, on_done=on_done)
    mapper = _Mapper(stage, store, placement, num_parts, deadlines or Deadlines(), on_done, on_trouble)
    try:
        return mapper.run(iter(units))
    except SystemExit as stop:
        # A SIGTERM. Where it came while Ray was waiting, the handler's exit code is lost: Ray makes it 1.
        raise SystemExit(EXIT_INCOMPLETE) from stop
    finally:
        mapper.close()


def _map_inline(
    stage: Stage, units: Iterable[Any], *, store: Store, threads: int, on_done: Callable[[PartDone], None]
) -> MapSummary:
    """The same map without Ray, in this process: for the library, for memory:// lakes, for a debugger."""
    summary, worker = MapSummary(), PartWorker(stage, store, threads)
    if isinstance(opened := worker.open(), PartFailed):
        raise _as_error(opened)
    for unit in units:
        outcome = worker.run(unit)
        if isinstance(outcome, PartFailed):
            raise _as_error(outcome)
        _count(summary, outcome)
        on_done(outcome)
    return summary


class _Mapper:
    """The scheduler's state: slots, what waits, how long parts take."""

    def __init__(
        self,
        stage: Stage,
        store: Store,
        placement: Placement,
        num_parts: int,
        deadlines: Deadlines,
        on_done: Callable[[PartDone], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        import ray

        self.stage = ray.put(stage)
        self.store, self.placement, self.deadlines = store, placement, deadlines
        self.on_done, self.on_trouble = on_done, on_trouble
        self.max_careful = max(5, num_parts // 100)
        self.slots: list[_Slot] = []
        self.again: deque[_Task] = deque()
        self.suspects: deque[_Task] = deque()  # for careful mode, once nothing else is left
        self.row_seconds: deque[float] = deque(maxlen=256)
        self.open_deaths = 0
        self.alone_since = time.monotonic()
        self.summary = MapSummary()
        self.actor_class = ray.remote(_Actor).options(
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": worker_environment(placement.threads)},
        )

    def run(self, units: Iterator[Any]) -> MapSummary:
        import ray

        exhausted = False
        self.slots = [self._new_slot() for _ in range(self.placement.workers)]
        while True:
            for slot in self.slots:
                if slot.info is None or slot.task is not None:
                    continue
                task = self.again.popleft() if self.again else None
                if task is None and not exhausted:
                    unit = next(units, None)
                    exhausted = unit is None
                    task = None if unit is None else _Task(unit)
                if task is None and self.suspects and not self._healthy_work_left():
                    task = self.suspects.popleft()
                if task is not None:
                    self._give(slot, task)
            working = any(slot.task is not None for slot in self.slots)
            if exhausted and not self.again and not self.suspects and not working:
                return self.summary
            refs = {slot.opening or slot.ref: slot for slot in self.slots if slot.opening or slot.ref}
            ready, _ = ray.wait(list(refs), num_returns=1, timeout=_POLL_S)
            for ref in ready:
                self._receive(refs[ref], ref)
            self._check_deadlines()
            self._complain_when_alone()

    def close(self) -> None:
        """Kill every worker and wait until they are gone, so that nothing is committed after the job has ended."""
        import ray

        for slot in self.slots:
            ray.kill(slot.actor, no_restart=True)
        for slot in self.slots:
            if slot.task is not None:
                self._confirm_dead(slot)

    def _healthy_work_left(self) -> bool:
        return bool(self.again) or any(slot.task and slot.task.deaths < _LIVES for slot in self.slots)

    def _new_slot(self) -> _Slot:
        actor = self.actor_class.remote(self.stage, self.store, self.placement.threads)
        return _Slot(actor, opening=actor.open.remote())

    def _give(self, slot: _Slot, task: _Task) -> None:
        slot.task, slot.since = task, time.monotonic()
        if task.deaths >= _LIVES:
            slot.ref = slot.actor.run_careful.remote(task.unit, self.deadlines.item_s)
        else:
            slot.ref = slot.actor.run.remote(task.unit)

    def _receive(self, slot: _Slot, ref: Any) -> None:
        import ray

        try:
            outcome = ray.get(ref)
        except ray.exceptions.RayError as error:
            self._bury(slot, f"died ({_first_line(error)})")
            return
        if slot.opening is not None:
            slot.opening = None
            if isinstance(outcome, PartFailed):
                raise _as_error(outcome)
            slot.info, self.open_deaths = outcome, 0
            return
        task, slot.task, slot.ref = slot.task, None, None
        assert task is not None
        if isinstance(outcome, PartDone):
            if task.deaths < _LIVES:
                self.row_seconds.append(outcome.seconds / max(1, outcome.key.num_rows))
            _count(self.summary, outcome)
            self.on_done(outcome)
        elif outcome.error is None:
            # An exception nobody expected: as good as a death, but the worker lives.
            log.debug("part %s raised: %s", outcome.key.path, outcome.text)
            self._lose_life(task, f"raised {_first_line(outcome.text)}")
        elif outcome.transient:
            self._try_again(task, outcome)
        else:
            raise outcome.error

    def _bury(self, slot: _Slot, how: str) -> None:
        """Replace a dead (or condemned) worker, once it is certain that it is dead; rerun its part."""
        self.summary.deaths += 1
        self._confirm_dead(slot)
        task = slot.task
        self.slots[self.slots.index(slot)] = self._new_slot()
        if task is None:
            self.open_deaths += 1
            self.on_trouble(f"a worker {how} while loading its models")
            if self.open_deaths >= _MAX_OPEN_DEATHS:
                raise InfrastructureError(
                    f"{self.open_deaths} workers in a row died while loading their models, the last one {how}: "
                    "is there enough memory? see the worker logs that Ray keeps (facescale doctor shows where)"
                )
            return
        self._lose_life(task, how)

    def _lose_life(self, task: _Task, how: str) -> None:
        task.deaths += 1
        task.last_trouble = how
        name = key_of(task.unit).path
        if task.deaths > _LIVES:
            raise InfrastructureError(f"part {name}: even the worker in careful mode {how}")
        if task.deaths == _LIVES:
            self.summary.careful += 1
            if self.summary.careful > self.max_careful:
                raise InfrastructureError(
                    f"{self.summary.careful} parts have killed two workers each; that is the machine, not the "
                    f"images (the last worker {how}). Check memory (dmesg), disk and GPUs, then run the same "
                    "command again: finished parts are kept"
                )
        mode = "in careful mode at the end" if task.deaths == _LIVES else "once more"
        self.on_trouble(f"the worker of part {name} {how}; the part runs {mode}")
        (self.suspects if task.deaths == _LIVES else self.again).append(task)

    def _try_again(self, task: _Task, outcome: PartFailed) -> None:
        task.tries += 1
        name = outcome.key.path
        if task.tries >= _TRANSIENT_TRIES:
            self.summary.left_over.append(f"part {name}: {outcome.text}")
            self.on_trouble(f"part {name} is left over after {task.tries} tries: {outcome.text}")
        else:
            self.on_trouble(f"part {name} will be tried again: {outcome.text}")
            self.again.append(task)

    def _check_deadlines(self) -> None:
        if self.row_seconds:
            row_s = self.deadlines.factor * statistics.median(self.row_seconds)
        else:
            row_s = self.deadlines.first_row_s
        now = time.monotonic()
        for slot in list(self.slots):
            if slot.task is None or slot.task.deaths >= _LIVES:  # careful mode has deadlines of its own
                continue
            limit = max(self.deadlines.min_s, row_s * key_of(slot.task.unit).num_rows)
            if now - slot.since > limit:
                self._bury(slot, f"was killed: past its deadline of {limit:.0f} s")

    def _complain_when_alone(self) -> None:
        now = time.monotonic()
        if any(slot.info is not None for slot in self.slots):
            self.alone_since = now
        elif now - self.alone_since > _PATIENCE_S:
            self.alone_since = now
            self.on_trouble(
                f"no worker has started for {_PATIENCE_S:.0f} s: each asks for {self.placement.cpus:g} CPUs and "
                f"{self.placement.gpus:g} GPUs; is the cluster busy or too small (ray status)?"
            )

    def _confirm_dead(self, slot: _Slot) -> None:
        """Kill the worker's process on its node and wait until it is gone; a node that is gone counts."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray.kill(slot.actor, no_restart=True)
        if slot.info is None:
            return
        info = slot.info
        reaper = ray.remote(reap).options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(info.node_id, soft=False),
        )
        try:
            dead = ray.get(reaper.remote(info.pid, info.create_time), timeout=_REAP_DEADLINE_S)
        except ray.exceptions.GetTimeoutError:
            dead = False
        except ray.exceptions.RayError:
            dead = all(node["NodeID"] != info.node_id or not node["Alive"] for node in ray.nodes())
        if not dead:
            raise InfrastructureError(
                f"worker process {info.pid} on node {info.node_id} cannot be confirmed dead; its part must not be "
                "given to another worker. Remove the node, then run the same command again"
            )


def _count(summary: MapSummary, done: PartDone) -> None:
    summary.parts += 1
    for name, value in done.counters.items():
        summary.counters[name] = summary.counters.get(name, 0) + value


def _as_error(failed: PartFailed) -> FacescaleError:
    return failed.error or InfrastructureError(failed.text)


def _first_line(trouble: object) -> str:
    """The telling line of an error: the first, or for a remote traceback the last."""
    lines = [line for line in str(trouble).splitlines() if line.strip()]
    if not lines:
        return type(trouble).__name__
    is_traceback = any(line.startswith("Traceback") or "ray::" in line for line in lines)
    return lines[-1 if is_traceback else 0].strip()
