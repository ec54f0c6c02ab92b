"""The crawl that docstrings and the guide speak of: 3 invented people, 24 files, and the lake `run` makes of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import facescale
from facescale.synth.crawl import make_crawl


@pytest.fixture(scope="session")
def finished_crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with crawl/ and crawl.lake: `facescale synth crawl --identities 3 --images-per-identity 4`, then `run`."""
    folder = tmp_path_factory.mktemp("crawl")
    before = os.getcwd()
    os.chdir(folder)
    try:
        make_crawl("crawl", identities=3, images_per_identity=4)
        summary = facescale.run("crawl/images", "crawl.lake", labels="folder", workers=0, threads=1)
    finally:
        os.chdir(before)
    assert summary.exit_code == 0
    return folder


@pytest.fixture
def crawl(finished_crawl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which the test may change, as the working directory."""
    shutil.copytree(finished_crawl, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
