"""Drive label: claims on images, part by part, from folder names, a file keyed by path, or tar sidecars.

Comes in: a planned lake and where labels come from. Goes out: the labels table, set as current.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from facescale.errors import UsageError
from facescale.lake.fingerprint import fingerprint
from facescale.lake.parts import TableVersion, list_done
from facescale.lake.scan import sum_counters
from facescale.sources import labels as stage_module
from facescale.sources.labels import LabelSpec, LabelsStage
from facescale.sources.plan import planned_parts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from facescale.config.extract import LabelsConfig
    from facescale.driver.context import JobContext, StageSummary
    from facescale.sources.plan import SourcePart


def label_spec(config: LabelsConfig) -> LabelSpec | None:
    """Where labels come from; None when none are wanted.

    Raises:
        UsageError: the file cannot be read or lacks a column.
    """
    if config.source is None:
        return None
    spec = LabelSpec(config.source, config.column, config.path_column)
    spec.check()
    return spec


def label_version(settings: Mapping[str, Any]) -> TableVersion:
    """The labels version that these settings (of a LabelSpec) make."""
    return TableVersion("labels", fingerprint("label", settings, stage_module.REVISION, {}))


def run_label(context: JobContext, spec: LabelSpec | None = None) -> StageSummary:
    """Write the labels of every planned part; resumes by itself.

    Args:
        context: of the job.
        spec: where labels come from; None as configured.

    Raises:
        UsageError: no source of labels is configured, or its file cannot be read or lacks the column.
    """
    lake, spec = context.lake, spec or label_spec(context.config.labels)
    if spec is None:
        raise UsageError("labels need a source: --labels folder, or --labels FILE --label-column NAME")
    file = spec.load(lake.store)
    settings = spec.settings()
    version = label_version(settings)
    lake.write_version(version, stage="label", settings=settings, revision=stage_module.REVISION, inputs={})
    done = list_done(lake.store, version)

    def to_do() -> Iterator[SourcePart]:
        return (part for part in planned_parts(lake) if part.key not in done)

    left = [part.key.num_rows for part in to_do()]
    summary = context.map(
        LabelsStage(spec, lake.store, version),
        to_do(),
        num_parts=len(left),
        items=sum(left),
        unit="images",
    )
    summary.parts_kept = len(done)
    if not summary.left_over:
        summary.counters = sum_counters(lake, version)
        lake.set_current([version])
        summary.tables = {"labels": version.folder}
        if unlabeled := summary.counters.get("unlabeled"):
            summary.notes.append(f"{unlabeled:,} images have no label")
        summary.notes += file.remarks() if file is not None else []
    return summary
