"""The job import as a function: embeddings made elsewhere in, a JobSummary out. Offered as facescale.import_embeddings.

See facescale.api.jobs, which has the other jobs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from facescale.api.call import run_job

if TYPE_CHECKING:
    from facescale.api.call import LakeLike, PathLike
    from facescale.config.job import JobConfig
    from facescale.driver.context import JobSummary, Reporter


def import_embeddings(
    src: PathLike | None = None,
    lake: LakeLike | None = None,
    *,
    model: str | None = None,
    column: str | None = None,
    dim: int | None = None,
    labels: PathLike | None = None,
    label_column: str | None = None,
    path_column: str | None = None,
    part_rows: int | None = None,
    max_failures: float | None = None,
    accept_changes: bool = False,
    retry_failed: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    address: str | None = None,
    config: JobConfig | PathLike | None = None,
    reporter: Reporter | None = None,
) -> JobSummary:
    """Make a lake of embeddings that another program made: the job `import`, whose name Python keeps for itself.

    Examples:
        >>> import numpy
        >>> numpy.save("theirs.npy", numpy.eye(20, 8, dtype="float32"))
        >>> summary = facescale.import_embeddings("theirs.npy", "theirs.lake", model="theirs", workers=0)
        >>> counters = summary.stage("import").counters
        >>> counters["faces"], counters["status.zero_vector"]
        (8, 12)

    Args:
        src: Parquet, .npy or .bin file of embeddings, a folder or URL of those.
        lake: the lake, made where there is none.
        model: name of the model that made them; what later jobs call the embedder.
        column: Parquet column that holds the embeddings.
        dim: dimension; None takes that of the first rows.
        labels: file with a label for every row (.npy, .meta, .csv, .parquet), or a table keyed by path; None takes the
            column or sidecar `label`, if there is one.
        label_column: column of the labels file that holds the label.
        path_column: column of the labels file that holds the path.
        part_rows: as the others below, see `run`.
        max_failures: share of failed rows above which the exit code is 3.
        accept_changes: let changed and vanished input supersede the old rows.
        retry_failed: rerun parts that hold rows with a transient status.
        workers: processes; 0 runs in this process without Ray.
        threads: in each worker.
        address: Ray cluster to join.
        config: all other settings: a JobConfig or a YAML file; keywords override it.
        reporter: where progress goes; None is silent.

    Raises:
        UsageError: there are no embeddings, no name, the lake is of other ones, or a setting is wrong.
        MismatchError: the name is that of a known model of another dimension.
        FacescaleError: the job could not be done; see the module.
    """
    overrides = {"imports.model": model, "imports.column": column, "imports.dim": dim}
    return run_job("import", locals(), overrides)
