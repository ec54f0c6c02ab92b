"""The jobs as functions: keywords or a configuration in, a JobSummary out; the same work as the commands do.

A keyword means what the flag of its name means (docs/configuration.md has all settings, also those without a flag,
which `config` takes); None is not given. Offered as facescale.run and so on. `facescale index` is build_index here:
facescale.index is a package.

Every function raises errors of facescale.errors: UsageError for a wrong setting or a lake that lacks what the job
reads, MismatchError, CorruptError, DataError, DiskFullError, TransientError, InfrastructureError as drawn there. A bad
image raises nothing: it has a status in the table images. A job that could not finish, or in which too many images
failed, returns: look at `exit_code` of the summary (0 done, 3 too many failures, 4 run it again).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from facescale.api.call import run_job, settings_of
from facescale.config.flags import everywhere

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.api.call import LakeLike, PathLike
    from facescale.config.job import JobConfig
    from facescale.driver.context import JobSummary, Reporter


def run(
    src: PathLike | None = None,
    lake: LakeLike | None = None,
    *,
    labels: PathLike | None = None,
    label_column: str | None = None,
    path_column: str | None = None,
    detector: str | None = None,
    landmarker: str | None = None,
    embedder: str | None = None,
    min_face_px: int | None = None,
    det_threshold: float | None = None,
    precision: str | None = None,
    runtime: str | None = None,
    accelerate: str | None = None,
    flip: bool = False,
    weights_dir: PathLike | None = None,
    offline: bool = False,
    accept_license: bool = False,
    trust: bool = False,
    part_rows: int | None = None,
    max_failures: float | None = None,
    accept_changes: bool = False,
    retry_failed: bool = False,
    backend: str | None = None,
    recall: float | None = None,
    memory_gib: float | None = None,
    no_report: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    plugins: Sequence[str] | None = None,
    config: JobConfig | PathLike | None = None,
    reporter: Reporter | None = None,
) -> JobSummary:
    """Run every stage in order; calling it again resumes it.

    Examples:
        >>> summary = facescale.run("crawl/images/id_0001", "new.lake", min_face_px=80, workers=0)
        >>> summary.exit_code, summary.stage("extract").counters["images"]
        (0, 7)

    Args:
        src: photographs: a folder, a tar, a Parquet file, or a folder or URL of those.
        lake: the lake, made where there is none.
        labels: "folder", or a CSV or Parquet file keyed by path; None for no labels.
        label_column: column of the labels file that holds the label.
        path_column: column of the labels file that holds the path.
        detector: registry name of the face detector.
        landmarker: registry name of the landmark model.
        embedder: registry name of the embedder, for every stage.
        min_face_px: side of the smallest face to look for.
        det_threshold: faces score above it, in the detector's unit; None is what its card says.
        precision: "auto", "fp32", "bf16" or "fp16".
        runtime: "auto", "torch" or "onnx": what runs models that have weights for both.
        accelerate: "none", "compile", "cuda_graphs" or "tensorrt": how embedders run.
        flip: embed faces as they are and mirrored; the mean counts.
        weights_dir: folder with weights, known by their sha256; else FACESCALE_WEIGHTS.
        offline: download no weights.
        accept_license: run models whose licence forbids commercial use.
        trust: open weights that can run code (TorchScript, exported programs, pickles).
        part_rows: rows of a part for new input, a power of two.
        max_failures: share of failed images above which the exit code is 3.
        accept_changes: let changed and vanished input supersede the old rows.
        retry_failed: rerun parts that hold images with a transient status.
        backend: of the index, "faiss" or "hnswlib".
        recall: wanted of the index, 0 to 1.
        memory_gib: what the index may take when it is searched.
        no_report: do not make LAKE/report.html at the end.
        workers: processes; 0 runs in this process without Ray.
        threads: in each worker.
        device: "auto", "cpu" or "cuda".
        gpus_per_worker: share of a GPU for each worker.
        address: Ray cluster to join; else RAY_ADDRESS, else Ray starts here.
        plugins: Python modules that register further models.
        config: all other settings: a JobConfig or a YAML file; keywords override it.
        reporter: where progress goes; None is silent.

    Raises:
        UsageError: there is no source, or a setting is wrong; nothing was started.
        FacescaleError: the job could not be done; see the module.
    """
    overrides = {
        **everywhere("embedder", embedder),
        "report.enabled": False if no_report else None,
        "index.backend": backend,
        "index.recall": recall,
        "index.memory_gib": memory_gib,
    }
    return run_job("run", locals(), overrides)


def extract(
    src: PathLike | None = None,
    lake: LakeLike | None = None,
    *,
    labels: PathLike | None = None,
    label_column: str | None = None,
    path_column: str | None = None,
    detector: str | None = None,
    landmarker: str | None = None,
    embedder: str | None = None,
    min_face_px: int | None = None,
    det_threshold: float | None = None,
    precision: str | None = None,
    runtime: str | None = None,
    accelerate: str | None = None,
    flip: bool = False,
    weights_dir: PathLike | None = None,
    offline: bool = False,
    accept_license: bool = False,
    trust: bool = False,
    part_rows: int | None = None,
    max_failures: float | None = None,
    accept_changes: bool = False,
    retry_failed: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    plugins: Sequence[str] | None = None,
    config: JobConfig | PathLike | None = None,
    reporter: Reporter | None = None,
) -> JobSummary:
    """Read images, detect, align and embed their faces: images, faces, crops, embeddings, and labels where asked for.

    The keywords are those of `run`.

    Raises:
        UsageError: there is no source, or a setting is wrong; nothing was started.
        FacescaleError: the job could not be done; see the module.
    """
    return run_job("extract", locals())


def embed(
    lake: LakeLike | None = None,
    *,
    embedder: str | None = None,
    precision: str | None = None,
    runtime: str | None = None,
    accelerate: str | None = None,
    flip: bool = False,
    weights_dir: PathLike | None = None,
    offline: bool = False,
    accept_license: bool = False,
    trust: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    plugins: Sequence[str] | None = None,
    config: JobConfig | PathLike | None = None,
    reporter: Reporter | None = None,
) -> JobSummary:
    """Embed the stored crops with another model; nothing is detected again. The keywords are those of `run`.

    Raises:
        UsageError: the lake has no crops, or a setting is wrong.
        MismatchError: the embedder needs landmarks of another scheme.
        FacescaleError: the job could not be done; see the module.
    """
    return run_job("embed", locals())


def dedup(
    lake: LakeLike | None = None,
    *,
    max_distance: int | None = None,
    threads: int | None = None,
    config: JobConfig | PathLike | None = None,
    reporter: Reporter | None = None,
) -> JobSummary:
    """Find identical and nearly identical images; the best of each group is kept. Writes duplicates.

    Examples:
        >>> counters = facescale.dedup("crawl.lake", max_distance=0).stage("dedup").counters
        >>> counters["exact"], counters["near"]
        (1, 0)

    Args:
        lake: the lake.
        max_distance: bits of the PDQ hashes up to which images are copies, 0 to 31.
        threads: of the search for near-duplicates.
        config: all other settings: a JobConfig or a YAML file; keywords override it.
        reporter: where progress goes; None is silent.

    Raises:
        UsageError: the lake has no finished images, or a setting is wrong.
        FacescaleError: the job could not be done; see the module.
    """
    return run_job("dedup", locals(), {"dedup.max_distance": max_distance})


def neighbors(
    lake: LakeLike | None = None,
    *,
    embedder: str | None = None,
    k: int | None = None,
    memory_gib: float | None = None,
    workers: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    plugins: Sequence[str] | None = None,
    config: JobConfig | PathLike | None = None,
    reporter: Reporter | None = None,
) -> JobSummary:
    """List the most similar faces of every face; copies of images are left out. Writes neighbors.

    Examples:
        >>> facescale.neighbors("crawl.lake", k=10, workers=0).stage("neighbors").counters
        {'faces': 16, 'saturated': 0}

    Args:
        lake: the lake.
        embedder: whose embeddings; it must be calibrated.
        k: neighbors kept for each face.
        memory_gib: memory of each worker for the faces compared with; more are read block by block.
        workers: as the others below, see `run`.
        threads: in each worker.
        device: "auto", "cpu" or "cuda".
        gpus_per_worker: share of a GPU for each worker.
        address: Ray cluster to join.
        plugins: Python modules that register further models.
        config: all other settings: a JobConfig or a YAML file; keywords override it.
        reporter: where progress goes; None is silent.

    Raises:
        UsageError: the lake has no finished embeddings, the embedder is not calibrated, or a setting is wrong.
        FacescaleError: the job could not be done; see the module.
    """
    overrides = {"neighbors.embedder": embedder, "neighbors.k": k, "neighbors.memory_gib": memory_gib}
    return run_job("neighbors", locals(), overrides)


def cluster(
    lake: LakeLike | None = None,
    *,
    embedder: str | None = None,
    max_size: int | None = None,
    config: JobConfig | PathLike | None = None,
    reporter: Reporter | None = None,
) -> JobSummary:
    """Find the faces that show one person, without labels. Writes clusters.

    Examples:
        >>> counters = facescale.cluster("crawl.lake").stage("cluster").counters
        >>> counters["faces"], counters["clusters"], counters["unassigned"]
        (18, 3, 0)

    Args:
        lake: the lake; it must have neighbors.
        embedder: whose neighbors; it must be calibrated.
        max_size: no cluster grows beyond so many faces.
        config: all other settings: a JobConfig or a YAML file; keywords override it.
        reporter: where progress goes; None is silent.

    Raises:
        UsageError: the lake has no neighbors, the embedder is not calibrated, or a setting is wrong.
        FacescaleError: the job could not be done; see the module.
    """
    return run_job("cluster", locals(), {"cluster.embedder": embedder, "cluster.max_size": max_size})


def clean(
    lake: LakeLike | None = None,
    *,
    embedder: str | None = None,
    method: str | None = None,
    preset: str | None = None,
    config: JobConfig | PathLike | None = None,
    reporter: Reporter | None = None,
) -> JobSummary:
    """Decide whose name each label is and which faces it keeps, and write down why. Writes decisions.

    Examples:
        >>> counters = facescale.clean("crawl.lake").stage("clean").counters
        >>> counters["verdict.keep"], counters["verdict.relabel"], counters["verdict.drop"]
        (16, 1, 1)

    Args:
        lake: the lake; it must have labels.
        embedder: whose embeddings; it must be calibrated.
        method: "ownership", or "cast" for the baseline.
        preset: "arcface" for the baseline's published cosines, for embedders like ArcFace only.
        config: all other settings: a JobConfig or a YAML file; keywords override it.
        reporter: where progress goes; None is silent.

    Raises:
        UsageError: the lake has no labels or embeddings, the embedder is not calibrated, or a setting is wrong.
        FacescaleError: the job could not be done; see the module.
    """
    overrides = {"clean.embedder": embedder, "clean.method": method, "clean.preset": preset}
    return run_job("clean", locals(), overrides)


def build_index(
    lake: LakeLike | None = None,
    *,
    embedder: str | None = None,
    backend: str | None = None,
    recall: float | None = None,
    memory_gib: float | None = None,
    workers: int | None = None,
    threads: int | None = None,
    address: str | None = None,
    plugins: Sequence[str] | None = None,
    config: JobConfig | PathLike | None = None,
    reporter: Reporter | None = None,
) -> JobSummary:
    """Build the index over one embedder's faces, and measure its recall: the job `index`.

    Examples:
        >>> facescale.build_index("crawl.lake", backend="hnswlib", workers=0).exit_code
        0

    Args:
        lake: the lake.
        embedder: whose embeddings.
        backend: "faiss" or "hnswlib".
        recall: wanted share of the true ten nearest neighbors, 0 to 1.
        memory_gib: what the index may take when it is searched.
        workers: as the others below, see `run`.
        threads: in each worker.
        address: Ray cluster to join.
        plugins: Python modules that register further models.
        config: all other settings: a JobConfig or a YAML file; keywords override it.
        reporter: where progress goes; None is silent.

    Raises:
        UsageError: the lake has no finished embeddings, or a setting is wrong.
        MissingExtraError: the library is not installed.
        FacescaleError: the job could not be done; see the module.
    """
    overrides = {
        "index.embedder": embedder,
        "index.backend": backend,
        "index.recall": recall,
        "index.memory_gib": memory_gib,
    }
    return run_job("index", locals(), overrides)


def write_report(
    lake: LakeLike | None = None,
    *,
    out: PathLike | None = None,
    embedder: str | None = None,
    no_photos: bool = False,
    plugins: Sequence[str] | None = None,
    config: JobConfig | PathLike | None = None,
) -> str:
    """Make the HTML page about a lake anew: `facescale report` (facescale.report is a package).

    Examples:
        >>> facescale.write_report("crawl.lake", out="page.html", no_photos=True)
        'page.html'

    Args:
        lake: the lake.
        out: HTML file to write; None for LAKE/report.html.
        embedder: whose neighbors, clusters, decisions and index are shown.
        no_photos: counts and drawings only: no picture, label or file name.
        plugins: Python modules that register further models.
        config: all other settings: a JobConfig or a YAML file; keywords override it.

    Returns:
        Where the page is.

    Raises:
        UsageError: there is no lake, nothing was extracted yet, or `out` cannot be written.
    """
    from facescale.driver import report

    own = {"report.embedder": embedder, "report.photos": False if no_photos else None}
    settings = settings_of(locals(), own)
    target = None if out is None else os.fspath(out)
    where, _ = report.write_report(
        settings.lake, settings.report, out=target, plugins=settings.extract.plugins
    )
    return where
