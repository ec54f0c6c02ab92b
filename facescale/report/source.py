"""Where the sections of a report read: a lake's current tables, streamed in parts, sampled where there are too many.

Called by every section. Nothing here holds more than a part, the rows that were chosen, or a number a group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.index.vectors import random_keys
from facescale.lake.ids import MAX_ROW, ROW_BITS, image_id_of
from facescale.lake.parts import NO_MODEL, PartKey, list_done
from facescale.lake.scan import scan, scan_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from facescale.config.report import ReportConfig
    from facescale.curate.calibration import Calibration
    from facescale.lake.lake import Lake
    from facescale.lake.parts import DoneParts, TableVersion

    Ids = NDArray[np.int64]

_MERGE_ROWS = 1 << 20
PER_FACE = ("embeddings", "neighbors", "clusters", "decisions", "index")
"""Tables that belong to an embedder."""


@dataclass
class Source:
    """A lake, and how much of it may be shown.

    Attributes:
        lake: opened.
        config: of the report.
        calibration: the embedder's; None where it has none.
    """

    lake: Lake
    config: ReportConfig
    calibration: Calibration | None = None
    _done: dict[TableVersion, DoneParts] = field(default_factory=dict)

    def version(self, table: str) -> TableVersion | None:
        """The current version of a table; of the report's embedder, where tables belong to one."""
        return self.lake.current(table, self.config.embedder if table in PER_FACE else NO_MODEL)

    def done(self, version: TableVersion) -> DoneParts:
        """The parts of a version, listed once."""
        if version not in self._done:
            self._done[version] = list_done(self.lake.store, version)
        return self._done[version]

    @cached_property
    def superseded(self) -> Ids:
        """Images whose source was replaced."""
        return self.lake.superseded()

    def sampled(self, version: TableVersion) -> tuple[int, int]:
        """(parts that are read for samples, parts there are)."""
        total = len(self.done(version))
        return min(total, self.config.max_parts), total

    def scan(
        self, version: TableVersion, columns: Sequence[str], *, every_part: bool = False
    ) -> Iterator[pa.Table]:
        """Stream columns of a version, of a seeded sample of its parts where there are more than config.max_parts."""
        keys = self.done(version).keys
        if not every_part and len(keys) > self.config.max_parts:
            order = np.argsort(random_keys(keys, self.config.seed), kind="stable")
            keys = np.sort(keys[order[: self.config.max_parts]])
        parts = (PartKey(int(key) >> ROW_BITS, int(key) & MAX_ROW, 0) for key in keys)
        return scan(self.lake, version, columns=columns, parts=parts, drop_superseded=self.superseded)

    def rows(self, version: TableVersion, ids: Ids, columns: Sequence[str]) -> pa.Table:
        """Rows of some ids, in their order; ids without one are left out."""
        return scan_ids(self.lake, version, ids, columns, missing="skip", done=self.done(version))

    def claims(self, ids: Ids) -> dict[int, str]:
        """{image_id: labels claimed for it, joined} of the images of some faces or images."""
        labels = self.version("labels")
        images = np.unique(image_id_of(np.asarray(ids, np.int64)))
        if labels is None or not len(images):
            return {}
        table = self.rows(labels, images, ["image_id", "label"])
        names: dict[int, list[str]] = {}
        for image, label in zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True):
            names.setdefault(image, []).append(label)
        return {image: "; ".join(sorted(set(found))) for image, found in names.items()}

    def keys(self, ids: Ids) -> NDArray[np.uint64]:
        """A seeded pseudo-random number for each id: the smallest of them are a sample."""
        return random_keys(ids, self.config.seed)


class Sample:
    """The rows with the smallest keys of all that stream by.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._rows: pa.Table | None = None
        self._keys: NDArray[np.float64] = np.empty(0)

    def add(self, rows: pa.Table, keys: NDArray[np.generic]) -> None:
        """Offer rows.

        Args:
            rows: N of them, with the same columns each time.
            keys: [N].
        """
        numbers = np.concatenate([self._keys, np.asarray(keys, np.float64)])
        everything = rows if self._rows is None else pa.concat_tables([self._rows, rows])
        best = np.argsort(numbers, kind="stable")[: self.size]
        self._rows, self._keys = everything.take(pa.array(best)).combine_chunks(), numbers[best]

    def rows(self) -> list[dict[str, Any]]:
        """Those kept, by rising key."""
        return [] if self._rows is None else list(self._rows.to_pylist())


class Groups:
    """How large groups are, and the mean of a number in each: members stream by in any order; 24 bytes a group."""

    def __init__(self) -> None:
        self._blocks: list[tuple[Ids, Ids, NDArray[np.float64]]] = []
        self._waiting = 0

    def add(self, group: Ids, value: NDArray[np.floating] | None = None) -> None:
        """Count members.

        Args:
            group: int64 [N], the group of each.
            value: [N] numbers to average; none missing.
        """
        numbers = np.zeros(len(group)) if value is None else np.asarray(value, np.float64)
        self._blocks.append(_summed(group, np.ones(len(group), np.int64), numbers))
        self._waiting += len(self._blocks[-1][0])
        if self._waiting > 2 * _MERGE_ROWS and len(self._blocks) > 1:
            self._merge()

    def result(self) -> tuple[Ids, Ids, NDArray[np.float64]]:
        """(group ids, rising; members of each; mean value of each)."""
        self._merge()
        group, count, total = self._blocks[0]
        return group, count, total / np.maximum(count, 1)

    def _merge(self) -> None:
        joined = [np.concatenate(columns) for columns in zip(*self._blocks, strict=True)]
        empty = np.empty(0, np.int64)
        self._blocks = [_summed(*joined) if joined else (empty, empty, np.empty(0))]
        self._waiting = 0


def ends_of_groups(
    group: Ids, value: NDArray[np.floating], key: NDArray[np.uint64], first: int, last: int
) -> Ids:
    """Of each group the members with the largest and the smallest values.

    Args:
        group: int64 [N].
        value: [N].
        key: [N], decides between equal values.
        first: how many of the largest.
        last: how many of the smallest.

    Returns:
        Rows, int64: group by group in order of their ids, in each by falling value.
    """
    order = np.lexsort((key, -np.asarray(value, np.float64), group))
    ordered = group[order]
    start = np.searchsorted(ordered, ordered, side="left")
    size = np.searchsorted(ordered, ordered, side="right") - start
    rank = np.arange(len(order)) - start
    chosen: Ids = order[(rank < first) | (rank >= size - last)]
    return chosen


def _summed(group: Ids, count: Ids, total: NDArray[np.float64]) -> tuple[Ids, Ids, NDArray[np.float64]]:
    ids, of = np.unique(group, return_inverse=True)
    counts = np.bincount(of, weights=count, minlength=len(ids)).astype(np.int64)
    sums: NDArray[np.float64] = np.bincount(of, weights=total, minlength=len(ids)).astype(np.float64)
    return ids, counts, sums


def numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A nullable column of numbers as float64, NaN for null."""
    values: NDArray[np.float64] = pc.cast(column, pa.float64()).to_numpy()
    return values


def file_name(uri: str) -> str:
    """The last part of a uri."""
    return uri.rstrip("/").rpartition("/")[2] or uri


def sample_note(source: Source, version: TableVersion) -> str:
    """A remark for the reader where not every part was read; "" where all were."""
    read, total = source.sampled(version)
    return "" if read == total else f"From a sample of {read:,} of the {total:,} parts of {version.table}."
