"""Embeddings made elsewhere become tables: a part of a planned file in, rows of images, faces and embeddings out.

Every row of the file has a row in `images`, with its own status; one that shares the uri of an earlier row is
`same_image`, and its face is listed under that one. Called by the engine, for the job import.

Shape legend: N rows, D dimension, F faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from facescale.lake.ids import MAX_FACES, make_face_id, make_image_id
from facescale.lake.schema import table_schema
from facescale.lake.stage import Guard, StageResult
from facescale.sources.read import Source, attempt
from facescale.sources.vector_file import open_vectors
from facescale.sources.vector_parquet import list_matrix
from facescale.sources.vector_shared import Shared, read_shared, row_uris, uri_texts
from facescale.sources.vector_types import EMPTY, OK, WRONG_DIMENSION, WRONG_TYPE, VectorFile

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from facescale.lake.parts import PartKey, TableVersion
    from facescale.lake.store import Store
    from facescale.sources.plan import SourcePart

    Rows = NDArray[np.int64]

REVISION = 1
UNIT_TOLERANCE = 1e-3
"""How far a length may be from 1 and still count as unit length; the others are counted as `rescaled`."""
NO_BOX = np.array([0, 0, 1, 1], np.float32)
"""The box of a face whose box is not known: the table has one for every face."""

_BAD = {EMPTY: "empty", WRONG_DIMENSION: "wrong_dimension", WRONG_TYPE: "wrong_type"}
_NOT_FINITE, _ZERO = 10, 11
_BAD |= {_NOT_FINITE: "not_finite", _ZERO: "zero_vector"}


@dataclass(frozen=True)
class ImportSettings:
    """What decides the tables.

    Attributes:
        dim: dimension of the model; other vectors are `wrong_dimension`.
        column: of the embedding, in Parquet.
    """

    dim: int
    column: str = "embedding"


@dataclass(frozen=True)
class ImportVersions:
    """Where the tables go."""

    images: TableVersion
    faces: TableVersion
    embeddings: TableVersion


@dataclass(frozen=True, eq=False)
class _Read:
    """Rows of a part and those that share their images, rising.

    Attributes:
        rows: int64 [N], of the file.
        state: uint8 [N], OK or a key of _BAD.
        unit: float16 [N, D].
        norm: float32 [N].
        score: float32 [N], the detector's.
        quality: float32 [N], NaN where unknown.
        box: float32 [N, 4] px.
        uri: string [N], null where there is none.
    """

    rows: Rows
    state: NDArray[np.uint8]
    unit: NDArray[np.float16]
    norm: NDArray[np.float32]
    score: NDArray[np.float32]
    quality: NDArray[np.float32]
    box: NDArray[np.float32]
    uri: pa.Array


class ImportStage:
    """The stage of import. Counters: images (rows), faces, status.*, rescaled, quality_out_of_range, boxes_unknown.

    Args:
        settings: see there.
        store: the lake's storage.
        versions: where the tables go.
    """

    name = "import"

    def __init__(self, settings: ImportSettings, store: Store, versions: ImportVersions) -> None:
        self.settings, self.store, self.versions = settings, store, versions
        self._file: VectorFile | None = None

    def open(self) -> None:
        """Nothing to load."""

    def process(self, part: SourcePart, guard: Guard) -> StageResult:
        """Make the tables of one part; nothing in it could kill a worker, so `guard` is not asked.

        Notes:
            Memory: 14 D + 60 bytes a row of the part and of the rows that share its images.
        """
        source = source_of(self.store, part)
        shared = read_shared(self.store, part.key)
        found, verdict = attempt(source, lambda: self._read(source, part, shared))
        if found is None:
            assert verdict is not None
            self._close()
            return self._result(part.key, _failed_images(source.uri, part.key, *verdict), None, {})
        return self._tables(source.uri, part.key, shared, found)

    def _read(self, source: Source, part: SourcePart, shared: Shared) -> _Read:
        if self._file is None or self._file.uri != source.uri:
            self._close()
            self._file = open_vectors(
                source.uri, part.format, column=self.settings.column, dim=self.settings.dim
            )
        own = np.arange(part.key.first_row, part.key.first_row + part.key.num_rows)
        rows = np.union1d(own, shared.rows)
        file = self._file
        vectors = file.vectors(rows, self.settings.dim)
        state = vectors.state.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            length = np.sqrt(np.einsum("nd,nd->n", vectors.values, vectors.values, dtype=np.float64))
        good = state == OK
        state[good & ~(length <= np.finfo(np.float32).max)] = _NOT_FINITE
        state[good & (length == 0)] = _ZERO
        usable = np.where(state == OK, length, 1.0)
        unit = np.where((state == OK)[:, None], vectors.values, 0) / usable[:, None]
        return _Read(
            rows=rows,
            state=state,
            unit=unit.astype(np.float16),
            norm=np.maximum(usable, np.finfo(np.float32).tiny).astype(np.float32),
            score=np.nan_to_num(_numbers(file, "det_score", rows, 1.0), nan=0.0, posinf=0.0, neginf=0.0),
            quality=_numbers(file, "quality", rows, np.nan),
            box=_boxes(file, rows),
            uri=uri_texts(file, rows),
        )

    def _tables(self, uri: str, key: PartKey, shared: Shared, found: _Read) -> StageResult:
        own = np.searchsorted(found.rows, np.arange(key.first_row, key.first_row + key.num_rows))
        image = (
            found.rows.copy()
        )  # the row that stands for the image of each row; outside rows of others are not here
        image[own] = shared.first
        image[np.searchsorted(found.rows, shared.rows)] = shared.images
        mine = (image >= key.first_row) & (image < key.first_row + key.num_rows)
        usable = np.flatnonzero(mine & (found.state == OK))
        order = usable[np.lexsort((found.rows[usable], -found.score[usable], image[usable]))]
        begins = np.searchsorted(image[order], image[order], side="left")
        rank = np.arange(len(order)) - begins
        kept = order[rank < MAX_FACES]
        face_ids = make_face_id(make_image_id(key.shard, image[kept]), rank[rank < MAX_FACES] + 1)
        counts = np.bincount(image[usable] - key.first_row, minlength=key.num_rows)
        bad = np.bincount(image[mine & (found.state != OK)] - key.first_row, minlength=key.num_rows)
        images = _images(uri, key, found, own, shared, counts, bad)
        quality = found.quality[kept]
        unknown: NDArray[np.bool_] = ~((quality >= 0) & (quality <= 1))
        no_box = np.isnan(found.box[kept][:, 0])  # then all four are
        boxes = np.where(no_box[:, None], NO_BOX, found.box[kept])
        faces = pa.table(
            {
                "face_id": face_ids,
                "box": pa.FixedSizeListArray.from_arrays(pa.array(boxes.ravel()), 4),
                "landmarks": _no_landmarks(len(kept)),
                "det_score": found.score[kept],
                "quality": pa.array(quality, pa.float32(), mask=unknown),
            }
        )
        schema = table_schema("embeddings", dim=self.settings.dim)
        flat = pa.array(found.unit[kept].ravel(), pa.float16())
        vectors = pa.FixedSizeListArray.from_arrays(flat, self.settings.dim)
        embeddings = pa.Table.from_arrays(
            [pa.array(face_ids), vectors, pa.array(found.norm[kept])], schema=schema
        )
        counters = {
            "faces": len(kept),
            "rescaled": int((np.abs(found.norm[kept] - 1) > UNIT_TOLERANCE).sum()),
            "quality_out_of_range": int((unknown & ~np.isnan(quality)).sum()),
            "boxes_unknown": int(no_box.sum()),
        }
        return self._result(key, images, (faces, embeddings), counters)

    def _result(
        self, key: PartKey, images: pa.Table, made: tuple[pa.Table, pa.Table] | None, counters: dict[str, int]
    ) -> StageResult:
        faces, embeddings = made or (
            _no_faces(),
            table_schema("embeddings", dim=self.settings.dim).empty_table(),
        )
        statuses = {f"status.{e['values']}": e["counts"] for e in images["status"].value_counts().to_pylist()}
        tables = [
            (self.versions.faces, faces),
            (self.versions.embeddings, embeddings),
            (self.versions.images, images),
        ]
        return StageResult(tables, {"images": key.num_rows, "faces": 0, **counters, **statuses})

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def source_of(store: Store, part: SourcePart) -> Source:
    """The planned file that a part is of."""
    (row,) = store.read_table(part.shard_path, ["uri", "bytes", "stamp"]).to_pylist()
    return Source(row["uri"], row["bytes"], row["stamp"])


def _images(
    uri: str, key: PartKey, found: _Read, own: Rows, shared: Shared, counts: Rows, bad: Rows
) -> pa.Table:
    """Rows of images; counts and bad are int64 [n], faces and unusable rows of each row's image."""
    rows, state = found.rows[own], found.state[own]
    stands = shared.first == rows
    status = np.full(len(rows), "ok", object)
    detail = np.full(len(rows), None, object)
    for code, name in _BAD.items():
        at = (state == code) & ~(stands & (counts > 0))
        status[at], detail[at] = name, _DETAILS[name]
    status[stands & (counts > MAX_FACES)] = "too_many_faces"
    elsewhere = ~stands & (state == OK)
    status[elsewhere] = "same_image"
    detail[elsewhere] = np.char.add(
        "its face is listed under row ", shared.first[elsewhere].astype(str)
    ).astype(object)
    partly = stands & (counts > 0) & (bad > 0)
    detail[partly] = np.char.add(bad[partly].astype(str), " of the rows with this uri are not usable").astype(
        object
    )
    return pa.table(
        {
            "image_id": make_image_id(key.shard, rows),
            "uri": row_uris(uri, rows, found.uri.take(pa.array(own))),
            "status": pa.array(status, pa.string()),
            "detail": pa.array(detail, pa.string()),
            "num_faces": np.where(stands, np.minimum(counts, MAX_FACES), 0).astype(np.int16),
        }
    )


_DETAILS = {
    "empty": "the row has no embedding",
    "wrong_dimension": "the embedding has another dimension than the model",
    "wrong_type": "the embedding is not made of numbers",
    "not_finite": "the embedding holds NaN, infinite or null numbers, or is longer than a float can tell",
    "zero_vector": "the embedding is zero: it has no direction",
}


def _failed_images(uri: str, key: PartKey, status: str, detail: str) -> pa.Table:
    rows = np.arange(key.first_row, key.first_row + key.num_rows)
    return pa.table(
        {
            "image_id": make_image_id(key.shard, rows),
            "uri": row_uris(uri, rows),
            "status": [status] * len(rows),
            "detail": [detail] * len(rows),
            "num_faces": np.zeros(len(rows), np.int16),
        }
    )


def _no_faces() -> pa.Table:
    schema = table_schema("faces")
    names = ["face_id", "box", "landmarks", "det_score"]
    return pa.schema([schema.field(name) for name in names]).empty_table()


def _no_landmarks(count: int) -> pa.Array:
    return pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], pa.float32()))


def _numbers(file: VectorFile, name: str, rows: Rows, default: float) -> NDArray[np.float32]:
    """A column of numbers, float32 [N], NaN for null and for what is no number; `default` where there is no column."""
    if not file.has(name):
        return np.full(len(rows), default, np.float32)
    column: Any = file.column(name, rows)
    try:
        values: NDArray[np.float32] = (
            column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float32)
        )
    except pa.ArrowException:
        return np.full(len(rows), np.nan, np.float32)
    return values


def _boxes(file: VectorFile, rows: Rows) -> NDArray[np.float32]:
    """float32 [N, 4]; NaN where there is none, or one without an area."""
    boxes = np.full((len(rows), 4), np.nan, np.float32)
    if file.has("box"):
        found = list_matrix(file.column("box", rows), 4)
        with np.errstate(invalid="ignore"):
            area = (found.values[:, 2] > found.values[:, 0]) & (found.values[:, 3] > found.values[:, 1])
        good = (found.state == OK) & area & np.isfinite(found.values).all(axis=1)
        boxes[good] = found.values[good]
    return boxes
