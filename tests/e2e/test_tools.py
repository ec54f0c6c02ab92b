"""The commands that need no lake: models, doctor, help."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from e2e_samples import facescale

from facescale.models.registry import card


def test_models() -> None:
    listed = {row["name"]: row for row in facescale("models", "list", "--json").json}
    assert {"dlib_mmod", "dlib_5pt", "dlib_resnet"} <= set(listed)
    assert listed["dlib_resnet"]["task"] == "embedder" and Path(listed["dlib_resnet"]["weights"]).is_file()
    assert all(name in facescale("models", "list").out for name in listed)
    answer = facescale("models", "verify", "--json")
    assert answer.code == 0
    here = [name for name, row in listed.items() if Path(row["weights"]).is_file()]
    parts = [part.name for name in here for part in card(name).parts.values()]
    assert {row["name"]: row["ok"] for row in answer.json} == dict.fromkeys([*here, *parts], True)
    one = facescale("models", "verify", "dlib_5pt", "--json")
    assert [row["name"] for row in one.json] == ["dlib_5pt"]
    unknown = facescale("models", "verify", "dlib_6pt")
    assert (unknown.code, "did you mean dlib_5pt" in unknown.err) == (2, True)


def test_doctor_finds_two_faiss_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = {finding["what"]: finding for finding in facescale("doctor", tmp_path, "--json").json}
    assert {"Python", "torch", "CUDA", "FAISS", "Ray", "models", "memory", "disk"} <= set(findings)
    assert (findings["FAISS"]["state"], findings["models"]["state"]) == ("ok", "ok")
    assert all(f["remedy"] for f in findings.values() if f["state"] != "ok")
    site = tmp_path / "site"
    for name in ("faiss_cpu", "faiss_gpu_cu12"):
        info = site / f"{name}-1.9.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.9.0\n"
        )
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    answer = facescale("doctor", tmp_path)
    assert answer.code == 2
    (finding,) = [f for f in facescale("doctor", tmp_path, "--json").json if f["what"] == "FAISS"]
    assert finding["state"] == "problem"
    assert finding["found"] == "faiss-cpu and faiss-gpu-cu12 are both installed"
    assert "pip uninstall faiss-cpu faiss-gpu-cu12, then one of them" in finding["remedy"]
    assert "pip uninstall" in answer.out


def test_help_lists_every_command() -> None:
    answer = facescale("--help")
    assert answer.code == 0
    commands = (
        "run",
        "extract",
        "embed",
        "index",
        "search",
        "lake",
        "models",
        "doctor",
        "synth",
        "demo",
        "bench",
    )
    assert all(re.search(rf"^\s+{name}\b", answer.out, re.M) for name in commands)
