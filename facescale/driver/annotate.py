"""Drive annotate: other models over the stored crops, each with a table of its own; no image is read or detected again.

Comes in: a lake with current faces and crops, and the cards of the models. Goes out: a version of attributes for each,
set as current.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facescale.driver.models_used import fetch_cards, licences_of, refuse_licences
from facescale.errors import UsageError
from facescale.lake.fingerprint import fingerprint
from facescale.lake.parts import TableVersion, list_done
from facescale.lake.scan import count_rows, sum_counters
from facescale.models.access import ModelAccess, current
from facescale.models.annotator_card import annotator_part
from facescale.models.card import read_card
from facescale.models.registry import card as find_card
from facescale.models.weights import find_weights, sha256_of, use_weights_folder
from facescale.sources.vector_plan import refuse_imported
from facescale.vision import annotate as stage_module
from facescale.vision.annotate import AnnotateSettings, AnnotateStage
from facescale.vision.annotator_chips import check_crop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from facescale.config.job import JobConfig
    from facescale.driver.context import JobContext, Reporter, StageSummary
    from facescale.lake.lake import Lake
    from facescale.lake.parts import PartKey
    from facescale.models.card import ModelCard


@dataclass(frozen=True)
class AnnotatePlan:
    """What one annotator makes of a lake.

    Attributes:
        card: for the backend that is meant.
        weights_dirs: folders that are searched for its weights.
        scheme: landmark scheme of the faces.
        faces: what is annotated.
        crops: what it is annotated from.
        images: whose parts say what there is.
        settings: what goes into the fingerprint.
        output: the version that this makes.
    """

    card: ModelCard
    weights_dirs: tuple[str, ...]
    scheme: str
    faces: TableVersion
    crops: TableVersion
    images: TableVersion
    settings: dict[str, Any]
    output: TableVersion


def plan_annotate(lake: Lake, config: JobConfig, reporter: Reporter | None = None) -> list[AnnotatePlan]:
    """What the annotators of a configuration make of a lake's current faces; nothing is written to the lake.

    Args:
        lake: the lake.
        config: of the job.
        reporter: is told of weights that are downloaded; None downloads none of cards that give their sha256.

    Raises:
        UsageError: no annotator is named, two have one name, a card is wrong or not there, or the lake has no faces.
        MismatchError: a card's template is for other landmarks than the faces have.
    """
    wanted = config.annotate.annotators
    if not wanted:
        raise UsageError(
            "no annotator is named: --with NAME, or --with CARD.yaml, as often as there are models"
        )
    faces, crops, images = lake.current("faces"), lake.current("crops"), lake.current("images")
    if faces is None or crops is None or images is None:
        raise UsageError(
            f"{lake.uri} has no finished faces yet: run `facescale extract SRC {lake.uri}` first"
        )
    refuse_imported(lake, "annotate")
    scheme = (lake.describe_version(faces) or {}).get("settings", {}).get("landmark_scheme", "")
    found = [_find_card(name, config) for name in wanted]
    names = [card.name for card, _ in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"the annotator {sorted(twice)[0]!r} is named twice: tables bear its name")
    refuse_licences([card for card, _ in found], accepted=config.extract.accept_license)
    for _, folders in found:
        for folder in folders:
            use_weights_folder(folder)
    for card, _ in found:
        check_crop(card, annotator_part(card), scheme)
    if reporter is not None:
        fetch_cards([card for card, _ in found], config, reporter)
    return [_plan(config, card, folders, scheme, faces, crops, images) for card, folders in found]


def run_annotate(context: JobContext) -> list[StageSummary]:
    """Annotate every face of the current faces version with each model; resumes by itself.

    Raises:
        UsageError, MismatchError: as `plan_annotate`; nothing was written then.
    """
    from facescale.driver.extract import import_plugins

    import_plugins(context.config.extract.plugins)
    return [_run(context, plan) for plan in plan_annotate(context.lake, context.config, context.reporter)]


def _find_card(name: str, config: JobConfig) -> tuple[ModelCard, tuple[str, ...]]:
    """The card that --with names, for what runs it, and the folders that are searched for its weights."""
    extract = config.extract
    folders = () if extract.weights_dir is None else (extract.weights_dir,)
    if not name.endswith((".yaml", ".yml")):
        return find_card(name, "annotator").preferring(extract.runtime), folders
    card = read_card(Path(name))
    if card.task != "annotator":
        raise UsageError(f"{name} is a card of task {card.task}, expected annotator")
    return card.preferring(extract.runtime), (str(Path(name).resolve().parent), *folders)


def _plan(
    config: JobConfig,
    card: ModelCard,
    folders: tuple[str, ...],
    scheme: str,
    faces: TableVersion,
    crops: TableVersion,
    images: TableVersion,
) -> AnnotatePlan:
    if card.sha256 is None:
        # Not recorded as that of a registered model: whoever trains one replaces the file, and makes another version.
        card = dataclasses.replace(card, sha256=sha256_of(find_weights(card)))
    part = annotator_part(card)
    settings = {
        "annotator": card.name,
        "architecture": card.architecture,
        "sha256": card.sha256,
        "options": dict(card.options),
        "input": [card.input_size, card.channel_order, list(card.mean), list(card.scale)],
        "template": card.template,
        "crop": None if part.crop is None else [*part.crop.eyes_at, part.crop.eye_distance],
        "precision": config.extract.arithmetic,
        "backend": card.backend,
        "columns": part.declared(),
    }
    inputs = {"faces": faces.fingerprint, "crops": crops.fingerprint}
    made = fingerprint("annotate", settings, stage_module.REVISION, inputs)
    output = TableVersion("attributes", made, card.name)
    return AnnotatePlan(card, folders, scheme, faces, crops, images, settings, output)


def _run(context: JobContext, plan: AnnotatePlan) -> StageSummary:
    lake, config = context.lake, context.config
    lake.write_version(
        plan.output,
        stage="annotate",
        settings=plan.settings,
        revision=stage_module.REVISION,
        inputs={"faces": plan.faces.fingerprint, "crops": plan.crops.fingerprint},
        licences=licences_of([plan.card]),
    )
    wanted, done = list_done(lake.store, plan.images), list_done(lake.store, plan.output)

    def to_do() -> Iterator[PartKey]:
        return (part for part in wanted.parts() if part not in done)

    left = sum(1 for _ in to_do())
    device = context.device if left or config.engine.device == "cuda" else "cpu"
    settings = AnnotateSettings(
        card=plan.card,
        scheme=plan.scheme,
        precision=config.extract.arithmetic,
        device=device,
        batch=config.annotate.batch,
        decode_threads=config.extract.decode_threads,
        plugins=config.extract.plugins,
        weights_dirs=plan.weights_dirs,
        models=ModelAccess(offline=current().offline),
    )
    summary = context.map(
        AnnotateStage(settings, lake.store, faces=plan.faces, crops=plan.crops, output=plan.output),
        to_do(),
        num_parts=left,
        items=sum_counters(lake, plan.images, to_do()).get("faces", 0),
        unit="faces",
        device=device,
    )
    summary.parts_kept = len(wanted) - left
    if not summary.left_over:
        counted = sum_counters(lake, plan.output)
        summary.counters = {"faces": count_rows(lake, plan.output)}
        summary.counters |= {name: counted[name] for name in ("not_finite", "poison") if counted.get(name)}
        if broken := summary.counters.get("not_finite"):
            summary.notes.append(
                f"{plan.card.name} gave no finite number for {broken:,} faces: their status is not_finite, what is "
                "missing is null"
            )
        lake.set_current([plan.output])
        summary.tables = {"attributes": plan.output.folder}
    return summary
