"""The images that failed: how many count, and a few of each status with what to do about them.

Comes in: a finished `images` version and its counters. Goes out: the end of extract's summary, and what pipeline
holds against --max-failures. Called by facescale.driver.extract.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from facescale.lake.parts import list_done, read_counters
from facescale.lake.scan import scan, scan_ids
from facescale.lake.schema import GOOD_STATUSES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

    from facescale.lake.lake import Lake
    from facescale.lake.parts import TableVersion

_AGAIN = "then run again with --accept-changes"
_IN_DETAIL = ""  # facescale.sources.read knows more about the cause, and says what to do in `detail`
REMEDIES = {
    "empty": f"fetch it again or delete it, {_AGAIN}",
    "not_image": f"put the image itself in its place or delete it, {_AGAIN}",
    "unsupported": f"put the converted image in its place, {_AGAIN}",
    "truncated": f"fetch the whole file again, {_AGAIN}",
    "corrupt": f"fetch it again, {_AGAIN}",
    "too_many_bytes": "if you trust it, raise extract.max_bytes in the --config file: that makes new tables",
    "too_many_pixels": "if you trust it, raise extract.max_pixels in the --config file: that makes new tables",
    "wrong_dimension": f"leave it out or embed it with the model of the others, {_AGAIN}",
    "wrong_type": f"write its numbers as numbers, {_AGAIN}",
    "not_finite": f"embed it again or leave it out, {_AGAIN}",
    "zero_vector": f"embed it again or leave it out, {_AGAIN}",
    "poison": f"it ended or hung its worker: look at it with another program, delete it, {_AGAIN}",
    "unreadable": _IN_DETAIL,
    "source_changed": _IN_DETAIL,
    "transient": _IN_DETAIL,
}
"""What to do about an image of each status that is not one of GOOD_STATUSES."""

_EXAMPLES = 3
_PARTS_OPENED = 256  # a rare status far down a large crawl stays without an example


@dataclass(frozen=True)
class FailedImage:
    """One of them; `remedy` says what to do where `detail` does not say it already."""

    uri: str
    status: str
    detail: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.uri!r}: {'; '.join(filter(None, [f'{self.status}: {self.detail}', self.remedy]))}"


@dataclass(frozen=True)
class Failures:
    """What became of the images that are not superseded.

    Attributes:
        images: how many there are.
        failed: how many of them have a status that is not one of GOOD_STATUSES.
        examples: a few of each such status.
    """

    images: int
    failed: int
    examples: list[FailedImage] = field(default_factory=list)


def find_failures(lake: Lake, images: TableVersion, counters: Mapping[str, int]) -> Failures:
    """Count the failed images and find a few of each kind.

    Args:
        lake: the lake.
        images: a version whose parts are all done.
        counters: the sums over its parts, superseded images included.

    Notes:
        Cost: nothing when all is well; else the footers of up to 256 parts, and the rows of those that hold an
        example; and the rows of superseded images.
    """
    superseded = lake.superseded()
    gone: dict[str, int] = {}
    if len(superseded):
        statuses = scan_ids(lake, images, superseded, ["status"], missing="skip").column("status")
        gone = {entry["values"]: entry["counts"] for entry in pc.value_counts(statuses).to_pylist()}
    left = {
        status: count - gone.get(status, 0)
        for name, count in counters.items()
        if (status := name.removeprefix("status.")) != name
    }
    failed = {status: count for status, count in left.items() if status not in GOOD_STATUSES and count}
    wanted = {status: min(_EXAMPLES, count) for status, count in failed.items()}
    examples: list[FailedImage] = []
    parts = itertools.islice(list_done(lake.store, images).parts(), _PARTS_OPENED)
    while wanted and (part := next(parts, None)) is not None:
        held = read_counters(lake.store.read_footer(images.part_path(part)))
        if not any(held.get(f"status.{status}") for status in wanted):
            continue
        columns = ["uri", "status", "detail"]
        for table in scan(lake, images, columns=columns, parts=[part], drop_superseded=superseded):
            examples += _examples(table, wanted)
    examples.sort(key=lambda image: (image.status, image.uri))
    return Failures(sum(left.values()), sum(failed.values()), examples)


def _examples(table: pa.Table, wanted: dict[str, int]) -> Iterator[FailedImage]:
    """Examples of the statuses that are still wanted; takes them off `wanted`."""
    for status, count in list(wanted.items()):
        rows = table.filter(pc.equal(table.column("status"), status)).slice(0, count)
        for row in rows.to_pylist():
            yield FailedImage(row["uri"], status, row["detail"] or "", REMEDIES.get(status, ""))
        wanted[status] -= rows.num_rows
        if not wanted[status]:
            del wanted[status]
