"""Configuration: file, flags on top, and complaints that name the field and what is allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pydantic
import pytest

from facescale.config.engine import EngineConfig
from facescale.config.extract import ExtractConfig
from facescale.config.index import SearchConfig
from facescale.config.job import JobConfig
from facescale.config.load import load_config
from facescale.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

FILE = """
src: /photos
lake: /lake
extract: {min_face_px: 80, precision: bf16, plugins: [one, two]}
engine:
  workers: 3
max_failures: 0.1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_file_then_flags_then_defaults(file: Path) -> None:
    flags = {"engine.workers": 0, "extract.embedder": None, "labels.source": "folder", "lake": "/other"}
    config = load_config(JobConfig, file=str(file), overrides=flags)
    assert (config.src, config.lake, config.max_failures) == ("/photos", "/other", 0.1)
    assert (config.extract.min_face_px, config.extract.plugins) == (80, ("one", "two"))
    assert config.engine.workers == 0  # a flag, and no less so for being 0
    assert config.labels.source == "folder"
    assert config.extract.embedder == ExtractConfig().embedder  # None is a flag that was not given
    assert config.index == JobConfig(lake="x").index


def test_text_becomes_what_the_field_is(file: Path) -> None:
    """`--set key=value` of a Ray job gives nothing but text."""
    pairs = {"engine.workers": "2", "accept_changes": "true", "index.memory_gib": "0.5"}
    config = load_config(JobConfig, file=str(file), overrides=pairs)
    assert (config.engine.workers, config.accept_changes, config.index.memory_gib) == (2, True, 0.5)


def test_an_empty_file_is_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert load_config(JobConfig, file=str(path), overrides={"lake": "x"}) == JobConfig(lake="x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "lake: x\nextract: {min_face: 80}\n",
            "extract.min_face is not known; known here: accelerate, accept_license, decode_threads",
        ),
        ("lake: x\nworkers: 2\n", "workers is not known; known here: accept_changes, annotate, clean"),
        ("src: x\n", "lake is required"),
        ("lake: x\nextract: {min_face_px: 4}\n", "min_face_px: Input should be greater than or equal to 16 (got 4)"),
        ("lake: x\nextract: {precision: int8}\n", "precision: Input should be 'auto', 'fp32', 'bf16' or 'fp16'"),
        ("lake: x\nengine: {workers: many}\n", "engine.workers: Input should be a valid integer"),
        ("lake: x\nmax_failures: 50\n", "max_failures: Input should be less than or equal to 1 (got 50)"),
        ("lake: x\nextract: 5\n", "extract: Input should be a valid dictionary"),
        ("- lake\n", "must hold sections and keys, not a list"),
        ("lake: [\n", "is not YAML"),
        ("lake: \xe4\n", "is not YAML"),
    ],
)  # fmt: skip
def test_complaints_name_file_field_and_what_is_allowed(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as raised:
        load_config(JobConfig, file=str(path))
    assert says in str(raised.value)
    assert str(path) in str(raised.value)


def test_every_complaint_at_once(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("lake: x\nengine: {workers: -1, thread: 2}\n")
    with pytest.raises(UsageError, match=r"engine\.workers: .*; engine\.thread is not known"):
        load_config(JobConfig, file=str(path))


def test_a_missing_file_and_a_flag_for_a_section_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml cannot be read: No such file"):
        load_config(JobConfig, file=str(tmp_path / "none.yaml"))
    path = tmp_path / "job.yaml"
    path.write_text("lake: x\nengine: 5\n")
    with pytest.raises(UsageError, match="engine is a section, not 5"):
        load_config(JobConfig, file=str(path), overrides={"engine.workers": 1})
    with pytest.raises(UsageError, match=r"^configuration: k: "):  # without a file none is named
        load_config(SearchConfig, overrides={"k": 0})


@pytest.mark.parametrize("model", [JobConfig, EngineConfig, ExtractConfig, SearchConfig])
def test_configurations_are_frozen_and_documented(model: Any) -> None:
    config = model(lake="x") if model is JobConfig else model()
    name = next(iter(model.model_fields))
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(config, name, "changed")
    assert all(field.description for field in model.model_fields.values())


@pytest.mark.parametrize(("precision", "becomes"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")])
def test_automatic_precision_is_resolved(precision: Any, becomes: str) -> None:
    assert ExtractConfig(precision=precision).arithmetic == becomes
