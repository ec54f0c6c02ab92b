"""Drawings as inline SVG: bars, names and marks come in, one element that needs no script and no font goes out.

Called by the sections of the report. Positions across are in percent and heights in pixels, so a drawing fits a
telephone and a screen alike while its lettering keeps its size. Colors are classes of report.css.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.report.histogram import Bars

HEIGHT_PX = 150
_MARK_ROW_PX = 17
_AXIS_PX = 22
_TICKS = 5
_RIGHT_HALF = 62  # percent: marks right of this have their names on their left


@dataclass(frozen=True)
class Mark:
    """A threshold: a line across the drawing.

    Attributes:
        value: where.
        name: what it is called.
    """

    value: float
    name: str


def histogram(
    series: Sequence[tuple[str, Bars]], *, marks: Sequence[Mark] = (), what: str, counted: str = "faces"
) -> Markup:
    """Draw histograms over each other.

    Args:
        series: (name, bars) of up to three, all over the same range. One alone is drawn as counts, several as shares,
            since their numbers differ.
        marks: thresholds; those outside the range are left out.
        what: the quantity, for those who do not see the drawing.
        counted: what a count counts.

    Returns:
        An <svg> element.
    """
    low, high = series[0][1].low, series[0][1].high
    inside = _from_the_top([m for m in marks if low <= m.value <= high], low, high)
    top = _MARK_ROW_PX * len(inside) + 6
    bottom = top + HEIGHT_PX
    as_share = len(series) > 1
    heights = [bars.counts / max(bars.total, 1) if as_share else bars.counts for _, bars in series]
    peak = max((float(values.max()) for values in heights if len(values)), default=0.0)
    parts = [_frame(bottom)]
    for number, ((name, bars), values) in enumerate(zip(series, heights, strict=True)):
        parts.append(_bars(values / max(peak, 1e-12), bars, number, name, bottom, counted))
    parts += [
        _mark(mark, 100 * (mark.value - low) / (high - low), row, bottom) for row, mark in enumerate(inside)
    ]
    parts += [_tick(value, 100 * (value - low) / (high - low), bottom) for value in ticks(low, high)]
    summary = f"{what}, from {number_text(low)} to {number_text(high)}"
    if inside:
        summary += "; thresholds: " + ", ".join(f"{m.name} at {number_text(m.value)}" for m in inside)
    return _svg(parts, bottom + _AXIS_PX, summary)


def columns(names: Sequence[str], values: Sequence[float], *, what: str) -> Markup:
    """Draw one column for each name, with its value above.

    Args:
        names: of the columns, short.
        values: 0 or more.
        what: the quantity, for those who do not see the drawing.
    """
    top, count = 22, max(len(names), 1)
    bottom = top + HEIGHT_PX
    peak = max([*values, 1e-12])
    parts = [_frame(bottom)]
    for at, (name, value) in enumerate(zip(names, values, strict=True)):
        height = HEIGHT_PX * value / peak
        left, middle = 100 * (at + 0.12) / count, 100 * (at + 0.5) / count
        parts.append(
            Markup(
                '<rect class="s0" x="{:.2f}%" y="{:.1f}" width="{:.2f}%" height="{:.1f}"><title>{}: {}</title></rect>'
            ).format(left, bottom - height, 76 / count, height, name, number_text(value))
        )
        parts.append(
            Markup('<text x="{:.2f}%" y="{:.1f}" text-anchor="middle">{}</text>').format(
                middle, bottom - height - 6, short_count(value)
            )
        )
        parts.append(
            Markup('<text x="{:.2f}%" y="{}" text-anchor="middle">{}</text>').format(
                middle, bottom + 15, name
            )
        )
    return _svg(parts, bottom + _AXIS_PX, what)


def doubling_names(number: int) -> list[str]:
    """Names of columns of sizes 1, 2–3, 4–7, …: `number` of them."""
    lows = [1 << at for at in range(number)]
    return ["1", *(f"{low}–{2 * low - 1}" if low < 16 else f"≥{short_count(low)}" for low in lows[1:])][
        :number
    ]


def ticks(low: float, high: float) -> list[float]:
    """Round values between two, about five of them: multiples of 1, 2 or 5 times a power of ten.

    Args:
        low: smallest.
        high: largest, above `low`.
    """
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number_text(value: float) -> str:
    """A number as people write it: 12,345, 0.9531, 1.2e-07."""
    if isinstance(value, (int, np.integer)) or (abs(value) >= 1000 and float(value).is_integer()):
        return f"{int(value):,}"
    if value and abs(value) < 1e-4:
        return f"{value:.1e}"
    return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"


def short_count(value: float) -> str:
    """A count in little room: 950, 12k, 3.4M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            scaled = value / (1e3 if unit == "k" else limit)
            return f"{scaled:.0f}{unit}" if scaled >= 10 else f"{scaled:.1f}{unit}"
    return f"{value:,.0f}"


def _svg(parts: Sequence[Markup], height: float, summary: str) -> Markup:
    return Markup(
        '<svg class="plot" width="100%" height="{:.0f}" role="img" aria-label="{}">{}</svg>'
    ).format(height, summary, Markup("").join(parts))


def _frame(bottom: float) -> Markup:
    return Markup('<line class="axis" x1="0%" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>').format(bottom)


def _bars(shares: np.ndarray, bars: Bars, number: int, name: str, bottom: float, counted: str) -> Markup:
    """Bars with heights 0..1; empty ones are left out."""
    wide = 100 / max(len(shares), 1)
    edge = (bars.high - bars.low) / max(len(shares), 1)
    rects = []
    for at in np.flatnonzero(shares):
        height = max(HEIGHT_PX * float(shares[at]), 1.0)
        left = bars.low + at * edge
        rects.append(
            Markup(
                '<rect x="{:.2f}%" y="{:.1f}" width="{:.2f}%" height="{:.1f}"><title>{}</title></rect>'
            ).format(
                at * wide,
                bottom - height,
                wide,
                height,
                f"{number_text(left)} to {number_text(left + edge)}: {int(bars.counts[at]):,} {counted}",
            )
        )
    return Markup('<g class="s{}"><title>{}</title>{}</g>').format(number, name, Markup("").join(rects))


def _from_the_top(marks: Sequence[Mark], low: float, high: float) -> list[Mark]:
    """Marks in such an order of rows that names cross few lines: a name on the left lies above the lines it passes."""
    border = low + (high - low) * _RIGHT_HALF / 100
    right = sorted((m for m in marks if m.value > border), key=lambda m: -m.value)
    return right + sorted((m for m in marks if m.value <= border), key=lambda m: m.value)


def _mark(mark: Mark, percent: float, row: int, bottom: float) -> Markup:
    """A line with its name on a row of its own, so that no two names meet."""
    y = _MARK_ROW_PX * row + 13
    on_left = percent > _RIGHT_HALF
    return Markup(
        '<line class="mark" x1="{0:.2f}%" x2="{0:.2f}%" y1="{1:.1f}" y2="{2:.1f}"/>'
        '<text class="mark" x="{0:.2f}%" y="{1:.1f}" dx="{3}" text-anchor="{4}">{5}</text>'
    ).format(percent, y, bottom, -5 if on_left else 5, "end" if on_left else "start", mark.name)


def _tick(value: float, percent: float, bottom: float) -> Markup:
    anchor = "start" if percent < 4 else "end" if percent > 96 else "middle"
    return Markup(
        '<line class="axis" x1="{0:.2f}%" x2="{0:.2f}%" y1="{1:.1f}" y2="{2:.1f}"/>'
        '<text x="{0:.2f}%" y="{3:.1f}" text-anchor="{4}">{5}</text>'
    ).format(percent, bottom, bottom + 4, bottom + 17, anchor, escape(number_text(value)))
