"""What neighbors by cells keep in LAKE/_scratch/neighbors/<request>/ until the table is written.

    training.npz                        centers, and the exact lists of the faces that recall is measured on
    training.json                       last of the two: how many cells a face visits, and the recall that was measured
    parts/0000017/0000000128.bin        embeddings of a part, float16, by cell
    parts/0000017/0000000128.faces.npz  faces of the part and the cells that each visits
    parts/0000017/0000000128.npz        last of the three: ids and lengths of the embeddings, first row of each cell
    bounds.json                         first cell of each run of cells
    base/0000003.bin                    embeddings of a run of cells, float16; the workers map it into memory
    base/0000003.npz                    last of the two: their ids and lengths, first row of each cell

A file that is called last means that its part of the work is done. Embeddings are there twice, 2 · D bytes a face each,
with 24 bytes of ids and lengths, and 2 bytes for each cell that a face visits. Arrays and records go in and come out;
called by curate.neighbors_cells and its driver.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.curate.cells import Base
from facescale.lake.parts import part_of_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from facescale.lake.parts import PartKey
    from facescale.lake.store import Store

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]
    Half = NDArray[np.float16]
    Arrays = dict[str, NDArray[Any]]

_COPY_BYTES = 8 << 20
_WRITE_ROWS = 16_384


@dataclass(frozen=True)
class CellsScratch:
    """The folder; pickled to workers.

    Attributes:
        store: of the lake.
        folder: relative to the lake.
    """

    store: Store
    folder: str

    def write_training(self, record: dict[str, Any], **arrays: NDArray[Any]) -> None:
        """Keep what a training made; the record is written last."""
        self._write(f"{self.folder}/training.npz", arrays)
        self.store.write_bytes(f"{self.folder}/training.json", json.dumps(record, sort_keys=True).encode())

    def read_record(self) -> dict[str, Any] | None:
        """The record of the training; None when it is not done."""
        try:
            record: dict[str, Any] = json.loads(self.store.read_bytes(f"{self.folder}/training.json"))
        except FileNotFoundError:
            return None
        return record

    def read_training(self) -> Arrays:
        """The arrays of the training."""
        return self._read(f"{self.folder}/training.npz")

    def write_part(self, part: PartKey, half: Half, members: Arrays, faces: Arrays) -> None:
        """Keep a part sorted by cell; `members` is written last."""
        name = self._part(part.shard, part.first_row)
        self.store.write_bytes(f"{name}.bin", half.tobytes())
        self._write(f"{name}.faces.npz", faces)
        self._write(f"{name}.npz", members)

    def done_parts(self) -> set[tuple[int, int]]:
        """(shard, first row) of the parts that are sorted, from one listing."""
        skip = len(f"{self.folder}/parts/")
        names = (path[skip:] for path, _ in self.store.list(f"{self.folder}/parts"))
        ended = (
            name.removesuffix(".npz") for name in names if name.endswith(".npz") and name.count(".") == 1
        )
        found = (part_of_path(f"{name}.parquet") for name in ended)
        return {part for part in found if part is not None}

    def read_faces(self, part: tuple[int, int]) -> Arrays:
        """The faces of a part and the cells that each visits."""
        return self._read(f"{self._part(*part)}.faces.npz")

    def read_members(self, part: tuple[int, int]) -> Arrays:
        """Ids, lengths and starts of a part that is sorted."""
        return self._read(f"{self._part(*part)}.npz")

    def read_rows(self, part: tuple[int, int], first: int, last: int, dim: int) -> Half:
        """Some rows of the sorted embeddings of a part: float16 [n, D]."""
        size = 2 * dim
        with self.store.open(f"{self._part(*part)}.bin") as file:
            file.seek(first * size)
            data = file.read((last - first) * size)
        return np.frombuffer(data, np.float16).reshape(-1, dim)

    def write_bounds(self, bounds: list[int]) -> None:
        """Keep where runs of cells begin, and where the last ends."""
        self.store.write_bytes(f"{self.folder}/bounds.json", json.dumps(bounds).encode())

    def read_bounds(self) -> list[int] | None:
        """Where runs of cells begin; None when that is not decided."""
        try:
            bounds: list[int] = json.loads(self.store.read_bytes(f"{self.folder}/bounds.json"))
        except FileNotFoundError:
            return None
        return bounds

    def write_piece(self, number: int, half: Half, order: Ints, **arrays: NDArray[Any]) -> None:
        """Keep a run of cells; the embeddings are written in the order given, without another copy of them."""
        with self.store.temporary_folder() as folder:
            path = folder / f"{number:07d}.bin"
            with path.open("wb") as file:
                for start in range(0, len(order), _WRITE_ROWS):
                    file.write(half[order[start : start + _WRITE_ROWS]].tobytes())
            self.store.write_file(f"{self.folder}/base/{number:07d}.bin", path)
        self._write(f"{self.folder}/base/{number:07d}.npz", arrays)

    def done_pieces(self) -> set[int]:
        """Numbers of the runs of cells that are written, from one listing."""
        names = (path.rsplit("/", 1)[1] for path, _ in self.store.list(f"{self.folder}/base"))
        return {int(name[:7]) for name in names if name.endswith(".npz")}

    def open_base(self, num_pieces: int, dim: int) -> Base:
        """The base, its embeddings mapped into memory: 12 bytes a face are held, the rest is the system's to drop."""
        import torch

        pieces, ids, lengths, sizes = [], [], [], []
        for number in range(num_pieces):
            arrays = self._read(f"{self.folder}/base/{number:07d}.npz")
            ids.append(arrays["ids"])
            lengths.append(arrays["lengths"])
            sizes.append(np.diff(arrays["starts"]))
            pieces.append(self._mapped(f"{self.folder}/base/{number:07d}.bin", len(ids[-1]), dim))
        rows = np.concatenate([[0], np.cumsum([len(column) for column in ids])]).astype(np.int64)
        return Base(
            np.concatenate(ids),
            np.concatenate(lengths),
            np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64),
            tuple(torch.from_numpy(piece) for piece in pieces),
            rows,
        )

    def delete(self) -> None:
        """Remove the folder."""
        self.store.delete_tree(self.folder)

    def _mapped(self, path: str, rows: int, dim: int) -> Half:
        """A file as an array; one that lies elsewhere is copied to a nameless file of this machine first."""
        if not rows:
            return np.empty((0, dim), np.float16)
        with contextlib.ExitStack() as stack:
            if self.store.is_local:
                file: Any = stack.enter_context(Path(self.store.location(path)).open("rb"))
            else:
                file = stack.enter_context(tempfile.TemporaryFile())
                with self.store.open(path) as source:
                    for data in iter(lambda: source.read(_COPY_BYTES), b""):
                        file.write(data)
                file.flush()
            # Copy on write: torch wants memory that could be written to, and nobody does.
            mapped = mmap.mmap(file.fileno(), 2 * rows * dim, access=mmap.ACCESS_COPY)
        return np.frombuffer(mapped, np.float16).reshape(rows, dim)

    def _part(self, shard: int, first_row: int) -> str:
        return f"{self.folder}/parts/{shard:07d}/{first_row:010d}"

    def _write(self, path: str, arrays: Arrays) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        self.store.write_bytes(path, buffer.getvalue())

    def _read(self, path: str) -> Arrays:
        with np.load(io.BytesIO(self.store.read_bytes(path)), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def cell_sizes(scratch: CellsScratch, parts: Sequence[tuple[int, int]], cells: int) -> Ints:
    """Members of each cell over all parts, int64 [C]."""
    sizes = np.zeros(cells, np.int64)
    for part in parts:
        sizes += np.diff(scratch.read_members(part)["starts"])
    return sizes


def gather_piece(
    scratch: CellsScratch, parts: Sequence[tuple[int, int]], first_cell: int, last_cell: int, dim: int
) -> tuple[Half, Ints, Floats, Ints]:
    """The members of a run of cells from all parts.

    Args:
        scratch: with every part sorted.
        parts: (shard, first row) of each.
        first_cell: of the run.
        last_cell: the one after the run.
        dim: D.

    Returns:
        (embeddings float16 [n, D], ids int64 [n], lengths float32 [n], cells int64 [n]), part after part.
    """
    rows = list(_slices(scratch, parts, first_cell, last_cell, dim))
    if not rows:
        none = np.empty(0, np.int64)
        return np.empty((0, dim), np.float16), none, np.empty(0, np.float32), none
    half, ids, lengths, cells = (np.concatenate(column) for column in zip(*rows, strict=True))
    return half, ids, lengths, cells


def _slices(
    scratch: CellsScratch, parts: Sequence[tuple[int, int]], first_cell: int, last_cell: int, dim: int
) -> Iterator[tuple[Half, Ints, Floats, Ints]]:
    for part in parts:
        members = scratch.read_members(part)
        starts = members["starts"][first_cell : last_cell + 1]
        first, last = int(starts[0]), int(starts[-1])
        if first < last:
            cells = np.repeat(np.arange(first_cell, last_cell), np.diff(starts))
            half = scratch.read_rows(part, first, last, dim)
            yield half, members["ids"][first:last], members["lengths"][first:last], cells
