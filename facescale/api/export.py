"""The job export as a function. See facescale.api.jobs for what all of them share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from facescale.api.call import run_job

if TYPE_CHECKING:
    from facescale.api.call import LakeLike, PathLike
    from facescale.config.job import JobConfig
    from facescale.driver.context import JobSummary, Reporter


def export(
    lake: LakeLike | None = None,
    out: PathLike | None = None,
    *,
    format: str | None = None,
    names: str | None = None,
    embedder: str | None = None,
    template: str | None = None,
    min_faces: int | None = None,
    max_faces: int | None = None,
    min_quality: float | None = None,
    where: str | None = None,
    val_share: float | None = None,
    classes: PathLike | None = None,
    seed: int | None = None,
    shard_faces: int | None = None,
    memory_gib: float | None = None,
    jpeg_quality: int | None = None,
    workers: int | None = None,
    threads: int | None = None,
    address: str | None = None,
    config: JobConfig | PathLike | None = None,
    reporter: Reporter | None = None,
) -> JobSummary:
    """Write a training set: aligned chips of named faces in shards, with class ids and a data card.

    Examples:
        >>> summary = facescale.export("crawl.lake", "training", format="folder", workers=0)
        >>> summary.exit_code, summary.stages[0].counters["identities"]
        (0, 3)

    Args:
        lake: the lake.
        out: folder or URL of the training set, new or left behind by an export that was interrupted.
        format: "webdataset", "parquet", "folder" or "recordio".
        names: who a face is, by "decisions", "claims" or "clusters".
        embedder: whose decisions or clusters.
        template: "auto", a template of facescale.vision.align, or "crop" for the wide stored crop.
        min_faces: identities with fewer faces are left out.
        max_faces: of an identity the best so many are kept.
        min_quality: faces of lower quality are left out, 0 to 1.
        where: faces that do not meet this condition, e.g. "age > 17", are left out (docs/GUIDE.md).
        val_share: share of the identities held out for validation.
        classes: classes.parquet of an earlier export, whose class ids stay.
        seed: of the shuffle, the split and ties.
        shard_faces: faces of a shard.
        memory_gib: of each worker, for the faces that are shuffled together.
        jpeg_quality: of the chips, 1 to 100.
        workers: processes; 0 runs in this process without Ray.
        threads: in each worker.
        address: Ray cluster to join.
        config: all other settings: a JobConfig or a YAML file; keywords override it.
        reporter: where progress goes; None is silent.

    Raises:
        UsageError: the lake lacks what names come from, `out` holds something else, or no face is left.
        MismatchError: the template needs other landmarks.
        FacescaleError: the job could not be done; see the module.
    """
    given = dict(locals())
    own = "format names embedder template min_faces max_faces min_quality where val_share seed shard_faces"
    overrides = {f"export.{name}": given[name] for name in f"{own} memory_gib jpeg_quality".split()}
    for name in ("out", "classes"):
        overrides[f"export.{name}"] = None if given[name] is None else os.fspath(given[name])
    return run_job("export", given, overrides)
