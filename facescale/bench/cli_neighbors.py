"""The command `facescale bench neighbors`: parse, call, print. Mounted by facescale.bench.cli."""

from __future__ import annotations

from typing import Annotated

import typer

from facescale.cli_options import JsonFlag, Verbose, set_up_logging


def neighbors(
    faces: Annotated[int, typer.Option(min=2000, help="Simulated faces.")] = 300_000,
    dim: Annotated[int, typer.Option(min=2, help="Dimension of their embeddings.")] = 512,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Length of the lists.")] = 50,
    edge_recall: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Asked for.")] = 0.99,
    rival: Annotated[bool, typer.Option(help="Measure FAISS and hnswlib too.")] = True,
    rival_queries: Annotated[int, typer.Option(min=1, help="Faces that these are timed on.")] = 10_000,
    hnsw_faces: Annotated[
        int, typer.Option(min=1000, help="Faces that hnswlib's graph is built of, at most.")
    ] = 100_000,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Of the job; default: one a core. 0: none, in this process.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the faces.")] = 0,
    work: Annotated[str | None, typer.Option(help="Folder for the lake; it is removed at the end.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="Write the result to this file as JSON.")] = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Neighbors by cells over simulated faces, beside IndexIVFFlat and hnswlib at the same recall of pairs.

    Ours is timed as a whole job, from embeddings in a lake to the finished table; of FAISS only the search is. Times of
    the others are in proportion to the queries (and faces of the graph) that they are timed on.
    """
    from facescale.bench.neighbors import bench_neighbors
    from facescale.bench.results import publish
    from facescale.console import make_console

    set_up_logging(verbose)
    console, reporter = make_console(json_output=json_output)
    result = bench_neighbors(
        faces,
        reporter,
        dim=dim,
        k=k,
        edge_recall=edge_recall,
        rival=rival,
        rival_queries=rival_queries,
        hnsw_faces=hnsw_faces,
        workers=workers,
        seed=seed,
        work=work,
    )
    publish(console, result, json_output=json_output, out=out)
