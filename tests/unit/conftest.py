"""Fixtures of the tests of downloads: a server that misbehaves, an empty cache, no real waiting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fetch_samples import CONTENT, TAG
from weights_server import WeightsServer, weights_server

from facescale.models import transfer


@pytest.fixture(scope="module")
def one_server() -> Iterator[WeightsServer]:
    with weights_server() as server:
        yield server


@pytest.fixture
def server(one_server: WeightsServer) -> WeightsServer:
    """With /toy.bin and nothing planned."""
    one_server.files = {"/toy.bin": (CONTENT, TAG)}
    one_server.faults.clear()
    one_server.requests.clear()
    one_server.ranges = one_server.if_range = True
    one_server.sent = 0
    return one_server


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a network."""
    monkeypatch.setenv("FACESCALE_CACHE", str(tmp_path / "cache"))
    for name in ("FACESCALE_OFFLINE", "FACESCALE_WEIGHTS", "FACESCALE_MIRROR", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited between attempts; nobody really waits."""
    waited: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", waited.append)
    return waited
