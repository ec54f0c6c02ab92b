"""The command export: parses, calls, prints."""

from __future__ import annotations

from typing import Annotated

import typer

from facescale.cli_options import (
    Address,
    ConfigFile,
    DryRunFlag,
    Embedder,
    JsonFlag,
    LakeArg,
    Threads,
    Verbose,
    Where,
    Workers,
    run_job_command,
)

Out = Annotated[str, typer.Argument(metavar="OUT", help="Folder or fsspec URL of the training set.")]
Format = Annotated[str | None, typer.Option(help="webdataset, parquet, folder or recordio.")]
Names = Annotated[str | None, typer.Option(help="Who a face is, by: decisions, claims or clusters.")]
Template = Annotated[str | None, typer.Option(help="auto, arcface_112, dlib_150, or crop for the wide crop.")]
MinFaces = Annotated[int | None, typer.Option(help="Identities with fewer faces are left out.")]
MaxFaces = Annotated[int | None, typer.Option(help="Of an identity the best so many are kept.")]
MinQuality = Annotated[float | None, typer.Option(help="Faces of lower quality are left out, 0..1.")]
ValShare = Annotated[float | None, typer.Option(help="Share of the identities held out for validation.")]
ClassesFile = Annotated[
    str | None, typer.Option("--classes", help="classes.parquet of an earlier export: its class ids stay.")
]
Seed = Annotated[int | None, typer.Option(help="Of the shuffle, the split and ties.")]
ShardFaces = Annotated[int | None, typer.Option(help="Faces of a shard.")]
ShuffleGib = Annotated[
    float | None,
    typer.Option("--memory-gib", help="Of each worker for faces that are shuffled together, GiB."),
]
JpegQuality = Annotated[int | None, typer.Option(help="Of the chips, 1..100.")]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(export)


def export(
    lake: LakeArg,
    out: Out,
    config: ConfigFile = None,
    format: Format = None,
    names: Names = None,
    embedder: Embedder = None,
    template: Template = None,
    min_faces: MinFaces = None,
    max_faces: MaxFaces = None,
    min_quality: MinQuality = None,
    where: Where = None,
    val_share: ValShare = None,
    classes: ClassesFile = None,
    seed: Seed = None,
    shard_faces: ShardFaces = None,
    memory_gib: ShuffleGib = None,
    jpeg_quality: JpegQuality = None,
    workers: Workers = None,
    threads: Threads = None,
    address: Address = None,
    dry_run: DryRunFlag = False,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Write a training set: aligned chips of named faces in shards, with class ids and a data card."""
    names_of = (
        "out format names embedder template min_faces max_faces min_quality where val_share classes seed"
    )
    given = locals()
    overrides = {
        f"export.{name}": given[name] for name in f"{names_of} shard_faces memory_gib jpeg_quality".split()
    } | {
        "lake": lake,
        "engine.workers": workers,
        "engine.threads": threads,
        "engine.address": address,
    }
    run_job_command("export", config, overrides, dry_run=dry_run, json_output=json_output, verbose=verbose)
