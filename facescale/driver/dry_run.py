"""Plan a job and write nothing: which stages, which tables, how many parts are left, about how many bytes.

Bytes of tables that do not exist yet are estimates: rows times what a row took in the tables measured so far
(constants below), with the faces an image holds taken from the lake when it has some.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from facescale.config.job import NEEDS_SOURCE
from facescale.curate.calibration import require_calibration
from facescale.driver.annotate import plan_annotate
from facescale.driver.clean import clean_settings, find_inputs
from facescale.driver.cluster import plan_cluster
from facescale.driver.dedup import plan_dedup
from facescale.driver.embed import embedding_version
from facescale.driver.extract import import_plugins, other_settings, plan_extract, plan_report
from facescale.driver.imports import check_import, import_report, plan_import
from facescale.driver.index import index_settings
from facescale.driver.label import label_spec, label_version
from facescale.driver.models_used import check_licences
from facescale.driver.neighbors import is_calibrated, plan_neighbors
from facescale.driver.report import report_is_current
from facescale.errors import MismatchError, UsageError
from facescale.index.build import plan_index
from facescale.index.manifest import read_manifest
from facescale.index.plan import choose
from facescale.lake.fingerprint import parts_digest
from facescale.lake.lake import Lake
from facescale.lake.lake_file import REPORT_FILE, refuse_foreign_files
from facescale.lake.parts import list_done
from facescale.lake.scan import sum_counters
from facescale.lake.store import Store
from facescale.models.registry import card
from facescale.models.weights import use_weights_folder
from facescale.sources.plan import planned_parts, planned_rows

if TYPE_CHECKING:
    from facescale.config.job import JobConfig
    from facescale.driver.extract import ExtractPlan
    from facescale.sources.plan import PlanReport

FACES_PER_IMAGE = 1.3
IMAGE_BYTES = 160
FACE_BYTES = 90
CROP_BYTES = 9_000
LABEL_BYTES = 20
COPY_BYTES = 3  # a row is some 50 bytes, and one image in twenty a copy
NEIGHBOR_BYTES = 7  # id and similarity, compressed
CLUSTER_BYTES = 8  # ids and confidence, compressed
DECISION_BYTES = 30
ATTRIBUTE_BYTES = 4  # a column that is one number; lists take more
REPORT_BYTES = 3 << 20


@dataclass
class PlannedStage:
    """One line of a dry run."""

    stage: str
    tables: list[str]
    parts: int
    parts_done: int
    bytes: int
    note: str = ""


@dataclass
class DryRun:
    """What a job would do. Bytes are estimates where nothing is written yet."""

    job: str
    lake: str
    images: int
    stages: list[PlannedStage] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def plan_job(job: str, config: JobConfig) -> DryRun:
    """See facescale.pipeline.dry_run."""
    import_plugins(config.extract.plugins)
    try:
        lake = Lake.open(config.lake)
    except MismatchError:
        raise
    except UsageError:
        if job not in NEEDS_SOURCE:
            raise
        refuse_foreign_files(Store(config.lake))
        lake = Lake.create(f"memory://facescale-dry-run-{uuid.uuid4().hex}")
    plan = DryRun(job, config.lake, planned_rows(lake))
    if job == "import":
        _plan_import(lake, config, plan)
    elif job in NEEDS_SOURCE:
        _plan_extract(lake, config, plan)
    elif job == "embed":
        _plan_embed(lake, config, plan)
    elif job == "annotate":
        _plan_annotate(lake, config, plan)
    if job in ("run", "dedup"):
        _plan_dedup(lake, config, plan)
    if job == "neighbors" or (job == "run" and is_calibrated(config.neighbors.embedder, lake)):
        _plan_neighbors(lake, config, plan)
    if job == "cluster" or (job == "run" and _will_cluster(lake, config)):
        _plan_cluster(lake, config, plan)
    if job == "clean" or (job == "run" and _will_clean(lake, config)):
        _plan_clean(lake, config, plan)
    if job in ("run", "index"):
        _plan_index(lake, config, plan)
    if job == "report" or (job == "run" and config.report.enabled):
        done = job == "run" and not _something_before(plan) and report_is_current(lake, config.report)
        note = f"{REPORT_FILE}, of at most {config.report.max_mib} MiB"
        plan.stages.append(
            PlannedStage("report", ["report"], 1 - done, int(done), 0 if done else REPORT_BYTES, note)
        )
    if job == "export":
        note = f"{config.export.format} to {config.export.out}; which faces is decided when it runs"
        plan.stages.append(PlannedStage("export", [], 1, 0, _faces(lake, plan.images) * CROP_BYTES, note))
    return plan


def _plan_extract(lake: Lake, config: JobConfig, plan: DryRun) -> None:
    report: PlanReport = plan_report(lake, config, dry_run=True)
    plan.remarks += report.remarks()
    plan.images += report.new_members
    extract: ExtractPlan = plan_extract(lake, config.extract, report)
    if (remark := other_settings(lake, extract)) is not None:
        plan.remarks.append(remark)
    images_left, parts_left = report.new_members, report.new_parts
    for part in planned_parts(lake):
        if part.key not in extract.done:
            images_left, parts_left = images_left + part.key.num_rows, parts_left + 1
    faces = round(images_left * FACES_PER_IMAGE)
    dim = card(config.extract.embedder, "embedder").dim or 0
    tables = ["images", "faces", "crops"]
    size = images_left * IMAGE_BYTES + faces * (FACE_BYTES + CROP_BYTES)
    if not extract.from_crops:
        tables.append("embeddings")
        size += faces * (2 * dim + 12)
    note = f"{images_left:,} images with {config.extract.detector} and {config.extract.embedder}"
    plan.stages.append(PlannedStage("extract", tables, parts_left, len(extract.done), size, note))
    if extract.from_crops:
        _plan_embed(lake, config, plan)
    if (labels := label_spec(config.labels)) is not None:
        labeled = len(list_done(lake.store, label_version(labels.settings())))
        parts = parts_left + len(extract.done) - labeled
        size = plan.images * LABEL_BYTES if parts else 0
        plan.stages.append(PlannedStage("label", ["labels"], parts, labeled, size, f"from {labels.source}"))


def _plan_import(lake: Lake, config: JobConfig, plan: DryRun) -> None:
    check_import(config)
    found = plan_import(lake, config)
    report = import_report(lake, config, dry_run=True)
    plan.remarks += report.remarks()
    plan.images += report.new_members
    rows, parts = report.new_members, report.new_parts
    for part in planned_parts(lake):
        if part.key not in found.done:
            rows, parts = rows + part.key.num_rows, parts + 1
    size = rows * (IMAGE_BYTES // 4 + FACE_BYTES // 4 + 2 * found.settings.dim + 12)
    note = f"{rows:,} embeddings of {found.model}, {found.settings.dim} dimensions"
    tables = ["images", "faces", "embeddings"]
    plan.stages.append(PlannedStage("import", tables, parts, len(found.done), size, note))


def _plan_embed(lake: Lake, config: JobConfig, plan: DryRun) -> None:
    use_weights_folder(config.extract.weights_dir)
    check_licences(config.extract, "embed")
    images, faces = lake.current("images"), lake.current("faces")
    if images is None or faces is None:
        raise UsageError(
            f"{lake.uri} has no finished faces yet: run `facescale extract SRC {lake.uri}` first"
        )
    output = embedding_version(lake, config.extract, faces=faces, pixels="crops")
    wanted, done = list_done(lake.store, images), list_done(lake.store, output)
    dim = card(config.extract.embedder, "embedder").dim or 0
    size = _faces(lake, plan.images) * (2 * dim + 12)
    left = len(wanted) - len(done)
    plan.stages.append(PlannedStage("embed", ["embeddings"], left, len(done), size, config.extract.embedder))


def _plan_annotate(lake: Lake, config: JobConfig, plan: DryRun) -> None:
    for entry in plan_annotate(lake, config):
        wanted, done = list_done(lake.store, entry.images), list_done(lake.store, entry.output)
        left, names = len(wanted) - len(done), [column["name"] for column in entry.settings["columns"]]
        size = _faces(lake, plan.images) * ATTRIBUTE_BYTES * len(names) if left else 0
        note = f"{entry.card.name}: {', '.join(names)}"
        plan.stages.append(PlannedStage("annotate", ["attributes"], left, len(done), size, note))


def _plan_dedup(lake: Lake, config: JobConfig, plan: DryRun) -> None:
    done = 0
    if not _something_before(plan):
        images = lake.current("images")
        if images is None:
            raise UsageError(
                f"{lake.uri} has no finished images yet: run `facescale extract SRC {lake.uri}` first"
            )
        _, _, version = plan_dedup(lake, config.dedup, images, list_done(lake.store, images))
        done = len(list_done(lake.store, version))
    note = f"PDQ up to {config.dedup.max_distance} bits"
    _add_whole(lake, plan, "dedup", "duplicates", done, plan.images * COPY_BYTES, note)


def _plan_neighbors(lake: Lake, config: JobConfig, plan: DryRun) -> None:
    done = 0
    note = f"{config.neighbors.k} of each face, {config.neighbors.embedder}"
    if not _something_before(plan):
        device = "cuda" if config.engine.device == "cuda" else "cpu"
        planned = plan_neighbors(lake, config.neighbors, device=lambda: device)
        done = len(planned.done)
        if planned.cells is not None:
            chosen = planned.cells.chosen
            note += f", {chosen.why}, with {chosen.scratch_bytes / 2**30:.1f} GiB of scratch files on the way"
    size = _faces(lake, plan.images) * config.neighbors.k * NEIGHBOR_BYTES
    _add_whole(lake, plan, "neighbors", "neighbors", done, size, note)


def _will_cluster(lake: Lake, config: JobConfig) -> bool:
    listed = config.cluster.embedder == config.neighbors.embedder
    return listed and is_calibrated(config.cluster.embedder, lake)


def _plan_cluster(lake: Lake, config: JobConfig, plan: DryRun) -> None:
    done = 0
    if not _something_before(plan):
        done = len(plan_cluster(lake, config.cluster).done)
    size = _faces(lake, plan.images) * CLUSTER_BYTES
    _add_whole(lake, plan, "cluster", "clusters", done, size, config.cluster.embedder)


def _will_clean(lake: Lake, config: JobConfig) -> bool:
    labeled = config.labels.source is not None or lake.current("labels") is not None
    return labeled and is_calibrated(config.clean.embedder, lake)


def _plan_clean(lake: Lake, config: JobConfig, plan: DryRun) -> None:
    done = 0
    if not _something_before(plan):
        inputs = find_inputs(lake, config.clean)
        settings = clean_settings(config.clean, require_calibration(config.clean.embedder, lake))
        done = _done_of_current(lake, "decisions", config.clean.embedder, settings, inputs.fingerprints())
    size = _faces(lake, plan.images) * DECISION_BYTES
    note = f"{config.clean.method}, {config.clean.embedder}"
    _add_whole(lake, plan, "clean", "decisions", done, size, note)


def _done_of_current(
    lake: Lake, table: str, model: str, settings: dict[str, Any], inputs: dict[str, str]
) -> int:
    """Parts of a table's current version, if it is what these settings make of what there is now; else 0."""
    version, images = lake.current(table, model), lake.current("images")
    described = (lake.describe_version(version) if version else None) or {}
    made_with = described.get("settings", {})
    if version is None or images is None or described.get("inputs") != inputs:
        return 0
    settings = settings | {"parts": parts_digest(list_done(lake.store, images).pairs())}
    same = all(made_with.get(name) == value for name, value in settings.items())
    return len(list_done(lake.store, version)) if same else 0


def _something_before(plan: DryRun) -> bool:
    """Whether an earlier stage of the job has work: then a stage that needs everything has all of its own to do."""
    return any(stage.parts > 0 for stage in plan.stages)


def _add_whole(lake: Lake, plan: DryRun, stage: str, table: str, done: int, size: int, note: str) -> None:
    """A stage with a part for each part of images."""
    images = lake.current("images")
    extract = [(entry.parts, entry.parts_done) for entry in plan.stages if entry.stage == "extract"]
    total = sum(extract[0]) if extract else len(list_done(lake.store, images)) if images else 0
    left = total - done
    plan.stages.append(PlannedStage(stage, [table], left, done, size if left else 0, note))


def _plan_index(lake: Lake, config: JobConfig, plan: DryRun) -> None:
    settings = index_settings(config)
    if any(stage.parts > 0 for stage in plan.stages if stage.stage in ("extract", "embed")):
        chosen = choose(  # over faces that are not there yet
            _faces(lake, plan.images),
            card(config.index.embedder, "embedder").dim or 0,
            memory_bytes=settings.memory_bytes,
            recall_target=settings.recall_target,
            backend=settings.backend,
            shard_vectors=settings.shard_vectors,
        )
        parts, done = chosen.num_shards, 0
    else:
        build = plan_index(lake, config.index.embedder, settings, write=False)
        chosen, finished = build.plan, read_manifest(lake.store, build.version) is not None
        parts, done = (0, len(build.shards)) if finished else (len(build.shards), 0)
    plan.stages.append(
        PlannedStage("index", ["index"], parts, done, chosen.estimated_bytes if parts else 0, chosen.why)
    )


def _faces(lake: Lake, images: int) -> int:
    current = lake.current("images")
    counted = sum_counters(lake, current) if current is not None else {}
    if not counted.get("images"):
        return round(images * FACES_PER_IMAGE)
    return round(images * counted.get("faces", 0) / counted["images"])
