"""Reading the frozen plan: the shards of `sources` come in, the ids of replaced images and the sizes of parts go out.

Called by lake (for scans that leave out replaced images) and verify. Writing the plan belongs to
facescale.sources.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import CorruptError
from facescale.lake.ids import image_id_of, make_image_id, split_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    import pyarrow.parquet as pq
    from numpy.typing import NDArray

    from facescale.lake.store import Store

_SHARD_FILE = re.compile(r"sources/(\d{7})\.parquet")
_THREADS = 8


def shard_path(shard: int) -> str:
    """Path of a shard's plan, relative to the lake."""
    return f"sources/{shard:07d}.parquet"


def list_shards(store: Store) -> list[int]:
    """Numbers of all planned shards, sorted."""
    return sorted(int(m[1]) for path, _ in store.list("sources") if (m := _SHARD_FILE.fullmatch(path)))


def superseded_ids(store: Store, shard_paths: Sequence[str]) -> NDArray[np.int64]:
    """Ids of all images whose source was replaced or has vanished.

    Args:
        store: the lake's storage.
        shard_paths: files of the plan.

    Returns:
        int64 [N], sorted and unique. A replaced container gives the ids of all its members.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        replaced = [
            ids for ids in threads.map(lambda path: _supersedes(store, path), shard_paths) if len(ids)
        ]
    if not replaced:
        return np.empty(0, np.int64)
    first_ids = np.unique(np.concatenate(replaced))
    shards, rows, _ = split_ids(first_ids)
    ids = []
    for shard in np.unique(shards):
        plan = store.read_table(shard_path(int(shard)), ["row", "num_rows"])
        starts, counts = plan.column("row").to_numpy(), plan.column("num_rows").to_numpy()
        wanted = rows[shards == shard]
        order = np.argsort(starts, kind="stable")
        # A source that has no members shares its first row with the next one; that next one is meant.
        at = np.searchsorted(starts[order], wanted, side="right") - 1
        if np.any(at < 0) or np.any(starts[order][at] != wanted):
            raise CorruptError(
                f"{store.location('sources')}: a row supersedes image {first_ids[0]}, where no source begins; "
                "restore the plan from a copy"
            )
        lengths = counts[order][at]
        members = np.repeat(wanted - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) + np.arange(
            lengths.sum()
        )
        ids.append(make_image_id(np.full(len(members), shard, np.int64), members))
    return np.unique(np.concatenate(ids))


def planned_part_rows(store: Store, shard: int) -> dict[int, int] | None:
    """Rows that each part of a shard should have.

    Args:
        store: the lake's storage.
        shard: number of the shard.

    Returns:
        {first row: rows}; None when the shard is not planned.
    """
    try:
        plan = store.read_table(shard_path(shard), ["row", "num_rows", "part_rows"])
    except FileNotFoundError:
        return None
    if not plan.num_rows:
        return {}
    total = int((plan.column("row").to_numpy() + plan.column("num_rows").to_numpy()).max())
    step = int(plan.column("part_rows")[0].as_py())
    return {first: min(step, total - first) for first in range(0, total, step)}


def _supersedes(store: Store, path: str) -> NDArray[np.int64]:
    """Values of one shard's `supersedes`; the column is read only where its statistics say that it has any."""
    with store.open_parquet(path) as file:
        groups = [g for g in range(file.metadata.num_row_groups) if _has_values(file.metadata.row_group(g))]
        column: pa.ChunkedArray = file.read_row_groups(groups, columns=["supersedes"]).column(0)
    values: NDArray[np.int64] = column.drop_null().to_numpy()
    return image_id_of(values)


def _has_values(group: pq.RowGroupMetaData) -> bool:
    for i in range(group.num_columns):
        column = group.column(i)
        if column.path_in_schema == "supersedes":
            known = column.statistics is not None and column.statistics.has_null_count
            return not known or column.statistics.null_count < column.num_values
    return False
