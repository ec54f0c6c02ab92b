"""A plug-in for the fault tests: it makes one chosen file operation of a real job go wrong.

`python -m fault_plugin` is the `facescale` command with the fault in the driver; --plugin takes it to the workers.

Reads FACESCALE_TEST_FAULT, a JSON object {"points": [regular expression, ...], "do": "pause" or "full",
"markers": folder}. Each point matches the final name of a file and goes off once, as its marker file is made
exclusively; the marker holds the process id.

- pause: right after a file got its final name the process stands still, so that the test can kill whom it likes
  with exactly these files in place.
- full: the file is written, and then the disk has no room to sync it.

In the driver it also has the workers of index and neighbors import it (they import no plug-ins by themselves).
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import facescale.driver.index
import facescale.driver.neighbors
from facescale.curate.neighbors import NeighborsStage
from facescale.index.stages import IndexStage, TrainStage
from facescale.lake.local_storage import LocalBatch

FAULT = json.loads(os.environ.get("FACESCALE_TEST_FAULT", "{}"))


class PluggedIndexStage(IndexStage):
    """Pickled by name, so that the worker that unpickles it imports this module."""


class PluggedTrainStage(TrainStage):
    """As PluggedIndexStage."""


class PluggedNeighborsStage(NeighborsStage):
    """As PluggedIndexStage."""


def _is_due(path: str) -> bool:
    """Whether a fault is due at this file; at most once for each point, over all processes."""
    for number, point in enumerate(FAULT["points"]):
        if re.search(point, path):
            marker = Path(FAULT["markers"]) / str(number)
            try:
                marker.with_suffix(".claim").touch(exist_ok=False)
            except FileExistsError:
                return False
            marker.with_suffix(".new").write_text(str(os.getpid()))
            marker.with_suffix(".new").rename(marker)  # whoever sees the marker can read the whole number
            return True
    return False


def _pausing(give_name: Any) -> Any:
    """os.replace or os.link, with which every file of a lake gets its final name."""

    def pausing(source: Any, target: Any, **more: Any) -> None:
        give_name(source, target, **more)
        if _is_due(str(target)):
            threading.Event().wait()

    return pausing


def _filling(reserve: Any) -> Any:
    def full(batch: LocalBatch, path: str) -> Path:
        staged: Path = reserve(batch, path)
        if _is_due(str(batch.root / path)):
            _full_files.add(str(staged))
        return staged

    return full


_full_files: set[str] = set()


def _without_room(sync: Any) -> Any:
    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") in _full_files:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    return fsync


if FAULT and __name__ != "__main__":
    facescale.driver.index.IndexStage = PluggedIndexStage
    facescale.driver.index.TrainStage = PluggedTrainStage
    facescale.driver.neighbors.NeighborsStage = PluggedNeighborsStage
    if FAULT["do"] == "pause":
        os.replace, os.link = _pausing(os.replace), _pausing(os.link)
    else:
        LocalBatch.reserve = _filling(LocalBatch.reserve)
        os.fsync = _without_room(os.fsync)

if __name__ == "__main__":
    import fault_plugin  # by its name, under which its classes are pickled  # noqa: F401

    from facescale.cli import main

    main()
