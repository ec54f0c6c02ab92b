"""Drive report: a lake in, one HTML page out, in the lake's root or where it is wanted.

Runs in this process, without Ray. As the last stage of `run` it leaves a page alone that says the same already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facescale.curate.calibration import Calibration, load_calibration
from facescale.driver.context import StageSummary
from facescale.driver.extract import import_plugins
from facescale.driver.failures import find_failures
from facescale.driver.whole import input_digest, is_behind
from facescale.errors import MismatchError, UsageError
from facescale.lake.fingerprint import parts_digest
from facescale.lake.lake_file import REPORT_FILE
from facescale.lake.parts import list_done
from facescale.lake.scan import sum_counters

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from facescale.config.report import ReportConfig
    from facescale.driver.context import JobContext
    from facescale.lake.lake import Lake
    from facescale.lake.parts import DoneParts, TableVersion
    from facescale.report.source import Source

_HEAD_BYTES = 1024
_WHOLE = {"duplicates": "dedup", "neighbors": "neighbors", "clusters": "cluster", "decisions": "clean"}
"""Tables that need every image, and the command that makes them."""
_SECTION_OF = {"neighbors": "similarity", "decisions": "labels"}


def run_report(context: JobContext, stages: Iterable[StageSummary] = ()) -> StageSummary:
    """Write LAKE/report.html.

    Args:
        context: of the job.
        stages: what the job has done before; the page tells how fast, and is left alone where it says the same.

    Raises:
        UsageError: nothing was extracted yet.
    """
    start = time.monotonic()
    import_plugins(context.config.extract.plugins)
    earlier = list(stages)
    summary = StageSummary("report")
    source = _source(context.lake, context.config.report)
    name = _fingerprint(source)
    if earlier and _written(context.lake) == name:
        summary.parts_kept = 1
    else:
        page, pictures = _page(source, name, [dataclasses.asdict(stage) for stage in earlier])
        context.lake.store.write_bytes(REPORT_FILE, page)
        summary.parts_run, summary.workers = 1, 1
        summary.counters = {"pictures": pictures, "bytes": len(page)}
    summary.tables = {"report": REPORT_FILE}
    summary.notes.append(f"report: {context.lake.store.location(REPORT_FILE)}")
    summary.seconds = time.monotonic() - start
    return summary


def write_report(
    uri: str, config: ReportConfig, *, out: str | None = None, plugins: Sequence[str] = ()
) -> tuple[str, int]:
    """Make the page of a lake anew.

    Args:
        uri: root of the lake.
        config: what is shown.
        out: file of this machine; None for LAKE/report.html.
        plugins: modules that register further models, for their cards.

    Returns:
        (where it is, its size in bytes).

    Raises:
        UsageError: there is no lake, nothing was extracted yet, or `out` cannot be written.
    """
    from facescale.lake.lake import Lake

    import_plugins(tuple(plugins))
    lake = Lake.open(uri)
    source = _source(lake, config)
    page, _ = _page(source, _fingerprint(source), [])
    if out is None:
        lake.store.write_bytes(REPORT_FILE, page)
        return lake.store.location(REPORT_FILE), len(page)
    target = Path(out)
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(page)
        partial.replace(target)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return str(target), len(page)


def report_is_current(lake: Lake, config: ReportConfig) -> bool:
    """Whether the lake holds a page that says what a new one would."""
    return lake.current("images") is not None and _written(lake) == _fingerprint(_source(lake, config))


def _source(lake: Lake, config: ReportConfig) -> Source:
    from facescale.report.source import Source

    if lake.current("images") is None:
        raise UsageError(
            f"{lake.uri} has no finished images yet, so there is nothing to report: run `facescale extract SRC "
            f"{lake.uri}` first"
        )
    return Source(lake, config, _calibration(lake, config.embedder))


def _calibration(lake: Lake, embedder: str) -> Calibration | None:
    """The embedder's calibration; None where there is none, since the page can do without."""
    try:
        return load_calibration(embedder, lake)
    except MismatchError:
        raise
    except UsageError:
        return None


def _fingerprint(source: Source) -> str:
    from facescale.report.collect import report_fingerprint

    images = source.version("images")
    assert images is not None
    return report_fingerprint(source, input_digest(source.lake, source.done(images)))


def _page(source: Source, name: str, stages: list[dict[str, Any]]) -> tuple[bytes, int]:
    """The file, and how many pictures it holds."""
    from facescale.report.collect import collect
    from facescale.report.page import render

    lake, images = source.lake, source.version("images")
    assert images is not None
    failures = find_failures(lake, images, sum_counters(lake, images))
    report = collect(
        source,
        name=name,
        made=datetime.datetime.now(datetime.UTC),
        stages=stages,
        examples=[(image.uri, f"{image.status}: {image.detail}") for image in failures.examples],
        notes=_behind(source),
    )
    return render(report), len(report.pictures)


def _behind(source: Source) -> list[tuple[str, str]]:
    """(section, remark) for each table that was made of other images than there are now."""
    images = source.version("images")
    assert images is not None
    done = list_done(source.lake.store, images)
    found = []
    for table, command in _WHOLE.items():
        version = source.version(table)
        if version is not None and _is_behind(source, version, done):
            text = f"Images have changed since {table} were made; facescale {command} brings them up to date."
            found.append((_SECTION_OF.get(table, table), text))
    return found


def _is_behind(source: Source, version: TableVersion, done: DoneParts) -> bool:
    made_of = (source.lake.describe_version(version) or {}).get("settings", {})
    if "bytes" in made_of:
        return is_behind(source.lake, version, done)
    return made_of.get("parts") not in (None, parts_digest(done.pairs()))


def _written(lake: Lake) -> str | None:
    """The fingerprint of the page that is there."""
    from facescale.report.page import fingerprint_of

    try:
        with lake.store.open(REPORT_FILE) as file:
            return fingerprint_of(file.read(_HEAD_BYTES))
    except FileNotFoundError:
        return None
