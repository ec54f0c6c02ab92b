"""The stages of neighbors by cells: embeddings in, lists of similar faces out, without comparing all pairs.

Four maps, planned by facescale.driver.neighbors_cells and run by the engine:

    TrainCells       once            centers on a sample; how many cells a face must visit for the recall asked for
    SortByCell       part            each face's cells; the part's embeddings by cell
    GatherCells      run of cells    the members of some cells from all parts, one file
    SearchCells      group of parts  visitors of a cell against its members in one product; lists, part by part

What passes between them lies in the lake's scratch folder (facescale.curate.cells_scratch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.curate.cells import choose_precision, rank_cells, rank_of_cell, train_cells
from facescale.curate.cells_lists import MAX_LIST, Longer, ragged_table
from facescale.curate.cells_recall import choose_probes, found_edges
from facescale.curate.cells_scratch import CellsScratch, gather_piece
from facescale.curate.cells_search import CellSearch, Found
from facescale.curate.neighbors import PresentFaces, refuse_poison
from facescale.errors import CorruptError
from facescale.index.exact import NO_ID, TopK, drop_self, torch_threads
from facescale.index.vectors import choose_parts, random_keys, stored_vectors, unit_vectors
from facescale.lake.lake import Lake
from facescale.lake.parts import PartKey, commit_part
from facescale.lake.scan import scan
from facescale.lake.stage import Guard, StageResult

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from facescale.curate.neighbors import NeighborsInputs
    from facescale.lake.parts import TableVersion

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

REVISION = 1
"""Raised whenever the lists change for the same embeddings and settings."""
SAMPLED_FACES = 1000
"""Faces whose exact lists recall is measured on."""
_AGAIN = 1024  # faces at once whose lists are made longer


@dataclass(frozen=True, kw_only=True)
class CellsSettings:
    """What is looked for, and how.

    Attributes:
        k: neighbors of each face.
        floor: cosine of the edges that matter.
        min_quality: faces below it are in nobody's list; None lets all in.
        count: faces, about; copies count here.
        cells: C.
        train_size: faces that centers are found on.
        probes: cells that a face visits; 0 to find out.
        max_probes: most that are worth it.
        edge_recall: recall of edges above the floor that is wanted.
        spread: deviation of the similarity of two random faces.
        seed: of the sample and the centers.
        memory_bytes: of a worker; does not change results.
        threads: of torch; None leaves them as they are.
    """

    k: int
    floor: float
    min_quality: float | None
    count: int
    cells: int
    train_size: int
    probes: int
    max_probes: int
    edge_recall: float
    spread: float
    seed: int = 0
    memory_bytes: int = 2 << 30
    threads: int | None = None


@dataclass(frozen=True)
class Unit:
    """A piece of work: `key` says how much it is; `parts` or `cells` what."""

    key: PartKey
    parts: tuple[PartKey, ...] = ()
    cells: tuple[int, int] = (0, 0)


class _CellsStage:
    """What the four have in common."""

    def __init__(self, settings: CellsSettings, inputs: NeighborsInputs, scratch: CellsScratch) -> None:
        self.settings, self.inputs, self.scratch = settings, inputs, scratch

    def open(self) -> None:
        """Find out who is left out."""
        self.faces = PresentFaces(Lake(self.scratch.store), self.inputs, self.settings.min_quality)


class TrainCells(_CellsStage):
    """Finds centers on a sample, and on another sample how many cells a face must visit."""

    name = "neighbors-train"

    def process(self, part: Unit, guard: Guard) -> StageResult:
        """Train and measure; the record says what was found, and why nothing was where nothing could be."""
        refuse_poison(guard, part.key)
        with torch_threads(self.settings.threads):
            record, arrays = self._train()
        self.scratch.write_training(record, **arrays)
        _note_end(guard, part.key)
        return StageResult([], {"sampled": record["sampled"]})

    def _train(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        settings = self.settings
        train, ids, queries = self._sample()
        cells = min(settings.cells, len(train))
        record: dict[str, Any] = {"cells": cells, "probes": 0, "sampled": len(ids), "edges": 0}
        if not cells or not len(ids):
            return record | {"why": "no face may be in a list"}, {}
        centers = train_cells(train, cells, seed=settings.seed)
        truth_ids, truth_sims = self._truth(ids, queries)
        is_edge = (truth_ids != NO_ID) & (truth_sims >= settings.floor)
        arrays: dict[str, NDArray[Any]] = {
            "centers": centers,
            "ids": ids,
            "truth_ids": truth_ids,
            "truth_sims": truth_sims,
        }
        if not is_edge.any():
            why = f"no two faces of the sample are as similar as {settings.floor:.4f}, so recall cannot be measured"
            return record | {"why": why}, arrays
        most = min(cells, max(settings.max_probes, settings.probes))
        there, back = self._ranks(ids, queries, truth_ids, is_edge, centers)
        choice = choose_probes(np.minimum(there, back), is_edge, settings.edge_recall, most)
        probes = min(settings.probes, cells) or choice.probes
        pairs, entries = (
            float((ranks[is_edge] < probes).mean()) for ranks in (np.minimum(there, back), there)
        )
        record |= {
            "precision": choose_precision(train.shape[1], settings.floor, settings.spread),
            "edges": choice.edges,
            "curve": choice.curve,
            "recall": {
                "pairs": round(pairs, 6),
                "standard_error": choice.standard_error,
                "entries": round(entries, 6),
            },
        }
        if not settings.probes and not choice.reached:
            why = (
                f"{choice.probes:,} of {cells:,} cells reach a recall of {choice.recall:.4f} ± "
                f"{choice.standard_error:.4f}, with {settings.edge_recall:g} asked for"
            )
            return record | {"why": why}, arrays
        return record | {"probes": probes}, arrays

    def _sample(self) -> tuple[Floats, Ints, Floats]:
        """(vectors to train on [T, D], ids of faces to measure with [S], their vectors [S, D])."""
        settings = self.settings
        wanted = settings.train_size + SAMPLED_FACES
        parts = choose_parts(self.inputs.parts, count=settings.count, wanted=wanted, seed=settings.seed)
        share = min(1.0, settings.train_size / max(1, settings.count) * len(self.inputs.parts) / len(parts))
        asked = min(1.0, SAMPLED_FACES / max(1, settings.count))
        train, ids, queries = [], [np.empty(0, np.int64)], []
        picked = set(parts)
        for pair in self.inputs.parts:
            for face_ids, vectors in self.faces.blocks([pair]):
                sampled = _drawn(face_ids, settings.seed + 1, asked)
                ids.append(face_ids[sampled])
                queries.append(vectors[sampled])
                if pair in picked:
                    train.append(vectors[_drawn(face_ids, settings.seed, share) & self.faces.good(face_ids)])
        if not train:
            return np.empty((0, 1), np.float32), ids[0], np.empty((0, 1), np.float32)
        return np.concatenate(train), np.concatenate(ids), np.concatenate(queries)

    def _truth(self, ids: Ints, queries: Floats) -> tuple[Ints, Floats]:
        """The exact lists of the sampled faces."""
        best = TopK(queries, self.settings.k + 1, threads=self.settings.threads)
        for base_ids, vectors in self.faces.compared_with(self.inputs.parts):
            best.add(base_ids, vectors)
        return drop_self(best.ids_QK, best.sims_QK, ids)

    def _ranks(
        self, ids: Ints, queries: Floats, truth_ids: Ints, is_edge: NDArray[np.bool_], centers: Floats
    ) -> tuple[Ints, Ints]:
        """For each edge the rank of the neighbor's cell among those of the face, and the other way round.

        A face that is in nobody's list is found in one direction only: the other rank is C then, as where no edge is.
        """
        known = np.unique(truth_ids[is_edge])
        vectors = np.empty((len(known), queries.shape[1]), np.float32)
        for base_ids, block in self.faces.compared_with(self.inputs.parts):
            mine = np.isin(base_ids, known)
            vectors[np.searchsorted(known, base_ids[mine])] = block[mine]
        row, column = np.nonzero(is_edge)
        other = np.searchsorted(known, truth_ids[row, column])
        there = np.full(truth_ids.shape, len(centers), np.int64)
        back = there.copy()
        there[row, column] = rank_of_cell(queries, row, rank_cells(vectors, centers, 1)[other, 0], centers)
        good = self.faces.good(ids)[row]
        own = rank_cells(queries, centers, 1)[row, 0]
        back[row[good], column[good]] = rank_of_cell(vectors, other[good], own[good], centers)
        return there, back


class SortByCell(_CellsStage):
    """Ranks the cells for each face of a part, and keeps its embeddings by cell."""

    name = "neighbors-sort"

    def open(self) -> None:
        """Read the centers."""
        super().open()
        self.centers: Floats = self.scratch.read_training()["centers"]

    def process(self, part: PartKey, guard: Guard) -> StageResult:
        """Sort a part; counters say how many faces it has."""
        refuse_poison(guard, part)
        lake, embeddings = self.faces.lake, self.inputs.embeddings
        ids: list[Ints] = [np.empty(0, np.int64)]
        halves = [np.empty((0, self.centers.shape[1]), np.float16)]
        lengths = [np.empty(0, np.float32)]
        for table in scan(
            lake, embeddings, columns=["face_id", "embedding"], parts=[part], drop_superseded=False
        ):
            face_ids = table["face_id"].to_numpy()
            half, length = stored_vectors(table, where=embeddings.folder)
            listed = self.faces.listed(face_ids)
            ids.append(face_ids[listed])
            halves.append(half[listed])
            lengths.append(length[listed])
        own, half, length = np.concatenate(ids), np.concatenate(halves), np.concatenate(lengths)
        with torch_threads(self.settings.threads):
            cells = rank_cells(unit_vectors(half, length), self.centers, self.settings.probes)
        good = np.flatnonzero(self.faces.good(own))
        order = good[np.lexsort((own[good], cells[good, 0]))]
        starts = np.searchsorted(cells[order, 0], np.arange(len(self.centers) + 1)).astype(np.int64)
        members: dict[str, NDArray[Any]] = {"ids": own[order], "lengths": length[order], "starts": starts}
        self.scratch.write_part(part, half[order], members, {"ids": own, "cells": cells})
        _note_end(guard, part)
        return StageResult([], {"faces": len(own)})


class GatherCells(_CellsStage):
    """Writes the members of a run of cells, from all parts."""

    name = "neighbors-gather"

    def __init__(
        self, settings: CellsSettings, inputs: NeighborsInputs, scratch: CellsScratch, dim: int
    ) -> None:
        super().__init__(settings, inputs, scratch)
        self.dim = dim

    def open(self) -> None:
        """Nothing is needed."""

    def process(self, part: Unit, guard: Guard) -> StageResult:
        """Gather a run."""
        refuse_poison(guard, part.key)
        first, last = part.cells
        half, ids, lengths, cells = gather_piece(self.scratch, self.inputs.parts, first, last, self.dim)
        order = np.lexsort((ids, cells))
        starts = np.searchsorted(cells[order], np.arange(first, last + 1)).astype(np.int64)
        self.scratch.write_piece(
            part.key.shard, half, order, ids=ids[order], lengths=lengths[order], starts=starts
        )
        _note_end(guard, part.key)
        return StageResult([], {"faces": len(ids)})


class SearchCells(_CellsStage):
    """Makes the lists of a group of parts and commits each part."""

    name = "neighbors"

    def __init__(
        self,
        settings: CellsSettings,
        inputs: NeighborsInputs,
        scratch: CellsScratch,
        output: TableVersion,
        *,
        precision: str,
        num_pieces: int,
        dim: int,
    ) -> None:
        super().__init__(settings, inputs, scratch)
        self.output, self.precision, self.num_pieces, self.dim = output, precision, num_pieces, dim

    def open(self) -> None:
        """Map the base into memory."""
        super().open()
        base = self.scratch.open_base(self.num_pieces, self.dim)
        self.cell_search = CellSearch(base, self.precision)
        self.sample = self.scratch.read_training()

    def process(self, part: Unit, guard: Guard) -> StageResult:
        """Search for a group of parts.

        Returns:
            No tables, as each part is committed here; the counters of all parts together.

        Raises:
            CorruptError: the scratch folder is of other embeddings.
        """
        refuse_poison(guard, part.key)
        kept = [self.scratch.read_faces((key.shard, key.first_row)) for key in part.parts]
        own = np.concatenate([faces["ids"] for faces in kept])
        total: dict[str, int] = {}
        found, more = None, Longer.none()
        if len(own):
            queries = self._vectors(part.parts, own)
            cells = np.concatenate([faces["cells"] for faces in kept])
            with torch_threads(self.settings.threads):
                found, more = self._search(own, queries, cells)
        start = 0
        for key, faces in zip(part.parts, kept, strict=True):
            rows = slice(start, start + len(faces["ids"]))
            start = rows.stop
            table, counters = self._part(own, rows, faces["cells"], found, more)
            commit_part(self.scratch.store, key, [(self.output, table)], counters=counters)
            for name, value in counters.items():
                total[name] = total.get(name, 0) + value
        _note_end(guard, part.key)
        return StageResult([], total)

    def _vectors(self, parts: tuple[PartKey, ...], own: Ints) -> Floats:
        blocks = list(self.faces.blocks([(key.shard, key.first_row) for key in parts]))
        ids = np.concatenate([block_ids for block_ids, _ in blocks]) if blocks else np.empty(0, np.int64)
        if not np.array_equal(ids, own):
            raise CorruptError(
                f"{self.scratch.store.location(self.scratch.folder)} was made of other embeddings than there are now; "
                "delete the folder and run `facescale neighbors` again"
            )
        return np.concatenate([vectors for _, vectors in blocks])

    def _search(self, own: Ints, queries: Floats, cells: Any) -> tuple[Found, Longer]:
        """Lists of k, and the longer ones of the faces whose k are all above the floor."""
        settings = self.settings
        found = self.cell_search.search(own, queries, cells, settings.k)
        full = np.flatnonzero((found.ids[:, -1] != NO_ID) & (found.sims[:, -1] > settings.floor))
        if settings.k >= MAX_LIST:
            full = full[:0]
        more = [Longer.none()]
        for start in range(0, len(full), _AGAIN):
            rows = full[start : start + _AGAIN]
            again = self.cell_search.search(
                own[rows], queries[rows], cells[rows], MAX_LIST, floor=settings.floor
            )
            at, place = np.nonzero(again.ids != NO_ID)
            more.append(Longer(rows[at], place, again.ids[at, place], again.sims[at, place]))
        return found, Longer.joined(more)

    def _part(
        self, own: Ints, rows: slice, cells: Any, found: Found | None, more: Longer
    ) -> tuple[pa.Table, dict[str, int]]:
        """The rows of a part and what is counted of it."""
        settings, ids = self.settings, own[rows]
        if found is None:
            none = np.empty((0, settings.k))
            empty = ragged_table(ids, none.astype(np.int64), none.astype(np.float32), more, settings.floor)
            return empty, {"faces": 0, "saturated": 0}
        lists, sims = found.ids[rows], found.sims[rows]
        table = ragged_table(ids, lists, sims, more.of(rows), settings.floor)
        good = self.faces.good(ids)
        _, mine, theirs = np.intersect1d(ids, self.sample["ids"], assume_unique=True, return_indices=True)
        edges, all_edges = found_edges(
            lists[mine],
            sims[mine],
            self.sample["truth_ids"][theirs],
            self.sample["truth_sims"][theirs],
            settings.floor,
        )
        counters = {
            "faces": len(ids),
            "saturated": int(np.sum(table["saturated"].to_numpy())),
            "in_lists": int(good.sum()),
            "met_self": int((found.met_self[rows] & good).sum()),
            "pairs": int(np.diff(self.cell_search.base.starts)[cells].sum()),
            "sample_edges": all_edges,
            "sample_edges_found": edges,
        }
        return table, counters


def _drawn(ids: Ints, seed: int, share: float) -> NDArray[np.bool_]:
    """A random choice of faces that depends on nothing but their ids and the seed."""
    if share >= 1:
        return np.ones(len(ids), bool)
    return random_keys(ids, seed) < np.uint64(share * 2.0**64)


def _note_end(guard: Guard, key: PartKey) -> None:
    if guard.note is not None:
        guard.note(key.first_row + key.num_rows)
