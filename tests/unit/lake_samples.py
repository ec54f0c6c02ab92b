"""Small valid lakes for the lake's own tests: a plan, and parts of images, faces, crops and embeddings."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from facescale.lake.fingerprint import fingerprint
from facescale.lake.ids import make_image_id
from facescale.lake.lake import Lake
from facescale.lake.parts import PartKey, TableVersion, commit_part
from facescale.lake.schema import check_table
from facescale.lake.verify_values import expected_face_ids

DIM = 8
TABLES = ("faces", "crops", "embeddings", "images")


def new_uri(kind: str, tmp_path: Path) -> str:
    return str(tmp_path / "lake") if kind == "local" else f"memory://lake-{uuid.uuid4().hex}"


def versions_of(settings: str = "a") -> dict[str, TableVersion]:
    name = fingerprint("extract", {"name": settings}, 1, {})
    models = {"embeddings": "tiny"}
    return {table: TableVersion(table, name, models.get(table, "-")) for table in TABLES}


def plan_table(shard: int, counts: list[int], part_rows: int = 64, **columns: list) -> pa.Table:
    """A shard of the plan with one source for each count of members."""
    starts = np.cumsum([0, *counts])[:-1]
    size = len(counts)
    table = {
        "shard": [shard] * size,
        "row": starts,
        "uri": [f"/photos/{shard}/{i}" for i in range(size)],
        "format": ["image" if count == 1 else "tar" for count in counts],
        "bytes": [1000] * size,
        "stamp": ["1"] * size,
        "num_rows": counts,
        "part_rows": [part_rows] * size,
        "root": ["/photos"] * size,
        **columns,
    }
    return check_table("sources", pa.table(table))


def write_plan(lake: Lake, shard: int, counts: list[int], part_rows: int = 64, **columns: list) -> None:
    lake.store.write_table(f"sources/{shard:07d}.parquet", plan_table(shard, counts, part_rows, **columns))


def vectors(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])


def part_tables(part: PartKey, seed: int = 0) -> dict[str, pa.Table]:
    """Valid tables of one part: images with 0, 1 or 2 faces, every seventh corrupt."""
    rng = np.random.default_rng([seed, part.shard, part.first_row])
    rows = np.arange(part.first_row, part.first_row + part.num_rows)
    image_ids = make_image_id(np.full(len(rows), part.shard), rows)
    bad = rows % 7 == 3
    num_faces = np.where(bad, 0, rows % 3).astype(np.int16)
    digests = [rng.bytes(32) for _ in rows]
    images = pa.table(
        {
            "image_id": image_ids,
            "uri": [f"/photos/{part.shard}/{row}.jpg" for row in rows],
            "width": pa.array(np.full(len(rows), 640), pa.int32(), mask=bad),
            "height": pa.array(np.full(len(rows), 480), pa.int32(), mask=bad),
            "bytes": np.full(len(rows), 1000),
            "sha256": pa.array(digests, pa.binary(32)),
            "pdq": pa.array([None if b else d for b, d in zip(bad, digests, strict=True)], pa.binary(32)),
            "pdq_quality": pa.array(np.full(len(rows), 100), pa.int16(), mask=bad),
            "status": np.where(bad, "corrupt", "ok"),
            "detail": [f"bad row {row}" if b else None for row, b in zip(rows, bad, strict=True)],
            "num_faces": num_faces,
        }
    )
    face_ids = expected_face_ids(image_ids, num_faces)
    N = len(face_ids)
    corners = rng.uniform(0, 100, (N, 2)).astype(np.float32)
    faces = pa.table(
        {
            "face_id": face_ids,
            "box": vectors(np.hstack([corners, corners + 50])),
            "landmarks": pa.array(
                list(rng.uniform(0, 150, (N, 10)).astype(np.float32)), pa.list_(pa.float32())
            ),
            "det_score": (2.0 - (face_ids & 255)).astype(np.float32),
        }
    ).replace_schema_metadata({"facescale.landmark_scheme": "five"})
    crops = pa.table(
        {
            "face_id": face_ids,
            "jpeg": [b"\xff\xd8" + rng.bytes(200) + b"\xff\xd9" for _ in face_ids],
            "width": np.full(N, 96, np.int16),
            "height": np.full(N, 96, np.int16),
            "matrix": vectors(np.tile(np.array([[1, 0, 5, 0, 1, 7]], np.float32), (N, 1))),
        }
    )
    raw = rng.normal(size=(N, DIM)).astype(np.float32)
    norms = np.linalg.norm(raw, axis=1)
    embeddings = pa.table(
        {"face_id": face_ids, "embedding": vectors((raw / norms[:, None]).astype(np.float16)), "norm": norms}
    )
    return {"faces": faces, "crops": crops, "embeddings": embeddings, "images": images}


def commit(lake: Lake, part: PartKey, versions: dict[str, TableVersion], seed: int = 0) -> dict[str, int]:
    tables = part_tables(part, seed)
    counters = {"images": part.num_rows, "faces": tables["faces"].num_rows}
    return commit_part(lake.store, part, [(versions[t], tables[t]) for t in TABLES], counters=counters)


@dataclass
class Sample:
    """A finished lake and what is in it."""

    lake: Lake
    versions: dict[str, TableVersion]
    parts: list[PartKey]

    def path(self, table: str, part: int = 0) -> str:
        return self.versions[table].part_path(self.parts[part])

    def expected(self, table: str) -> pa.Table:
        tables = [check_table(table, part_tables(part)[table]) for part in self.parts]
        return pa.concat_tables(tables)


def sample_lake(uri: str, shards: dict[int, int] | None = None, settings: str = "a") -> Sample:
    """A lake with finished shards of the given numbers of single-image sources, 64 rows a part."""
    lake = Lake.open_or_create(uri)
    versions = versions_of(settings)
    parts = []
    for shard, count in (shards or {0: 150, 2: 40}).items():
        write_plan(lake, shard, [1] * count)
        parts += [PartKey(shard, first, min(64, count - first)) for first in range(0, count, 64)]
    for part in parts:
        commit(lake, part, versions)
    for version in versions.values():
        lake.write_version(version, stage="extract", settings={"name": settings}, revision=1, inputs={})
    lake.set_current(versions.values())
    return Sample(lake, versions, parts)
