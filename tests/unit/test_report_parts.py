"""What a report is put together from: histograms, samples, drawings, text; each against a plain oracle."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.curate.decisions import VERDICTS as DECIDED
from facescale.lake.schema import table_spec
from facescale.report import plots
from facescale.report.histogram import FINE_BINS, Histogram
from facescale.report.model import Table
from facescale.report.page import cell_text, fingerprint_of, shown_text
from facescale.report.plots import Mark, histogram, number_text, short_count, ticks
from facescale.report.source import Groups, Sample, ends_of_groups
from facescale.report.words import STATUSES, VERDICT_TONES, VERDICTS

FINITE = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(FINITE, max_size=30), min_size=1, max_size=6), st.randoms())
def test_histogram_counts_what_streams_by_in_any_order(blocks: list[list[float]], random: object) -> None:
    values = np.array([value for block in blocks for value in block])
    counts = Histogram()
    for block in blocks:
        counts.add(np.array([*block, np.nan]))
    assert (counts.total, counts.missing) == (len(values), len(blocks))
    if not len(values):
        assert np.isnan(counts.quantile(0.5)) and np.isnan(counts.share_above(0))
        return
    reach = counts.width * FINE_BINS
    assert counts.low <= values.min() and values.max() <= counts.low + reach
    assert reach <= 4 * max(values.max() - values.min(), abs(values).max() * 1e-6, 1e-8) + reach / 2
    for share in (0.1, 0.5, 0.9):
        exact = np.quantile(values, share, method="inverted_cdf")
        assert abs(counts.quantile(share) - exact) <= counts.width
    low, high = counts.trimmed_range()
    assert low < high and counts.bars(low, high, 7).total == len(values)


def test_values_that_are_all_the_same_are_found_exactly() -> None:
    for value in (0.0, 0.75, -3.0):
        counts = Histogram()
        counts.add(np.full(9, value))
        assert counts.quantile(0.5) == value
        low, high = counts.trimmed_range()
        assert low < value < high and high - low == 1
    mostly = Histogram()
    mostly.add(np.array([0.0] * 5000 + [0.3]))
    assert mostly.quantile(0.5) == 0 and mostly.trimmed_range()[1] > 0.3


def test_histogram_agrees_with_numpy() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.4, 0.1, 5000), rng.normal(0.9, 0.02, 3000)]).astype(np.float32)
    counts = Histogram()
    for block in np.array_split(values, 7):
        counts.add(block)
    expected, _ = np.histogram(np.clip(values, 0, 1 - 1e-9), bins=50, range=(0, 1))
    assert (
        np.abs(counts.bars(0, 1, 50).counts - expected).max() <= 8
    )  # a fine bin on an edge goes to one side whole
    assert counts.share_above(0.7) == pytest.approx((values > 0.7).mean(), abs=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), max_size=20), max_size=5))
def test_groups_are_those_of_a_counter(blocks: list[list[tuple[int, float]]]) -> None:
    groups = Groups()
    for block in blocks:
        groups.add(np.array([g for g, _ in block], np.int64), np.array([v for _, v in block]))
    ids, sizes, means = groups.result()
    members = [pair for block in blocks for pair in block]
    counted = Counter(group for group, _ in members)
    assert dict(zip(ids.tolist(), sizes.tolist(), strict=True)) == counted
    for group, mean in zip(ids.tolist(), means.tolist(), strict=True):
        assert mean == pytest.approx(np.mean([value for g, value in members if g == group]))


def test_groups_stay_right_when_they_are_merged_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facescale.report.source._MERGE_ROWS", 4)
    groups, rng = Groups(), np.random.default_rng(0)
    everything = rng.integers(0, 20, (30, 15))
    for block in everything:
        groups.add(block)
        assert len(groups._blocks) <= 9
    ids, sizes, _ = groups.result()
    assert np.array_equal(sizes, np.bincount(everything.ravel())[ids])


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(40)), st.integers(1, 9), st.integers(1, 50))
def test_a_sample_is_the_smallest_keys_however_the_rows_come(order: list[int], step: int, size: int) -> None:
    sample = Sample(size)
    for start in range(0, 40, step):
        rows = order[start : start + step]
        sample.add(pa.table({"row": rows}), np.array(rows) * 10)
    assert [entry["row"] for entry in sample.rows()] == list(range(min(size, 40)))
    assert Sample(3).rows() == []


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=30),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_ends_of_groups(rows: list[tuple[int, int]], first: int, last: int) -> None:
    group = np.array([g for g, _ in rows], np.int64)
    value = np.array([v for _, v in rows], float)
    key = np.arange(len(rows), dtype=np.uint64)
    expected = []
    for wanted in sorted(set(group.tolist())):
        mine = sorted((row for row, (g, _) in enumerate(rows) if g == wanted), key=lambda r: (-rows[r][1], r))
        expected += [row for at, row in enumerate(mine) if at < first or at >= len(mine) - last]
    assert ends_of_groups(group, value, key, first, last).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e5, 1e5), st.floats(1e-3, 1e5))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 8
    assert all(low - span * 1e-6 <= value <= low + span * (1 + 1e-6) for value in found)
    assert len({round(b - a, 9) for a, b in itertools.pairwise(found)}) <= 2


def drawn(marks: list[Mark], **options: str) -> ET.Element:
    counts = Histogram()
    counts.add(np.linspace(0, 1, 1000))
    svg = histogram([("all", counts.bars(0, 1, 10))], marks=marks, **{"what": "x", **options})
    return ET.fromstring(svg)


def test_bars_and_thresholds_are_where_they_belong() -> None:
    root = drawn([Mark(0.25, "quarter"), Mark(0.9, "high"), Mark(7.0, "outside")])
    bars = root.findall("g/rect")
    assert [float(bar.get("x", "").rstrip("%")) for bar in bars] == [10.0 * at for at in range(10)]
    heights = [float(bar.get("height", "")) for bar in bars]
    assert max(heights) == plots.HEIGHT_PX and min(heights) > 0.95 * plots.HEIGHT_PX
    lines = {line.get("x1"): line for line in root.findall("line") if line.get("class") == "mark"}
    assert set(lines) == {"25.00%", "90.00%"}
    names = {text.text: text for text in root.findall("text") if text.get("class") == "mark"}
    assert {name: text.get("text-anchor") for name, text in names.items()} == {
        "quarter": "start",
        "high": "end",
    }
    assert len({text.get("y") for text in names.values()}) == 2  # no two on one line
    assert "outside" not in (root.get("aria-label") or "") and "quarter at 0.25" in (
        root.get("aria-label") or ""
    )


def test_several_series_are_drawn_as_shares() -> None:
    many, few = Histogram(), Histogram()
    many.add(np.linspace(0, 1, 1000))
    few.add(np.linspace(0, 1, 10))
    root = ET.fromstring(
        histogram([("many", many.bars(0, 1, 5)), ("few", few.bars(0, 1, 5))], what="x", counted="pairs")
    )
    tops = [max(float(bar.get("height", "")) for bar in group.findall("rect")) for group in root.findall("g")]
    assert tops[0] == pytest.approx(tops[1], rel=0.02)


def test_a_drawing_holds_no_markup_from_outside() -> None:
    root = drawn([Mark(0.5, "<script>x</script>")], what='"><script>y</script>')
    assert {element.tag for element in root.iter()} <= {"svg", "g", "rect", "line", "text", "title"}
    assert root.get("aria-label", "").startswith('"><script>y')
    columns = ET.fromstring(plots.columns(["<i>", "b"], [1, 2.0], what="z"))
    assert [text.text for text in columns.findall("text")][1] == "<i>"


def test_an_empty_histogram_can_be_drawn() -> None:
    counts = Histogram()
    low, high = counts.trimmed_range()
    assert ET.fromstring(histogram([("", counts.bars(low, high, 9))], what="x")).findall("g/rect") == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567, "1,234,567"),
        (0.95317, "0.9532"),
        (1.2e-7, "1.2e-07"),
        (250000.0, "250,000"),
        (-3.5, "-3.5"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (9999, "9,999"), (12345, "12k"), (3.42e6, "3.4M"), (5e10, "50G")]
)
def test_short_counts(value: float, text: str) -> None:
    assert short_count(value) == text


def test_names_of_doubling_columns() -> None:
    assert plots.doubling_names(0) == []
    assert plots.doubling_names(6) == ["1", "2–3", "4–7", "8–15", "≥16", "≥32"]


def test_names_from_the_data_stay_in_their_line() -> None:
    assert shown_text("a\u202eb\nc\x00") == "a\\u202eb\\u000ac\\u0000"
    long = shown_text("start" + "x" * 500 + "end", 40)
    assert len(long) == 40 and long.startswith("start") and long.endswith("end") and "…" in long
    assert shown_text("Łukasz 写真 عربى") == "Łukasz 写真 عربى"
    table = Table("", ("name", "n"), (("<b>", 5),), names=(0,))
    assert cell_text("<b>", table, 0) == "<bdi>&lt;b&gt;</bdi>"
    assert (cell_text("<b>", table, 1), cell_text(None, table, 1), cell_text(12345, table, 1)) == (
        "&lt;b&gt;",
        "",
        "12,345",
    )


def test_fingerprint_is_read_back() -> None:
    assert fingerprint_of(b'<meta name="facescale-report" content="0123456789ab">') == "0123456789ab"
    assert fingerprint_of(b"<html>") is None


def test_every_status_and_verdict_has_words() -> None:
    (status,) = [column for column in table_spec("images").columns if column.name == "status"]
    assert tuple(STATUSES) == status.values
    assert set(VERDICTS) == set(VERDICT_TONES) == set(DECIDED)


def test_configuration_is_bounded() -> None:
    from facescale.config.report import ReportConfig

    with pytest.raises(ValueError, match="max_mib"):
        ReportConfig(max_mib=1)
    assert yaml.safe_load(yaml.safe_dump(ReportConfig().model_dump()))["photos"] is True
