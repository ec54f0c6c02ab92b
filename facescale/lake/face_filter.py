"""Which faces a condition lets through: face ids come in, a mask goes out; columns are those of faces and attributes.

Called by search and by readers of a lake. Only the faces asked about are looked up, since the tables of a crawl are not
read for one question.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from facescale.errors import MismatchError, UsageError
from facescale.lake.lineage import spec_of
from facescale.lake.scan import scan_ids
from facescale.lake.schema import schema_of
from facescale.lake.where import Where, parse_where

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from facescale.lake.lake import Lake
    from facescale.lake.parts import TableVersion

_HIDDEN = ("face_id", "status")  # columns that every annotator has: TABLE.status means one
ID = " face_id"  # no column of a condition can be named like this


@dataclass(frozen=True)
class _Place:
    """Where a column lies."""

    version: TableVersion
    column: str
    dtype: pa.DataType


class FaceFilter:
    """A condition on the current faces and attributes of a lake.

    Args:
        lake: the lake; it is asked for its current versions once, here.
        text: the condition, as facescale.lake.where describes it. A column is named alone, or as `faces.NAME` or
            `ANNOTATOR.NAME` where several tables have it.

    Raises:
        UsageError: the text is no condition, a column is not there or in several tables, or types do not agree; the
            message points at the place.
        MismatchError: attributes that it speaks of were made of other faces than the current ones.
    """

    def __init__(self, lake: Lake, text: str) -> None:
        self.lake = lake
        self.where: Where = parse_where(text)
        self._places = _find(lake, self.where)
        self.expression = self.where.bind({name: place.dtype for name, place in self._places.items()})

    @property
    def versions(self) -> list[TableVersion]:
        """The versions that the condition looks into, in order of appearance."""
        return list(dict.fromkeys(place.version for place in self._places.values()))

    def mask(self, face_ids: ArrayLike) -> NDArray[np.bool_]:
        """Which faces meet the condition; those for which it is unknown (a null was compared) do not.

        Args:
            face_ids: int64 of any shape; -1 is no face, and meets nothing.

        Returns:
            bool of that shape.

        Raises:
            UsageError: an annotator has not seen some of the faces yet.
            DataError: a face has no row in the current faces.
        """
        ids = np.asarray(face_ids, np.int64)
        unique, inverse = np.unique(ids, return_inverse=True)
        kept = self.select(unique[unique >= 0]).column(ID).to_numpy()
        found: NDArray[np.bool_] = np.isin(unique, kept, assume_unique=True)[inverse].reshape(ids.shape)
        return found

    def select(self, face_ids: NDArray[np.int64]) -> pa.Table:
        """The faces that meet the condition, and what it looked at.

        Args:
            face_ids: int64 [N], sorted and unique, none of them -1.

        Returns:
            `values` of those that do, in order, with their ids in front, as the column ID. Raises as `mask`.
        """
        table = self.values(face_ids).add_column(0, ID, pa.array(face_ids))
        return table.filter(self.expression)

    def values(self, face_ids: NDArray[np.int64]) -> pa.Table:
        """The columns that the condition speaks of, named as it names them.

        Args:
            face_ids: int64 [N], sorted and unique, none of them -1.

        Returns:
            N rows in this order; raises as `mask`.
        """
        if not len(face_ids):  # a lake without faces has no parts to look into
            schema = pa.schema([(name, place.dtype) for name, place in self._places.items()])
            return schema.empty_table()
        columns: dict[str, pa.ChunkedArray] = {}
        for version in self.versions:
            mine = {name: place.column for name, place in self._places.items() if place.version == version}
            if version.table == "faces":
                found = scan_ids(self.lake, version, face_ids, sorted(set(mine.values())))
            else:
                found = scan_ids(self.lake, version, face_ids, sorted(set(mine.values())), missing="skip")
                if found.num_rows != len(face_ids):
                    raise UsageError(
                        f"{version.model} has not seen {len(face_ids) - found.num_rows:,} of these faces yet: run "
                        f"`facescale annotate {self.lake.uri} --with {version.model}` first"
                    )
            columns |= {name: found[column] for name, column in mine.items()}
        return pa.table({name: columns[name] for name in self._places})


def _find(lake: Lake, where: Where) -> dict[str, _Place]:
    """Where each column of a condition lies."""
    faces = lake.current("faces")
    if faces is None:
        raise UsageError(f"{lake.uri} has no finished faces: run `facescale extract SRC {lake.uri}` first")
    tables = [faces, *(v for v in lake.current_versions() if v.table == "attributes")]
    having: dict[str, list[_Place]] = {}
    for version in tables:
        prefix = "faces" if version.table == "faces" else version.model
        for field in schema_of(spec_of(lake, version)):
            place = _Place(version, field.name, field.type)
            having.setdefault(f"{prefix}.{field.name}", []).append(place)
            if field.name not in _HIDDEN:
                having.setdefault(field.name, []).append(place)
    having["face_id"] = having["faces.face_id"]
    places = {}
    for name, at in where.columns.items():
        found = having.get(name, [])
        if not found:
            near = difflib.get_close_matches(name, having, n=3, cutoff=0.6)
            known = sorted(entry for entry in having if "." not in entry)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            quoted = "; text goes in single quotes" if where.text[at] == '"' else ""
            where.fail(at, f"there is no column {name}{quoted}; {hint}")
        if len(found) > 1:
            full = [f"{'faces' if p.version.table == 'faces' else p.version.model}.{name}" for p in found]
            where.fail(at, f"several tables have a column {name}: say {' or '.join(full)}")
        places[name] = found[0]
        _check_current(lake, found[0].version, faces)
    return places


def _check_current(lake: Lake, version: TableVersion, faces: TableVersion) -> None:
    if version.table == "faces":
        return
    made_of = dict((lake.describe_version(version) or {}).get("inputs", {})).get("faces")
    if made_of != faces.fingerprint:
        raise MismatchError(
            f"{version.folder} was made of other faces ({made_of}) than the current ones ({faces.fingerprint}): run "
            f"`facescale annotate {lake.uri} --with {version.model}` again, or choose the older tables with "
            "`facescale lake use`"
        )
