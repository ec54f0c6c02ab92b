"""The engine under faults: a bad row costs that row, a dead worker nothing, and a bad machine is said so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from deadly_stages import (
    VERSION,
    AlwaysDies,
    CannotOpen,
    DiesOnce,
    KilledBy,
    LabelEveryRow,
    StorageDown,
)

from facescale.engine.map_parts import Deadlines, MapSummary, map_parts
from facescale.engine.placement import Placement
from facescale.engine.session import ray_session
from facescale.errors import InfrastructureError, UsageError
from facescale.lake.parts import PartKey, list_done
from facescale.lake.store import Store

ROWS = 8
NUM_PARTS = 6


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with ray_session(None, num_cpus=2):
        yield


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "lake"))


def run(stage: object, store: Store, workers: int = 2, **deadlines: float) -> tuple[MapSummary, list[str]]:
    parts = [PartKey(0, first, ROWS) for first in range(0, NUM_PARTS * ROWS, ROWS)]
    troubles: list[str] = []
    summary = map_parts(
        stage,
        parts,
        num_parts=len(parts),
        store=store,
        placement=Placement(workers, 1.0, 0.0, 1),
        deadlines=Deadlines(**deadlines),
        on_trouble=troubles.append,
    )
    return summary, troubles


def labels(store: Store) -> list[str]:
    paths = sorted(path for path, _ in store.list(VERSION.folder))
    return [label for path in paths for label in store.read_table(path)["label"].to_pylist()]


EXPECTED = [f"label {row}" for row in range(NUM_PARTS * ROWS)]


def test_every_part_is_committed_once(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    summary, troubles = run(LabelEveryRow(log), store)
    assert (summary.parts, summary.counters, troubles) == (NUM_PARTS, {"rows": NUM_PARTS * ROWS}, [])
    assert labels(store) == EXPECTED
    assert len(list_done(store, VERSION)) == NUM_PARTS
    assert len(log.read_text().split()) == NUM_PARTS


def test_inline_makes_the_same_tables(store: Store, tmp_path: Path) -> None:
    run(LabelEveryRow(), store)
    inline = Store(str(tmp_path / "inline"))
    run(LabelEveryRow(), inline, workers=0)
    for path, _ in store.list(VERSION.folder):
        assert store.read_bytes(path) == inline.read_bytes(path)


def test_a_worker_that_dies_once_is_replaced(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    summary, troubles = run(DiesOnce(19, tmp_path / "died", log), store)
    assert labels(store) == EXPECTED
    assert (summary.deaths, summary.careful) == (1, 0)
    assert len(troubles) == 1 and "0000000/0000000016" in troubles[0]
    assert len(log.read_text().split()) == NUM_PARTS  # only the part of the dead worker ran again


@pytest.mark.parametrize("how", ["kill", "abort", "exit", "raise"])
def test_a_deadly_row_costs_that_row_alone(store: Store, how: str) -> None:
    summary, _ = run(KilledBy({12: how, 30: how}), store)
    found = labels(store)
    assert [row for row, label in enumerate(found) if label.startswith("poison: ")] == [12, 30]
    assert [label for label in found if not label.startswith("poison")] == [
        label for row, label in enumerate(EXPECTED) if row not in (12, 30)
    ]
    assert summary.careful == 2


def test_two_deadly_rows_in_one_part(store: Store) -> None:
    run(KilledBy({9: "kill", 11: "exit"}), store)
    found = labels(store)
    assert "SIGKILL" in found[9] and "exit code 7" in found[11]
    assert sum(label.startswith("poison") for label in found) == 2


def test_a_hanging_row_is_killed_at_its_deadline(store: Store) -> None:
    summary, troubles = run(KilledBy({20: "hang"}), store, min_s=1.0, first_row_s=0.01, item_s=1.0)
    assert [row for row, label in enumerate(labels(store)) if label.startswith("poison")] == [20]
    assert sum("past its deadline" in trouble for trouble in troubles) == 2
    assert summary.parts == NUM_PARTS


def test_workers_that_always_die_are_the_machines_fault(store: Store) -> None:
    with pytest.raises(InfrastructureError, match="that is the machine, not the images"):
        run(AlwaysDies(), store)
    assert len(list_done(store, VERSION)) == 0


def test_a_stage_that_cannot_open_fails_at_once(store: Store) -> None:
    with pytest.raises(UsageError, match="the model is not there: install it"):
        run(CannotOpen(), store)


def test_transient_trouble_is_tried_again(store: Store, tmp_path: Path) -> None:
    summary, troubles = run(StorageDown(10, 2, tmp_path / "count"), store)
    assert labels(store) == EXPECTED
    assert summary.left_over == [] and len(troubles) == 2


def test_lasting_transient_trouble_is_left_over(store: Store, tmp_path: Path) -> None:
    summary, _ = run(StorageDown(10, 99, tmp_path / "count"), store)
    assert summary.parts == NUM_PARTS - 1
    assert len(summary.left_over) == 1 and "bucket did not answer" in summary.left_over[0]
