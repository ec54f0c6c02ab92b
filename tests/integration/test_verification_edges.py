"""The verification benchmark where things are missing: damaged and absent photographs, no faces, dlib disagreeing.

Some people of the real photographs, a group, a photograph without a face.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from facescale.bench.chosen import Models
from facescale.bench.dlib_oracle import AnswerFile, DlibAnswer
from facescale.bench.lake_faces import LakeFaces, read_faces
from facescale.bench.photos import find_photos, read_pairs
from facescale.bench.results import Result
from facescale.bench.verification import bench_verification
from facescale.driver.context import SilentReporter
from facescale.lake.lake import Lake
from facescale.vision.align import box_to_dlib

QUIET = SilentReporter()
SAME = 4  # pairs of one person
ABSENT = 4  # pairs with a photograph that is not there


@dataclass(frozen=True)
class Mixed:
    """A folder, what it holds, and the lake of the first run over it."""

    folder: Path
    singles: list[str]
    lake: str
    result: Result
    faces: LakeFaces


def write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture(scope="module")
def mixed(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    folder = tmp_path_factory.mktemp("mixed")
    every = read_pairs(test_data)
    rows = np.flatnonzero(every.same)[:SAME]
    pairs = every.take(rows)
    people = {Path(path).name: test_data / path for path in [*pairs.first, *pairs.second]}
    no_face = min(find_photos(test_data / "nofaces"), key=lambda path: path.stat().st_size)
    group = min(find_photos(test_data / "groups"), key=lambda path: path.stat().st_size)
    for name, source in {**people, "empty.jpg": no_face, "group.jpg": group}.items():
        (folder / name).write_bytes(source.read_bytes())
    whole = (folder / min(people)).read_bytes()
    (folder / "damaged.jpg").write_bytes(whole[: len(whole) // 3])
    singles = [*people, "damaged.jpg", "absent.jpg"]
    labels: list[list[object]] = [
        [name, name[:-9] if name in people else "", "single", ""] for name in singles
    ]
    labels += [
        ["empty.jpg", "", "noface", 0],
        ["damaged.jpg", "", "noface", ""],
        ["group.jpg", "", "group", 7],
    ]
    write(folder / "labels.csv", ["path", "identity", "kind", "n_faces"], labels)
    lines: list[list[object]] = [
        [Path(a).name, Path(b).name, 1, i % 2]
        for i, (a, b) in enumerate(zip(pairs.first, pairs.second, strict=True))
    ]
    lines += [[min(people), "absent.jpg", i % 2, i // 2] for i in range(ABSENT)]
    write(folder / "lfw_pairs.csv", ["path1", "path2", "same", "fold"], lines)
    lake = str(tmp_path_factory.mktemp("lake") / "lake")
    result = bench_verification(str(folder), QUIET, lake=lake, models=Models(min_face_px=80))
    return Mixed(folder, singles, lake, result, read_faces(Lake.open(lake), "dlib_resnet"))


def test_pairs_without_a_face_are_wrong(mixed: Mixed) -> None:
    figures = mixed.result.figures["verification"]
    assert figures["pairs"] == SAME + ABSENT
    assert figures["pairs that lack a face, counted as wrong"] == ABSENT
    assert figures["accuracy at its makers' own threshold 0.6"] == SAME / (SAME + ABSENT)
    assert figures["accuracy"] <= SAME / (SAME + ABSENT)


def test_identification_asks_only_people_seen_twice(mixed: Mixed) -> None:
    figures = mixed.result.figures["identification"]
    names = [name[:-9] for name in mixed.singles if name[-9:].startswith("_0")]
    twice = {name for name in names if names.count(name) > 1}
    assert figures["queries"] == sum(name in twice for name in names)
    assert figures["queries without a face, counted as wrong"] == 0
    assert figures["top 1"] == 1.0


def test_coverage_counts_what_cannot_be_read(mixed: Mixed) -> None:
    figures = mixed.result.figures["coverage"]
    assert figures["single-person photographs"] == len(mixed.singles)
    assert figures["yield their face"] == len(mixed.singles) - 2
    missed = [row["path"] for row in mixed.result.figures["single-person photographs missed"]]
    assert missed == ["damaged.jpg", "absent.jpg"]
    # A damaged photograph shows no face either, but that is no merit.
    assert (figures["no-face photographs"], figures["of them without a face"]) == (2, 1)


def test_groups_are_listed_with_both_counts(mixed: Mixed) -> None:
    (group,) = mixed.result.figures["group photographs"]
    row = mixed.faces.rows_of(mixed.folder, ["group.jpg"])[0]
    assert group == {
        "path": "group.jpg",
        "kind": "group",
        "found": mixed.faces.num_faces[row],
        "true": 7,
    }
    assert group["found"] > 0


def test_coverage_by_overlap_with_dlib(mixed: Mixed, tmp_path: Path) -> None:
    """dlib's answers, made up: the same box, a box elsewhere, a bystander beside the same box, no face at all."""
    names = mixed.singles[:4]
    center = mixed.faces.center_of(mixed.faces.rows_of(mixed.folder, names))
    own = [[int(side) for side in box] for box in box_to_dlib(mixed.faces.boxes[center])]
    elsewhere, corner = [0, 0, 40, 40], [230, 230, 249, 249]
    file = AnswerFile(tmp_path / "answers.jsonl", 0)
    for name, boxes in zip(names, [[own[0]], [elsewhere], [corner, own[2]], []], strict=True):
        file.append(DlibAnswer(name, "00", "ok", 0.1, boxes, [1.0] * len(boxes), [], [], []))
    result = bench_verification(
        str(mixed.folder), QUIET, lake=mixed.lake, dlib=str(file.path), models=Models(min_face_px=80)
    )
    figures = result.figures["coverage"]
    assert figures["of them judged by IoU ≥ 0.5 with dlib's face nearest the center"] == 3
    missed = [row["path"] for row in result.figures["single-person photographs missed"]]
    assert missed == [names[1], "damaged.jpg", "absent.jpg"]
    assert result.figures["verification"] == mixed.result.figures["verification"]
