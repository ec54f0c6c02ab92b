"""What importing facescale.index loads, and what is said when a library is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from facescale.errors import MissingExtraError, UsageError
from facescale.index.backends import FaissBackend, HnswlibBackend, load_backend

MODULES = "plan exact manifest vectors backends build scratch stages shards finish labels search results verify".split()


def test_nothing_heavy_is_loaded() -> None:
    imports = "; ".join(f"import facescale.index.{name}" for name in MODULES)
    heavy = ("torch", "faiss", "hnswlib", "ray", "pydantic")
    code = f"{imports}; import sys; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "backend", "extra"), [("faiss", FaissBackend, "cpu"), ("hnswlib", HnswlibBackend, "hnsw")]
)
def test_a_missing_library_names_the_extra(module: str, backend: type, extra: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{module}.*facescale\[{extra}\]"):
        backend().version()


def test_an_unknown_backend_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="'annoy' is unknown; there are faiss, hnswlib"):
        load_backend("annoy")
