"""Weights whose card gives no digest, and weights in archives: what is fetched is recorded, and held to it."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fetch_samples import CONTENT, OTHER, TAG, digest_of, files_in, toy
from weights_server import (
    WeightsServer,
    drop_after,
)

from facescale.errors import CorruptError, DownloadError, UsageError
from facescale.models import ask, cache
from facescale.models.fetch import fetch
from facescale.models.weights import find_weights, read_weights, verify, with_digest

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.usefixtures("cache_folder")


# Without a digest on the card


def test_an_unknown_digest_is_recorded_and_holds(
    server: WeightsServer, cache_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = toy(server.url("/toy.bin").replace("http://", "http://me:secret@"), sha256=None, size_bytes=None)
    with caplog.at_level(logging.WARNING, "facescale"):
        path = fetch(card)
    assert "gives no sha256" in caplog.text and digest_of(CONTENT) in caplog.text
    record = json.loads(cache.record_path(card).read_text())
    assert record["sha256"] == digest_of(CONTENT) and record["model"] == "toy"
    assert "secret" not in caplog.text + cache.record_path(card).read_text()
    assert server.requests[0][1]["authorization"] == "Basic bWU6c2VjcmV0"
    assert with_digest(card).sha256 == digest_of(CONTENT)
    caplog.clear()
    assert find_weights(card) == path and read_weights(card) == CONTENT
    assert caplog.text == ""  # only the first time

    path.unlink()
    server.files["/toy.bin"] = (OTHER, '"second"')
    with pytest.raises(CorruptError, match=digest_of(OTHER)):
        fetch(card)
    path.write_bytes(OTHER)
    with pytest.raises(CorruptError, match=r"delete the file \(or .*recorded.*, if the new file is meant\)"):
        verify(card, path)


def test_a_digest_on_the_card_needs_no_file() -> None:
    card = toy("https://example.invalid/toy.bin")
    assert with_digest(card) is card


def test_the_digest_of_another_backend(server: WeightsServer) -> None:
    onnx = {"file": "toy.onnx", "urls": [server.url("/toy.onnx")]}
    server.files["/toy.onnx"] = (OTHER, "")
    found = with_digest(toy(variants={"onnx": onnx}), "onnx")
    assert found.for_backend("onnx").sha256 == digest_of(OTHER)
    assert found.sha256 == digest_of(CONTENT)
    assert read_weights(found.for_backend("onnx")) == OTHER


def test_a_file_in_the_weights_folder_is_recorded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FACESCALE_WEIGHTS", str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "toy.bin").write_bytes(CONTENT)
    card = toy(sha256=None, size_bytes=None)
    assert with_digest(card).sha256 == digest_of(CONTENT)
    (tmp_path / "mine" / "toy.bin").write_bytes(OTHER)
    with pytest.raises(CorruptError, match=digest_of(CONTENT)):
        with_digest(card)
    assert with_digest(dataclasses.replace(card, name="other")).sha256 == digest_of(OTHER)
    cache.record_path(card).write_text("{")
    with pytest.raises(UsageError, match=r"cannot be read .*; delete it"):
        with_digest(card)


def test_a_filled_cache_is_a_weights_folder(
    server: WeightsServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = toy(server.url("/toy.bin"))
    fetch(card)
    monkeypatch.setenv("FACESCALE_WEIGHTS", str(cache_folder / "weights"))
    monkeypatch.setenv("FACESCALE_CACHE", str(cache_folder.parent / "another"))
    assert read_weights(card) == CONTENT and len(server.requests) == 1


# Archives


def packed(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def test_members_of_an_archive_come_from_one_download(
    server: WeightsServer, naps: list[float], cache_folder: Path, tmp_path: Path
) -> None:
    archive = packed({"pack/toy.bin": CONTENT, "../../evil.bin": OTHER, "pack/": b""})
    server.files["/pack.zip"] = (archive, TAG)
    server.faults["/pack.zip"] = [drop_after(len(archive) // 2)]
    card = toy(server.url("/pack.zip"), member="pack/toy.bin")
    assert find_weights(card) == cache_folder / "weights" / digest_of(CONTENT) / "toy.bin"
    evil = toy(server.url("/pack.zip"), name="evil", member="../../evil.bin", sha256=digest_of(OTHER))
    assert find_weights(evil) == cache_folder / "weights" / digest_of(OTHER) / "toy.bin"
    assert read_weights(card) == CONTENT and read_weights(evil) == OTHER
    assert len(server.requests) == 2 and server.requests[1][1]["if-range"] == TAG
    assert not list(tmp_path.rglob("evil.bin"))


def test_an_archive_without_the_member_says_what_it_has(server: WeightsServer) -> None:
    server.files["/pack.zip"] = (packed({"w600k_r50.onnx": CONTENT, "det_10g.onnx": OTHER}), TAG)
    with pytest.raises(
        DownloadError, match=r"no member 'w600k_r5\.onnx'; it has w600k_r50\.onnx.*correct `member`"
    ):
        fetch(toy(server.url("/pack.zip"), member="w600k_r5.onnx"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not a zip", "not a zip archive"),
        (packed({"toy.bin": CONTENT})[:-30], "not a zip archive"),
        (packed({"toy.bin": CONTENT}).replace(b"toy.bin", b"yot.bin", 1), "not a zip archive"),
        (packed({"toy.bin": OTHER}), "sha256 " + digest_of(OTHER)),
        (packed({"toy.bin": CONTENT * 2}), "more than the 307,200 bytes"),
    ],
    ids=["no zip", "cut", "inconsistent", "other bytes", "bomb"],
)
def test_bad_archives_are_refused_and_not_kept(
    server: WeightsServer, cache_folder: Path, content: bytes, says: str
) -> None:
    server.files["/pack.zip"] = (content, TAG)
    card = toy(server.url("/pack.zip"), member="toy.bin")
    with pytest.raises(CorruptError, match=says):
        fetch(card)
    assert files_in(cache_folder) == set()
    server.files["/pack.zip"] = (packed({"toy.bin": CONTENT}), TAG)
    assert fetch(card).read_bytes() == CONTENT


def test_addresses_are_shown_without_secrets() -> None:
    assert ask.shown("https://me:pw@example.org:8443/a/b.bin?token=t#x") == "https://example.org:8443/a/b.bin"


@pytest.mark.parametrize("change", [{"urls": ["s3://bucket/toy"]}, {"file": "models/.."}, {"file": "x/"}])
def test_cards_with_bad_places_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"field '{next(iter(change))}'"):
        toy(**change) if "urls" not in change else toy(*change["urls"])
