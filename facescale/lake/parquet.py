"""Parquet as facescale writes it: tables go in, deterministic bytes come out that any reader opens with no help.

Called by store only. Everything that decides the bytes (codec, row groups, dictionaries) is here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from facescale.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# A scan reads whole row groups, and a look-up of a few ids pays for whole row groups, so a group is a few
# MiB: one request on an object store, one core's work in DuckDB, and what a look-up may waste.
ROW_GROUP_BYTES = 4 << 20
MAX_ROWS = 65_536
MAX_WIDE_ROWS = 4_096
MIN_ROWS = 128
_WIDE_LIST = 32

# Texts that repeat (statuses, labels, formats) get dictionaries; these are nearly unique, so one would only
# be built and thrown away.
_UNIQUE_TEXTS = {"uri", "stamp", "detail"}
_ARROW_SCHEMA = b"ARROW:schema"


def write_parquet(table: pa.Table, sink: pa.NativeFile, footer: Mapping[str, str] | None = None) -> None:
    """Write a table.

    The bytes depend on values, schema and footer alone: chunks are joined first, nothing holds a time or a
    name of this machine. (They may change with the version of pyarrow, which the file records.)

    Args:
        table: the rows; its schema metadata goes to the file's footer.
        sink: where to; left open.
        footer: more footer keys.
    """
    metadata = {**_as_text(table.schema.metadata), **(footer or {})}
    table = table.combine_chunks().replace_schema_metadata(metadata or None)
    pq.write_table(
        table,
        sink,
        compression=_codecs(table.schema),
        compression_level=_levels(table.schema),
        use_dictionary=[field.name for field in table.schema if _has_dictionary(field)],
        row_group_size=row_group_rows(table),
        # Ranges of ids and numbers let readers skip row groups; those of pictures and vectors are only bulk.
        write_statistics=[f.name for f in table.schema if not _is_blob(f.type)],
        write_page_checksum=True,
    )


def row_group_rows(table: pa.Table) -> int:
    """Rows of a row group: a power of two that makes it about ROW_GROUP_BYTES.

    Args:
        table: the rows that will be written.

    Returns:
        128..4,096 for tables with blobs or vectors, 65,536 for narrow ones.
    """
    wide_bytes = 0.0
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            wide_bytes += float(pc.sum(pc.binary_length(column)).as_py() or 0) / max(table.num_rows, 1)
        elif pa.types.is_fixed_size_list(field.type) and field.type.list_size >= _WIDE_LIST:
            wide_bytes += field.type.list_size * field.type.value_type.bit_width / 8
    if not wide_bytes:
        return MAX_ROWS
    rows = int(min(max(ROW_GROUP_BYTES / wide_bytes, MIN_ROWS), MAX_WIDE_ROWS))
    return 1 << (rows.bit_length() - 1)


def open_parquet(source: Any, location: str) -> pq.ParquetFile:
    """Open a Parquet file; the footer is read, no data yet.

    Args:
        source: local path, buffer reader or file object.
        location: full name, for messages.

    Raises:
        CorruptError: the footer cannot be read: the file was cut or overwritten.
    """
    try:
        return pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True)
    except pa.ArrowInvalid as error:
        raise _damaged(location, error) from error


def read_rows(
    file: pq.ParquetFile,
    location: str,
    columns: Sequence[str] | None,
    row_groups: Sequence[int] | None = None,
) -> pa.Table:
    """Read columns of some or all row groups.

    Args:
        file: an open file.
        location: full name, for messages.
        columns: names to read, or None for all; names that the file lacks are left out.
        row_groups: their numbers, or None for all.

    Raises:
        CorruptError: the data cannot be decoded.
    """
    names = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
    try:
        if row_groups is None:
            return file.read(columns=names)
        return file.read_row_groups(list(row_groups), columns=names)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _damaged(location, error) from error
    except OSError as error:
        # Arrow reports undecodable pages as an OSError without a number; a storage failure carries one.
        if error.errno is not None:
            raise
        raise _damaged(location, error) from error


def footer_of(file: pq.ParquetFile) -> dict[str, str]:
    """The footer's keys and values as text, without Arrow's own schema blob."""
    return _as_text(file.metadata.metadata)


def _damaged(location: str, error: Exception) -> CorruptError:
    return CorruptError(
        f"{location} is damaged ({error}); delete it and rerun the command that made it, or restore a copy"
    )


def _as_text(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in (metadata or {}).items() if k != _ARROW_SCHEMA}


def _has_dictionary(field: pa.Field) -> bool:
    return pa.types.is_string(field.type) and field.name not in _UNIQUE_TEXTS


def _is_blob(dtype: pa.DataType) -> bool:
    kinds = (pa.types.is_nested, pa.types.is_binary, pa.types.is_fixed_size_binary)
    return any(kind(dtype) for kind in kinds)


def _leaves(schema: pa.Schema) -> list[tuple[str, pa.Field]]:
    """Parquet path of each leaf column; lists are written as NAME.list.element."""
    return [(f"{f.name}.list.element" if pa.types.is_nested(f.type) else f.name, f) for f in schema]


def _codecs(schema: pa.Schema) -> dict[str, str]:
    # JPEG does not compress further; trying costs time on the largest column of the lake.
    return {path: "none" if pa.types.is_binary(field.type) else "zstd" for path, field in _leaves(schema)}


def _levels(schema: pa.Schema) -> dict[str, int]:
    return {path: 3 for path, field in _leaves(schema) if not pa.types.is_binary(field.type)}
