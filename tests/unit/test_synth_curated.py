"""The lines about curation: faultless tables reach every floor, each fault shows in its own line and no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from synth_samples import faultless, small_crawl

from facescale.lake.ids import image_id_of
from facescale.synth.score import score
from facescale.synth.truth import read_truth

if TYPE_CHECKING:
    from facescale.synth.compare import Evidence
    from facescale.synth.truth import SynthSummary

LINES = {
    "copies_collapsed": 5,
    "others_untouched": 33,
    "cluster_whole": 18,
    "cluster_pure": 18,
    "two_people_apart": 2,
    "wrong_label_left": 2,
    "right_label_kept": 16,
}
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> SynthSummary:
    return small_crawl(tmp_path_factory.mktemp("crawl") / "out")


@pytest.fixture(scope="module")
def truth(crawl: SynthSummary) -> pa.Table:
    return read_truth(crawl.truth)


@pytest.fixture(scope="module")
def evidence(crawl: SynthSummary) -> Evidence:
    return faultless(crawl)


def curation(truth: pa.Table, evidence: Evidence) -> Rows:
    """Rows of the three tables as a faultless curation makes them."""
    rows = truth.to_pylist()
    image_ids = evidence.images["image_id"].to_pylist()
    id_of = {row["path"]: image_id for row, image_id in zip(rows, image_ids, strict=True)}
    face_ids = iter(evidence.faces["face_id"].to_pylist())
    names = sorted({name for row in rows for name in row["identities"]})
    faces = [(row, who, next(face_ids)) for row in rows for who in row["identities"]]
    return {
        "duplicates": [
            {"image_id": id_of[row["path"]], "representative": id_of[row["original"]]}
            for row in rows
            if row["original"]
        ],
        "clusters": [{"face_id": face, "cluster_id": names.index(who)} for _, who, face in faces],
        "decisions": [{"face_id": face, "label_out": who} for _, who, face in faces],
    }


def lines(truth: pa.Table, evidence: Evidence, rows: Rows) -> dict[str, tuple[int, int]]:
    schemas = {
        "duplicates": {"image_id": pa.int64(), "representative": pa.int64()},
        "clusters": {"face_id": pa.int64(), "cluster_id": pa.int64()},
        "decisions": {"face_id": pa.int64(), "label_out": pa.string()},
    }
    tables = {name: pa.Table.from_pylist(found, pa.schema(schemas[name])) for name, found in rows.items()}
    scored = score(truth, replace(evidence, curation=tables))
    return {line.name: (line.planted, line.found) for line in scored if line.name in LINES}


def test_faultless_curation_reaches_every_floor(truth: pa.Table, evidence: Evidence) -> None:
    found = lines(truth, evidence, curation(truth, evidence))
    assert found == {name: (count, count) for name, count in LINES.items()}


def test_order_of_rows_says_nothing(truth: pa.Table, evidence: Evidence) -> None:
    rows = {name: found[::-1] for name, found in curation(truth, evidence).items()}
    assert lines(truth, evidence, rows) == {name: (count, count) for name, count in LINES.items()}


def test_a_table_that_is_not_there_leaves_its_lines_out(truth: pa.Table, evidence: Evidence) -> None:
    rows = curation(truth, evidence)
    del rows["clusters"], rows["decisions"]
    assert set(lines(truth, evidence, rows)) == {"copies_collapsed", "others_untouched"}


def faces_of(truth: pa.Table, evidence: Evidence, kind: str) -> list[int]:
    """Face ids on images of one kind."""
    image_ids = evidence.images["image_id"].to_numpy()[np.array(truth["kind"].to_pylist()) == kind]
    face_ids = evidence.faces["face_id"].to_numpy()
    return [int(face) for face in face_ids[np.isin(image_id_of(face_ids), image_ids)]]


def edit(rows: list[dict[str, Any]], face_id: int, **values: Any) -> None:
    next(row for row in rows if row["face_id"] == face_id).update(values)


def lose_a_copy(truth: pa.Table, evidence: Evidence, rows: Rows) -> None:
    rows["duplicates"].pop()


def take_an_image_for_a_copy(truth: pa.Table, evidence: Evidence, rows: Rows) -> None:
    copied = {row["representative"] for row in rows["duplicates"]}
    one, other = [face - face % 256 for face in faces_of(truth, evidence, "low_quality")][:2]
    assert not {one, other} & copied
    rows["duplicates"].append({"image_id": one, "representative": other})


def leave_a_face_alone(truth: pa.Table, evidence: Evidence, rows: Rows) -> None:
    edit(rows["clusters"], faces_of(truth, evidence, "clean")[0], cluster_id=99)


def leave_a_face_unassigned(truth: pa.Table, evidence: Evidence, rows: Rows) -> None:
    edit(rows["clusters"], faces_of(truth, evidence, "clean")[0], cluster_id=None)


def put_a_face_to_another_person(truth: pa.Table, evidence: Evidence, rows: Rows) -> None:
    first, *others = faces_of(truth, evidence, "clean")
    cluster = {row["face_id"]: row["cluster_id"] for row in rows["clusters"]}
    other = next(cluster[face] for face in others if cluster[face] != cluster[first])
    edit(rows["clusters"], first, cluster_id=other)


def put_two_people_together(truth: pa.Table, evidence: Evidence, rows: Rows) -> None:
    for face in faces_of(truth, evidence, "two_faces")[:2]:
        edit(rows["clusters"], face, cluster_id=0)


def keep_a_wrong_label(truth: pa.Table, evidence: Evidence, rows: Rows) -> None:
    kinds = truth["kind"].to_pylist()
    claimed = truth["claimed"].to_pylist()[kinds.index("wrong_label")]
    edit(rows["decisions"], faces_of(truth, evidence, "wrong_label")[0], label_out=claimed)


def drop_a_right_label(truth: pa.Table, evidence: Evidence, rows: Rows) -> None:
    edit(rows["decisions"], faces_of(truth, evidence, "clean")[0], label_out=None)


@pytest.mark.parametrize(
    ("fault", "missing"),
    [
        (lose_a_copy, {"copies_collapsed": 1}),
        (take_an_image_for_a_copy, {"others_untouched": 1}),
        (leave_a_face_alone, {"cluster_whole": 1}),
        (leave_a_face_unassigned, {"cluster_whole": 1, "cluster_pure": 1}),
        (put_a_face_to_another_person, {"cluster_whole": 1, "cluster_pure": 1}),
        (put_two_people_together, {"two_people_apart": 1}),
        (keep_a_wrong_label, {"wrong_label_left": 1}),
        (drop_a_right_label, {"right_label_kept": 1}),
    ],
)
def test_a_fault_shows_in_its_own_line(
    fault: Callable[[pa.Table, Evidence, Rows], None],
    missing: dict[str, int],
    truth: pa.Table,
    evidence: Evidence,
) -> None:
    rows = curation(truth, evidence)
    fault(truth, evidence, rows)
    found = lines(truth, evidence, rows)
    assert {name: planted - got for name, (planted, got) in found.items() if planted != got} == missing


def test_nothing_was_curated(truth: pa.Table, evidence: Evidence) -> None:
    found = lines(truth, evidence, {"duplicates": [], "clusters": [], "decisions": []})
    assert found["copies_collapsed"] == (5, 0) and found["others_untouched"] == (33, 33)
    assert [found[name][1] for name in ("cluster_whole", "cluster_pure", "two_people_apart")] == [0, 0, 0]
    assert (found["wrong_label_left"], found["right_label_kept"]) == ((2, 0), (16, 0))
