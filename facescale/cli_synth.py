"""The commands synth OUT and synth embeddings LAKE: parses, calls, prints."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from facescale.cli_options import JsonFlag, LakeArg, Verbose, Workers, set_up_logging
from facescale.errors import UsageError

_DEFAULT = "photographs"


class _PhotographsUnlessNamed(TyperGroup):
    """`synth OUT` is `synth photographs OUT`: what is no command is taken for its arguments."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


synth_app = typer.Typer(
    cls=_PhotographsUnlessNamed,
    help="Invent a crawl of photographs (synth OUT), or a lake of embeddings (synth embeddings LAKE).",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(synth_app, name="synth")


@synth_app.command(_DEFAULT)
def photographs(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to make; images go to OUT/images.")],
    identities: Annotated[int, typer.Option(help="Invented people.")] = 40,
    images_per_identity: Annotated[int, typer.Option(help="Photographs of each.")] = 8,
    seed: Annotated[int, typer.Option(help="The same seed makes the same bytes.")] = 0,
    json_output: JsonFlag = False,
) -> None:
    """Make the synthetic crawl: portraits with planted duplicates, wrong labels and broken files, and their truth."""
    from facescale import console
    from facescale.synth.crawl import make_crawl

    summary = make_crawl(out, identities=identities, images_per_identity=images_per_identity, seed=seed)
    screen, _ = console.make_console(json_output=json_output)
    if json_output:
        console.print_json(summary)
    else:
        console.print_mapping(screen, f"synthetic crawl at {out}", summary)


@synth_app.command()
def embeddings(
    lake: LakeArg,
    identities: Annotated[str, typer.Option(help="People with a label, e.g. 1e4.")] = "1000",
    faces: Annotated[str, typer.Option(help="Faces in all, e.g. 2e5.")] = "20000",
    dim: Annotated[int, typer.Option(help="Dimension of the embeddings.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same tables.")] = 0,
    preset: Annotated[str, typer.Option(help="clean, noisy or bridges.")] = "noisy",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another share than the preset's; repeatable."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="What the embedder is called; later: --embedder NAME.")
    ] = "simulated",
    workers: Workers = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Make a lake of simulated embeddings with the faults of web crawls, and the truth in LAKE/truth.parquet."""
    from facescale import console
    from facescale.driver.simulate import run_simulate
    from facescale.synth.population import load_mixture
    from facescale.synth.simulate import Simulation

    set_up_logging(verbose)
    pairs = [entry.partition("=") for entry in change or ()]
    mixture = load_mixture(preset, {name: value for name, _, value in pairs})
    simulation = Simulation(_count("identities", identities), _count("faces", faces), dim, seed, mixture)
    out, reporter = console.make_console(json_output=json_output)
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there when a worker dies; it is for the answer
        summary = run_simulate(lake, simulation, model=model, workers=workers, reporter=reporter)
    console.print_json(summary) if json_output else console.print_summary(out, summary)
    raise typer.Exit(summary.exit_code)


def _count(name: str, text: str) -> int:
    """A whole number, also as 2e5."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (1 <= value < 2**40 and value == int(value)):
        raise UsageError(f"--{name}: expected a whole number such as 20000 or 2e4, got {text!r}")
    return int(value)
