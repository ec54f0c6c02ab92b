"""A report becomes one HTML file: no script, no font, no request; whatever a label says stays text.

Called by facescale.driver.report. Template and style sheet lie beside this file.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from facescale.report.plots import number_text
from facescale.report.words import BIOMETRIC, BIOMETRIC_WITHOUT_PHOTOS

if TYPE_CHECKING:
    from facescale.report.model import Cell, Report, Shown, Table

FRAME_BYTES = 2 << 20
"""Room for everything but the pictures: captions, tables and drawings, whose numbers are bounded by configuration."""

FINGERPRINT_NAME = "facescale-report"
_NAME_CHARACTERS = 80
# Controls, and characters that turn the direction of the text around them or are not seen.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")
_FINGERPRINT = re.compile(rb'<meta name="' + FINGERPRINT_NAME.encode() + rb'" content="([0-9a-f]{12})">')


def render(report: Report) -> bytes:
    """The whole file, UTF-8."""
    import jinja2

    folder = resources.files("facescale.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "shown": shown_text,
        "cell": cell_text,
        "numeric": _is_flush_right,
        "fact": fact_text,
        "alt": alt_text,
        "share": _share,
    }
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    style = (folder / "report.css").read_text(encoding="utf-8")
    footer = BIOMETRIC if report.photos else BIOMETRIC_WITHOUT_PHOTOS
    text = template.render(
        report=report, style=Markup(style), footer=footer, fingerprint_name=FINGERPRINT_NAME
    )
    return text.encode()


def fingerprint_of(head: bytes) -> str | None:
    """The fingerprint in the first bytes of a page; None when it has none."""
    found = _FINGERPRINT.search(head)
    return found[1].decode() if found else None


def shown_text(value: str, most: int = _NAME_CHARACTERS) -> str:
    """Text from the data as it may stand in a line: unseen characters by their numbers, long ones without their middle.

    Args:
        value: any text.
        most: characters that are left.
    """
    if len(value) > most:
        tail = most // 3
        value = f"{value[: most - tail - 1]}…{value[-tail:]}"
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", value)


def cell_text(value: Cell, table: Table, column: int) -> Markup:
    """A cell of a table; names from the data are isolated, so that their direction of writing ends with them."""
    if value is None:
        return Markup("")
    if column in table.names:
        return Markup("<bdi>{}</bdi>").format(shown_text(str(value)))
    return escape(fact_text(value))


def fact_text(value: Cell) -> str:
    """A number with its thousands apart, any other value as it is."""
    return number_text(value) if isinstance(value, int | float) else str(value or "")


def alt_text(shown: Shown) -> str:
    """What a picture is, for those who do not see it."""
    words = [shown.badge, "face", shown.name and f"of {shown_text(shown.name, 40)}", shown.note]
    return " ".join(word for word in words if word)


def _is_flush_right(value: Cell) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and value.endswith(" %"))


def _share(value: Cell, table: Table) -> str:
    """Length of the bar of a cell, in percent of the longest."""
    column = [row[table.bar] for row in table.rows]
    largest = max((float(cell) for cell in column if isinstance(cell, int | float)), default=0.0)
    return f"{100 * float(value) / largest:.1f}" if isinstance(value, int | float) and largest else "0"
