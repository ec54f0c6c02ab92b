"""What is asked of a lake and answered in its own kind of result: search, calibrate, evaluate. Offered by facescale."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.api.call import lake_uri
from facescale.driver.calibrate import CalibrateSettings, run_calibrate
from facescale.driver.context import SilentReporter
from facescale.driver.evaluate import Truth
from facescale.driver.evaluate import evaluate_cleaning as score_cleaning
from facescale.driver.evaluate import evaluate_clusters as score_clusters
from facescale.driver.searcher import Searcher
from facescale.errors import UsageError
from facescale.sources.labels import LabelSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from facescale.api.call import LakeLike, PathLike
    from facescale.driver.calibrate import CalibrateResult
    from facescale.driver.context import Reporter
    from facescale.driver.evaluate import Evaluation
    from facescale.driver.searcher import SearchResult


def search(
    lake: LakeLike,
    queries: Sequence[PathLike] | NDArray[np.floating[Any]],
    k: int = 10,
    *,
    embedder: str = "dlib_resnet",
    label: str | None = None,
    min_similarity: float = -1.0,
    min_quality: float = 0.0,
    where: str | None = None,
    device: str = "auto",
    plugins: Sequence[str] = (),
) -> SearchResult:
    """Search once; a program that searches often keeps a `facescale.Searcher`.

    Examples:
        >>> photograph, page = "crawl/images/id_0002/img_00001.jpg", "crawl/images/id_0002/img_00004.jpg"
        >>> found = facescale.search("crawl.lake", [photograph, page], k=2, label="id_0001")
        >>> [hit.label for hit in found.rows()], [what for _, what in found.problems]
        (['id_0001', 'id_0001'], ["not_image: an HTML page saved under an image's name"])

    Args:
        lake: the lake.
        queries: image files, folders, Parquet files of embeddings; or float [Q, D] embeddings.
        k: faces for each query.
        embedder: which index.
        label: only faces of images that claim this label.
        min_similarity: leave out hits below this cosine.
        min_quality: leave out faces of less quality, 0..1; those that nobody has measured stay.
        where: only faces that meet this condition, e.g. "age > 17 and quality >= 0.5" (docs/GUIDE.md).
        device: where query images are embedded: "auto", "cpu" or "cuda".
        plugins: Python modules that register further models.

    Raises:
        UsageError: there is no lake, no index, a query does not exist, or no image claims the label.
        MismatchError: queries and index are of different models or dimensions.
        CorruptError: a file is missing or damaged.
        DataError: a Parquet file has no usable column `embedding`.
    """
    with Searcher.open(lake_uri(lake), embedder=embedder, device=device, plugins=plugins) as searcher:
        wanted: dict[str, Any] = {
            "label": label,
            "min_similarity": min_similarity,
            "min_quality": min_quality,
            "where": where,
        }
        if isinstance(queries, np.ndarray):
            return searcher.search(queries, k, **wanted)
        return searcher.search_files(queries, k, **wanted)


def calibrate(
    lake: LakeLike,
    *,
    labels: PathLike | None = None,
    label_column: str | None = None,
    path_column: str = "path",
    embedder: str = "dlib_resnet",
    fold: int | None = 0,
    device: str = "auto",
    plugins: Sequence[str] = (),
    note: str = "",
    share: bool = False,
    weights_dir: PathLike | None = None,
    reporter: Reporter | None = None,
) -> CalibrateResult:
    """Fit an embedder's thresholds on people whose labels you trust, check them on others, and write the file.

    Args:
        lake: holds the faces; the file is LAKE/calibration/EMBEDDER.yaml.
        labels: CSV or Parquet file of trusted labels keyed by path; None takes the lake's own labels.
        label_column: column of the file that holds the label.
        path_column: column of the file that holds the path.
        embedder: registry name.
        fold: fit on the people of this half (0 or 1) and check on the other; None fits on all, without a check.
        device: "auto", "cpu" or "cuda".
        plugins: Python modules that register further models.
        note: what the photographs are, for the file's evidence.
        share: keep it beside the user's model cards too, for every lake of theirs.
        weights_dir: folder with weights, known by their sha256; else FACESCALE_WEIGHTS.
        reporter: where progress goes; None is silent.

    Returns:
        Thresholds, evidence, and `warnings` to read before using them.

    Raises:
        UsageError: no lake, no embeddings or crops of the embedder, no labels, or too few people in them.
        DataError: the label file cannot be parsed.
    """
    if labels is None and label_column is not None:
        raise UsageError("label_column names a column of a file: give it with labels=FILE")
    if fold not in (0, 1, None):
        raise UsageError(f"fold: expected 0, 1 or None, got {fold!r}")
    settings = CalibrateSettings(
        embedder=embedder,
        labels=None if labels is None else LabelSpec(os.fspath(labels), label_column, path_column),
        fold=fold,
        device=device,
        plugins=tuple(plugins),
        note=note,
        share=share,
        weights_dir=None if weights_dir is None else os.fspath(weights_dir),
    )
    return run_calibrate(lake_uri(lake), settings, reporter or SilentReporter())


def evaluate_clusters(
    lake: LakeLike,
    truth: PathLike,
    *,
    identity_column: str = "identity",
    path_column: str = "path",
    embedder: str = "dlib_resnet",
    fold: int | None = None,
) -> Evaluation:
    """BCubed, pairwise, NMI and ARI of the clusters, over faces whose identity the truth gives, and by quality.

    Args:
        lake: the lake.
        truth: CSV or Parquet file with a path, image_id or face_id, and an identity.
        identity_column: column of the identity.
        path_column: column of the path.
        embedder: whose clusters.
        fold: only identities of this half (0 or 1); None for all.

    Raises:
        UsageError: no lake, no clusters, a truth that cannot be read or names no face of the lake.
        DataError: the file cannot be parsed.
    """
    return score_clusters(
        lake_uri(lake), Truth(os.fspath(truth), identity_column, path_column, fold), embedder=embedder
    )


def evaluate_cleaning(
    lake: LakeLike,
    truth: PathLike,
    *,
    identity_column: str = "identity",
    path_column: str = "path",
    embedder: str = "dlib_resnet",
    fold: int | None = None,
) -> Evaluation:
    """What cleaning found of the wrong faces, and what it lost of the right ones.

    Args:
        lake: the lake.
        truth: CSV or Parquet file with a path, image_id or face_id, and an identity.
        identity_column: column of the identity.
        path_column: column of the path.
        embedder: whose decisions.
        fold: only identities of this half (0 or 1); None for all.

    Raises:
        UsageError: no lake, no decisions, a truth that cannot be read or names no face that has a label.
        DataError: the file cannot be parsed.
    """
    return score_cleaning(
        lake_uri(lake), Truth(os.fspath(truth), identity_column, path_column, fold), embedder=embedder
    )
