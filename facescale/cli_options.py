"""What commands share: arguments and options, logging, and how every job goes on once its flags are parsed."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

Src = Annotated[str, typer.Argument(help="Folder, tar or Parquet file of images, or an fsspec URL.")]
EmbeddingsSrc = Annotated[
    str,
    typer.Argument(
        metavar="EMBEDDINGS", help="Parquet, .npy or .bin file, a folder of those, or an fsspec URL."
    ),
]
ModelName = Annotated[
    str | None, typer.Option(help="Name of the model that made them; later: --embedder NAME.")
]
EmbeddingColumn = Annotated[
    str | None, typer.Option(help="Parquet column that holds the embeddings; default: embedding.")
]
EmbeddingDim = Annotated[int | None, typer.Option(help="Dimension; without, that of the first rows.")]
RowLabels = Annotated[
    str | None,
    typer.Option(
        help="File with a label for every row (.npy, .meta, .csv, .parquet), or a table keyed by path."
    ),
]
LakeArg = Annotated[str, typer.Argument(metavar="LAKE", help="Root of the lake: a folder or an fsspec URL.")]
ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file; flags override it.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens, with times.")]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")]

Detector = Annotated[str | None, typer.Option(help="Face detector, by registry name.")]
Landmarker = Annotated[str | None, typer.Option(help="Landmark model, by registry name.")]
Embedder = Annotated[str | None, typer.Option(help="Embedder, by registry name.")]
MinFace = Annotated[int | None, typer.Option("--min-face-px", help="Side of the smallest face, px.")]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")]
DetThreshold = Annotated[
    float | None, typer.Option(help="Faces score above it, in the detector's unit; else as its card says.")
]
Runtime = Annotated[
    str | None, typer.Option(help="auto, torch or onnx: what runs models with weights for both.")
]
Accelerate = Annotated[
    str | None, typer.Option(help="none, compile, cuda_graphs or tensorrt: how embedders run.")
]
Flip = Annotated[bool, typer.Option("--flip", help="Embed faces as they are and mirrored; the mean counts.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Open weights that can run code: TorchScript, exported, pickled.")
]
WeightsDir = Annotated[
    str | None, typer.Option(help="Folder with weights, known by their sha256; else FACESCALE_WEIGHTS.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Download no weights; else FACESCALE_OFFLINE.")]
AcceptLicense = Annotated[
    bool, typer.Option("--accept-license", help="Run models whose licence forbids commercial use.")
]
Labels = Annotated[str | None, typer.Option(help="'folder', or a CSV or Parquet file keyed by path.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the labels file that holds the label.")]
PathColumn = Annotated[str | None, typer.Option(help="Column of the labels file that holds the path.")]
MaxFailures = Annotated[float | None, typer.Option(help="Share of failed images above which the code is 3.")]
AcceptChanges = Annotated[bool, typer.Option(help="Let changed and vanished input supersede the old rows.")]
RetryFailed = Annotated[bool, typer.Option(help="Rerun parts that hold images with a transient status.")]
PartRows = Annotated[int | None, typer.Option(help="Rows of a part for new input: a power of two.")]
Workers = Annotated[int | None, typer.Option(help="Worker processes; 0 runs in this process without Ray.")]
Threads = Annotated[int | None, typer.Option(help="Threads in each worker.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
GpusPerWorker = Annotated[float | None, typer.Option(help="Share of a GPU for each worker.")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join; else RAY_ADDRESS, else Ray starts here.")
]
With = Annotated[
    list[str] | None,
    typer.Option("--with", help="Annotator: registry name, or path of its card (.yaml); repeatable."),
]
Where = Annotated[
    str | None, typer.Option(help='Only faces that meet a condition, e.g. "age > 17 and quality >= 0.5".')
]
Plugin = Annotated[list[str] | None, typer.Option(help="Module that registers further models; repeatable.")]
Backend = Annotated[str | None, typer.Option(help="faiss or hnswlib.")]
MaxDistance = Annotated[int | None, typer.Option(help="PDQ bits up to which images are copies, 0..31.")]
NumNeighbors = Annotated[int | None, typer.Option("--k", "-k", help="Neighbors kept for each face.")]
BaseMemoryGib = Annotated[
    float | None, typer.Option("--memory-gib", help="Memory of each worker for the faces compared with, GiB.")
]
MaxSize = Annotated[int | None, typer.Option(help="No cluster grows beyond so many faces.")]
CleanMethod = Annotated[str | None, typer.Option(help="ownership or cast.")]
CleanPreset = Annotated[
    str | None,
    typer.Option("--preset", help="With cast: arcface, its published cosines; for like embedders."),
]
Recall = Annotated[float | None, typer.Option(help="Wanted recall of the index, 0..1.")]
MemoryGib = Annotated[float | None, typer.Option(help="Memory the index may take when searched, GiB.")]


def set_up_logging(verbose: bool) -> None:
    """Log warnings, or with -v what happens, to standard error with times."""
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("facescale").setLevel(level)


def run_job_command(
    job: str,
    config_file: str | None,
    overrides: Mapping[str, Any],
    *,
    dry_run: bool,
    json_output: bool,
    verbose: bool,
) -> None:
    """Run a job of facescale.pipeline.JOBS, or print its plan, and exit with its code.

    Args:
        job: which.
        config_file: YAML file, if any.
        overrides: dotted path of a setting → value from a flag; None is not given.
        dry_run: print the plan only.
        json_output: print one JSON document.
        verbose: log what happens.
    """
    from facescale import console, pipeline
    from facescale.config.job import JobConfig
    from facescale.config.load import load_config

    set_up_logging(verbose)
    config = load_config(JobConfig, file=config_file, overrides=overrides)
    out, reporter = console.make_console(json_output=json_output)
    if dry_run:
        plan = pipeline.dry_run(job, config)
        console.print_json(plan) if json_output else console.print_plan(out, plan)
        return
    try:
        # Ray prints on stdout when a worker dies; that is for the answer.
        with contextlib.redirect_stdout(sys.stderr):
            summary = pipeline.run_job(job, config, reporter)
    except KeyboardInterrupt:
        reporter.finish()
        reporter.say(f"stopped; finished parts are kept. To resume, run the same command again ({job})")
        raise
    console.print_json(summary) if json_output else console.print_summary(out, summary)
    raise typer.Exit(summary.exit_code)
