"""The benchmarks' small versions on real photographs: verification, dlib's judgement, the bare loop.

`facescale bench verification`, `oracle` and `extract` give the full figures; the floors here are what a small sample
cannot miss unless something is broken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from facescale.bench.bare_loop import STEPS, BareLoop
from facescale.bench.lake_faces import read_faces
from facescale.bench.oracle import bench_oracle
from facescale.bench.photos import evenly, find_photos, read_pairs
from facescale.bench.results import Result
from facescale.bench.verification import bench_verification
from facescale.driver.context import SilentReporter
from facescale.lake.lake import Lake

PAIRS = 60
EMBEDDER = "dlib_resnet"
QUIET = SilentReporter()


@dataclass(frozen=True)
class Run:
    """One run of the verification benchmark, and the lake it made."""

    result: Result
    lake: Lake


@pytest.fixture(scope="module")
def run(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    lake = str(tmp_path_factory.mktemp("verification") / "lake")
    return Run(bench_verification(str(test_data), QUIET, lake=lake, limit_pairs=PAIRS), Lake.open(lake))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "floor"),
    [
        ("verification accuracy, threshold of the other fold", 0.93),
        ("identification, leave-one-out top 1", 0.95),
        ("single-person photographs that yield their face, share", 0.97),
        ("stored crop against photograph, median cosine", 0.995),
    ],
)
def test_floors(run: Run, name: str, floor: float) -> None:
    value = run.result.goal(name).value
    assert value is not None
    assert value >= floor


def test_verification_agrees_with_the_tables_read_by_others(run: Run, test_data: Path) -> None:
    """The figure again from the Parquet files alone: no code of the benchmark but the list of pairs."""
    root = Path(run.lake.uri)
    faces, images = current(run.lake, "faces"), current(run.lake, "images")
    vectors = current(run.lake, "embeddings", EMBEDDER)
    face_of: dict[str, np.ndarray] = {}
    for image in ds.dataset(root / images).to_table().to_pylist():
        center = np.array([image["width"] / 2, image["height"] / 2])
        best = np.inf
        inside = (ds.field("face_id") > image["image_id"]) & (ds.field("face_id") < image["image_id"] + 256)
        found = ds.dataset(root / faces).to_table(filter=inside).to_pylist()
        rows = ds.dataset(root / vectors).to_table(filter=inside).to_pylist()
        for face, row in zip(found, rows, strict=True):
            assert face["face_id"] == row["face_id"]
            x1, y1, x2, y2 = face["box"]
            away = np.hypot(*(center - [(x1 + x2) / 2, (y1 + y2) / 2]))
            if away < best:
                best = away
                face_of[Path(image["uri"]).name] = np.array(row["embedding"], np.float32) * row["norm"]
    pairs = read_pairs(test_data)
    pairs = pairs.take(np.array(evenly(range(len(pairs)), PAIRS)))
    right = 0
    for first, second, same in zip(pairs.first, pairs.second, pairs.same, strict=True):
        a, b = face_of.get(Path(first).name), face_of.get(Path(second).name)
        right += a is not None and b is not None and (np.linalg.norm(a - b) < 0.6) == same
    figures = run.result.figures["verification"]
    assert figures["accuracy at its makers' own threshold 0.6"] == pytest.approx(right / PAIRS)
    assert figures["pairs"] == PAIRS


def current(lake: Lake, table: str, model: str = "-") -> str:
    version = lake.current(table, model)
    assert version is not None
    return version.folder


def test_half_precision_changes_no_verdict(run: Run) -> None:
    figures = run.result.figures["float16 embeddings, against float32 from the photographs"]
    assert figures["faces"] >= PAIRS
    assert 0 < figures["largest distance of a face to itself, as a share of its length"] < 2e-3
    assert figures["largest change of a pair's distance"] < 2e-3


def test_models_agree_with_dlib(test_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("dlib")
    answers = str(tmp_path / "dlib.jsonl")
    result = bench_oracle(str(test_data / "lfw"), QUIET, limit=12, upsample=0, save=answers)
    assert result.figures["boxes"]["dlib's"] >= 10
    assert result.figures["boxes"]["extra"] == 0
    assert [goal.name for goal in result.goals if not goal.met] == []
    again = bench_oracle(str(test_data / "lfw"), QUIET, limit=12, upsample=0, save=answers)
    assert again.figures["boxes"] == result.figures["boxes"]
    assert again.seconds < result.seconds  # dlib is not asked twice


@pytest.mark.parametrize("batch", [1, 3])
def test_bare_loop_does_what_extract_does(run: Run, batch: int) -> None:
    faces = read_faces(run.lake, EMBEDDER)
    images = range(7)
    loop = BareLoop(detector="dlib_mmod", embedder=EMBEDDER, min_face_px=40, batch=batch, threads=2)
    found = loop.run([faces.uris[row] for row in images])
    mine = np.isin(faces.image, images)
    assert found == mine.sum() > 0
    np.testing.assert_allclose(np.concatenate(loop.descriptors), faces.raw[mine], atol=2e-3)
    assert all(loop.seconds[step] > 0 for step in STEPS)


def test_photos_of_the_fixture(test_data: Path) -> None:
    """The lists name files that are there; else every figure above would count missing faces."""
    names = {str(path.relative_to(test_data)) for path in find_photos(test_data)}
    pairs = read_pairs(test_data)
    assert {*pairs.first, *pairs.second} <= names
