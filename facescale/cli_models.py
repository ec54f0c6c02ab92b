"""The commands of `facescale models`: parses, calls, prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from facescale.cli_options import JsonFlag, Offline, Plugin, Precision, Runtime, Verbose, set_up_logging

if TYPE_CHECKING:
    from facescale.driver.models import ModelRow, Pulled

models_app = typer.Typer(
    help="The models facescale knows, their weights, and your own.", no_args_is_help=True
)

Names = Annotated[list[str], typer.Argument(metavar="NAME…", help="Models, by registry name.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(models_app, name="models")


@models_app.command("list")
def models_list(
    task: Annotated[str | None, typer.Option(help="detector, landmarker or embedder.")] = None,
    plugin: Plugin = None,
    json_output: JsonFlag = False,
) -> None:
    """The models in the registry: what they do, under which licence, and whether their weights are here."""
    from facescale import console
    from facescale.driver.models import list_models

    _import(plugin)
    rows = list_models(task)
    out, _ = console.make_console(json_output=json_output)
    if json_output:
        console.print_json(rows)
        return
    table = [
        (
            row.name,
            row.task,
            ", ".join(row.runtimes),
            _licence(row),
            "" if row.size_bytes is None else console.human_bytes(row.size_bytes),
            row.weights,
        )
        for row in rows
    ]
    console.print_table(out, ["name", "task", "runs in", "licence", "size", "weights"], table)


@models_app.command("show")
def models_show(
    name: Annotated[str, typer.Argument(help="Registry name.")],
    plugin: Plugin = None,
    json_output: JsonFlag = False,
) -> None:
    """One model's card, and where its weights are."""
    from facescale import console
    from facescale.driver.models import show_model

    _import(plugin)
    details = show_model(name)
    out, _ = console.make_console(json_output=json_output)
    if json_output:
        console.print_json(details)
        return
    fields = {
        key: ", ".join(map(str, value)) if isinstance(value, tuple) else value
        for key, value in details.card.items()
    }
    console.print_mapping(out, f"{name}, from {details.from_file}", fields)
    if details.recorded_sha256:
        console.print_mapping(out, "recorded at first use", {"sha256": details.recorded_sha256})
    console.print_mapping(out, "weights", details.weights)


@models_app.command("pull")
def models_pull(
    names: Names,
    runtime: Annotated[str | None, typer.Option(help="torch, onnx or all; else the card's first.")] = None,
    offline: Offline = False,
    plugin: Plugin = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Download models' weights into the cache, and check them; what is there is only checked."""
    from facescale import console
    from facescale.driver.models import pull_models
    from facescale.models.access import ModelAccess, entered

    set_up_logging(verbose)
    _import(plugin)
    out, _ = console.make_console(json_output=json_output)
    with entered(ModelAccess(offline=offline)), console.transfers() as progress:
        rows = pull_models(names, runtime=runtime, progress=progress)
    if json_output:
        console.print_json(rows)
        return
    table = [
        (
            row.name,
            row.runtime,
            console.human_bytes(row.size_bytes),
            "downloaded" if row.downloaded else "was here",
            _licence(row),
            row.path,
        )
        for row in rows
    ]
    console.print_table(out, ["name", "for", "size", "", "licence", "weights"], table)


@models_app.command("verify")
def models_verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME…]", help="Models; without any, all whose weights are here."),
    ] = None,
    plugin: Plugin = None,
    json_output: JsonFlag = False,
) -> None:
    """Check the sha256 of models' weights; exits 1 when one is damaged or missing."""
    from facescale import console
    from facescale.driver.models import verify_models
    from facescale.errors import EXIT_DONE, EXIT_FAILED

    _import(plugin)
    rows = verify_models(names)
    out, _ = console.make_console(json_output=json_output)
    if json_output:
        console.print_json(rows)
    else:
        table = [(row.name, row.runtime, row.ok, row.found) for row in rows]
        console.print_table(out, ["name", "for", "ok", "found"], table)
    raise typer.Exit(EXIT_DONE if all(row.ok for row in rows) else EXIT_FAILED)


@models_app.command("register")
def models_register(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The weights: ONNX, state dict, safetensors.")],
    card: Annotated[str, typer.Option("--card", help="YAML that says what they are (docs/MODELS.md).")],
    link: Annotated[bool, typer.Option("--link", help="Leave the weights where they are.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="In place of your card of this name.")] = False,
    plugin: Plugin = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """Add a model of your own: its weights go into the cache, its card to your other cards."""
    from facescale import console
    from facescale.driver.models import register as register_own

    set_up_logging(verbose)
    _import(plugin)
    done = register_own(file, card, link=link, replace=replace)
    answer: dict[str, Any] = {
        "name": done.card.name,
        "task": done.card.task,
        "sha256": done.card.sha256,
        "card": str(done.card_path),
        "weights": str(done.weights_path),
        "remarks": list(done.remarks),
    }
    out, _ = console.make_console(json_output=json_output)
    if json_output:
        console.print_json(answer)
        return
    console.print_mapping(out, f"registered {done.card.name}", answer | {"remarks": "; ".join(done.remarks)})


@models_app.command("quantize")
def models_quantize(
    name: Annotated[str, typer.Argument(help="Embedder with an ONNX file, by registry name.")],
    lake: Annotated[str, typer.Argument(metavar="LAKE", help="Lake whose faces tell how far numbers go.")],
    new_name: Annotated[
        str | None, typer.Option("--as", help="Name of the new model; else NAME_int8.")
    ] = None,
    faces: Annotated[int, typer.Option(min=1, help="So many of them.")] = 256,
    replace: Annotated[bool, typer.Option("--replace", help="In place of your model of this name.")] = False,
    plugin: Plugin = None,
    json_output: JsonFlag = False,
    verbose: Verbose = False,
) -> None:
    """An embedder in 8-bit integers, for CPUs: a model of your own, faster and a little less accurate."""
    from facescale import console
    from facescale.driver.quantize import quantize_model

    set_up_logging(verbose)
    _import(plugin)
    done = quantize_model(name, lake, new_name=new_name, faces=faces, replace=replace)
    answer: dict[str, Any] = {
        "name": done.card.name,
        "sha256": done.card.sha256,
        "size_bytes": done.card.size_bytes,
        "card": str(done.card_path),
        "weights": str(done.weights_path),
    }
    out, _ = console.make_console(json_output=json_output)
    if json_output:
        console.print_json(answer)
        return
    console.print_mapping(out, f"quantized {name} to {done.card.name}", answer)


@models_app.command("bench")
def models_bench(
    name: Annotated[str, typer.Argument(help="Registry name.")],
    batch: Annotated[
        list[int] | None, typer.Option(help="Images or faces at once; repeatable; else 1, 8, 32.")
    ] = None,
    side_px: Annotated[int, typer.Option(help="Side of the images for detectors and landmarkers.")] = 640,
    min_face_px: Annotated[int, typer.Option(help="Smallest face, for detectors.")] = 40,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    precision: Precision = None,
    runtime: Runtime = None,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    seconds: Annotated[float, typer.Option(help="Time for each batch size.")] = 2.0,
    plugin: Plugin = None,
    json_output: JsonFlag = False,
) -> None:
    """A model's speed alone, on random pixels: no reading, decoding or storing."""
    from facescale import console
    from facescale.driver.model_bench import DEFAULT_BATCHES, bench_model

    _import(plugin)
    speed = bench_model(
        name,
        batches=batch or DEFAULT_BATCHES,
        side_px=side_px,
        min_face_px=min_face_px,
        device=device,
        precision=precision if precision not in (None, "auto") else "fp32",
        runtime=runtime or "auto",
        threads=threads,
        seconds=seconds,
    )
    out, _ = console.make_console(json_output=json_output)
    if json_output:
        console.print_json(speed)
        return
    out.print(
        f"{speed.name}: {speed.input}, {speed.runtime} on {speed.device}, {speed.precision}, "
        f"{speed.threads} threads",
        markup=False,
    )
    table = [
        (row.batch, f"{row.median_ms:.2f}", f"{row.fastest_ms:.2f}", f"{row.per_second:,.1f}", row.repeats)
        for row in speed.batches
    ]
    head = ["batch", "median ms", "fastest ms", f"{speed.unit}/s", "calls"]
    console.print_table(out, head, table)


def _licence(row: ModelRow | Pulled) -> str:
    return row.licence + (" (not for commercial use)" if row.non_commercial else "")


def _import(plugins: list[str] | None) -> None:
    from facescale.driver.extract import import_plugins

    import_plugins(tuple(plugins or ()))
