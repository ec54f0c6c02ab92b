"""The commands as a user types them, over one small lake: what they print, write, refuse, and leave alone."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from e2e_samples import FAST, current_tables, encoded, face, facescale, files_of, noise, on_terminal
from PIL import Image

from facescale.driver import context
from facescale.models import registry as cards
from facescale.vision import registry as models

HERE = ("--workers", "0")
MODEL = "dlib_resnet"
NUM_IMAGES, NUM_FACES = 6, 6
LABELS = {"ann": 2, "bob": 3, "cat": 1}
TABLES = ("images", "faces", "crops", "embeddings")
STAGES = (
    "extract",
    "label",
    "dedup",
    "neighbors",
    "cluster",
    "clean",
    "index",
    "report",
)  # of a run with labels, in order


@dataclass(frozen=True)
class Crawl:
    """A source, the lake that `facescale run` made of it, and what its terminal showed."""

    source: Path
    lake: Path
    screen: str
    code: int


@pytest.fixture(scope="session")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Crawl:
    """`facescale run SRC LAKE --labels folder` on a terminal, with Ray and as many workers as it likes."""
    folder = tmp_path_factory.mktemp("commands")
    source, lake = folder / "source", folder / "lake"
    for label in LABELS:
        (source / label).mkdir(parents=True)
    face(150).save(source / "ann" / "0.png")
    face(170, 4).save(source / "ann" / "1.jpg")
    face(160, -4).save(source / "bob" / "0.png")
    face(150).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(source / "bob" / "1.webp")
    two = Image.new("RGB", (320, 160))
    two.paste(face(160, 2), (0, 0))
    two.paste(face(160, -2), (160, 0))
    two.save(source / "bob" / "2.png")
    noise().save(source / "cat" / "0.png")
    code, screen = on_terminal("run", source, lake, "--labels", "folder", "--min-face-px", "80")
    assert (lake / "lake.yaml").exists(), screen
    return Crawl(source, lake, screen, code)


@pytest.fixture
def lake(crawl: Crawl, tmp_path: Path) -> Path:
    """A copy of the lake, to be changed."""
    shutil.copytree(crawl.lake, tmp_path / "lake", copy_function=shutil.copy2)
    return tmp_path / "lake"


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Ray fails the test."""

    def refuse(*arguments: Any) -> NoReturn:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(context, "ray_session", refuse)


@pytest.fixture
def tiny() -> Iterator[tuple[str, str]]:
    """The flags that bring in the second embedder; other tests must not see it."""
    yield ("--plugin", "tiny_embedder")
    cards._registered().pop("tiny", None)
    models._EMBEDDERS.pop("tiny_means", None)
    sys.modules.pop("tiny_embedder", None)


def test_a_terminal_shows_a_bar_and_a_summary(crawl: Crawl) -> None:
    assert crawl.code == 0, crawl.screen
    assert "━" in crawl.screen and "\x1b[" in crawl.screen
    assert re.search(rf"extract.*{NUM_IMAGES}/{NUM_IMAGES}.* images/s, .* faces/s", crawl.screen)
    assert "left" in crawl.screen
    for stage in STAGES:
        assert re.search(rf"^\s+{stage} ", crawl.screen, re.MULTILINE), stage
    assert f"{NUM_FACES} faces, {NUM_IMAGES} images" in crawl.screen
    assert "Flat (" in crawl.screen and "recall@10 1.0000" in crawl.screen
    assert "Traceback" not in crawl.screen and "warning" not in crawl.screen.lower()


def test_elsewhere_progress_is_plain_lines(crawl: Crawl, tmp_path: Path) -> None:
    answer = facescale("extract", crawl.source, tmp_path / "lake", *FAST, *HERE)
    assert answer.code == 0
    assert f"extract: {NUM_IMAGES} images in 1 parts" in answer.err.splitlines()
    last = answer.err.splitlines()[-1]
    assert re.fullmatch(r"extract: 6/6 images, [\d.]+ images/s, [\d.]+ faces/s, 0 s left", last)
    assert "\x1b" not in answer.out + answer.err and "━" not in answer.out + answer.err


def test_running_again_does_nothing_and_adds_up(crawl: Crawl, no_ray: None) -> None:
    before = files_of(crawl.lake)
    answer = facescale("run", crawl.source, crawl.lake, "--labels", "folder", "--min-face-px", "80", "--json")
    assert answer.code == 0, answer.err
    assert files_of(crawl.lake) == before
    summary = answer.json
    assert (summary["job"], summary["lake"], summary["exit_code"]) == ("run", str(crawl.lake), 0)
    stages = {stage["stage"]: stage for stage in summary["stages"]}
    assert tuple(stages) == STAGES
    assert all((stage["parts_run"], stage["parts_kept"]) == (0, 1) for stage in stages.values())
    counters = stages["extract"]["counters"]
    statuses = {name: n for name, n in counters.items() if name.startswith("status.")}
    assert sum(statuses.values()) == counters["images"] == statuses["status.ok"] == NUM_IMAGES
    assert counters["faces"] == stages["index"]["counters"]["faces"] == NUM_FACES
    labels = stages["label"]["counters"]
    assert (labels["images"], labels["labels"], labels["unlabeled"]) == (NUM_IMAGES, NUM_IMAGES, 0)
    assert stages["extract"]["failures"] == {"images": NUM_IMAGES, "failed": 0, "examples": []}
    for table, where in (stages["extract"]["tables"] | stages["label"]["tables"]).items():
        assert where.split("/")[0] == table
        assert list((crawl.lake / where).glob("*/*.parquet"))


def test_dry_run_writes_nothing(crawl: Crawl, tmp_path: Path) -> None:
    flags = ("--labels", "folder", "--min-face-px", "80", "--dry-run", *HERE)
    plan = facescale("run", crawl.source, tmp_path / "new", *flags, "--json").json
    assert list(tmp_path.iterdir()) == []
    assert (plan["job"], plan["images"]) == ("run", NUM_IMAGES)
    stages = {stage["stage"]: stage for stage in plan["stages"]}
    assert stages["extract"]["tables"] == ["images", "faces", "crops", "embeddings"]
    written = ["labels", "duplicates", "neighbors", "clusters", "decisions", "index", "report"]
    assert [stages[name]["tables"] for name in STAGES[1:]] == [[table] for table in written]
    assert all((stage["parts"], stage["parts_done"]) == (1, 0) for stage in stages.values())
    made = {table: sum(f.stat().st_size for f in (crawl.lake / table).rglob("*.parquet")) for table in TABLES}
    # An estimate for crawls: of so few rows most bytes are the files' own frame.
    assert sum(made.values()) / 10 < stages["extract"]["bytes"] < sum(made.values()) * 10

    text = facescale("run", crawl.source, tmp_path / "new", *flags).out
    assert "nothing was written" in text
    for word in (
        "extract",
        "images, faces, crops, embeddings",
        "labels",
        "parts to do",
        "bytes, about",
        "KiB",
    ):
        assert word in text
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_what_is_done_and_of_what_came_in(crawl: Crawl, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(crawl.source, source)
    flags = ("--labels", "folder", "--min-face-px", "80", "--json", "--dry-run")
    before = files_of(crawl.lake)
    plan = facescale("run", crawl.source, crawl.lake, *flags).json
    found = {
        stage["stage"]: (stage["parts"], stage["parts_done"], stage["bytes"]) for stage in plan["stages"]
    }
    assert found == dict.fromkeys(STAGES, (0, 1, 0))
    plan = facescale("run", source, crawl.lake, *flags).json  # another folder: its files are new
    assert plan["images"] == 2 * NUM_IMAGES
    found = {stage["stage"]: (stage["parts"], stage["parts_done"]) for stage in plan["stages"]}
    assert found["extract"] == found["label"] == (1, 1)
    need_everything = ("dedup", "neighbors", "cluster", "clean")
    assert [found[stage] for stage in need_everything] == [(2, 0)] * len(need_everything)
    plan = facescale("extract", crawl.source, crawl.lake, "--min-face-px", "100", *flags[4:]).json
    assert any("min_face_px 80 → 100" in remark for remark in plan["remarks"])
    assert files_of(crawl.lake) == before


def test_dry_run_refuses_what_the_job_would_refuse(crawl: Crawl, lake: Path, tmp_path: Path) -> None:
    (lake / "lake.yaml").write_text("format_version: 99\n")
    for place, says in ((lake, "format version 99"), (crawl.source, "give the lake a folder of its own")):
        dry = facescale("extract", crawl.source, place, "--dry-run")
        assert (dry.code, says in dry.err) == (2, True), dry.err
        assert facescale("extract", crawl.source, place, *HERE).err == dry.err
    labels = ("--labels", "missing.csv", "--label-column", "name")
    dry = facescale("extract", crawl.source, tmp_path / "new", *labels, "--dry-run")
    assert (dry.code, "missing.csv cannot be read" in dry.err) == (2, True)


def test_flags_override_the_config_file(crawl: Crawl, tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "extract": {"min_face_px": 200, "part_rows": 4},
                "engine": {"workers": 0},
                "labels": {"source": "folder"},
            }
        )
    )
    lake = tmp_path / "lake"
    answer = facescale("extract", crawl.source, lake, "--config", config, "--min-face-px", "80", "--json")
    assert answer.code == 0, answer.err
    assert [stage["parts_run"] for stage in answer.json["stages"]] == [2, 2]  # part_rows of the file
    settings = [
        v["settings"] for v in facescale("lake", "versions", lake, "--json").json if v["table"] == "faces"
    ]
    assert [entry["min_face_px"] for entry in settings] == [80]  # of the flag

    config.write_text("extract: {min_face: 80}\n")
    answer = facescale("extract", crawl.source, lake, "--config", config)
    assert answer.code == 2
    assert str(config) in answer.err and "extract.min_face is not known; known here:" in answer.err
    assert "min_face_px" in answer.err


def test_labels_from_a_file_and_versions(crawl: Crawl, lake: Path, tmp_path: Path) -> None:
    """Folder labels are there; a CSV makes another version, which can be taken back, and the other one removed."""
    names = {path: "Ada" if path.parent.name == "ann" else "Bo" for path in crawl.source.rglob("*.*")}
    labels = tmp_path / "labels.csv"
    rows = [
        f'"{path.relative_to(crawl.source)}",{name}' for path, name in names.items() if path.suffix != ".webp"
    ]
    labels.write_text("\n".join(["file,person", *rows, "gone.jpg,Nobody"]) + "\n")
    flags = (
        "--labels",
        labels,
        "--label-column",
        "person",
        "--path-column",
        "file",
        "--min-face-px",
        "80",
        *HERE,
    )
    answer = facescale("extract", crawl.source, lake, *flags, "--json")
    assert answer.code == 0, answer.err
    extract, label = answer.json["stages"]
    assert (extract["parts_run"], label["parts_run"]) == (0, 1)
    assert (label["counters"]["labels"], label["counters"]["unlabeled"]) == (NUM_IMAGES - 1, 1)
    assert "1 images have no label" in label["notes"]

    versions = [v for v in facescale("lake", "versions", lake, "--json").json if v["table"] == "labels"]
    (old,) = [v["fingerprint"] for v in versions if not v["current"]]
    (new,) = [v["fingerprint"] for v in versions if v["current"]]
    assert claims(lake) == ["Ada"] * 2 + ["Bo"] * 3
    assert old in facescale("lake", "versions", lake).out

    assert facescale("lake", "use", lake, "labels", "zzz").code == 2
    used = facescale("lake", "use", lake, "labels", old[:6])
    assert (used.code, used.out) == (0, f"current: labels/{old}\n")
    assert claims(lake) == sorted(name for name, count in LABELS.items() for _ in range(count))

    before = files_of(lake)
    size = sum(path.stat().st_size for path in (lake / "labels" / new).rglob("*") if path.is_file())
    would = facescale("lake", "prune", lake, "--dry-run")
    assert would.out.startswith(f"would remove labels/{new} (")
    assert files_of(lake) == before
    (gone,) = facescale("lake", "prune", lake, "--json").json
    assert gone == {"folder": f"labels/{new}", "bytes": size}
    assert not (lake / "labels" / new).exists() and (lake / "labels" / old).exists()
    assert "nothing to remove" in facescale("lake", "prune", lake).out
    assert facescale("lake", "verify", lake).code == 0


def claims(lake: Path) -> list[str]:
    (table,) = [table for folder, table in current_tables(lake).items() if folder.startswith("labels/")]
    return sorted(table.column("label").to_pylist())


def test_another_embedder_by_plugin(crawl: Crawl, lake: Path, tiny: tuple[str, str], tmp_path: Path) -> None:
    """Nothing is detected again; index and search know both models, and refuse to mix them."""
    before = files_of(lake)
    unknown = facescale("embed", lake, "--embedder", "tiny", *HERE)
    assert (unknown.code, "there is no embedder 'tiny'" in unknown.err) == (2, True)
    absent = facescale("embed", lake, "--embedder", "tiny", "--plugin", "no_such_module", *HERE)
    assert (absent.code, "plug-in no_such_module cannot be imported" in absent.err) == (2, True)
    (planned,) = facescale("embed", lake, "--embedder", "tiny", *tiny, "--dry-run", "--json").json["stages"]
    assert (planned["tables"], planned["parts"]) == (["embeddings"], 1)
    answer = facescale("embed", lake, "--embedder", "tiny", *tiny, *HERE, "--json")
    assert answer.code == 0, answer.err
    (stage,) = answer.json["stages"]
    assert (stage["parts_run"], stage["counters"]) == (1, {"faces": NUM_FACES})
    kept = {path: state for path, state in before.items() if not path.endswith("lake.yaml")}
    assert kept.items() < files_of(lake).items()
    (vectors,) = [t for folder, t in current_tables(lake).items() if folder.startswith("embeddings/tiny-")]
    assert vectors.schema.field("embedding").type == pa.list_(pa.float16(), 16)
    (again,) = facescale("embed", lake, "--embedder", "tiny", *tiny, *HERE, "--json").json["stages"]
    assert (again["parts_run"], again["parts_kept"]) == (0, 1)

    query = crawl.source / "ann" / "0.png"
    early = facescale("search", lake, query, "--embedder", "tiny", *tiny)
    assert early.code == 2
    assert f"facescale index {lake} --embedder tiny" in early.err
    assert facescale("index", lake, "--embedder", "tiny", *tiny, *HERE).code == 0
    hits = facescale("search", lake, query, "--embedder", "tiny", *tiny, "--json").json["hits"]
    assert hits[0]["uri"] == str(query)
    export = tmp_path / "tiny.parquet"
    pq.write_table(vectors, export)
    mixed = facescale("search", lake, export)
    assert mixed.code == 2
    assert f"{export}: its embeddings have 16 dimensions, and the index of {MODEL} has 128" in mixed.err
    assert facescale("lake", "verify", lake).code == 0


def test_info_and_verify(crawl: Crawl, lake: Path) -> None:
    info = facescale("lake", "info", lake, "--json").json
    assert (info["planned"], info["faces"], info["superseded"]) == (NUM_IMAGES, NUM_FACES, 0)
    assert info["statuses"] == {"ok": NUM_IMAGES}
    rows = {version["table"]: version["rows"] for version in info["current"]}
    assert rows["images"] == rows["labels"] == NUM_IMAGES
    assert rows["faces"] == rows["crops"] == rows["embeddings"] == NUM_FACES
    assert sum(v["bytes"] for v in info["current"]) <= sum(
        f.stat().st_size for f in lake.rglob("*") if f.is_file()
    )
    faces = next(t for folder, t in current_tables(lake).items() if folder.startswith("faces/"))
    for column in ("sharpness", "brightness", "contrast", "yaw_deg", "truncation", "quality"):
        assert faces[column].null_count == 0, column
    assert faces["pitch_deg"].null_count == NUM_FACES  # the default landmarks have no mouth
    assert min(faces["quality"].to_pylist()) > 0.3
    text = facescale("lake", "info", lake).out
    assert all(version["fingerprint"] in text for version in info["current"])

    sound = facescale("lake", "verify", lake)
    assert (sound.code, "no problem found" in sound.out) == (0, True)
    (faces,) = lake.glob("faces/*/*/*.parquet")
    faces.write_bytes(faces.read_bytes()[:-20])
    broken = facescale("lake", "verify", lake, "--json")
    assert broken.code == 1
    assert any(str(faces.relative_to(lake)) in p["path"] and p["remedy"] for p in broken.json["problems"])
    assert "problems" in facescale("lake", "verify", lake).out


def test_search_with_images_and_folders(crawl: Crawl, tmp_path: Path) -> None:
    query = crawl.source / "ann" / "0.png"
    found = facescale("search", crawl.lake, query, "-k", "4", "--json")
    assert found.code == 0, found.err
    answer = found.json
    assert (answer["queries"], len(answer["hits"]), answer["recall"]) == (1, 4, 1.0)
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3, 4]
    best = answer["hits"][0]
    assert (best["uri"], best["label"], best["query"]) == (str(query), "ann", str(query))
    assert best["similarity"] == pytest.approx(1, abs=2e-3)  # of itself, stored in half precision
    assert isinstance(best["face_id"], str) and len(best["box"]) == 4
    similarities = [hit["similarity"] for hit in answer["hits"]]
    assert similarities == sorted(similarities, reverse=True)

    only = facescale("search", crawl.lake, query, "--label", "bob", "--json").json
    assert {hit["label"] for hit in only["hits"]} == {"bob"} and len(only["hits"]) == 4
    near = facescale("search", crawl.lake, query, "--min-similarity", "0.999", "--json").json
    assert [hit["uri"] for hit in near["hits"]] == [str(query)]

    (faces,) = [t for folder, t in current_tables(crawl.lake).items() if folder.startswith("faces/")]
    quality = dict(zip(faces["face_id"].to_pylist(), faces["quality"].to_pylist(), strict=True))
    bound = sorted(quality.values())[2]  # as float32, what is stored
    sharp = facescale("search", crawl.lake, query, "-k", "50", "--min-quality", str(bound), "--json").json
    assert {int(hit["face_id"]) for hit in sharp["hits"]} == {f for f, q in quality.items() if q >= bound}
    assert facescale("search", crawl.lake, query, "--min-quality", "2").code == 2

    output = tmp_path / "hits.parquet"
    folder = facescale("search", crawl.lake, crawl.source, "-k", "1", "--out", output)
    assert folder.code == 0, folder.err
    hits = pq.read_table(output)
    assert hits.num_rows == NUM_FACES
    assert all(
        q.startswith(uri) for q, uri in zip(*(hits[c].to_pylist() for c in ("query", "uri")), strict=True)
    )
    assert sum("#face" in name for name in hits["query"].to_pylist()) == 2  # of the image with two
    assert "cat/0.png: no face found" in folder.err  # a query that gives none is told, the others go on
    assert str(output) in folder.out
    assert f"{NUM_FACES} queries on index/{MODEL}-" in folder.out


def test_search_with_embeddings(crawl: Crawl, tmp_path: Path) -> None:
    (stored,) = [t for folder, t in current_tables(crawl.lake).items() if folder.startswith("embeddings/")]
    queries = tmp_path / "queries.parquet"
    pq.write_table(stored, queries)
    hits = facescale("search", crawl.lake, queries, "-k", "1", "--json").json["hits"]
    assert (
        [hit["face_id"] for hit in hits]
        == [hit["query"] for hit in hits]
        == [str(face_id) for face_id in stored["face_id"].to_pylist()]
    )
    rng = np.random.default_rng(0)
    for dim, kind, says in ((64, "wrong", "128"), (0, "none", "embedding")):
        file = tmp_path / f"{kind}.parquet"
        columns = (
            {"embedding": list(rng.standard_normal((3, dim)).astype(np.float32))} if dim else {"vector": [1]}
        )
        pq.write_table(pa.table(columns), file)
        refused = facescale("search", crawl.lake, file)
        assert refused.code in (1, 2), refused.out
        assert str(file) in refused.err and says in refused.err
    assert facescale("search", crawl.lake, tmp_path / "wrong.parquet").code == 2


def test_search_refuses_what_gives_no_face(crawl: Crawl, tmp_path: Path) -> None:
    blank = tmp_path / "blank.png"
    blank.write_bytes(encoded(noise(1), "png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(blank.read_bytes()[:100])
    for query, says in (
        (blank, "no face found; try a larger or more frontal photograph"),
        (broken, "truncated: "),
        (tmp_path / "missing.jpg", "does not exist"),
        (tmp_path / "missing.parquet", "cannot be read"),
    ):
        answer = facescale("search", crawl.lake, query)
        assert answer.code == 2, answer.out
        assert str(query) in answer.err and says in answer.err


def test_usage_errors_are_told_in_one_line(crawl: Crawl, tmp_path: Path) -> None:
    for arguments, says in (
        (("extract", crawl.source), "Missing argument 'LAKE'"),
        (("extract", crawl.source, tmp_path / "lake", "--min-face", "80"), "No such option"),
        (("extract", crawl.source, tmp_path / "lake", "--device", "tpu"), "engine.device: "),
        (("extract", crawl.source, tmp_path / "lake", "--detector", "dlib_mmof"), "did you mean dlib_mmod"),
        (("run", crawl.source, "memory://lake"), "Use --workers 0, or a lake on disk"),
        (("index", crawl.lake, "--backend", "annoy"), "index.backend: "),
    ):
        answer = facescale(*arguments)
        assert answer.code == 2, answer.err
        assert answer.out == ""
        assert answer.err.startswith("error: ") and says in answer.err
        assert len(answer.err.splitlines()) == 1
    assert not (tmp_path / "lake").exists()
