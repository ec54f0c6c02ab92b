"""What the tests of downloads share: a card, its content, and what lies in a cache."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from facescale.models.card import ModelCard, card_from_mapping

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = bytes(range(256)) * 1200  # 300 KiB: several reads
OTHER = CONTENT[::-1]
TAG = '"first"'


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def toy(*urls: str, **changes: Any) -> ModelCard:
    values = {
        "name": "toy",
        "task": "embedder",
        "architecture": "toy",
        "file": "toy.bin",
        "sha256": digest_of(CONTENT),
        "size_bytes": len(CONTENT),
        "licence": "CC0-1.0",
        "non_commercial": False,
        "source": "https://example.org/toy",
        "urls": list(urls),
        "input_size": 112,
        "template": "arcface_112",
        "landmark_scheme": "arcface5",
        "dim": 8,
    }
    return card_from_mapping(values | changes, where="toy.yaml")


def files_in(folder: Path) -> set[str]:
    """What is in the cache besides locks."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }
