"""Rows of a file of embeddings that share a uri, and so are faces of one image: found once for each file, read by part.

The first row of a uri stands for its image; the others are listed in LAKE/_scratch/import/0000017.parquet (by shard)
until the import is complete. Called by driver.imports (find), vector_rows and vector_labels (read).

Memory of the search: 16 bytes a row for up to 32 million rows at a time; larger files are gone through several times.
Uris are compared by 64-bit hashes: among 100 million different ones two are taken for one with a chance of 3e-4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.lake.parts import PartKey
    from facescale.lake.store import Store
    from facescale.sources.vector_types import VectorFile

    Rows = NDArray[np.int64]

SCRATCH = "_scratch/import"
MAX_SHARING = 65_536
"""Rows of one uri; with more it is no name of an image but something that a column is filled up with."""

_HASHES_AT_ONCE = 1 << 25
_BLOCK = 65_536


@dataclass(frozen=True, eq=False)
class Shared:
    """Which rows of a part belong to an image of another row.

    Attributes:
        first: int64 [n], for each row of the part the row that stands for its image; itself for most.
        images: int64 [m], rows of the part that stand for further rows, rising, repeated for each of those.
        rows: int64 [m], these further rows, of the part or of later ones.
    """

    first: Rows
    images: Rows
    rows: Rows


def shared_path(shard: int) -> str:
    """Where the list of a shard is, relative to the lake."""
    return f"{SCRATCH}/{shard:07d}.parquet"


def write_shared(store: Store, shard: int, file: VectorFile) -> int:
    """Find the rows of a file that share a uri, and list them.

    Args:
        store: the lake's.
        shard: that the file was planned as.
        file: opened, with a column or sidecar `uri`.

    Returns:
        Number of rows that an earlier one stands for.

    Raises:
        DataError: more than MAX_SHARING rows have one uri.
    """
    found = [_shared_of(file, turn, turns) for turns in [_turns(file)] for turn in range(turns)]
    first, rows = (np.concatenate(columns) for columns in zip(*found, strict=True))
    order = np.lexsort((rows, first))
    # Two lists in one file: pairs in the order of the image, and the rows alone in their own order.
    table = pa.table(
        {
            "image": first[order],
            "row": rows[order],
            "own_row": np.sort(rows),
            "own_image": first[np.argsort(rows)],
        }
    )
    store.write_table(shared_path(shard), table)
    return len(rows)


def read_shared(store: Store, part: PartKey) -> Shared:
    """What the list of a shard says about a part; nothing is shared where there is no list."""
    low, high = part.first_row, part.first_row + part.num_rows
    first, none = np.arange(low, high), np.empty(0, np.int64)
    if not store.exists(shared_path(part.shard)):
        return Shared(first, none, none)
    images, rows = _between(store, part.shard, ("image", "row"), low, high)
    own_row, own_image = _between(store, part.shard, ("own_row", "own_image"), low, high)
    first[own_row - low] = own_image
    return Shared(first, images, rows)


def _turns(file: VectorFile) -> int:
    return max(1, -(-file.num_rows // _HASHES_AT_ONCE))


def _shared_of(file: VectorFile, turn: int, turns: int) -> tuple[Rows, Rows]:
    """(first row, row) of the rows that share a uri, among the hashes of one turn."""
    keys, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, file.num_rows, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, file.num_rows))
        uris = uri_texts(file, rows)
        hashes = np.fromiter(map(hash, uris.to_pylist()), np.int64, len(uris))
        mine = uris.is_valid().to_numpy(zero_copy_only=False) & (hashes % turns == turn)
        keys.append(hashes[mine])
        numbers.append(rows[mine])
    key, number = np.concatenate(keys), np.concatenate(numbers)
    order = np.argsort(key, kind="stable")
    key, number = key[order], number[order]
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.empty(0, np.int64)
    sizes = np.diff(np.append(starts, len(key)))
    if len(sizes) and sizes.max() > MAX_SHARING:
        row = number[starts[int(sizes.argmax())]]
        raise DataError(
            f"{file.uri}: {int(sizes.max()):,} rows have the uri of row {row}, and would be faces of one image: leave "
            "the uri empty where there is none"
        )
    first = np.repeat(number[starts], sizes)
    further = np.append(False, key[1:] == key[:-1]) if len(key) else np.empty(0, bool)
    return first[further], number[further]


def uri_texts(file: VectorFile, rows: Rows) -> pa.Array:
    """Uris at rows, string [N], without credentials; null where there is none."""
    if not file.has("uri"):
        return pa.nulls(len(rows), pa.string())
    column = file.column("uri", rows)
    try:
        texts = column.cast(pa.string())
    except pa.ArrowException:
        return pa.nulls(len(rows), pa.string())
    texts = pc.replace_substring_regex(texts, r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/@]*@", r"\1")
    return pc.if_else(pc.equal(pc.binary_length(texts), 0), pa.scalar(None, pa.string()), texts)


def row_uris(file_uri: str, rows: Rows, given: pa.Array | None = None) -> pa.Array:
    """The `uri` of rows: the one that is given, else FILE#ROW."""
    own = pc.binary_join_element_wise(file_uri, pa.array(rows).cast(pa.string()), "#")
    return own if given is None else pc.coalesce(given, own)


def _between(store: Store, shard: int, names: tuple[str, str], low: int, high: int) -> tuple[Rows, Rows]:
    """Two columns where the first, which is sorted, lies in low..high - 1; reads only the row groups it takes."""
    with store.open_parquet(shared_path(shard)) as file:
        index = file.schema_arrow.get_field_index(names[0])
        wanted = []
        for group in range(file.num_row_groups):
            statistics = file.metadata.row_group(group).column(index).statistics
            if (
                statistics is None
                or not statistics.has_min_max
                or (statistics.min < high and statistics.max >= low)
            ):
                wanted.append(group)
        table = file.read_row_groups(wanted, columns=list(names))
    keys = table[names[0]].to_numpy()
    start, stop = np.searchsorted(keys, [low, high])
    return keys[start:stop], table[names[1]].to_numpy()[start:stop]
