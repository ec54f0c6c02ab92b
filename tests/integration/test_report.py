"""The report of small lakes: what it counts, shows, leaves out and survives."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from index_lakes import IMAGES
from report_lakes import (
    COUNT,
    CROPS,
    HOSTILE,
    MODEL,
    PART,
    VECTORS,
    claims,
    config,
    curated_lake,
    portrait,
    truth,
    vectors,
)

from facescale import pipeline
from facescale.config.report import ReportConfig
from facescale.curate.calibration import load_calibration
from facescale.driver.report import write_report
from facescale.errors import UsageError
from facescale.lake.ids import make_face_id, make_image_id
from facescale.lake.lake import Lake
from facescale.lake.parts import PartKey, TableVersion, commit_part
from facescale.lake.verify import verify
from facescale.report.collect import collect
from facescale.report.model import Report, Section
from facescale.report.page import render
from facescale.report.pictures import read_pictures, thumbnail
from facescale.report.similarity import labeled_pairs
from facescale.report.source import Source

pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return curated_lake(tmp_path_factory.mktemp("report") / "lake")


def source(lake: Lake, **settings: Any) -> Source:
    return Source(lake, ReportConfig(**settings), load_calibration(MODEL))


def report(lake: Lake, **settings: Any) -> Report:
    import datetime

    return collect(source(lake, **settings), name="0" * 12, made=datetime.datetime.now(datetime.UTC))


def section(found: Report, anchor: str) -> Section:
    (wanted,) = [entry for entry in found.sections if entry.anchor == anchor]
    return wanted


class Elements(html.parser.HTMLParser):
    """Tags and their attributes, and the text outside of <style>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside != "style":
            self.text += data


def test_counts_are_those_of_the_tables(lake: Lake) -> None:
    found = report(lake)
    assert [entry.anchor for entry in found.sections] == [
        "images",
        "quality",
        "similarity",
        "duplicates",
        "clusters",
        "labels",
        "search",
        "made-with",
    ]
    assert dict(section(found, "images").facts) == {"images": COUNT, "faces": COUNT, "failed": 0}
    copies = dict(section(found, "duplicates").facts)
    assert copies == {
        "copies": 3,
        "identical files": 1,
        "nearly identical": 2,
        "groups": 2,
        "largest group": 3,
    }
    labels = dict(section(found, "labels").facts)
    assert labels["labels"] == 6 and labels["claims on images"] == COUNT and labels["relabel"] == 1
    decisions = section(found, "labels").tables[0]
    assert sum(int(str(row[2])) for row in decisions.rows) == COUNT
    assert dict(found.headline)["relabeled"] == 1
    assert dict(section(found, "search").facts)["recall@10"] == "1.0000"
    models = section(found, "made-with").tables[0]
    assert {row[0] for row in models.rows} >= {"images", "crops", "decisions", "index"}


def test_the_wrong_label_is_shown_with_its_evidence(lake: Lake) -> None:
    sheets = {sheet.title: sheet for sheet in section(report(lake), "labels").sheets}
    (strip,) = sheets["relabel: other_name (1)"].strips
    moved, evidence = strip.faces
    assert moved.face_id == make_face_id(make_image_id(0, 7), 1)
    assert moved.name == "person 2 → person 1" and moved.badge == "relabel"
    assert evidence.name == "person 1" and evidence.badge == "evidence"
    score, threshold = map(float, re.findall(r"[\d.]+", moved.note))
    assert score > threshold
    barely = sheets["keep: only just"].strips
    margins = [np.subtract(*map(float, re.findall(r"[\d.]+", entry.faces[0].note))) for entry in barely]
    assert margins == sorted(margins) and len(margins) == ReportConfig().decisions


def test_copies_stand_beside_what_is_kept(lake: Lake) -> None:
    largest, least_alike = section(report(lake), "duplicates").sheets
    rows = [[shown.face_id >> 8 for shown in strip.faces] for strip in largest.strips]
    assert sorted(map(sorted, rows)) == [[0, 30, 48], [1, 31]]
    assert all(strip.faces[0].badge == "kept" for strip in largest.strips)
    notes = [strip.faces[1].note for strip in least_alike.strips]
    assert [note.rpartition(", ")[2] for note in notes] == ["3 bits apart", "1 bits apart"]


def test_clusters_are_counted_and_shown_by_how_sure_they_are(lake: Lake) -> None:
    clusters = section(report(lake), "clusters")
    facts = dict(clusters.facts)
    assert (facts["clusters"], facts["alone"]) == (6, 0)
    assert facts["faces in those"] == COUNT - int(str(facts["unassigned"]))
    for strip in [strip for sheet in clusters.sheets for strip in sheet.strips]:
        people = {int(truth()[shown.face_id >> 8]) for shown in strip.faces}
        assert people == {
            int(strip.title.split()[1]) >> 8
        }  # the smallest face_id is the person's first photograph
        sure = [float(shown.note) for shown in strip.faces]
        assert sure == sorted(sure, reverse=True)


def test_the_least_certain_clusters_and_faces_are_shown(lake: Lake) -> None:
    """Clusters of 20, 12, 8, 4 and of 2 faces; of that of 8 all are unsure, of that of 20 three."""
    sizes = [20, 12, 8, 4, 2, 2, 2, 2, 2]
    first = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    confidence = np.full(COUNT, 0.95)
    confidence[32:40] = 0.6
    confidence[[3, 9, 17]] = [0.5, 0.55, 0.52]
    shuffled = np.random.default_rng(0).permutation(COUNT)
    cluster = (make_image_id(0, first.astype(np.int64)) | 1)[shuffled]
    version = TableVersion("clusters", "8" * 12, MODEL)
    lake.write_version(version, stage="cluster", settings={}, revision=1, inputs={})
    for start in range(0, COUNT, PART):
        rows = np.arange(start, min(start + PART, COUNT))
        table = pa.table(
            {
                "face_id": make_image_id(0, rows) | 1,
                "cluster_id": cluster[rows],
                "confidence": confidence[shuffled][rows].astype(np.float32),
            }
        )
        commit_part(lake.store, PartKey(0, start, len(rows)), [(version, table)])
    before = lake.current("clusters", MODEL)
    assert before is not None
    lake.set_current([version])
    try:
        found = section(report(lake, clusters=3, strip=9), "clusters")
    finally:
        lake.set_current([before])
        lake.store.delete_tree(version.folder)
    assert dict(found.facts) == {
        "clusters": 9,
        "with two faces or more": 9,
        "faces in those": COUNT,
        "alone": 0,
        "unassigned": 0,
        "largest": 20,
    }
    sheets = {sheet.title: [int(strip.note.split()[0]) for strip in sheet.strips] for sheet in found.sheets}
    assert sheets["The largest"] == [20, 12, 8]
    assert sheets["The least certain"][0] in (4, 2) and len(sheets["The least certain"]) == 2
    largest, _, unsure = found.sheets[0].strips
    assert largest.note.startswith("20 faces, 9 shown")
    assert [shown.note for shown in largest.faces[-3:]] == ["0.55", "0.52", "0.50"]
    assert [shown.badge for shown in largest.faces] == [""] * 6 + ["unsure"] * 3
    assert {shown.badge for shown in unsure.faces} == {"unsure"}
    assert unsure.note.startswith("8 faces") and "shown" not in unsure.note


def test_searches_find_the_same_person(lake: Lake) -> None:
    (sheet,) = section(report(lake), "search").sheets
    assert len(sheet.strips) == ReportConfig().queries and "index" in sheet.text
    for strip in sheet.strips:
        query, *hits = strip.faces
        assert query.face_id not in {hit.face_id for hit in hits}
        assert len(hits) >= ReportConfig().strip - 2
        scores = [float(hit.note) for hit in hits]
        assert scores == sorted(scores, reverse=True) and min(scores) > 0.9


def test_without_an_index_neighbors_answer(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    through_index = {s.faces[0].face_id: s for s in section(report(lake), "search").sheets[0].strips}
    monkeypatch.setattr("facescale.report.examples.INDEX_BYTES", 0)
    (sheet,) = section(report(lake), "search").sheets
    assert "neighbors" in sheet.text
    copies = {row << 8 | 1 for row in (30, 31, 48, 0, 1)}
    for strip in sheet.strips:
        exact = [hit.face_id for hit in strip.faces if hit.face_id not in copies]
        index = [
            hit.face_id for hit in through_index[strip.faces[0].face_id].faces if hit.face_id not in copies
        ]
        assert exact[: len(index)] == index[: len(exact)]


def test_similarities_of_labels_are_those_of_all_pairs(lake: Lake) -> None:
    pairs = labeled_pairs(source(lake))
    assert pairs is not None
    kept = np.setdiff1d(np.arange(COUNT), (30, 31, 48))
    stored = vectors()[kept].astype(np.float16).astype(np.float32)
    unit = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    label = np.array(claims())[kept]
    a, b = np.triu_indices(len(kept), 1)
    same = label[a] == label[b]
    for found, expected in zip(
        pairs, ((unit @ unit.T)[a, b][same], (unit @ unit.T)[a, b][~same]), strict=True
    ):
        assert len(found) < len(expected)  # at most 8 faces of a label
        assert np.isin(np.round(found, 4), np.round(expected, 4)).mean() > 0.999
    assert len(pairs[0]) == sum(
        n * (n - 1) // 2 for n in (min(8, (label == name).sum()) for name in set(label))
    )


def test_thresholds_are_the_calibrations(lake: Lake) -> None:
    (table,) = section(report(lake), "similarity").tables
    known = load_calibration(MODEL)
    assert [row[1] for row in table.rows] == [
        round(known.pairs.similarity_at(fmr), 4) for fmr in (1e-2, 1e-3, 1e-4, 1e-5)
    ]
    drawing = section(report(lake), "similarity").plots[0].drawing
    assert "FMR 1e-3" in drawing and 'class="mark"' in drawing


def test_without_a_calibration_no_threshold_is_drawn(lake: Lake) -> None:
    import datetime

    bare = Source(lake, ReportConfig(), None)
    found = collect(bare, name="0" * 12, made=datetime.datetime.now(datetime.UTC))
    assert "is not calibrated" in section(found, "similarity").notes[0]
    assert 'class="mark"' not in section(found, "similarity").plots[0].drawing


def test_the_page_is_one_file_and_labels_are_text(lake: Lake) -> None:
    data = render(report(lake))
    page = Elements(data.decode())
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "b", "base"}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in ("srcset", "data")]
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(sources) > 50 and all(uri.startswith("data:image/jpeg;base64,") for uri in sources)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert all((a["href"] or "").startswith("#") for tag, a in page.tags if tag == "a")
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert (policy or "").startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert "<script>document" in page.text and "\u202e" not in data.decode() and "\x00" not in data.decode()
    assert "url(" not in data.decode() and "@import" not in data.decode()
    assert "biometric" in page.text and "{{ 7 * 7 }}" not in HOSTILE[:60]
    anchors = {a["href"] for tag, a in page.tags if tag == "a"}
    assert anchors == {f"#{a['id']}" for tag, a in page.tags if tag == "section"}


def test_without_photos_nobody_can_be_told(lake: Lake) -> None:
    text = render(report(lake, photos=False)).decode()
    assert "<img" not in text and "person 1" not in text and ".jpg" not in text and "<bdi>" not in text
    assert "relabel" in text and "<svg" in text and "biometric" in text


def test_the_page_stays_in_its_limit(lake: Lake, tmp_path: Path) -> None:
    """Crops of noise, the largest JPEGs there are, and every number at its largest."""
    most = {"clusters": 50, "copies": 50, "decisions": 50, "queries": 50, "strip": 24, "picture_px": 256}
    version = TableVersion("crops", "7" * 12)
    lake.write_version(version, stage="extract", settings={}, revision=1, inputs={})
    for first in range(0, COUNT, PART):
        part = PartKey(0, first, min(PART, COUNT - first))
        rows = lake.store.read_table(CROPS.part_path(part))
        at = rows.schema.get_field_index("jpeg")
        noise = pa.array([portrait(-1, 256)] * len(rows), pa.binary())
        commit_part(lake.store, part, [(version, rows.set_column(at, rows.schema.field(at), noise))])
    lake.set_current([version])
    try:
        found = report(lake, max_mib=4, **most)
        assert 1 << 20 < len(render(found)) < 4 << 20
        assert "pictures were left out to keep this page below 4 MiB" in found.sections[0].notes[-1]
        assert "no picture" in render(found).decode()
        assert len(render(report(lake, **most))) < 15 << 20
    finally:
        lake.set_current([CROPS])
        lake.store.delete_tree(version.folder)


def test_pictures(lake: Lake) -> None:
    ids = [make_face_id(make_image_id(0, row), 1) for row in range(COUNT)]
    pictures, left_out = read_pictures(source(lake, picture_px=48), [*ids, 12345 << 8 | 1], 1 << 20)
    assert sorted(pictures) == ids and left_out == 0
    one = len(pictures[ids[0]])
    few, left_out = read_pictures(source(lake, picture_px=48), ids * 2, 2 * one * 5 + 10)
    assert len(few) == 5 and left_out == COUNT - 5
    assert thumbnail(b"no jpeg", 48) is None and thumbnail(b"", 48) is None
    assert thumbnail(portrait(2, 4), 48) is not None


def test_samples_are_said(lake: Lake) -> None:
    found = report(lake, max_parts=2)
    total = -(-COUNT // PART)
    assert f"From a sample of 2 of the {total} parts of faces." in section(found, "quality").notes
    assert dict(section(found, "duplicates").facts)["copies"] == 3  # counted over all parts
    assert dict(section(found, "labels").facts)["claims on images"] == COUNT
    again = report(lake, max_parts=2)
    assert list(found.face_ids()) == list(again.face_ids())


def test_a_lake_that_holds_a_report_is_sound(lake: Lake, tmp_path: Path) -> None:
    before = verify(lake)
    summary = pipeline.run_job("report", config(lake))
    (stage,) = summary.stages
    assert (stage.parts_run, stage.tables) == (1, {"report": "report.html"})
    page = Path(lake.uri) / "report.html"
    assert page.stat().st_size == stage.counters["bytes"] < 15 << 20
    assert verify(lake) == before
    assert not any(folder.startswith("report") for folder, _ in lake.prune(dry_run=True))
    assert [v for v in lake.versions() if v.table.startswith("report")] == []
    (Path(lake.uri) / "lake.yaml").rename(tmp_path / "lake.yaml")
    assert Lake.open_or_create(lake.uri).current_versions() == []  # not taken for someone's own folder
    (tmp_path / "lake.yaml").replace(Path(lake.uri) / "lake.yaml")


def test_out(lake: Lake, tmp_path: Path) -> None:
    where, size = write_report(lake.uri, ReportConfig(), out=str(tmp_path / "new" / "page.html"))
    assert Path(where) == tmp_path / "new" / "page.html" and Path(where).stat().st_size == size
    assert list(Path(where).parent.iterdir()) == [Path(where)]
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--out"):
        write_report(lake.uri, ReportConfig(), out=str(tmp_path / "file" / "page.html"))


def test_tables_behind_the_lake_are_named(lake: Lake) -> None:
    assert "Images have changed" not in _page(lake)
    part = PartKey(1, 0, 1)
    image = {"image_id": [make_image_id(1, 0)], "uri": ["/new.jpg"], "status": ["ok"], "num_faces": [0]}
    table = pa.table(image).cast(
        pa.schema(
            [
                ("image_id", pa.int64()),
                ("uri", pa.string()),
                ("status", pa.string()),
                ("num_faces", pa.int16()),
            ]
        )
    )
    commit_part(lake.store, part, [(IMAGES, table)], counters={"images": 1, "faces": 0, "status.ok": 1})
    try:
        text = _page(lake)
        for table_name, command in (
            ("duplicates", "dedup"),
            ("neighbors", "neighbors"),
            ("decisions", "clean"),
        ):
            assert f"Images have changed since {table_name} were made; facescale {command}" in text
    finally:
        lake.store.delete(IMAGES.part_path(part))


def _page(lake: Lake) -> str:
    where, _ = write_report(lake.uri, ReportConfig())
    return Path(where).read_text(encoding="utf-8")


def test_an_empty_lake_and_one_without_faces(tmp_path: Path) -> None:
    empty = Lake.create(str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="nothing to report: run `facescale extract SRC"):
        pipeline.run_job("report", config(empty))
    versions = (IMAGES, TableVersion("faces", "2" * 12), CROPS, VECTORS)
    for version in versions:
        empty.write_version(version, stage="extract", settings={}, revision=1, inputs={})
    empty.set_current(versions)
    pipeline.run_job("report", config(empty))
    text = (tmp_path / "empty" / "report.html").read_text()
    assert "<h2" in text and "NaN" not in text and "nan" not in text


def test_a_lake_in_memory() -> None:
    lake = Lake.create("memory://report-test")
    lake.write_version(IMAGES, stage="extract", settings={}, revision=1, inputs={})
    lake.set_current([IMAGES])
    pipeline.run_job("report", config(lake))
    assert lake.store.read_bytes("report.html").startswith(b"<!doctype html>")
