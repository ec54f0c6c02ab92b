"""READ FIRST: the stages in data order, the tables each reads and writes, and `run_job`, which every entry point calls.

    SRC ─► plan ─► extract ─► dedup ─► neighbors ─► cluster ─► clean ─► index ─► search, report
            │        │  └─► embed, annotate (other models, from the stored crops)
         sources   images, faces, crops, embeddings            labels ◄─ label (claims on images)
                     ▲
    EMBEDDINGS ─► import (made elsewhere: no photographs, no crops)

A job is one command: `facescale extract SRC LAKE`, or on a cluster `ray job submit … -- python -m jobs.extract …`.
A job reads tables and writes tables; nothing else passes between jobs. Running a job again resumes it.
The drivers (facescale.driver) do the work of one job each; the engine maps their parts through Ray actors.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from facescale.config.job import NEEDS_SOURCE, JobConfig
from facescale.config.load import load_config
from facescale.errors import EXIT_DONE, EXIT_INCOMPLETE, EXIT_TOO_MANY_FAILURES, FacescaleError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from facescale.driver.context import JobContext, JobSummary, Reporter, StageSummary
    from facescale.driver.demo import DemoResult
    from facescale.driver.dry_run import DryRun


@dataclass(frozen=True)
class StageInfo:
    """One stage of the main job, for `describe` and the documentation."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    does: str


STAGES = (
    StageInfo(
        "import",
        ("SRC",),
        ("sources", "images", "faces", "embeddings", "labels"),
        "embeddings made elsewhere, instead of photographs",
    ),
    StageInfo("plan", ("SRC",), ("sources",), "list the source, freeze it into shards and parts"),
    StageInfo(
        "extract",
        ("sources",),
        ("images", "faces", "crops", "embeddings"),
        "read, decode, hash, detect, align, cut out, embed",
    ),
    StageInfo("embed", ("faces", "crops"), ("embeddings",), "another embedder over the stored crops"),
    StageInfo("annotate", ("faces", "crops"), ("attributes",), "what other models say of the stored crops"),
    StageInfo("label", ("sources",), ("labels",), "claims on images: folder names, files, tar members"),
    StageInfo(
        "dedup", ("images",), ("duplicates",), "identical and nearly identical images, one kept of each group"
    ),
    StageInfo(
        "neighbors",
        ("embeddings", "duplicates"),
        ("neighbors",),
        "the most similar faces of every face",
    ),
    StageInfo(
        "cluster",
        ("neighbors", "embeddings", "faces", "duplicates"),
        ("clusters",),
        "faces of one person, found without labels",
    ),
    StageInfo(
        "clean",
        ("labels", "embeddings", "faces", "duplicates"),
        ("decisions",),
        "whose name each label is, which faces it keeps, and why",
    ),
    StageInfo("index", ("embeddings",), ("index",), "FAISS or hnswlib shards, with recall measured"),
    StageInfo("report", ("every table",), ("report.html",), "one page: counts, histograms, contact sheets"),
    StageInfo(
        "export",
        ("decisions, clusters or labels", "faces", "crops", "images", "duplicates"),
        (),
        "a training set: aligned chips in shards, class ids, a data card",
    ),
    StageInfo("search", ("index", "embeddings", "faces", "images", "labels"), (), "nearest faces of a query"),
)


def describe() -> str:
    """The stages in data order, one line each."""
    lines = []
    for stage in STAGES:
        arrow = f"{', '.join(stage.reads)} → {', '.join(stage.writes) or 'nothing in the lake'}"
        lines.append(f"{stage.name:8} {arrow:48} {stage.does}")
    return "\n".join(lines)


def _extract(context: JobContext) -> list[StageSummary]:
    from facescale.driver.extract import run_extract

    stages = run_extract(context)
    if context.config.labels.source is not None:
        from facescale.driver.label import run_label

        stages.append(run_label(context))
    return stages


def _import(context: JobContext) -> list[StageSummary]:
    from facescale.driver.imports import run_import

    return run_import(context)


def _embed(context: JobContext) -> list[StageSummary]:
    from facescale.driver.embed import run_embed

    return [run_embed(context)]


def _annotate(context: JobContext) -> list[StageSummary]:
    from facescale.driver.annotate import run_annotate

    return run_annotate(context)


def _dedup(context: JobContext) -> list[StageSummary]:
    from facescale.driver.dedup import run_dedup

    return [run_dedup(context)]


def _neighbors(context: JobContext) -> list[StageSummary]:
    from facescale.driver.neighbors import run_neighbors

    return [run_neighbors(context)]


def _cluster(context: JobContext) -> list[StageSummary]:
    from facescale.driver.cluster import run_cluster

    return [run_cluster(context)]


def _clean(context: JobContext) -> list[StageSummary]:
    from facescale.driver.clean import run_clean

    return [run_clean(context)]


def _index(context: JobContext) -> list[StageSummary]:
    from facescale.driver.index import run_index

    return [run_index(context)]


def _report(context: JobContext) -> list[StageSummary]:
    from facescale.driver.report import run_report

    return [run_report(context)]


def _export(context: JobContext) -> list[StageSummary]:
    from facescale.driver.export import run_export

    return [run_export(context)]


def _run(context: JobContext) -> list[StageSummary]:
    """Every stage; those that need thresholds only for an embedder that is calibrated, since the others need none."""
    from facescale.driver.neighbors import is_calibrated

    config, lake = context.config, context.lake
    stages = _extract(context)
    if _left_over(stages):
        return stages
    stages += _dedup(context)
    if is_calibrated(config.neighbors.embedder, lake):
        stages += _neighbors(context)
        if not _left_over(stages) and config.cluster.embedder == config.neighbors.embedder:
            stages += _cluster(context)
    else:
        stages[-1].notes.append(
            f"{config.neighbors.embedder} is not calibrated, so neighbors and what follows from them were not made: "
            f"run `facescale calibrate {lake.uri} --embedder {config.neighbors.embedder} --labels FILE`, then again"
        )
    if lake.current("labels") is not None and is_calibrated(config.clean.embedder, lake):
        stages += _clean(context)
    stages += _index(context)
    if config.report.enabled and not _left_over(stages):
        from facescale.driver.report import run_report

        stages.append(run_report(context, stages))
    return stages


def _left_over(stages: Iterable[StageSummary]) -> bool:
    return any(stage.left_over for stage in stages)


JOBS: Mapping[str, Callable[[JobContext], list[StageSummary]]] = {
    "run": _run,
    "extract": _extract,
    "import": _import,
    "embed": _embed,
    "annotate": _annotate,
    "dedup": _dedup,
    "neighbors": _neighbors,
    "cluster": _cluster,
    "clean": _clean,
    "index": _index,
    "report": _report,
    "export": _export,
}
"""Jobs by name: what `facescale NAME` and `python -m jobs.NAME` run."""


def run_job(job: str, config: JobConfig, reporter: Reporter | None = None) -> JobSummary:
    """Run one job to its end, or as far as it gets.

    Args:
        job: a key of JOBS.
        config: the job's configuration; `src` is needed by run and extract.
        reporter: where progress goes; None is silent.

    Returns:
        What was done; its `exit_code` is 0, 3 (too many images failed) or 4 (parts are left over).

    Raises:
        FacescaleError: the job could not be done; its `exit_code` says of which kind.
    """
    from facescale.driver.context import JobContext, JobSummary, SilentReporter, exit_code_of
    from facescale.lake.lake import Lake
    from facescale.models.access import ModelAccess, entered

    if job not in JOBS:
        raise UsageError(f"no job {job!r}; there are {', '.join(JOBS)}")
    if job in NEEDS_SOURCE and config.src is None:
        what = (
            "Parquet, .npy or .bin files of embeddings"
            if job == "import"
            else "a folder, a tar, a Parquet file"
        )
        raise UsageError(f"{job} needs a source: {what} or a URL")
    start, reporter = time.monotonic(), reporter or SilentReporter()
    with entered(ModelAccess(offline=config.extract.offline)):
        if job == "import":
            lake = _open_for_import(config)
        else:
            lake = _open_for_extract(config, reporter) if job in NEEDS_SOURCE else Lake.open(config.lake)
        lake.store.clean_temporaries()
        summary = JobSummary(job, lake.uri)
        with JobContext(config, lake, reporter) as context:
            summary.stages = JOBS[job](context)
    if any(stage.deaths for stage in summary.stages):
        lake.store.clean_temporaries()  # those that the dead workers left half-written
    summary.exit_code = exit_code_of(summary.stages)
    if summary.exit_code == EXIT_DONE and (note := _too_many_failures(summary, config.max_failures)):
        summary.stages[0].notes.append(note)
        summary.exit_code = EXIT_TOO_MANY_FAILURES
    summary.seconds = time.monotonic() - start
    return summary


def dry_run(job: str, config: JobConfig) -> DryRun:
    """Plan a job and write nothing: stages, tables, parts, bytes."""
    from facescale.driver.dry_run import plan_job
    from facescale.models.access import ModelAccess, entered

    with entered(ModelAccess(offline=config.extract.offline)):
        return plan_job(job, config)


def run_demo(
    out: str,
    *,
    identities: int = 40,
    images_per_identity: int = 8,
    seed: int = 0,
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> DemoResult:
    """Run the main job on a synthetic crawl and score it; see facescale.driver.demo."""
    from facescale.driver import demo
    from facescale.driver.context import SilentReporter

    report = reporter or SilentReporter()
    return demo.run_demo(
        out,
        identities=identities,
        images_per_identity=images_per_identity,
        seed=seed,
        workers=workers,
        run=lambda job, config: run_job(job, config, report),
        reporter=report,
    )


def _open_for_extract(config: JobConfig, reporter: Reporter) -> Any:
    """Open the lake, or make it once source, models and label file are known to be there: a typo leaves nothing."""
    from facescale.driver.extract import extract_settings, import_plugins
    from facescale.driver.label import label_spec
    from facescale.driver.models_used import check_licences, fetch_weights
    from facescale.lake.lake import Lake
    from facescale.models.weights import use_weights_folder
    from facescale.sources.plan import check_source

    assert config.src is not None
    import_plugins(config.extract.plugins)
    use_weights_folder(config.extract.weights_dir)
    check_licences(config.extract, "extract")
    label_spec(config.labels)  # without its column a label file must not cost a crawl's work first
    check_source(config.src)
    fetch_weights(config, "extract", reporter)
    extract_settings(config.extract)
    return Lake.open_or_create(config.lake)


def _open_for_import(config: JobConfig) -> Any:
    """As for extract: embeddings, name and labels are looked at before a lake is made."""
    from facescale.driver.imports import check_import
    from facescale.lake.lake import Lake

    check_import(config)
    return Lake.open_or_create(config.lake)


def _too_many_failures(summary: JobSummary, limit: float) -> str | None:
    found = summary.stages[0].failures
    if found is None or not found.images or found.failed / found.images <= limit:
        return None
    return (
        f"{found.failed:,} of {found.images:,} images failed, more than --max-failures {limit:g} allows: see the "
        f"status and detail columns of {summary.lake}/images"
    )


def job_main(job: str, argv: Sequence[str]) -> int:
    """Entry point of `python -m jobs.NAME`: configuration from a file and KEY=VALUE pairs; prints a summary as JSON.

    Args:
        job: a key of JOBS.
        argv: `--config FILE` and `--set section.key=value`, any number of times.

    Returns:
        The exit code.
    """
    import argparse
    import contextlib
    import signal
    import sys

    from facescale.console import make_console, print_json

    parser = argparse.ArgumentParser(
        prog=f"python -m jobs.{job}", description=f"facescale {job} as a Ray job"
    )
    parser.add_argument("--config", help="YAML file with the job's configuration")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. lake=s3://bucket/lake"
    )
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_INCOMPLETE))  # how Ray stops a job
    pairs = [item.partition("=") for item in arguments.set]
    _, reporter = make_console(json_output=True)
    try:
        overrides = {key: value for key, _, value in pairs}
        config = load_config(JobConfig, file=arguments.config, overrides=overrides)
        # Ray prints on stdout when a worker dies; that is for the answer.
        with contextlib.redirect_stdout(sys.stderr):
            summary = run_job(job, config, reporter)
    except FacescaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print_json(summary)
    return summary.exit_code
