"""Drive import: embeddings made elsewhere become a lake that every later job accepts, part by part on the engine.

Comes in: a JobContext with `src` (Parquet, .npy or raw float32 files) and the model's name. Goes out: images, faces,
embeddings and, where there are labels, labels, set as current. There are no crops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from facescale.driver.failures import find_failures
from facescale.driver.label import run_label
from facescale.errors import CorruptError, MismatchError, UsageError
from facescale.lake.fingerprint import fingerprint
from facescale.lake.lineage import versions_of
from facescale.lake.parts import DoneParts, TableVersion, list_done
from facescale.lake.scan import count_rows, sum_counters
from facescale.lake.sources_table import shard_path
from facescale.models.registry import cards
from facescale.sources import vector_labels, vector_rows
from facescale.sources.containers import ContainerError
from facescale.sources.label_file import check_label_file, has_column
from facescale.sources.labels import FOLDER, LabelSpec
from facescale.sources.plan import SourcePart, check_source, plan_sources, planned_parts, planned_rows
from facescale.sources.uris import extension_of
from facescale.sources.vector_file import open_vectors
from facescale.sources.vector_labels import LINES, TABLES, ImportLabelsStage, RowLabels
from facescale.sources.vector_plan import dim_of, holds_vectors, vector_inputs
from facescale.sources.vector_rows import ImportSettings, ImportStage, ImportVersions
from facescale.sources.vector_shared import SCRATCH, shared_path, write_shared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from facescale.config.extract import LabelsConfig
    from facescale.config.job import JobConfig
    from facescale.driver.context import JobContext, StageSummary
    from facescale.lake.lake import Lake
    from facescale.sources.plan import PlanReport

STAGE = "import"


@dataclass(frozen=True)
class ImportPlan:
    """What import will do: versions, their settings, and what is done."""

    versions: ImportVersions
    settings: ImportSettings
    model: str
    done: DoneParts


def check_import(config: JobConfig) -> None:
    """Make sure, before a lake is made, that there are embeddings, a name and labels that can be read.

    Raises:
        UsageError: one of them is missing or cannot be used.
        DataError: the label file cannot be parsed.
    """
    model = _model(config)
    inputs = vector_inputs(config.imports.column, config.imports.dim)
    assert config.src is not None
    first = check_source(config.src, inputs)
    _check_card(model, dim_of(first, config.imports.column, config.imports.dim))
    _row_labels(config.labels)


def plan_import(lake: Lake, config: JobConfig) -> ImportPlan:
    """Name the versions, once the sources are planned (or at least known); find out what is done.

    Raises:
        UsageError: the lake holds photographs, or embeddings of another model or dimension.
    """
    model = _model(config)
    if holds_vectors(lake) is False:
        raise UsageError(f"{lake.uri} holds photographs: import embeddings into a lake of their own")
    dim = config.imports.dim
    for version in versions_of(lake.store, "embeddings"):
        made_with = (lake.describe_version(version) or {}).get("settings", {})
        if version.model != model:
            raise UsageError(
                f"{lake.uri} holds embeddings of {version.model}: those of {model} belong into a lake of their own"
            )
        dim = dim or made_with.get("dim")
    if dim is None:
        assert config.src is not None
        inputs = vector_inputs(config.imports.column, None)
        dim = dim_of(check_source(config.src, inputs), config.imports.column, None)
    _check_card(model, dim)
    settings = ImportSettings(dim, config.imports.column)
    name = fingerprint(STAGE, _of_images(settings), vector_rows.REVISION, {})
    of_vectors = fingerprint(
        STAGE, {"embedder": model, **_of_images(settings)}, vector_rows.REVISION, {"faces": name}
    )
    versions = ImportVersions(
        TableVersion("images", name),
        TableVersion("faces", name),
        TableVersion("embeddings", of_vectors, model),
    )
    return ImportPlan(versions, settings, model, list_done(lake.store, versions.images))


def import_report(lake: Lake, config: JobConfig, *, dry_run: bool = False) -> PlanReport:
    """Freeze the plan of the job's source (unless it is a dry run); says what is new, changed, vanished, ignored."""
    assert config.src is not None
    return plan_sources(
        lake,
        config.src,
        accept_changes=config.accept_changes,
        dry_run=dry_run,
        part_rows=config.extract.part_rows,
        inputs=vector_inputs(config.imports.column, config.imports.dim),
    )


def run_import(context: JobContext) -> list[StageSummary]:
    """Import to the end; resumes by itself. Returns its summary, and that of the labels where there are any.

    Raises:
        UsageError: see check_import and plan_import.
        DataError: a uri is on more rows than an image can have faces by far.
    """
    from facescale.driver.extract import retry_failed

    lake, config = context.lake, context.config
    plan = plan_import(lake, config)  # refuses before anything is written
    for line in import_report(lake, config).remarks():
        context.reporter.warn(line)
    versions = plan.versions
    if config.retry_failed:
        retry_failed(context, plan.done, versions.images, [versions.faces])
        plan = plan_import(lake, config)
    _record(lake, plan)

    def to_do() -> Iterator[SourcePart]:
        return (part for part in planned_parts(lake) if part.key not in plan.done)

    left = [part.key.num_rows for part in to_do()]
    summary = context.map(
        ImportStage(plan.settings, lake.store, versions),
        _with_shared(lake, plan, to_do()),
        num_parts=len(left),
        items=sum(left),
        unit="rows",
    )
    summary.parts_kept = len(plan.done)
    if summary.left_over:
        return [summary]
    planned, rows = planned_rows(lake), count_rows(lake, versions.images)
    if planned != rows:
        raise CorruptError(
            f"{versions.images.folder} has {rows} rows where {planned} were planned: run `facescale lake verify "
            f"{lake.uri}`"
        )
    summary.counters = sum_counters(lake, versions.images)
    summary.failures = find_failures(lake, versions.images, summary.counters)
    made = [versions.faces, versions.images, versions.embeddings]
    lake.set_current(made)
    summary.tables = {version.table: version.folder for version in made}
    summary.notes = _remarks(summary.counters)
    summaries = [summary]
    if (labels := _run_labels(context, plan)) is not None:
        summaries.append(labels)
    if not any(stage.left_over for stage in summaries):
        lake.store.delete_tree(SCRATCH)
    return summaries


def _model(config: JobConfig) -> str:
    model = config.imports.model
    if not model:
        raise UsageError("import needs the name of the model that made the embeddings: --model NAME")
    TableVersion("embeddings", "0" * 12, model)  # refuses a name that cannot be part of a file's
    return model


def _check_card(model: str, dim: int) -> None:
    """A name that is known here must mean the same model."""
    for known in cards("embedder"):
        if known.name == model and known.dim not in (None, dim):
            raise MismatchError(
                f"{model} has {known.dim} dimensions and these embeddings have {dim}: they are of another model; give "
                "it another --model name"
            )


def _of_images(settings: ImportSettings) -> dict[str, object]:
    return {"dim": settings.dim, "column": settings.column}


def _record(lake: Lake, plan: ImportPlan) -> None:
    settings = _of_images(plan.settings)
    for version in (plan.versions.images, plan.versions.faces):
        lake.write_version(version, stage=STAGE, settings=settings, revision=vector_rows.REVISION, inputs={})
    lake.write_version(
        plan.versions.embeddings,
        stage=STAGE,
        settings={"embedder": plan.model, **settings},
        revision=vector_rows.REVISION,
        inputs={"faces": plan.versions.faces.fingerprint},
    )


def _with_shared(lake: Lake, plan: ImportPlan, parts: Iterator[SourcePart]) -> Iterator[SourcePart]:
    """The parts, each after the list of the rows of its file that share an image is there."""
    listed: set[int] = set()
    for part in parts:
        if part.key.shard not in listed:
            listed.add(part.key.shard)
            _list_shared(lake, plan, part)
        yield part


def _list_shared(lake: Lake, plan: ImportPlan, part: SourcePart) -> None:
    if part.format == "vectors_bin" or lake.store.exists(shared_path(part.key.shard)):
        return
    uri = lake.store.read_table(shard_path(part.key.shard), ["uri"])["uri"][0].as_py()
    try:
        with open_vectors(uri, part.format, column=None, dim=plan.settings.dim) as file:
            if file.has("uri"):
                write_shared(lake.store, part.key.shard, file)
    except (ContainerError, OSError):
        return  # its rows get a status


def _remarks(counters: dict[str, int]) -> list[str]:
    said = (
        (
            "rescaled",
            "embeddings were not of unit length; they are now, and their lengths are in the column norm",
        ),
        ("quality_out_of_range", "values of quality are outside 0..1 and left out"),
        ("status.same_image", "rows share the uri of another row: they are further faces of its image"),
    )
    return [f"{counters[name]:,} {what}" for name, what in said if counters.get(name)]


def _row_labels(config: LabelsConfig) -> RowLabels | None:
    """Labels row by row; None for those that are keyed by path or folder."""
    source = config.source
    if source is None:
        return RowLabels()
    kind = extension_of(source)
    if source == FOLDER:
        return None
    if kind in TABLES:
        label = config.column or vector_labels.LABEL
        path = _path_column(config)
        check_label_file(source, label, path or label)
        if path is not None:
            return None
    elif kind != "npy" and kind not in LINES:
        raise UsageError(
            f"--labels {source}: .csv, .tsv, .parquet, .npy, .meta and .txt are read, and the word `folder`"
        )
    return RowLabels(source, config.column)


def _keyed(config: LabelsConfig) -> LabelSpec:
    """Labels by path or folder."""
    if config.source == FOLDER:
        return LabelSpec(FOLDER)
    assert config.source is not None
    return LabelSpec(
        config.source, config.column or vector_labels.LABEL, _path_column(config) or config.path_column
    )


def _path_column(config: LabelsConfig) -> str | None:
    """The column that a table of labels is keyed by; None for one that has a label for every row, in their order."""
    assert config.source is not None
    names = (config.path_column, *(("uri",) if config.path_column == "path" else ()))
    return next((name for name in names if has_column(config.source, name)), None)


def _run_labels(context: JobContext, plan: ImportPlan) -> StageSummary | None:
    """Write the labels; None where there are none."""
    lake, config = context.lake, context.config.labels
    spec = _row_labels(config)
    if spec is None:
        return run_label(context, _keyed(config))
    live = [part for part in planned_parts(lake)]
    if spec.source is None:
        if not _any_labels(lake, plan, live):
            return None
    else:
        labels, rows = spec.load(), planned_rows(lake)
        assert labels is not None
        if len({part.key.shard for part in live}) != 1 or len(labels) != rows:
            raise UsageError(
                f"--labels {spec.source} has {len(labels):,} labels, one a row, and {lake.uri} has {rows:,} rows of "
                f"{len({part.key.shard for part in live})} files: give a label for every row of one file, or put a "
                "column `label` into the files"
            )
    settings = spec.settings()
    version = TableVersion("labels", fingerprint("label", settings, vector_labels.REVISION, {}))
    lake.write_version(version, stage="label", settings=settings, revision=vector_labels.REVISION, inputs={})
    done = list_done(lake.store, version)
    left = [part for part in live if part.key not in done]
    stage = ImportLabelsStage(spec, lake.store, version, column=plan.settings.column, dim=plan.settings.dim)
    summary = context.map(
        stage,
        _with_shared(lake, plan, iter(left)),
        num_parts=len(left),
        items=sum(part.key.num_rows for part in left),
        unit="rows",
    )
    summary.parts_kept = len(done)
    if not summary.left_over:
        summary.counters = sum_counters(lake, version)
        lake.set_current([version])
        summary.tables = {"labels": version.folder}
        if unlabeled := summary.counters.get("unlabeled"):
            summary.notes.append(f"{unlabeled:,} rows have no label")
    return summary


def _any_labels(lake: Lake, plan: ImportPlan, parts: list[SourcePart]) -> bool:
    """Whether one of the files has labels of its own."""
    for part in {part.key.shard: part for part in parts}.values():
        uri = lake.store.read_table(part.shard_path, ["uri"])["uri"][0].as_py()
        try:
            with open_vectors(uri, part.format, column=None, dim=plan.settings.dim) as file:
                if file.has(vector_labels.LABEL):
                    return True
        except (ContainerError, OSError):
            continue  # its rows have a status
    return False
