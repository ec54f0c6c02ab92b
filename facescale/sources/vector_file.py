"""Files of embeddings made elsewhere: a Parquet, .npy or raw float32 file in, rows of it as arrays out.

Nothing here decides what is wrong with a vector beyond its shape and type; that is vector_rows. Files are read a run
of rows at a time, whatever their size, on any fsspec storage. Called by vector_plan, vector_rows and labels.

    vectors_parquet   columns: the embedding (list or fixed-size list of numbers), and optionally those of SIDECARS
    vectors_npy       [N, D] numbers; SIDECARS as arrays beside it: `faces.npy` has `faces.label.npy`, `faces.uri.npy` …
    vectors_bin       [N, D] float32, little-endian, no header (learn-to-cluster's features); `faces.meta` beside it
                      holds a label a line

Shape legend: N rows, D dimension.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.sources.containers import ContainerError, open_container
from facescale.sources.uris import extension_of, filesystem, is_remote, path_of_uri
from facescale.sources.vector_parquet import ParquetVectors
from facescale.sources.vector_types import (
    FORMATS,
    SIDECARS,
    WRONG_DIMENSION,
    WRONG_TYPE,
    VectorFile,
    Vectors,
    no_vectors,
    to_float32,
)

if TYPE_CHECKING:
    from contextlib import ExitStack

    from numpy.typing import NDArray

    Rows = NDArray[np.int64]


def open_vectors(
    uri: str, kind: str, *, column: str | None = "embedding", dim: int | None = None
) -> VectorFile:
    """Open a file of embeddings.

    Args:
        uri: where it is.
        kind: a value of FORMATS.
        column: of the embedding, in Parquet; None where only its sidecars are wanted.
        dim: dimension; only raw float32 files need it.

    Raises:
        ContainerError: it is damaged, of another kind, or has no embeddings; the message says what to do.
        OSError: it cannot be read.
    """
    try:
        if kind == "vectors_parquet":
            return ParquetVectors(uri, column)
        return _NpyVectors(uri) if kind == "vectors_npy" else _RawVectors(uri, dim)
    except pa.ArrowException as error:
        raise ContainerError(f"no Parquet file, or damaged ({error})") from None


class _NpyVectors(VectorFile):
    """An array file with its sidecars; never unpickled."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.uri = uri
        self._arrays = {"": _NpyFile(self._stack, uri)}
        main = self._arrays[""]
        if len(main.shape) != 2:
            raise self._refused(f"is an array of shape {main.shape}: one of [faces, dimension] is needed")
        self.num_rows = main.shape[0]
        self.kind = f"{main.dtype} [{main.shape[1]}]"
        for name in SIDECARS:
            beside = sidecar_uri(uri, name)
            if _exists(beside):
                self._arrays[name] = found = _NpyFile(self._stack, beside)
                if not found.shape or found.shape[0] != self.num_rows:
                    raise self._refused(
                        f"has {self.num_rows:,} rows, and {beside} beside it is of shape {found.shape}"
                    )

    def likely_dim(self) -> int | None:
        """See VectorFile."""
        return self._arrays[""].shape[1] or None

    def has(self, name: str) -> bool:
        """See VectorFile."""
        return bool(name) and name in self._arrays

    def vectors(self, rows: Rows, dim: int) -> Vectors:
        """See VectorFile."""
        array = self._arrays[""]
        if array.dtype.kind not in "fiu":
            return no_vectors(len(rows), dim, WRONG_TYPE)
        if array.shape[1] != dim:
            return no_vectors(len(rows), dim, WRONG_DIMENSION)
        return Vectors(to_float32(array.read(rows)), np.zeros(len(rows), np.uint8))

    def column(self, name: str, rows: Rows) -> pa.Array:
        """See VectorFile."""
        values = self._arrays[name].read(rows)
        if values.ndim == 2 and values.dtype.kind in "fiu":
            flat = pa.array(to_float32(values).ravel())
            return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        if values.ndim != 1:
            return pa.nulls(len(rows))
        if values.dtype.kind in "US":
            return pa.array(
                np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values
            )
        return pa.array(values.astype(values.dtype.newbyteorder("=")))

    def _refused(self, what: str) -> ContainerError:
        self.close()
        return ContainerError(what)


class _NpyFile:
    """The array of a .npy file, read in runs of rows."""

    def __init__(self, stack: ExitStack, uri: str) -> None:
        self._stream: IO[bytes] = stack.enter_context(open_container(uri))
        try:
            version = np.lib.format.read_magic(self._stream)
            read = (
                np.lib.format.read_array_header_1_0
                if version[0] == 1
                else np.lib.format.read_array_header_2_0
            )
            self.shape, fortran, self.dtype = read(self._stream)
        except (ValueError, EOFError) as error:
            stack.close()
            raise ContainerError(f"{uri} is no .npy file, or damaged ({error})") from None
        self._offset = self._stream.tell()
        if self.dtype.hasobject or (fortran and len(self.shape) > 1):
            stack.close()
            what = "holds Python objects" if self.dtype.hasobject else "is stored column by column"
            raise ContainerError(f"{uri} {what}: save np.ascontiguousarray(numbers) instead")

    def read(self, rows: Rows) -> NDArray[Any]:
        """Rows, rising."""
        return _read_runs(self._stream, self._offset, rows, self.dtype, tuple(self.shape[1:]))


class _RawVectors(VectorFile):
    """Raw float32 features; where the dimension is not given it follows from the number of labels beside it."""

    def __init__(self, uri: str, dim: int | None) -> None:
        super().__init__()
        self.uri = uri
        beside = sidecar_uri(uri, "label")
        self._labels = read_label_lines(beside) if _exists(beside) else None
        self._stream = self._stack.enter_context(open_container(uri))
        size = self._stream.seek(0, 2)
        if dim is None and self._labels is not None and len(self._labels):
            dim = size // (4 * len(self._labels))
        if not dim:
            self.close()
            raise ContainerError("holds raw float32 numbers: tell their dimension with --dim")
        if size % (4 * dim):
            self.close()
            raise ContainerError(f"has {size:,} bytes, which are no float32 vectors of {dim} dimensions")
        self._dim, self.num_rows, self.kind = dim, size // (4 * dim), f"float32 [{dim}]"
        if self._labels is not None and len(self._labels) != self.num_rows:
            self.close()
            raise ContainerError(
                f"has {self.num_rows:,} vectors of {dim} dimensions, and {beside} {len(self._labels):,} labels"
            )

    def likely_dim(self) -> int | None:
        """See VectorFile."""
        return self._dim

    def has(self, name: str) -> bool:
        """See VectorFile."""
        return name == "label" and self._labels is not None

    def vectors(self, rows: Rows, dim: int) -> Vectors:
        """See VectorFile."""
        if dim != self._dim:
            return no_vectors(len(rows), dim, WRONG_DIMENSION)
        values = _read_runs(self._stream, 0, rows, np.dtype("<f4"), (dim,))
        return Vectors(to_float32(values), np.zeros(len(rows), np.uint8))

    def column(self, name: str, rows: Rows) -> pa.Array:
        """See VectorFile."""
        assert name == "label" and self._labels is not None
        return self._labels.take(pa.array(rows))


def sidecar_uri(uri: str, name: str) -> str:
    """Where the sidecar of a .npy or .bin file would be."""
    stem, _, extension = uri.rpartition(".")
    return f"{stem}.meta" if extension.lower() == "bin" else f"{stem}.{name}.npy"


def vector_format(name: str | bytes) -> str | None:
    """A value of FORMATS by extension; None for other files and for sidecars."""
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    if any(text.endswith(f".{kind}.npy") for kind in SIDECARS):
        return None
    return FORMATS.get(extension_of(text))


def read_label_lines(uri: str) -> pa.Array:
    """A label a line (learn-to-cluster's .meta files, or any text): string [N], null for an empty line.

    Raises:
        OSError: it cannot be read.
    """
    with open_container(uri) as stream:
        lines = stream.read().decode("utf-8", "replace").splitlines()
    stripped = pa.array(lines, pa.string())
    stripped = pc.utf8_trim_whitespace(stripped)
    return pc.if_else(pc.equal(stripped, ""), pa.scalar(None, pa.string()), stripped)


def _exists(uri: str) -> bool:
    if not is_remote(uri):
        return os.path.exists(path_of_uri(uri))
    fs = filesystem(uri.partition("://")[0])
    return bool(fs.exists(fs._strip_protocol(uri)))


def _read_runs(
    stream: IO[bytes], offset: int, rows: Rows, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """Rows of an array on disk: [N, *shape]."""
    row_bytes = dtype.itemsize * int(np.prod(shape))
    found = np.zeros((len(rows), *shape), dtype)
    at = 0
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(rows) else ():
        stream.seek(offset + int(run[0]) * row_bytes)
        data = stream.read(len(run) * row_bytes)
        if len(data) < len(run) * row_bytes:
            raise ContainerError(f"ends before row {int(run[-1]):,}: it was cut off")
        found[at : at + len(run)] = np.frombuffer(data, dtype).reshape(len(run), *shape)
        at += len(run)
    return found
