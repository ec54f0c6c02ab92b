"""Drive embed: another model over the stored crops; no image is read or detected again.

Comes in: a lake with current faces and crops. Goes out: an embeddings version of the model, set as current.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from facescale.driver.models_used import (
    access_for_workers,
    card_to_run,
    cards_used,
    check_licences,
    fetch_weights,
    licences_of,
)
from facescale.errors import MismatchError, UsageError
from facescale.lake.fingerprint import fingerprint
from facescale.lake.parts import TableVersion, list_done
from facescale.lake.scan import count_rows, sum_counters
from facescale.models.registry import card
from facescale.models.weights import use_weights_folder
from facescale.sources.vector_plan import refuse_imported
from facescale.vision import embed as stage_module
from facescale.vision import extract as source_module
from facescale.vision.embed import EmbedSettings, EmbedStage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from facescale.config.extract import ExtractConfig
    from facescale.driver.context import JobContext, StageSummary
    from facescale.lake.lake import Lake
    from facescale.lake.parts import PartKey


def embedding_settings(config: ExtractConfig, *, pixels: str) -> dict[str, Any]:
    """The settings that change embeddings; `pixels` is "source" (during extract) or "crops" (afterwards)."""
    embedder = card_to_run(config.embedder, "embedder", config.runtime)
    # Named where they are not the default, and change more than speed.
    others: dict[str, Any] = {"flip": True} if config.flip else {}
    if config.accelerate in ("compile", "tensorrt"):
        others["accelerate"] = config.accelerate
    return others | {
        "embedder": embedder.name,
        "embedder_sha256": embedder.sha256,
        "template": embedder.template,
        "precision": config.arithmetic,
        "backend": embedder.backend,
        "pixels": pixels,
    }


def embedding_version(lake: Lake, config: ExtractConfig, *, faces: TableVersion, pixels: str) -> TableVersion:
    """The embeddings version that these settings make of these faces."""
    revision = source_module.REVISION if pixels == "source" else stage_module.REVISION
    settings = embedding_settings(config, pixels=pixels)
    name = fingerprint("embed", settings, revision, {"faces": faces.fingerprint})
    return TableVersion("embeddings", name, config.embedder)


def run_embed(context: JobContext) -> StageSummary:
    """Embed every face of the current faces version; resumes by itself.

    Raises:
        UsageError: the lake has no faces yet.
        MismatchError: the model is aligned by landmarks the faces do not have.
    """
    from facescale.driver.extract import import_plugins

    lake, config = context.lake, context.config.extract
    import_plugins(config.plugins)
    use_weights_folder(config.weights_dir)
    refuse_imported(lake, "embed")
    check_licences(config, "embed")
    faces, crops, images = lake.current("faces"), lake.current("crops"), lake.current("images")
    if faces is None or crops is None or images is None:
        raise UsageError(
            f"{lake.uri} has no finished faces yet: run `facescale extract SRC {lake.uri}` first"
        )
    _check_scheme(lake, faces, config.embedder)
    fetch_weights(context.config, "embed", context.reporter)
    output = embedding_version(lake, config, faces=faces, pixels="crops")
    lake.write_version(
        output,
        stage="embed",
        settings=embedding_settings(config, pixels="crops"),
        revision=stage_module.REVISION,
        inputs={"faces": faces.fingerprint, "crops": crops.fingerprint},
        licences=licences_of(cards_used(config, "embed")),
    )
    wanted, done = list_done(lake.store, images), list_done(lake.store, output)

    def to_do() -> Iterator[PartKey]:
        return (part for part in wanted.parts() if part not in done)

    left = sum(1 for _ in to_do())
    device = context.device if left or context.config.engine.device == "cuda" else "cpu"
    settings = EmbedSettings(
        embedder=config.embedder,
        precision=config.arithmetic,
        device=device,
        embed_batch=config.embed_batch,
        decode_threads=config.decode_threads,
        plugins=config.plugins,
        runtime=config.runtime,
        accelerate=config.accelerate,
        flip=config.flip,
        trust=config.trust,
        weights_dir=config.weights_dir,
        models=access_for_workers(config, "embed"),
    )
    summary = context.map(
        EmbedStage(settings, lake.store, faces=faces, crops=crops, output=output),
        to_do(),
        num_parts=left,
        items=sum_counters(lake, images, to_do()).get("faces", 0),
        unit="faces",
        device=device,
    )
    summary.parts_kept = len(wanted) - left
    if not summary.left_over:
        summary.counters = {"faces": count_rows(lake, output)}
        lake.set_current([output])
        summary.tables = {"embeddings": output.folder}
    return summary


def _check_scheme(lake: Lake, faces: TableVersion, embedder_name: str) -> None:
    embedder = card(embedder_name, "embedder")
    made_by = lake.describe_version(faces) or {}
    scheme = made_by.get("settings", {}).get("landmark_scheme")
    if scheme != embedder.landmark_scheme:
        raise MismatchError(
            f"embedder {embedder.name} is aligned by {embedder.landmark_scheme} landmarks, but the faces of "
            f"{lake.uri} have {scheme} landmarks: extract with a detector or landmarker that gives "
            f"{embedder.landmark_scheme}"
        )
