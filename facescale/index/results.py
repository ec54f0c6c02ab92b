"""Search results as a table: hits joined with where the face is and what its image claims.

Neighbor lists (facescale.index.search) and a lake come in; a pyarrow.Table goes out, to screen, Parquet or JSON.
Called by the command line and by users of the library.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from facescale.errors import DataError, UsageError
from facescale.index.exact import NO_ID
from facescale.lake.ids import image_id_of
from facescale.lake.scan import scan_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from facescale.index.search import Index
    from facescale.lake.lake import Lake

RESULTS_SCHEMA = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False, metadata={"description": "Name of the query."}),
        pa.field(
            "rank",
            pa.int32(),
            nullable=False,
            metadata={"description": "1 for the most similar face of the query."},
        ),
        pa.field(
            "face_id", pa.int64(), nullable=False, metadata={"description": "The face, in the table faces."}
        ),
        pa.field(
            "similarity", pa.float32(), nullable=False, metadata={"description": "Cosine similarity, -1..1."}
        ),
        pa.field("uri", pa.string(), nullable=False, metadata={"description": "Where the image came from."}),
        pa.field(
            "box",
            pa.list_(pa.float32(), 4),
            nullable=False,
            metadata={"description": "x1, y1, x2, y2 of the face on the EXIF-oriented image.", "unit": "px"},
        ),
        pa.field(
            "label",
            pa.string(),
            metadata={
                "description": "What the image claims; several claims are joined by '; ', null is none."
            },
        ),
    ],
    metadata={"facescale.table": "results"},
)


def search_table(
    index: Index,
    names: Sequence[str],
    queries: NDArray[np.floating],
    *,
    k: int = 10,
    label: str | None = None,
    min_similarity: float = -1.0,
    min_quality: float = 0.0,
    where: str | None = None,
) -> pa.Table:
    """Search, and say for each hit where it is.

    Args:
        index: opened.
        names: of the queries, Q of them.
        queries: [Q, D], raw or unit length.
        k: faces for each query.
        label: only faces of images that claim this label.
        min_similarity: leave out hits below this cosine.
        min_quality: leave out faces of less quality, 0..1, and give the next ones; those that nobody has measured stay.
        where: leave out faces that do not meet this condition, and give the next ones.

    Returns:
        Rows of RESULTS_SCHEMA, by query in the order given, then by rank.

    Raises:
        UsageError, MismatchError: as facescale.index.search.Index.search.
    """
    if len(names) != len(queries):
        raise UsageError(f"{len(queries)} queries with {len(names)} names: give one name for each")
    ids, similarities = index.search(
        queries, k, label=label, min_quality=min_quality, where=where, names=names
    )
    return join_hits(index.lake, names, ids, similarities, min_similarity=min_similarity)


def join_hits(
    lake: Lake,
    names: Sequence[str],
    ids: NDArray[np.int64],
    similarities: NDArray[np.float32],
    *,
    min_similarity: float = -1.0,
) -> pa.Table:
    """Join neighbor lists with faces, images and labels; each part of the lake is opened at most once a table.

    Args:
        lake: the lake.
        names: of the queries, Q of them.
        ids: face_ids int64 [Q, k], -1 for none.
        similarities: float32 [Q, k].
        min_similarity: leave out hits below this cosine.

    Returns:
        Rows of RESULTS_SCHEMA.

    Raises:
        UsageError: the lake has no finished faces.
        DataError: a face has no row in the current faces.
    """
    faces, images, labels = lake.current("faces"), lake.current("images"), lake.current("labels")
    if faces is None or images is None:
        raise UsageError(f"{lake.uri} has no finished faces: run `facescale extract SRC {lake.uri}` first")
    row, rank = np.nonzero((ids != NO_ID) & (similarities >= min_similarity))
    if not len(row):
        return RESULTS_SCHEMA.empty_table()
    face_ids, face_of = np.unique(ids[row, rank], return_inverse=True)
    image_ids, image_of = np.unique(image_id_of(face_ids), return_inverse=True)
    boxes = scan_ids(lake, faces, face_ids, ["box"])["box"].combine_chunks()
    uris = scan_ids(lake, images, image_ids, ["uri"])["uri"].combine_chunks()
    claims = pa.nulls(len(image_ids), pa.string())
    if labels is not None:
        found = scan_ids(lake, labels, image_ids, ["image_id", "label"], missing="skip")
        claims = _claims(found, image_ids)
    to_face, to_image = pa.array(face_of), pa.array(image_of[face_of])
    return pa.Table.from_arrays(
        [
            pa.array(np.asarray(names, dtype=object)[row], pa.string()),
            pa.array((rank + 1).astype(np.int32)),
            pa.array(ids[row, rank]),
            pa.array(similarities[row, rank]),
            uris.take(to_image),
            boxes.take(to_face),
            claims.take(to_image),
        ],
        schema=RESULTS_SCHEMA,
    )


def results_json(table: pa.Table) -> list[dict[str, Any]]:
    """Results as plain values; ids are strings, because they pass 2⁵³."""
    rows: list[dict[str, Any]] = table.set_column(
        table.schema.get_field_index("face_id"), "face_id", table["face_id"].cast(pa.string())
    ).to_pylist()
    return rows


def write_results(table: pa.Table, path: str | Path) -> None:
    """Write results as Parquet, ids as int64; a temporary name is used until the file is whole."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        pq.write_table(table, partial, compression="zstd")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def query_vectors(table: pa.Table, *, where: str) -> tuple[list[str], NDArray[np.float32]]:
    """Queries from a table of embeddings made elsewhere or exported from a lake.

    Args:
        table: with a column `embedding` (lists of floats of one length) and optionally a column of names: the first
            of query, name, uri, face_id.
        where: what the table is, for messages.

    Returns:
        (names, float32 [Q, D]); rows without a name column are named by their number.

    Raises:
        DataError: there is no such column, or its lists are null or of different lengths.
    """
    if "embedding" not in table.column_names:
        raise DataError(f"{where}: there is no column embedding (it has {', '.join(table.column_names)})")
    column = table["embedding"].combine_chunks()
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise DataError(f"{where}: column embedding is {kind}; expected lists of floats")
    values = column.flatten()
    lengths = {len(values) // max(1, len(column))} if pa.types.is_fixed_size_list(kind) else _lengths(column)
    if column.null_count or values.null_count or len(lengths) > 1:
        raise DataError(
            f"{where}: column embedding has nulls or lists of different lengths; leave out rows without an embedding"
        )
    dim = lengths.pop() if lengths else 0
    vectors = values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), dim)
    for name in ("query", "name", "uri", "face_id"):
        if name in table.column_names:
            return [str(value) for value in table[name].to_pylist()], vectors
    return [str(row) for row in range(len(column))], vectors


def _lengths(column: pa.Array) -> set[int]:
    return set(pc.unique(pc.list_value_length(column)).to_pylist()) - {None}


def _claims(found: pa.Table, image_ids: NDArray[np.int64]) -> pa.Array:
    """The distinct labels of each image, joined, in the order of the sorted image ids; null for none."""
    pairs = (
        found.group_by(["image_id", "label"])
        .aggregate([])
        .sort_by([("image_id", "ascending"), ("label", "ascending")])
    )
    owners, first = np.unique(pairs["image_id"].to_numpy(), return_index=True)
    labels = pairs["label"].combine_chunks()
    offsets = pa.array(np.append(first, len(labels)).astype(np.int32))
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, labels.cast(pa.string())), "; ")
    at = np.searchsorted(owners, image_ids)
    has = np.isin(image_ids, owners)
    return joined.take(pa.array(np.where(has, at, 0), mask=~has))
