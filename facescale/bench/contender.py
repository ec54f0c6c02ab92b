"""A process of its own that answers requests, a line of JSON each: the bare loop, and the face_recognition package.

Called by facescale.bench.speed. Models are loaded once; between requests the process waits and takes no time from the
others. What it writes to standard error is kept, for the message when it dies.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

from facescale.errors import FacescaleError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_SHOWN_CHARACTERS = 2000
_STAMP = "complete"


class Contender:
    """The process; use it as a context manager.

    Args:
        name: for messages.
        command: what to run; it must answer each line with a line, beginning with one that says it is ready.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name, self.command = name, list(command)

    def __enter__(self) -> Contender:
        self._errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process: it stops when its input does, or is killed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            FacescaleError: the process died; the message has the end of what it wrote.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._dead() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._dead()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _dead(self) -> FacescaleError:
        code = self._process.wait()
        self._errors.seek(0)
        text = self._errors.read()[-_SHOWN_CHARACTERS:].strip()
        return FacescaleError(f"{self.name} ended with exit code {code}: {text or 'it said nothing'}")


def bare_loop(min_face_px: int) -> Contender:
    """The bare loop (facescale.bench.bare_loop) in this interpreter's environment."""
    command = [sys.executable, "-m", "facescale.bench.bare_loop", "--min-face-px", str(min_face_px)]
    return Contender("the bare loop", command)


def face_recognition(environment: Path, *, upsample: int) -> Contender:
    """The face_recognition package in an environment of its own, made when it is not there yet."""
    python = make_environment(environment)
    script = resources.files("facescale.bench").joinpath("face_recognition_loop.py")
    return Contender("face_recognition", [str(python), "-W", "ignore", str(script), str(upsample)])


def rival_requirements() -> list[str]:
    """What the environment of the face_recognition package holds.

    The package needs `dlib`, which has to be compiled; dlib-bin is the same library as a wheel, hence --no-deps and
    everything by name. It reads its weights through pkg_resources, which setuptools 81 no longer has. numpy, Pillow
    and dlib-bin are those of this environment, so that the comparison is not one of their versions.
    """
    here = []
    for name in ("dlib-bin", "face_recognition_models", "numpy", "pillow"):
        try:
            here.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            here.append(name)
    return ["face_recognition==1.3.0", *here, "setuptools<81"]


def make_environment(folder: Path) -> Path:
    """Make a virtual environment with the face_recognition package, or take the one that is there.

    Args:
        folder: where; a stamp inside tells whether it is complete and of these versions.

    Returns:
        Its Python.

    Raises:
        UsageError: the installation failed; the message has pip's last words.
    """
    wanted, stamp = "\n".join(rival_requirements()), folder / _STAMP
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True, symlinks=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *rival_requirements()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(
            f"the face_recognition package cannot be installed into {folder}: {done.stderr.strip()[-800:]}\n"
            "Without a network use --no-rival, or --rival-env with an environment made elsewhere by: "
            f"python -m pip install --no-deps {' '.join(rival_requirements())}"
        )
    stamp.write_text(wanted, "utf-8")
    return python
