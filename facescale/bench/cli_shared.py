"""Arguments that several commands of `facescale bench` have, and how each is run: called by facescale.bench.cli."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from facescale.bench.results import Result

Photos = Annotated[str, typer.Argument(metavar="PHOTOS", help="Folder of photographs.")]
Out = Annotated[str | None, typer.Option("--out", help="Write the result to this file as JSON.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="At most so many photographs, evenly spaced over the sorted list.")
]
MinFacePx = Annotated[int, typer.Option("--min-face-px", help="Side of the smallest face, px.")]
Detector = Annotated[str, typer.Option(help="Face detector, by registry name.")]
Embedder = Annotated[str, typer.Option(help="Embedder, by registry name.")]
CalibratedEmbedder = Annotated[str, typer.Option(help="Calibrated embedder.")]
Work = Annotated[str | None, typer.Option(help="Folder for lakes and links; they are removed at the end.")]


def run(
    measure: Callable[..., Result], photos: str | None, json_output: bool, out: str | None, **options: Any
) -> None:
    """Measure, print, and write to `out` if it is given."""
    from facescale.bench.results import publish
    from facescale.console import make_console

    console, reporter = make_console(json_output=json_output)
    publish(console, measure(photos, reporter, **options), json_output=json_output, out=out)
