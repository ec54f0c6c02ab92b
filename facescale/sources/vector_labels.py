"""Claims of imported embeddings: a part of a planned file and labels row by row in, rows of `labels` out.

The labels come with the embeddings (a column or sidecar `label`), or from a file that has one for every row, in their
order. A label of a row is a claim on its image; where several rows share an image, it may have several. Labels keyed by
path are read as for photographs (facescale.sources.labels). Called by the engine, for the job import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from facescale.errors import DataError, TransientError, UsageError
from facescale.lake.ids import make_image_id
from facescale.lake.schema import check_table
from facescale.lake.stage import Guard, StageResult
from facescale.sources.containers import ContainerError, open_container
from facescale.sources.label_file import digest_of
from facescale.sources.uris import extension_of, root_uri
from facescale.sources.vector_file import open_vectors, read_label_lines
from facescale.sources.vector_rows import source_of
from facescale.sources.vector_shared import read_shared

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.lake.parts import TableVersion
    from facescale.lake.store import Store
    from facescale.sources.plan import SourcePart

REVISION = 1
LABEL = "label"
LINES = ("meta", "txt")
TABLES = ("csv", "tsv", "parquet", "pq")
_NAME = "--labels"


@dataclass(frozen=True)
class RowLabels:
    """Labels row by row.

    Attributes:
        source: file of a label for every row: .npy, .meta or .txt (one a line), or a table; None for those that come
            with the embeddings.
        column: column of the table.
    """

    source: str | None = None
    column: str | None = None

    def settings(self) -> dict[str, Any]:
        """What the fingerprint of `labels` is made of; a file counts by its content.

        Raises:
            UsageError: the file cannot be read.
        """
        if self.source is None:
            return {"source": "rows"}
        return {"source": "rows of a file", "sha256": digest_of(self.source), "column": self.column}

    def load(self) -> pa.Array | None:
        """The labels of a file, string [N], null for none; None for those that come with the embeddings.

        Raises:
            UsageError: the file is not there, of another kind, or lacks the column.
            DataError: it cannot be parsed.
        """
        if self.source is None:
            return None
        kind = extension_of(self.source)
        try:
            if kind in LINES:
                return label_texts(read_label_lines(root_uri(self.source)))
            with open_container(root_uri(self.source)) as stream:
                if kind == "npy":
                    return _array(stream, self.source)
                if kind in TABLES:
                    return self._table(stream, kind)
        except OSError as error:
            raise UsageError(f"{_NAME} {self.source} cannot be read: {error.strerror or error}") from None
        except (pa.ArrowException, ValueError, EOFError) as error:
            raise DataError(f"{self.source} cannot be parsed: {error}; mend or convert it") from None
        raise UsageError(
            f"{_NAME} {self.source}: of a row's labels .npy, .meta, .txt, .csv, .tsv and .parquet are read"
        )

    def _table(self, stream: Any, kind: str) -> pa.Array:
        column = self.column or LABEL
        if kind in ("parquet", "pq"):
            with pq.ParquetFile(stream) as file:
                names = file.schema_arrow.names
                table = file.read(columns=[column]) if column in names else None
        else:
            options = pyarrow.csv.ParseOptions(
                delimiter="\t" if kind == "tsv" else ",", newlines_in_values=True
            )
            text = pyarrow.csv.ConvertOptions(
                column_types={column: pa.string()}, strings_can_be_null=True, null_values=[""]
            )
            table = pyarrow.csv.read_csv(stream, parse_options=options, convert_options=text)
            names = table.column_names
        if column not in names or table is None:
            raise UsageError(
                f"{self.source} has no column {column!r} (it has {', '.join(names)}): name it with --label-column"
            )
        return label_texts(table[column].combine_chunks())


class ImportLabelsStage:
    """The stage that writes `labels` of an import. Counters: images (rows), labels, unlabeled (rows without one).

    Args:
        spec: where they come from.
        store: the lake's storage.
        version: of `labels`, to write.
        column: of the embedding, in Parquet.
        dim: of the embeddings.
    """

    name = "label"

    def __init__(
        self, spec: RowLabels, store: Store, version: TableVersion, *, column: str, dim: int
    ) -> None:
        self.spec, self.store, self.version, self.column, self.dim = spec, store, version, column, dim
        self._labels: pa.Array | None = None

    def open(self) -> None:
        """Load the file of labels, if there is one: it is held as text.

        Raises:
            UsageError: it is not there, of another kind, or lacks the column.
        """
        self._labels = self.spec.load()

    def process(self, part: SourcePart, guard: Guard) -> StageResult:
        """Make the claims of one part; nothing in it could kill a worker, so `guard` is not asked."""
        key, shared = part.key, read_shared(self.store, part.key)
        own = np.arange(key.first_row, key.first_row + key.num_rows)
        rows = np.union1d(own, shared.rows)
        labels, origin = self._of(part, rows)
        image = rows.copy()
        image[np.searchsorted(rows, own)] = shared.first
        image[np.searchsorted(rows, shared.rows)] = shared.images
        mine = (image >= key.first_row) & (image < key.first_row + key.num_rows)
        claimed = np.flatnonzero(mine & labels.is_valid().to_numpy(zero_copy_only=False))
        table = pa.table({"image": image[claimed], "label": labels.take(pa.array(claimed))})
        table = (
            table.group_by(["image", "label"], use_threads=False)
            .aggregate([])
            .sort_by([("image", "ascending"), ("label", "ascending")])
        )
        made = pa.table(
            {
                "image_id": make_image_id(key.shard, table["image"].to_numpy()),
                "label": table["label"],
                "origin": pa.array([origin] * table.num_rows, pa.string()),
            }
        )
        unlabeled = labels.take(pa.array(np.searchsorted(rows, own))).null_count
        counters = {"images": key.num_rows, "labels": made.num_rows, "unlabeled": unlabeled}
        return StageResult([(self.version, check_table("labels", made))], counters)

    def _of(self, part: SourcePart, rows: NDArray[np.int64]) -> tuple[pa.Array, str]:
        """Labels of rows, string [N], and where they come from."""
        if self._labels is not None:
            return self._labels.take(pa.array(rows)), f"file:{self.spec.column or LABEL}"
        source = source_of(self.store, part)
        try:
            with open_vectors(source.uri, part.format, column=self.column, dim=self.dim) as file:
                if file.has(LABEL):
                    return label_texts(file.column(LABEL, rows)), f"sidecar:{LABEL}"
        except (ContainerError, pa.ArrowException):
            pass  # damaged: its rows get their status in `images`
        except OSError as error:
            raise TransientError(
                f"{source.uri}: {error.strerror or error}; run the same command again to continue"
            ) from error
        return pa.nulls(len(rows), pa.string()), f"sidecar:{LABEL}"


def label_texts(labels: pa.Array) -> pa.Array:
    """Labels of any type as text; null for null, empty, NaN and negative ones (a usual mark of nobody)."""
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if pa.types.is_floating(labels.type):  # whole numbers with gaps, as pandas stores them
        values = labels.cast(pa.float64())
        whole = pc.fill_null(pc.and_(pc.is_finite(values), pc.equal(pc.floor(values), values)), False)
        if pc.all(pc.or_(whole, pc.fill_null(pc.is_nan(values), True))).as_py() is not False:
            labels = pc.if_else(whole, values, pa.scalar(None, pa.float64())).cast(pa.int64())
    if pa.types.is_integer(labels.type):
        labels = pc.if_else(pc.less(labels, 0), pa.scalar(None, labels.type), labels)
    try:
        texts = labels.cast(pa.string())
    except pa.ArrowException:
        return pa.nulls(len(labels), pa.string())
    texts = pc.utf8_trim_whitespace(texts)
    nobody = pc.or_(pc.equal(texts, ""), pc.match_substring_regex(texts, r"^-\d+$"))
    return pc.if_else(nobody, pa.scalar(None, pa.string()), texts)


def _array(stream: Any, source: str) -> pa.Array:
    values = np.load(stream, allow_pickle=False)
    if values.ndim != 1 or values.dtype.kind not in "iufUS":
        raise UsageError(
            f"{_NAME} {source} is {values.dtype} of shape {values.shape}: one label for every row is needed"
        )
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    return label_texts(pa.array(values))
