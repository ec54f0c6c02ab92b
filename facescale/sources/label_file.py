"""A CSV or Parquet file of labels keyed by path: the file in, claims for uris out. Called by labels.

A row's path may be the image's uri, its path relative to the source argument, or its bare name. A bare name counts only
where exactly one planned image file has it; members of containers are named in full (`member` or `file.tar#member`).
Two rows with one path and different labels are two claims.

Memory: the two columns as text, plus 16 bytes a row.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from facescale.errors import DataError, UsageError
from facescale.lake.sources_table import list_shards
from facescale.sources.containers import open_container
from facescale.sources.known import read_shards
from facescale.sources.uris import extension_of, root_uri

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.lake.store import Store

_CSV_DELIMITERS = {"csv": ",", "tsv": "\t", "txt": ","}


class LabelFile:
    """Labels by path; read with `load`.

    Args:
        paths: string [N].
        labels: string [N], none null or empty.
        num_unlabeled: rows of the file without a path or a label.

    Attributes:
        num_rows: claims in the file.
        num_repeated: rows that say again what an earlier row said.
        num_conflicting: paths with more than one label.
        num_ambiguous: bare names that several planned files have (set by `drop_ambiguous`).
    """

    def __init__(self, paths: pa.Array, labels: pa.Array, num_unlabeled: int = 0) -> None:
        table = pa.table({"path": pc.replace_substring_regex(paths, r"^(\./)+", ""), "label": labels})
        first = table.append_column("row", pa.array(np.arange(len(paths))))
        first = first.group_by(["path", "label"], use_threads=False).aggregate([("row", "min")])
        kept = np.sort(first.column("row_min").to_numpy())
        self.num_repeated = len(paths) - len(kept)
        self.num_conflicting = len(kept) - len(pc.unique(first.column("path")))
        self.num_rows, self.num_unlabeled, self.num_ambiguous = len(kept), num_unlabeled, 0
        table = table.take(kept).combine_chunks()
        keys = _hashes(table.column("path"))
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._paths, self._labels = table.column("path").take(order), table.column("label").take(order)

    @classmethod
    def load(cls, source: str, column: str | None, path_column: str) -> LabelFile:
        """Read a file.

        Args:
            source: .csv, .tsv or .parquet, local or fsspec URL.
            column: column of the labels.
            path_column: column of the paths.

        Raises:
            UsageError: the file is not there, of another kind, or lacks a column.
            DataError: it cannot be parsed.
        """
        table = _read(source, column, path_column, whole=True)
        paths, labels = (_text(table.column(name)) for name in (path_column, column))
        labeled = pc.and_(pc.greater(pc.binary_length(paths), 0), pc.greater(pc.binary_length(labels), 0))
        paths, labels = paths.filter(labeled), labels.filter(labeled)
        return cls(paths, labels, num_unlabeled=table.num_rows - len(paths))

    def look_up(self, names: pa.Array) -> tuple[NDArray[np.int64], pa.ChunkedArray]:
        """Claims for names.

        Args:
            names: string [M]; nulls match nothing.

        Returns:
            positions into `names`, ascending, one a claim; and the labels.
        """
        wanted = _hashes(names)
        low, high = (np.searchsorted(self._keys, wanted, side) for side in ("left", "right"))
        counts = high - low
        positions = np.repeat(np.arange(len(names)), counts)
        at = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(low, counts)
        # Names are compared: a hash only says where to look.
        same = pc.fill_null(pc.equal(self._paths.take(at), names.take(positions)), False).to_numpy()
        return positions[same], self._labels.take(at[same])

    def drop_ambiguous(self, store: Store) -> None:
        """Take out bare names that more than one planned image file has; reads the plan only if there are any."""
        bare = pc.invert(pc.match_substring_regex(self._paths, "[/#]"))
        names = self._paths.filter(bare)
        if not len(names):
            return
        names = pc.unique(names)
        counts = np.zeros(len(names), np.int64)
        for table in read_shards(store, list_shards(store), ("uri", "format", "num_rows")):
            files = table.filter(
                pc.and_(pc.equal(table["format"], "image"), pc.greater(table["num_rows"], 0))
            )
            at = pc.index_in(base_names(files.column("uri")), value_set=names).drop_null().to_numpy()
            counts += np.bincount(at, minlength=len(names))
        ambiguous = names.filter(pa.array(counts > 1))
        self.num_ambiguous = len(ambiguous)
        if not len(ambiguous):
            return
        kept = pc.invert(pc.is_in(self._paths, value_set=ambiguous))
        self._keys = self._keys[kept.to_numpy()]
        self._paths, self._labels = self._paths.filter(kept), self._labels.filter(kept)

    def remarks(self) -> list[str]:
        """Lines for a person about rows that make no claim, or an odd one."""
        return [
            f"{count:,} {what}"
            for count, what in (
                (self.num_unlabeled, "rows of the label file have no path or no label"),
                (self.num_repeated, "rows of the label file repeat another row"),
                (
                    self.num_conflicting,
                    "rows of the label file give a path another label than an earlier row: both count",
                ),
                (
                    self.num_ambiguous,
                    "bare names of the label file fit several images: they label none; give paths",
                ),
            )
            if count
        ]


def base_names(uris: pa.Array) -> pa.Array:
    """Last part of each uri."""
    return pc.replace_substring_regex(uris, r"(?s)^.*/", "")


def digest_of(source: str) -> str:
    """SHA-256 of a label file, hexadecimal: what a version of `labels` depends on.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with open_container(root_uri(source)) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise UsageError(f"--labels {source} cannot be read: {error.strerror or error}") from None


def check_label_file(source: str, column: str | None, path_column: str) -> None:
    """Make sure that a label file is there and has its columns; reads only its beginning.

    Raises:
        UsageError: the file is not there, of another kind, or lacks a column.
        DataError: its beginning cannot be parsed.
    """
    _read(source, column, path_column, whole=False)


def has_column(source: str, name: str) -> bool:
    """Whether a label file can be read and has a column; reads only its beginning."""
    try:
        _read(source, name, name, whole=False)
    except UsageError:
        return False
    return True


def _read(source: str, column: str | None, path_column: str, *, whole: bool) -> pa.Table:
    """The two columns of a file; without rows unless `whole`."""
    if column is None:
        raise UsageError(f"--labels {source} needs --label-column NAME: the column that holds the labels")
    kind = extension_of(source)
    if kind not in ("parquet", "pq", *_CSV_DELIMITERS):
        raise UsageError(f"{source} is no .csv, .tsv or .parquet file, nor the word `folder`")
    columns = list(dict.fromkeys([path_column, column]))
    try:
        with open_container(root_uri(source)) as stream:
            if kind in _CSV_DELIMITERS:
                return _read_csv(stream, kind, columns, whole=whole)
            return _read_parquet(stream, columns, whole=whole)
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror or error}") from None
    except KeyError as error:
        raise UsageError(
            f"{source} has no column {error}; name it with --label-column or --path-column"
        ) from None
    except pa.ArrowException as error:
        raise DataError(f"{source} cannot be parsed: {error}; mend or convert it") from None


def _read_csv(stream: object, kind: str, columns: list[str], *, whole: bool) -> pa.Table:
    text = dict.fromkeys(columns, pa.string())
    options = {
        "parse_options": pyarrow.csv.ParseOptions(delimiter=_CSV_DELIMITERS[kind], newlines_in_values=True),
        "convert_options": pyarrow.csv.ConvertOptions(
            column_types=text, include_columns=columns, strings_can_be_null=True, null_values=[""]
        ),
    }
    try:
        if whole:
            return pyarrow.csv.read_csv(stream, **options)
        with pyarrow.csv.open_csv(stream, **options) as reader:
            return reader.schema.empty_table()
    except pa.ArrowKeyError as error:
        raise KeyError(str(error).partition("'")[2].partition("'")[0]) from None


def _read_parquet(stream: object, columns: list[str], *, whole: bool) -> pa.Table:
    with pq.ParquetFile(stream) as file:
        for name in columns:
            if name not in file.schema_arrow.names:
                raise KeyError(name)
        return file.read(columns=columns) if whole else file.schema_arrow.empty_table().select(columns)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """As strings without nulls; numbers are written out."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return pc.fill_null(column.cast(pa.string()), "")


def _hashes(names: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
    return np.fromiter(map(hash, names.to_pylist()), np.int64, len(names))
