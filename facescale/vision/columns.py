"""Images, faces and cut-outs of one part in, as they come; its tables out. Used by the extract and embed stages.

Nothing here looks at pixels: facescale.vision.extract does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from facescale.lake.ids import make_face_id, make_image_id
from facescale.lake.schema import table_schema
from facescale.lake.stage import StageResult
from facescale.vision.crops import face_geometry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from facescale.imaging.hashes import Perceptual
    from facescale.lake.parts import TableVersion
    from facescale.vision.protocols import Detections, FaceQuality

QUALITY_COLUMNS = ("sharpness", "brightness", "contrast", "yaw_deg", "pitch_deg", "truncation", "quality")
"""Columns of `faces` that a quality scorer fills, named as the fields of FaceQuality."""


@dataclass(frozen=True)
class ExtractVersions:
    """Where the tables go. `embeddings` is None when they are to be made from the stored crops afterwards."""

    images: TableVersion
    faces: TableVersion
    crops: TableVersion
    embeddings: TableVersion | None


@dataclass
class Item:
    """One image on its way through the stage; `pixels` is dropped as soon as its faces are cut out."""

    row: int
    uri: str
    status: str
    detail: str | None = None
    width: int | None = None
    height: int | None = None
    num_bytes: int | None = None
    sha256: bytes | None = None
    perceptual: Perceptual | None = None
    num_faces: int = 0
    pixels: np.ndarray | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class CutFaces:
    """The faces of some images as the lake keeps them.

    Args:
        jpegs: bytes of each crop.
        sizes: height and width of each crop, px.
        matrices: float32 [n, 2, 3], px of the image → px of the crop.
        quality: of each face.
    """

    jpegs: list[bytes]
    sizes: list[tuple[int, int]]
    matrices: np.ndarray
    quality: FaceQuality


@dataclass
class Columns:
    """The growing tables of one part.

    Args:
        shard: of the part.
    """

    shard: int
    items: list[Item] = field(default_factory=list)
    face_ids: list[np.ndarray] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    landmarks: list[np.ndarray] = field(default_factory=list)
    rolls: list[np.ndarray] = field(default_factory=list)
    inter_eyes: list[np.ndarray] = field(default_factory=list)
    qualities: list[FaceQuality] = field(default_factory=list)
    jpegs: list[bytes] = field(default_factory=list)
    cutting: list[Future[CutFaces]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    matrices: list[np.ndarray] = field(default_factory=list)
    chips: list[np.ndarray] = field(default_factory=list)
    embeddings: list[np.ndarray] = field(default_factory=list)

    def add_images(self, items: Sequence[Item]) -> None:
        """Take the images of one micro-batch, whose faces have been added."""
        self.items.extend(items)

    def add_faces(
        self, rows: list[int], faces: list[Detections], landmarks: list[np.ndarray], scheme: str
    ) -> None:
        """Take the faces of some images, by row and then by descending score."""
        counts = np.array([len(found) for found in faces])
        image_ids = make_image_id(self.shard, np.array(rows, np.int64))
        ordinals = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + 1
        points = np.concatenate(landmarks)
        inter_eye, roll = face_geometry(points, scheme)
        self.face_ids.append(make_face_id(np.repeat(image_ids, counts), ordinals))
        self.boxes.append(np.concatenate([found.boxes for found in faces]))
        self.scores.append(np.concatenate([found.scores for found in faces]))
        self.landmarks.append(points)
        self.inter_eyes.append(inter_eye)
        self.rolls.append(roll)

    def add_crops(self, cutting: list[Future[CutFaces]]) -> None:
        """Take the crops of one micro-batch while they are made; those before it must be ready first."""
        self._finish_crops()  # bounds the pixels that wait
        self.cutting = cutting

    def _finish_crops(self) -> None:
        for future in self.cutting:
            cut = future.result()
            self.jpegs.extend(cut.jpegs)
            self.sizes.extend(cut.sizes)
            self.matrices.append(cut.matrices)
            self.qualities.append(cut.quality)
        self.cutting = []

    def result(self, versions: ExtractVersions, dim: int) -> StageResult:
        """The finished tables and counters; `dim` is that of the embeddings, should there be none."""
        self._finish_crops()
        face_ids = _concat(self.face_ids, (0,), np.int64)
        tables = [(versions.faces, self._faces(face_ids)), (versions.crops, self._crops(face_ids))]
        if versions.embeddings is not None:
            raw = _concat(self.embeddings, (0, dim), np.float32)
            tables.append((versions.embeddings, embeddings_table(face_ids, raw)))
        tables.append((versions.images, self._images()))
        counters = {
            "images": len(self.items),
            "faces": len(face_ids),
            "bytes": sum(item.num_bytes or 0 for item in self.items),
        }
        for item in self.items:
            counters[f"status.{item.status}"] = counters.get(f"status.{item.status}", 0) + 1
        return StageResult(tables, counters)

    def _images(self) -> pa.Table:
        items = self.items
        columns: dict[str, Any] = {
            "image_id": make_image_id(self.shard, np.array([item.row for item in items], np.int64)),
            "uri": [item.uri for item in items],
            "width": [item.width for item in items],
            "height": [item.height for item in items],
            "bytes": [item.num_bytes for item in items],
            "sha256": [item.sha256 for item in items],
            "pdq": [item.perceptual and item.perceptual.pdq for item in items],
            "pdq_quality": [item.perceptual and item.perceptual.quality for item in items],
            "symmetric_hash": [item.perceptual and item.perceptual.symmetric for item in items],
            "status": [item.status for item in items],
            "detail": [item.detail for item in items],
            "num_faces": [item.num_faces for item in items],
        }
        return pa.table(columns, schema=table_schema("images"))

    def _faces(self, face_ids: np.ndarray) -> pa.Table:
        points = _concat(self.landmarks, (0, 1, 2), np.float32)
        width = points.shape[1] * 2
        offsets = np.arange(len(points) + 1, dtype=np.int32) * width
        return pa.table(
            {
                "face_id": face_ids,
                "box": fixed_lists(_concat(self.boxes, (0, 4), np.float32)),
                "landmarks": pa.ListArray.from_arrays(offsets, np.ascontiguousarray(points).reshape(-1)),
                "det_score": _concat(self.scores, (0,), np.float32),
                "roll_deg": _concat(self.rolls, (0,), np.float32),
                "inter_eye_px": _concat(self.inter_eyes, (0,), np.float32),
                **{name: self._measured(name) for name in QUALITY_COLUMNS},
            }
        )

    def _measured(self, name: str) -> pa.Array:
        """A column of quality, null where it is not known."""
        values = _concat([getattr(quality, name) for quality in self.qualities], (0,), np.float32)
        return pa.array(values, from_pandas=True)

    def _crops(self, face_ids: np.ndarray) -> pa.Table:
        sizes = np.array(self.sizes, np.int16).reshape(-1, 2)
        return pa.table(
            {
                "face_id": face_ids,
                "jpeg": pa.array(self.jpegs, pa.binary()),
                "width": sizes[:, 1],
                "height": sizes[:, 0],
                "matrix": fixed_lists(_concat(self.matrices, (0, 2, 3), np.float32).reshape(-1, 6)),
            }
        )


def embeddings_table(face_ids: np.ndarray, raw: np.ndarray) -> pa.Table:
    """The embeddings table of raw descriptors.

    Args:
        face_ids: int64 [N].
        raw: float32 [N, D] as the network gave them.

    Returns:
        face_id, embedding (float16 [D] of unit length), norm (float32). A descriptor without a direction (zero,
        or not finite) is stored as zeros with its norm, so that it is similar to nothing.
    """
    norms = np.linalg.norm(raw.astype(np.float64), axis=1)
    sound = np.isfinite(norms) & (norms > 0)
    unit = np.zeros_like(raw)
    np.divide(raw, norms[:, None], out=unit, where=sound[:, None], casting="unsafe")
    return pa.table(
        {
            "face_id": face_ids,
            "embedding": fixed_lists(unit.astype(np.float16)),
            "norm": norms.astype(np.float32),
        }
    )


def fixed_lists(values: np.ndarray) -> pa.FixedSizeListArray:
    """[N, D] as an Arrow array of N fixed-size lists, without a copy."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _concat(pieces: Sequence[np.ndarray], empty: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.concatenate(pieces) if pieces else np.zeros(empty, dtype)
