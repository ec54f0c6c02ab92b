"""What every job's driver shares: configuration, lake, reporter, and one Ray session started when first needed."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from facescale.engine.map_parts import Deadlines, MapSummary, map_parts
from facescale.engine.placement import ClusterSize, Placement, place
from facescale.engine.session import ray_session, usable_cpus
from facescale.errors import EXIT_DONE, EXIT_INCOMPLETE, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from facescale.config.job import JobConfig
    from facescale.driver.failures import Failures
    from facescale.engine.worker import PartDone
    from facescale.lake.lake import Lake
    from facescale.lake.stage import Stage


class Reporter(Protocol):
    """Where progress and remarks go; the command line draws them, the library is silent."""

    def start(self, stage: str, *, parts: int, items: int, unit: str) -> None:
        """A stage with this many parts to do begins; `items` counts the unit, e.g. images."""

    def advance(self, done: PartDone) -> None:
        """One part is committed."""

    def finish(self) -> None:
        """The stage is over, well or not."""

    def say(self, text: str) -> None:
        """Tell the user something worth a line."""

    def warn(self, text: str) -> None:
        """Tell the user about trouble."""


class SilentReporter:
    """Reports nothing."""

    def start(self, stage: str, *, parts: int, items: int, unit: str) -> None:
        """Do nothing."""

    def advance(self, done: PartDone) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def warn(self, text: str) -> None:
        """Do nothing."""


@dataclass
class StageSummary:
    """One stage of a job: what it found done, what it did, where its tables are."""

    stage: str
    parts_run: int = 0
    parts_kept: int = 0
    seconds: float = 0.0
    workers: int = 0
    deaths: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    failures: Failures | None = None


@dataclass
class JobSummary:
    """What a job did; `exit_code` is as in facescale.errors."""

    job: str
    lake: str
    stages: list[StageSummary] = field(default_factory=list)
    exit_code: int = EXIT_DONE
    seconds: float = 0.0

    def stage(self, name: str) -> StageSummary:
        """The summary of one stage."""
        return next(stage for stage in self.stages if stage.stage == name)


class JobContext:
    """A job on its way: holds the Ray session, so use it as a context manager.

    Args:
        config: the whole job's.
        lake: opened.
        reporter: where progress goes.
    """

    def __init__(self, config: JobConfig, lake: Lake, reporter: Reporter) -> None:
        self.config, self.lake, self.reporter = config, lake, reporter
        self._stack = ExitStack()
        self._cluster: ClusterSize | None = None
        if lake.store.is_memory and config.engine.workers != 0:
            raise UsageError(
                f"{lake.uri}: a memory:// lake lives in one process; workers could not reach it. "
                "Use --workers 0, or a lake on disk"
            )

    def __enter__(self) -> JobContext:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def cluster(self) -> ClusterSize:
        """CPUs and GPUs there are; starts or joins Ray when first asked, unless the job runs in this process."""
        if self._cluster is None:
            if self.config.engine.workers == 0:
                self._cluster = ClusterSize(cpus=float(usable_cpus()), gpus=float(_local_gpus()))
            else:
                self._cluster = self._stack.enter_context(ray_session(self.config.engine.address))
        return self._cluster

    @property
    def device(self) -> str:
        """The device models run on: as asked for, or CUDA when there is one; starts or joins Ray to find out.

        Raises:
            UsageError: CUDA is asked for and there is none; running on the CPU would look like success.
        """
        asked = self.config.engine.device
        if asked == "cpu":
            return asked
        if asked == "cuda" and self.cluster.gpus == 0:
            raise UsageError(
                "device cuda was asked for, but there is no GPU here: check nvidia-smi and `facescale doctor`, "
                "or use --device cpu"
            )
        return "cuda" if self.cluster.gpus > 0 else "cpu"

    def place(self, num_parts: int, *, device: str = "cpu", threads_wanted: int = 1) -> Placement:
        """Workers for a stage; see facescale.engine.placement.place."""
        engine = self.config.engine
        return place(
            workers=engine.workers,
            threads=engine.threads,
            gpus_per_worker=engine.gpus_per_worker,
            device=device,
            cluster=self.cluster,
            num_parts=num_parts,
            threads_wanted=threads_wanted,
        )

    def map(
        self,
        stage: Stage,
        units: Iterable[Any],
        *,
        num_parts: int,
        items: int,
        unit: str,
        device: str = "cpu",
        threads_wanted: int = 1,
    ) -> StageSummary:
        """Have the engine run a stage over the units that are left to do, with progress."""
        engine, start = self.config.engine, time.monotonic()
        summary = StageSummary(stage.name)
        if num_parts == 0:
            return summary
        placement = self.place(num_parts, device=device, threads_wanted=threads_wanted)
        deadlines = Deadlines(
            min_s=engine.deadline_min_s,
            factor=engine.deadline_factor,
            first_row_s=engine.deadline_first_row_s,
            item_s=engine.deadline_item_s,
        )
        self.reporter.start(stage.name, parts=num_parts, items=items, unit=unit)
        try:
            done: MapSummary = map_parts(
                stage,
                units,
                num_parts=num_parts,
                store=self.lake.store,
                placement=placement,
                deadlines=deadlines,
                on_done=self.reporter.advance,
                on_trouble=self.reporter.warn,
            )
        finally:
            self.reporter.finish()
        summary.parts_run, summary.counters, summary.left_over = done.parts, done.counters, done.left_over
        summary.workers, summary.deaths = placement.workers, done.deaths
        summary.seconds = time.monotonic() - start
        return summary


def exit_code_of(stages: Iterable[StageSummary]) -> int:
    """4 when any stage left parts over, else 0."""
    return EXIT_INCOMPLETE if any(stage.left_over for stage in stages) else EXIT_DONE


def _local_gpus() -> int:
    import torch

    return torch.cuda.device_count()
