"""What a report says, as plain values: the sections fill these, the page writes them out.

Ids are int64 here and become text in the page; pictures are added last, by face_id, from the table crops.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from markupsafe import Markup

Tone = Literal["", "good", "bad", "doubt", "same"]
Cell = str | int | float | None


@dataclass(frozen=True)
class Shown:
    """One face in a contact sheet.

    Attributes:
        face_id: whose crop is shown.
        name: what its image claims to show, or the file's name; "" for nothing.
        note: a few words, often a number.
        badge: one word about what became of it.
        tone: which color the badge has.
    """

    face_id: int
    name: str = ""
    note: str = ""
    badge: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Strip:
    """Faces that are to be seen together.

    Attributes:
        title: of the strip; "" where the faces speak for themselves.
        note: how many there are besides those shown, and the like.
        faces: left to right.
    """

    title: str
    note: str
    faces: tuple[Shown, ...]


@dataclass(frozen=True)
class Sheet:
    """A contact sheet.

    Attributes:
        title: heading.
        text: what to look for.
        strips: top to bottom.
        folded: whether it starts closed.
    """

    title: str
    text: str
    strips: tuple[Strip, ...]
    folded: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of numbers and words.

    Attributes:
        title: caption.
        columns: headings.
        rows: cells; numbers are set flush right, None is an empty cell.
        bar: which column to draw a bar for, by its share of the column's largest; -1 for none.
        names: columns whose cells come from the data (labels, files) and are shortened.
        folded: whether it starts closed.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    bar: int = -1
    names: tuple[int, ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Plot:
    """A drawing.

    Attributes:
        title: heading.
        text: what it shows and how to read it.
        drawing: an SVG element.
        legend: names of the series, where there are several.
        code: whether the title is the name of a column.
    """

    title: str
    text: str
    drawing: Markup
    legend: tuple[str, ...] = ()
    code: bool = False


@dataclass
class Section:
    """One part of the page.

    Attributes:
        anchor: its address in the page.
        title: heading.
        text: what this is.
        facts: (name, value) pairs, short.
        notes: what the reader should know before believing it.
    """

    anchor: str
    title: str
    text: str
    facts: list[tuple[str, Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)


@dataclass
class Report:
    """The whole page.

    Attributes:
        title: name of the lake.
        subtitle: where it is, when this was made, with what.
        headline: the few numbers that matter most.
        fingerprint: of all that the page was made of.
        sections: in the order of the data.
        photos: whether pictures are shown at all.
        pictures: data URI by face_id.
    """

    title: str
    subtitle: list[tuple[str, str]]
    headline: list[tuple[str, Cell]]
    fingerprint: str
    sections: list[Section]
    photos: bool = True
    pictures: dict[int, str] = field(default_factory=dict)

    def face_ids(self) -> Iterator[int]:
        """Every face shown, in the order of the page, repeats included."""
        for section in self.sections:
            for sheet in section.sheets:
                for strip in sheet.strips:
                    yield from (shown.face_id for shown in strip.faces)
