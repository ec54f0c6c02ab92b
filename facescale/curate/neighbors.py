"""The neighbors stage: a part of embeddings in, the most similar faces of each of its faces out.

Planned by facescale.driver.neighbors, run by the engine. Every face of an image that is no copy gets a list; faces
below the quality gate are in nobody's list, since blurred faces resemble each other and would be hubs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from facescale.curate.nearest import NearestFaces
from facescale.errors import InfrastructureError
from facescale.index.exact import NO_ID
from facescale.index.vectors import read_blocks
from facescale.lake.ids import image_id_of
from facescale.lake.lake import Lake
from facescale.lake.scan import scan
from facescale.lake.stage import Guard, StageResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch
    from numpy.typing import NDArray

    from facescale.lake.parts import PartKey, TableVersion
    from facescale.lake.store import Store

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]
    Base = tuple[Ints, torch.Tensor]

REVISION = 1
"""Raised whenever the lists change for the same embeddings and settings."""


@dataclass(frozen=True)
class NeighborsSettings:
    """What is looked for, and with how much.

    Attributes:
        k: neighbors of each face.
        floor: cosine; a full list that lies above it as a whole is marked saturated.
        min_quality: faces below it are in nobody's list; None lets all in. A face whose quality nobody measured is
        let in. memory_bytes: for the faces compared with; does not change results. device: torch device. threads:
        of torch; None leaves them as they are.
    """

    k: int
    floor: float
    min_quality: float | None
    memory_bytes: int = 2 << 30
    device: str = "cpu"
    threads: int | None = None


@dataclass(frozen=True, eq=False)
class NeighborsInputs:
    """What is read.

    Attributes:
        embeddings: version whose faces are compared.
        faces: version that has their quality.
        parts: (shard, first row) of every part, rising.
        left_out: int64, rising: images that are copies of others.
    """

    embeddings: TableVersion
    faces: TableVersion
    parts: tuple[tuple[int, int], ...]
    left_out: Ints


class NeighborsStage:
    """Lists of similar faces, exactly.

    The faces compared with are held on the device when they fit the memory budget, and else read block by block for
    each part; both give the same lists. Held, a face takes 4 · D + 8 bytes. A part of Q faces costs 2 · Q · N · D
    operations, which is many for each number read once Q is some hundreds.

    Args:
        settings: see there.
        inputs: see there.
        store: of the lake.
        output: version to make.
    """

    name = "neighbors"

    def __init__(
        self, settings: NeighborsSettings, inputs: NeighborsInputs, store: Store, output: TableVersion
    ) -> None:
        self.settings, self.inputs, self.store, self.output = settings, inputs, store, output

    def open(self) -> None:
        """Find out who is in nobody's list, and take the others into memory if they fit."""
        self._faces = PresentFaces(Lake(self.store), self.inputs, self.settings.min_quality)
        self._held = self._take_in()

    def process(self, part: PartKey, guard: Guard) -> StageResult:
        """Compare the faces of a part with all.

        Raises:
            InfrastructureError: an earlier worker died of this part; there is no single face that could be left out.
        """
        refuse_poison(guard, part)
        settings = self.settings
        blocks = list(self._faces.blocks([(part.shard, part.first_row)]))
        table = lists_table(np.empty(0, np.int64), np.empty((0, settings.k), np.int64), None, settings.floor)
        if blocks:
            ids, vectors = (np.concatenate(column) for column in zip(*blocks, strict=True))
            nearest = NearestFaces(ids, vectors, settings.k, threads=settings.threads, device=settings.device)
            for base_ids, base in self._held if self._held is not None else self._base():
                nearest.add(base_ids, base)
            table = lists_table(ids, nearest.ids_QK, nearest.sims_QK, settings.floor)
        if guard.note is not None:
            guard.note(part.first_row + part.num_rows)
        counters = {"faces": table.num_rows, "saturated": int(np.sum(table["saturated"].to_numpy()))}
        return StageResult([(self.output, table)], counters)

    def _base(self) -> Iterator[Base]:
        """Blocks of the faces compared with, on the device."""
        import torch

        for ids, vectors in self._faces.compared_with(self.inputs.parts):
            yield ids, torch.from_numpy(vectors).to(self.settings.device)

    def _take_in(self) -> list[Base] | None:
        """All blocks, or None when they pass the budget."""
        held: list[Base] = []
        free = self.settings.memory_bytes
        for ids, vectors in self._base():
            free -= ids.nbytes + vectors.nbytes
            if free < 0:
                return None
            held.append((ids, vectors))
        return held


class PresentFaces:
    """Whose lists are made, and who may be in them: what a version of neighbors leaves out.

    Args:
        lake: the lake.
        inputs: of the stage.
        min_quality: the gate; None lets all in.

    Notes:
        Memory: 8 bytes for each image left out, and for each face below the gate.
    """

    def __init__(self, lake: Lake, inputs: NeighborsInputs, min_quality: float | None) -> None:
        self.lake, self.inputs = lake, inputs
        self._absent = np.union1d(inputs.left_out, lake.superseded())
        found = [np.empty(0, np.int64)]
        if min_quality is not None:
            for table in scan(lake, inputs.faces, columns=["face_id", "quality"], drop_superseded=False):
                quality = table["quality"].to_numpy()  # NaN where nobody measured it
                found.append(table["face_id"].to_numpy()[quality < min_quality])
        self._blurred = np.concatenate(found)

    def blocks(self, parts: Iterable[tuple[int, int]]) -> Iterator[tuple[Ints, Floats]]:
        """Faces of images that are no copies and not superseded: (ids, unit vectors), block by block."""
        for ids, vectors in read_blocks(self.lake, self.inputs.embeddings, parts):
            keep = self.listed(ids)
            if keep.any():
                yield ids[keep], vectors[keep]

    def compared_with(self, parts: Iterable[tuple[int, int]]) -> Iterator[tuple[Ints, Floats]]:
        """Those of them that are not below the gate."""
        for ids, vectors in self.blocks(parts):
            keep = self.good(ids)
            if keep.any():
                yield ids[keep], vectors[keep]

    def listed(self, ids: Ints) -> NDArray[np.bool_]:
        """Which faces get a list."""
        return ~_among(self._absent, image_id_of(ids))

    def good(self, ids: Ints) -> NDArray[np.bool_]:
        """Which faces are not below the gate."""
        return ~_among(self._blurred, ids)


def refuse_poison(guard: Guard, part: PartKey) -> None:
    """There is no single face that could be left out of neighbors.

    Raises:
        InfrastructureError: an earlier worker died of this part.
    """
    if guard.poison:
        reasons: Any = ", ".join(sorted(set(guard.reasons.values()))) or "no reason given"
        raise InfrastructureError(
            f"part {part.path} of neighbors has killed its workers ({reasons}); most likely memory ran out: use "
            "fewer workers or a smaller --memory-gib, then run the same command again"
        )


def lists_table(ids_Q: Ints, found_QK: Ints, sims_QK: Floats | None, floor: float) -> pa.Table:
    """The rows of a part.

    Args:
        ids_Q: int64 [Q], the faces, rising.
        found_QK: int64 [Q, K], their neighbors, best first; missing ones are -1 and last.
        sims_QK: float32 [Q, K]; None where Q is 0.
        floor: cosine above which a full list is saturated.
    """
    sims = np.empty(found_QK.shape, np.float32) if sims_QK is None else sims_QK
    valid = found_QK != NO_ID
    ends = np.concatenate([[0], np.cumsum(valid.sum(axis=1))]).astype(np.int32)
    return pa.table(
        {
            "face_id": ids_Q,
            "neighbor_ids": pa.ListArray.from_arrays(ends, found_QK[valid]),
            "similarities": pa.ListArray.from_arrays(ends, sims[valid]),
            "saturated": valid.all(axis=1) & (sims[:, -1] > floor),
        }
    )


def _among(rising: Ints, ids: Ints) -> NDArray[np.bool_]:
    """Whether each id is in a sorted array."""
    if not len(rising):
        return np.zeros(len(ids), bool)
    there: NDArray[np.bool_] = rising[np.minimum(np.searchsorted(rising, ids), len(rising) - 1)] == ids
    return there
