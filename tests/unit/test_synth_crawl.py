"""The whole crawl with a judge that needs no models: deterministic, complete, true to its truth table."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synth_samples import PLANTED, PixelJudge, small_crawl

from facescale.errors import UsageError
from facescale.imaging.decode import decode
from facescale.synth import cast as cast_module
from facescale.synth.cast import choose_cast
from facescale.synth.crawl import make_crawl
from facescale.synth.plan import Planted, plan_shots
from facescale.synth.truth import TRUTH_SCHEMA, read_truth

if TYPE_CHECKING:
    from facescale.synth.truth import SynthSummary


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> SynthSummary:
    return small_crawl(tmp_path_factory.mktemp("crawl") / "out")


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_bytes_for_any_number_of_threads_and_others_for_another_seed(
    crawl: SynthSummary, tmp_path: Path
) -> None:
    first = digests(Path(crawl.out))
    small_crawl(tmp_path / "again", threads=1)
    assert digests(tmp_path / "again") == first
    small_crawl(tmp_path / "other", seed=1)
    # Files that hold no picture (empty, HTML, a promised 30,000 x 30,000) are all that two seeds share.
    assert len(set(first.values()) & set(digests(tmp_path / "other").values())) == 3


def test_counts_are_what_was_asked(crawl: SynthSummary) -> None:
    assert crawl.counts == {
        "clean": 16,
        "wrong_label": 2,
        "exact_duplicate": 2,
        "near_duplicate": 3,
        "two_faces": 2,
        "no_face": 5,
        "low_quality": 3,
        **{f"damaged_{kind}": 1 for kind in ("truncated", "empty", "html", "garbage", "broken", "bomb")},
    }
    assert crawl.files == sum(crawl.counts.values())
    assert crawl.auditioned >= crawl.identities == 4
    assert crawl.mean_distance >= crawl.nearest >= 0.2


def test_every_file_is_what_the_truth_says(crawl: SynthSummary) -> None:
    images = Path(crawl.images)
    table = read_truth(crawl.out)
    assert table.schema.equals(TRUTH_SCHEMA)
    rows = table.to_pylist()
    assert sorted(row["path"] for row in rows) == sorted(digests(images))
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert sum(row["bytes"] for row in rows) == crawl.total_bytes
    for row in rows:
        data = (images / row["path"]).read_bytes()
        decoded = decode(data)
        assert len(data) == row["bytes"]
        assert decoded.status == row["status"], row["path"]
        assert row["path"].startswith(row["claimed"] + "/")
        assert len(row["boxes"]) == len(row["identities"]) == row["num_faces"]
        if row["status"] == "ok":
            assert (decoded.width, decoded.height) == (row["width"], row["height"])
            assert row["num_faces"] == {"two_faces": 2, "no_face": 0}.get(row["kind"], 1)
            for x1, y1, x2, y2 in row["boxes"]:
                assert -20 < x1 < x2 < row["width"] + 20
                assert -20 < y1 < y2 < row["height"] + 20
                assert x2 - x1 == pytest.approx(y2 - y1, rel=0.02)
        if row["kind"] == "clean":
            assert row["identities"] == [row["claimed"]]
        if row["kind"] == "wrong_label":
            assert row["claimed"] not in row["identities"]
        if row["kind"] == "two_faces":
            assert row["identities"][0] == row["claimed"] != row["identities"][1]


def test_copies_are_copies(crawl: SynthSummary) -> None:
    images = Path(crawl.images)
    rows = {row["path"]: row for row in read_truth(crawl.truth).to_pylist()}
    copies = [row for row in rows.values() if row["original"]]
    assert {row["kind"] for row in copies} == {"exact_duplicate", "near_duplicate"}
    for row in copies:
        original = rows[row["original"]]
        same = (images / row["path"]).read_bytes() == (images / original["path"]).read_bytes()
        assert same == (row["kind"] == "exact_duplicate")
        assert original["kind"] == "clean"
        assert original["group"] == row["group"] is not None
        scale = row["width"] / original["width"]
        assert np.allclose(row["boxes"], np.array(original["boxes"]) * scale, atol=0.5)
    groups = [row["group"] for row in rows.values() if row["group"] is not None]
    assert sorted(groups) == sorted([row["group"] for row in copies] * 2)


def test_the_same_request_is_kept_and_another_refused(crawl: SynthSummary) -> None:
    out = Path(crawl.out)
    before = digests(out), {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = small_crawl(out)
    assert again.reused
    assert not crawl.reused
    assert again.counts == crawl.counts
    assert again.nearest == crawl.nearest
    with pytest.raises(UsageError, match=r"other arguments \({'seed': 0}\): give another folder"):
        small_crawl(out, seed=1)
    assert before == (digests(out), {path: path.stat().st_mtime_ns for path in out.rglob("*")})


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty and holds no synthetic crawl"):
        small_crawl(tmp_path)
    assert digests(tmp_path).keys() == {"precious.txt"}
    with pytest.raises(UsageError, match="is a file"):
        small_crawl(tmp_path / "precious.txt")


def test_a_killed_run_is_done_over(tmp_path: Path) -> None:
    left_behind = tmp_path / "out" / "_building" / "images" / "id_0000"
    left_behind.mkdir(parents=True)
    (left_behind / "img_99999.jpg").write_bytes(b"half")
    seen: list[tuple[int, int]] = []
    made = small_crawl(tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"images", "truth.parquet"}
    assert len(digests(tmp_path / "out" / "images")) == made.files
    assert seen[-1] == (made.files, made.files)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_table_that_is_no_truth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the truth table"):
        read_truth(tmp_path)
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "truth.parquet")
    with pytest.raises(UsageError, match=r"truth\.parquet is not the truth table"):
        read_truth(tmp_path)


def test_default_amounts() -> None:
    default = Planted.for_size(320)
    assert (default.wrong_labels, default.exact_duplicates, default.damaged) == (16, 13, 2)
    assert Planted.for_size(1).no_faces == 1
    with pytest.raises(UsageError, match="two_faces must be 0 or more, got -1"):
        Planted(two_faces=-1)


def test_plan_hides_what_it_plants() -> None:
    shots = plan_shots(6, 5, PLANTED, np.random.SeedSequence(3))
    assert len({shot.path for shot in shots}) == len(shots)
    assert [shot.index for shot in shots] == list(range(len(shots)))
    for label in {shot.path[:7] for shot in shots}:
        numbers = sorted(int(shot.path[12:17]) for shot in shots if shot.path.startswith(label))
        assert numbers == list(range(1, len(numbers) + 1))
    planted = [int(shot.path[12:17]) for shot in shots if shot.kind != "clean"]
    assert min(planted) < 3  # not all at the end
    assert shots == plan_shots(6, 5, PLANTED, np.random.SeedSequence(3))


@pytest.mark.parametrize(
    ("identities", "images", "planted", "message"),
    [
        (0, 3, Planted(), "must be 1 or more, got 0 and 3"),
        (2, 0, Planted(), "must be 1 or more, got 2 and 0"),
        (1, 3, Planted(wrong_labels=1), "need 2 or more identities"),
        (1, 3, Planted(two_faces=1), "need 2 or more identities"),
        (
            2,
            2,
            Planted(exact_duplicates=3, near_duplicates=2),
            "5 duplicates need as many clean images, and there are 4",
        ),
    ],
)
def test_sizes_that_cannot_be(
    identities: int, images: int, planted: Planted, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        make_crawl(tmp_path / "out", identities=identities, images_per_identity=images, planted=planted)
    assert not (tmp_path / "out").exists()


class Judge:
    """Hands out given descriptors in order, then repeats the last."""

    def __init__(self, *descriptors: tuple[float, float]) -> None:
        self.left = list(descriptors)

    def describe(self, images: list[np.ndarray]) -> np.ndarray:
        rows = [self.left.pop(0) if len(self.left) > 1 else self.left[0] for _ in images]
        return np.array(rows, np.float32)


def test_cast_keeps_those_who_are_found_and_apart() -> None:
    judge = Judge((0, 0), (0.1, 0), (np.nan, np.nan), (1, 0), (1, 0.3), (0, 0.9), (0, 0))
    with ThreadPoolExecutor(2) as pool:
        cast = choose_cast(3, np.random.SeedSequence(0), judge, pool, min_distance=0.5)
    assert cast.descriptors.tolist() == np.array([(0, 0), (1, 0), (0, 0.9)], np.float32).tolist()
    assert len(cast.people) == 3


def test_a_full_face_space_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cast_module, "_PATIENCE", 2)
    with ThreadPoolExecutor(2) as pool, pytest.raises(UsageError, match="found only 2 of 5 identities"):
        choose_cast(5, np.random.SeedSequence(0), Judge((0, 0), (1, 0), (0, 0)), pool, min_distance=0.5)


def test_people_are_the_same_for_the_same_seed() -> None:
    with ThreadPoolExecutor(2) as pool:
        casts = [
            choose_cast(3, np.random.SeedSequence(7), PixelJudge(), pool, min_distance=0.1) for _ in range(2)
        ]
    for one, other in zip(*(cast.people for cast in casts), strict=True):
        assert np.array_equal(one.displacement, other.displacement)
        assert (one.hair, one.skin, one.glasses) == (other.hair, other.skin, other.glasses)
