"""Fixtures every test may use: where the real photographs are, and a quiet single-threaded torch."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch loads: tests share the machine with Ray's workers

if _root := os.environ.get("FACESCALE_TEST_DATA"):
    os.environ.setdefault("FACESCALE_WEIGHTS", str(Path(_root) / "models"))
# No test needs the network, and none may see or touch the models of whoever runs it.
os.environ.setdefault("FACESCALE_OFFLINE", "1")
_no_models = tempfile.mkdtemp(prefix="facescale-tests-without-models-")
atexit.register(shutil.rmtree, _no_models, ignore_errors=True)
os.environ["FACESCALE_CACHE"] = os.environ["FACESCALE_CARDS"] = _no_models


@pytest.fixture(scope="session")
def shared_root() -> Path:
    """Folder that holds data/ and models/ (environment variable FACESCALE_TEST_DATA)."""
    root = os.environ.get("FACESCALE_TEST_DATA")
    if not root:
        pytest.skip("FACESCALE_TEST_DATA is not set: the real photographs are not on this machine")
    return Path(root)


@pytest.fixture(scope="session")
def test_data(shared_root: Path) -> Path:
    """Folder of real photographs with labels.csv."""
    return shared_root / "data"


# The same examples in every run: a change is what makes a test fail, not chance.
settings.register_profile("facescale", derandomize=True)
settings.load_profile("facescale")
