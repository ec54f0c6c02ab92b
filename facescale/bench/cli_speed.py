"""The commands `facescale bench peers` and `gpu`: parse, call, print. Mounted by facescale.bench.cli."""

from __future__ import annotations

from typing import Annotated

import typer

from facescale.bench.cli_shared import Limit, MinFacePx, Out, Photos, Work, run
from facescale.cli_options import JsonFlag, Verbose, set_up_logging


def peers(
    photos: Photos,
    limit: Limit = 1500,
    copies: Annotated[
        int, typer.Option(min=1, help="Times that extract sees each photograph, under other names.")
    ] = 8,
    min_face_px: MinFacePx = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 3,
    rival: Annotated[bool, typer.Option(help="Measure the face_recognition package too.")] = True,
    rival_photos: Annotated[int, typer.Option(min=1, help="Photographs for it, in all: it is slow.")] = 12,
    rival_env: Annotated[
        str | None,
        typer.Option(help="Folder of its virtual environment, made if absent; default: in the user's cache."),
    ] = None,
    plain_env: Annotated[
        str | None, typer.Option(help="Folder of the plain loop's virtual environment; likewise.")
    ] = None,
    weights_dir: Annotated[
        str | None, typer.Option(help="Folder with the weights; default: where they are found otherwise.")
    ] = None,
    work: Work = None,
    out: Out = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """YuNet and MobileFaceNet through extract, beside the face_recognition package and loops over the same files.

    The plain loop takes one photograph, then one face, at a time, with ONNX Runtime's own settings; the bare loop takes
    batches, with extract's functions. All take turns, in one run.
    """
    from facescale.bench.peers import bench_peers

    set_up_logging(verbose)
    run(
        bench_peers,
        photos,
        json_output,
        out,
        limit=limit,
        copies=copies,
        min_face_px=min_face_px,
        rounds=rounds,
        rival_photos=rival_photos if rival else 0,
        rival_env=rival_env,
        plain_env=plain_env,
        weights_dir=weights_dir,
        work=work,
    )


def gpu(
    photos: Annotated[
        str | None,
        typer.Argument(metavar="[PHOTOS]", help="Photographs whose faces are embedded in bf16 and in fp32."),
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, cuda:N, or cpu for an emulation.")] = "cuda",
    detector: Annotated[str, typer.Option(help="Its weights must be here.")] = "yunet_n",
    embedder: Annotated[
        str, typer.Option(help="Random weights in its architecture where its own are not here.")
    ] = "mobilefacenet",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    images: Annotated[int, typer.Option(min=1, help="Photographs a round; they are made up.")] = 1024,
    width_px: Annotated[int, typer.Option(min=32, help="Of each.")] = 1280,
    height_px: Annotated[int, typer.Option(min=32, help="Of each.")] = 720,
    faces_per_image: Annotated[int, typer.Option(min=1, help="Faces of each.")] = 2,
    micro_batch: Annotated[int, typer.Option(min=1, help="Photographs detected together.")] = 32,
    embed_batch: Annotated[int, typer.Option(min=1, help="Faces embedded together.")] = 128,
    decode_threads: Annotated[int | None, typer.Option(min=1, help="Default: one a CPU.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of everything; the best counts.")] = 3,
    weights_dir: Annotated[
        str | None, typer.Option(help="Folder with the weights; default: where they are found otherwise.")
    ] = None,
    work: Work = None,
    out: Out = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Each step of extract alone, their sum, the pipeline of them, and how busy the GPU is."""
    from facescale.bench.gpu import bench_gpu

    set_up_logging(verbose)
    run(
        bench_gpu,
        photos,
        json_output,
        out,
        device=device,
        detector=detector,
        embedder=embedder,
        precision=precision,
        images=images,
        width_px=width_px,
        height_px=height_px,
        faces_per_image=faces_per_image,
        micro_batch=micro_batch,
        embed_batch=embed_batch,
        decode_threads=decode_threads,
        rounds=rounds,
        weights_dir=weights_dir,
        work=work,
    )
