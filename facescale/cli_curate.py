"""The commands of curation that are not jobs: calibrate, evaluate. Parses, calls, prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from facescale.cli_options import (
    Device,
    Embedder,
    JsonFlag,
    LabelColumn,
    LakeArg,
    PathColumn,
    Plugin,
    Verbose,
    WeightsDir,
    set_up_logging,
)
from facescale.errors import UsageError

if TYPE_CHECKING:
    from facescale.driver.evaluate import Truth

evaluate_app = typer.Typer(help="Hold clusters and cleaning against a known truth.", no_args_is_help=True)

TrustedLabels = Annotated[
    str | None,
    typer.Option("--labels", help="CSV or Parquet of trusted labels by path; without it the lake's labels."),
]
Fold = Annotated[
    str,
    typer.Option(help="Fit on half the people (0 or 1) and check on the others, or on all without a check."),
]
TruthFile = Annotated[
    str, typer.Option("--truth", help="CSV or Parquet with a path, image_id or face_id, and an identity.")
]
IdentityColumn = Annotated[str, typer.Option(help="Column of the truth that holds the identity.")]
TruthPath = Annotated[str, typer.Option("--path-column", help="Column of the truth that holds the path.")]
TruthFold = Annotated[str, typer.Option("--fold", help="Only identities of this fold: 0, 1 or all.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(calibrate)
    app.add_typer(evaluate_app, name="evaluate")


def calibrate(
    lake: LakeArg,
    labels: TrustedLabels = None,
    label_column: LabelColumn = None,
    path_column: PathColumn = None,
    embedder: Embedder = None,
    fold: Fold = "0",
    device: Device = None,
    plugin: Plugin = None,
    note: Annotated[str, typer.Option(help="What the photographs are, for the file's evidence.")] = "",
    share: Annotated[
        bool, typer.Option("--share", help="Keep it beside your model cards too, for every lake of yours.")
    ] = False,
    weights_dir: WeightsDir = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Fit an embedder's thresholds on people you trust the labels of, and check them on others."""
    from facescale import console
    from facescale.driver.calibrate import CalibrateSettings, run_calibrate
    from facescale.sources.labels import LabelSpec

    set_up_logging(verbose)
    spec = None
    if labels is not None:
        spec = LabelSpec(labels, label_column, path_column or "path")
    elif label_column is not None or path_column is not None:
        raise UsageError(
            "--label-column and --path-column name columns of a file: give it with --labels FILE"
        )
    settings = CalibrateSettings(
        embedder=embedder or CalibrateSettings.embedder,
        labels=spec,
        fold=_fold(fold),
        device=device or CalibrateSettings.device,
        plugins=tuple(plugin or ()),
        note=note,
        share=share,
        weights_dir=weights_dir,
    )
    out, reporter = console.make_console(json_output=json_output)
    result = run_calibrate(lake, settings, reporter)
    for warning in result.warnings:
        reporter.warn(warning)
    if json_output:
        console.print_json(result)
        return
    other = result.evidence.get("check_on_the_other_fold", {})
    columns = [
        "faces, or face to center",
        "nominal",
        "similarity",
        "realized",
        "low",
        "high",
        "genuine above",
    ]
    rows = [
        (what, *(f"{row[name]:.2g}" if name != "similarity" else row[name] for name in _SHOWN))
        for what in ("pairs", "centers")
        for row in other.get(what, [])
    ]
    if rows:
        title = f"false-match rates on {other['people']:,} other people, 95 % bounds"
        console.print_table(out, columns, rows, title=title)
    flat = {
        f"{name} at {rate}" if rate else name: value
        for name, values in result.thresholds.items()
        for rate, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
    console.print_mapping(out, f"calibration of {result.embedder}: cosine at false-match rates", flat)
    out.print(f"written: {result.path}", markup=False, highlight=False, soft_wrap=True)


_SHOWN = ("nominal", "similarity", "realized", "low", "high", "genuine_share")


@evaluate_app.command("clusters")
def evaluate_clusters(
    lake: LakeArg,
    truth: TruthFile,
    identity_column: IdentityColumn = "identity",
    path_column: TruthPath = "path",
    embedder: Embedder = None,
    fold: TruthFold = "all",
    json_output: JsonFlag = False,
) -> None:
    """BCubed, pairwise, NMI and ARI of the clusters, over the faces whose identity the truth gives, and by quality."""
    from facescale import console
    from facescale.driver.evaluate import evaluate_clusters as evaluate

    result = evaluate(
        lake, _truth(truth, identity_column, path_column, fold), embedder=embedder or "dlib_resnet"
    )
    out, _ = console.make_console(json_output=json_output)
    if json_output:
        console.print_json(result)
        return
    for name, scores in result.scores.items():
        console.print_mapping(out, name, scores)
    if result.by_quality:
        rows = [(name, *scores.values()) for name, scores in result.by_quality.items()]
        columns = ["quality", *next(iter(result.by_quality.values()))]
        console.print_table(out, columns, rows, title="all identities, by quality of the face")
    console.print_mapping(out, "faces", result.counts)


@evaluate_app.command("cleaning")
def evaluate_cleaning(
    lake: LakeArg,
    truth: TruthFile,
    identity_column: IdentityColumn = "identity",
    path_column: TruthPath = "path",
    embedder: Embedder = None,
    fold: TruthFold = "all",
    json_output: JsonFlag = False,
) -> None:
    """What cleaning found of the wrong faces, and what it lost of the right ones."""
    from facescale import console
    from facescale.driver.evaluate import evaluate_cleaning as evaluate

    result = evaluate(
        lake, _truth(truth, identity_column, path_column, fold), embedder=embedder or "dlib_resnet"
    )
    out, _ = console.make_console(json_output=json_output)
    if json_output:
        console.print_json(result)
        return
    for name, scores in result.scores.items():
        console.print_mapping(out, name, scores)
    console.print_mapping(out, "faces", result.counts)


def _truth(file: str, identity_column: str, path_column: str, fold: str) -> Truth:
    from facescale.driver.evaluate import Truth

    return Truth(file, identity_column, path_column, _fold(fold))


def _fold(text: str) -> int | None:
    if text not in ("0", "1", "all"):
        raise UsageError(f"--fold: expected 0, 1 or all, got {text!r}")
    return None if text == "all" else int(text)
