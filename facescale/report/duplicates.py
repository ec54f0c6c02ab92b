"""Duplicates: how many there are, and pictures of the groups a reader should check, with the image that is kept first.

Called by collect. Identical files are certain and need no look; so the largest groups are shown, and the near copies
that are least like what they are taken for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.lake.ids import make_face_id
from facescale.report.model import Section, Sheet, Shown, Strip
from facescale.report.source import Groups, Sample, ends_of_groups, file_name, numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.lake.parts import TableVersion
    from facescale.report.model import Tone
    from facescale.report.source import Source

    Ids = NDArray[np.int64]

_COLUMNS = ("image_id", "representative", "kind", "distance", "turn")
_SPARE = 4  # candidates for each group shown: those without a face have no picture


def duplicates_section(source: Source) -> Section | None:
    """Counts and contact sheets of copies; None before dedup has run."""
    version = source.version("duplicates")
    if version is None:
        return None
    number = {"exact": 0, "near": 0}
    groups, doubtful = Groups(), Sample(_SPARE * source.config.copies)
    for table in source.scan(version, _COLUMNS, every_part=True):
        for entry in table["kind"].value_counts().to_pylist():
            number[entry["values"]] += entry["counts"]
        groups.add(table["representative"].to_numpy())
        near = table.filter(pc.equal(table["kind"], "near"))
        # The farthest first; among equally far ones a sample.
        fraction = source.keys(near["image_id"].to_numpy()).astype(np.float64) / 2**64
        doubtful.add(near, fraction - numbers(near["distance"]))
    keepers, copies, _ = groups.result()
    section = Section(
        "duplicates",
        "Duplicates",
        "Images that show what another one shows. The best of each group is kept; its copies are left out of "
        "neighbors, clusters and cleaning, and inherit what is decided about it.",
        facts=[
            ("copies", int(copies.sum())),
            ("identical files", number["exact"]),
            ("nearly identical", number["near"]),
            ("groups", len(keepers)),
            ("largest group", int(copies.max()) + 1 if len(copies) else 0),
        ],
    )
    if source.config.photos and len(keepers):
        section.sheets += _sheets(source, version, keepers, copies, doubtful)
    return section


def _sheets(
    source: Source, version: TableVersion, keepers: Ids, copies: Ids, doubtful: Sample
) -> list[Sheet]:
    config = source.config
    largest = np.lexsort((source.keys(keepers), -copies))[: _SPARE * config.copies]
    rows = doubtful.rows()
    pairs = [(row["representative"], row["image_id"]) for row in rows]
    faces = _Images(source, np.unique(np.concatenate([keepers[largest], *map(np.array, pairs)])))
    shown = [at for at in largest if faces.has_face(int(keepers[at]))][: config.copies]
    members = _members(source, version, keepers[shown], config.strip - 1)
    faces.add(members["image_id"].to_numpy())
    strips = []
    for at in shown:
        keeper = int(keepers[at])
        mine = members.filter(pc.equal(members["representative"], keeper)).to_pylist()
        notes = f"{int(copies[at]) + 1:,} images" + (
            f", {len(mine) + 1} shown" if len(mine) < copies[at] else ""
        )
        strips.append(Strip("", notes, (faces.keeper(keeper), *(faces.copy(row) for row in mine))))
    sheets = [Sheet("The largest groups", "The image that is kept comes first.", tuple(strips))]
    near = [
        Strip("", "", (faces.keeper(keeper), faces.copy(row)))
        for (keeper, copy), row in zip(pairs, rows, strict=True)
        if faces.has_face(keeper) and faces.has_face(copy)
    ][: config.copies]
    if near:
        text = "Near copies whose hashes differ most from the kept image's: wrong ones would be among these."
        sheets.append(Sheet("The least alike", text, tuple(near)))
    return [sheet for sheet in sheets if sheet.strips]


def _members(source: Source, version: TableVersion, keepers: Ids, most: int) -> pa.Table:
    """Copies of some images, of each the `most` that differ most; bounded by that times the groups, and one part."""
    found: pa.Table | None = None
    for table in source.scan(version, _COLUMNS, every_part=True):
        mine = table.filter(pa.array(np.isin(table["representative"].to_numpy(), keepers)))
        found = mine if found is None else pa.concat_tables([found, mine])
        ids = found["image_id"].to_numpy()
        distance = np.nan_to_num(numbers(found["distance"]))
        chosen = ends_of_groups(found["representative"].to_numpy(), distance, source.keys(ids), most, 0)
        found = found.take(pa.array(chosen)).combine_chunks()
    assert found is not None  # there are groups, so there is a part
    return found


class _Images:
    """What the captions say about images: size, file, whether a face was found."""

    def __init__(self, source: Source, ids: Ids) -> None:
        self._source = source
        self._known: dict[int, dict[str, Any]] = {}
        self.add(ids)

    def add(self, ids: Ids) -> None:
        version = self._source.version("images")
        if version is None or not len(ids):
            return
        columns = ["image_id", "uri", "width", "height", "num_faces"]
        for row in self._source.rows(version, np.unique(ids), columns).to_pylist():
            self._known[row["image_id"]] = row

    def has_face(self, image: int) -> bool:
        return int(self._known.get(image, {}).get("num_faces", 0)) > 0

    def keeper(self, image: int) -> Shown:
        return self._shown(image, self._size(image), "kept", "good")

    def copy(self, row: dict[str, Any]) -> Shown:
        image = row["image_id"]
        exact = row["kind"] == "exact"
        bits = "same bytes" if exact else f"{row['distance']} bits apart"
        if row["turn"] not in (None, "upright"):
            bits += f", {row['turn']}"
        return self._shown(image, f"{self._size(image)}, {bits}", "copy", "")

    def _size(self, image: int) -> str:
        row = self._known.get(image, {})
        return f"{row['width']} × {row['height']}" if row.get("width") else "size unknown"

    def _shown(self, image: int, note: str, badge: str, tone: Tone) -> Shown:
        uri = self._known.get(image, {}).get("uri", "")
        return Shown(make_face_id(image, 1), file_name(uri), note, badge, tone)
