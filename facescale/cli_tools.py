"""The commands that are not jobs: search, lake, doctor, demo, bench. Parses, calls, prints."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from facescale.cli_options import (
    ConfigFile,
    Embedder,
    JsonFlag,
    LakeArg,
    Plugin,
    Verbose,
    Where,
    set_up_logging,
)

lake_app = typer.Typer(help="Look at a lake and its versions, check it, tidy it.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(search)
    app.add_typer(lake_app, name="lake")
    app.command()(doctor)
    app.command()(demo)


def search(
    lake: LakeArg,
    queries: Annotated[
        list[str], typer.Argument(metavar="QUERY…", help="Images, folders, or Parquet of embeddings.")
    ],
    embedder: Embedder = None,
    k: Annotated[int | None, typer.Option("-k", help="Faces to return for each query.")] = None,
    label: Annotated[str | None, typer.Option(help="Only faces whose image claims this label.")] = None,
    min_similarity: Annotated[float | None, typer.Option(help="Leave out hits below this cosine.")] = None,
    min_quality: Annotated[float | None, typer.Option(help="Leave out faces of less quality, 0..1.")] = None,
    where: Where = None,
    output: Annotated[str | None, typer.Option("--out", help="Parquet file for all hits.")] = None,
    plugin: Plugin = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Find the faces of a lake that are most like those of the queries."""
    from facescale import console
    from facescale.config.index import SearchConfig
    from facescale.config.load import load_config
    from facescale.driver.search import run_search

    set_up_logging(verbose)
    overrides = {
        "embedder": embedder,
        "k": k,
        "label": label,
        "min_similarity": min_similarity,
        "min_quality": min_quality,
        "where": where,
        "plugins": tuple(plugin) if plugin else None,
    }
    settings = load_config(SearchConfig, file=config, overrides=overrides)
    out, reporter = console.make_console(json_output=json_output)
    found = run_search(lake, queries, settings, output=output, reporter=reporter)
    if json_output:
        console.print_json(found.as_json())
    else:
        console.print_hits(out, found)


@lake_app.command("info")
def lake_info(lake: LakeArg, json_output: JsonFlag = False) -> None:
    """What a lake holds: current tables, rows, bytes, image statuses."""
    from facescale import console
    from facescale.driver.lake_info import lake_info as collect

    info = collect(lake)
    out, _ = console.make_console(json_output=json_output)
    console.print_json(info) if json_output else console.print_info(out, info)


@lake_app.command("versions")
def lake_versions(lake: LakeArg, json_output: JsonFlag = False) -> None:
    """Every version of every table, which is current, and how large it is."""
    from facescale import console
    from facescale.lake.lake import Lake

    versions = Lake.open(lake).versions()
    out, _ = console.make_console(json_output=json_output)
    if json_output:
        console.print_json(versions)
        return
    rows = [
        (
            v.table,
            v.model,
            v.fingerprint,
            "current" if v.current else "",
            v.parts,
            console.human_bytes(v.bytes),
            v.created,
        )
        for v in versions
    ]
    console.print_table(out, ["table", "model", "version", "", "parts", "size", "made (UTC)"], rows)


@lake_app.command("use")
def lake_use(
    lake: LakeArg,
    table: Annotated[str, typer.Argument(help="Table, e.g. embeddings.")],
    version: Annotated[str, typer.Argument(help="First digits of the version (facescale lake versions).")],
    model: Annotated[str, typer.Option(help="Model, for tables that belong to one.")] = "-",
) -> None:
    """Make another version of a table the current one."""
    from facescale.lake.lake import Lake

    chosen = Lake.open(lake).use(table, version, model)
    typer.echo(f"current: {chosen.folder}")


@lake_app.command("prune")
def lake_prune(
    lake: LakeArg,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Remove the versions that no current version needs, and leftovers of killed jobs."""
    from facescale import console
    from facescale.lake.lake import Lake

    removed = Lake.open(lake).prune(dry_run=dry_run)
    if json_output:
        console.print_json([{"folder": folder, "bytes": size} for folder, size in removed])
        return
    for folder, size in removed:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {folder} ({console.human_bytes(size)})")
    if not removed:
        typer.echo("nothing to remove: every version is current or made something that is")


@lake_app.command("select")
def lake_select(
    lake: LakeArg,
    where: Annotated[
        str, typer.Option(help='Condition on the columns of faces and attributes, e.g. "quality >= 0.5".')
    ],
    output: Annotated[str | None, typer.Option("--out", help="Parquet file for their ids.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """How many faces meet a condition, and which."""
    from facescale import console
    from facescale.driver.select import select_faces

    found = select_faces(lake, where, output=output)
    if json_output:
        console.print_json(found)
        return
    typer.echo(f"{found.selected:,} of {found.faces:,} faces" + (f", written to {output}" if output else ""))


@lake_app.command("verify")
def lake_verify(lake: LakeArg, json_output: JsonFlag = False) -> None:
    """Read every part and index file and check what they promise; exits 1 when something is wrong."""
    from facescale import console
    from facescale.driver.lake_info import verify_lake
    from facescale.errors import EXIT_DONE, EXIT_FAILED

    report = verify_lake(lake)
    out, _ = console.make_console(json_output=json_output)
    if json_output:
        console.print_json(report)
    else:
        rows = [(problem.path, problem.what, problem.remedy) for problem in report.problems]
        if rows:
            console.print_table(out, ["where", "what is wrong", "what to do"], rows)
        console.print_mapping(out, "checked", report.checked)
        out.print("no problem found" if not rows else f"{len(rows)} problems")
    raise typer.Exit(EXIT_FAILED if report.problems else EXIT_DONE)


def doctor(
    path: Annotated[str, typer.Argument(help="Folder whose disk to look at.")] = ".",
    json_output: JsonFlag = False,
) -> None:
    """What works on this machine, what is missing, and what to install; exits 2 when something is wrong."""
    from facescale import console
    from facescale import doctor as doctor_module

    findings = doctor_module.examine(path)
    out, _ = console.make_console(json_output=json_output)
    if json_output:
        console.print_json(findings)
    else:
        rows = [(finding.what, finding.state, finding.found, finding.remedy) for finding in findings]
        console.print_table(out, ["", "state", "found", "what to do"], rows)
    raise typer.Exit(doctor_module.exit_code(findings))


def demo(
    out: Annotated[str, typer.Option("--out", help="Folder for the crawl and the lake.")] = "demo",
    identities: Annotated[int, typer.Option(help="Invented people.")] = 40,
    images_per_identity: Annotated[int, typer.Option(help="Photographs of each.")] = 8,
    seed: Annotated[int, typer.Option(help="The same seed makes the same bytes.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Worker processes.")] = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Run the main job on the synthetic crawl and hold what was found against what was planted."""
    from facescale import console
    from facescale.errors import EXIT_DONE, EXIT_FAILED
    from facescale.pipeline import run_demo

    set_up_logging(verbose)
    screen, reporter = console.make_console(json_output=json_output)
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there when a worker dies; it is for the answer
        result = run_demo(
            out,
            identities=identities,
            images_per_identity=images_per_identity,
            seed=seed,
            workers=workers,
            reporter=reporter,
        )
    console.print_json(result) if json_output else console.print_demo(screen, result)
    raise typer.Exit(EXIT_DONE if result.ok else EXIT_FAILED)
