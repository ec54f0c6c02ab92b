"""What the command line draws: progress, tables, summaries, errors. Nothing here decides anything.

On a terminal progress is a bar with images/s, faces/s and the time left; elsewhere it is a plain line now and then.
With --json everything but the summary goes to standard error, so that standard output is one JSON document.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from facescale.driver.context import JobSummary
    from facescale.driver.demo import DemoResult
    from facescale.driver.dry_run import DryRun
    from facescale.driver.lake_info import LakeInfo
    from facescale.driver.searcher import SearchResult
    from facescale.engine.worker import PartDone

_PLAIN_EVERY_S = 5.0
_WIDTH = 140
_MAX_HITS = 200


class ConsoleReporter:
    """Draws the progress of a job's stages.

    Args:
        console: usually standard error.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def start(self, stage: str, *, parts: int, items: int, unit: str) -> None:
        """A stage begins."""
        self._stage, self._unit, self._total = stage, unit, items
        self._items = self._faces = self._parts = 0
        self._num_parts = parts
        self._since = self._last = time.monotonic()
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
                console=self.console,
            )
            self._progress.start()
            self._task = self._progress.add_task(stage, total=items, rate="starting workers")
        else:
            self._line(f"{stage}: {items:,} {unit} in {parts:,} parts")

    def advance(self, done: PartDone) -> None:
        """One part is committed."""
        self._parts += 1
        self._items += done.counters.get(self._unit, done.key.num_rows)
        self._faces += done.counters.get("faces", 0)
        seconds = max(1e-6, time.monotonic() - self._since)
        rate = f"{self._items / seconds:,.1f} {self._unit}/s"
        if self._unit != "faces" and self._faces:
            rate += f", {self._faces / seconds:,.1f} faces/s"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._items, rate=rate)
        elif time.monotonic() - self._last >= _PLAIN_EVERY_S or self._parts == self._num_parts:
            self._last = time.monotonic()
            left = (self._total - self._items) * seconds / max(1, self._items)
            self._line(
                f"{self._stage}: {self._items:,}/{self._total:,} {self._unit}, {rate}, {left:,.0f} s left"
            )

    def finish(self) -> None:
        """The stage is over."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None

    def say(self, text: str) -> None:
        """Print a remark."""
        self._line(text)

    def warn(self, text: str) -> None:
        """Print trouble, in yellow where there are colors."""
        self.console.print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def make_console(*, json_output: bool) -> tuple[Console, ConsoleReporter]:
    """The console results go to, and the reporter (always on standard error)."""
    return _console(sys.stderr if json_output else sys.stdout), ConsoleReporter(_console(sys.stderr))


def _console(file: TextIO) -> Console:
    # Away from a terminal rich assumes 80 columns, which breaks ids and fingerprints in two.
    return Console(file=file, width=None if file.isatty() else _WIDTH)


def print_json(value: Any) -> None:
    """Write one JSON document to standard output; dataclasses become objects."""
    json.dump(value, sys.stdout, default=_plain, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_table(
    console: Console, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None
) -> None:
    """Print rows; numbers are right-aligned, and text from the data is never read as markup."""
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    rows = [list(row) for row in rows]
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row))
    console.print(table)


_COUNTED = {
    "status.": ["image status", "images"],
    "verdict.": ["verdict", "faces"],
    "reason.": ["reason", "faces"],
}
"""Counters that are a table of their own, by the beginning of their names."""


def print_summary(console: Console, summary: JobSummary) -> None:
    """Print what a job did, stage by stage, and what to do next when it is not whole."""
    rows = []
    for stage in summary.stages:
        found = ", ".join(
            f"{value:,} {name}"
            for name, value in stage.counters.items()
            if "." not in name and name != "bytes"
        )
        rows.append((stage.stage, stage.parts_run, stage.parts_kept, f"{stage.seconds:,.1f}", found))
    print_table(console, ["stage", "parts run", "parts kept", "seconds", "holds"], rows, title=summary.job)
    for stage in summary.stages:
        for prefix, columns in _COUNTED.items():
            counted = [
                (name.removeprefix(prefix), value)
                for name, value in sorted(stage.counters.items(), key=lambda kv: (-kv[1], kv[0]))
                if name.startswith(prefix) and value
            ]
            if counted:
                print_table(console, columns, counted)
        for example in stage.failures.examples if stage.failures is not None else []:
            console.print(str(example), markup=False, highlight=False, soft_wrap=True)
        for note in stage.notes:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        for text in stage.left_over:
            console.print(f"left over: {text}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"lake: {summary.lake}", markup=False, highlight=False, soft_wrap=True)


def print_plan(console: Console, plan: DryRun) -> None:
    """Print what a job would do."""
    rows = [
        (
            stage.stage,
            ", ".join(stage.tables),
            stage.parts,
            stage.parts_done,
            human_bytes(stage.bytes),
            stage.note,
        )
        for stage in plan.stages
    ]
    title = f"{plan.job}: {plan.images:,} images planned for {plan.lake}; nothing was written"
    print_table(
        console, ["stage", "tables", "parts to do", "parts done", "bytes, about", ""], rows, title=title
    )
    for remark in plan.remarks:
        console.print(remark, markup=False, highlight=False, soft_wrap=True)


def print_info(console: Console, info: LakeInfo) -> None:
    """Print a lake at a glance."""
    rows = [
        (v.table, v.model, v.fingerprint, v.parts, v.rows, human_bytes(v.bytes), v.created)
        for v in info.current
    ]
    columns = ["table", "model", "version", "parts", "rows", "size", "made (UTC)"]
    print_table(console, columns, rows, title=info.uri)
    print_mapping(
        console,
        "images",
        {"planned": info.planned, **info.statuses, "faces": info.faces, "superseded": info.superseded},
    )
    if info.other_versions:
        console.print(f"{info.other_versions} other versions: facescale lake versions", highlight=False)


def print_hits(console: Console, result: SearchResult) -> None:
    """Print what a search found."""
    rows = [
        (
            hit["query"] if hit["rank"] == 1 else "",
            hit["rank"],
            hit["similarity"],
            str(hit["face_id"]),
            hit["uri"],
            " ".join(f"{value:.0f}" for value in hit["box"]),
            hit["label"],
        )
        for hit in result.hits.slice(0, _MAX_HITS).to_pylist()
    ]
    columns = ["query", "rank", "similarity", "face_id", "image", "box", "label"]
    recall = "" if result.recall is None else f", measured recall {result.recall:.4f}"
    print_table(console, columns, rows, title=f"{result.queries:,} queries on {result.index}{recall}")
    if result.hits.num_rows > _MAX_HITS:
        console.print(f"{result.hits.num_rows:,} hits, the first {_MAX_HITS} shown: --out FILE keeps all")
    if result.output is not None:
        console.print(f"hits: {result.output}", markup=False, highlight=False, soft_wrap=True)


def print_demo(console: Console, result: DemoResult) -> None:
    """Print what was planted in the synthetic crawl against what was found."""
    print_summary(console, result.summary)
    rows = [
        (score.name, score.planted, score.found, score.share, score.floor, score.ok, score.meaning)
        for score in result.scores
    ]
    columns = ["planted kind", "planted", "found", "share", "floor", "ok", "what counts as found"]
    print_table(console, columns, rows, title="the synthetic crawl: planted against found")
    console.print(
        f"{result.seconds:.0f} s in all. A fixture for plumbing, not evidence about recognition. "
        f"Look on with: facescale lake info {result.summary.lake}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if result.report:
        console.print(f"Look at it: {result.report}", markup=False, highlight=False, soft_wrap=True)


def print_mapping(console: Console, title: str, values: Any) -> None:
    """Print names and values; a dataclass is taken apart."""
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        values = dataclasses.asdict(values)
    print_table(console, ["", "value"], list(values.items()), title=title)


@contextlib.contextmanager
def transfers() -> Iterator[Callable[[str], Callable[[int, int | None], None]]]:
    """Bars for downloads, on standard error: a name in, what is told the bytes here and in all out."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:

        def one(name: str) -> Callable[[int, int | None], None]:
            task = progress.add_task(name, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield one


def human_bytes(count: float) -> str:
    """Bytes with a unit: 1536 → "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value).replace("\n", "\\n").replace("\r", "\\r").replace("\x1b", "\\x1b")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
