"""The job import, in this process: what becomes of each row, shared images, labels, resuming, and all later jobs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clustered_people import simulate

import facescale
from facescale import pipeline
from facescale.config.job import JobConfig
from facescale.errors import MismatchError, UsageError
from facescale.lake.ids import image_id_of
from facescale.lake.lake import Lake
from facescale.lake.scan import scan
from facescale.lake.verify import verify
from facescale.sources import vector_rows
from facescale.sources.vector_rows import NO_BOX

MODEL = "theirs"


def take_in(source: Path, lake: Path, **options: Any) -> Any:
    return facescale.import_embeddings(
        source, lake, **{"model": MODEL, "workers": 0, "part_rows": 64, **options}
    )


def read(lake: Path | str, table: str, model: str = "-") -> pa.Table:
    opened = Lake.open(str(lake))
    version = opened.current(table, model)
    assert version is not None
    return pa.concat_tables(list(scan(opened, version)))


def write(path: Path, embedding: Any, **columns: Any) -> Path:
    if isinstance(embedding, np.ndarray):
        embedding = pa.array(list(embedding.astype(np.float32)), pa.list_(pa.float32()))
    pq.write_table(pa.table({"embedding": embedding, **columns}), path, row_group_size=70)
    return path


def test_every_row_has_its_status(tmp_path: Path) -> None:
    vectors = 3 * simulate([4] * 60, seed=0)[0]
    rows: list[Any] = list(vectors)
    rows[5], rows[6], rows[7], rows[8] = None, np.zeros(64), rows[7][:10], np.full(64, np.nan)
    rows[70] = np.full(64, 1e-30)
    quality = np.linspace(0, 1, 240)
    quality[[20, 21]] = 7.0, np.nan
    boxes = np.tile(np.float32([1, 2, 30, 40]), (240, 1))
    boxes[30] = [5, 5, 5, 9]
    source = write(
        tmp_path / "a.parquet", pa.array(rows, pa.list_(pa.float64())), quality=quality, box=list(boxes)
    )
    summary = take_in(source, tmp_path / "lake", max_failures=0.01)
    assert summary.exit_code == facescale.errors.EXIT_TOO_MANY_FAILURES
    images, faces, stored = (
        read(tmp_path / "lake", *t) for t in (("images",), ("faces",), ("embeddings", MODEL))
    )
    bad = {5: "empty", 6: "zero_vector", 7: "wrong_dimension", 8: "not_finite"}
    assert images["status"].to_pylist() == [bad.get(row, "ok") for row in range(240)]
    assert images["uri"][17].as_py() == f"{source}#17"
    kept = np.array([row for row in range(240) if row not in bad])
    np.testing.assert_array_equal(image_id_of(faces["face_id"].to_numpy()) >> 8, kept)
    exact = np.stack([rows[row] for row in kept]).astype(np.float64)
    norm = np.linalg.norm(exact, axis=1)
    np.testing.assert_allclose(stored["norm"].to_numpy(), norm, rtol=1e-6)
    units = np.array(stored["embedding"].to_pylist(), np.float64)
    np.testing.assert_allclose(units, exact / norm[:, None], atol=2**-11)
    given = [None if row in (20, 21) else np.float32(quality[row]) for row in kept]
    assert faces["quality"].to_pylist() == given
    assert faces["box"].to_pylist() == [NO_BOX.tolist() if row == 30 else [1, 2, 30, 40] for row in kept]
    counters = summary.stage("import").counters
    assert counters["rescaled"] == len(kept) and counters["quality_out_of_range"] == 1
    assert counters["boxes_unknown"] == 1 and counters["images"] == 240 and counters["faces"] == len(kept)
    report = verify(Lake.open(str(tmp_path / "lake")))
    assert report.ok, [str(problem) for problem in report.problems]


def test_rows_of_one_uri_are_faces_of_one_image(tmp_path: Path) -> None:
    """Wherever they are in the file; the first row stands for the image, its faces are in order of the score."""
    rng = np.random.default_rng(1)
    vectors = simulate([4] * 150, seed=0)[0]
    uris: list[str | None] = [f"s3://key:secret@photos/{n}.jpg" for n in rng.integers(0, 200, 600)]
    uris[100:420] = ["crowd.jpg"] * 320
    for row in (3, 50, 599):
        uris[row] = None if row == 3 else ""
    unusable = [1, 101, 430, 598]
    vectors[unusable] = 0
    scores = rng.random(600).astype(np.float32)
    source = write(tmp_path / "a.parquet", vectors, uri=uris, det_score=scores, label=np.arange(600) % 9)
    counters = take_in(source, tmp_path / "lake").stage("import").counters
    images, faces, stored = (
        read(tmp_path / "lake", *t) for t in (("images",), ("faces",), ("embeddings", MODEL))
    )

    members: dict[Any, list[int]] = defaultdict(list)
    for row, uri in enumerate(uris):
        members[uri or row].append(row)
    expected, num_faces = [], np.zeros(600, int)
    for rows in members.values():
        best = sorted((row for row in rows if row not in unusable), key=lambda row: -scores[row])[:255]
        num_faces[rows[0]] = len(best)
        expected += [(rows[0] << 8 | rank + 1, row) for rank, row in enumerate(best)]
    expected.sort()
    assert faces["face_id"].to_pylist() == stored["face_id"].to_pylist() == [face for face, _ in expected]
    whose = np.array([row for _, row in expected])
    np.testing.assert_array_equal(faces["det_score"].to_numpy(), scores[whose])
    np.testing.assert_allclose(np.array(stored["embedding"].to_pylist()), vectors[whose], atol=2**-10)
    assert images["num_faces"].to_pylist() == num_faces.tolist()
    status = images["status"].to_numpy(zero_copy_only=False)
    assert status[100] == "too_many_faces" and counters["status.same_image"] == (status == "same_image").sum()
    first = np.zeros(600, bool)
    first[[rows[0] for rows in members.values()]] = True
    assert set(status[first & (num_faces > 0)]) == {"ok", "too_many_faces"}
    assert all(status[row] == "zero_vector" for row in unusable if not num_faces[row])
    assert not any("secret" in uri for uri in images["uri"].to_pylist())

    claims = read(tmp_path / "lake", "labels")
    said = {(rows[0] << 8, str(row % 9)) for rows in members.values() for row in rows}
    assert set(zip(claims["image_id"].to_pylist(), claims["label"].to_pylist(), strict=True)) == said
    assert claims.num_rows == len(said)
    assert verify(Lake.open(str(tmp_path / "lake"))).ok
    assert not (tmp_path / "lake" / "_scratch" / "import").exists()


def same_tables(one: Path, other: Path) -> None:
    for table, model in (("images", "-"), ("faces", "-"), ("embeddings", MODEL), ("labels", "-")):
        assert read(one, table, model).equals(read(other, table, model)), table


def test_a_job_that_fails_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only missing parts are made, and whatever the cut into parts was, rows get what they got."""
    vectors, who = simulate([4] * 100, seed=0)
    uris = [f"{n}.jpg" for n in np.random.default_rng(2).integers(0, 300, 400)]
    source = write(tmp_path / "a.parquet", vectors, uri=uris, label=who)
    take_in(source, tmp_path / "whole")
    process, seen = vector_rows.ImportStage.process, []

    def fail_at_the_fourth(self: Any, part: Any, guard: Any) -> Any:
        seen.append(part.key)
        if len(seen) == 4:
            raise MemoryError("too little")
        return process(self, part, guard)

    monkeypatch.setattr(vector_rows.ImportStage, "process", fail_at_the_fourth)
    with pytest.raises(facescale.errors.FacescaleError, match="too little"):
        take_in(source, tmp_path / "lake")
    summary = take_in(source, tmp_path / "lake").stage("import")
    assert (summary.parts_kept, summary.parts_run) == (3, 4)
    same_tables(tmp_path / "whole", tmp_path / "lake")
    again = take_in(source, tmp_path / "lake")
    assert [(s.parts_run, s.parts_kept) for s in again.stages] == [(0, 7), (0, 7)]
    take_in(source, tmp_path / "coarse", part_rows=256)
    same_tables(tmp_path / "whole", tmp_path / "coarse")


@pytest.mark.parametrize("kind", ["npy", "bin"])
def test_arrays_give_what_parquet_gives(tmp_path: Path, kind: str) -> None:
    vectors, who = simulate([5] * 40, seed=0)
    write(tmp_path / "a.parquet", vectors, label=who)
    take_in(tmp_path / "a.parquet", tmp_path / "expected")
    if kind == "npy":
        np.save(tmp_path / "a.npy", vectors)
        np.save(tmp_path / "a.label.npy", who)
    else:  # the dimension follows from the number of labels
        vectors.astype("<f4").tofile(tmp_path / "a.bin")
        (tmp_path / "a.meta").write_text("\n".join(map(str, who)) + "\n")
    take_in(tmp_path / f"a.{kind}", tmp_path / "lake")
    for table, model in (("faces", "-"), ("embeddings", MODEL), ("labels", "-")):
        assert read(tmp_path / "lake", table, model).equals(read(tmp_path / "expected", table, model))


def test_new_files_and_changed_files(tmp_path: Path) -> None:
    """A folder grows by a file of another dimension; a file that was written again is not taken for the planned one."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    vectors = simulate([4] * 50, seed=0)[0]
    write(folder / "a.parquet", vectors[:100])
    take_in(folder, tmp_path / "lake")
    write(folder / "b.parquet", vectors[100:])
    write(folder / "c.parquet", np.ones((7, 3)))
    (folder / "d.parquet").write_bytes(b"PAR1 broken PAR1")
    summary = take_in(folder, tmp_path / "lake")
    counters = summary.stage("import").counters
    assert (counters["status.ok"], counters["status.wrong_dimension"]) == (200, 7)
    write(folder / "a.parquet", vectors[::2])
    take_in(folder, tmp_path / "lake")
    assert len(read(tmp_path / "lake", "faces")) == 200
    take_in(folder, tmp_path / "lake", accept_changes=True)
    stored = np.array(read(tmp_path / "lake", "embeddings", MODEL)["embedding"].to_pylist())
    np.testing.assert_allclose(stored, np.concatenate([vectors[100:], vectors[::2]]), atol=2**-10)
    fresh = JobConfig.model_validate(
        {
            "src": str(folder),
            "lake": str(tmp_path / "new"),
            "imports": {"model": MODEL},
            "engine": {"workers": 0},
        }
    )
    plan = pipeline.dry_run("import", fresh)
    assert (plan.images, plan.stages[0].parts) == (207, 5) and not (tmp_path / "new").exists()


def test_a_file_that_changes_after_it_was_planned(tmp_path: Path) -> None:
    vectors = simulate([4] * 50, seed=0)[0]
    source = write(tmp_path / "a.parquet", vectors)
    take_in(source, tmp_path / "lake")
    Lake.open(str(tmp_path / "lake")).store.delete_tree("images")
    write(source, vectors[:150])
    summary = take_in(source, tmp_path / "lake")
    assert summary.stage("import").counters["status.source_changed"] == 200 and summary.exit_code == 3


def test_every_later_job_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels with planted errors; an embedder that nobody has registered; no files, pixels or crops."""
    vectors, who = simulate([8] * 60 + [20] * 4, seed=5)
    names = np.array([f"person {n}" for n in who])
    wrong = np.arange(0, 480, 24)
    names[wrong] = names[wrong - 100]
    uris = [f"/web/{n}.jpg" for n in range(len(who))]
    source = write(
        tmp_path / "a.parquet", vectors, uri=uris, label=names, quality=np.linspace(0.4, 1, len(who))
    )
    lake = str(tmp_path / "lake")
    take_in(source, tmp_path / "lake")
    truth = tmp_path / "truth.csv"
    truth.write_text("path,identity\n" + "".join(f"{u},{w}\n" for u, w in zip(uris, who, strict=True)))

    (dedup,) = facescale.dedup(lake).stages
    assert dedup.counters["copies"] == 0 and "no files or pixels to compare" in dedup.notes[0]
    with pytest.raises(UsageError, match="'theirs' is not calibrated"):
        facescale.neighbors(lake, embedder=MODEL, workers=0)
    with pytest.raises(UsageError, match=r"no finished embeddings of dlib_resnet \(it has: theirs\)"):
        facescale.calibrate(lake, labels=truth, label_column="identity")
    calibration = facescale.calibrate(lake, embedder=MODEL, labels=truth, label_column="identity")
    assert 0.5 < calibration.thresholds["re_encode"] < 1
    assert "no crops" in calibration.evidence["re_encode"]["measured"]
    facescale.neighbors(lake, embedder=MODEL, workers=0)
    facescale.cluster(lake, embedder=MODEL)
    facescale.clean(lake, embedder=MODEL)
    facescale.build_index(lake, embedder=MODEL, workers=0)
    clusters = facescale.evaluate_clusters(lake, truth, embedder=MODEL).scores["all identities"]
    assert clusters["bcubed_f"] > 0.95
    cleaning = facescale.evaluate_cleaning(lake, truth, embedder=MODEL)
    assert cleaning.counts["faces_of_known_identity"] == len(who)
    decided = read(lake, "decisions", MODEL)
    kept = np.array([verdict == "keep" for verdict in decided["verdict"].to_pylist()])
    assert not kept[wrong].any() and kept.sum() > 0.95 * (len(who) - len(wrong))
    page = Path(facescale.write_report(lake, embedder=MODEL)).read_text()
    assert "there are no photographs, so this page has no pictures" in page
    report = facescale.Lake.open(lake).verify()
    assert report.ok, report.problems

    query = write(tmp_path / "query.parquet", vectors[:3])
    with facescale.Searcher.open(lake, embedder=MODEL) as searcher:
        hits = [hit for hit in searcher.search_files([query], k=1).rows()]
        assert [hit.uri for hit in hits] == uris[:3]
        with pytest.raises(UsageError, match="queries are embeddings of theirs, too"):
            searcher.search_images([np.zeros((60, 60, 3), np.uint8)])
    with pytest.raises(UsageError, match="without photographs or crops, which embed needs"):
        facescale.embed(lake, workers=0)


@pytest.mark.parametrize("by", ["path", "uri", "row", "npy", "folder"])
def test_labels_from_elsewhere(tmp_path: Path, by: str) -> None:
    vectors, who = simulate([3] * 50, seed=0)
    uris = [f"/web/person {w}/{n}.jpg" for n, w in enumerate(who)]
    uris[7] = uris[6]
    source = write(tmp_path / "a.parquet", vectors, uri=uris)
    labels = tmp_path / "labels.csv"
    expected = [(n << 8, f"person {w}") for n, w in enumerate(who) if n != 7]
    if by in ("path", "uri"):
        lines = [f"{uri},person {w}" for uri, w in zip(uris, who, strict=True)]
        labels.write_text(f"{by},label\n" + "\n".join(lines[::-1]) + "\n")
    elif by == "row":
        labels.write_text("label\n" + "".join(f"person {w}\n" for w in who))
    elif by == "npy":
        np.save(tmp_path / "labels.npy", np.array([f"person {w}" for w in who]))
        labels = tmp_path / "labels.npy"
    take_in(source, tmp_path / "lake", labels="folder" if by == "folder" else labels)
    table = read(tmp_path / "lake", "labels")
    assert list(zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)) == expected


def test_what_does_not_fit_is_refused(tmp_path: Path, finished_crawl: Path) -> None:
    vectors = simulate([4] * 20, seed=0)[0]
    source, lake = write(tmp_path / "a.parquet", vectors), tmp_path / "lake"
    short = tmp_path / "short.meta"
    short.write_text("1\n2\n")
    for options, error, says in (
        ({"model": None}, UsageError, "--model NAME"),
        (
            {"model": "dlib_resnet"},
            MismatchError,
            "dlib_resnet has 128 dimensions and these embeddings have 64",
        ),
        ({"column": "vector"}, UsageError, r"no column 'vector' \(it has embedding\)"),
        ({"labels": tmp_path / "none.csv"}, UsageError, "cannot be read"),
        ({"labels": tmp_path / "none.doc"}, UsageError, "and the word `folder`"),
    ):
        with pytest.raises(error, match=says):
            take_in(source, lake, **options)
        assert not lake.exists()
    with pytest.raises(UsageError, match=r"holds no Parquet, \.npy or \.bin file of embeddings"):
        (tmp_path / "nothing").mkdir()
        take_in(tmp_path / "nothing", lake)
    take_in(source, lake)
    with pytest.raises(UsageError, match=r"has 2 labels, one a row, and .* has 80 rows"):
        take_in(source, lake, labels=short)
    with pytest.raises(UsageError, match="holds embeddings of theirs"):
        take_in(source, lake, model="ours")
    with pytest.raises(UsageError, match="without photographs or crops, which extract needs"):
        facescale.extract(finished_crawl / "crawl" / "images", lake, workers=0)
    photographs = tmp_path / "photographs"
    facescale.extract(finished_crawl / "crawl" / "images" / "id_0001", photographs, workers=0, min_face_px=80)
    with pytest.raises(UsageError, match="holds photographs: import embeddings into a lake of their own"):
        take_in(source, photographs)
