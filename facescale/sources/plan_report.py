"""What planning tells: counts, and samples of what changed, vanished or could not be read.

Made by plan.py; shown by driver and cli.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.sources.walk import Problem

_SHOWN = 5


class Change(NamedTuple):
    """A planned file that is no longer what it was.

    Attributes:
        uri: which.
        what: how it differs.
    """

    uri: str
    what: str


@dataclass
class PlanReport:
    """What planning found. Members are images: a file, or an image inside a container.

    Attributes:
        new_members: images in new shards (with dry_run: that would be).
        known_members: images of this source that were planned before, changed ones included.
        new_parts: parts of the new shards.
        new_shards: how many there are.
        new_bytes: size of the files and containers in them.
        ignored: files and folders that are no input: count by extension or reason.
        changed: the first 100 files that differ from their plan.
        num_changed: how many there are.
        vanished: the first 100 planned files under this source that are not there any more.
        num_vanished: how many there are.
        problems: the first 100 things that could not be read.
        num_problems: how many there are.
        accepted: whether changed and vanished files were accepted, so that new rows supersede the old ones.
    """

    new_members: int = 0
    known_members: int = 0
    new_parts: int = 0
    new_shards: int = 0
    new_bytes: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    changed: list[Change] = field(default_factory=list)
    num_changed: int = 0
    vanished: list[Change] = field(default_factory=list)
    num_vanished: int = 0
    problems: list[Problem] = field(default_factory=list)
    num_problems: int = 0
    accepted: bool = False

    def remarks(self) -> list[str]:
        """Lines for a person about everything that was not simply planned; empty when there is nothing to say."""
        then = (
            "superseded by new rows" if self.accepted else "kept as planned; --accept-changes takes them over"
        )
        mend = "the rest is planned; mend or delete them, then run the same command again"
        lines = _listed(self.num_problems, "could not be read", self.problems, mend)
        lines += _listed(self.num_changed, "changed since they were planned", self.changed, then)
        lines += _listed(self.num_vanished, "planned before are not there any more", self.vanished, then)
        if self.ignored:
            lines.append(f"not input: {describe_ignored(self.ignored)}")
        return lines


def _listed(count: int, what: str, shown: Sequence[tuple[str, str]], then: str) -> list[str]:
    if not count:
        return []
    lines = [f"{count:,} files or folders {what} ({then}):"]
    lines += [f"  {uri!r}: {why}" for uri, why in shown[:_SHOWN]]
    return [*lines, f"  and {count - _SHOWN:,} more"] if count > _SHOWN else lines


def describe_ignored(ignored: dict[str, int]) -> str:
    """E.g. "12 .txt, 3 (hidden)", the most frequent first."""
    ranked = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{count:,} {reason}" for reason, count in ranked[:12])
    return shown + (f" and {len(ranked) - 12} kinds more" if len(ranked) > 12 else "")
