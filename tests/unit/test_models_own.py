"""The user's own models: registered once, found by every later command, on every machine of a job."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from onnx_samples import pooling_network

from facescale.config.extract import ExtractConfig
from facescale.driver import models_used
from facescale.driver.model_bench import bench_model
from facescale.driver.models import list_models, pull_models, register, show_model, verify_models
from facescale.errors import CorruptError, UsageError
from facescale.models import cache, registry
from facescale.models.access import ModelAccess, current, entered, is_offline
from facescale.models.card import ModelCard
from facescale.models.registry import card, register_card
from facescale.models.weights import find_weights, read_weights
from facescale.vision.registry import load_embedder

FIELDS: dict[str, Any] = {
    "name": "mine",
    "task": "embedder",
    "architecture": "onnx",
    "licence": "research only",
    "non_commercial": True,
    "source": "https://example.org/mine",
    "input_size": 112,
    "mean": 127.5,
    "scale": 127.5,
    "template": "arcface_112",
    "landmark_scheme": "arcface5",
    "dim": 12,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folders for cards and weights, and a registry of the test's own."""
    monkeypatch.setenv("FACESCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FACESCALE_CARDS", str(tmp_path / "cards"))
    monkeypatch.delenv("FACESCALE_WEIGHTS", raising=False)
    table = dict(registry._registered())
    monkeypatch.setattr(registry, "_registered", lambda: table)
    return tmp_path


def written(folder: Path, content: bytes | None = None, **changes: Any) -> tuple[str, str]:
    """The two files that a user has: weights and card."""
    weights, text = folder / "mine.onnx", folder / "mine.yaml"
    weights.write_bytes(pooling_network() if content is None else content)
    values = {key: value for key, value in (FIELDS | changes).items() if value is not None}
    text.write_text(yaml.safe_dump(values))
    return str(weights), str(text)


def in_another_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_registered_model_is_there_for_good(home: Path) -> None:
    weights, text = written(home)
    content = Path(weights).read_bytes()
    done = register(weights, text)
    digest = hashlib.sha256(content).hexdigest()
    assert (done.card.sha256, done.card.size_bytes, done.card.file) == (digest, len(content), "mine.onnx")
    assert any("chips tensor(float) ['N', 3, 112, 112]" in remark for remark in done.remarks)
    os.remove(weights)
    os.remove(text)
    assert card("mine", "embedder") == done.card
    assert read_weights(done.card) == content
    assert find_weights(done.card) == done.weights_path == home / "cache/weights" / digest / "mine.onnx"
    code = "from facescale.driver.models import verify_models; print(verify_models(['mine'])[0].ok)"
    assert in_another_process(code) == "True"

    chips = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
    means = (chips.astype(np.float64).reshape(5, 2, 56, 2, 56, 3).mean(axis=(2, 4)) - 127.5) / 127.5
    expected = means.transpose(0, 3, 1, 2).reshape(5, 12)
    np.testing.assert_allclose(load_embedder("mine").embed(chips), expected, atol=1e-5)


def test_registering_twice_is_no_trouble_and_replacing_is_meant(home: Path) -> None:
    register(*written(home))
    register(*written(home))
    with pytest.raises(UsageError, match=r"mine\.yaml is another card of the name 'mine'.*--replace"):
        register(*written(home, licence="MIT"))
    assert card("mine").licence == "research only"
    register(*written(home, licence="MIT"), replace=True)
    assert card("mine").licence == "MIT"
    with pytest.raises(UsageError, match="'dlib_resnet' is registered already"):
        register(*written(home, name="dlib_resnet"), replace=True)


def test_a_link_leaves_the_weights_where_they_are(home: Path) -> None:
    weights, text = written(home)
    done = register(weights, text, link=True)
    assert done.weights_path.is_symlink() and done.weights_path.resolve() == Path(weights).resolve()
    Path(weights).write_bytes(b"other")
    with pytest.raises(CorruptError, match="not the weights of model 'mine'"):
        read_weights(done.card)


@pytest.mark.parametrize(
    ("content", "changes", "says"),
    [
        (None, {"dim": 128}, r"first output is \[2, 12\], but the card's dim is 128"),
        (None, {"input_size": 96}, r"\['N', 3, 112, 112\]; the card's input_size is 96"),
        (pooling_network(channels=1), {}, "N × 3 × height × width, is needed.*layout: nhwc"),
        (pooling_network(layout="nhwc"), {}, r"\['N', 112, 112, 3\].*layout: nhwc"),
        (None, {"options": {"layout": "nhwc"}}, "N × height × width × 3, is needed"),
        (b"no network", {}, "ONNX Runtime cannot load it"),
        (None, {"architecture": "resnot"}, r"no embedder architecture 'resnot'; there are .*onnx"),
        (None, {"licence": None}, "field 'licence' is missing"),
        (None, {"sha256": "0" * 64}, "field 'sha256' is 0000"),
        (None, {"size_bytes": 5}, "field 'size_bytes' is 5"),
        (None, {"package": "pip", "extra": "onnx"}, "field 'package'"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_kept(
    home: Path, content: bytes | None, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises((UsageError, CorruptError), match=says):
        register(*written(home, content, **changes))
    assert not (home / "cards").exists() and not (home / "cache" / "weights").exists()


def test_free_sides_and_single_chips_are_fine(home: Path) -> None:
    assert register(*written(home, pooling_network(free_side=True))).card.dim == 12
    single = register(*written(home, pooling_network(batch=1), name="single"))
    assert "it takes 1 chips at a time" in single.remarks[-1]
    chips = np.zeros((3, 112, 112, 3), np.uint8)
    np.testing.assert_allclose(load_embedder("single", batch=2).embed(chips), -1, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ({"batch": 4}, {}),
        ({"kind": 10}, {}),
        ({"layout": "nhwc"}, {"layout": "nhwc"}),
        ({"layout": "nhwc", "batch": 3, "kind": 10}, {"layout": "nhwc"}),
    ],
)
def test_other_inputs_give_the_same_numbers(
    home: Path, network: dict[str, Any], options: dict[str, str]
) -> None:
    register(*written(home, pooling_network(**network), options=options))
    chips = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
    means = (chips.astype(np.float64).reshape(5, 2, 56, 2, 56, 3).mean(axis=(2, 4)) - 127.5) / 127.5
    expected = means.transpose(0, 3, 1, 2).reshape(5, 12)
    for flip in (False, True):
        found = load_embedder("mine", batch=4, flip=flip).embed(chips)
        np.testing.assert_allclose(found, expected, atol=2e-3)
        # Mirrored, the fields of a row change places.
        expected = (expected + means[:, :, ::-1].transpose(0, 3, 1, 2).reshape(5, 12)) / 2


def test_files_that_are_not_there(home: Path) -> None:
    weights, text = written(home)
    with pytest.raises(UsageError, match=r"none\.onnx: cannot be read: No such file"):
        register(str(home / "none.onnx"), text)
    with pytest.raises(UsageError, match=r"none\.yaml: cannot be read"):
        register(weights, str(home / "none.yaml"))
    Path(text).write_bytes(bytes(range(128, 256)))
    with pytest.raises(UsageError, match="a model card is UTF-8 text"):
        register(weights, text)


def test_a_bad_card_of_the_users_names_its_file(home: Path) -> None:
    """Read in another process, as the registry is read once."""
    (home / "cards").mkdir()
    code = (
        "from facescale.errors import UsageError\nfrom facescale.models.registry import cards\n"
        "try:\n    cards()\nexcept UsageError as error:\n    print(error)"
    )
    (home / "cards" / "bad.yaml").write_text("name: bad\n")
    assert "bad.yaml: field 'task' is missing" in in_another_process(code)
    (home / "cards" / "bad.yaml").write_text(
        yaml.safe_dump(FIELDS | {"name": "dlib_resnet", "file": "mine.onnx"})
    )
    assert "bad.yaml: a model 'dlib_resnet' is there already" in in_another_process(code)


def test_workers_know_the_cards_of_their_job(home: Path) -> None:
    """Their machine has another registry; what the driver's has travels in the stage's settings."""
    own = ModelCard(**FIELDS | {"file": "mine.onnx", "mean": (0.0,) * 3, "scale": (1.0,) * 3})
    access = pickle.loads(pickle.dumps(ModelAccess(offline=True, cards=(own,))))
    before = current()
    with entered(access):
        assert card("mine", "embedder") == own and is_offline()
    assert current() is before
    with pytest.raises(UsageError, match="no model 'mine'"):
        card("mine")


def test_the_driver_tells_workers_the_digest_it_saw(home: Path) -> None:
    content = pooling_network()
    file = home / "folder" / "mine.onnx"
    file.parent.mkdir()
    file.write_bytes(content)
    own = ModelCard(**FIELDS | {"file": "mine.onnx", "mean": (0.0,) * 3, "scale": (1.0,) * 3})
    register_card(own)
    config = ExtractConfig(embedder="mine", accept_license=True)
    os.environ["FACESCALE_WEIGHTS"] = str(file.parent)
    try:
        access = models_used.access_for_workers(config, "embed")
        digest = hashlib.sha256(content).hexdigest()
        assert [entry.sha256 for entry in access.cards] == [digest]
        assert models_used.card_to_run("mine", "embedder").sha256 == digest
        # A worker's machine has other bytes under this name, and no record of what they should be.
        file.write_bytes(pooling_network(cells=4))
        cache.record_path(own).unlink()
        with entered(access), pytest.raises(CorruptError, match=digest):
            read_weights(card("mine"))
    finally:
        del os.environ["FACESCALE_WEIGHTS"]


def test_licences_that_forbid_commercial_use_have_to_be_accepted(home: Path) -> None:
    register(*written(home, template="dlib_150", landmark_scheme="dlib5", input_size=112))
    config = ExtractConfig(embedder="mine")
    for job in ("extract", "embed"):
        with pytest.raises(
            UsageError,
            match=r"embedder mine is under research only \(https://example.org/mine\).*--accept-license",
        ):
            models_used.check_licences(config, job)
        models_used.check_licences(ExtractConfig(embedder="mine", accept_license=True), job)
    models_used.check_licences(ExtractConfig(), "extract")
    told = models_used.licences_of(models_used.cards_used(config, "embed"))
    assert told == {
        "mine": {
            "licence": "research only",
            "source": "https://example.org/mine",
            "non_commercial": True,
            "accepted": True,
        }
    }


def test_list_show_verify_pull(home: Path) -> None:
    register(*written(home))
    rows = {row.name: row for row in list_models()}
    assert (rows["mine"].non_commercial, rows["mine"].runtimes) == (True, ["onnx"])
    assert Path(rows["mine"].weights).is_file()
    assert rows["yunet_n"].weights == "to download" and rows["mobilefacenet"].weights.startswith(
        "by hand: https://"
    )
    assert {row.task for row in list_models("embedder")} == {"embedder"}
    shown = show_model("mine")
    assert shown.from_file == str(home / "cards" / "mine.yaml")
    assert shown.card["mean"] == (127.5,) * 3 and "nms_iou" not in shown.card
    assert Path(shown.weights["onnx"]).is_file()

    assert {row.name for row in verify_models() if row.ok} >= {"mine", "dlib_mmod"}
    assert {row.name: row.ok for row in verify_models(["yunet_n"])} == {"yunet_n": False}
    (pulled,) = pull_models(["mine"])
    assert (pulled.downloaded, pulled.path) == (False, rows["mine"].weights)
    Path(rows["mine"].weights).write_bytes(b"damaged")
    assert {row.name: row.ok for row in verify_models()}["mine"] is False
    with pytest.raises(CorruptError):
        pull_models(["mine"])  # there is nowhere to get it from
    with pytest.raises(UsageError, match="forbids to download"):
        pull_models(["yunet_n"])


def test_speed_alone(home: Path) -> None:
    register(*written(home))
    speed = bench_model("mine", batches=[1, 4], seconds=0)
    assert (speed.unit, speed.runtime, speed.input) == ("faces", "onnx", "112 × 112 px")
    assert [row.batch for row in speed.batches] == [1, 4]
    for row in speed.batches:
        assert row.repeats == 5 and 0 < row.fastest_ms <= row.median_ms
        assert row.per_second == pytest.approx(1000 * row.batch / row.median_ms)
    assert bench_model("dlib_mmod", batches=[1], side_px=100, min_face_px=80, seconds=0).unit == "images"
    assert bench_model("dlib_5pt", batches=[2], side_px=100, seconds=0).unit == "faces"
    with pytest.raises(UsageError, match="whole numbers from 1"):
        bench_model("mine", batches=[0])
