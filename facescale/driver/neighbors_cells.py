"""Drive neighbors by cells: resolve what is left to measurement, then sort, gather and search on the engine.

Comes in: a plan of facescale.driver.neighbors that chose cells. Goes out: a neighbors version as the exact path makes
one, or the word that cells do not reach the recall, and all pairs are to be compared. Every step looks at what exists.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.curate.cells_plan import group_rows, piece_bounds
from facescale.curate.cells_scratch import CellsScratch, cell_sizes
from facescale.curate.neighbors_cells import (
    REVISION,
    CellsSettings,
    GatherCells,
    SearchCells,
    SortByCell,
    TrainCells,
    Unit,
)
from facescale.errors import CorruptError
from facescale.lake.fingerprint import fingerprint
from facescale.lake.lineage import versions_of
from facescale.lake.parts import DoneParts, PartKey, TableVersion, list_done, part_of_path
from facescale.lake.scan import sum_counters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.curate.cells_plan import NeighborsMethod
    from facescale.curate.neighbors import NeighborsInputs
    from facescale.driver.context import JobContext, StageSummary
    from facescale.lake.lake import Lake
    from facescale.lake.stage import Stage


@dataclasses.dataclass(frozen=True)
class CellsPlan:
    """What a run by cells will make.

    Attributes:
        chosen: method and number of cells.
        spread: deviation of the similarity of two random faces.
        asked: settings that are not measured, and with them what was asked for.
        inputs: fingerprints of the input versions.
        embeddings: version.
        request: fingerprint of `asked`; names the scratch folder.
        output: version to make; None until the visits are known.
        settings: of the version, resolved.
    """

    chosen: NeighborsMethod
    spread: float
    asked: dict[str, Any]
    inputs: dict[str, str]
    embeddings: TableVersion
    request: str
    output: TableVersion | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def scratch(self, lake: Lake) -> CellsScratch:
        """The folder of what is needed on the way."""
        return CellsScratch(lake.store, f"_scratch/neighbors/{self.embeddings.model}-{self.request}")

    def done(self, lake: Lake) -> DoneParts:
        """Parts that are written."""
        return DoneParts(np.empty(0, np.int64)) if self.output is None else list_done(lake.store, self.output)


def plan_cells(
    lake: Lake,
    chosen: NeighborsMethod,
    asked: dict[str, Any],
    inputs: dict[str, str],
    embeddings: TableVersion,
    spread: float,
) -> CellsPlan:
    """Take over what an earlier run resolved for the same request; writes nothing."""
    request = fingerprint("neighbors-request", asked, REVISION, inputs)
    plan = CellsPlan(chosen, spread, asked, inputs, embeddings, request)
    for version in versions_of(lake.store, "neighbors"):
        if version.model != embeddings.model:
            continue
        described = lake.describe_version(version) or {}
        if described.get("stage") == "neighbors" and described["requested"].get("request") == request:
            if described["settings"].get("method") == "cells":
                return dataclasses.replace(plan, output=version, settings=described["settings"])
    record = plan.scratch(lake).read_record()
    return plan if record is None or not record["probes"] else _resolved(plan, record)


def given_up(lake: Lake, plan: CellsPlan, exact: TableVersion) -> str | None:
    """Why an earlier run for the same request took all pairs after all; None when none did."""
    asked = (lake.describe_version(exact) or {}).get("requested", {})
    return asked.get("fallback") if asked.get("request") == plan.request else None


def resolve_cells(
    context: JobContext, plan: CellsPlan, inputs: NeighborsInputs, total: StageSummary
) -> CellsPlan | str | None:
    """Find centers, and how many cells a face visits.

    Returns:
        The plan with its output; why cells are given up; or None when the work is left over.
    """
    lake, scratch = context.lake, plan.scratch(context.lake)
    if plan.output is None or (scratch.read_record() is None and not _is_complete(lake, plan, inputs)):
        unit = Unit(PartKey(0, 0, plan.chosen.count))
        stage = TrainCells(_settings(context, plan), inputs, scratch)
        if not _map(context, stage, [] if scratch.read_record() else [unit], total):
            return None
    if plan.output is None:
        record = scratch.read_record()
        assert record is not None
        if not record["probes"]:
            return str(record["why"])
        plan = _resolved(plan, record)
    assert plan.output is not None
    lake.write_version(
        plan.output,
        stage="neighbors",
        settings=plan.settings,
        revision=REVISION,
        inputs=plan.inputs,
        requested=plan.asked | {"request": plan.request},
    )
    return plan


def search_cells(
    context: JobContext,
    plan: CellsPlan,
    inputs: NeighborsInputs,
    wanted: DoneParts,
    total: StageSummary,
) -> None:
    """Make the parts that are left of those wanted; adds to the summary.

    Raises:
        CorruptError: faces did not meet themselves, so the scratch folder or a worker's memory is damaged.
    """
    lake, scratch, output = context.lake, plan.scratch(context.lake), plan.output
    assert output is not None
    settings, dim = _settings(context, plan), plan.chosen.dim
    kept = plan.done(lake)
    left = [part for part in wanted.parts() if part not in kept]
    total.parts_kept = len(wanted) - len(left)
    if left:
        done = scratch.done_parts()
        unsorted = [part for part in wanted.parts() if (part.shard, part.first_row) not in done]
        if not _map(context, SortByCell(settings, inputs, scratch), unsorted, total):
            return
        units, num_pieces = _gather_units(scratch, inputs, settings, dim)
        if not _map(context, GatherCells(settings, inputs, scratch, dim), units, total):
            return
        stage = SearchCells(
            settings,
            inputs,
            scratch,
            output,
            precision=plan.settings["precision"],
            num_pieces=num_pieces,
            dim=dim,
        )
        groups = _groups(lake, plan, left, settings, max(1, int(context.cluster.cpus)))
        if not _map(context, stage, groups, total):
            return
    total.parts_run = len(left)
    total.counters = sum_counters(lake, output)
    if total.counters.get("met_self", 0) != total.counters.get("in_lists", 0):
        raise CorruptError(
            f"{lake.store.location(output.folder)}: {total.counters['met_self']:,} of "
            f"{total.counters['in_lists']:,} faces met themselves, so lists are incomplete; delete it and "
            f"{lake.store.location(scratch.folder)}, then run `facescale neighbors` again"
        )
    total.notes.append(describe(plan, total.counters))
    scratch.delete()


def describe(plan: CellsPlan, counters: dict[str, int]) -> str:
    """What a user should know of lists that are not exact."""
    edges, found = counters.get("sample_edges", 0), counters.get("sample_edges_found", 0)
    settings, recall = plan.settings, plan.settings["recall"]
    goal = f"{settings['edge_recall']:g} asked for" if settings["nprobe"] == "auto" else "visits were given"
    again = f"{found / edges:.4f} in the finished lists" if edges else "no entries there"
    return (
        f"{plan.chosen.why}; {settings['probes']:,} visited by each face, {settings['precision']} products; recall of "
        f"pairs above {settings['floor']:.4f}, of {settings['sampled']:,} faces compared with all: "
        f"{recall['pairs']:.4f} ± {recall['standard_error']:.4f} ({goal}), of entries {recall['entries']:.4f} "
        f"({again}); self-match {counters.get('met_self', 0):,} of {counters.get('in_lists', 0):,}"
    )


def _resolved(plan: CellsPlan, record: dict[str, Any]) -> CellsPlan:
    measured = {
        name: record[name] for name in ("cells", "probes", "precision", "sampled", "edges", "recall", "curve")
    }
    settings = plan.asked | measured
    name = fingerprint("neighbors", settings, REVISION, plan.inputs)
    output = TableVersion("neighbors", name, plan.embeddings.model)
    return dataclasses.replace(plan, output=output, settings=settings)


def _settings(context: JobContext, plan: CellsPlan) -> CellsSettings:
    asked, chosen, config = plan.asked, plan.chosen, context.config.neighbors
    nprobe = 0 if asked["nprobe"] == "auto" else int(asked["nprobe"])
    return CellsSettings(
        k=asked["k"],
        floor=asked["floor"],
        min_quality=asked["min_quality"],
        count=chosen.count,
        cells=chosen.cells,
        train_size=chosen.train_size,
        probes=plan.settings.get("probes", nprobe),
        max_probes=chosen.max_probes,
        edge_recall=asked["edge_recall"],
        spread=plan.spread,
        threads=context.config.engine.threads
        or 1,  # small products: workers share the work better than threads
        memory_bytes=int(config.memory_gib * 2**30),
    )


def _is_complete(lake: Lake, plan: CellsPlan, inputs: NeighborsInputs) -> bool:
    done = plan.done(lake)
    return all(pair in done for pair in inputs.parts)


def _gather_units(
    scratch: CellsScratch, inputs: NeighborsInputs, settings: CellsSettings, dim: int
) -> tuple[list[Unit], int]:
    """(runs of cells that are not written, number of all)."""
    bounds = scratch.read_bounds()
    if bounds is None:
        cells = len(scratch.read_training()["centers"])
        sizes = cell_sizes(scratch, inputs.parts, cells)
        bounds = piece_bounds(sizes, 2 * dim + 12, settings.memory_bytes).tolist()
        scratch.write_bounds(bounds)
    done = scratch.done_pieces()
    runs = list(itertools.pairwise(bounds))
    each = settings.count // len(runs)
    units = [
        Unit(PartKey(number, 0, each), cells=run) for number, run in enumerate(runs) if number not in done
    ]
    return units, len(runs)


def _groups(
    lake: Lake, plan: CellsPlan, left: Sequence[PartKey], settings: CellsSettings, workers: int
) -> list[Unit]:
    """Contiguous parts whose lists are made at once; sizes of files stand for numbers of faces."""
    skip = len(plan.embeddings.folder) + 1
    size = {part_of_path(path[skip:]): size for path, size in lake.store.list(plan.embeddings.folder)}
    faces = np.array([size.get((part.shard, part.first_row), 0) for part in left]) / (2 * plan.chosen.dim)
    most = group_rows(plan.chosen.dim, settings.k, settings.memory_bytes, plan.chosen.count, workers)
    number = ((np.cumsum(faces) - faces) // most).astype(np.int64)
    groups = []
    for group in np.unique(number):
        parts = tuple(left[at] for at in np.flatnonzero(number == group).tolist())
        rows = sum(part.num_rows for part in parts)
        groups.append(Unit(PartKey(parts[0].shard, parts[0].first_row, rows), parts))
    return groups


def _map(context: JobContext, stage: Stage, units: Sequence[Any], total: StageSummary) -> bool:
    """Run a stage over what is left of it; whether nothing is left over then."""
    if not units:
        return True
    keys = [unit.key if isinstance(unit, Unit) else unit for unit in units]
    done = context.map(
        stage,
        units,
        num_parts=len(units),
        items=sum(key.num_rows for key in keys),
        unit="faces",
    )
    total.seconds += done.seconds
    total.workers, total.deaths = max(total.workers, done.workers), total.deaths + done.deaths
    total.left_over += done.left_over
    return not done.left_over
