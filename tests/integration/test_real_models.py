"""The main job with third-party models on real photographs: whose landmarks, whose weights, what is refused."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import facescale
from facescale.config.job import JobConfig
from facescale.driver import extract as extract_driver
from facescale.driver.lake_chips import sample_chips
from facescale.driver.quantize import quantize_model
from facescale.errors import MismatchError, UsageError
from facescale.lake.ids import image_id_of
from facescale.lake.lake import Lake
from facescale.models import registry
from facescale.models.registry import card, choose_scheme
from facescale.pipeline import run_job
from facescale.vision.quantize import quantize_onnx
from facescale.vision.registry import load_embedder

PAIR = {"detector": "yunet_n", "embedder": "mobilefacenet"}


@pytest.fixture(scope="module")
def photos(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photographs of people with at least 4 each, and a label file."""
    folder = tmp_path_factory.mktemp("photos")
    with (test_data / "labels.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["kind"] == "single" and row["identity"]]
    by_person: dict[str, list[str]] = {}
    for row in rows:
        by_person.setdefault(row["identity"], []).append(row["path"])
    lines = ["path,identity"]
    for person in sorted(name for name, paths in by_person.items() if len(paths) >= 4)[:6]:
        for path in by_person[person][:4]:
            name = Path(path).name
            (folder / name).symlink_to(test_data / path)
            lines.append(f"{name},{person}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def lake(photos: Path, shared_root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    where = str(tmp_path_factory.mktemp("lakes") / "yunet.lake")
    summary = facescale.run(
        photos,
        where,
        labels=photos / "labels.csv",
        label_column="identity",
        weights_dir=shared_root / "models",
        workers=0,
        threads=1,
        no_report=True,
        **PAIR,
    )
    assert summary.exit_code == 0
    return where


def test_people_are_nearest_to_themselves(lake: str) -> None:
    opened = facescale.Lake.open(lake)
    assert (opened.images().num_faces >= 1).all()
    found = opened.embeddings("mobilefacenet")
    claims = opened.table("labels", ["image_id", "label"])
    people = dict(zip(claims["image_id"].to_pylist(), claims["label"].to_pylist(), strict=True))
    similarity = found.vectors @ found.vectors.T
    np.fill_diagonal(similarity, -1)
    owner = np.array([people[image] for image in image_id_of(found.face_id).tolist()])
    largest = np.flatnonzero(opened.faces().quality > 0.5)  # bystanders are small
    assert (owner[similarity.argmax(axis=1)] == owner)[largest].mean() >= 0.95


def test_versions_say_which_landmarks_weights_and_runtime_made_them(lake: str) -> None:
    opened = Lake.open(lake)
    faces, embeddings = opened.current("faces"), opened.current("embeddings", "mobilefacenet")
    assert faces is not None and embeddings is not None
    made = (opened.describe_version(faces) or {})["settings"]
    assert (made["detector"], made["landmark_scheme"], made["backend"]) == ("yunet_n", "arcface5", "onnx")
    assert "landmarker" not in made  # the detector's own are used
    assert (opened.describe_version(embeddings) or {})["settings"]["embedder_sha256"] in card(
        "mobilefacenet"
    ).digests


def test_a_query_photograph_goes_through_the_same_models(
    lake: str, photos: Path, shared_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACESCALE_WEIGHTS", str(shared_root / "models"))
    photo = sorted(photos.glob("*.jpg"))[0]
    with facescale.Searcher.open(lake, embedder="mobilefacenet", threads=1) as searcher:
        best = searcher.search_files([photo], k=1).rows()[0]
    assert best.uri.endswith(photo.name) and best.similarity > 0.99


def test_mirrored_faces_make_another_version_and_queries_follow_it(
    lake: str, photos: Path, shared_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In torch, too: the numbers of both runtimes are the same, but their versions are not."""
    copy = tmp_path / "flip.lake"
    shutil.copytree(lake, copy)
    plain = facescale.Lake.open(copy).embeddings("mobilefacenet").vectors
    where = {"weights_dir": shared_root / "models", "workers": 0, "threads": 1}
    monkeypatch.setenv("FACESCALE_WEIGHTS", str(shared_root / "models"))
    made = []
    for options in ({}, {"runtime": "torch"}, {"flip": True}):
        assert not facescale.embed(copy, embedder="mobilefacenet", **where, **options).exit_code
        opened = Lake.open(str(copy))
        version = opened.current("embeddings", "mobilefacenet")
        assert version is not None
        settings = (opened.describe_version(version) or {})["settings"]
        vectors = facescale.Lake.open(copy).embeddings("mobilefacenet").vectors
        made.append((version.fingerprint, settings, vectors))
    (_, onnx, crops), (_, torch, other), (_, flip, mirrored) = made
    assert len({fingerprint for fingerprint, _, _ in made}) == 3
    assert (onnx["backend"], torch["backend"], flip["flip"]) == ("onnx", "torch", True)
    assert "flip" not in onnx
    np.testing.assert_allclose(other, crops, atol=1e-3)  # float16
    assert 0.9 < np.median((mirrored * plain).sum(axis=1)) < 0.9995
    assert not facescale.build_index(copy, embedder="mobilefacenet", workers=0).exit_code
    photo = sorted(photos.glob("*.jpg"))[0]
    with facescale.Searcher.open(copy, embedder="mobilefacenet", threads=1) as searcher:
        best = searcher.search_files([photo], k=1).rows()[0]
    assert best.uri.endswith(photo.name) and best.similarity > 0.995


def test_an_embedder_in_8_bit_integers_is_a_model_of_ones_own(
    lake: str, shared_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setenv("FACESCALE_WEIGHTS", str(shared_root / "models"))
    monkeypatch.setenv("FACESCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FACESCALE_CARDS", str(tmp_path / "cards"))
    monkeypatch.setattr(registry, "_registered", cache(registry._registered.__wrapped__))
    made = quantize_model("mobilefacenet", lake, faces=24)
    whole = card("mobilefacenet").size_bytes or 0
    assert made.card.name == "mobilefacenet_int8" and (made.card.size_bytes or whole) < whole / 2
    assert made.card.sha256 != card("mobilefacenet").sha256 and not made.card.accuracy
    chips = sample_chips(Lake.open(lake), made.card, 24)
    exact, coarse = (load_embedder(name).embed(chips) for name in ("mobilefacenet", "mobilefacenet_int8"))
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(coarse, axis=1)
    cosine = (exact * coarse).sum(axis=1) / lengths
    assert 0.9 < cosine.min() and 0.97 < cosine.mean() < 0.99999
    with pytest.raises(UsageError, match="dlib_resnet' has no ONNX file"):
        quantize_onnx(card("dlib_resnet"), chips, tmp_path / "x.onnx")
    with pytest.raises(UsageError, match="no faces to calibrate with"):
        quantize_onnx(card("mobilefacenet"), chips[:0], tmp_path / "x.onnx")


def test_an_embedder_for_other_landmarks_is_refused_with_the_remedy(lake: str) -> None:
    with pytest.raises(MismatchError, match=r"aligned by dlib5 landmarks, but the faces of .* have arcface5"):
        facescale.embed(lake, embedder="dlib_resnet", workers=0)


def test_whose_landmarks_are_used() -> None:
    yunet, mmod = card("yunet_n"), card("dlib_mmod")
    dlib5, dlib, arcface = card("dlib_5pt"), card("dlib_resnet"), card("mobilefacenet")
    assert choose_scheme(yunet, dlib5, arcface) == ("arcface5", True)
    assert choose_scheme(mmod, dlib5, dlib) == ("dlib5", False)
    assert choose_scheme(yunet, dlib5, dlib) == ("dlib5", False)  # five eye corners are not five face parts
    with pytest.raises(MismatchError, match=r"dlib_mmod gives none and dlib_5pt gives dlib5: .*--landmarker"):
        choose_scheme(mmod, dlib5, arcface)


def test_weights_that_are_nowhere_are_a_clear_refusal(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FACESCALE_WEIGHTS", raising=False)
    with pytest.raises(UsageError, match="yunet_n"):
        facescale.extract(photos, tmp_path / "x.lake", weights_dir=tmp_path, workers=0, **PAIR)


def test_a_higher_threshold_makes_another_version_with_fewer_faces(
    lake: str, photos: Path, shared_root: Path, tmp_path: Path
) -> None:
    strict = tmp_path / "strict.lake"
    where = shared_root / "models"
    facescale.extract(photos, strict, det_threshold=0.93, weights_dir=where, workers=0, threads=1, **PAIR)
    scores = facescale.Lake.open(strict).faces().det_score
    before = facescale.Lake.open(lake).faces().det_score
    assert len(scores) == (before > 0.93).sum() < len(before)
    first, second = Lake.open(strict).current("images"), Lake.open(lake).current("images")
    assert first is not None and first != second


@pytest.mark.parametrize("detect_ahead", [False, True])  # True is what a GPU gets
def test_tables_do_not_depend_on_how_the_work_is_cut(
    lake: str,
    photos: Path,
    shared_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    detect_ahead: bool,
) -> None:
    make = extract_driver._stage_settings
    monkeypatch.setattr(
        extract_driver,
        "_stage_settings",
        lambda *given: dataclasses.replace(make(*given), detect_ahead=detect_ahead),
    )
    other = tmp_path / "cut.lake"
    where = shared_root / "models"
    sizes = {"micro_batch": 5, "embed_batch": 3, "decode_threads": 3, "weights_dir": str(where), **PAIR}
    config = {
        "src": str(photos),
        "lake": str(other),
        "extract": sizes,
        "engine": {"workers": 0, "threads": 2},
    }
    assert run_job("extract", JobConfig.model_validate(config)).exit_code == 0
    for table, model in (("images", None), ("faces", None), ("crops", None), ("embeddings", "mobilefacenet")):
        first, second = (facescale.Lake.open(at).table(table, model=model) for at in (lake, other))
        assert first.num_rows >= 24 and first.equals(second)
