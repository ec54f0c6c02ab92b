"""What a distributed stage is: plain Python that maps one part to tables. The engine calls it; it never sees Ray.

A stage is pickled to every worker, opened once there, and then given parts. It returns tables, and the engine
commits them (facescale.lake.parts.commit_part). A stage whose result is no table (an index shard) writes its file
itself, atomically, and returns counters only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from facescale.lake.parts import PartKey, TableVersion


@dataclass(frozen=True)
class Guard:
    """How to treat the rows of a part that has already cost a worker its life.

    Attributes:
        poison: rows (of the shard) not to touch: their images get the status ``poison``.
        reasons: what each poison row did, for the `detail` column.
        note: called with a row just before it is worked on, in careful mode; None in normal mode. A stage that
            gets it works on one row at a time, in its own thread, so that the last row noted is the culprit, and
            notes the row after the last one when all are through.
    """

    poison: frozenset[int] = frozenset()
    reasons: dict[int, str] = field(default_factory=dict)
    note: Callable[[int], None] | None = None

    @property
    def careful(self) -> bool:
        """Whether to work one row at a time."""
        return self.note is not None


@dataclass
class StageResult:
    """What a stage made of one part.

    Attributes:
        tables: (version, table) pairs in the order of their commit, the primary last; empty when the stage has
            written its own files.
        counters: summed over parts by the driver, e.g. {"images": 64, "faces": 71, "status.ok": 63}.
    """

    tables: list[tuple[TableVersion, pa.Table]]
    counters: dict[str, int]


class HasKey(Protocol):
    """A unit of work: anything picklable that carries the key of the part it makes."""

    @property
    def key(self) -> PartKey:
        """The part's place in its table version."""


class Stage(Protocol):
    """A distributed stage. Constructors only store; `open` loads models; nothing deletes."""

    name: str

    def open(self) -> None:
        """Load what is needed once per worker."""

    def process(self, part: Any, guard: Guard) -> StageResult:
        """Turn one part into tables.

        Args:
            part: the unit of work this stage was planned with (has a `key`).
            guard: poison rows and careful mode; see Guard.
        """
