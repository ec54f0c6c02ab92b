"""What the command line draws: bars on terminals, plain lines elsewhere, text from the data never as markup."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from facescale import console
from facescale.driver.context import JobSummary, StageSummary
from facescale.driver.dry_run import DryRun, PlannedStage
from facescale.driver.failures import FailedImage, Failures
from facescale.engine.worker import PartDone
from facescale.lake.parts import PartKey


def screen(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=140, legacy_windows=False), text


def done(first_row: int, **counters: int) -> PartDone:
    return PartDone(PartKey(0, first_row, 10), counters, seconds=2.0)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    out, text = screen(terminal=terminal)
    reporter = console.ConsoleReporter(out)
    reporter.start("extract", parts=4, items=40, unit="images")
    for part in range(4):
        now[0] += 2.0
        reporter.advance(done(10 * part, images=10, faces=5))
    reporter.finish()
    shown = text.getvalue()
    if terminal:
        assert "━" in shown and "\x1b[" in shown
        assert "40/40" in shown and "5.0 images/s, 2.5 faces/s" in shown
        return
    assert shown.splitlines() == [
        "extract: 40 images in 4 parts",
        "extract: 30/40 images, 5.0 images/s, 2.5 faces/s, 2 s left",  # every five seconds
        "extract: 40/40 images, 5.0 images/s, 2.5 faces/s, 0 s left",  # and at the end
    ]


def test_parts_without_the_counter_count_their_rows() -> None:
    out, text = screen()
    reporter = console.ConsoleReporter(out)
    reporter.start("index", parts=1, items=10, unit="faces")
    reporter.advance(done(0))
    assert "index: 10/10 faces, " in text.getvalue()
    assert text.getvalue().count("faces/s") == 1


def test_remarks_are_one_line_each_and_no_markup() -> None:
    out, text = screen()
    reporter = console.ConsoleReporter(out)
    reporter.say("[bold]a[/bold] " + "x" * 300)
    reporter.warn("/photos/[red].jpg")
    assert text.getvalue().splitlines() == [
        "[bold]a[/bold] " + "x" * 300,
        "warning: /photos/[red].jpg",
    ]


def test_tables_show_text_as_it_is_and_numbers_on_the_right() -> None:
    out, text = screen()
    rows = [("[red]x[/red]", 1_234_567, 0.5, True), ("line\nbreak\x1b[31m", 5, 0.25, None)]
    console.print_table(out, ["name", "count", "share", "ok"], rows, title="t")
    shown = text.getvalue()
    assert "[red]x[/red]" in shown and "line\\nbreak\\x1b[31m" in shown and "\x1b" not in shown
    first, second = (line for line in shown.splitlines() if "0.5000" in line or "0.2500" in line)
    assert "1,234,567" in first and "yes" in first
    assert first.index("1,234,567") + len("1,234,567") == second.index(" 5 ") + 2


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (7 << 40, "7.0 TiB"),
    ],
)
def test_human_bytes(count: int, shown: str) -> None:
    assert console.human_bytes(count) == shown


def test_json_is_one_document_of_plain_values(capsys: pytest.CaptureFixture[str]) -> None:
    summary = JobSummary("run", "/länge", [StageSummary("extract", counters={"images": 3})], exit_code=3)
    console.print_json(summary)
    shown = capsys.readouterr().out
    assert json.loads(shown) == dataclasses.asdict(summary)
    assert "/länge" in shown
    console.print_json({"a": np.arange(2), "b": np.float32(0.5), "c": PartKey(1, 2, 3)})
    values = json.loads(capsys.readouterr().out)
    assert values == {"a": [0, 1], "b": 0.5, "c": {"shard": 1, "first_row": 2, "num_rows": 3}}


def test_a_summary_tells_statuses_failures_and_what_is_left() -> None:
    stage = StageSummary(
        "extract",
        parts_run=2,
        parts_kept=1,
        counters={"images": 9, "bytes": 100, "status.ok": 7, "status.empty": 2},
        notes=["a note"],
        left_over=["part 0/64: lost"],
        failures=Failures(9, 2, [FailedImage("/p/[x]\n.jpg", "empty", "no bytes", "fetch it again")]),
    )
    out, text = screen()
    console.print_summary(out, JobSummary("extract", "/lake", [stage]))
    shown = text.getvalue()
    assert "9 images" in shown and "100 bytes" not in shown
    assert shown.index("ok ") < shown.index("empty ")  # the most frequent first
    for line in (
        "'/p/[x]\\n.jpg': empty: no bytes; fetch it again",
        "a note",
        "left over: part 0/64: lost",
        "lake: /lake",
    ):
        assert line in shown.splitlines()


def test_a_summary_of_clean_tells_verdicts_and_reasons() -> None:
    counters = {"faces": 5, "verdict.keep": 1, "verdict.drop": 4, "verdict.merge": 0, "reason.rival": 4}
    out, text = screen()
    console.print_summary(out, JobSummary("clean", "/lake", [StageSummary("clean", counters=counters)]))
    lines = [line.split() for line in text.getvalue().splitlines()]
    assert ["rival", "4"] in lines and lines.index(["drop", "4"]) < lines.index(["keep", "1"])
    assert "merge" not in text.getvalue()  # nothing of the kind


def test_a_plan_says_that_nothing_was_written() -> None:
    plan = DryRun(
        "run", "/lake", 1000, [PlannedStage("extract", ["images", "faces"], 4, 2, 3 << 20)], ["a remark"]
    )
    out, text = screen()
    console.print_plan(out, plan)
    shown = text.getvalue()
    assert "run: 1,000 images planned for /lake; nothing was written" in shown
    (line,) = [line for line in shown.splitlines() if "extract" in line]
    assert line.split() == ["extract", "images,", "faces", "4", "2", "3.0", "MiB"]
    assert "a remark" in shown


@pytest.mark.parametrize("json_output", [True, False])
def test_with_json_everything_else_goes_to_standard_error(
    json_output: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    out, reporter = console.make_console(json_output=json_output)
    out.print("result")
    reporter.say("remark")
    captured = capsys.readouterr()
    assert "remark" in captured.err and "remark" not in captured.out
    assert ("result" in captured.out) is not json_output
    assert out.width == 140  # no terminal: long names stay in one piece
