"""A process of its own that answers requests, a line of JSON each: the loops, face_recognition, leidenalg.

Called by facescale.bench.speed, peers and clusters. Models are loaded once; between requests the process
waits and takes no time from the others. What it writes to standard error is kept, for the message when it dies.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import resources
from itertools import chain
from typing import TYPE_CHECKING, Any

from facescale.bench.environment import make_environment, same_versions
from facescale.errors import FacescaleError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_SHOWN_CHARACTERS = 2000


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


def bare_loop(min_face_px: int, *, detector: str = "dlib_mmod", embedder: str = "dlib_resnet") -> Contender:
    """The bare loop (facescale.bench.bare_loop) in this interpreter's environment."""
    options = {"--detector": detector, "--embedder": embedder, "--min-face-px": str(min_face_px)}
    command = [sys.executable, "-m", "facescale.bench.bare_loop", *chain.from_iterable(options.items())]
    return Contender("the bare loop", command)


def plain_loop(environment: Path, models: Mapping[str, Any]) -> Contender:
    """The plain loop over ONNX files (facescale/bench/plain_loop.py) in an environment of its own.

    Args:
        environment: its folder, made when it is not there yet.
        models: what the script's `serve` needs to know.
    """
    python = make_environment(environment, "the plain loop", plain_requirements(), without="--plain-env")
    script = resources.files("facescale.bench").joinpath("plain_loop.py")
    return Contender("the plain loop", [str(python), str(script), json.dumps(models)])


def plain_requirements() -> list[str]:
    """What the environment of the plain loop holds: the versions of this one, so it is no comparison of those."""
    return same_versions(("numpy", "onnxruntime", "opencv-python-headless"))


def face_recognition(environment: Path, *, upsample: int) -> Contender:
    """The face_recognition package in an environment of its own, made when it is not there yet."""
    python = make_environment(
        environment,
        "the face_recognition package",
        rival_requirements(),
        without="--no-rival, or --rival-env",
    )
    script = resources.files("facescale.bench").joinpath("face_recognition_loop.py")
    return Contender("face_recognition", [str(python), "-W", "ignore", str(script), str(upsample)])


def rival_requirements() -> list[str]:
    """What the environment of the face_recognition package holds.

    The package needs `dlib`, which has to be compiled; dlib-bin is the same library as a wheel, hence --no-deps and
    everything by name. It reads its weights through pkg_resources, which setuptools 81 no longer has. numpy, Pillow
    and dlib-bin are those of this environment, so that the comparison is not one of their versions.
    """
    here = same_versions(("dlib-bin", "face_recognition_models", "numpy", "pillow"))
    return ["face_recognition==1.3.0", *here, "setuptools<81"]


def leiden(environment: Path) -> Contender:
    """The leidenalg package in an environment of its own, made when it is not there yet.

    It and igraph, which it works on, are under the GPL: they are neither dependencies nor part of this process.
    """
    python = make_environment(
        environment, "the leidenalg package", leiden_requirements(), without="--no-rival, or --rival-env"
    )
    script = resources.files("facescale.bench").joinpath("leiden_loop.py")
    return Contender("leidenalg", [str(python), str(script)])


def leiden_requirements() -> list[str]:
    """What the environment of the leidenalg package holds."""
    return ["leidenalg==0.12.0", "igraph==1.0.0", "texttable==1.7.2", *same_versions(["numpy"])]
