"""Small lakes of simulated embeddings, written through the lake's own commit, for the index tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from facescale.lake.ids import image_id_of, make_face_id, make_image_id
from facescale.lake.lake import Lake
from facescale.lake.parts import PartKey, TableVersion, commit_part

if TYPE_CHECKING:
    from pathlib import Path

MODEL = "toy"
IMAGES = TableVersion("images", "1" * 12)
FACES = TableVersion("faces", "2" * 12)
EMBEDDINGS = TableVersion("embeddings", "3" * 12, MODEL)
LABELS = TableVersion("labels", "4" * 12)


def people(count: int, dim: int, *, faces_each: int = 10, spread: float = 0.6, seed: int = 0) -> np.ndarray:
    """float32 [count, dim] unit vectors around count / faces_each random centers."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((-(-count // faces_each), dim))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    vectors = np.repeat(centers, faces_each, axis=0)[:count]
    vectors = vectors + spread * rng.standard_normal(vectors.shape) / np.sqrt(dim)
    vectors = vectors[rng.permutation(count)]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_parts(
    lake: Lake,
    vectors: np.ndarray,
    *,
    shard: int = 0,
    part_rows: int = 256,
    faces_per_image: int = 1,
    embeddings: TableVersion = EMBEDDINGS,
    quality: np.ndarray | None = None,
) -> np.ndarray:
    """Write images, faces, embeddings and labels of one shard; the label of image row r is person r % 7.

    The quality of a face is null where `quality` [faces] is NaN.

    Returns:
        face_ids int64, in the order of `vectors`.
    """
    num_images = -(-len(vectors) // faces_per_image)
    image_rows = np.arange(len(vectors)) // faces_per_image
    ordinals = np.arange(len(vectors)) % faces_per_image + 1
    image_ids = make_image_id(shard, np.arange(num_images, dtype=np.int64))
    face_ids = make_face_id(image_ids[image_rows], ordinals)
    for first in range(0, num_images, part_rows):
        part = PartKey(shard, first, min(part_rows, num_images - first))
        mine = (image_rows >= first) & (image_rows < first + part.num_rows)
        rows = np.arange(first, first + part.num_rows)
        commit_part(
            lake.store,
            part,
            [
                (FACES, _faces(face_ids[mine], None if quality is None else quality[mine])),
                (embeddings, _embeddings(face_ids[mine], vectors[mine])),
                (
                    IMAGES,
                    _images(image_ids[rows], np.bincount(image_rows[mine] - first, minlength=part.num_rows)),
                ),
            ],
        )
        commit_part(lake.store, part, [(LABELS, _labels(image_ids[rows], rows))])
    lake.set_current([IMAGES, FACES, embeddings, LABELS])
    return face_ids


def make_lake(uri: str | Path, vectors: np.ndarray, **options: Any) -> tuple[Lake, np.ndarray]:
    """A lake with one shard of these embeddings; (lake, face_ids)."""
    lake = Lake.create(str(uri))
    for version, stage in ((IMAGES, "extract"), (FACES, "extract"), (EMBEDDINGS, "embed"), (LABELS, "label")):
        lake.write_version(version, stage=stage, settings={}, revision=1, inputs={})
    return lake, write_parts(lake, vectors, **options)


def stored(vectors: np.ndarray) -> np.ndarray:
    """What a reader gets back: rounded to float16, unit length again."""
    rounded = vectors.astype(np.float16).astype(np.float32)
    return rounded / np.linalg.norm(rounded, axis=1, keepdims=True)


def brute_force(vectors: np.ndarray, ids: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k most similar, int64 [Q, k], in float64 and plain numpy."""
    sims = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return ids[np.argsort(-sims, axis=1, kind="stable")[:, :k]]


def _images(image_ids: np.ndarray, num_faces: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "image_id": image_ids,
            "uri": [f"/photos/{image_id}.jpg" for image_id in image_ids],
            "status": ["ok"] * len(image_ids),
            "num_faces": num_faces.astype(np.int16),
        }
    )


def _faces(face_ids: np.ndarray, quality: np.ndarray | None) -> pa.Table:
    # The box tells the face, so that a wrong join shows.
    left = (image_id_of(face_ids) >> 8) % 1000
    boxes = np.stack([left, face_ids & 255, left + 50, (face_ids & 255) + 50], axis=1).astype(np.float32)
    return pa.table(
        {
            "face_id": face_ids,
            "box": pa.FixedSizeListArray.from_arrays(boxes.ravel(), 4),
            "landmarks": pa.array([[1.0, 2.0]] * len(face_ids), pa.list_(pa.float32())),
            "det_score": np.ones(len(face_ids), np.float32),
            **({} if quality is None else {"quality": pa.array(quality, pa.float32(), from_pandas=True)}),
        }
    )


def _embeddings(face_ids: np.ndarray, vectors: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "face_id": face_ids,
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.astype(np.float16).ravel()), vectors.shape[1]
            ),
            "norm": np.ones(len(face_ids), np.float32),
        }
    )


def _labels(image_ids: np.ndarray, rows: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "image_id": image_ids,
            "label": [f"person {row % 7}" for row in rows],
            "origin": ["folder"] * len(image_ids),
        }
    )
