"""Extract as a Ray job on a head of its own: uploaded, submitted, run to the end; tables and exit codes as locally."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from e2e_samples import current_tables, face, files_of, noise

from facescale.config.job import JobConfig
from facescale.config.load import load_config
from facescale.pipeline import run_job

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent  # not resolved: the environment's, whatever its python links to
PATIENCE_S = 200.0
ATTEMPTS = 3
_MARK = "FACESCALE_TEST_HEAD"


@dataclass(frozen=True)
class Head:
    """A running `ray start --head`, and the environment that talks to it."""

    address: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    def submit(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        """`ray job submit` a job and wait: exit status of the command, the job's record, all that was printed."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        command = ["job", "submit", "--address", self.address, "--working-dir", ".", "--submission-id", name]
        done = subprocess.run(
            [str(BIN / "ray"), *command, "--", "python", "-m", "jobs.extract", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
        )
        return done.returncode, self.get(f"/api/jobs/{name}"), done.stdout

    def is_up(self) -> bool:
        """Wait for the job server; False when the head ends instead."""
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < end:
            try:
                return bool(self.get("/api/version"))
            except OSError:
                time.sleep(0.1)
        return False

    def get(self, path: str) -> dict[str, Any]:
        """An answer of the head's job server."""
        request = urllib.request.Request(
            self.address + path, headers={"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=10) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head with two CPUs on free ports; nothing of it is left in the end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        _MARK: uuid.uuid4().hex,
        "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)]),
        # Who reaches these ports may run code; older versions know no token and ignore it.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    folder = Path(
        tempfile.mkdtemp(prefix="fsray", dir="/tmp")
    )  # sockets lie below it: their paths must be short
    heads: list[Head] = []
    try:
        while not heads or not heads[-1].is_up():
            said = "".join(path.read_text() for path in folder.glob("*.txt"))
            # Somebody may take one of the ports between finding and using it.
            assert len(heads) < ATTEMPTS, f"the head does not start: {said}"
            _end(environment[_MARK])
            heads.append(_start(environment, folder / str(len(heads))))
        yield heads[-1]
    finally:
        _end(environment[_MARK])
        for head in heads:
            head.process.wait(PATIENCE_S)
        shutil.rmtree(folder, ignore_errors=True)


def _start(environment: dict[str, str], folder: Path) -> Head:
    gcs, dashboard, agent, agent_grpc, client, metrics = _free_ports(6)
    command = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--dashboard-agent-grpc-port={agent_grpc}", f"--ray-client-server-port={client}"]
    command += [f"--metrics-export-port={metrics}", f"--temp-dir={folder}", "--num-cpus=2"]
    command += [f"--object-store-memory={128 << 20}"]
    with folder.with_suffix(".txt").open("wb") as stream:
        process = subprocess.Popen(
            [str(BIN / "ray"), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    return Head(f"http://127.0.0.1:{dashboard}", environment, process)


def _free_ports(count: int) -> list[int]:
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in with_ports]
    for server in with_ports:
        server.close()
    return ports


def _processes(mark: str) -> list[psutil.Process]:
    """Every living process that the head started, whoever its parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _end(mark: str) -> None:
    """Kill until there is nothing left to kill: what dies may be started anew by what has not died yet."""
    end = time.monotonic() + 20
    while left := _processes(mark):
        assert time.monotonic() < end, f"still running: {left}"
        for process in left:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight files in two parts: six faces, an image without one, one that is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        face(150 + i, 4.0 * (i - 2)).save(folder / f"{i}.jpg")
    noise().save(folder / "6.jpg")
    (folder / "7.jpg").write_bytes((folder / "0.jpg").read_bytes()[:2000])
    return folder


def test_upload_holds_what_jobs_need_and_little_else() -> None:
    """`ray job submit --working-dir .` zips a checkout, whose environment and history are gigabytes."""
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    ignored = packaging.get_excludes_from_ignore_files(ROOT, include_gitignore=True)
    assert ignored

    def is_sent(path: str) -> bool:
        return not any(match(ROOT / path) for match in ignored)

    for path in ("facescale/pipeline.py", "facescale/models/cards/dlib_mmod.yaml", "jobs/extract.py"):
        assert is_sent(path), path
    assert all(is_sent(f"schemas/{path.name}") for path in (ROOT / "schemas").glob("*.yaml"))
    for path in (".git/HEAD", ".venv/bin/python", "tests/e2e/test_ray_job.py", "demo/lake/lake.yaml"):
        assert not is_sent(path), path


def test_job_makes_what_a_local_run_makes(head: Head, pictures: Path, tmp_path: Path) -> None:
    settings = {
        "src": str(pictures),
        "lake": str(tmp_path / "lake"),
        "extract": {"min_face_px": 80, "part_rows": 4},
        "engine": {"device": "cpu", "threads": 1},
    }
    config = tmp_path / "extract.yaml"
    config.write_text(yaml.safe_dump(settings))

    status, record, printed = head.submit("--config", str(config))
    assert (status, record["driver_exit_code"], record["status"]) == (0, 0, "SUCCEEDED"), printed
    assert '"exit_code": 0' in printed
    assert "extract: 8/8 images" in printed

    local = load_config(
        JobConfig, file=str(config), overrides={"lake": str(tmp_path / "local"), "engine.workers": 0}
    )
    assert run_job("extract", local).exit_code == 0
    found, expected = current_tables(tmp_path / "lake"), current_tables(tmp_path / "local")
    assert sorted(found) == sorted(expected)
    assert {folder.split("/")[0] for folder in found} == {"images", "faces", "crops", "embeddings"}
    for folder, table in expected.items():
        assert table.num_rows, folder
        assert found[folder].column_names == table.column_names
        for name in table.column_names:
            assert found[folder][name].equals(table[name]), f"{folder}: column {name} differs"

    # One image of eight is broken; a second job finds the work done, and judges it more strictly.
    files = files_of(tmp_path / "lake")
    status, record, printed = head.submit("--config", str(config), "--set", "max_failures=0.1")
    assert (record["driver_exit_code"], record["status"]) == (3, "FAILED"), printed
    assert status != 0
    assert "1 of 8 images failed, more than --max-failures 0.1 allows" in printed
    assert "exit code 3" in printed
    assert files_of(tmp_path / "lake") == files
