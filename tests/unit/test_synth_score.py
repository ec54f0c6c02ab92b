"""The score of a lake: a faultless lake reaches every floor, and each fault shows in its own line and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from synth_samples import faultless, small_crawl

from facescale.errors import UsageError
from facescale.lake.ids import image_id_of
from facescale.lake.lake import Lake
from facescale.lake.parts import PartKey, TableVersion, commit_part
from facescale.synth import score as score_module
from facescale.synth.compare import Evidence, iou
from facescale.synth.score import score, score_demo
from facescale.synth.truth import read_truth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from facescale.synth.truth import SynthSummary

DAMAGE = [f"damaged_{kind}" for kind in ("truncated", "empty", "html", "garbage", "broken", "bomb")]
LINES = {
    "files": 39,
    "one_face": 23,
    "low_quality": 3,
    "two_faces": 2,
    "no_face": 5,
    "no_extra_faces": 28,
    **dict.fromkeys(DAMAGE, 1),
    "exact_duplicate": 2,
    "near_duplicate": 3,
    "distinct": 33,
    "same_person": 30,
    "wrong_label": 2,
    "right_label": 16,
}


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> SynthSummary:
    return small_crawl(tmp_path_factory.mktemp("crawl") / "out")


@pytest.fixture(scope="module")
def truth(crawl: SynthSummary) -> pa.Table:
    return read_truth(crawl.truth)


def found(truth: pa.Table, evidence: Evidence) -> dict[str, tuple[int, int]]:
    return {line.name: (line.planted, line.found) for line in score(truth, evidence)}


def rows_of(truth: pa.Table, kind: str) -> list[int]:
    return [i for i, k in enumerate(truth["kind"].to_pylist()) if k == kind]


def with_column(table: pa.Table, name: str, values: list) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(
        index, table.schema.field(index), pa.array(values, table.schema.field(index).type)
    )


def test_a_faultless_lake_reaches_every_floor(crawl: SynthSummary, truth: pa.Table) -> None:
    lines = score(truth, faultless(crawl))
    assert {line.name: line.planted for line in lines} == LINES
    assert all(line.found == line.planted and line.ok and line.share == 1 for line in lines)
    assert all(0.5 < line.floor <= 1 and line.meaning for line in lines)


def test_without_an_index_the_rest_is_scored(crawl: SynthSummary, truth: pa.Table) -> None:
    evidence = faultless(crawl)
    names = found(truth, Evidence(evidence.images, evidence.faces, None)).keys()
    assert LINES.keys() - names == {"same_person", "wrong_label", "right_label"}


def lose_file(truth: pa.Table, evidence: Evidence) -> Evidence:
    row = rows_of(truth, "damaged_html")[0]
    keep = np.arange(len(evidence.images)) != row
    return Evidence(evidence.images.filter(pa.array(keep)), evidence.faces, evidence.search)


def double_file(truth: pa.Table, evidence: Evidence) -> Evidence:
    row = rows_of(truth, "damaged_html")[0]
    images = pa.concat_tables([evidence.images, evidence.images.slice(row, 1)])
    return Evidence(images, evidence.faces, evidence.search)


def set_in_row(column: str, kind: str, value: object) -> Callable[[pa.Table, Evidence], Evidence]:
    def change(truth: pa.Table, evidence: Evidence) -> Evidence:
        values = evidence.images[column].to_pylist()
        values[rows_of(truth, kind)[0]] = value
        return Evidence(with_column(evidence.images, column, values), evidence.faces, evidence.search)

    return change


def shift_box(kind: str) -> Callable[[pa.Table, Evidence], Evidence]:
    def change(truth: pa.Table, evidence: Evidence) -> Evidence:
        image_id = evidence.images["image_id"][rows_of(truth, kind)[0]].as_py()
        owners = image_id_of(evidence.faces["face_id"].to_numpy())
        boxes = np.array(evidence.faces["box"].to_pylist())
        width = boxes[:, 2] - boxes[:, 0]
        boxes[owners == image_id] += 0.5 * width[owners == image_id][:, None]
        return Evidence(evidence.images, with_column(evidence.faces, "box", boxes.tolist()), evidence.search)

    return change


def agree_with_a_wrong_label(truth: pa.Table, evidence: Evidence) -> Evidence:
    """A search that answers every query of a mislabeled image with images of its claimed label."""
    search = evidence.search
    assert search is not None
    row = rows_of(truth, "wrong_label")[0]
    image_ids = evidence.images["image_id"].to_numpy()
    claimed = np.array(truth["claimed"].to_pylist())
    friends = (claimed == claimed[row]) & (np.array(truth["kind"].to_pylist()) == "clean")
    face_ids = evidence.faces["face_id"].to_numpy()
    friendly = face_ids[np.isin(image_id_of(face_ids), image_ids[friends])]

    def fooled(ids: np.ndarray) -> np.ndarray:
        hits = search(ids)
        own = image_id_of(ids) == image_ids[row]
        hits[own] = -1
        hits[own, : len(friendly)] = friendly
        return hits

    return Evidence(evidence.images, evidence.faces, fooled)


@pytest.mark.parametrize(
    ("fault", "missing"),
    [
        (lose_file, {"files": 1, "damaged_html": 1}),
        (double_file, {"files": 1, "damaged_html": 1}),
        (set_in_row("status", "damaged_bomb", "ok"), {"damaged_bomb": 1}),
        (set_in_row("status", "no_face", "corrupt"), {"no_face": 1}),
        (set_in_row("num_faces", "no_face", 1), {"no_face": 1}),
        (set_in_row("num_faces", "two_faces", 3), {"no_extra_faces": 1}),
        (set_in_row("sha256", "exact_duplicate", bytes(32)), {"exact_duplicate": 1}),
        (set_in_row("pdq", "near_duplicate", bytes(31) + b"\x01"), {"near_duplicate": 1}),
        (shift_box("low_quality"), {"low_quality": 1, "same_person": 1}),
        (shift_box("wrong_label"), {"one_face": 1, "same_person": 1, "wrong_label": 1}),
        (shift_box("two_faces"), {"two_faces": 1, "same_person": 2}),
        (agree_with_a_wrong_label, {"same_person": 1, "wrong_label": 1}),
    ],
)
def test_a_fault_shows_in_its_own_lines(
    fault: Callable[[pa.Table, Evidence], Evidence],
    missing: dict[str, int],
    crawl: SynthSummary,
    truth: pa.Table,
) -> None:
    lines = found(truth, fault(truth, faultless(crawl)))
    assert {name: planted - got for name, (planted, got) in lines.items() if planted != got} == missing


@pytest.mark.parametrize(
    ("floor", "planted", "needed"), [(0.8, 3, 2), (0.9, 10, 9), (0.9, 1, 1), (0.97, 320, 310), (1.0, 7, 7)]
)
def test_floors_are_rounded_down_to_whole_files(
    floor: float,
    planted: int,
    needed: int,
    monkeypatch: pytest.MonkeyPatch,
    truth: pa.Table,
    crawl: SynthSummary,
) -> None:
    for count in (needed - 1, needed):
        lines = {"no_face": (planted, count)}
        monkeypatch.setattr(score_module.Comparison, "lines", lambda self, lines=lines: lines)
        monkeypatch.setattr(score_module, "_floors", lambda: {"no_face": {"meaning": "m", "floor": floor}})
        (line,) = score(truth, faultless(crawl))
        assert (line.needed, line.found, line.ok) == (needed, count, count >= needed)


def test_two_images_that_look_alike_are_not_distinct(crawl: SynthSummary, truth: pa.Table) -> None:
    evidence = faultless(crawl)
    hashes = evidence.images["pdq"].to_pylist()
    one, other = rows_of(truth, "low_quality")[:2]
    hashes[one] = hashes[other]
    lines = found(
        truth, Evidence(with_column(evidence.images, "pdq", hashes), evidence.faces, evidence.search)
    )
    assert lines["distinct"] == (LINES["distinct"], LINES["distinct"] - 2)


def test_neighbors_of_nobody(crawl: SynthSummary, truth: pa.Table) -> None:
    evidence = faultless(crawl)
    nothing = Evidence(evidence.images, evidence.faces, lambda ids: np.full((len(ids), 5), -1))
    lines = found(truth, nothing)
    assert lines["same_person"] == (30, 0)
    assert lines["wrong_label"] == (2, 0)
    assert lines["right_label"] == (16, 0)
    faceless = Evidence(evidence.images, evidence.faces.slice(0, 0), nothing.search)
    assert found(truth, faceless)["one_face"] == (23, 0)
    assert found(truth, faceless)["same_person"] == (30, 0)


def test_iou() -> None:
    a = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 1, 1]], float)
    b = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [1, 1, 1, 1]], float)
    assert iou(a, b) == pytest.approx([1, 1 / 3, 0, 0])


def test_a_lake_is_read_and_asked_for_what_it_lacks(
    crawl: SynthSummary, truth: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake.create(str(tmp_path / "lake"))
    with pytest.raises(UsageError, match="has no images"):
        score_demo(lake, crawl.out)
    evidence = faultless(crawl)
    images, faces = TableVersion("images", "0" * 12), TableVersion("faces", "1" * 12)
    commit_part(
        lake.store, PartKey(0, 0, len(truth)), [(faces, _faces_table(evidence)), (images, evidence.images)]
    )
    lake.set_current([images, faces])
    with pytest.raises(UsageError, match="has indexes of no model"):
        score_demo(lake, crawl.out)
    monkeypatch.setattr(score_module, "_search", lambda lake, embedder: evidence.search)
    assert {line.name: line.planted for line in score_demo(lake.uri, crawl.truth) if line.ok} == LINES


def _faces_table(evidence: Evidence) -> pa.Table:
    count = len(evidence.faces)
    columns = {
        "landmarks": pa.array([[1.0] * 10] * count, pa.list_(pa.float32())),
        "det_score": pa.array([1.0] * count, pa.float32()),
    }
    faces = evidence.faces
    for name, values in columns.items():
        faces = faces.append_column(name, values)
    return faces.take(pc.sort_indices(faces["face_id"]))
