"""Freezes what a source holds into the lake's `sources` table, and lists the parts that are planned.

In: a source argument. Out: new shard files LAKE/sources/0000017.parquet and a PlanReport. A shard file is created
if absent and never edited: files that an earlier run planned keep their ids, new ones get new shards, and running
the same command again writes nothing. Called by driver (plan, parts) and pipeline (check_source).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.errors import UsageError
from facescale.lake.parts import PartKey
from facescale.lake.schema import check_table
from facescale.lake.sources_table import list_shards, shard_path
from facescale.sources.ahead import map_ahead
from facescale.sources.containers import Scan, scan
from facescale.sources.known import Known, Planned, read_shards
from facescale.sources.plan_report import Change, PlanReport, describe_ignored
from facescale.sources.uris import format_of, root_uri
from facescale.sources.walk import MAX_PROBLEMS, Found, KindOf, Problem, Tally, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from facescale.lake.lake import Lake

__all__ = ["PlanReport", "SourcePart", "check_source", "plan_sources", "planned_parts", "planned_rows"]

FILES_PER_SHARD = 65_536
MIN_PART_ROWS, MAX_PART_ROWS = 64, 8_192
PARTS_WANTED = 64
# From this many members on, parts have their largest size; so planning never has to hold more than these.
LOOK_AHEAD = PARTS_WANTED * MAX_PART_ROWS
MAX_PART_BYTES = 4 << 30
_THREADS = 8


def check_source(src: str, inputs: Inputs | None = None) -> Found:
    """Make sure that a source is there and holds something, before a lake is made for it.

    Args:
        src: as for plan_sources.
        inputs: which files are input; None for images and containers of them.

    Returns:
        The first input.

    Raises:
        UsageError: it does not exist, cannot be read, or holds nothing of a known kind.
    """
    tally, wanted = Tally(), inputs or IMAGES
    found = next(walk(src, tally, wanted.kind_of), None)
    if found is None:
        raise _empty(src, tally, wanted)
    return found


@dataclass(frozen=True)
class Inputs:
    """What counts as input.

    Attributes:
        kind_of: the format that a file's name promises; None for what is no input.
        scan: looks into a container: (uri, format, granularity) in, what it holds out.
        files: what is looked for, for messages.
    """

    kind_of: KindOf = format_of
    scan: Callable[[str, str, int], Scan] = scan
    files: str = "image, tar or Parquet file"


IMAGES = Inputs()


def plan_sources(
    lake: Lake,
    src: str,
    *,
    accept_changes: bool = False,
    dry_run: bool = False,
    part_rows: int | None = None,
    inputs: Inputs = IMAGES,
) -> PlanReport:
    """Compare a source with what is planned and freeze what is new.

    Files are grouped into shards of 65,536; a tar or Parquet file is a shard. Several planners may run at once:
    who finds its shard number taken drops what the other has planned, and takes the next number.

    Args:
        lake: where the plan is kept.
        src: folder, image, tar or Parquet file, or fsspec URL of one.
        accept_changes: files that changed become new rows that supersede the old ones; of files that vanished
            only the superseding is noted. Otherwise both are only reported.
        dry_run: count, but write nothing.
        part_rows: rows of a part, a power of two up to 8,192; None works it out: about 64 parts for a small
            input, 64 rows at least, 8,192 and 4 GiB at most.
        inputs: which files are planned; images and containers of them by default.

    Raises:
        UsageError: the source does not exist, cannot be read, or holds no image; or `part_rows` is not allowed.

    Notes:
        Memory: 35 bytes a file planned before (facescale.sources.known), plus up to 524,288 new rows of about
        150 bytes. A tar is walked header by header once, before it is planned.
    """
    if part_rows is not None and not (1 <= part_rows <= MAX_PART_ROWS and part_rows & (part_rows - 1) == 0):
        raise UsageError(f"part_rows is {part_rows}; it must be a power of two from 1 to {MAX_PART_ROWS:,}")
    tally = Tally()
    planner = _Planner(lake, src, part_rows, inputs.scan, accept_changes=accept_changes, dry_run=dry_run)
    files = walk(src, tally, inputs.kind_of)
    num_found = 0
    containers: list[tuple[Found, int | None]] = []
    while batch := list(itertools.islice(files, FILES_PER_SHARD)):
        num_found += len(batch)
        wanted = planner.sort_out(batch)
        containers += [(file, old) for file, old in wanted if file.format != "image"]
        planner.add_images([(file, old) for file, old in wanted if file.format == "image"])
    planner.flush_images()
    planner.add_containers(containers, tally)
    planner.add_vanished(tally)
    report = planner.report
    report.ignored = dict(tally.ignored)
    report.problems, report.num_problems = tally.problems, tally.num_problems
    if not num_found and not report.num_vanished:
        raise _empty(src, tally, inputs)
    if num_found and not report.new_members and not report.known_members:
        first = report.problems[0] if report.problems else Problem(src, "holds no image")
        raise UsageError(
            f"{src} holds no {'image' if inputs is IMAGES else 'file'} that can be planned; {report.num_problems} "
            f"problems, first: {first.uri}: {first.what}"
        )
    return report


def _empty(src: str, tally: Tally, inputs: Inputs) -> UsageError:
    seen = describe_ignored(dict(tally.ignored)) if tally.ignored else "nothing"
    give = "Give a folder of images, a tar, a Parquet file with image bytes, or a folder of those"
    if inputs is not IMAGES:
        give = "Give such a file, or a folder of those"
    return UsageError(f"{src} holds no {inputs.files}; found there: {seen}. {give}")


class _Planner:
    """Gathers new rows, decides part_rows, writes shards, and counts."""

    def __init__(
        self,
        lake: Lake,
        src: str,
        part_rows: int | None,
        look: Callable[[str, str, int], Scan],
        *,
        accept_changes: bool,
        dry_run: bool,
    ) -> None:
        self.look = look
        self.store, self.root = lake.store, root_uri(src)
        self.part_rows, self.accept, self.dry_run = part_rows, accept_changes, dry_run
        self.known = Known(lake.store, self.root)
        self.theirs: list[str] = []
        self.report = PlanReport(accepted=accept_changes)
        self.images: list[pa.Table] = []
        self.num_images = 0
        self.many_images = False

    def sort_out(self, files: Sequence[Found]) -> list[tuple[Found, int | None]]:
        """What of these files to plan, each with the image id it supersedes."""
        positions, same = self.known.match(files)
        differs = np.flatnonzero((positions >= 0) & ~same)
        known = positions[same]
        wanted: list[tuple[Found, int | None]] = [
            (files[i], None) for i in np.flatnonzero(positions < 0).tolist()
        ]
        for i, old in zip(
            differs.tolist(), self.known.describe(self.known.ids(positions[differs])), strict=True
        ):
            if old.uri != files[i].uri:  # two names with one hash
                wanted.append((files[i], None))
                continue
            known = np.append(known, positions[i])
            self.report.num_changed += 1
            if len(self.report.changed) < MAX_PROBLEMS:
                self.report.changed.append(Change(old.uri, _difference(old, files[i])))
            if self.accept:
                wanted.append((files[i], int(self.known.ids(positions[i : i + 1])[0])))
        self.report.known_members += self.known.num_rows(known)
        return wanted

    def add_images(self, files: Sequence[tuple[Found, int | None]]) -> None:
        """Take in single files; write whole shards once it is clear how large parts will be."""
        if not files:
            return
        self.images.append(self._rows(files, [1] * len(files), [None] * len(files)))
        self.num_images += len(files)
        if self.num_images >= LOOK_AHEAD or self.many_images:
            self.many_images = True
            self.flush_images(keep=FILES_PER_SHARD - 1)

    def flush_images(self, keep: int = 0) -> None:
        """Write the gathered files as shards, but for at most `keep` that do not fill one."""
        if not self.num_images:
            return
        table = pa.concat_tables(self.images)
        step = self._part_rows(LOOK_AHEAD if self.many_images else self.num_images)
        start = 0
        while table.num_rows - start > keep:
            self._write(table.slice(start, FILES_PER_SHARD), step)
            start += FILES_PER_SHARD
        self.images = [table.slice(start)] if start < table.num_rows else []
        self.num_images = max(0, table.num_rows - start)

    def add_containers(self, files: Sequence[tuple[Found, int | None]], tally: Tally) -> None:
        """Look into tars and Parquet files and write each as a shard."""
        granularity = min(MIN_PART_ROWS, self.part_rows or MIN_PART_ROWS)
        scans = map_ahead(
            lambda entry: self.look(entry[0].uri, entry[0].format, granularity), files, threads=_THREADS
        )
        waiting: list[tuple[Found, int | None, Scan]] = []
        members, many = 0, False
        for (file, old), found in zip(files, scans, strict=True):
            tally.ignored.update(found.ignored)
            if found.no_images and file.uri != self.root:
                tally.ignored["(Parquet without images)"] += 1
                continue
            if found.problem is not None:
                tally.add_problem(file.uri, found.problem)
            if found.num_rows:
                waiting.append((file, old, found))
                members += found.num_rows
            if members >= LOOK_AHEAD:
                many = True
            if many:
                self._write_containers(waiting, LOOK_AHEAD, granularity)
                waiting = []
        self._write_containers(waiting, members, granularity)

    def _write_containers(
        self, containers: Iterable[tuple[Found, int | None, Scan]], members: int, granularity: int
    ) -> None:
        for file, old, found in containers:
            step = self._part_rows(members)
            while (
                self.part_rows is None
                and step > MIN_PART_ROWS
                and (file.bytes * min(step, found.num_rows) > MAX_PART_BYTES * found.num_rows)
            ):
                step //= 2
            offsets = None if found.offsets is None else found.offsets[:: step // granularity]
            self._write(self._rows([(file, old)], [found.num_rows], [offsets]), step)

    def add_vanished(self, tally: Tally) -> None:
        """Report planned files that are gone; accepted, write rows that supersede them."""
        ids = self.known.vanished()
        if not len(ids):
            return
        if tally.incomplete:
            tally.add_problem(
                self.root,
                f"{len(ids):,} planned files were not found, but may be in a folder that cannot be listed",
            )
            return
        self.report.num_vanished = len(ids)
        gone = self.known.describe(ids[:MAX_PROBLEMS])
        self.report.vanished = [Change(old.uri, "not there any more") for old in gone]
        if not self.accept:
            return
        for start in range(0, len(ids), FILES_PER_SHARD):
            some = ids[start : start + FILES_PER_SHARD]
            files = [Found(old.uri, "gone", 0, "") for old in self.known.describe(some)]
            entries = list(zip(files, some.tolist(), strict=True))
            self._write(self._rows(entries, [0] * len(some), [None] * len(some)), MIN_PART_ROWS)

    def _part_rows(self, members: int) -> int:
        return self.part_rows if self.part_rows is not None else choose_part_rows(members)

    def _rows(
        self,
        files: Sequence[tuple[Found, int | None]],
        num_rows: Sequence[int],
        offsets: Sequence[list[int] | None],
    ) -> pa.Table:
        """Rows of `sources` that do not know their shard yet."""
        uris, formats, sizes, stamps = zip(*(file for file, _ in files), strict=True)
        return pa.table(
            {
                "uri": pa.array(uris, pa.string()),
                "format": pa.array(formats, pa.string()),
                "bytes": pa.array(sizes, pa.int64()),
                "stamp": pa.array(stamps, pa.string()),
                "num_rows": pa.array(num_rows, pa.int64()),
                "part_offsets": pa.array(offsets, pa.list_(pa.int64())),
                "supersedes": pa.array([old for _, old in files], pa.int64()),
                "root": pa.array([self.root] * len(files), pa.string()),
            }
        )

    def _write(self, rows: pa.Table, part_rows: int) -> None:
        """Create the next shard; while another planner has taken its number, drop what that one has planned.

        Numbers go up by one, so every shard that this planner did not know at its start is one whose number it
        loses: nothing can be planned twice.
        """
        while True:
            if self.theirs:
                planned = pc.is_in(rows.column("uri"), value_set=pa.array(self.theirs, pa.string()))
                lost = pc.sum(rows.filter(planned).column("num_rows")).as_py()
                self.report.known_members += lost or 0
                rows = rows.filter(pc.invert(planned))
            if not rows.num_rows:
                return
            number = self.known.next_shard
            counts = rows.column("num_rows").to_numpy()
            table = rows.append_column("shard", pa.array(np.full(len(counts), number, np.int32)))
            table = table.append_column("row", pa.array(np.cumsum(counts) - counts))
            table = table.append_column("part_rows", pa.array(np.full(len(counts), part_rows, np.int32)))
            if self._create(number, check_table("sources", table)):
                break
            self.theirs += self.known.absorb(number).column("uri").to_pylist()
        self.known.next_shard = number + 1
        total = int(counts.sum())
        self.report.new_members += total
        self.report.new_parts += -(-total // part_rows)
        self.report.new_shards += 1
        self.report.new_bytes += int(pc.sum(rows.column("bytes")).as_py())

    def _create(self, number: int, table: pa.Table) -> bool:
        if self.dry_run:
            return True
        with self.store.batch(if_absent=True) as batch:
            batch.add_table(shard_path(number), table)
        return batch.published


def choose_part_rows(members: int) -> int:
    """Rows of a part for an input of so many members: a power of two that makes about 64 parts, 64..8,192."""
    wanted = -(-members // PARTS_WANTED)
    return min(max(1 << (wanted - 1).bit_length() if wanted > 1 else 1, MIN_PART_ROWS), MAX_PART_ROWS)


def _difference(old: Planned, new: Found) -> str:
    if old.bytes != new.bytes:
        return f"was {old.bytes:,} bytes, is {new.bytes:,}"
    return "same size, but written again"


@dataclass(frozen=True)
class SourcePart:
    """One part to read: which rows of which shard. The worker finds the rest in the shard's file.

    Attributes:
        key: shard, first row, number of rows.
        shard_path: the shard's file, relative to the lake.
        format: image, tar or parquet.
    """

    key: PartKey
    shard_path: str
    format: str


def planned_parts(lake: Lake) -> Iterator[SourcePart]:
    """All parts of the plan in order, streamed shard by shard.

    Parts of superseded sources are among them: every planned member becomes a row of `images`, which is how
    the sums are checked; readers leave superseded rows out. A source that is gone has no rows, so no part.
    """
    numbers = list_shards(lake.store)
    columns = ("row", "num_rows", "part_rows", "format")
    for number, table in zip(numbers, read_shards(lake.store, numbers, columns), strict=True):
        total = int((table.column("row").to_numpy() + table.column("num_rows").to_numpy()).max(initial=0))
        if not total:
            continue
        step, kind = table.column("part_rows")[0].as_py(), table.column("format")[0].as_py()
        for first in range(0, total, step):
            yield SourcePart(PartKey(number, first, min(step, total - first)), shard_path(number), kind)


def planned_rows(lake: Lake) -> int:
    """Number of planned members: what `images` must have when everything is done."""
    numbers = list_shards(lake.store)
    tables = read_shards(lake.store, numbers, ("num_rows",))
    return sum(int(table.column("num_rows").to_numpy().sum()) for table in tables)
