"""The public Python API: its names, that it does what the commands do, what it returns and refuses, its examples."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main
from index_lakes import make_lake, people, stored

import facescale
from facescale import cli, pipeline
from facescale.config.index import SearchConfig
from facescale.config.job import JobConfig
from facescale.driver.context import SilentReporter
from facescale.driver.search import run_search
from facescale.lake.ids import image_id_of
from facescale.lake.lake import Lake as StageLake
from facescale.lake.parts import TableVersion
from facescale.pipeline import JOBS

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "facescale.api.imports",
    "facescale.api.jobs",
    "facescale.api.lake",
    "facescale.api.questions",
    "facescale.driver.searcher",
)
# A package has the name of these jobs, and it would take the name's place once it is imported.
OTHER_NAMES = {"index": "build_index", "report": "write_report", "import": "import_embeddings"}
FUNCTIONS = {name: name for name in JOBS} | OTHER_NAMES
EXAMPLES = [
    example
    for module in MODULES
    for example in doctest.DocTestFinder().find(importlib.import_module(module))
    if example.examples
]
TOY = {"embedder": "toy"}


def test_names_resolve_and_are_sorted() -> None:
    assert list(facescale.__all__) == sorted(facescale.__all__)
    for name in facescale.__all__:
        value = getattr(facescale, name)
        assert value is not None and name in dir(facescale)
        # A submodule of the same name would take the name's place once it is imported.
        assert inspect.ismodule(value) == (ROOT / "facescale" / f"{name}.py").is_file(), name
        assert not (ROOT / "facescale" / name).is_dir(), name
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        facescale.serach  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_the_names_that_resolve() -> None:
    tree = ast.parse((ROOT / "facescale" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(declared) == set(facescale.__all__) - {"__version__"}
    for name, module in declared.items():
        assert getattr(importlib.import_module(str(module)), name) is getattr(facescale, name)


def test_importing_loads_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import facescale; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert loaded == {"facescale"}


@pytest.mark.parametrize("job", JOBS)
def test_every_flag_of_a_job_is_a_keyword(job: str) -> None:
    """A job that is new on the command line needs its function here: in facescale.api.jobs and facescale.__all__."""
    assert FUNCTIONS[job] in facescale.__all__
    keywords = inspect.signature(getattr(facescale, FUNCTIONS[job])).parameters
    command = typer.main.get_command(cli.app).commands[job]  # type: ignore[attr-defined]
    flags = {name for option in command.params for name in option.opts}
    flags -= {"--dry-run", "--json", "--verbose", "-v", "-k"}
    other = {"plugin": "plugins", "with": "annotators"}  # `with` is a word of Python's
    flags = {other.get(flag, flag) for flag in (flag.removeprefix("--").replace("-", "_") for flag in flags)}
    assert flags == set(keywords) - {"reporter"}
    assert all(value.default is not inspect.Parameter.empty for value in keywords.values())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example(example: doctest.DocTest, crawl: Path) -> None:
    example.globs = {"facescale": facescale}
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=told.append)
    assert result.attempted and not result.failed, "".join(told)


def test_examples_were_found() -> None:
    assert len(EXAMPLES) >= 10


@pytest.fixture
def toy(tmp_path: Path) -> tuple[facescale.Lake, np.ndarray, np.ndarray]:
    """A lake of 300 simulated faces, three on an image, and an index; the vectors as stored, and face ids."""
    vectors = people(300, 16)
    _, ids = make_lake(tmp_path / "toy.lake", vectors, faces_per_image=3, part_rows=32)
    facescale.build_index(tmp_path / "toy.lake", embedder="toy", workers=0)
    return facescale.Lake.open(tmp_path / "toy.lake"), stored(vectors), ids


def test_settings_come_from_keywords_over_a_file_or_a_config(crawl: Path) -> None:
    fresh = StageLake.open("crawl.lake")
    made = {}
    (crawl / "job.yaml").write_text("lake: crawl.lake\nneighbors: {k: 2}\nengine: {workers: 0}\n")
    config = JobConfig(lake="elsewhere", neighbors={"k": 3}, engine={"workers": 0})
    made[2] = facescale.neighbors(config="job.yaml")
    made[3] = facescale.neighbors("crawl.lake", config=config)
    made[4] = facescale.neighbors(crawl / "crawl.lake", config=config, k=4)
    made[5] = facescale.neighbors(facescale.Lake.open("crawl.lake"), config=crawl / "job.yaml", k=5)
    for k, summary in made.items():
        assert (summary.job, summary.exit_code) == ("neighbors", 0)
        version = next(
            v.version for v in fresh.versions() if v.version.folder == summary.stages[0].tables["neighbors"]
        )
        assert (fresh.describe_version(version) or {})["settings"]["k"] == k


def test_wrong_settings_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(facescale.errors.UsageError, match="lake is required"):
        facescale.run("photos")
    with pytest.raises(facescale.errors.UsageError, match=r"extract.min_face_px: .*less than or equal"):
        facescale.run("photos", tmp_path / "lake", min_face_px=4096)
    with pytest.raises(facescale.errors.UsageError, match="extract needs a source"):
        facescale.extract(lake=tmp_path / "lake")
    with pytest.raises(facescale.errors.UsageError, match="is no lake"):
        facescale.clean(tmp_path / "lake")
    with pytest.raises(facescale.errors.UsageError, match="labels=FILE"):
        facescale.calibrate(tmp_path / "lake", label_column="who")
    with pytest.raises(facescale.errors.UsageError, match="fold: expected 0, 1 or None"):
        facescale.calibrate(tmp_path / "lake", fold=2)
    assert not (tmp_path / "lake").exists()


def test_evaluate_and_calibrate(crawl: Path) -> None:
    """Against the truth of the crawl: one wrong label, found; too few people to calibrate on, which is said."""
    truth = pq.read_table("crawl/truth.parquet", columns=["path", "identities"]).to_pylist()
    lines = [f"{row['path']},{row['identities'][0]}" for row in truth if len(row["identities"]) == 1]
    Path("truth.csv").write_text("\n".join(["path,identity", *lines]) + "\n", encoding="utf-8")
    cleaning = facescale.evaluate_cleaning("crawl.lake", "truth.csv")
    (scores,) = cleaning.scores.values()
    assert (scores["precision"], scores["recall"]) == (1, 1)
    clusters = facescale.evaluate_clusters(facescale.Lake.open("crawl.lake"), Path("truth.csv"))
    assert {round(value["bcubed_f"], 6) for value in clusters.scores.values()} == {1.0}
    with pytest.raises(
        facescale.errors.UsageError, match=r"14 faces of 3 people.*cannot calibrate dlib_resnet"
    ):
        facescale.calibrate("crawl.lake", labels="truth.csv", label_column="identity", fold=None)
    with pytest.raises(facescale.errors.UsageError, match=r"nothing\.csv cannot be read"):
        facescale.evaluate_clusters("crawl.lake", "nothing.csv")


def test_one_embedder_is_taken_for_every_stage_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[JobConfig] = []
    monkeypatch.setattr(pipeline, "run_job", lambda job, config, reporter: seen.append(config))
    facescale.run("photos", "lake", embedder="mine")
    sections = {name: value for name, value in seen[0] if hasattr(value, "embedder")}
    assert {name: section.embedder for name, section in sections.items()} == dict.fromkeys(sections, "mine")
    assert {"extract", "neighbors", "clean", "index"} <= set(sections)


def test_tables(toy: tuple[facescale.Lake, np.ndarray, np.ndarray]) -> None:
    lake, vectors, ids = toy
    found = lake.embeddings()
    np.testing.assert_array_equal(found.face_id, ids)
    np.testing.assert_allclose(found.vectors, vectors, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    assert (found.vectors.dtype, found.norm.dtype) == (np.float32, np.float32)
    faces = lake.faces()
    np.testing.assert_array_equal(faces.face_id, ids)
    np.testing.assert_array_equal(faces.image_id, image_id_of(ids))
    np.testing.assert_array_equal(faces.box[:, 2], faces.box[:, 0] + 50)
    assert (faces.box.shape, faces.landmarks.shape) == ((300, 4), (300, 1, 2))
    assert (faces.landmarks == [1, 2]).all()
    assert faces.quality.dtype == np.float32 and np.isnan(faces.quality).all()  # nobody measured it
    images = lake.images()
    assert images.uri[0] == "/photos/0.jpg" and set(images.status) == {"ok"} and images.num_faces.sum() == 300
    blocks = list(lake.scan("labels", ["label"], batch_rows=10))
    assert max(block.num_rows for block in blocks) == 10
    assert pa.concat_tables(blocks) == lake.table("labels", ["label"])
    some = lake.rows("embeddings", ids[[7, 3]])
    assert some["face_id"].to_pylist() == ids[[7, 3]].tolist()
    assert lake.info().faces == 0 and len(lake.info().current) == 5  # these parts have no counters


def test_what_is_not_there_is_said(
    toy: tuple[facescale.Lake, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    lake, _, ids = toy
    with pytest.raises(facescale.errors.UsageError, match=r"no table 'face'; there are .*faces"):
        lake.table("face")
    with pytest.raises(facescale.errors.UsageError, match="no finished decisions: run `facescale clean`"):
        lake.table("decisions")
    with pytest.raises(facescale.errors.UsageError, match="no finished embeddings of mine"):
        lake.embeddings("mine")
    with pytest.raises(facescale.errors.DataError, match="no column 'age'"):
        lake.table("faces", ["age"])
    with pytest.raises(facescale.errors.DataError, match="1 ids have no row"):
        lake.rows("faces", [ids[-1] + 9])
    with pytest.raises(facescale.errors.DataError, match="expected integers"):
        lake.rows("faces", [1.5])
    empty = facescale.Lake.create(tmp_path / "empty")
    with pytest.raises(facescale.errors.UsageError, match="no finished images: run `facescale extract`"):
        empty.images()
    assert empty.verify().ok and empty.info().planned == 0
    lake.set_current([TableVersion("embeddings", "e" * 12, "other")])
    with pytest.raises(facescale.errors.UsageError, match="embeddings of other, toy: say which"):
        lake.embeddings()
    assert len(lake.embeddings("toy").vectors) == 300


def test_verify_sees_a_damaged_index(crawl: Path) -> None:
    lake = facescale.Lake.open("crawl.lake")
    assert lake.verify().ok
    (file,) = Path("crawl.lake/index").glob("*/*.faiss")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (problem,) = lake.verify().problems
    assert problem.path.endswith(file.name)


def test_a_searcher_answers_many_times(toy: tuple[facescale.Lake, np.ndarray, np.ndarray]) -> None:
    lake, vectors, ids = toy
    with facescale.Searcher.open(lake, **TOY, threads=1) as searcher:
        assert (searcher.embedder, searcher.dim, searcher.num_faces) == ("toy", 16, 300)
        assert (searcher.recall, searcher.warnings) == (1.0, [])
        first = searcher.search(3 * vectors[:50], 4)
        second = searcher.search(vectors[[9]].astype(np.float64), names=["nine"], label="person 3")
    np.testing.assert_array_equal(first.hits["face_id"].to_numpy().reshape(50, 4)[:, 0], ids[:50])
    assert first.queries == 50 and first.hits["query"].to_pylist()[-1] == "49"
    expected = vectors @ vectors[9]
    for hit in second.rows():
        assert (hit.query, hit.label) == ("nine", "person 3")
        assert hit.similarity == pytest.approx(expected[np.searchsorted(ids, hit.face_id)], abs=2e-6)
        assert hit.box[2] == hit.box[0] + 50
        assert hit.uri == f"/photos/{image_id_of(hit.face_id)}.jpg"
    assert [hit.rank for hit in second.rows()] == list(range(1, 11))
    once = facescale.search(lake, vectors[:2], 1, **TOY, min_similarity=1.1)
    assert (once.queries, once.rows()) == (2, [])


def test_a_searcher_stays_with_the_versions_it_was_opened_on(
    toy: tuple[facescale.Lake, np.ndarray, np.ndarray],
) -> None:
    lake, vectors, _ = toy
    with facescale.Searcher.open(lake, **TOY, threads=1) as searcher:
        before = searcher.search(vectors[:3], 2).hits
        lake.set_current([TableVersion("faces", "f" * 12), TableVersion("labels", "f" * 12)])
        assert searcher.search(vectors[:3], 2).hits == before
        assert lake.current("faces") != searcher.lake.current("faces")
    with (
        facescale.Searcher.open(lake, **TOY, threads=1) as searcher,
        pytest.raises(facescale.errors.DataError),
    ):
        searcher.search(vectors[:3], 2)


def test_searcher_refuses(toy: tuple[facescale.Lake, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    lake, vectors, _ = toy
    with pytest.raises(facescale.errors.UsageError, match="no finished index of dlib_resnet"):
        facescale.Searcher.open(lake)
    with facescale.Searcher.open(str(tmp_path / "toy.lake"), **TOY, threads=1) as searcher:
        with pytest.raises(facescale.errors.MismatchError, match="dimension 15"):
            searcher.search(vectors[:, :15])
        with pytest.raises(facescale.errors.UsageError, match=r"one query is \[1, D\]"):
            searcher.search(vectors[0])
        with pytest.raises(facescale.errors.UsageError, match="2 queries with 1 names"):
            searcher.search(vectors[:2], names=["a"])
        with pytest.raises(facescale.errors.UsageError, match=r"image 0: expected uint8 \[H, W, 3\]"):
            searcher.search_images([np.zeros((9, 9), np.uint8)])
        with pytest.raises(facescale.errors.UsageError, match="1 images with 0 names"):
            searcher.search_images([np.zeros((9, 9, 3), np.uint8)], names=[])


def test_pixels_files_embeddings_and_the_command_agree(crawl: Path) -> None:
    """One photograph, asked for in four ways, gives the same hits; images without a face are problems."""
    file, nobody = "crawl/images/id_0002/img_00001.jpg", "crawl/images/id_0000/img_00008.jpg"
    lake = facescale.Lake.open("crawl.lake")
    images = lake.images()
    (at,) = [row for row, uri in enumerate(images.uri) if uri.endswith(file)]
    assert ((lake.faces().quality > 0) & (lake.faces().quality < 1)).all()
    vectors = lake.embeddings()
    own = vectors.vectors[image_id_of(vectors.face_id) == images.image_id[at]]
    pq.write_table(pa.table({"embedding": list(own), "name": ["me"]}), crawl / "me.parquet")
    pixels = {name: cv2.cvtColor(cv2.imread(name), cv2.COLOR_BGR2RGB) for name in (file, nobody)}
    with facescale.Searcher.open(lake, threads=1) as searcher:
        of_files = searcher.search_files([file, nobody], 5)
        of_pixels = searcher.search_images(list(pixels.values()), 5, names=list(pixels))
        of_vector = searcher.search(own, 5)
        of_parquet = searcher.search_files([crawl / "me.parquet"], 5)
    config = SearchConfig(k=5)
    command = run_search("crawl.lake", [file, nobody], config, reporter=SilentReporter())
    answers = (of_files, of_pixels, of_vector, of_parquet, command)
    ids = [answer.hits["face_id"].to_pylist() for answer in answers]
    assert ids[0] and ids == [ids[0]] * 5
    similar = [answer.hits["similarity"].to_numpy() for answer in answers]
    np.testing.assert_allclose(similar, [similar[0]] * 5, atol=1e-3)
    assert [len(answer.problems) for answer in answers] == [1, 1, 0, 0, 1]
    assert "no face found" in of_pixels.problems[0][1] and of_pixels.problems[0][0] == nobody
    assert of_parquet.rows()[0].query == "me"
