"""What a lake holds, for `facescale lake info`: from the plan and the footers of current versions; no rows are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from facescale.lake.lake import Lake
from facescale.lake.scan import sum_counters
from facescale.sources.plan import planned_rows

if TYPE_CHECKING:
    from facescale.lake.lake import VersionInfo


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
