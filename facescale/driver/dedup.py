"""Drive dedup: which images are copies, decided over the whole lake in the driver's process.

Comes in: a lake with images. Goes out: a duplicates version with a part for each part of images, set as current.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.curate import duplicates as algorithm
from facescale.curate.duplicates import HASH_BYTES, Copies, ImageHashes, find_copies
from facescale.driver.context import StageSummary
from facescale.driver.whole import input_digest
from facescale.engine.session import usable_cpus
from facescale.errors import UsageError
from facescale.imaging.hashes import TURNS
from facescale.lake.fingerprint import fingerprint
from facescale.lake.ids import image_id_of, make_image_id
from facescale.lake.parts import TableVersion, commit_part, list_done
from facescale.lake.scan import scan, sum_counters
from facescale.sources.vector_plan import holds_vectors

if TYPE_CHECKING:
    from facescale.config.curate import DedupConfig
    from facescale.driver.context import JobContext
    from facescale.lake.lake import Lake
    from facescale.lake.parts import DoneParts, PartKey


def run_dedup(context: JobContext) -> StageSummary:
    """Find the copies among the images of the current version; resumes by itself.

    Raises:
        UsageError: the lake has no images yet.
        MissingExtraError: FAISS is not installed.
    """
    start = time.monotonic()
    lake, config = context.lake, context.config.dedup
    images = lake.current("images")
    if images is None:
        raise UsageError(
            f"{lake.uri} has no finished images yet: run `facescale extract SRC {lake.uri}` first"
        )
    wanted = list_done(lake.store, images)
    settings, inputs, version = plan_dedup(lake, config, images, wanted)
    lake.write_version(version, stage="dedup", settings=settings, revision=algorithm.REVISION, inputs=inputs)
    done = list_done(lake.store, version)
    left = [part for part in wanted.parts() if part not in done]
    summary = StageSummary("dedup", parts_run=len(left), parts_kept=len(wanted) - len(left))
    if left:
        hashes = read_hashes(lake, images, config.min_pdq_quality)
        context.reporter.say(f"dedup: {len(hashes.image_id):,} images")
        threads = context.config.engine.threads or usable_cpus()
        copies = find_copies(hashes, max_distance=config.max_distance, turns=config.turns, threads=threads)
        for part in left:
            table, counters = _part_of(copies, part)
            commit_part(lake.store, part, [(version, table)], counters=counters)
        summary.workers = 1
    summary.counters = sum_counters(lake, version)
    if holds_vectors(lake) and not summary.counters.get("copies"):
        summary.notes.append(
            "imported embeddings have no files or pixels to compare, so no image is known as a copy"
        )
    lake.set_current([version])
    summary.tables = {"duplicates": version.folder}
    summary.seconds = time.monotonic() - start
    return summary


def plan_dedup(
    lake: Lake, config: DedupConfig, images: TableVersion, parts: DoneParts
) -> tuple[dict[str, Any], dict[str, str], TableVersion]:
    """(settings, inputs, version) of the duplicates among these parts of images."""
    faces = lake.current("faces")
    inputs = {"images": images.fingerprint}
    if faces is not None:
        inputs["faces"] = faces.fingerprint
    settings = config.model_dump(mode="json") | input_digest(lake, parts)
    name = fingerprint("dedup", settings, algorithm.REVISION, inputs)
    return settings, inputs, TableVersion("duplicates", name)


def read_hashes(lake: Lake, images: TableVersion, min_pdq_quality: int) -> ImageHashes:
    """Hashes and sizes of all images; those that are superseded are left out.

    Args:
        lake: the lake.
        images: which version.
        min_pdq_quality: hashes of images with less detail are not gone by.
    """
    columns = ["image_id", "sha256", "pdq", "pdq_quality", "symmetric_hash", "width", "height", "bytes"]
    tables = list(scan(lake, images, columns=columns))
    if not tables:
        none, hashes, unsaid = np.empty(0, np.int64), np.empty((0, HASH_BYTES), np.uint8), np.empty(0, bool)
        unhashed = (hashes, unsaid)
        return ImageHashes(none, *unhashed, *unhashed, *unhashed, none, np.empty(0, np.float32), none)
    table = pa.concat_tables(tables)
    image_id = table["image_id"].to_numpy()
    pixels = pc.multiply(table["width"].cast(pa.int64()), table["height"].cast(pa.int64()))
    sharp = pc.greater_equal(table["pdq_quality"], min_pdq_quality)
    detailed = pc.fill_null(sharp, False)
    return ImageHashes(
        image_id=image_id,
        sha256=_digests(table["sha256"]),
        has_sha256=table["sha256"].is_valid().to_numpy(),
        pdq=_digests(table["pdq"]),
        has_pdq=pc.and_(table["pdq"].is_valid(), detailed).to_numpy(),
        symmetric=_digests(table["symmetric_hash"]),
        has_symmetric=pc.and_(table["symmetric_hash"].is_valid(), detailed).to_numpy(),
        pixels=pc.fill_null(pixels, 0).to_numpy(),
        quality=_best_quality(lake, image_id),
        bytes=pc.fill_null(table["bytes"], 0).to_numpy(),
    )


def _best_quality(lake: Lake, image_id: np.ndarray) -> np.ndarray:
    """Quality of each image's best face, float32 [N]; 0 where there is none."""
    best = np.zeros(len(image_id), np.float32)
    faces = lake.current("faces")
    if faces is None:
        return best
    for table in scan(lake, faces, columns=["face_id", "quality"]):
        quality = pc.fill_null(table["quality"], 0).to_numpy()
        of = np.searchsorted(image_id, image_id_of(table["face_id"].to_numpy()))
        np.maximum.at(best, of, quality)
    return best


def _digests(column: pa.ChunkedArray) -> np.ndarray:
    """uint8 [N, 32] of a column of fixed-size binaries; zeros for nulls."""
    filled = pc.fill_null(column, pa.scalar(bytes(HASH_BYTES), column.type)).combine_chunks()
    chunk = filled.chunk(0) if isinstance(filled, pa.ChunkedArray) else filled
    first = chunk.offset * HASH_BYTES
    raw = np.frombuffer(chunk.buffers()[1], np.uint8)
    return raw[first : first + len(chunk) * HASH_BYTES].reshape(-1, HASH_BYTES)


def _part_of(copies: Copies, part: PartKey) -> tuple[pa.Table, dict[str, int]]:
    """The rows of one part, and what they count."""
    first = make_image_id(part.shard, part.first_row)
    low, high = np.searchsorted(copies.image_id, [first, first + (part.num_rows << 8)])
    rows = slice(int(low), int(high))
    exact, distance = copies.exact[rows], copies.distance[rows]
    table = pa.table(
        {
            "image_id": copies.image_id[rows],
            "group_id": copies.group_id[rows],
            "kind": np.where(exact, algorithm.EXACT, algorithm.NEAR).astype(object),
            "representative": copies.representative[rows],
            "distance": pa.array(distance, pa.int16(), mask=distance == algorithm.NO_DISTANCE),
            "turn": np.array(TURNS, object)[copies.turn[rows]],
        }
    )
    keepers = np.unique(copies.representative)
    groups = int(np.diff(np.searchsorted(keepers, [first, first + (part.num_rows << 8)]))[0])
    counts = {"groups": groups, "copies": len(exact), "exact": int(exact.sum()), "near": int((~exact).sum())}
    counts["turned"] = int((copies.turn[rows] != 0).sum())
    return table, counts
