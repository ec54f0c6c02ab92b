"""What earlier runs have planned: the lake's `sources` table in, an answer for each found file out. Called by plan.

Memory: about 35 bytes a planned file, whatever the length of its name: two 64-bit hashes, its image id, its
number of rows, three flags. A hash only ever says "look": before a file is called changed, its name is compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.lake.ids import make_image_id, split_ids
from facescale.lake.sources_table import list_shards, shard_path
from facescale.sources.ahead import map_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from facescale.lake.store import Store
    from facescale.sources.walk import Found

_COLUMNS = ("shard", "row", "uri", "format", "bytes", "stamp", "num_rows", "root")
_THREADS = 8


class Planned(NamedTuple):
    """A planned source, as its row says.

    Attributes:
        uri: where it was.
        bytes: its size then.
        stamp: its mtime or etag then.
    """

    uri: str
    bytes: int
    stamp: str


class Known:
    """The planned sources by the hash of their uri; of several with one uri the latest counts, unless it is gone.

    Args:
        store: the lake's storage.
        root: the source argument, as root_uri gives it: sources planned under it can vanish.
    """

    def __init__(self, store: Store, root: str) -> None:
        self.store, self.root = store, root
        self.next_shard = 0
        self._columns = _columns(None, root)
        self.seen: NDArray[np.bool_] = np.zeros(0, np.bool_)
        numbers = list_shards(store)
        if numbers:
            self._add([_columns(table, root) for table in read_shards(store, numbers, _COLUMNS)])
            self.next_shard = numbers[-1] + 1

    def __len__(self) -> int:
        return len(self._columns["key"])

    def absorb(self, shard: int) -> pa.Table:
        """Add a shard that another planner wrote in the meantime, as seen; returns its rows."""
        table = self.store.read_table(shard_path(shard), list(_COLUMNS))
        columns = _columns(table, self.root)
        self._add([columns])
        self.seen |= np.isin(self._columns["key"], columns["key"])
        self.next_shard = max(self.next_shard, shard + 1)
        return table

    def match(self, files: Sequence[Found]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Look files up and mark what is found as seen.

        Args:
            files: N found files.

        Returns:
            positions int64 [N] (-1 = not planned), and bool [N], whether size and stamp are as planned.
        """
        keys = _hashes([file.uri for file in files])
        checks = _hashes([(file.uri, file.bytes, file.stamp) for file in files])
        have = self._columns["key"]
        if not len(have):
            return np.full(len(files), -1, np.int64), np.zeros(len(files), np.bool_)
        at = np.minimum(np.searchsorted(have, keys), len(have) - 1)
        hit = have[at] == keys
        self.seen[at[hit]] = True
        return np.where(hit, at, -1), hit & (self._columns["check"][at] == checks)

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """image_id of row 0 of the sources at positions."""
        return self._columns["image_id"][positions]

    def num_rows(self, positions: NDArray[np.int64]) -> int:
        """Members of the sources at positions, summed."""
        return int(self._columns["num_rows"][positions].sum())

    def vanished(self) -> NDArray[np.int64]:
        """Ids (sorted) of the sources planned under this root that no call of `match` has seen."""
        return np.sort(self.ids(np.flatnonzero((self._columns["ours"] != 0) & ~self.seen)))

    def describe(self, ids: NDArray[np.int64]) -> list[Planned]:
        """The plan's rows of sources, in the order of `ids` (image_id of row 0); reads the shards that hold them."""
        shards, rows, _ = split_ids(ids)
        described: list[Planned] = [Planned("", 0, "")] * len(ids)
        wanted = np.unique(shards)
        columns = ("row", "uri", "bytes", "stamp")
        for shard, table in zip(wanted, read_shards(self.store, wanted.tolist(), columns), strict=True):
            mine = np.flatnonzero(shards == shard)
            at = np.searchsorted(table.column("row").to_numpy(), rows[mine])
            picked = table.take(at)
            values = zip(*(picked.column(name).to_pylist() for name in columns[1:]), strict=True)
            for index, (uri, size, stamp) in zip(mine.tolist(), values, strict=True):
                described[index] = Planned(uri, size, stamp)
        return described

    def _add(self, columns: list[dict[str, NDArray[np.int64]]]) -> None:
        seen_keys = self._columns["key"][self.seen]
        joined = {
            name: np.concatenate([self._columns[name], *(c[name] for c in columns)]) for name in self._columns
        }
        order = np.argsort(joined["key"], kind="stable")
        keys = joined["key"][order]
        latest = order[np.append(keys[1:] != keys[:-1], True)] if len(keys) else order
        latest = latest[joined["gone"][latest] == 0]
        self._columns = {name: column[latest] for name, column in joined.items()}
        self.seen = np.isin(self._columns["key"], seen_keys)


def read_shards(store: Store, numbers: Sequence[int], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of shard files in the order of `numbers`, a few read ahead."""
    return map_ahead(
        lambda number: store.read_table(shard_path(number), list(columns)), numbers, threads=_THREADS
    )


def _columns(table: pa.Table | None, root: str) -> dict[str, NDArray[np.int64]]:
    """Narrow columns of one shard, each int64 [N] or int8 [N]; empty ones for None."""
    if table is None:
        wide = {name: np.zeros(0, np.int64) for name in ("key", "check", "image_id", "num_rows")}
        return wide | {name: np.zeros(0, np.int8) for name in ("ours", "gone")}
    uris, sizes, stamps = (table.column(name).to_pylist() for name in ("uri", "bytes", "stamp"))
    shards, rows = (table.column(name).to_numpy().astype(np.int64) for name in ("shard", "row"))
    return {
        "key": _hashes(uris),
        "check": _hashes(list(zip(uris, sizes, stamps, strict=True))),
        "image_id": make_image_id(shards, rows),
        "num_rows": table.column("num_rows").to_numpy(),
        "ours": pc.equal(table.column("root"), root).to_numpy().astype(np.int8),
        "gone": pc.equal(table.column("format"), "gone").to_numpy().astype(np.int8),
    }


def _hashes(values: Sequence[object]) -> NDArray[np.int64]:
    """Python's own 64-bit hash (SipHash, keyed afresh in each process): nothing here outlives the process."""
    return np.fromiter(map(hash, values), np.int64, len(values))
