"""A Parquet file of embeddings: rows of its columns in, arrays out. Called by vector_file.

Shape legend: N rows, D dimension.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from facescale.sources.containers import ContainerError, open_container
from facescale.sources.vector_types import (
    EMPTY,
    OK,
    WRONG_DIMENSION,
    WRONG_TYPE,
    VectorFile,
    Vectors,
    no_vectors,
    to_float32,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Rows = NDArray[np.int64]

_BATCH_ROWS = 4096
_BUFFER_BYTES = 1 << 20
_LOOKED_AT = 1024


class ParquetVectors(VectorFile):
    """A Parquet file. Runs that follow one another are decoded once, as a row group may be larger than memory."""

    def __init__(self, uri: str, column: str | None) -> None:
        super().__init__()
        self.uri, self._name = uri, column or ""
        try:
            stream = self._stack.enter_context(open_container(uri))
            # Without pre_buffer and with a buffer a column is read page by page.
            self._file = self._stack.enter_context(
                pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            )
            self._names = self._file.schema_arrow.names
            if column is not None and column not in self._names:
                raise ContainerError(
                    f"has no column {column!r} (it has {', '.join(self._names)}): name it with --column"
                )
        except BaseException:
            self.close()
            raise
        groups = range(self._file.num_row_groups)
        self._starts = np.cumsum([0, *(self._file.metadata.row_group(g).num_rows for g in groups)])
        self.num_rows = int(self._starts[-1])
        self.kind = "" if column is None else str(self._file.schema_arrow.field(column).type)
        self._streams: dict[str, _Stream] = {}

    def likely_dim(self) -> int | None:
        """See VectorFile."""
        kind = _storage_type(self._file.schema_arrow.field(self._name).type)
        if pa.types.is_fixed_size_list(kind):
            return int(kind.list_size) if _is_number(kind.value_type) else None
        if not _is_list(kind) or not self.num_rows:
            return None
        first = self._take(self._name, np.arange(min(_LOOKED_AT, self.num_rows)))
        lengths = Counter(
            pc.list_value_length(first).drop_null().to_pylist() if _is_number(kind.value_type) else []
        )
        del lengths[0]
        return int(lengths.most_common(1)[0][0]) if lengths else None

    def has(self, name: str) -> bool:
        """See VectorFile."""
        return name in self._names

    def vectors(self, rows: Rows, dim: int) -> Vectors:
        """See VectorFile."""
        return list_matrix(self._take(self._name, rows), dim)

    def column(self, name: str, rows: Rows) -> pa.Array:
        """See VectorFile."""
        return self._take(name, rows)

    def _take(self, name: str, rows: Rows) -> pa.Array:
        if not len(rows):
            empty = self._file.schema_arrow.field(name).type
            return pa.array([], _storage_type(empty))
        if name not in self._streams:
            self._streams[name] = _Stream(self._file, self._starts, name)
        pieces = [self._streams[name].take(run) for run in _runs(rows)]
        joined = pa.concat_arrays(pieces) if len(pieces) > 1 else pieces[0]
        return joined.storage if isinstance(joined.type, pa.BaseExtensionType) else joined


class _Stream:
    """One column of a Parquet file, read forward; going back starts over at the row group that holds the row."""

    def __init__(self, file: pq.ParquetFile, starts: Rows, name: str) -> None:
        self._file, self._starts, self._name = file, starts, name
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._held: pa.Array | None = None
        self._first, self._next = int(starts[-1]), -1  # rows: of what is held, and of what comes next

    def take(self, rows: Rows) -> pa.Array:
        """Values at rows that are near each other, rising."""
        low, high = int(rows[0]), int(rows[-1]) + 1
        group = int(np.searchsorted(self._starts, low, side="right")) - 1
        if (
            low < self._first or self._starts[group] > self._next
        ):  # back, or over row groups not worth decoding
            self._first = self._next = int(self._starts[group])
            self._held = None
            self._batches = self._file.iter_batches(
                _BATCH_ROWS, range(group, self._file.num_row_groups), [self._name], use_threads=False
            )
        pieces = [self._held] if self._held is not None and low < self._next else []
        while self._next < high:
            piece = next(self._batches).column(0)
            if pa.types.is_dictionary(piece.type):
                piece = piece.cast(piece.type.value_type)
            self._next += len(piece)
            if self._next > low:
                if not pieces:
                    self._first = self._next - len(piece)
                pieces.append(piece)
        held = pa.concat_arrays(pieces) if len(pieces) > 1 else pieces[0]
        taken = held.slice(low - self._first, high - low)
        if len(rows) != high - low:
            taken = taken.take(pa.array(rows - low))
        # The last piece may reach beyond; what is before the next run is let go.
        keep = max(0, low - self._first)
        self._held, self._first = held.slice(keep), self._first + keep
        return taken


def list_matrix(column: pa.Array, dim: int) -> Vectors:
    """A column as vectors, whatever is in it.

    Args:
        column: of any type, length N.
        dim: D, wanted.
    """
    kind = column.type
    if not (_is_list(kind) or pa.types.is_fixed_size_list(kind)) or not _is_number(kind.value_type):
        return no_vectors(len(column), dim, WRONG_TYPE)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(kind):
        lengths = np.full(len(column), kind.list_size)
        starts = (column.offset + np.arange(len(column))) * kind.list_size
    else:
        offsets = column.offsets.to_numpy()
        starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets)
    state = np.where(lengths == dim, OK, WRONG_DIMENSION).astype(np.uint8)
    state[~valid | (lengths == 0)] = EMPTY
    good = np.flatnonzero(state == OK)
    values = np.zeros((len(column), dim), np.float32)
    if len(good):
        low, high = int(starts[good[0]]), int(starts[good[-1]]) + dim
        numbers = column.values.slice(low, high - low)
        if not pa.types.is_floating(numbers.type) or numbers.null_count:
            numbers = numbers.cast(pa.float32(), safe=False)
        flat = to_float32(numbers.to_numpy(zero_copy_only=False))  # a null number is NaN
        if high - low == len(good) * dim:
            values[good] = flat.reshape(-1, dim)
        else:
            values[good] = flat[(starts[good] - low)[:, None] + np.arange(dim)]
    return Vectors(values, state)


def _runs(rows: Rows) -> Sequence[Rows]:
    """Rising rows, cut where more than a batch lies between two of them."""
    return np.split(rows, np.flatnonzero(np.diff(rows) > _BATCH_ROWS) + 1)


def _storage_type(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
