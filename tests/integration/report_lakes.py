"""A small lake with everything a report shows: crops, copies, wrong labels, and names that mean harm."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from index_lakes import FACES, IMAGES, LABELS, make_lake, write_parts
from PIL import Image

from facescale import pipeline
from facescale.config.job import JobConfig
from facescale.lake.ids import make_image_id
from facescale.lake.lake import Lake
from facescale.lake.parts import PartKey, TableVersion, commit_part

MODEL = "dlib_resnet"  # calibrated, with 128 numbers
VECTORS = TableVersion("embeddings", "3" * 12, MODEL)
CROPS = TableVersion("crops", "6" * 12)
PEOPLE, PHOTOS, PART = 6, 9, 16
COUNT = PEOPLE * PHOTOS
HOSTILE = (
    "<script>document.documentElement.dataset.hacked = 'yes'</script>\"'><img src=https://example.com/x.png "
    "onerror=\"document.documentElement.dataset.hacked='yes'\"></style>\u202etxet\u2067\n\t{{ 7 * 7 }}\x00"
    + "W"
    * 500
)
"""A label that runs, loads, turns the page's text around, and is too long for it."""


def person(number: int) -> str:
    """The label of a person; the first one's means harm."""
    return HOSTILE if number == 0 else f"person {number}"


def truth() -> np.ndarray:
    """The person on each image."""
    return np.arange(COUNT) % PEOPLE


def claims() -> list[str]:
    """The label of each image: photograph 7 of person 1 is claimed for person 2."""
    labels = [person(int(number)) for number in truth()]
    labels[7] = person(2)
    return labels


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def portrait(number: int, side: int = 96) -> bytes:
    """A crop of one color for each person; of noise for number -1."""
    if number < 0:
        return jpeg(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    color = [40 + 30 * number, 200 - 25 * number, 120]
    return jpeg(np.full((side, side, 3), color, np.uint8))


def vectors() -> np.ndarray:
    """float32 [COUNT, 128]: faces of one person have cosines near 0.97, of two near 0."""
    rng = np.random.default_rng(1)
    centers = rng.standard_normal((PEOPLE, 128))
    found = centers[truth()] + 0.17 * rng.standard_normal((COUNT, 128))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def report_lake(root: Path) -> Lake:
    """Images 30 and 48 are near copies of image 0, image 31 is the same file as image 1; one file failed."""
    lake, _ = make_lake(root, np.empty((0, 128), np.float32))
    lake.write_version(VECTORS, stage="embed", settings={}, revision=1, inputs={"faces": FACES.fingerprint})
    lake.write_version(CROPS, stage="extract", settings={}, revision=1, inputs={})
    ids = write_parts(lake, vectors(), part_rows=PART, embeddings=VECTORS)
    rng, labels = np.random.default_rng(2), claims()
    digest, look = [rng.bytes(32) for _ in range(COUNT)], [rng.bytes(32) for _ in range(COUNT)]
    digest[31], look[31] = digest[1], look[1]
    look[30] = bytes([look[0][0] ^ 0b111]) + look[0][1:]
    look[48] = bytes([look[0][0] ^ 0b1]) + look[0][1:]
    for first in range(0, COUNT, PART):
        part = PartKey(0, first, min(PART, COUNT - first))
        rows = range(first, first + part.num_rows)
        images = pa.table(
            {
                "image_id": make_image_id(0, np.array(rows, np.int64)),
                "uri": [f"/photos/{row}<b onclick=alert(1)>.jpg" for row in rows],
                "width": pa.array([100] * len(rows), pa.int32()),
                "height": pa.array([80 if row % 2 else 120 for row in rows], pa.int32()),
                "bytes": pa.array([1000] * len(rows), pa.int64()),
                "sha256": pa.array([digest[row] for row in rows], pa.binary(32)),
                "pdq": pa.array([look[row] for row in rows], pa.binary(32)),
                "pdq_quality": pa.array([100] * len(rows), pa.int16()),
                "status": ["ok"] * len(rows),
                "num_faces": pa.array([1] * len(rows), pa.int16()),
            }
        )
        crops = pa.table(
            {
                "face_id": ids[first : first + part.num_rows],
                "jpeg": [portrait(int(truth()[row])) for row in rows],
                "width": pa.array([96] * len(rows), pa.int16()),
                "height": pa.array([96] * len(rows), pa.int16()),
                "matrix": pa.array([[1, 0, 0, 0, 1, 0]] * len(rows), pa.list_(pa.float32(), 6)),
            }
        )
        faces, embedded = (lake.store.read_table(v.part_path(part)) for v in (FACES, VECTORS))
        claimed = pa.table(
            {
                "image_id": images["image_id"],
                "label": [labels[row] for row in rows],
                "origin": ["folder"] * len(rows),
            }
        )
        counters = {"images": len(rows), "faces": len(rows), "status.ok": len(rows)}
        tables = [(FACES, faces), (CROPS, crops), (VECTORS, embedded), (IMAGES, images)]
        commit_part(lake.store, part, tables, counters=counters)
        commit_part(lake.store, part, [(LABELS, claimed)])
    lake.set_current([CROPS])
    return lake


def curated_lake(root: Path) -> Lake:
    """The same after every job of curation, and with an index."""
    lake = report_lake(root)
    for job in ("dedup", "neighbors", "cluster", "clean", "index"):
        pipeline.run_job(job, config(lake))
    return lake


def config(lake: Lake, **sections: Any) -> JobConfig:
    return JobConfig.model_validate({"lake": lake.uri, "engine": {"workers": 0}, **sections})
