"""What every benchmark hands back: figures, goals and the machine they were measured on; printed and written as JSON.

Called by the commands (facescale.bench.cli) and by the measuring modules, which also report progress through here.
"""

from __future__ import annotations

import json
import os
import platform
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facescale.console import print_json, print_mapping, print_table
from facescale.engine.session import usable_cpus
from facescale.engine.worker import PartDone
from facescale.lake.parts import PartKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from facescale.driver.context import Reporter

_PACKAGES = (
    "facescale",
    "torch",
    "ray",
    "numpy",
    "opencv-python-headless",
    "pyarrow",
    "faiss-cpu",
    "dlib-bin",
)


@dataclass(frozen=True)
class Goal:
    """One figure that has a goal.

    Attributes:
        name: what it is.
        value: as measured; None when there was nothing to measure.
        at_least: lower limit, or None.
        at_most: upper limit, or None.
    """

    name: str
    value: float | None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the value is within its limits; None without a value."""
        if self.value is None:
            return None
        low_ok = self.at_least is None or self.value >= self.at_least
        return low_ok and (self.at_most is None or self.value <= self.at_most)

    @property
    def limit(self) -> str:
        """E.g. "≥ 0.985"."""
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"


@dataclass
class Result:
    """One run of one benchmark.

    Attributes:
        bench: its name.
        settings: what was asked for.
        goals: the figures that have one.
        figures: sections of figures, each a mapping by name or a list of mappings (rows of a table).
        machine: see `machine`.
        seconds: wall time of everything.
    """

    bench: str
    settings: dict[str, Any]
    goals: list[Goal] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    seconds: float = 0.0

    def goal(self, name: str) -> Goal:
        """The goal of that name."""
        return next(goal for goal in self.goals if goal.name == name)

    def as_json(self) -> dict[str, Any]:
        """Plain values, the goals with whether they are met."""
        goals = [asdict(goal) | {"met": goal.met} for goal in self.goals]
        return asdict(self) | {"goals": goals}


def machine() -> dict[str, Any]:
    """Where and with what a measurement was made; the load tells whether others were using the machine."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cpus": usable_cpus(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": versions,
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def publish(console: Console, result: Result, *, json_output: bool, out: str | None) -> None:
    """Print a result, and write it to a file as JSON when one is named."""
    if out is not None:
        Path(out).write_text(json.dumps(result.as_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    if json_output:
        print_json(result.as_json())
        return
    rows: list[tuple[Any, ...]] = [
        (
            goal.name,
            _shown(goal.value),
            goal.limit,
            {True: "met", False: "missed", None: "nothing measured"}[goal.met],
        )
        for goal in result.goals
    ]
    print_table(console, ["figure", "measured", "goal", ""], rows, title=f"bench {result.bench}")
    for title, values in result.figures.items():
        if isinstance(values, dict):
            print_mapping(console, title, {name: _shown(value) for name, value in values.items()})
        elif values:
            rows = [tuple(_shown(value) for value in row.values()) for row in values]
            print_table(console, list(values[0]), rows, title=title)
    print_mapping(console, "machine", {**result.machine, "seconds": round(result.seconds, 1)})


def _shown(value: Any) -> Any:
    """Differences of 1e-6 and rates of 50/s stand side by side: five significant digits."""
    return f"{value:.5g}" if isinstance(value, float) else value


@contextmanager
def progress(
    reporter: Reporter, what: str, *, items: int, unit: str = "images"
) -> Iterator[Callable[[int], None]]:
    """Show progress of work that the engine does not run; yields a function to call with each number done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        reporter.advance(PartDone(PartKey(0, done, count), {unit: count}, 0.0))
        done += count

    reporter.start(what, parts=items, items=items, unit=unit)
    try:
        yield advance
    finally:
        reporter.finish()


@contextmanager
def timed(result: Result) -> Iterator[None]:
    """Note the wall time of the block in `result.seconds`."""
    start = time.monotonic()
    yield
    result.seconds = time.monotonic() - start
