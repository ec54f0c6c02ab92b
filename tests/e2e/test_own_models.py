"""A user's own model through the commands: registered, or described by a card with an address, then run."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from e2e_samples import face, facescale
from onnx_samples import pooling_network
from weights_server import weights_server

from facescale.models import registry

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "MODELS.md"
FAST = ("--min-face-px", "80", "--threads", "1", "--workers", "0")


def documented_card() -> str:
    """The card that docs/MODELS.md shows as the example."""
    (text,) = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    return str(text)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photographs, and folders for cards and weights that nobody used before."""
    monkeypatch.setenv("FACESCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FACESCALE_CARDS", str(tmp_path / "cards"))
    monkeypatch.delenv("FACESCALE_OFFLINE", raising=False)
    monkeypatch.delenv("FACESCALE_WEIGHTS", raising=False)
    monkeypatch.setattr(registry, "_registered", cache(registry._registered.__wrapped__))
    (tmp_path / "photos").mkdir()
    for degrees in (0, 4):
        face(170, degrees).save(tmp_path / "photos" / f"{degrees}.png")
    return tmp_path


def versions(lake: Path, table: str) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(lake.glob(f"{table}/*/_version.json"))]


def test_the_documented_card_registers_and_runs(home: Path) -> None:
    lake, weights = home / "lake", home / "my_recognizer.onnx"
    card = documented_card().replace("dim: 512", "dim: 27")
    assert len(card.strip().splitlines()) == 15
    # The guide's model takes the landmarks of other detectors; the test's those of the default ones.
    card = card.replace("arcface_112", "dlib_150").replace("arcface5", "dlib5").replace("112", "150")
    (home / "my_recognizer.yaml").write_text(card)
    weights.write_bytes(pooling_network(150, 3))
    told = facescale("models", "register", weights, "--card", home / "my_recognizer.yaml")
    assert told.code == 0, told.err
    weights.unlink()

    refused = facescale("extract", home / "photos", lake, "--embedder", "my_recognizer", *FAST)
    assert refused.code == 2 and "--accept-license" in refused.err and not lake.exists()
    plan = facescale("extract", home / "photos", lake, "--embedder", "my_recognizer", "--dry-run")
    assert plan.code == 2 and "--accept-license" in plan.err
    flags = ("--embedder", "my_recognizer", "--accept-license", "--offline")
    done = facescale("run", home / "photos", lake, *flags, *FAST, "--no-report")
    assert done.code == 0, done.err
    (made,) = versions(lake, "embeddings")
    digest = hashlib.sha256(pooling_network(150, 3)).hexdigest()
    assert made["settings"]["embedder_sha256"] == digest
    assert made["licences"]["my_recognizer"]["accepted"] is True
    assert versions(lake, "faces")[0]["licences"]["dlib_mmod"]["licence"] == "CC0-1.0"
    (part,) = lake.glob("embeddings/*/*/*.parquet")
    vectors = np.stack(pq.read_table(part)["embedding"].to_numpy())
    assert vectors.shape == (2, 27)
    found = facescale(
        "search", lake, home / "photos" / "0.png", "--embedder", "my_recognizer", "-k", "1", "--json"
    )
    assert found.json["hits"][0]["uri"].endswith("0.png")

    refused = facescale("embed", lake, "--embedder", "my_recognizer", "--workers", "0")
    assert refused.code == 2 and "--accept-license" in refused.err


def test_a_model_is_downloaded_when_a_job_needs_it(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    lake, content = home / "lake", pooling_network(150, 3)
    with weights_server() as server:
        server.files["/mine.onnx"] = (content, '"tag"')
        (home / "cards").mkdir()
        (home / "cards" / "served.yaml").write_text(
            "{name: served, task: embedder, architecture: onnx, file: mine.onnx, licence: NC, non_commercial: true, "
            "source: here, input_size: 150, template: dlib_150, landmark_scheme: dlib5, dim: 27, "
            f"urls: ['{server.url('/mine.onnx')}']}}"
        )
        command = ("extract", home / "photos", lake, "--embedder", "served", *FAST)
        refused = facescale(*command)
        assert refused.code == 2 and "--accept-license" in refused.err and server.requests == []
        command = (*command, "--accept-license")
        refused = facescale(*command, "--offline")
        assert refused.code == 2 and "models pull served" in refused.err and not lake.exists()
        server.files.clear()
        gone = facescale(*command)
        assert gone.code == 1 and "HTTP 404" in gone.err and not lake.exists()
        server.files["/mine.onnx"] = (content, '"tag"')
        done = facescale(*command)
        assert done.code == 0, done.err
        assert re.search(r"served: downloading its weights from \S+mine.onnx \(NC\)", done.err)
        assert "gives no sha256" in caplog.text
        pulled = facescale("models", "pull", "served", "--json")
        assert (pulled.json[0]["downloaded"], pulled.code) == (False, 0)
        shown = facescale("models", "show", "served", "--json").json
        assert shown["recorded_sha256"] == hashlib.sha256(content).hexdigest()
    (made,) = versions(lake, "embeddings")
    assert made["settings"]["embedder_sha256"] == hashlib.sha256(content).hexdigest()
    again = facescale(*command, "--offline", "--json")
    assert again.code == 0 and again.json["stages"][0]["parts_run"] == 0
    assert len(versions(lake, "embeddings")) == 1


def test_workers_need_no_card_of_their_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machines of a cluster have the weights, in a folder that they share, but not the user's cards."""
    lake, weights = home / "lake", home / "mine.onnx"
    weights.write_bytes(pooling_network(150, 3))
    (home / "mine.yaml").write_text(
        "{name: mine, task: embedder, architecture: onnx, licence: MIT, non_commercial: false, source: here, "
        "input_size: 150, template: dlib_150, landmark_scheme: dlib5, dim: 27}"
    )
    assert facescale("models", "register", weights, "--card", home / "mine.yaml").code == 0
    monkeypatch.setenv("FACESCALE_CARDS", str(home / "nothing here"))  # what Ray's workers inherit
    flags = ("--embedder", "mine", "--min-face-px", "80", "--threads", "1", "--workers", "1")
    done = facescale("extract", home / "photos", lake, *flags)
    assert done.code == 0, done.err
    (made,) = versions(lake, "embeddings")
    assert made["settings"]["embedder_sha256"] == hashlib.sha256(pooling_network(150, 3)).hexdigest()
