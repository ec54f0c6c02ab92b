"""Drive extract: freeze the plan, name the versions, map the parts that are not done, account for every member.

Comes in: a JobContext with `src`. Goes out: images, faces, crops and embeddings, set as current, and a summary.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from facescale.driver.embed import embedding_settings, embedding_version, run_embed
from facescale.driver.failures import find_failures
from facescale.driver.models_used import (
    access_for_workers,
    card_to_run,
    cards_used,
    check_licences,
    licences_of,
)
from facescale.errors import CorruptError, UsageError
from facescale.lake.fingerprint import fingerprint
from facescale.lake.parts import DoneParts, TableVersion, list_done
from facescale.lake.scan import count_rows, sum_counters
from facescale.models.registry import card, choose_scheme
from facescale.models.weights import use_weights_folder, with_digest
from facescale.sources.plan import PlanReport, SourcePart, plan_sources, planned_parts, planned_rows
from facescale.sources.vector_plan import refuse_imported
from facescale.vision import extract as stage_module
from facescale.vision.columns import ExtractVersions
from facescale.vision.extract import ExtractSettings, ExtractStage
from facescale.vision.registry import check_quality_scorer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from facescale.config.extract import ExtractConfig
    from facescale.config.job import JobConfig
    from facescale.driver.context import JobContext, StageSummary
    from facescale.lake.lake import Lake

THREADS_WANTED = 1
"""One thread a worker: on CPUs, more workers beat more threads in each (facescale bench extract)."""

_TRANSIENT = ("transient", "unreadable", "source_changed")


@dataclass(frozen=True)
class ExtractPlan:
    """What extract will do: versions, what is done, and how embeddings come about."""

    versions: ExtractVersions
    settings: dict[str, Any]
    requested: dict[str, Any]
    embeddings: TableVersion
    done: DoneParts
    report: PlanReport

    @property
    def from_crops(self) -> bool:
        """Whether embeddings are made from stored crops after extract, because faces are there without them."""
        return self.versions.embeddings is None


def plan_extract(lake: Lake, config: ExtractConfig, report: PlanReport) -> ExtractPlan:
    """Name the versions that these settings make, and find out what is done. Reads one listing per table."""
    import_plugins(config.plugins)
    use_weights_folder(config.weights_dir)
    check_licences(config, "extract")
    requested, settings = extract_settings(config)
    name = fingerprint("extract", settings, stage_module.REVISION, {})
    images, faces, crops = (TableVersion(table, name) for table in ("images", "faces", "crops"))
    done = list_done(lake.store, images)
    embeddings = embedding_version(lake, config, faces=faces, pixels="source")
    if done and not list_done(lake.store, embeddings).covers(done):
        # Another embedder's run made these faces. They are not detected again: embeddings come from the crops.
        from_crops = embedding_version(lake, config, faces=faces, pixels="crops")
        versions = ExtractVersions(images, faces, crops, None)
        return ExtractPlan(versions, settings, requested, from_crops, done, report)
    versions = ExtractVersions(images, faces, crops, embeddings)
    return ExtractPlan(versions, settings, requested, embeddings, done, report)


def extract_settings(config: ExtractConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that change images, faces and crops: as requested (with auto) and as resolved.

    They share one fingerprint because a part's tables are written and committed together; so another quality scorer,
    which changes faces alone, makes all of them anew, and the embeddings, whose ids refer to those faces.
    """
    detector = card_to_run(config.detector, "detector", config.runtime)
    landmarker, embedder = card(config.landmarker, "landmarker"), card(config.embedder, "embedder")
    scheme, from_detector = choose_scheme(detector, landmarker, embedder)
    check_quality_scorer(config.quality_scorer)
    requested: dict[str, Any] = {
        "detector": detector.name,
        "detector_sha256": detector.sha256,
        "landmark_scheme": scheme,
        "min_face_px": config.min_face_px,
        "quality_scorer": config.quality_scorer,
        "precision": config.precision,
        "backend": detector.backend,
        "max_bytes": config.max_bytes,
        "max_pixels": config.max_pixels,
    }
    if detector.parts:
        requested["detector_parts_sha256"] = {
            part: with_digest(own).sha256 for part, own in detector.parts.items()
        }
    if config.det_threshold is not None:
        requested["det_threshold"] = config.det_threshold
    if not from_detector:
        requested |= {"landmarker": landmarker.name, "landmarker_sha256": with_digest(landmarker).sha256}
    return requested, requested | {"precision": config.arithmetic}


def import_plugins(modules: tuple[str, ...]) -> None:
    """Import the modules that register further models.

    Raises:
        UsageError: one of them cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"plug-in {module} cannot be imported: {error}") from error


def plan_report(lake: Lake, config: JobConfig, *, dry_run: bool = False) -> PlanReport:
    """Freeze the plan of the job's source (unless it is a dry run); says what is new, changed, vanished, ignored."""
    if config.src is None:
        raise UsageError("extract needs a source: a folder, a tar, a Parquet file or a URL")
    refuse_imported(lake, "extract")
    return plan_sources(
        lake,
        config.src,
        accept_changes=config.accept_changes,
        dry_run=dry_run,
        part_rows=config.extract.part_rows,
    )


def run_extract(context: JobContext) -> list[StageSummary]:
    """Run extract to its end; resumes by itself. Returns its summary, and embed's when crops were embedded."""
    lake, config = context.lake, context.config
    report = plan_report(lake, config)
    for line in report.remarks():
        context.reporter.warn(line)
    plan = plan_extract(lake, config.extract, report)
    if (remark := other_settings(lake, plan)) is not None:
        context.reporter.say(remark)
    if config.retry_failed:
        retry_failed(context, plan.done, plan.versions.images, [plan.versions.faces, plan.versions.crops])
        plan = plan_extract(lake, config.extract, report)
    record_versions(lake, plan, config.extract)
    left = [0, 0]
    for part in _to_do(lake, plan.done):
        left[0] += 1
        left[1] += part.key.num_rows
    # Nothing to do must not start Ray, unless the answer is that the device asked for is not there.
    device = context.device if left[0] or config.engine.device == "cuda" else "cpu"
    stage = ExtractStage(_stage_settings(config.extract, device), lake.store, plan.versions)
    summary = context.map(
        stage,
        _to_do(lake, plan.done),
        num_parts=left[0],
        items=left[1],
        unit="images",
        device=device,
        threads_wanted=THREADS_WANTED,
    )
    summary.parts_kept = len(plan.done)
    summaries = [summary]
    if not summary.left_over:
        made = [plan.versions.faces, plan.versions.crops, plan.versions.images]
        if plan.versions.embeddings is not None:
            made.append(plan.versions.embeddings)
        _account(lake, plan, summary)
        summary.failures = find_failures(lake, plan.versions.images, summary.counters)
        lake.set_current(made)
        summary.tables = {version.table: version.folder for version in made}
        if plan.from_crops:
            context.reporter.say(
                f"the faces were there already: {config.extract.embedder} embeds them from the stored crops"
            )
            summaries.append(run_embed(context))
    return summaries


def other_settings(lake: Lake, plan: ExtractPlan) -> str | None:
    """What to tell when the settings are not those of the current tables; None when they are, or there are none.

    A slip in a flag costs a whole crawl's work without being an error, so it is said before the work begins.
    """
    current = lake.current("images")
    if current is None or current == plan.versions.images:
        return None
    before = (lake.describe_version(current) or {}).get("settings", {})
    differing = sorted(
        name for name in {*before, *plan.settings} if before.get(name) != plan.settings.get(name)
    )
    shown = [
        f"{name} {before.get(name)} → {plan.settings.get(name)}"
        for name in differing
        if not name.endswith("_sha256")
    ]
    what = ", ".join(shown) or ", ".join(differing) or "the same settings, but results of another revision"
    return (
        f"{lake.uri}: not the settings of its current tables ({what}): {plan.versions.images.folder} and its "
        "siblings are made beside them; `facescale lake use` brings the old ones back, `facescale lake prune` "
        "removes what is not current"
    )


def record_versions(lake: Lake, plan: ExtractPlan, config: ExtractConfig) -> None:
    """Write what made each version into its folder, once."""
    licences = licences_of(cards_used(config, "extract"))
    for version in (plan.versions.images, plan.versions.faces, plan.versions.crops):
        lake.write_version(
            version,
            stage="extract",
            settings=plan.settings,
            revision=stage_module.REVISION,
            inputs={},
            requested=plan.requested,
            licences=licences,
        )
    if plan.versions.embeddings is not None:
        lake.write_version(
            plan.versions.embeddings,
            stage="extract",
            settings=embedding_settings(config, pixels="source"),
            revision=stage_module.REVISION,
            inputs={"faces": plan.versions.faces.fingerprint},
            licences=licences_of(cards_used(config, "embed")),
        )


def retry_failed(
    context: JobContext, done: DoneParts, images: TableVersion, siblings: Sequence[TableVersion]
) -> int:
    """Undo the parts that hold images with a transient status: downstream first, then images, then the siblings."""
    lake = context.lake
    downstream = [info.version for info in lake.versions() if info.version.table == "embeddings"]
    count = 0
    for part in done.parts():
        counters = sum_counters(lake, images, [part])
        if not any(counters.get(f"status.{status}") for status in _TRANSIENT):
            continue
        for version in [*downstream, images, *siblings]:
            path = version.part_path(part)
            if lake.store.exists(path):
                lake.store.delete(path)
        count += 1
    context.reporter.say(f"{count} parts with {', '.join(_TRANSIENT)} images will run again")
    return count


def _to_do(lake: Lake, done: DoneParts) -> Iterator[SourcePart]:
    return (part for part in planned_parts(lake) if part.key not in done)


def _stage_settings(c: ExtractConfig, device: str) -> ExtractSettings:
    return ExtractSettings(
        detector=c.detector,
        landmarker=c.landmarker,
        embedder=c.embedder,
        min_face_px=c.min_face_px,
        quality_scorer=c.quality_scorer,
        precision=c.arithmetic,
        max_bytes=c.max_bytes,
        max_pixels=c.max_pixels,
        device=device,
        micro_batch=c.micro_batch,
        embed_batch=c.embed_batch,
        decode_threads=c.decode_threads,
        detect_ahead=device != "cpu",
        plugins=c.plugins,
        runtime=c.runtime,
        accelerate=c.accelerate,
        flip=c.flip,
        trust=c.trust,
        det_threshold=c.det_threshold,
        weights_dir=c.weights_dir,
        models=access_for_workers(c, "extract"),
    )


def _account(lake: Lake, plan: ExtractPlan, summary: StageSummary) -> None:
    """Check that planned members are rows of images, and sum the counters of the whole table.

    Raises:
        CorruptError: rows are missing or too many, which no sequence of kills and resumes can cause.
    """
    images = plan.versions.images
    planned, rows = planned_rows(lake), count_rows(lake, images)
    if planned != rows:
        raise CorruptError(
            f"{images.folder} has {rows} rows where {planned} were planned: run `facescale lake verify {lake.uri}`"
        )
    summary.counters = sum_counters(lake, images)
