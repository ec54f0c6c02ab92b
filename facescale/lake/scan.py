"""Reading tables part by part: a version, columns and parts come in, Arrow tables stream out in bounded memory.

Only finished parts are seen: for faces, crops, embeddings and attributes those whose `images` file exists, and where
both are open, rows and bytes are compared. Images whose source was replaced are left out. Called by every stage, by
search, and by reports.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from facescale.errors import CorruptError, DataError
from facescale.lake import parquet
from facescale.lake.ids import MAX_ROW, ROW_BITS, image_id_of, make_image_id, split_ids
from facescale.lake.lineage import images_of, spec_of
from facescale.lake.parts import SIBLINGS_KEY, DoneParts, PartKey, list_done, read_counters, read_siblings
from facescale.lake.schema import fill_missing, schema_of, table_spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pyarrow.parquet as pq
    from numpy.typing import NDArray

    from facescale.lake.lake import Lake
    from facescale.lake.parts import TableVersion

_THREADS = 8


def scan(
    lake: Lake,
    version: TableVersion,
    *,
    columns: Sequence[str] | None = None,
    parts: Iterable[PartKey] | None = None,
    batch_rows: int = 65_536,
    drop_superseded: bool | NDArray[np.int64] = True,
    done: DoneParts | None = None,
) -> Iterator[pa.Table]:
    """Stream a version, one table a part or several for a part of more than `batch_rows` rows.

    Args:
        lake: the lake.
        version: which version of which table.
        columns: names in the order wanted; None for all of the schema.
        parts: only these, in this order, without those that are not done; nothing is listed then. None for all.
        batch_rows: most rows of a table that is yielded; memory is that of one such table.
        drop_superseded: leave out images (and their faces) whose source was replaced; an array says which, so that
            a caller that scans part by part need not ask `lake.superseded()` each time.
        done: finished parts of `images`, where the caller has listed them already.

    Yields:
        Tables with exactly `columns`; never an empty one.

    Raises:
        DataError: a column is not in the schema.
        CorruptError: a file is damaged, missing, or not the one that its `images` file was committed with.
    """
    wanted = _wanted(lake, version, columns)
    images = images_of(lake, version)
    superseded = _superseded(lake, drop_superseded)
    for key, file in _open_parts(lake, version, images, parts, done):
        gone = _of_shard(superseded, key.shard)
        for table in _blocks(
            file, lake.store.location(version.part_path(key)), version.table, wanted, batch_rows, gone
        ):
            if table.num_rows:
                yield table


def count_rows(lake: Lake, version: TableVersion, *, done: DoneParts | None = None) -> int:
    """Rows of all finished parts, from their footers; superseded images count.

    Args:
        lake: the lake.
        version: which version.
        done: finished parts of `images`, where the caller has listed them already.
    """
    own = _finished(lake, version, done)
    with ThreadPoolExecutor(_THREADS) as threads:
        return sum(threads.map(lambda pair: _rows_in_footer(lake, version, pair), own.pairs()))


def sum_counters(lake: Lake, version: TableVersion, parts: Iterable[PartKey] | None = None) -> dict[str, int]:
    """Sum the counters that commit_part kept in the footers of a version's parts.

    Args:
        lake: the lake.
        version: the primary's version (`images` for extract).
        parts: only these; None for all that exist.

    Returns:
        Sums by counter name, sorted by name.
    """
    keys = (
        list_done(lake.store, version).pairs() if parts is None else ((p.shard, p.first_row) for p in parts)
    )

    def counters(pair: tuple[int, int]) -> dict[str, int]:
        return read_counters(lake.store.read_footer(version.part_path(PartKey(*pair, 0))))

    total: dict[str, int] = {}
    with ThreadPoolExecutor(_THREADS) as threads:
        for found in threads.map(counters, keys):
            for name, value in found.items():
                total[name] = total.get(name, 0) + value
    return dict(sorted(total.items()))


def scan_ids(
    lake: Lake,
    version: TableVersion,
    ids: NDArray[np.int64],
    columns: Sequence[str] | None = None,
    *,
    missing: Literal["error", "skip"] = "error",
    done: DoneParts | None = None,
) -> pa.Table:
    """Rows of given ids; opens only the parts, and reads only the row groups, that can hold them.

    Args:
        lake: the lake.
        version: which version of which table.
        ids: int64 [N] face or image ids, whichever the table is keyed by, in any order; repeats repeat the row.
        columns: names in the order wanted; None for all of the schema. The id column is not added by itself.
        missing: "skip" leaves out ids that have no row (labels), "error" refuses them.
        done: the version's own parts, where the caller has listed them already.

    Returns:
        Rows in the order of `ids`; an id with several rows (labels) gives all of them, one after the other.

    Raises:
        DataError: an id has no row and `missing` is "error", or a column is not in the schema.
        CorruptError: a file is damaged.
    """
    wanted = _wanted(lake, version, columns)
    id_column = table_spec(version.table).key[0]
    ids = np.asarray(ids, dtype=np.int64)
    unique = np.unique(ids)
    own = list_done(lake.store, version) if done is None else done
    shards, rows, _ = split_ids(unique)
    at = np.searchsorted(own.keys, shards << ROW_BITS | rows, side="right") - 1
    known = at >= 0
    known[known] = own.keys[at[known]] >> ROW_BITS == shards[known]
    read = list(dict.fromkeys([*wanted, id_column]))
    tables = []
    for index in np.unique(at[known]):
        key = PartKey(int(own.keys[index]) >> ROW_BITS, int(own.keys[index]) & MAX_ROW, 0)
        path = version.part_path(key)
        with lake.store.open_parquet(path) as file:
            groups = _groups_holding(file, id_column, unique[known & (at == index)])
            table = parquet.read_rows(file, lake.store.location(path), read, groups)
        table = fill_missing(version.table, table, read)
        tables.append(
            table.take(_positions(table.column(id_column).to_numpy(), unique[known & (at == index)])[0])
        )
    if not tables:
        if len(ids) and missing == "error":
            raise _no_row(lake, version, ids)
        return _empty(lake, version, wanted)
    found = pa.concat_tables(tables)
    order, counts = _positions(found.column(id_column).to_numpy(), ids)
    if missing == "error" and not counts.all():
        raise _no_row(lake, version, ids[counts == 0])
    return found.take(order).select(wanted)


def _wanted(lake: Lake, version: TableVersion, columns: Sequence[str] | None) -> list[str]:
    names = [column.name for column in spec_of(lake, version).columns]
    if columns is None:
        return names
    unknown = [name for name in columns if name not in names]
    if unknown:
        raise DataError(f"table {version.table} has no column {unknown[0]!r}; it has {', '.join(names)}")
    return list(columns)


def _superseded(lake: Lake, drop: bool | NDArray[np.int64]) -> NDArray[np.int64]:
    if isinstance(drop, bool):
        return lake.superseded() if drop else np.empty(0, np.int64)
    return drop


def _of_shard(superseded: NDArray[np.int64], shard: int) -> NDArray[np.int64]:
    """The slice of the sorted ids that belongs to one shard."""
    low = np.searchsorted(superseded, make_image_id(shard, 0))
    high = np.searchsorted(superseded, make_image_id(shard, MAX_ROW), side="right")
    return superseded[low:high]


def _finished(lake: Lake, version: TableVersion, done: DoneParts | None) -> DoneParts:
    """The version's own parts that are done."""
    own = list_done(lake.store, version)
    images = images_of(lake, version)
    if images is None:
        return own
    finished = list_done(lake.store, images) if done is None else done
    return DoneParts(own.keys[np.isin(own.keys, finished.keys, assume_unique=True)])


def _open_parts(
    lake: Lake,
    version: TableVersion,
    images: TableVersion | None,
    parts: Iterable[PartKey] | None,
    done: DoneParts | None,
) -> Iterator[tuple[PartKey, pq.ParquetFile]]:
    """Each finished part with its file open, checked against what its `images` file says about it."""
    if parts is None:
        listed = list_done(lake.store, images or version) if done is None or images is None else done
        keys: Iterable[PartKey] = (PartKey(shard, first_row, 0) for shard, first_row in listed.pairs())
    else:
        keys = (key for key in parts if done is None or key in done)
    for key in keys:
        siblings: dict[str, dict[str, int]] = {}
        if images is not None:
            path = images.part_path(key)
            try:
                siblings = read_siblings(lake.store.read_footer(path), lake.store.location(path)) or {}
            except FileNotFoundError:
                continue  # not done
        path = version.part_path(key)
        try:
            with lake.store.open_parquet(path) as file:
                _check_sibling(lake, version, key, file, siblings)
                yield key, file
        except FileNotFoundError:
            if version.folder in siblings:
                raise CorruptError(
                    f"{lake.store.location(path)} is missing, though its part is done; delete "
                    f"{lake.store.location(images.part_path(key) if images else path)} and rerun the command that "
                    "made it"
                ) from None
            # A later job (embed) has not come to this part yet.


def _check_sibling(
    lake: Lake, version: TableVersion, key: PartKey, file: pq.ParquetFile, siblings: dict[str, dict[str, int]]
) -> None:
    problem = sibling_problem(
        siblings.get(version.folder),
        parquet.footer_of(file),
        file.metadata.num_rows,
        lake.store.size(version.part_path(key)),
    )
    if problem:
        raise CorruptError(
            f"{lake.store.location(version.part_path(key))} {problem}; delete the part's `images` file and rerun the "
            "command that made it (`facescale lake verify` lists all such files)"
        )


def sibling_problem(
    said: dict[str, int] | None, footer: dict[str, str], rows: int, num_bytes: int
) -> str | None:
    """What differs between a file and what its `images` footer says about it; None when nothing does.

    Args:
        said: {"rows", "bytes"} from the footer of `images`; None when it does not mention the file.
        footer: the file's own footer. A file that was committed as a primary by a later job has its own byte count.
        rows: rows of the file.
        num_bytes: its size.
    """
    if said is None:
        return None
    if said["rows"] != rows:
        return f"has {rows} rows, and its `images` file was committed with {said['rows']}"
    if said["bytes"] != num_bytes and SIBLINGS_KEY not in footer:
        return f"has {num_bytes} bytes, and its `images` file was committed with {said['bytes']}"
    return None


def _blocks(
    file: pq.ParquetFile,
    location: str,
    table_name: str,
    wanted: list[str],
    batch_rows: int,
    gone: NDArray[np.int64],
) -> Iterator[pa.Table]:
    """The file as tables of at most `batch_rows` rows, without the rows of images in `gone` (sorted ids)."""
    id_column = table_spec(table_name).key[0]
    read = list(dict.fromkeys([*wanted, id_column])) if len(gone) else wanted
    for groups in _runs(
        [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)], batch_rows
    ):
        table = fill_missing(table_name, parquet.read_rows(file, location, read, groups), read)
        if len(gone):
            images = image_id_of(table.column(id_column).to_numpy())
            at = np.minimum(np.searchsorted(gone, images), len(gone) - 1)
            table = table.filter(pa.array(gone[at] != images)).select(wanted)
        for start in range(0, table.num_rows, batch_rows):
            yield table.slice(start, batch_rows)


def _runs(rows: list[int], most: int) -> Iterator[list[int]]:
    """Consecutive row groups, as many at a time as hold at most `most` rows together, at least one."""
    run: list[int] = []
    held = 0
    for group, count in enumerate(rows):
        if run and held + count > most:
            yield run
            run, held = [], 0
        run.append(group)
        held += count
    if run:
        yield run


def _groups_holding(file: pq.ParquetFile, id_column: str, ids: NDArray[np.int64]) -> list[int]:
    """Row groups whose id range overlaps the sorted ids, by their statistics."""
    index = next(i for i in range(file.metadata.num_columns) if file.schema.column(i).path == id_column)
    groups = []
    for group in range(file.metadata.num_row_groups):
        statistics = file.metadata.row_group(group).column(index).statistics
        if statistics is None or not statistics.has_min_max:
            groups.append(group)
        elif np.searchsorted(ids, statistics.min) < np.searchsorted(ids, statistics.max, side="right"):
            groups.append(group)
    return groups


def _positions(
    haystack: NDArray[np.int64], ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each id stands in a sorted array.

    Args:
        haystack: int64 [M], sorted; repeats allowed.
        ids: int64 [N], in any order.

    Returns:
        (positions [sum of counts] in the order of `ids`, counts [N]).
    """
    first = np.searchsorted(haystack, ids, side="left")
    counts = np.searchsorted(haystack, ids, side="right") - first
    starts = np.cumsum(counts) - counts
    return np.repeat(first - starts, counts) + np.arange(int(counts.sum())), counts


def _rows_in_footer(lake: Lake, version: TableVersion, pair: tuple[int, int]) -> int:
    with lake.store.open_parquet(version.part_path(PartKey(*pair, 0))) as file:
        return int(file.metadata.num_rows)


def _no_row(lake: Lake, version: TableVersion, ids: NDArray[np.int64]) -> DataError:
    return DataError(
        f"{len(ids)} ids have no row in {lake.store.location(version.folder)}, among them {int(ids[0])}; were they "
        "made from another version, or is the table still being written?"
    )


def _empty(lake: Lake, version: TableVersion, wanted: list[str]) -> pa.Table:
    """A table without rows, of the types that the version has on disk."""
    for pair in list_done(lake.store, version).pairs():
        with lake.store.open_parquet(version.part_path(PartKey(*pair, 0))) as file:
            return fill_missing(version.table, file.schema_arrow.empty_table(), wanted)
    if (spec := spec_of(lake, version)).open:  # nothing is left to the files there
        return schema_of(spec).empty_table().select(wanted)
    raise DataError(f"{lake.store.location(version.folder)} has no parts; run the job that makes it first")
