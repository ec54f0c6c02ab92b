"""A lake's images, faces and embeddings as arrays, joined: what verification measures on.

Called by facescale.bench.verification. Everything is held in memory (1 kB a face), as benchmarks are of thousands of
photographs, not of a crawl.

Shape legend: I images, N faces, D embedding dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from facescale.bench.metrics import nearest_to_center
from facescale.errors import UsageError
from facescale.lake.ids import image_id_of
from facescale.lake.scan import scan
from facescale.sources.uris import uri_of_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from facescale.lake.lake import Lake
    from facescale.lake.parts import TableVersion


@dataclass(frozen=True, eq=False)
class LakeFaces:
    """The tables side by side; faces are sorted by face_id.

    Attributes:
        uris: I.
        statuses: I.
        image_ids: int64 [I].
        sizes: float64 [I, 2], width and height px; 0 where the image could not be read.
        num_faces: int64 [I], as `images` has it.
        face_ids: int64 [N].
        image: int64 [N], row of each face's image.
        boxes: float32 [N, 4] px.
        landmarks: float32 [N, K, 2] px.
        unit: float32 [N, D], as stored (float16, unit length).
        norms: float32 [N].
        center: int64 [I], the face nearest its image's center; -1 without faces.
    """

    uris: list[str]
    statuses: list[str]
    image_ids: np.ndarray
    sizes: np.ndarray
    num_faces: np.ndarray
    face_ids: np.ndarray
    image: np.ndarray
    boxes: np.ndarray
    landmarks: np.ndarray
    unit: np.ndarray
    norms: np.ndarray
    center: np.ndarray

    @property
    def raw(self) -> np.ndarray:
        """float32 [N, D], the descriptors as the network gave them, but for rounding to float16."""
        vectors: np.ndarray = self.unit * self.norms[:, None]
        return vectors

    def rows_of(self, root: Path, paths: Sequence[str]) -> np.ndarray:
        """Rows of photographs among the images: int64, -1 for one that the lake does not have.

        Args:
            root: folder they were extracted from, absolute.
            paths: relative to it.
        """
        row = {uri: number for number, uri in enumerate(self.uris)}
        return np.array([row.get(uri_of_path(str(root / path)), -1) for path in paths], np.int64)

    def center_of(self, rows: np.ndarray) -> np.ndarray:
        """The face nearest the center, of images by row: int64; -1 for no face, no image."""
        return np.where(rows >= 0, self.center[rows], -1)


def read_faces(lake: Lake, embedder: str) -> LakeFaces:
    """Read the current tables.

    Raises:
        UsageError: the lake has no faces, or none embedded by this model.
    """
    images = _read(
        lake, _current(lake, "images"), ["image_id", "uri", "width", "height", "status", "num_faces"]
    )
    faces = _read(lake, _current(lake, "faces"), ["face_id", "box", "landmarks"])
    vectors = _read(lake, _current(lake, "embeddings", embedder), ["face_id", "embedding", "norm"])
    if not faces["face_id"].equals(vectors["face_id"]):
        raise UsageError(
            f"{lake.uri}: not every face is embedded by {embedder} yet: run `facescale embed` first"
        )
    image_ids, face_ids = images["image_id"].to_numpy(), faces["face_id"].to_numpy()
    order = np.argsort(image_ids)
    row = order[np.searchsorted(image_ids[order], image_id_of(face_ids))]
    boxes = _matrix(faces["box"], len(face_ids))
    sides = [images[side].fill_null(0).to_numpy() for side in ("width", "height")]
    sizes = np.column_stack(sides).astype(np.float64)
    return LakeFaces(
        uris=images["uri"].to_pylist(),
        statuses=images["status"].to_pylist(),
        image_ids=image_ids,
        sizes=sizes,
        num_faces=images["num_faces"].to_numpy().astype(np.int64),
        face_ids=face_ids,
        image=row,
        boxes=boxes,
        landmarks=_matrix(faces["landmarks"], len(face_ids)).reshape(len(face_ids), -1, 2),
        unit=_matrix(vectors["embedding"], len(face_ids)).astype(np.float32),
        norms=vectors["norm"].to_numpy(),
        center=nearest_to_center(boxes, row, sizes),
    )


def _current(lake: Lake, table: str, model: str = "-") -> TableVersion:
    version = lake.current(table, model)
    if version is None:
        raise UsageError(
            f"{lake.uri} has no finished {table} yet: run `facescale extract SRC {lake.uri}` first"
        )
    return version


def _read(lake: Lake, version: TableVersion, columns: list[str]) -> pa.Table:
    tables = list(scan(lake, version, columns=columns))
    if not tables:
        raise UsageError(f"{lake.uri}: {version.folder} has no rows, so there is nothing to measure")
    return pa.concat_tables(tables).combine_chunks()


def _matrix(column: pa.ChunkedArray, rows: int) -> np.ndarray:
    """A column of lists of one length as [N, length]."""
    flat: np.ndarray = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(rows, -1)
