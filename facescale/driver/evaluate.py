"""Drive evaluate: a lake's clusters or decisions and a file of the truth in, scores out. Runs in this process.

The truth is a CSV or Parquet file with an identity for each face_id, image_id or path; of an image the face nearest its
center is meant. Faces that it does not name are not scored.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from facescale.errors import DataError, UsageError
from facescale.evaluate.center import center_faces
from facescale.evaluate.cleaning import NOBODY, score_cleaning
from facescale.evaluate.clusters import UNASSIGNED, images_sharing_a_cluster, score_bins, score_pairs
from facescale.evaluate.contingency import Contingency
from facescale.evaluate.split import folds_of
from facescale.lake.ids import image_id_of
from facescale.lake.lake import Lake
from facescale.lake.parts import list_done
from facescale.lake.scan import scan
from facescale.sources.containers import open_container
from facescale.sources.labels import LabelSpec, label_rows
from facescale.sources.plan import planned_parts
from facescale.sources.uris import extension_of, root_uri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from facescale.lake.parts import PartKey, TableVersion

_IDS = ("face_id", "image_id")
QUALITY_STEP = 0.2
QUALITY_BINS = ("0.0 to 0.2", "0.2 to 0.4", "0.4 to 0.6", "0.6 to 0.8", "0.8 to 1.0", "unknown")
"""Ranges of faces.quality that clusters are scored by."""
_LABELED = ("keep", "relabel", "merge")


@dataclass(frozen=True)
class Truth:
    """Who is on which face.

    Attributes:
        file: CSV or Parquet, local or fsspec URL.
        identity_column: column of the identity; rows without one are left out.
        path_column: column of the path, where there is neither face_id nor image_id.
        fold: only identities of this fold; None for all.
    """

    file: str
    identity_column: str = "identity"
    path_column: str = "path"
    fold: int | None = None


@dataclass
class Evaluation:
    """Scores by name of the selection, and how many faces they rest on.

    Attributes:
        scores: by name of the selection, then of the measure.
        counts: faces scored, and left out by reason.
        version: folder of what was scored.
        by_quality: of clusters: by range of faces.quality, fields of facescale.evaluate.clusters.BinScores; only
            ranges in which there are faces.
    """

    scores: dict[str, dict[str, Any]]
    counts: dict[str, int]
    version: str
    by_quality: dict[str, dict[str, Any]] = field(default_factory=dict)


def evaluate_clusters(lake_uri: str, truth: Truth, *, embedder: str) -> Evaluation:
    """Score the current clusters, over all identities and over those with two or more photographs, and by quality.

    Clusters stream by part; held are the truth (the text of its columns, 16 bytes a face) and a count for each identity
    in each cluster (facescale.evaluate.contingency).

    Raises:
        UsageError: no lake, no clusters, a truth that cannot be read or names no face of the lake.
    """
    lake = Lake.open(lake_uri)
    version = _current(lake, "clusters", embedder, "cluster")
    known, codes, _, counts = read_truth(lake, truth)
    faces, gone = lake.current("faces"), lake.superseded()
    counted = Contingency(len(QUALITY_BINS))
    met = shared = 0
    for part in list_done(lake.store, version).parts():
        columns = ["face_id", "cluster_id"]
        tables = list(scan(lake, version, columns=columns, parts=[part], drop_superseded=gone))
        if not tables:
            continue
        table = pa.concat_tables(tables)
        face_ids = table["face_id"].to_numpy()
        cluster = table["cluster_id"].fill_null(UNASSIGNED).to_numpy()
        shared += images_sharing_a_cluster(image_id_of(face_ids), cluster)
        at, there = _rows_in_sorted(known, face_ids)
        met += int(there.sum())
        bins = _quality_bins(lake, faces, part, face_ids[there], gone)
        counted.add(codes[at[there]], cluster[there], bins)
    counts["faces_not_in_the_table"] = len(known) - met
    counts["images_with_two_faces_in_one_cluster"] = shared
    pairs = counted.pairs()
    whole = score_pairs(pairs)
    scores = {"all identities": dataclasses.asdict(whole)}
    if whole.items > whole.identities:
        restricted = score_pairs(pairs, min_photos=2)
        scores["identities with two or more photographs"] = dataclasses.asdict(restricted)
    by_quality = {
        name: dataclasses.asdict(found)
        for name, found in zip(QUALITY_BINS, score_bins(pairs), strict=True)
        if found is not None
    }
    return Evaluation(scores, counts, version.folder, by_quality)


def _quality_bins(
    lake: Lake,
    faces: TableVersion | None,
    part: PartKey,
    face_ids: NDArray[np.int64],
    gone: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Index of QUALITY_BINS of faces of a part, int64 [N]."""
    bins = np.full(len(face_ids), len(QUALITY_BINS) - 1)
    if faces is None:
        return bins
    for table in scan(lake, faces, columns=["face_id", "quality"], parts=[part], drop_superseded=gone):
        at, there = _rows_in_sorted(table["face_id"].to_numpy(), face_ids)
        quality = table["quality"].to_numpy().astype(np.float64)
        quality = quality[at[there]] if len(quality) else np.empty(0)
        known = np.isfinite(quality)
        place = np.where(known, np.minimum(np.nan_to_num(quality) / QUALITY_STEP, len(QUALITY_BINS) - 2), -1)
        bins[np.flatnonzero(there)[known]] = place[known].astype(np.int64)
    return bins


def evaluate_cleaning(lake_uri: str, truth: Truth, *, embedder: str) -> Evaluation:
    """Score the current decisions.

    Raises:
        UsageError: no lake, no decisions, a truth that cannot be read or names no face that has a label.
    """
    lake = Lake.open(lake_uri)
    version = _current(lake, "decisions", embedder, "clean")
    known, codes, names, counts = read_truth(lake, truth)
    columns = ["face_id", "label_in", "label_out", "verdict"]
    kept = [
        table.filter(pa.array(np.isin(table["face_id"].to_numpy(), known)))
        for table in scan(lake, version, columns=columns)
    ]
    if not kept:
        raise UsageError(f"{lake.uri}: {version.folder} has no rows, so there is nothing to score")
    decided = pa.concat_tables(kept)
    counts["faces_not_in_the_table"] = len(known) - decided.num_rows
    claims = decided.filter(pc.is_valid(decided["label_in"]))
    counts["faces_without_a_label"] = decided.num_rows - claims.num_rows
    verdict = claims["verdict"].cast(pa.string())
    final = pc.if_else(
        pc.is_in(verdict, value_set=pa.array(_LABELED)),
        pc.if_else(
            pc.equal(verdict, "keep"),
            pc.coalesce(claims["label_out"], claims["label_in"]),
            claims["label_out"],
        ),
        pa.scalar(None, pa.string()),
    )
    at, _ = _rows_of(known, claims["face_id"].to_numpy())
    columns_of_names = [claims["label_in"].to_pylist(), names[codes[at]].tolist(), final.to_pylist()]
    number: dict[str | None, int] = {None: NOBODY}
    claimed, true, after = (
        np.array([number.setdefault(name, len(number) - 1) for name in column], np.int64)
        for column in columns_of_names
    )
    quarantined = pc.equal(verdict, "quarantine").to_numpy().astype(bool)
    scores = {"labels": dataclasses.asdict(score_cleaning(claimed, true, after, quarantined))}
    return Evaluation(scores, counts, version.folder)


def read_truth(
    lake: Lake, truth: Truth
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any], dict[str, int]]:
    """Faces with a known identity.

    Returns:
        face ids, int64 [N], ascending and distinct; their identities as numbers, int64 [N]; the names of these, object
        [P]; and counts of what was left out.

    Raises:
        UsageError: the file is not there, of another kind, lacks a column, or fits nothing in the lake.
        DataError: it cannot be parsed.
    """
    by = next((name for name in _IDS if name in _column_names(truth.file)), None)
    if by is None:
        spec = LabelSpec(truth.file, truth.identity_column, truth.path_column)
        file = spec.load(lake.store)
        tables = [label_rows(lake.store, part, spec, file) for part in planned_parts(lake)]
        table = pa.concat_tables(tables) if tables else pa.table({"image_id": [], "label": []})
        ids, names = table["image_id"].to_numpy(), table["label"]
    else:
        ids, names = _by_id(truth, by)
    coded = names.combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    people = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    distinct = np.array(coded.dictionary.to_pylist(), object)
    unique, at, repeats = np.unique(ids, return_index=True, return_counts=True)
    counts = {"identities_that_contradict_each_other": int((repeats > 1).sum())}
    ids, people = unique[repeats == 1].astype(np.int64), people[at[repeats == 1]]
    if truth.fold is not None:
        mine = (folds_of(distinct.tolist()) == truth.fold)[people]
        ids, people = ids[mine], people[mine]
    if by != "face_id":
        faces = center_faces(lake, ids)
        counts["images_without_a_face"] = int((faces < 0).sum())
        ids, people = faces[faces >= 0], people[faces >= 0]
    if not len(ids):
        raise UsageError(
            f"{truth.file} names no face of {lake.uri}: it needs a column face_id, image_id, or "
            f"{truth.path_column} with paths relative to what was extracted"
        )
    order = np.argsort(ids)
    counts["faces_of_known_identity"] = len(ids)
    return ids[order], people[order], distinct, counts


def _current(lake: Lake, table: str, embedder: str, job: str) -> TableVersion:
    version = lake.current(table, embedder)
    if version is None:
        raise UsageError(
            f"{lake.uri} has no finished {table} of {embedder}: run `facescale {job} {lake.uri}` first"
        )
    return version


def _rows_of(
    haystack: NDArray[np.int64], ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Row of each id in an array of distinct ids, and whether it is there."""
    if not len(haystack):
        return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
    order = np.argsort(haystack)
    at, there = _rows_in_sorted(haystack[order], ids)
    return order[at], there


def _rows_in_sorted(
    haystack: NDArray[np.int64], ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """As _rows_of, of rising ids; costs nothing for those that are not asked for."""
    if not len(haystack):
        return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
    at = np.minimum(np.searchsorted(haystack, ids), len(haystack) - 1)
    return at, haystack[at] == ids


def _column_names(file: str) -> list[str]:
    """Columns of a CSV or Parquet file, without reading its rows."""
    for batch in _tables(file, None):
        return list(batch.schema.names)
    return []


def _by_id(truth: Truth, column: str) -> tuple[NDArray[np.int64], pa.ChunkedArray]:
    """(ids, identities) of the rows that have both."""
    wanted = [column, truth.identity_column]
    tables = []
    for table in _tables(truth.file, wanted):
        missing = [name for name in wanted if name not in table.schema.names]
        if missing:
            raise UsageError(f"{truth.file} has no column {missing[0]!r}; name it with --identity-column")
        tables.append(table.select(wanted))
    table = pa.concat_tables(tables)
    names = pc.fill_null(table[truth.identity_column].cast(pa.string()), "")
    kept = pc.and_(pc.is_valid(table[column]), pc.greater(pc.binary_length(names), 0))
    try:
        ids = table[column].filter(kept).cast(pa.int64()).to_numpy()
    except pa.ArrowException as error:
        raise DataError(f"{truth.file}: column {column} is not of whole numbers: {error}") from None
    return ids, names.filter(kept)


def _tables(file: str, columns: list[str] | None) -> Iterator[pa.Table]:
    """The file as one table; with `columns` None only its first rows, for their names."""
    kind = extension_of(file)
    if kind not in ("csv", "tsv", "txt", "parquet", "pq"):
        raise UsageError(f"{file} is no .csv, .tsv or .parquet file")
    try:
        with open_container(root_uri(file)) as stream:
            if kind in ("parquet", "pq"):
                with pq.ParquetFile(stream) as parquet:
                    if columns is None:
                        yield parquet.schema_arrow.empty_table()
                    else:
                        yield parquet.read(columns=[c for c in columns if c in parquet.schema_arrow.names])
                return
            options = pyarrow.csv.ParseOptions(
                delimiter="\t" if kind == "tsv" else ",", newlines_in_values=True
            )
            if columns is None:
                with pyarrow.csv.open_csv(stream, parse_options=options) as reader:
                    yield reader.schema.empty_table()
                return
            text = pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True, null_values=[""]
            )
            yield pyarrow.csv.read_csv(stream, parse_options=options, convert_options=text)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from None
    except pa.ArrowException as error:
        raise DataError(f"{file} cannot be parsed: {error}; mend or convert it") from None
