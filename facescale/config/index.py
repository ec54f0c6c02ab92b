"""What index and search are told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from facescale.config.base import Config


class IndexConfig(Config):
    """A FAISS or hnswlib index over one embedder's faces."""

    embedder: str = "dlib_resnet"
    """Whose embeddings."""

    backend: Literal["faiss", "hnswlib"] = "faiss"
    """hnswlib searches one graph in memory at low latency; faiss chooses among flat, inverted lists and graphs."""

    memory_gib: float = Field(default=4.0, gt=0)
    """What the index may take in memory when it is searched."""

    recall: float = Field(default=0.95, gt=0, le=1)
    """Wanted share of the true ten nearest neighbors; measured on a held-out exact sample."""

    shard_faces: int = Field(default=4_000_000, ge=1)
    """Faces in one index file."""

    seed: int = Field(default=0, ge=0)
    """Of the training sample and the held-out queries."""


class SearchConfig(Config):
    """Queries against an index."""

    embedder: str = "dlib_resnet"
    """Which index."""

    k: int = Field(default=10, ge=1, le=2048)
    """Faces to return for each query."""

    label: str | None = None
    """Only faces whose image claims this label."""

    min_similarity: float = Field(default=-1.0, ge=-1, le=1)
    """Leave out hits below this cosine."""

    min_quality: float = Field(default=0.0, ge=0, le=1)
    """Leave out faces of less quality; others take their places. Faces whose quality nobody has measured stay."""

    where: str | None = None
    """Only faces that meet this condition on the columns of faces and attributes; others take their places."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where query images are embedded."""

    plugins: tuple[str, ...] = ()
    """Python modules to import first: they register further models."""
