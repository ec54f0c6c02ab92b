"""Table schemas: schemas/<table>.yaml comes in, a pyarrow.Schema goes out, and tables are checked against it.

The YAML files are the one source of truth for columns, types, units and meaning; docs are rendered from them
too. In a wheel they lie in facescale/schemas, in a checkout in ./schemas. Called by parts (on every write),
scan (to fill columns that an older file lacks) and by stages that build tables.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import yaml

from facescale.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TABLE_KEY = "facescale.table"
VERSION_KEY = "facescale.schema_version"
COLUMNS_KEY = "facescale.columns"
"""Key of a table's metadata that declares, as JSON, the columns which an open table has beyond those of its schema."""

GOOD_STATUSES = ("ok", "too_many_faces", "same_image")
"""Values of images.status of what did not fail."""

_PACKAGE = Path(__file__).resolve().parent.parent
_FOLDERS = (_PACKAGE / "schemas", _PACKAGE.parent / "schemas")

_SCALARS = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "halffloat": pa.float16(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
}
_FIXED_BINARY = re.compile(r"binary\((\d+)\)")
_FIXED_LIST = re.compile(r"fixed_size_list<(\w+)>\[(\d+|dim)\]")
_LIST = re.compile(r"list<(\w+)>")

_TABLE_FIELDS = {"table", "version", "description", "key", "columns"}
_COLUMN_FIELDS = {"name", "type", "unit", "nullable", "description", "values"}
_DECLARED_FIELDS = {"name", "type", "unit", "description"}  # of a column that a version declares


@dataclass(frozen=True)
class Column:
    """One column of a table, as its YAML file declares it.

    Args:
        name: its name in Parquet.
        type: its type as text, for docs: int64, binary(32), list<float>, fixed_size_list<halffloat>[dim].
        unit: px, deg, bytes, ...; empty for a pure number, a name or a text.
        nullable: whether a value may be missing.
        description: what it means.
        values: the only values allowed, or () for any.
    """

    name: str
    type: str
    unit: str
    nullable: bool
    description: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableSpec:
    """One table, as its YAML file declares it.

    Args:
        table: its name, a plural noun.
        version: raised when a column changes; adding a nullable column does not raise it.
        description: one row per what.
        key: the columns that it is sorted by; the first is the id column.
        columns: in the order in which they are written.
        open: whether versions have columns of their own behind these (attributes): see `extended`.
    """

    table: str
    version: int
    description: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    open: bool = False


def table_names() -> list[str]:
    """Names of all tables that have a schema, sorted."""
    return sorted(path.stem for path in _folder().glob("*.yaml") if _is_table(path))


@functools.cache
def table_spec(name: str) -> TableSpec:
    """The declaration of a table.

    Args:
        name: table name, such as "faces".

    Raises:
        DataError: there is no such table, or its YAML file is malformed.
    """
    path = _folder() / f"{name}.yaml"
    if not path.is_file():
        raise DataError(f"no schema for table {name!r}; known tables: {', '.join(table_names())}")
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(raw, dict) or set(raw) - {"open"} != _TABLE_FIELDS or raw["table"] != name:
        raise DataError(f"{path}: a table schema has exactly the fields {', '.join(sorted(_TABLE_FIELDS))}")
    columns = tuple(_column(str(path), entry) for entry in raw["columns"])
    is_open = bool(raw.get("open", False))
    return TableSpec(name, int(raw["version"]), raw["description"], tuple(raw["key"]), columns, is_open)


def extended(spec: TableSpec, columns: Sequence[Mapping[str, Any]], *, where: str) -> TableSpec:
    """An open table with the columns of one of its versions behind its own; all of them may be null.

    Args:
        spec: of the table.
        columns: name, type, unit and description of each; further fields are passed over.
        where: what declares them, for messages.

    Raises:
        DataError: the table is not open, a name is taken, or a field is missing.
    """
    if not spec.open:
        raise DataError(f"{where}: the table {spec.table} has the columns of its schema and no others")
    own = [
        _column(where, {name: value for name, value in entry.items() if name in _DECLARED_FIELDS})
        for entry in columns
    ]
    every = (*spec.columns, *(dataclasses.replace(column, nullable=True) for column in own))
    names = [column.name for column in every]
    if len(set(names)) != len(names):
        raise DataError(f"{where}: a column of {spec.table} is declared twice in {', '.join(names)}")
    return dataclasses.replace(spec, columns=every)


@functools.cache
def table_schema(name: str, *, dim: int | None = None) -> pa.Schema:
    """The Arrow schema of a table.

    Args:
        name: table name.
        dim: length D of the vectors of a table that has them (embeddings).

    Returns:
        Schema with {description, unit} on each field and {facescale.table, facescale.schema_version} on
        itself.

    Raises:
        DataError: unknown table, or `dim` is missing for a table that needs it.
    """
    return schema_of(table_spec(name), dim=dim)


def schema_of(spec: TableSpec, *, dim: int | None = None) -> pa.Schema:
    """The Arrow schema of a declaration; see `table_schema`."""
    fields = [
        pa.field(
            column.name,
            _parse_type(spec.table, column, dim),
            nullable=column.nullable,
            metadata={"description": column.description, "unit": column.unit},
        )
        for column in spec.columns
    ]
    return pa.schema(fields, metadata={TABLE_KEY: spec.table, VERSION_KEY: str(spec.version)})


def check_table(name: str, table: pa.Table, *, dim: int | None = None) -> pa.Table:
    """Bring a table into the shape its schema demands, or say why that cannot be done.

    Columns are reordered, absent nullable ones filled with nulls, the rest cast where no value changes. A
    table that already fits is passed on without copying. Metadata of the table's schema is kept (stages put
    footer keys there); that of an open table declares its further columns under COLUMNS_KEY.

    Args:
        name: table name.
        table: the rows, in any column order.
        dim: length D of the vectors; read from the table itself when None.

    Returns:
        The table with exactly the schema of `table_schema(name)`.

    Raises:
        DataError: an unknown or missing column, a null where none is allowed, or a value that does not fit
            its type.
    """
    spec = table_spec(name)
    if spec.open:
        declared = (table.schema.metadata or {}).get(COLUMNS_KEY.encode(), b"[]")
        spec = extended(spec, json.loads(declared), where=f"table {name}")
    schema = schema_of(spec, dim=dim if dim is not None else _dim_of(spec, table))
    extra = [column for column in table.column_names if column not in schema.names]
    if extra:
        raise DataError(
            f"table {name}: unknown column {extra[0]!r}; its schema has {', '.join(schema.names)}"
        )
    if len(set(table.column_names)) != table.num_columns:
        raise DataError(f"table {name}: a column appears twice in {table.column_names}")
    columns = [_checked_column(name, table, field) for field in schema]
    metadata = {**(table.schema.metadata or {}), **schema.metadata}
    return pa.Table.from_arrays(columns, schema=schema.with_metadata(metadata))


def fill_missing(name: str, table: pa.Table, columns: list[str]) -> pa.Table:
    """Add the nullable columns that a file written before they existed lacks, as nulls, in the asked order.

    Args:
        name: table name.
        table: what the file gave.
        columns: the columns that the reader asked for.

    Raises:
        DataError: an absent column is not nullable, so the file is not of this table.
    """
    by_name = {column.name: column for column in table_spec(name).columns}
    arrays, fields = [], []
    for wanted in columns:
        if wanted in table.column_names:
            field = table.schema.field(wanted)
            arrays.append(table.column(wanted))
        else:
            column = by_name.get(wanted)
            if column is None or not column.nullable:
                raise DataError(
                    f"table {name}: column {wanted!r} is missing from a file, and it is not nullable"
                )
            field = pa.field(wanted, _parse_type(name, column, None))
            arrays.append(pa.nulls(table.num_rows, field.type))
        fields.append(field)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=table.schema.metadata))


def _folder() -> Path:
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    raise DataError(f"no schema files: looked in {_FOLDERS[0]} and {_FOLDERS[1]}; reinstall facescale")


def _is_table(path: Path) -> bool:
    return path.read_text(encoding="utf-8").lstrip().startswith("table:")


def _column(where: str, entry: dict[str, Any]) -> Column:
    if not {"name", "type", "description"} <= set(entry) <= _COLUMN_FIELDS:
        raise DataError(
            f"{where}: column {entry.get('name')!r} has the fields {sorted(entry)}; allowed: {sorted(_COLUMN_FIELDS)}"
        )
    return Column(
        name=entry["name"],
        type=entry["type"],
        unit=entry.get("unit", ""),
        nullable=bool(entry.get("nullable", False)),
        description=entry["description"],
        values=tuple(entry.get("values", ())),
    )


def _parse_type(table: str, column: Column, dim: int | None) -> pa.DataType:
    text = column.type
    if text in _SCALARS:
        return _SCALARS[text]
    if match := _FIXED_BINARY.fullmatch(text):
        return pa.binary(int(match[1]))
    if (match := _FIXED_LIST.fullmatch(text)) and match[1] in _SCALARS:
        if match[2] == "dim" and dim is None:
            raise DataError(f"table {table}: column {column.name!r} needs the model's dimension (dim)")
        return pa.list_(_SCALARS[match[1]], dim if match[2] == "dim" else int(match[2]))
    if (match := _LIST.fullmatch(text)) and match[1] in _SCALARS:
        return pa.list_(_SCALARS[match[1]])
    raise DataError(f"table {table}: column {column.name!r} has the unknown type {text!r}")


def _dim_of(spec: TableSpec, table: pa.Table) -> int | None:
    """Length of the vectors in the column whose length the YAML leaves open; None when there is no such column."""
    for column in spec.columns:
        if column.type.endswith("[dim]") and column.name in table.column_names:
            dtype = table.schema.field(column.name).type
            if not pa.types.is_fixed_size_list(dtype):
                raise DataError(
                    f"table {spec.table}: column {column.name!r} is {dtype}, expected fixed_size_list"
                )
            return int(dtype.list_size)
    return None


def _checked_column(name: str, table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    if field.name not in table.column_names:
        if not field.nullable:
            raise DataError(f"table {name}: column {field.name!r} is missing, and it is not nullable")
        return pa.chunked_array([pa.nulls(table.num_rows, field.type)], type=field.type)
    column = table.column(field.name)
    if column.type != field.type:
        try:
            column = column.cast(field.type, safe=True)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"table {name}: column {field.name!r} is {column.type} and does not fit {field.type}: {error}"
            ) from error
    if not field.nullable and column.null_count:
        raise DataError(
            f"table {name}: column {field.name!r} has {column.null_count} nulls, and it is not nullable"
        )
    if pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type):
        holes = sum(chunk.flatten().null_count for chunk in column.chunks)
        if holes:
            raise DataError(f"table {name}: column {field.name!r} has {holes} nulls inside its lists")
    return column
