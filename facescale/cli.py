"""The command line: parses, calls, prints. No logic lives here.

Every command has --json for a machine-readable answer on standard output; jobs take --config FILE with flags on top.
Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 too many inputs failed, 4 incomplete, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

import typer

from facescale.bench.cli import bench_app
from facescale.cli_curate import register as register_curate
from facescale.cli_export import register as register_export
from facescale.cli_models import register as register_models
from facescale.cli_options import (
    Accelerate,
    AcceptChanges,
    AcceptLicense,
    Address,
    Backend,
    BaseMemoryGib,
    CleanMethod,
    CleanPreset,
    ConfigFile,
    Detector,
    DetThreshold,
    Device,
    DryRunFlag,
    Embedder,
    EmbeddingColumn,
    EmbeddingDim,
    EmbeddingsSrc,
    Flip,
    GpusPerWorker,
    JsonFlag,
    LabelColumn,
    Labels,
    LakeArg,
    Landmarker,
    MaxDistance,
    MaxFailures,
    MaxSize,
    MemoryGib,
    MinFace,
    ModelName,
    NumNeighbors,
    Offline,
    PartRows,
    PathColumn,
    Plugin,
    Precision,
    Recall,
    RetryFailed,
    RowLabels,
    Runtime,
    Src,
    Threads,
    Trust,
    Verbose,
    WeightsDir,
    With,
    Workers,
    run_job_command,
)
from facescale.cli_report import NoReport
from facescale.cli_report import register as register_report
from facescale.cli_synth import register as register_synth
from facescale.cli_tools import register
from facescale.config.flags import everywhere
from facescale.config.flags import job_overrides as _overrides
from facescale.errors import EXIT_DONE, EXIT_FAILED, EXIT_INCOMPLETE, EXIT_INTERRUPTED, FacescaleError

if TYPE_CHECKING:
    from types import FrameType

app = typer.Typer(
    name="facescale",
    help="Turn a crawl of web images into a clean, deduplicated, searchable face data set.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

register(app)
register_curate(app)
register_models(app)
register_report(app)
register_export(app)
register_synth(app)
app.add_typer(bench_app, name="bench")


@app.command()
def run(
    src: Src,
    lake: LakeArg,
    config: ConfigFile = None,
    detector: Detector = None,
    landmarker: Landmarker = None,
    embedder: Embedder = None,
    min_face_px: MinFace = None,
    det_threshold: DetThreshold = None,
    precision: Precision = None,
    runtime: Runtime = None,
    accelerate: Accelerate = None,
    flip: Flip = False,
    weights_dir: WeightsDir = None,
    offline: Offline = False,
    accept_license: AcceptLicense = False,
    trust: Trust = False,
    labels: Labels = None,
    label_column: LabelColumn = None,
    path_column: PathColumn = None,
    max_failures: MaxFailures = None,
    accept_changes: AcceptChanges = False,
    retry_failed: RetryFailed = False,
    part_rows: PartRows = None,
    workers: Workers = None,
    threads: Threads = None,
    device: Device = None,
    gpus_per_worker: GpusPerWorker = None,
    address: Address = None,
    plugin: Plugin = None,
    backend: Backend = None,
    recall: Recall = None,
    memory_gib: MemoryGib = None,
    no_report: NoReport = False,
    dry_run: DryRunFlag = False,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Run every stage, in order; running it again resumes it.

    The stages: extract, labels, dedup, neighbors, cluster, clean, index, report.
    """
    overrides = _overrides(locals()) | {
        **everywhere("embedder", embedder),
        "report.enabled": False if no_report else None,
        "index.backend": backend,
        "index.recall": recall,
        "index.memory_gib": memory_gib,
    }
    run_job_command("run", config, overrides, dry_run=dry_run, json_output=json_output, verbose=verbose)


@app.command()
def extract(
    src: Src,
    lake: LakeArg,
    config: ConfigFile = None,
    detector: Detector = None,
    landmarker: Landmarker = None,
    embedder: Embedder = None,
    min_face_px: MinFace = None,
    det_threshold: DetThreshold = None,
    precision: Precision = None,
    runtime: Runtime = None,
    accelerate: Accelerate = None,
    flip: Flip = False,
    weights_dir: WeightsDir = None,
    offline: Offline = False,
    accept_license: AcceptLicense = False,
    trust: Trust = False,
    labels: Labels = None,
    label_column: LabelColumn = None,
    path_column: PathColumn = None,
    max_failures: MaxFailures = None,
    accept_changes: AcceptChanges = False,
    retry_failed: RetryFailed = False,
    part_rows: PartRows = None,
    workers: Workers = None,
    threads: Threads = None,
    device: Device = None,
    gpus_per_worker: GpusPerWorker = None,
    address: Address = None,
    plugin: Plugin = None,
    dry_run: DryRunFlag = False,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Read images, detect, align and embed their faces: images, faces, crops and embeddings."""
    run_job_command(
        "extract", config, _overrides(locals()), dry_run=dry_run, json_output=json_output, verbose=verbose
    )


@app.command(name="import")
def import_embeddings(
    src: EmbeddingsSrc,
    lake: LakeArg,
    model: ModelName = None,
    config: ConfigFile = None,
    column: EmbeddingColumn = None,
    dim: EmbeddingDim = None,
    labels: RowLabels = None,
    label_column: LabelColumn = None,
    path_column: PathColumn = None,
    max_failures: MaxFailures = None,
    accept_changes: AcceptChanges = False,
    retry_failed: RetryFailed = False,
    part_rows: PartRows = None,
    workers: Workers = None,
    threads: Threads = None,
    address: Address = None,
    dry_run: DryRunFlag = False,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Make a lake of embeddings that another program made; every later job takes it, but for those on photographs."""
    overrides = _overrides(locals()) | {"imports.model": model, "imports.column": column, "imports.dim": dim}
    run_job_command("import", config, overrides, dry_run=dry_run, json_output=json_output, verbose=verbose)


@app.command()
def embed(
    lake: LakeArg,
    embedder: Embedder = None,
    config: ConfigFile = None,
    precision: Precision = None,
    runtime: Runtime = None,
    accelerate: Accelerate = None,
    flip: Flip = False,
    weights_dir: WeightsDir = None,
    offline: Offline = False,
    accept_license: AcceptLicense = False,
    trust: Trust = False,
    workers: Workers = None,
    threads: Threads = None,
    device: Device = None,
    gpus_per_worker: GpusPerWorker = None,
    address: Address = None,
    plugin: Plugin = None,
    dry_run: DryRunFlag = False,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Embed the stored crops with another model; nothing is detected again."""
    run_job_command(
        "embed", config, _overrides(locals()), dry_run=dry_run, json_output=json_output, verbose=verbose
    )


@app.command()
def annotate(
    lake: LakeArg,
    annotators: With = None,
    config: ConfigFile = None,
    precision: Precision = None,
    runtime: Runtime = None,
    weights_dir: WeightsDir = None,
    offline: Offline = False,
    accept_license: AcceptLicense = False,
    workers: Workers = None,
    threads: Threads = None,
    device: Device = None,
    gpus_per_worker: GpusPerWorker = None,
    address: Address = None,
    plugin: Plugin = None,
    dry_run: DryRunFlag = False,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Run other models over the stored crops; what they say of each face becomes columns of `attributes`."""
    overrides = _overrides(locals()) | {"annotate.annotators": tuple(annotators) if annotators else None}
    run_job_command("annotate", config, overrides, dry_run=dry_run, json_output=json_output, verbose=verbose)


@app.command()
def dedup(
    lake: LakeArg,
    config: ConfigFile = None,
    max_distance: MaxDistance = None,
    threads: Threads = None,
    dry_run: DryRunFlag = False,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Find identical and nearly identical images; one of each group is kept, and the best."""
    overrides = _overrides(locals()) | {"dedup.max_distance": max_distance}
    run_job_command("dedup", config, overrides, dry_run=dry_run, json_output=json_output, verbose=verbose)


@app.command()
def neighbors(
    lake: LakeArg,
    embedder: Embedder = None,
    config: ConfigFile = None,
    k: NumNeighbors = None,
    base_memory_gib: BaseMemoryGib = None,
    workers: Workers = None,
    threads: Threads = None,
    device: Device = None,
    gpus_per_worker: GpusPerWorker = None,
    address: Address = None,
    plugin: Plugin = None,
    dry_run: DryRunFlag = False,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """List the most similar faces of every face, exactly or, where these are too many, with recall measured.

    Copies of images are left out.
    """
    overrides = _overrides(locals()) | {
        "neighbors.embedder": embedder,
        "neighbors.k": k,
        "neighbors.memory_gib": base_memory_gib,
    }
    run_job_command("neighbors", config, overrides, dry_run=dry_run, json_output=json_output, verbose=verbose)


@app.command()
def cluster(
    lake: LakeArg,
    embedder: Embedder = None,
    config: ConfigFile = None,
    max_size: MaxSize = None,
    dry_run: DryRunFlag = False,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Find the faces that show one person, without labels; needs neighbors."""
    overrides = _overrides(locals()) | {"cluster.embedder": embedder, "cluster.max_size": max_size}
    run_job_command("cluster", config, overrides, dry_run=dry_run, json_output=json_output, verbose=verbose)


@app.command()
def clean(
    lake: LakeArg,
    embedder: Embedder = None,
    config: ConfigFile = None,
    method: CleanMethod = None,
    preset: CleanPreset = None,
    dry_run: DryRunFlag = False,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Decide whose name each label is and which faces it keeps, and write down why."""
    overrides = _overrides(locals()) | {
        "clean.embedder": embedder,
        "clean.method": method,
        "clean.preset": preset,
    }
    run_job_command("clean", config, overrides, dry_run=dry_run, json_output=json_output, verbose=verbose)


@app.command()
def index(
    lake: LakeArg,
    embedder: Embedder = None,
    config: ConfigFile = None,
    backend: Backend = None,
    recall: Recall = None,
    memory_gib: MemoryGib = None,
    workers: Workers = None,
    threads: Threads = None,
    address: Address = None,
    plugin: Plugin = None,
    dry_run: DryRunFlag = False,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Build the index over one embedder's faces, and measure its recall."""
    overrides = {
        "lake": lake,
        "index.embedder": embedder,
        "index.backend": backend,
        "index.recall": recall,
        "index.memory_gib": memory_gib,
        "engine.workers": workers,
        "engine.threads": threads,
        "engine.address": address,
        "extract.plugins": tuple(plugin) if plugin else None,
    }
    run_job_command("index", config, overrides, dry_run=dry_run, json_output=json_output, verbose=verbose)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """A preempted job is incomplete, not failed: resubmitting it helps."""
    raise SystemExit(EXIT_INCOMPLETE)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `facescale` command; turns every outcome into its exit code."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        code = app(args=argv, standalone_mode=False)
    except FacescaleError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_DONE
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
            print(f"error: {error.format_message()}", file=sys.stderr)
            code = error.exit_code
        else:
            logging.getLogger("facescale").debug("unexpected error", exc_info=True)
            print(f"error: {type(error).__name__}: {error} (run with -v for details)", file=sys.stderr)
            code = EXIT_FAILED
    sys.exit(code if isinstance(code, int) else EXIT_DONE)
