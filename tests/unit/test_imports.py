"""What importing costs and needs: each check runs in a fresh interpreter, where nothing is loaded yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "facescale"
HEAVY = {"torch", "ray", "faiss", "hnswlib", "skimage", "onnxruntime"}
MAX_LINES = 450

# Imports every module of some packages while others are blocked, as on a machine that does not have those.
IMPORT_BLOCKED = """
import importlib, pkgutil, sys
blocked, packages = sys.argv[1].split(","), sys.argv[2].split(",")
sys.modules.update(dict.fromkeys(blocked))
names = []
for name in packages:
    package = importlib.import_module(name)
    names.append(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
        names.append(module.name)
print(len(names))
"""


def python(*args: str) -> str:
    """Run a fresh interpreter at the repository root; its standard output."""
    done = subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(module: str) -> set[str]:
    """Top-level modules in memory after importing one."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(python("-c", code).split())


@pytest.mark.parametrize("module", ["facescale", "facescale.errors", "facescale.config.job", "facescale.cli"])
def test_import_loads_nothing_heavy(module: str) -> None:
    assert not loaded_by(module) & HEAVY


@pytest.mark.parametrize(
    ("packages", "blocked"),
    [
        (["facescale.vision"], ["ray", "pydantic", "faiss", "hnswlib"]),
        (["facescale.index"], ["ray", "pydantic", "faiss", "hnswlib"]),
        (["facescale.lake", "facescale.sources"], ["ray", "pydantic", "torch", "faiss", "hnswlib"]),
        (["facescale.imaging", "facescale.models"], ["ray", "pydantic", "torch", "faiss", "hnswlib"]),
        (["facescale.engine"], ["ray", "torch", "faiss", "hnswlib"]),
    ],
    ids=lambda names: "+".join(name.removeprefix("facescale.") for name in names),
)
def test_packages_import_without(packages: list[str], blocked: list[str]) -> None:
    imported = int(python("-c", IMPORT_BLOCKED, ",".join(blocked), ",".join(packages)))
    sources = sum(1 for name in packages for _ in (ROOT / name.replace(".", "/")).rglob("*.py"))
    assert imported == sources


def test_blocking_works() -> None:
    """The check above can fail: blocking torch stops a package that needs it."""
    with pytest.raises(AssertionError, match="torch"):
        python("-c", IMPORT_BLOCKED, "torch", "facescale.vision")


@pytest.mark.parametrize(
    "path",
    sorted([*PACKAGE.rglob("*.py"), *(ROOT / "jobs").glob("*.py")]),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_file_is_one_file(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines: it is two files"
