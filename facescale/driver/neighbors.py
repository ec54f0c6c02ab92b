"""Drive neighbors: the most similar faces of every face, part by part on the engine.

Comes in: a lake with embeddings of a calibrated embedder, and its duplicates where they are known. Goes out: a
neighbors version with a part for each part of images, set as current.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.curate import neighbors as stage_module
from facescale.curate.calibration import load_calibration, require_calibration
from facescale.curate.duplicates import representatives
from facescale.curate.neighbors import NeighborsInputs, NeighborsSettings, NeighborsStage
from facescale.driver.whole import input_digest, is_behind
from facescale.errors import MismatchError, UsageError
from facescale.lake.fingerprint import fingerprint
from facescale.lake.parts import DoneParts, TableVersion, list_done
from facescale.lake.scan import sum_counters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from facescale.config.curate import NeighborsConfig
    from facescale.driver.context import JobContext, StageSummary
    from facescale.lake.lake import Lake
    from facescale.lake.parts import PartKey


@dataclass(frozen=True)
class NeighborsPlan:
    """What a run of neighbors will make, and of what."""

    images: TableVersion
    faces: TableVersion
    embeddings: TableVersion
    duplicates: TableVersion | None
    output: TableVersion
    settings: dict[str, Any]
    inputs: dict[str, str]
    wanted: DoneParts
    done: DoneParts


def run_neighbors(context: JobContext) -> StageSummary:
    """List the neighbors of every face of one embedder; resumes by itself.

    Raises:
        UsageError: there are no embeddings of it, it is not calibrated, or embeddings or duplicates are older than
        the
            images.
        MismatchError: the calibration is for other weights.
    """
    from facescale.driver.extract import import_plugins

    lake, config = context.lake, context.config.neighbors
    import_plugins(context.config.extract.plugins)
    plan = plan_neighbors(lake, config)
    lake.write_version(
        plan.output,
        stage="neighbors",
        settings=plan.settings,
        revision=stage_module.REVISION,
        inputs=plan.inputs,
    )

    def to_do() -> Iterator[PartKey]:
        return (part for part in plan.wanted.parts() if part not in plan.done)

    left = sum(1 for _ in to_do())
    device = context.device if left or context.config.engine.device == "cuda" else "cpu"
    cpus = int(context.cluster.cpus) if left else 1
    settings = NeighborsSettings(
        k=config.k,
        floor=plan.settings["floor"],
        min_quality=plan.settings["min_quality"],
        memory_bytes=int(config.memory_gib * 2**30),
        device=device,
        threads=context.place(left, device=device, threads_wanted=cpus).threads if left else None,
    )
    inputs = NeighborsInputs(
        embeddings=plan.embeddings,
        faces=plan.faces,
        parts=tuple(plan.wanted.pairs()),
        left_out=representatives(lake)[0] if left and plan.duplicates else np.empty(0, np.int64),
    )
    summary = context.map(
        NeighborsStage(settings, inputs, lake.store, plan.output),
        to_do(),
        num_parts=left,
        items=sum_counters(lake, plan.images, to_do()).get("faces", 0),
        unit="faces",
        device=device,
        threads_wanted=cpus,
    )
    summary.parts_kept = len(plan.wanted) - left
    if plan.duplicates is None:
        summary.notes.append(
            "no duplicates are known, so a photograph and its copy are neighbors: run `facescale dedup "
            f"{lake.uri}` first"
        )
    if not summary.left_over:
        summary.counters = sum_counters(lake, plan.output)
        lake.set_current([plan.output])
        summary.tables = {"neighbors": plan.output.folder}
    return summary


def is_calibrated(embedder: str, lake: Lake) -> bool:
    """Whether there is a calibration of an embedder.

    Raises:
        MismatchError, CorruptError: there is one, and it is of no use.
    """
    try:
        load_calibration(embedder, lake)
    except MismatchError:
        raise
    except UsageError:
        return False
    return True


def plan_neighbors(lake: Lake, config: NeighborsConfig) -> NeighborsPlan:
    """Find the inputs and name the output; writes nothing.

    Raises:
        UsageError, MismatchError: see run_neighbors.
    """
    calibration = require_calibration(config.embedder, lake)
    images, faces = lake.current("images"), lake.current("faces")
    embeddings = lake.current("embeddings", config.embedder)
    if images is None or faces is None or embeddings is None:
        raise UsageError(
            f"{lake.uri} has no finished faces yet: run `facescale extract SRC {lake.uri}` first"
        )
    wanted = list_done(lake.store, images)
    duplicates = lake.current("duplicates")
    if not list_done(lake.store, embeddings).covers(wanted):
        command = f"facescale embed {lake.uri} --embedder {config.embedder}"
        raise UsageError(
            f"{lake.uri}: not every face is embedded by {config.embedder}: run `{command}` first"
        )
    if duplicates is not None and is_behind(lake, duplicates, wanted):
        raise UsageError(
            f"{lake.uri}: images have changed since its duplicates were found: run "
            f"`facescale dedup {lake.uri}` first"
        )
    inputs = {"embeddings": embeddings.fingerprint}
    if duplicates is not None:
        inputs["duplicates"] = duplicates.fingerprint
    if calibration.min_quality is not None:
        inputs["faces"] = faces.fingerprint
    settings = {
        "embedder": config.embedder,
        "k": config.k,
        "floor": calibration.pairs.similarity_at(config.floor_fmr),
        "min_quality": calibration.min_quality,
        **input_digest(lake, wanted),
    }
    name = fingerprint("neighbors", settings, stage_module.REVISION, inputs)
    output = TableVersion("neighbors", name, config.embedder)
    done = list_done(lake.store, output)
    return NeighborsPlan(images, faces, embeddings, duplicates, output, settings, inputs, wanted, done)
