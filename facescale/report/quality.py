"""Quality of the faces: every number that the table faces holds about a face, as histograms.

Called by collect. The columns are read from the schema, so a new one needs nothing here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from facescale.lake.schema import table_spec
from facescale.report.histogram import Histogram
from facescale.report.model import Plot, Section
from facescale.report.plots import Mark, histogram, number_text
from facescale.report.source import numbers, sample_note

if TYPE_CHECKING:
    from facescale.lake.schema import Column
    from facescale.report.source import Source

_BARS = 64
_NUMBERS = ("float", "double")


def quality_section(source: Source) -> Section | None:
    """Histograms of the columns of faces; None before there are faces."""
    version = source.version("faces")
    if version is None or not len(source.done(version)):
        return None
    columns = [column for column in table_spec("faces").columns if column.type in _NUMBERS]
    columns.sort(key=lambda column: column.name != "quality")
    counted = {column.name: Histogram() for column in columns}
    for table in source.scan(version, list(counted)):
        for name, counts in counted.items():
            counts.add(numbers(table[name]))
    section = Section(
        "quality",
        "Quality",
        "What was measured on each face. Faces below the gate join no two others: small, blurred and turned faces look "
        "alike whoever they show.",
    )
    if note := sample_note(source, version):
        section.notes.append(note)
    gate = source.calibration.min_quality if source.calibration is not None else None
    for column in columns:
        counts = counted[column.name]
        if not counts.total:
            continue
        section.plots.append(_plot(column, counts, gate if column.name == "quality" else None))
    if gate is not None and counted.get("quality", Histogram()).total:
        below = 1 - counted["quality"].share_above(gate)
        section.facts += [("quality gate", number_text(gate)), ("faces below it", f"{100 * below:.1f} %")]
    return section


def _plot(column: Column, counts: Histogram, gate: float | None) -> Plot:
    low, high = (0.0, 1.0) if column.name == "quality" else counts.trimmed_range()
    marks = [] if gate is None else [Mark(gate, f"gate {number_text(gate)}")]
    unit = f", {column.unit}" if column.unit else ""
    meaning = column.description.split(". ")[0].rstrip(".")
    text = f"{meaning}. Median {number_text(counts.quantile(0.5))} {column.unit}".rstrip() + "."
    if counts.missing:
        text += f" {counts.missing:,} faces have none."
    drawing = histogram([("", counts.bars(low, high, _BARS))], marks=marks, what=column.name + unit)
    return Plot(column.name, text, drawing, code=True)
