"""Downloads of weights from a server that drops, cuts, lies, loops and hangs: the file comes whole, or not at all."""

from __future__ import annotations

import errno
import fcntl
import io
import pickle
import signal
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fetch_samples import CONTENT, OTHER, TAG, digest_of, files_in, toy
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_server import (
    WeightsServer,
    drop_after,
    hang,
    redirect,
    reset_after,
    status,
    then_change,
    weights_server,
)

from facescale.errors import CorruptError, DownloadError, TransientError, UsageError
from facescale.lake.storage_errors import DiskFullError
from facescale.models import ask, cache, transfer
from facescale.models.fetch import fetch
from facescale.models.transfer import Expected, download
from facescale.models.weights import find_weights, local_weights, read_weights

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.usefixtures("cache_folder")


def test_a_file_is_fetched_once_and_lies_under_its_digest(server: WeightsServer, cache_folder: Path) -> None:
    card, seen = toy(server.url("/toy.bin")), []
    path = fetch(card, progress=lambda done, total: seen.append((done, total)))
    assert path == cache_folder / "weights" / digest_of(CONTENT) / "toy.bin"
    assert path.read_bytes() == CONTENT
    assert files_in(cache_folder) == {f"weights/{digest_of(CONTENT)}/toy.bin"}
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and sorted(seen) == seen
    assert fetch(card) == find_weights(card) == local_weights(card) == path
    assert read_weights(card) == CONTENT
    assert len(server.requests) == 1
    # The same file is another model's too.
    assert find_weights(toy(server.url("/gone"), name="twin", file="twin.bin")) == path


@pytest.mark.parametrize("cut", [drop_after, reset_after])
def test_a_broken_connection_goes_on_where_it_was(server: WeightsServer, naps: list[float], cut: Any) -> None:
    server.faults["/toy.bin"] = [cut(100_000), cut(50_000)]
    assert fetch(toy(server.url("/toy.bin"))).read_bytes() == CONTENT
    starts = [int(h["range"].removeprefix("bytes=").rstrip("-")) for _, h in server.requests[1:]]
    assert len(starts) == 2 and 0 < starts[0] < starts[1] <= 150_000
    assert all(headers["if-range"] == TAG for _, headers in server.requests[1:])
    if cut is drop_after:  # a reset may eat bytes that were on their way
        assert starts == [100_000, 150_000] and server.sent == len(CONTENT)
    assert len(naps) == 2


def test_what_a_failed_run_got_is_kept_for_the_next(server: WeightsServer, naps: list[float]) -> None:
    card = toy(server.url("/toy.bin"))
    server.faults["/toy.bin"] = [drop_after(70_000), *[drop_after(0)] * 4]
    with pytest.raises(TransientError, match=r"the connection ended after 70,000 of 307,200 bytes"):
        fetch(card)
    assert naps == sorted(naps) and len(naps) == 4  # ever longer
    server.requests.clear()
    assert fetch(card).read_bytes() == CONTENT
    assert [headers["range"] for _, headers in server.requests] == ["bytes=70000-"]


def test_a_killed_process_leaves_what_the_next_goes_on_from(
    server: WeightsServer, cache_folder: Path, tmp_path: Path
) -> None:
    content = CONTENT * 10  # many reads
    server.files["/toy.bin"] = (content, TAG)
    card = toy(server.url("/toy.bin"), sha256=digest_of(content), size_bytes=len(content))
    (tmp_path / "card").write_bytes(pickle.dumps(card))
    code = (
        "import os, pickle, signal, sys\n"
        "from facescale.models.fetch import fetch\n"
        "card = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "fetch(card, progress=lambda done, total: done > 1_000_000 and os.kill(os.getpid(), signal.SIGKILL))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "card")], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not (cache_folder / "weights").exists()
    server.requests.clear()
    assert fetch(card).read_bytes() == content
    start = int(server.requests[0][1]["range"].removeprefix("bytes=").rstrip("-"))
    assert 500_000 < start < len(content)
    assert files_in(cache_folder) == {f"weights/{digest_of(content)}/toy.bin"}


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, len(CONTENT) - 1), max_size=4), ranges=st.booleans(), known=st.booleans())
def test_any_drops_any_server(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], ranges: bool, known: bool
) -> None:
    partial = tmp_path_factory.mktemp("partial") / "toy"
    with weights_server() as server:
        server.files, server.ranges = {"/toy.bin": (CONTENT, TAG)}, ranges
        server.faults["/toy.bin"] = [drop_after(cut) for cut in cuts]
        expected = Expected(sha256=digest_of(CONTENT) if known else None)
        received = download(server.url("/toy.bin"), partial, expected, sleep=lambda _: None)
    assert partial.read_bytes() == CONTENT
    assert (received.sha256, received.size_bytes) == (digest_of(CONTENT), len(CONTENT))


@pytest.mark.parametrize("obedient", [True, False], ids=["If-Range obeyed", "If-Range ignored"])
@pytest.mark.parametrize("known", [True, False], ids=["sha256 known", "sha256 unknown"])
def test_a_file_that_changes_meanwhile_is_never_mixed(
    server: WeightsServer, naps: list[float], obedient: bool, known: bool
) -> None:
    server.if_range = obedient
    server.files["/toy.bin"] = (OTHER, TAG)
    server.faults["/toy.bin"] = [then_change(CONTENT, '"second"', 100_000)]
    card = toy(server.url("/toy.bin"), **({} if known else {"sha256": None, "size_bytes": None}))
    assert fetch(card).read_bytes() == CONTENT


def test_without_a_validator_only_a_digest_allows_to_go_on(server: WeightsServer, naps: list[float]) -> None:
    for tag in ("", 'W/"weak"'):
        server.files["/toy.bin"] = (CONTENT, tag)
        for known in (True, False):
            server.requests.clear()
            server.faults["/toy.bin"] = [drop_after(100_000)]
            card = toy(server.url("/toy.bin"), **({} if known else {"sha256": None}))
            path = fetch(card)
            assert path.read_bytes() == CONTENT
            assert ("range" in server.requests[1][1]) is known
            assert "if-range" not in server.requests[1][1]
            path.unlink()
            cache.record_path(card).unlink(missing_ok=True)


def test_the_second_server_continues_what_the_first_began(server: WeightsServer, naps: list[float]) -> None:
    server.files["/two.bin"] = (CONTENT, '"elsewhere"')
    server.faults["/toy.bin"] = [drop_after(100_000), *[status(503)] * 9]
    assert fetch(toy(server.url("/toy.bin"), server.url("/two.bin"))).read_bytes() == CONTENT
    path, headers = server.requests[-1]
    assert (path, headers["range"]) == ("/two.bin", "bytes=100000-") and "if-range" not in headers


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (OTHER, CorruptError, "sha256 " + digest_of(OTHER)),
        (CONTENT[:-1], DownloadError, "a file of 307,199 bytes, not the 307,200"),
        (CONTENT + b"x", DownloadError, "a file of 307,201 bytes, not the 307,200"),
    ],
    ids=["other bytes", "shorter", "longer"],
)
def test_another_file_is_refused_and_the_next_address_asked(
    server: WeightsServer,
    naps: list[float],
    cache_folder: Path,
    content: bytes,
    error: type[Exception],
    says: str,
) -> None:
    server.files["/toy.bin"] = (content, TAG)
    with pytest.raises(error, match=says) as caught:
        fetch(toy(server.url("/toy.bin")))
    assert "get it from https://example.org/toy" in str(caught.value)
    assert files_in(cache_folder) == set()
    server.files["/two.bin"] = (CONTENT, TAG)
    assert fetch(toy(server.url("/toy.bin"), server.url("/two.bin"))).read_bytes() == CONTENT
    assert naps == []  # trying the same again would not have helped


def test_a_missing_file_leads_to_the_next_address(server: WeightsServer, naps: list[float]) -> None:
    card = toy(server.url("/none.bin"), server.url("/toy.bin"))
    assert fetch(card).read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == ["/none.bin", "/toy.bin"] and naps == []
    with pytest.raises(DownloadError, match=r"/none\.bin: HTTP 404 .*; .*/neither: HTTP 404"):
        fetch(toy(server.url("/none.bin"), server.url("/neither"), sha256="0" * 64))


def test_the_mirror_is_asked_first(server: WeightsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACESCALE_MIRROR", server.url("/mirror/"))
    kept = f"/mirror/{digest_of(CONTENT)}/toy.bin"
    card = toy(server.url("/toy.bin"))
    path = fetch(card)  # the mirror does not have it
    assert [path for path, _ in server.requests] == [kept, "/toy.bin"]
    path.unlink()
    server.requests.clear()
    server.files = {kept: (CONTENT, TAG)}
    packed = toy(server.url("/pack.zip"), member="models/toy.bin")  # as the mirror keeps files, not archives
    assert find_weights(packed).read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == [kept]
    path.unlink()
    assert find_weights(toy()).read_bytes() == CONTENT  # a card without addresses


def test_redirects_are_followed_within_limits(server: WeightsServer, naps: list[float]) -> None:
    for step in range(3):
        server.faults[f"/hop{step}"] = [redirect(f"/hop{step + 1}")]
    server.faults["/hop3"] = [redirect(server.url("/toy.bin"))]
    assert fetch(toy(server.url("/hop0"))).read_bytes() == CONTENT
    server.faults["/loop"] = [redirect("/pool")] * 20
    server.faults["/pool"] = [redirect("/loop")] * 20
    server.requests.clear()
    with pytest.raises(DownloadError, match="redirects in circles"):
        fetch(toy(server.url("/loop"), sha256="0" * 64))
    assert len(server.requests) < 10 and naps == []
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/toy.bin"):
        server.faults["/out"] = [redirect(target)]
        with pytest.raises(DownloadError, match=r"out of HTTP|not followed"):
            fetch(toy(server.url("/out"), sha256="0" * 64))


def test_a_redirect_to_plain_http_is_refused() -> None:
    request = urllib.request.Request("https://user:secret@example.org/a")
    handler = ask.Redirects()
    assert handler.redirect_request(request, io.BytesIO(), 302, "", {}, "https://example.com/b") is not None
    with pytest.raises(DownloadError, match=r"https://example.org/a redirects from https to http") as caught:
        handler.redirect_request(request, io.BytesIO(), 302, "", {}, "http://example.com/b")
    assert "secret" not in str(caught.value)


def test_only_what_can_mend_is_tried_again(server: WeightsServer, naps: list[float]) -> None:
    server.faults["/toy.bin"] = [status(503, {"Retry-After": "7"}), status(429), status(500)]
    path = fetch(toy(server.url("/toy.bin")))
    assert path.read_bytes() == CONTENT
    assert naps[0] == 7 and len(naps) == 3
    path.unlink()
    for code in (401, 403, 404, 410):
        server.requests.clear()
        server.faults["/toy.bin"] = [status(code)]
        with pytest.raises(DownloadError, match=f"HTTP {code}"):
            fetch(toy(server.url("/toy.bin")))
        assert len(server.requests) == 1
    assert len(naps) == 3


def test_silence_is_an_error_in_time(
    server: WeightsServer, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    server.faults["/toy.bin"] = [hang, hang]
    with pytest.raises(TransientError, match="no answer in time"):
        fetch(toy(server.url("/toy.bin")))


def test_a_trickle_is_as_good_as_nothing(
    server: WeightsServer, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STALL_S", 0.0)
    monkeypatch.setattr(transfer, "_CHUNK_BYTES", 10)
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    with pytest.raises(TransientError, match="only 10 bytes in 0 s"):
        fetch(toy(server.url("/toy.bin")))
    assert len(naps) == 1


def test_no_server_is_transient_and_no_address_is_not(server: WeightsServer, naps: list[float]) -> None:
    with weights_server() as gone:
        url = gone.url("/toy.bin")
    with pytest.raises(TransientError, match="refused"):
        fetch(toy(url))
    with pytest.raises(UsageError, match=r"its card has no urls; get toy\.bin from https://example\.org"):
        fetch(toy())


def test_what_is_no_file_is_refused(server: WeightsServer, tmp_path: Path) -> None:
    unknown = Expected()

    def get(path: str, expected: Expected = unknown) -> bytes:
        download(server.url(path), tmp_path / "partial", expected)
        return (tmp_path / "partial").read_bytes()

    server.faults["/page"] = [status(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>Sign in")]
    with pytest.raises(DownloadError, match="a web page, not a file"):
        get("/page")
    server.faults["/packed"] = [status(200, {"Content-Encoding": "gzip"}, b"...")]
    with pytest.raises(DownloadError, match="sent compressed"):
        get("/packed")
    server.faults["/empty"] = [status(204)]
    with pytest.raises(DownloadError, match="HTTP 204"):
        get("/empty")

    def endless(handler: Any) -> None:  # no length: the end of the connection is the end of the file
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT)
        handler.close_connection = True

    server.faults["/endless"] = [endless]
    with pytest.raises(DownloadError, match="neither the server nor the card says how long the file is"):
        get("/endless")
    server.faults["/endless"] = [endless]
    with pytest.raises(DownloadError, match="more than the 1,000 bytes"):
        get("/endless", Expected(sha256="0" * 64, limit_bytes=1000))
    assert not (tmp_path / "partial").exists()
    server.faults["/endless"] = [endless]
    assert get("/endless", Expected(sha256=digest_of(CONTENT))) == CONTENT
    with pytest.raises(DownloadError, match="at most 1,000"):
        get("/toy.bin", Expected(limit_bytes=1000))
    for url in ("ftp://127.0.0.1/toy", "file:///etc/passwd", "toy.bin"):
        with pytest.raises(DownloadError, match=r"not an address|only http"):
            download(url, tmp_path / "partial", unknown)


def test_a_full_disk_is_told_and_left_as_it_was(
    server: WeightsServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    real = Path.open

    def full(self: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if mode == "wb" and self.parent.name == "partial":
            real(self, mode).close()
            return Full()
        return real(self, mode, *more, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskFullError, match=r"no space left for .*FACESCALE_CACHE"):
        fetch(toy(server.url("/toy.bin"), server.url("/two.bin")))
    assert files_in(cache_folder) == set()
    assert len(server.requests) == 1  # another server has no more disk


def test_a_cache_that_cannot_be_written(
    server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FACESCALE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match=r"cannot write .*; let FACESCALE_CACHE"):
        fetch(toy(server.url("/toy.bin")))


@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_offline_asks_nobody(server: WeightsServer, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FACESCALE_OFFLINE", value)
    card = toy(server.url("/toy.bin"))
    with pytest.raises(UsageError, match=r"FACESCALE_OFFLINE or --offline forbids .*models pull toy"):
        find_weights(card)
    assert server.requests == []
    monkeypatch.setenv("FACESCALE_OFFLINE", "0")
    path = find_weights(card)
    monkeypatch.setenv("FACESCALE_OFFLINE", value)
    assert find_weights(card) == path


def test_proxies_come_from_the_environment(server: WeightsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url(""))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.files["http://weights.invalid/toy.bin"] = (CONTENT, TAG)
    assert fetch(toy("http://weights.invalid/toy.bin")).read_bytes() == CONTENT


@pytest.mark.parametrize("locks", [True, False])
def test_many_at_once_get_one_whole_file(
    server: WeightsServer, monkeypatch: pytest.MonkeyPatch, cache_folder: Path, locks: bool
) -> None:
    if not locks:  # as on some network file systems

        def refuse(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
    card, start = toy(server.url("/toy.bin")), threading.Barrier(6)

    def get(_: int) -> Path:
        start.wait()
        return fetch(card)

    with ThreadPoolExecutor(6) as pool:
        paths = set(pool.map(get, range(6)))
    assert [path.read_bytes() for path in paths] == [CONTENT]
    assert files_in(cache_folder) == {f"weights/{digest_of(CONTENT)}/toy.bin"}
    assert len(server.requests) == 1 or not locks


def test_a_damaged_file_in_the_cache_is_fetched_anew(server: WeightsServer) -> None:
    card = toy(server.url("/toy.bin"))
    path = fetch(card)
    path.write_bytes(OTHER)
    with pytest.raises(CorruptError, match="not the weights of model 'toy'"):
        read_weights(card)
    assert fetch(card) == path and read_weights(card) == CONTENT
