"""A judge for synthetic people that needs no models, a small crawl made with it, and a faultless lake of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pyarrow as pa

from facescale.imaging.decode import decode
from facescale.imaging.hashes import pdq, sha256
from facescale.lake.ids import make_face_id, make_image_id
from facescale.lake.schema import table_schema
from facescale.synth.compare import Evidence
from facescale.synth.crawl import make_crawl
from facescale.synth.plan import Planted
from facescale.synth.truth import read_truth

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from facescale.synth.truth import SynthSummary

PLANTED = Planted(
    wrong_labels=2, exact_duplicates=2, near_duplicates=3, two_faces=2, no_faces=5, low_quality=3, damaged=1
)


class PixelJudge:
    """Describes a picture by its thumbnail: different people differ, the same picture never does."""

    def describe(self, images: Sequence[np.ndarray]) -> np.ndarray:
        thumbnails = [cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA) for image in images]
        return np.array(thumbnails, np.float32).reshape(len(images), -1) / 255


def small_crawl(
    out: Path, *, seed: int = 0, threads: int = 2, progress: Callable[[int, int], None] | None = None
) -> SynthSummary:
    """4 people, 4 clean images each, and everything that can be planted."""
    return make_crawl(
        out,
        identities=4,
        images_per_identity=4,
        seed=seed,
        planted=PLANTED,
        min_distance=0.2,
        judge=PixelJudge(),
        threads=threads,
        progress=progress,
    )


def faultless(crawl: SynthSummary) -> Evidence:
    """What a lake would say in which nothing went wrong: tables from the truth, neighbors by identity, clean first."""
    rows = read_truth(crawl.truth).to_pylist()
    image_ids = make_image_id(0, np.arange(len(rows)))
    images = []
    for row, image_id in zip(rows, image_ids.tolist(), strict=True):
        data = (Path(crawl.images) / row["path"]).read_bytes()
        decoded = decode(data)
        hashed = None if decoded.pixels is None else pdq(decoded.pixels)
        images.append(
            {
                "image_id": image_id,
                "uri": f"/anywhere/{row['path']}",
                "width": decoded.width,
                "height": decoded.height,
                "bytes": len(data),
                "sha256": sha256(data),
                "pdq": hashed and hashed[0],
                "pdq_quality": hashed and hashed[1],
                "status": decoded.status,
                "num_faces": row["num_faces"],
            }
        )
    owners = np.repeat(np.arange(len(rows)), [row["num_faces"] for row in rows])
    ordinals = np.concatenate([np.arange(row["num_faces"]) + 1 for row in rows])
    face_ids = make_face_id(image_ids[owners], ordinals)
    who = np.array([name for row in rows for name in row["identities"]])
    clean = np.array([row["kind"] == "clean" for row in rows])[owners]

    def search(ids: np.ndarray) -> np.ndarray:
        asked = who[np.searchsorted(face_ids, ids)]
        rank = 2 * (asked[:, None] != who[None]) + ~clean[None]
        return face_ids[np.argsort(rank, axis=1, kind="stable")]

    faces = {
        "face_id": pa.array(face_ids, pa.int64()),
        "box": pa.array([box for row in rows for box in row["boxes"]], pa.list_(pa.float32(), 4)),
    }
    return Evidence(pa.Table.from_pylist(images, table_schema("images")), pa.table(faces), search)
