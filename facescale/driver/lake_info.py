"""What a lake holds, from the plan and the footers of current versions, and whether all of it is sound.

Called by `facescale lake info` and `facescale lake verify`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from facescale.index.verify import verify_indexes
from facescale.lake.lake import Lake
from facescale.lake.scan import sum_counters
from facescale.lake.verify import verify
from facescale.sources.plan import planned_rows

if TYPE_CHECKING:
    from facescale.lake.lake import VersionInfo
    from facescale.lake.verify import VerifyReport


@dataclass
class LakeInfo:
    """A lake at a glance."""

    uri: str
    planned: int
    current: list[VersionInfo]
    other_versions: int
    statuses: dict[str, int] = field(default_factory=dict)
    faces: int = 0
    superseded: int = 0


def lake_info(uri: str) -> LakeInfo:
    """Collect it; raises UsageError when there is no lake at `uri`."""
    lake = Lake.open(uri)
    versions = lake.versions(rows=True)
    current = [version for version in versions if version.current]
    info = LakeInfo(
        uri=lake.uri,
        planned=planned_rows(lake),
        current=current,
        other_versions=len(versions) - len(current),
        superseded=len(lake.superseded()),
    )
    if (images := lake.current("images")) is not None:
        counters = sum_counters(lake, images)
        info.faces = counters.get("faces", 0)
        info.statuses = {
            name.removeprefix("status."): count
            for name, count in sorted(counters.items())
            if name.startswith("status.")
        }
    return info


def verify_lake(uri: str) -> VerifyReport:
    """Read every part of every table and every index file; raises UsageError when there is no lake at `uri`."""
    lake = Lake.open(uri)
    report = verify(lake)
    files: list[str] = []
    report.problems += verify_indexes(lake, files.append)
    report.checked["index_files"] = len(files)
    return report
