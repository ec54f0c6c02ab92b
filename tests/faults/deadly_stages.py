"""Stages that go wrong on purpose; imported by the workers of the fault tests."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from facescale.errors import TransientError, UsageError
from facescale.lake.ids import make_image_id
from facescale.lake.parts import PartKey, TableVersion
from facescale.lake.schema import table_schema
from facescale.lake.stage import Guard, StageResult

VERSION = TableVersion("labels", "0123456789ab")


class LabelEveryRow:
    """Writes one label a row; `misbehave` is called with each row that is not poison."""

    name = "label every row"

    def __init__(self, log: Path | None = None) -> None:
        self.log = log

    def open(self) -> None:
        self.opened = threading.Lock()  # like models and thread pools, nothing that could be pickled

    def process(self, part: PartKey, guard: Guard) -> StageResult:
        rows = np.arange(part.first_row, part.first_row + part.num_rows)
        labels = []
        for row in rows.tolist():
            if row in guard.poison:
                labels.append(f"poison: {guard.reasons[row]}")
                continue
            if guard.note is not None:
                guard.note(row)
            self.misbehave(part.shard, row)
            labels.append(f"label {row}")
        if guard.note is not None:
            guard.note(part.first_row + part.num_rows)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{part.shard}/{part.first_row}\n")
        columns = {
            "image_id": make_image_id(part.shard, rows),
            "label": labels,
            "origin": ["test"] * len(rows),
        }
        return StageResult([(VERSION, pa.table(columns, schema=table_schema("labels")))], {"rows": len(rows)})

    def misbehave(self, shard: int, row: int) -> None:
        pass


class KilledBy(LabelEveryRow):
    """Its worker dies on certain rows, every time."""

    def __init__(self, rows: dict[int, str], log: Path | None = None) -> None:
        super().__init__(log)
        self.rows = rows

    def misbehave(self, shard: int, row: int) -> None:
        how = self.rows.get(row)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "abort":
            os.abort()
        elif how == "exit":
            os._exit(7)
        elif how == "raise":
            raise RuntimeError(f"cannot stand row {row}")
        elif how == "hang":
            time.sleep(3600)


class DiesOnce(LabelEveryRow):
    """Its worker dies the first time it meets a row, and never again: the marker file tells."""

    def __init__(self, row: int, marker: Path, log: Path | None = None) -> None:
        super().__init__(log)
        self.row, self.marker = row, marker

    def misbehave(self, shard: int, row: int) -> None:
        if row == self.row and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class AlwaysDies(LabelEveryRow):
    def misbehave(self, shard: int, row: int) -> None:
        os._exit(9)


class CannotOpen(LabelEveryRow):
    def open(self) -> None:
        raise UsageError("the model is not there: install it")


class StorageDown(LabelEveryRow):
    """Its storage fails for one row a given number of times."""

    def __init__(self, row: int, times: int, marker: Path) -> None:
        super().__init__(None)
        self.row, self.times, self.marker = row, times, marker

    def misbehave(self, shard: int, row: int) -> None:
        if row == self.row:
            failed = len(self.marker.read_text()) if self.marker.exists() else 0
            if failed < self.times:
                self.marker.write_text("x" * (failed + 1))
                raise TransientError("bucket did not answer")
