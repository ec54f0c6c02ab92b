"""Which faces a training set holds and how identities are numbered: against plain loops, and from round to round."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.training.classes import Classes, ClassRules, choose


def chosen(labels: list[int], count: int, rules: ClassRules, seed: int = 0, **more: object) -> Classes:
    rng = np.random.default_rng(seed)
    quality = rng.random(len(labels)).astype(np.float32)
    copy = rng.random(len(labels)) < 0.2
    names = [f"n{i:03d}" for i in range(count)]
    tie = rng.permutation(len(labels)).astype(np.uint64)
    return choose(np.array(labels, np.int64), names, quality, copy, tie, rules, **more)  # type: ignore[arg-type]


@settings(max_examples=80, deadline=None)
@given(
    labels=st.lists(st.integers(-1, 7), max_size=80),
    seed=st.integers(0, 99),
    least=st.integers(1, 4),
    most=st.one_of(st.none(), st.integers(1, 5)),
    floor=st.sampled_from([0.0, 0.4]),
)
def test_as_a_plain_loop_chooses(
    labels: list[int], seed: int, least: int, most: int | None, floor: float
) -> None:
    rules = ClassRules(min_faces=least, max_faces=most, min_quality=floor)
    found = chosen(labels, 8, rules, seed)
    rng = np.random.default_rng(seed)
    quality = rng.random(len(labels)).astype(np.float32)
    copy = rng.random(len(labels)) < 0.2
    tie = rng.permutation(len(labels))
    expected: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        if label >= 0 and not copy[row] and quality[row] >= floor:
            expected.setdefault(label, []).append(row)
    expected = {label: rows for label, rows in sorted(expected.items()) if len(rows) >= least}
    for label, rows in expected.items():
        best = sorted(rows, key=lambda row: (-quality[row], tie[row]))
        expected[label] = sorted(best[:most])
    assert found.names == [f"n{label:03d}" for label in expected]
    assert found.ids.tolist() == list(range(len(expected)))
    assert found.counts.tolist() == [len(rows) for rows in expected.values()]
    assert found.row.tolist() == sorted(row for rows in expected.values() for row in rows)
    assert sum(found.left_out.values()) + len(found.row) == len(labels)
    by_id = {number: rows for number, rows in enumerate(expected.values())}
    assert all(
        row in by_id[number] for row, number in zip(found.row.tolist(), found.class_id.tolist(), strict=True)
    )


def test_nobody_is_on_both_sides_and_both_are_numbered_from_zero() -> None:
    labels = np.repeat(np.arange(200), 3).tolist()
    found = chosen(labels, 200, ClassRules(min_faces=1, val_share=0.3))
    assert 30 <= found.name_is_val.sum() <= 90
    for side in (False, True):
        ids = np.unique(found.class_id[found.is_val == side])
        assert ids.tolist() == list(range(found.num_classes[int(side)]))
    train = {labels[row] for row in found.row[~found.is_val].tolist()}
    assert train.isdisjoint(labels[row] for row in found.row[found.is_val].tolist())


def test_names_that_may_be_one_person_stay_together() -> None:
    labels = np.repeat(np.arange(200), 3).tolist()
    together = np.arange(200) // 4
    found = chosen(labels, 200, ClassRules(min_faces=1, val_share=0.3), together_L=together)
    side = np.full(200, -1)
    side[[int(name[1:]) for name in found.names]] = found.name_is_val
    for group in side.reshape(-1, 4):
        assert len(set(group[group >= 0].tolist())) <= 1


def test_a_later_round_keeps_ids_and_sides() -> None:
    labels = np.repeat(np.arange(60), 3).tolist()
    rules = ClassRules(min_faces=1, val_share=0.25)
    first = chosen(labels, 60, rules)
    before = {
        name: (int(number), bool(val))
        for name, number, val in zip(first.names, first.ids, first.name_is_val, strict=True)
    }
    fewer = [label for label in labels if label % 5]  # a fifth of the names is gone
    more = fewer + np.repeat(np.arange(60, 90), 3).tolist()
    second = chosen(more, 90, ClassRules(min_faces=1, val_share=0.25, seed=9), before=before)
    now = dict(
        zip(second.names, zip(second.ids.tolist(), second.name_is_val.tolist(), strict=True), strict=True)
    )
    assert all(now[name] == before[name] for name in now if name in before)
    fresh = [pair for name, pair in now.items() if name not in before]
    for side in (False, True):
        ids = sorted(number for number, val in fresh if val == side)
        start = first.num_classes[int(side)]
        assert ids == list(range(start, start + len(ids)))
        assert second.num_classes[int(side)] == start + len(ids)
