"""What the benchmarks read: folders, labels.csv, lfw_pairs.csv."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facescale.bench.photos import evenly, find_photos, link_photos, read_labels, read_pairs
from facescale.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a/2.png", "a/1.jpg", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def test_find_photos(folder: Path) -> None:
    names = [str(path.relative_to(folder)) for path in find_photos(folder)]
    assert names == ["a/1.jpg", "a/2.png", "b.jpg"]
    assert [path.name for path in find_photos(folder, 2)] == ["1.jpg", "2.png"]


def test_no_photos(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no images"):
        find_photos(tmp_path)


@pytest.mark.parametrize(
    ("limit", "chosen"), [(None, [0, 1, 2, 3, 4, 5]), (9, [0, 1, 2, 3, 4, 5]), (3, [0, 2, 4]), (0, [])]
)
def test_evenly(limit: int | None, chosen: list[int]) -> None:
    assert evenly(range(6), limit) == chosen


def test_links_show_the_same_files_under_the_same_names(folder: Path, tmp_path: Path) -> None:
    photos = find_photos(folder)
    links = link_photos(photos, folder, tmp_path / "links")
    assert [link.read_bytes() for link in links] == [photo.read_bytes() for photo in photos]
    assert [link.relative_to(tmp_path / "links") for link in links] == [p.relative_to(folder) for p in photos]


def test_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(
        "path,identity,kind,n_faces,other\na.jpg,Ada,single,,x\ng.jpg,,group,3,y\n", "utf-8"
    )
    single, group = read_labels(tmp_path)
    assert (single.path, single.identity, single.kind, single.num_faces) == ("a.jpg", "Ada", "single", None)
    assert (group.kind, group.num_faces) == ("group", 3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("path,identity\na.jpg,Ada\n", "no column kind"),
        ("path,kind,n_faces\na.jpg,group,three\n", "line 2: n_faces is 'three'"),
        (None, "columns path, kind"),
    ],
)
def test_bad_labels(tmp_path: Path, text: str | None, complaint: str) -> None:
    if text is not None:
        (tmp_path / "labels.csv").write_text(text, "utf-8")
    with pytest.raises(UsageError, match=complaint):
        read_labels(tmp_path)


def test_pairs(tmp_path: Path) -> None:
    (tmp_path / "lfw_pairs.csv").write_text(
        "path1,path2,same,fold\na.jpg,b.jpg,1,0\na.jpg,c.jpg,0,1\nb.jpg,c.jpg,0,1\n", "utf-8"
    )
    pairs = read_pairs(tmp_path)
    assert len(pairs) == 3
    some = pairs.take(np.array([2, 0]))
    assert (some.first, some.second) == (["b.jpg", "a.jpg"], ["c.jpg", "b.jpg"])
    assert (some.same.tolist(), some.fold.tolist()) == ([False, True], [1, 0])


@pytest.mark.parametrize(
    ("rows", "complaint"), [("a,b,yes,0\n", "line 2: same must be 0 or 1"), ("a,b,1,0\n", "two folds")]
)
def test_bad_pairs(tmp_path: Path, rows: str, complaint: str) -> None:
    (tmp_path / "lfw_pairs.csv").write_text("path1,path2,same,fold\n" + rows, "utf-8")
    with pytest.raises(UsageError, match=complaint):
        read_pairs(tmp_path)
