"""The command report: parses, calls, prints."""

from __future__ import annotations

from typing import Annotated

import typer

from facescale.cli_options import ConfigFile, Embedder, JsonFlag, LakeArg, Plugin, Verbose, set_up_logging

NoPhotos = Annotated[
    bool, typer.Option("--no-photos", help="Counts and drawings only: no picture, label or file name.")
]
NoReport = Annotated[bool, typer.Option("--no-report", help="Do not make LAKE/report.html at the end.")]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(report)


def report(
    lake: LakeArg,
    out: Annotated[
        str | None, typer.Option("--out", help="HTML file to write; without, LAKE/report.html.")
    ] = None,
    embedder: Embedder = None,
    no_photos: NoPhotos = False,
    config: ConfigFile = None,
    plugin: Plugin = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """One HTML page about a lake: counts, histograms with their thresholds, contact sheets of what was found."""
    from facescale import console
    from facescale.config.job import JobConfig
    from facescale.config.load import load_config
    from facescale.driver.report import write_report

    set_up_logging(verbose)
    overrides = {"lake": lake, "report.embedder": embedder, "report.photos": False if no_photos else None}
    settings = load_config(JobConfig, file=config, overrides=overrides)
    where, size = write_report(
        settings.lake, settings.report, out=out, plugins=(*settings.extract.plugins, *(plugin or ()))
    )
    if json_output:
        console.print_json({"report": where, "bytes": size})
    else:
        typer.echo(f"report: {where} ({console.human_bytes(size)})")
