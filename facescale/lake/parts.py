"""Parts: the unit of work, of commit and of loss; a contiguous run of rows of one shard.

A part's tables come in, files come out, the primary's last: a part is done when its primary file (`images`
for extract) is listed. That file's footer records rows and bytes of its siblings. The engine calls
commit_part for each result and list_done once per run; scan and verify read the footers back.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.errors import CorruptError, DataError
from facescale.lake.ids import MAX_ROW, MAX_SHARD, ROW_BITS, make_image_id
from facescale.lake.schema import check_table, table_spec
from facescale.lake.sources_table import planned_part_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from facescale.lake.store import Store

SIBLINGS_KEY = "facescale.siblings"
COUNTERS_KEY = "facescale.counters"
ROWS_KEY = "facescale.part_rows"
VERSION_FILE = "_version.json"

NO_MODEL = "-"

_PART_PATH = re.compile(r"(\d{7})/(\d{10})\.parquet")
_FINGERPRINT = re.compile(r"[0-9a-f]{12}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_FOLDER = re.compile(r"(?:(?P<model>.+)-)?(?P<fingerprint>[0-9a-f]{12})")


@dataclass(frozen=True, order=True)
class PartKey:
    """Which rows a part holds.

    Args:
        shard: number of the shard.
        first_row: first row inside the shard.
        num_rows: how many rows.
    """

    shard: int
    first_row: int
    num_rows: int

    def __post_init__(self) -> None:
        if not (0 <= self.shard <= MAX_SHARD and 0 <= self.first_row <= MAX_ROW and self.num_rows >= 0):
            raise DataError(f"{self}: shard is 0..{MAX_SHARD}, first_row 0..{MAX_ROW}, num_rows not negative")

    @property
    def path(self) -> str:
        """Path inside the folder of any table version: shard / first row."""
        return f"{self.shard:07d}/{self.first_row:010d}.parquet"


@dataclass(frozen=True)
class TableVersion:
    """One version of one table: a folder of the lake, named by the fingerprint of what made it.

    Args:
        table: table name, a plural noun ("index" for indexes).
        fingerprint: 12 hex digits.
        model: the model whose table this is, "-" for tables that belong to none.
    """

    table: str
    fingerprint: str
    model: str = NO_MODEL

    def __post_init__(self) -> None:
        if not _FINGERPRINT.fullmatch(self.fingerprint):
            raise DataError(
                f"{self.fingerprint!r} is no fingerprint (12 hex digits) for a version of {self.table}"
            )
        if not _NAME.fullmatch(self.table) or not (self.model == NO_MODEL or _NAME.fullmatch(self.model)):
            raise DataError(f"table {self.table!r} or model {self.model!r} cannot be part of a file name")

    @property
    def folder(self) -> str:
        """Path relative to the lake: "faces/<fp>" or "embeddings/<model>-<fp>"."""
        name = self.fingerprint if self.model == NO_MODEL else f"{self.model}-{self.fingerprint}"
        return f"{self.table}/{name}"

    @classmethod
    def from_folder(cls, folder: str) -> TableVersion | None:
        """The version that a folder name means, None when it means none."""
        table, _, name = folder.partition("/")
        match = _FOLDER.fullmatch(name)
        if not match or not _NAME.fullmatch(table):
            return None
        return cls(table, match["fingerprint"], match["model"] or NO_MODEL)

    def part_path(self, part: PartKey) -> str:
        """Path of a part's file, relative to the lake."""
        return f"{self.folder}/{part.path}"


class DoneParts:
    """The parts of a version that exist, 8 bytes each: `part in done`, `len(done)`, `done.parts()`.

    Args:
        keys: shard << 32 | first row of each part, in any order. Paths do not hold the number of rows.
        num_bytes: size of all their files together.
        rows_of: gives {first row: rows} for a shard and its first rows; `parts()` needs it.
    """

    def __init__(
        self,
        keys: NDArray[np.int64],
        num_bytes: int = 0,
        rows_of: Callable[[int, list[int]], dict[int, int]] | None = None,
    ) -> None:
        self.keys = np.unique(np.asarray(keys, dtype=np.int64))
        self.num_bytes = num_bytes
        self._rows_of = rows_of

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, part: object) -> bool:
        if isinstance(part, PartKey):
            key = part.shard << ROW_BITS | part.first_row
        elif isinstance(part, tuple) and len(part) == 2:
            key = int(part[0]) << ROW_BITS | int(part[1])
        else:
            return False
        at = int(np.searchsorted(self.keys, key))
        return at < len(self.keys) and int(self.keys[at]) == key

    def covers(self, other: DoneParts) -> bool:
        """Whether every part of `other` is here too."""
        return bool(np.isin(other.keys, self.keys, assume_unique=True).all())

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(shard, first row) of each part, in order; opens nothing."""
        for key in self.keys:
            yield int(key) >> ROW_BITS, int(key) & MAX_ROW

    def parts(self) -> Iterator[PartKey]:
        """The key of each part, in order; reads how many rows it has from the plan, a shard at a time."""
        if self._rows_of is None:
            raise DataError(
                "these parts do not know where their plan is; use pairs(), or list_done of a lake"
            )
        for shard, pairs in itertools.groupby(self.pairs(), key=lambda pair: pair[0]):
            first_rows = [first_row for _, first_row in pairs]
            rows = self._rows_of(shard, first_rows)
            for first_row in first_rows:
                yield PartKey(shard, first_row, rows[first_row])

    def part_holding(self, shard: int, row: int) -> tuple[int, int] | None:
        """The last part that begins at or before a row of a shard; None when the shard has none."""
        at = int(np.searchsorted(self.keys, shard << ROW_BITS | row, side="right")) - 1
        if at < 0 or int(self.keys[at]) >> ROW_BITS != shard:
            return None
        return shard, int(self.keys[at]) & MAX_ROW


def commit_part(
    store: Store,
    part: PartKey,
    tables: Sequence[tuple[TableVersion, pa.Table]],
    *,
    counters: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Write the tables of one part so that it is either done or not.

    Every file is written and synced under a temporary name before the first gets its own; siblings move
    first, the primary last. A crash between two moves leaves a part that is not done, and a rerun overwrites
    what is there.

    Args:
        store: the lake's storage.
        part: which rows.
        tables: (version, rows) pairs, the primary last. Metadata of a table's schema goes to its footer.
        counters: numbers to keep in the primary's footer; the same on every run, so no times.

    Returns:
        Bytes written, by version folder.

    Raises:
        DataError: a table breaks its schema, its ids are unsorted or not of this part, or `images` lacks
            rows.
    """
    if not tables:
        raise DataError(f"part {part.path}: no tables to commit")
    checked = [(version, _checked(version, table, part)) for version, table in tables]
    siblings: dict[str, dict[str, int]] = {}
    written: dict[str, int] = {}
    rows = {ROWS_KEY: str(part.num_rows)}
    with store.batch() as batch:
        for version, table in checked[:-1]:
            written[version.folder] = batch.add_table(version.part_path(part), table, footer=rows)
            siblings[version.folder] = {"rows": table.num_rows, "bytes": written[version.folder]}
        primary, table = checked[-1]
        footer = {**rows, SIBLINGS_KEY: _json(siblings), COUNTERS_KEY: _json(dict(counters or {}))}
        written[primary.folder] = batch.add_table(primary.part_path(part), table, footer=footer)
    return written


def list_done(store: Store, version: TableVersion) -> DoneParts:
    """The parts of a version that exist, from one streamed listing; no part is opened.

    Args:
        store: the lake's storage.
        version: which version; for extract, that of `images`.

    Returns:
        A sorted array of 8 bytes a part.
    """
    keys = array("q")
    num_bytes = 0
    skip = len(version.folder) + 1
    for path, size in store.list(version.folder):
        key = part_of_path(path[skip:])
        if key is not None:
            keys.append(key[0] << ROW_BITS | key[1])
            num_bytes += size
    found = np.frombuffer(keys, dtype=np.int64) if keys else np.empty(0, np.int64)
    return DoneParts(found, num_bytes, functools.partial(_rows_of_parts, store, version))


def part_of_path(path: str) -> tuple[int, int] | None:
    """(shard, first row) of a path below a version's folder; None for any other file."""
    match = _PART_PATH.fullmatch(path)
    return (int(match[1]), int(match[2])) if match else None


def read_siblings(footer: Mapping[str, str], location: str) -> dict[str, dict[str, int]] | None:
    """What a primary's footer says about its siblings.

    Args:
        footer: keys and values of a part's footer.
        location: the file, for messages.

    Returns:
        {folder: {"rows", "bytes"}}; None when the file was written as a sibling itself.

    Raises:
        CorruptError: the entry is there and cannot be read.
    """
    text = footer.get(SIBLINGS_KEY)
    if text is None:
        return None
    try:
        return {
            str(k): {"rows": int(v["rows"]), "bytes": int(v["bytes"])} for k, v in json.loads(text).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(
            f"{location}: the footer entry {SIBLINGS_KEY} cannot be read ({error}); delete the file and rerun the "
            "command that made it"
        ) from error


def read_counters(footer: Mapping[str, str]) -> dict[str, int]:
    """The counters that commit_part kept in a primary's footer; {} when it has none."""
    return {str(name): int(value) for name, value in json.loads(footer.get(COUNTERS_KEY, "{}")).items()}


def _rows_of_parts(store: Store, version: TableVersion, shard: int, first_rows: list[int]) -> dict[int, int]:
    """Rows of parts by first row: from the shard's plan, or from the parts' own footers where it has none."""
    rows = planned_part_rows(store, shard) or {}
    for first_row in first_rows:
        if first_row not in rows:
            path = version.part_path(PartKey(shard, first_row, 0))
            rows[first_row] = int(store.read_footer(path)[ROWS_KEY])
    return rows


def _checked(version: TableVersion, table: pa.Table, part: PartKey) -> pa.Table:
    """The table as its schema wants it, its ids sorted and all of this part."""
    table = check_table(version.table, table)
    where = f"{version.folder}/{part.path}"
    if version.table == "images" and table.num_rows != part.num_rows:
        raise DataError(
            f"{where}: {table.num_rows} rows for a part of {part.num_rows}; every member has a row"
        )
    column = table_spec(version.table).key[0]
    problem = id_problem(table.column(column).to_numpy(), part, unique=version.table != "labels")
    if problem:
        raise DataError(f"{where}: {column} {problem}")
    return table


def id_problem(ids: NDArray[np.int64], part: PartKey, *, unique: bool) -> str | None:
    """What is wrong with the id column of a part, None when nothing is.

    Args:
        ids: int64 [N] image or face ids.
        part: the part they should belong to.
        unique: whether each may appear once only.
    """
    if not len(ids):
        return None
    steps = np.diff(ids)
    if len(steps) and steps.min() < (1 if unique else 0):
        at = int(np.argmin(steps)) + 1
        return f"is not sorted{' and unique' if unique else ''}: {ids[at]} follows {ids[at - 1]} at row {at}"
    low = make_image_id(part.shard, part.first_row)
    high = low + (part.num_rows << 8)
    if ids[0] < low or ids[-1] >= high:
        wrong = ids[0] if ids[0] < low else ids[-1]
        return f"{wrong} is outside the part, whose ids are {low}..{high - 1}"
    return None


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
