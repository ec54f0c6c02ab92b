"""The Lake of programs: what facescale.lake.lake.Lake is, and its tables as Arrow and numpy, its state, its soundness.

A URI comes in, tables and arrays go out. Offered as facescale.Lake; stages read part by part instead (lake.scan).

Shape legend: N rows, D dimension, P landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from facescale.driver.lake_info import lake_info, verify_lake
from facescale.errors import DataError, UsageError
from facescale.lake import lake as lake_module
from facescale.lake.face_filter import FaceFilter
from facescale.lake.ids import image_id_of
from facescale.lake.lineage import spec_of
from facescale.lake.scan import count_rows, scan, scan_ids
from facescale.lake.schema import table_names
from facescale.pipeline import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from facescale.driver.lake_info import LakeInfo
    from facescale.lake.parts import TableVersion
    from facescale.lake.verify import VerifyReport


@dataclass(frozen=True, eq=False)
class Images:
    """The table images, as arrays.

    Attributes:
        image_id: int64 [N], rising.
        uri: object [N], text.
        status: object [N], text; "ok" and "too_many_faces" are those that were looked at.
        width: int32 [N], px after EXIF orientation; 0 where unknown.
        height: int32 [N], likewise.
        num_faces: int16 [N].
    """

    image_id: NDArray[np.int64]
    uri: NDArray[Any]
    status: NDArray[Any]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    num_faces: NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Faces:
    """The table faces, as arrays.

    Attributes:
        face_id: int64 [N], rising.
        image_id: int64 [N], the image that each face is on.
        box: float32 [N, 4], x1, y1, x2, y2 px.
        landmarks: float32 [N, P, 2], x, y px.
        det_score: float32 [N], the detector's raw score.
        quality: float32 [N], 0 to 1; NaN where nobody has measured it.
    """

    face_id: NDArray[np.int64]
    image_id: NDArray[np.int64]
    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    det_score: NDArray[np.float32]
    quality: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The table embeddings of one model, as arrays.

    Attributes:
        face_id: int64 [N], rising.
        vectors: float32 [N, D] of unit length: a product of two rows is their cosine.
        norm: float32 [N], length of the raw descriptor; raw = vectors × norm.
    """

    face_id: NDArray[np.int64]
    vectors: NDArray[np.float32]
    norm: NDArray[np.float32]


class Lake(lake_module.Lake):
    """A lake that exists; make one with `open`, `create` or `open_or_create`.

    Examples:
        >>> lake = facescale.Lake.open("crawl.lake")
        >>> lake.table("labels", ["label"])["label"].unique().to_pylist()
        ['id_0000', 'id_0001', 'id_0002']
        >>> lake.embeddings().vectors.shape
        (18, 128)
        >>> lake.verify().ok
        True

    `versions`, `current`, `use` and `prune` are those of `facescale lake`. Reading leaves out images whose source was
    replaced, and their faces.
    """

    def version_of(self, table: str, model: str | None = None) -> TableVersion:
        """The current version of a table.

        Args:
            table: its name (docs/tables.md).
            model: whose table, for those that exist once per model; None where there is one.

        Raises:
            UsageError: there is no such table, or it is not finished; or there are several models to choose from.
        """
        if table not in table_names():
            raise UsageError(f"there is no table {table!r}; there are {', '.join(table_names())}")
        having = [v for v in self.current_versions() if v.table == table and model in (None, v.model)]
        if len(having) == 1:
            return having[0]
        if having:
            raise UsageError(
                f"{self.uri} has {table} of {', '.join(v.model for v in having)}: say which with model=NAME"
            )
        makers = {name: stage.name for stage in STAGES for name in stage.writes}
        job = {"label": "extract", "plan": "extract"}.get(makers.get(table, ""), makers.get(table, "run"))
        of = "" if model is None else f" of {model}"
        raise UsageError(f"{self.uri} has no finished {table}{of}: run `facescale {job}` first")

    def scan(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        *,
        model: str | None = None,
        where: str | None = None,
        batch_rows: int = 65_536,
    ) -> Iterator[pa.Table]:
        """Stream a table in bounded memory.

        Examples:
            >>> lake = facescale.Lake.open("crawl.lake")
            >>> sum(block.num_rows for block in lake.scan("faces", ["face_id"]))
            18

        Args:
            table: its name.
            columns: names in the order wanted; None for all.
            model: whose table, where there are several.
            where: only the faces that meet this condition on the columns of faces and attributes, such as
                "quality >= 0.5 and age > 17"; for tables with a row for each face.
            batch_rows: most rows of a block; memory is that of one block.

        Yields:
            Blocks in the order of ids, never an empty one.

        Raises:
            UsageError: as `version_of`.
            DataError: a column is not in the table.
            CorruptError: a file is damaged or missing.
        """
        version = self.version_of(table, model)
        if where is None:
            yield from scan(self, version, columns=columns, batch_rows=batch_rows)
            return
        spec = spec_of(self, version)
        if spec.key[0] != "face_id":
            raise UsageError(f"where: a condition on faces, and the table {table} has no row for each face")
        wanted = [column.name for column in spec.columns] if columns is None else list(columns)
        read = list(dict.fromkeys([*wanted, "face_id"]))
        condition = FaceFilter(self, where)
        for block in scan(self, version, columns=read, batch_rows=batch_rows):
            kept = block.filter(pa.array(condition.mask(block["face_id"].to_numpy()))).select(wanted)
            if kept.num_rows:
                yield kept

    def table(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        *,
        model: str | None = None,
        where: str | None = None,
    ) -> pa.Table:
        """A whole table in memory; as `scan`, in one piece."""
        version = self.version_of(table, model)
        blocks = list(self.scan(table, columns, model=model, where=where))
        if blocks:
            return pa.concat_tables(blocks)
        return scan_ids(self, version, np.zeros(0, np.int64), columns, missing="skip")

    def rows(
        self, table: str, ids: ArrayLike, columns: Sequence[str] | None = None, *, model: str | None = None
    ) -> pa.Table:
        """Rows of some faces or images; opens only the files that hold them.

        Examples:
            >>> lake = facescale.Lake.open("crawl.lake")
            >>> ids = lake.faces().face_id[:2]
            >>> lake.rows("crops", ids, ["width", "height"]).num_rows
            2

        Args:
            table: its name.
            ids: int64 [N], image or face ids, whichever the table is keyed by, in any order.
            columns: names in the order wanted; None for all.
            model: whose table, where there are several.

        Returns:
            Rows in the order of `ids`; an id with several rows (labels) gives all of them.

        Raises:
            UsageError: as `version_of`.
            DataError: an id has no row, ids are no integers, or a column is not in the table.
            CorruptError: a file is damaged or missing.
        """
        wanted = np.asarray(ids)
        if wanted.size and wanted.dtype.kind not in "iu":
            raise DataError(f"ids: expected integers, got {wanted.dtype}")
        return scan_ids(self, self.version_of(table, model), wanted.astype(np.int64).ravel(), columns)

    def images(self) -> Images:
        """All images as arrays: some 100 bytes an image, by the length of their URIs."""
        found = self.table("images", ["image_id", "uri", "status", "width", "height", "num_faces"])
        return Images(
            found["image_id"].to_numpy(),
            found["uri"].to_numpy(),
            found["status"].to_numpy(),
            found["width"].fill_null(0).to_numpy(),
            found["height"].fill_null(0).to_numpy(),
            found["num_faces"].to_numpy(),
        )

    def faces(self) -> Faces:
        """All faces as arrays: 80 bytes a face with five landmarks."""
        found = self.table("faces", ["face_id", "box", "landmarks", "det_score", "quality"])
        face_id, N = found["face_id"].to_numpy(), found.num_rows
        points = _values(found["landmarks"])
        if N and len(points) % (2 * N):
            raise DataError(f"{self.uri}: faces have different numbers of landmarks; read them with `table`")
        return Faces(
            face_id,
            image_id_of(face_id),
            _values(found["box"]).reshape(N, 4),
            points.reshape(N, len(points) // (2 * N) if N else 0, 2),
            found["det_score"].to_numpy(),
            found["quality"].fill_null(np.nan).to_numpy(),
        )

    def embeddings(self, model: str | None = None) -> Embeddings:
        """All embeddings of a model as one matrix: 4·D + 12 bytes a face, so 524 MB for a million faces of 128 numbers.

        Args:
            model: whose; None where there is one.
        """
        version = self.version_of("embeddings", model)
        most, filled = count_rows(self, version), 0
        face_id, norm = np.empty(most, np.int64), np.empty(most, np.float32)
        vectors = np.empty((0, 0), np.float32)
        for block in scan(self, version, columns=["face_id", "embedding", "norm"]):
            rows = _values(block["embedding"]).astype(np.float32).reshape(block.num_rows, -1)
            if not filled:
                vectors = np.empty((most, rows.shape[1]), np.float32)
            into = slice(filled, filled + block.num_rows)
            # Stored as float16, which leaves lengths off by some 1e-4.
            vectors[into] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            face_id[into], norm[into] = block["face_id"].to_numpy(), block["norm"].to_numpy()
            filled += block.num_rows
        return Embeddings(face_id[:filled], vectors[:filled], norm[:filled])

    def info(self) -> LakeInfo:
        """What it holds: current versions with rows and bytes, image statuses; opens the footer of every part."""
        return lake_info(self.uri)

    def verify(self) -> VerifyReport:
        """Read every part and index file and check what they promise; `problems` is empty when all is sound."""
        return verify_lake(self.uri)


def _values(column: pa.ChunkedArray) -> NDArray[Any]:
    """The numbers in a column of lists, one after the other."""
    found: NDArray[Any] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return found
