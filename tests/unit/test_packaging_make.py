"""The Makefile: every advertised target exists, and `make demo` hands SRC on as it was given."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("help", "setup", "demo", "test", "lint", "format", "docs", "bench", "clean", "distclean")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run make in a folder, without the settings of a make that runs these tests."""
    base = {
        k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "SRC", "LAKE"}
    }
    return subprocess.run(
        ["make", *args], cwd=folder, env={**base, **env}, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile and a .venv in which `facescale` writes down its arguments and exits with $EXIT."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    script = bin_folder / "facescale"
    script.write_text(
        "#!/bin/sh\n"
        '{ for argument in "$@"; do printf "%s\\0" "$argument"; done; printf "\\n"; } >> calls\n'
        "exit ${EXIT:-0}\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (tmp_path / ".venv" / ".facescale-installed").touch()
    return tmp_path


def calls(checkout: Path) -> list[list[str]]:
    """The argument lists with which `facescale` was called."""
    path = checkout / "calls"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line.split("\0")[:-1] for line in lines]


@pytest.mark.parametrize("target", TARGETS)
def test_target_exists(checkout: Path, target: str) -> None:
    (checkout / target).touch()  # a file of that name must not pass for the target's result
    done = make(checkout, "--dry-run", target)
    assert done.returncode == 0, done.stderr
    assert "up to date" not in done.stdout


def test_help_names_every_target(checkout: Path) -> None:
    assert re.findall(r"^  make (\w+)", make(checkout).stdout, re.MULTILINE) == list(TARGETS)


def test_setup_runs_again_only_when_versions_change(checkout: Path) -> None:
    assert "pip install" not in make(checkout, "--dry-run", "setup").stdout
    stamp = checkout / ".venv" / ".facescale-installed"
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(checkout / name, (stamp.stat().st_mtime + 10, stamp.stat().st_mtime + 10))
        assert "pip install" in make(checkout, "--dry-run", "setup").stdout, name
        os.utime(stamp, (stamp.stat().st_mtime + 20, stamp.stat().st_mtime + 20))
        assert "pip install" not in make(checkout, "--dry-run", "setup").stdout


def test_setup_refuses_an_old_python(checkout: Path) -> None:
    (checkout / ".venv" / ".facescale-installed").unlink()
    old = checkout / "oldpython"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(checkout, "setup", f"PYTHON={old}")
    assert done.returncode != 0
    assert f"{old} is not: make setup PYTHON=" in done.stderr


def test_demo_without_a_source_is_the_synthetic_crawl(checkout: Path) -> None:
    assert make(checkout, "demo").returncode == 0
    assert calls(checkout) == [["demo", "--out", "demo"]]


@pytest.mark.parametrize("name", ["photos", "my photos", 'say "cheese"', "it's", "ünï 写真", "a&b;c"])
def test_demo_hands_on_awkward_names(checkout: Path, name: str) -> None:
    folder = checkout / "pictures" / name
    folder.mkdir(parents=True)
    assert make(checkout, "demo", f"SRC=pictures/{name}").returncode == 0
    lake = f"demo/{name}.lake"
    assert calls(checkout) == [["run", str(folder), lake], ["lake", "info", lake]]


def test_demo_expands_the_home_folder(checkout: Path) -> None:
    (checkout / "home" / "my photos").mkdir(parents=True)
    home = str(checkout / "home")
    assert make(checkout, "demo", "SRC=~/my photos", "LAKE=~/my lake", HOME=home).returncode == 0
    assert calls(checkout)[0] == ["run", f"{home}/my photos", f"{home}/my lake"]


def test_demo_takes_a_url_as_it_is(checkout: Path) -> None:
    assert make(checkout, "demo", "SRC=s3://bucket/crawl", "LAKE=s3://bucket/lake").returncode == 0
    assert calls(checkout)[0] == ["run", "s3://bucket/crawl", "s3://bucket/lake"]


@pytest.mark.parametrize("src", ["", "photos"])
def test_demo_fails_when_facescale_does(checkout: Path, src: str) -> None:
    done = make(checkout, "demo", f"SRC={src}", EXIT="3")
    assert done.returncode != 0
    assert len(calls(checkout)) == 1  # no summary after a failure
