"""Drive neighbors: the most similar faces of every face, part by part on the engine.

Comes in: a lake with embeddings of a calibrated embedder, and its duplicates where they are known. Goes out: a
neighbors version with a part for each part of images, set as current.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.curate import neighbors as stage_module
from facescale.curate.calibration import load_calibration, require_calibration
from facescale.curate.cells_plan import choose_method, floor_rate
from facescale.curate.cluster import threshold_at
from facescale.curate.duplicates import representatives
from facescale.curate.neighbors import NeighborsInputs, NeighborsSettings, NeighborsStage
from facescale.driver.context import StageSummary
from facescale.driver.neighbors_cells import given_up, plan_cells, resolve_cells, search_cells
from facescale.driver.whole import input_digest, is_behind
from facescale.errors import MismatchError, UsageError
from facescale.lake.fingerprint import fingerprint
from facescale.lake.parts import DoneParts, TableVersion, list_done
from facescale.lake.scan import count_rows, sum_counters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from facescale.config.curate import NeighborsConfig
    from facescale.curate.calibration import Calibration
    from facescale.driver.context import JobContext
    from facescale.driver.neighbors_cells import CellsPlan
    from facescale.lake.lake import Lake
    from facescale.lake.parts import PartKey


@dataclass(frozen=True)
class NeighborsPlan:
    """What a run of neighbors will make, and of what; `cells` where not all pairs are compared."""

    images: TableVersion
    faces: TableVersion
    embeddings: TableVersion
    duplicates: TableVersion | None
    output: TableVersion
    settings: dict[str, Any]
    inputs: dict[str, str]
    wanted: DoneParts
    done: DoneParts
    cells: CellsPlan | None = None
    why: str | None = None


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
    plan = plan_neighbors(lake, config, device=lambda: context.device)
    summary = StageSummary("neighbors")
    if plan.cells is not None:
        inputs = _inputs(lake, plan, len(plan.wanted) - len(plan.done))
        resolved = resolve_cells(context, plan.cells, inputs, summary)
        if resolved is None:
            return summary
        if isinstance(resolved, str):
            context.reporter.warn(f"cells are given up, all pairs are compared: {resolved}")
            cells = plan.cells
            plan = dataclasses.replace(
                plan, cells=None, why=resolved, done=list_done(lake.store, plan.output)
            )
            _write_exact(lake, plan, given_up_for=cells)
            cells.scratch(lake).delete()
            summary = _compare_all(context, plan)
        else:
            assert resolved.output is not None
            search_cells(context, resolved, inputs, plan.wanted, summary)
            plan = dataclasses.replace(plan, output=resolved.output)
    else:
        _write_exact(lake, plan)
        summary = _compare_all(context, plan)
    if plan.why is not None:
        summary.notes.append(f"all pairs were compared, as cells were given up: {plan.why}")
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


def _write_exact(lake: Lake, plan: NeighborsPlan, given_up_for: CellsPlan | None = None) -> None:
    requested = None
    if given_up_for is not None:
        requested = plan.settings | {"request": given_up_for.request, "fallback": plan.why}
    lake.write_version(
        plan.output,
        stage="neighbors",
        settings=plan.settings,
        revision=stage_module.REVISION,
        inputs=plan.inputs,
        requested=requested,
    )


def _inputs(lake: Lake, plan: NeighborsPlan, left: int) -> NeighborsInputs:
    return NeighborsInputs(
        embeddings=plan.embeddings,
        faces=plan.faces,
        parts=tuple(plan.wanted.pairs()),
        left_out=representatives(lake)[0] if left and plan.duplicates else np.empty(0, np.int64),
    )


def _compare_all(context: JobContext, plan: NeighborsPlan) -> StageSummary:
    """Make the exact lists that are left."""
    lake, config = context.lake, context.config.neighbors

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
    summary = context.map(
        NeighborsStage(settings, _inputs(lake, plan, left), lake.store, plan.output),
        to_do(),
        num_parts=left,
        items=sum_counters(lake, plan.images, to_do()).get("faces", 0),
        unit="faces",
        device=device,
        threads_wanted=cpus,
    )
    summary.parts_kept = len(plan.wanted) - left
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


def plan_neighbors(
    lake: Lake, config: NeighborsConfig, *, device: Callable[[], str] = lambda: "cpu"
) -> NeighborsPlan:
    """Find the inputs, choose the method and name the output; writes nothing.

    Args:
        lake: the lake.
        config: what is asked for.
        device: says which device all pairs would be compared on; asked only where that decides.

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
    plan = NeighborsPlan(images, faces, embeddings, duplicates, output, settings, inputs, wanted, done)
    if config.method == "exact" or (config.method == "auto" and done.covers(wanted)):
        return plan
    return _choose(lake, config, calibration, plan, device)


def _choose(
    lake: Lake,
    config: NeighborsConfig,
    calibration: Calibration,
    exact: NeighborsPlan,
    device: Callable[[], str],
) -> NeighborsPlan:
    """The exact plan, or one by cells where all pairs are too many."""
    count = count_rows(lake, exact.embeddings, done=exact.wanted)
    chosen = choose_method(count, calibration.dim, method=config.method)
    if chosen.method == "cells" and config.method == "auto":
        chosen = choose_method(count, calibration.dim, device=device())
    if chosen.method == "exact":
        return exact
    floor = max(
        calibration.pairs.similarity_at(floor_rate(config.floor_fmr, config.k, count)),
        threshold_at(calibration, count, config.edge_ratio),
    )
    asked = exact.settings | {
        "method": "cells",
        "floor": floor,
        "cells": chosen.cells,
        "nprobe": config.nprobe,
        "edge_recall": config.edge_recall,
    }
    cells = plan_cells(
        lake, chosen, asked, exact.inputs, exact.embeddings, spread=calibration.random.deviation
    )
    why = given_up(lake, cells, exact.output)
    if why is not None:
        return dataclasses.replace(exact, why=why)
    return dataclasses.replace(exact, cells=cells, done=cells.done(lake))
