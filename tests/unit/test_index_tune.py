"""Tuning: the narrowest search that meets the target, with as few measurements as that takes."""

from __future__ import annotations

import pytest

from facescale.index.finish import tune
from facescale.index.manifest import RecallPoint


def _measuring(enough_at: int | None, *, error: float = 0.0):
    asked: list[int | None] = []

    def measure(probes: int | None) -> RecallPoint:
        asked.append(probes)
        good = enough_at is not None and (probes is None or probes >= enough_at)
        return RecallPoint(
            probes=probes,
            recall=0.96 if good else 0.5,
            standard_error=error,
            self_match=1.0,
            ms_per_query=0.1,
        )

    return measure, asked


@pytest.mark.parametrize(
    ("enough_at", "chosen"), [(1, 1), (2, 2), (3, 3), (100, 104), (1000, 1024), (64, 64)]
)
def test_doubles_then_bisects(enough_at: int, chosen: int) -> None:
    measure, asked = _measuring(enough_at)
    point, curve = tune(measure, 0.95, 1, 1024)
    assert point.probes == chosen >= enough_at
    assert len(asked) == len(set(asked)) == len(curve) <= 14
    assert [p.probes for p in curve] == sorted(asked)


def test_nothing_is_enough_ends_at_the_widest() -> None:
    measure, asked = _measuring(None)
    point, _ = tune(measure, 0.95, 16, 100)
    assert (point.probes, asked) == (100, [16, 32, 64, 100])


def test_the_target_is_met_with_a_margin_of_one_standard_error() -> None:
    measure, asked = _measuring(8, error=0.02)
    point, _ = tune(measure, 0.95, 1, 64)
    assert (point.probes, asked[-1]) == (64, 64)  # 0.96 - 0.02 is not enough anywhere


def test_the_first_setting_is_not_undercut() -> None:
    measure, asked = _measuring(1)
    point, _ = tune(measure, 0.95, 16, 4096)
    assert (point.probes, asked) == (16, [16])


def test_an_exact_index_is_measured_once() -> None:
    measure, asked = _measuring(0)
    point, curve = tune(measure, 0.95, None, None)
    assert (point.probes, len(curve), asked) == (None, 1, [None])
