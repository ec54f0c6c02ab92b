"""Small sources for the tests: files with known bytes, tars and Parquet files, and a lake to plan them into."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from facescale.sources.plan import planned_parts
from facescale.sources.read import Member, read_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from facescale.lake.lake import Lake

NO_LIMIT = 1 << 40


def write_files(folder: Path, files: Mapping[str | bytes, bytes]) -> None:
    """Files by name, which may be bytes that are no UTF-8 and may hold slashes."""
    for name, data in files.items():
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)


def tar_bytes(members: Iterable[tuple[str, bytes]], *, format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, encoding="utf-8") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write_parquet(path: Path, columns: Mapping[str, Sequence[object]], row_group_size: int = 10) -> None:
    pq.write_table(pa.table(dict(columns)), path, row_group_size=row_group_size)


def read_all(lake: Lake, *, max_bytes: int = NO_LIMIT, threads: int = 4) -> dict[tuple[int, int], Member]:
    """Every planned member by (shard, row); asserts that each part gives exactly its rows in order."""
    members: dict[tuple[int, int], Member] = {}
    for part in planned_parts(lake):
        got = list(read_part(lake.store, part, max_bytes=max_bytes, threads=threads))
        first = part.key.first_row
        assert [member.row for member in got] == list(range(first, first + part.key.num_rows))
        members |= {(part.key.shard, member.row): member for member in got}
    return members


def by_uri(lake: Lake, root: Path | str = "") -> dict[str, bytes | None]:
    """Data of every planned member by its uri below a root."""
    return {m.uri.removeprefix(f"{root}/"): m.data for m in read_all(lake).values()}


def plan_table(lake: Lake) -> pa.Table:
    """The whole `sources` table."""
    paths = sorted(path for path, _ in lake.store.list("sources"))
    return pa.concat_tables([lake.store.read_table(path) for path in paths])
