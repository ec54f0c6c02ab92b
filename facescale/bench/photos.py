"""The photographs of a measurement: a folder in, its images, labels.csv, lfw_pairs.csv, and smaller copies by links.

Called by every command of `facescale bench`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import UsageError
from facescale.sources.uris import path_of_uri
from facescale.sources.walk import Tally, walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeVar

    T = TypeVar("T")

LABELS, PAIRS = "labels.csv", "lfw_pairs.csv"


@dataclass(frozen=True)
class Photo:
    """One line of labels.csv.

    Attributes:
        path: relative to the folder.
        kind: single (one person is meant), group, crowd, noface; other kinds are left out of the figures.
        identity: who it is; "" when unknown or nobody.
        num_faces: faces there are, where somebody counted them.
    """

    path: str
    kind: str
    identity: str
    num_faces: int | None


@dataclass(frozen=True, eq=False)
class Pairs:
    """lfw_pairs.csv: P pairs of photographs.

    Attributes:
        first: P paths relative to the folder.
        second: P paths.
        same: bool [P], whether both show one person.
        fold: int64 [P].
    """

    first: list[str]
    second: list[str]
    same: np.ndarray
    fold: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: np.ndarray) -> Pairs:
        """Some of them, by position."""
        first, second = [self.first[row] for row in rows], [self.second[row] for row in rows]
        return Pairs(first, second, self.same[rows], self.fold[rows])


def find_photos(folder: str | Path, limit: int | None = None) -> list[Path]:
    """The images under a folder, as extract would list them.

    Args:
        folder: where they are.
        limit: at most so many, evenly spaced over the sorted list; None for all.

    Raises:
        UsageError: the folder does not exist, or holds no image.
    """
    found = [
        Path(path_of_uri(file.uri).decode("utf-8", "surrogateescape"))
        for file in walk(str(folder), Tally())
        if file.format == "image"
    ]
    if not found:
        raise UsageError(f"{folder} holds no images: give a folder of photographs")
    return evenly(found, limit)


def evenly(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of the items, evenly spaced and in order; None for all."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def link_photos(photos: Iterable[Path], root: Path, out: Path) -> list[Path]:
    """Make a folder that shows some photographs under the same relative names, by symbolic links.

    Args:
        photos: files under `root`.
        root: folder they are in.
        out: folder to make; links that are there already stay.

    Returns:
        The links.
    """
    links = []
    for photo in photos:
        link = out / photo.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(photo.resolve())
        links.append(link)
    return links


def read_labels(folder: Path) -> list[Photo]:
    """Read labels.csv: columns path and kind; identity and n_faces where known; others are ignored.

    Raises:
        UsageError: it is missing, lacks a column, or a count is no number.
    """
    photos = []
    for number, row in enumerate(_rows(folder / LABELS, ("path", "kind")), start=2):
        count = row.get("n_faces") or ""
        if count and not count.isdecimal():
            raise UsageError(f"{folder / LABELS}, line {number}: n_faces is {count!r}, not a number")
        photos.append(
            Photo(row["path"], row["kind"], row.get("identity") or "", int(count) if count else None)
        )
    return photos


def read_pairs(folder: Path) -> Pairs:
    """Read lfw_pairs.csv: columns path1, path2, same (1 or 0), fold (a number; at least two folds).

    Raises:
        UsageError: it is missing, lacks a column, or holds something else.
    """
    path = folder / PAIRS
    rows = _rows(path, ("path1", "path2", "same", "fold"))
    for number, row in enumerate(rows, start=2):
        if row["same"] not in ("0", "1") or not row["fold"].isdecimal():
            raise UsageError(f"{path}, line {number}: same must be 0 or 1 and fold a number, got {row}")
    pairs = Pairs(
        [row["path1"] for row in rows],
        [row["path2"] for row in rows],
        np.array([row["same"] == "1" for row in rows], bool),
        np.array([int(row["fold"]) for row in rows], np.int64),
    )
    if len(np.unique(pairs.fold)) < 2:
        raise UsageError(f"{path} needs pairs of at least two folds: a threshold comes from the other ones")
    return pairs


def _rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            rows = list(reader)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}): it must be a CSV with the columns {', '.join(needed)}"
        ) from None
    if missing:
        raise UsageError(f"{path} has no column {missing[0]}; it needs {', '.join(needed)}")
    return rows
