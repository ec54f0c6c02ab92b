"""The commands of `facescale bench`: parse, call, print. Mounted by the command line as `facescale bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from facescale.bench.cli_neighbors import neighbors
from facescale.bench.cli_shared import (
    CalibratedEmbedder,
    Detector,
    Embedder,
    Limit,
    MinFacePx,
    Out,
    Photos,
    Work,
    run,
)
from facescale.bench.cli_speed import gpu, peers
from facescale.cli_options import DetThreshold, JsonFlag, Runtime, Verbose, WeightsDir, set_up_logging
from facescale.errors import UsageError

if TYPE_CHECKING:
    from facescale.bench.chosen import Models

bench_app = typer.Typer(
    help="Measurements you can rerun on your own photographs; docs/BENCHMARKS.md says how to read them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@bench_app.command()
def oracle(
    photos: Photos,
    limit: Limit = None,
    upsample: Annotated[
        int, typer.Option(help="0: faces from 80 px. 1: from 40 px, four times as slow.")
    ] = 0,
    save: Annotated[
        str | None, typer.Option(help="Keep dlib's answers in this file, and take those it holds from there.")
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(help="Leave larger photographs out: dlib takes minutes.")
    ] = 2_000_000,
    processes: Annotated[int | None, typer.Option(min=1, help="Of dlib; default: one a core.")] = None,
    out: Out = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Compare boxes, landmarks and descriptors with those of dlib (package dlib-bin).

    dlib takes 0.4 s for a photograph of 250 x 250 px, 1.6 s with --upsample 1; an interrupted run with --save goes on
    where it was.
    """
    from facescale.bench.oracle import bench_oracle

    set_up_logging(verbose)
    run(
        bench_oracle,
        photos,
        json_output,
        out,
        limit=limit,
        upsample=upsample,
        save=save,
        max_pixels=max_pixels,
        processes=processes,
    )


@bench_app.command()
def extract(
    photos: Photos,
    limit: Limit = 1500,
    min_face_px: MinFacePx = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 3,
    rival: Annotated[bool, typer.Option(help="Measure the face_recognition package too.")] = True,
    rival_photos: Annotated[int, typer.Option(min=1, help="Photographs for it, in all: it is slow.")] = 12,
    rival_env: Annotated[
        str | None,
        typer.Option(help="Folder of its virtual environment, made if absent; default: in the user's cache."),
    ] = None,
    work: Work = None,
    out: Out = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Compare the speed of extract with a bare loop and with the face_recognition package, in turns, in one run.

    Installs the face_recognition package into a virtual environment of its own the first time.
    """
    from facescale.bench.speed import bench_extract

    set_up_logging(verbose)
    run(
        bench_extract,
        photos,
        json_output,
        out,
        limit=limit,
        min_face_px=min_face_px,
        rounds=rounds,
        rival_photos=rival_photos if rival else 0,
        rival_env=rival_env,
        work=work,
    )


bench_app.command()(peers)
bench_app.command()(gpu)


@bench_app.command()
def verification(
    photos: Photos,
    lake: Annotated[
        str | None, typer.Option(help="Lake to make or go on with; default: a temporary one.")
    ] = None,
    dlib: Annotated[
        str | None,
        typer.Option(help="File of `bench oracle --save`: judge coverage by overlap with its boxes."),
    ] = None,
    limit_pairs: Annotated[
        int | None, typer.Option(min=2, help="At most so many pairs, and only their photographs.")
    ] = None,
    detector: Detector = "dlib_mmod",
    embedder: Embedder = "dlib_resnet",
    det_threshold: DetThreshold = None,
    runtime: Runtime = None,
    weights_dir: WeightsDir = None,
    min_face_px: MinFacePx = 40,
    out: Out = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Verification, identification and coverage on labelled photographs, from a lake's tables and index.

    PHOTOS holds two files beside the photographs. labels.csv has the columns path (relative to PHOTOS), kind (single:
    one person is meant; noface; group; crowd), identity (who, for single; may be empty), n_faces (true number, for
    groups; may be empty). lfw_pairs.csv has path1, path2, same (1 or 0), fold (a number, of at least two).
    """
    from facescale.bench.verification import bench_verification

    set_up_logging(verbose)
    run(
        bench_verification,
        photos,
        json_output,
        out,
        lake=lake,
        dlib=dlib,
        limit_pairs=limit_pairs,
        models=_models(detector, embedder, min_face_px, det_threshold, runtime, weights_dir),
    )


@bench_app.command()
def memory(
    photos: Photos,
    sizes: Annotated[str, typer.Option(help="Numbers of photographs, with commas.")] = "2000,20000",
    min_face_px: MinFacePx = 80,
    workers: Annotated[int | None, typer.Option(min=1, help="Of extract; default: one a core.")] = None,
    limit: Limit = None,
    work: Work = None,
    out: Out = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Peak memory of extract at several sizes of input, made of the photographs under other names (Linux)."""
    from facescale.bench.memory import bench_memory

    set_up_logging(verbose)
    try:
        numbers = [int(size) for size in sizes.split(",")]
    except ValueError:
        raise UsageError(f"--sizes {sizes}: expected numbers with commas, e.g. 2000,20000") from None
    run(
        bench_memory,
        photos,
        json_output,
        out,
        sizes=numbers,
        min_face_px=min_face_px,
        workers=workers,
        limit=limit,
        work=work,
    )


@bench_app.command()
def clusters(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PHOTOS|LAKE",
            help="Photographs with labels.csv, or a lake with neighbors whose labels are right.",
        ),
    ],
    lake: Annotated[
        str | None, typer.Option(help="Lake to make of PHOTOS or go on with; default: a temporary one.")
    ] = None,
    detector: Detector = "dlib_mmod",
    embedder: CalibratedEmbedder = "dlib_resnet",
    det_threshold: DetThreshold = None,
    runtime: Runtime = None,
    weights_dir: WeightsDir = None,
    rival: Annotated[bool, typer.Option(help="Compare with the leidenalg package too.")] = True,
    rival_env: Annotated[
        str | None,
        typer.Option(help="Folder of its virtual environment, made if absent; default: in the user's cache."),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Thresholds that each of the others tries.")] = 33,
    min_face_px: MinFacePx = 40,
    out: Out = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Clusters at our one setting, beside connected components and Leiden at the thresholds that suit them best.

    PHOTOS holds labels.csv with the columns path (relative to PHOTOS), kind (single: one person is meant) and identity
    (empty where unknown). Installs leidenalg and igraph, which are under the GPL, into a virtual environment of their
    own the first time.
    """
    from facescale.bench.clusters import bench_clusters

    set_up_logging(verbose)
    run(
        bench_clusters,
        source,
        json_output,
        out,
        lake=lake,
        models=_models(detector, embedder, min_face_px, det_threshold, runtime, weights_dir),
        rival=rival,
        rival_env=rival_env,
        steps=steps,
    )


@bench_app.command()
def cleaning(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PHOTOS|LAKE", help="Photographs with labels.csv, or a lake with right labels."
        ),
    ],
    lake: Annotated[
        str | None, typer.Option(help="Lake to make of PHOTOS or go on with; default: a temporary one.")
    ] = None,
    detector: Detector = "dlib_mmod",
    embedder: CalibratedEmbedder = "dlib_resnet",
    det_threshold: DetThreshold = None,
    runtime: Runtime = None,
    weights_dir: WeightsDir = None,
    seeds: Annotated[int, typer.Option(min=1, max=10, help="Trials of each kind and rate of noise.")] = 5,
    min_photos: Annotated[int, typer.Option(min=2, help="Of an identity that gets a label.")] = 4,
    min_face_px: MinFacePx = 40,
    out: Out = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Plant label noise among photographs of known people, and clean it; beside CAST and the largest DBSCAN cluster.

    PHOTOS holds labels.csv with the columns path (relative to PHOTOS) and identity (empty where unknown).
    """
    from facescale.bench.cleaning import bench_cleaning

    set_up_logging(verbose)
    run(
        bench_cleaning,
        source,
        json_output,
        out,
        lake=lake,
        models=_models(detector, embedder, min_face_px, det_threshold, runtime, weights_dir),
        seeds=seeds,
        min_photos=min_photos,
    )


@bench_app.command("partial-fc")
def partial_fc(
    classes: Annotated[
        list[int] | None,
        typer.Option(min=2, help="Number of classes; repeatable. Default: 200,000 and 1,000,000."),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Share of classes that takes part; repeatable. Default: 0.1 and 1."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Faces of a step.")] = 128,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    steps: Annotated[int, typer.Option(min=1, help="Timed in each process.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Processes of each contender.")] = 3,
    out: Out = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Partial FC's head alone, forward, backward and update, beside the two public ways to do it.

    A million classes take 4 GiB for centers and momentum, and the others up to three times that.
    """
    from facescale.bench.partial_fc import bench_partial_fc
    from facescale.bench.results import publish
    from facescale.console import make_console

    set_up_logging(verbose)
    console, reporter = make_console(json_output=json_output)
    result = bench_partial_fc(
        reporter,
        classes=classes or (200_000, 1_000_000),
        rates=rate or (0.1, 1.0),
        batch=batch,
        device=device,
        steps=steps,
        rounds=rounds,
    )
    publish(console, result, json_output=json_output, out=out)


@bench_app.command()
def models(
    photos: Photos,
    lakes: Annotated[
        str | None,
        typer.Option(help="Folder for the lakes and rows, kept for the next run; default: a temporary one."),
    ] = None,
    detector: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    embedder: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    limit_pairs: Annotated[
        int | None, typer.Option(min=2, help="At most so many pairs, and few other photographs.")
    ] = None,
    min_face_px: MinFacePx = 40,
    workers: Annotated[int | None, typer.Option(min=0, help="Of extract; default: one a core.")] = None,
    weights_dir: Annotated[
        str | None, typer.Option(help="Folder with weights, searched before FACESCALE_WEIGHTS.")
    ] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Also models that are not for commercial use.")
    ] = False,
    out: Out = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Every detector and embedder whose weights are here, through the main job: faces found, people told apart, speed.

    PHOTOS holds labels.csv and lfw_pairs.csv, as for `bench verification`. An interrupted run with --lakes goes on
    where it was; speeds are those of the run that made the row.
    """
    from facescale.bench.models import bench_models

    set_up_logging(verbose)
    run(
        bench_models,
        photos,
        json_output,
        out,
        lakes=lakes,
        detectors=detector,
        embedders=embedder,
        limit_pairs=limit_pairs,
        min_face_px=min_face_px,
        workers=workers,
        weights_dir=weights_dir,
        accept_license=accept_license,
    )


bench_app.command()(neighbors)


def _models(*named: Any) -> Models:
    from facescale.bench.chosen import Models

    return Models(*named)
