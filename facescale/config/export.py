"""What export is told: which faces, under whose names, in which format."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from facescale.config.base import Config


class ExportConfig(Config):
    """A training set out of a lake."""

    out: str | None = None
    """Folder or fsspec URL of the training set."""

    format: Literal["webdataset", "parquet", "folder", "recordio"] = "webdataset"
    """webdataset: tar shards. parquet: as tables. folder: a file a face. recordio: arcface_torch's train.rec."""

    names: Literal["decisions", "claims", "clusters"] = "decisions"
    """Who a face is: as cleaned, as claimed (the best-scored face of each image), or its cluster."""

    embedder: str = "dlib_resnet"
    """Whose decisions or clusters."""

    template: str = "auto"
    """Alignment of the chips; auto: arcface_112 or dlib_150, by the landmarks there are; crop: the stored crop."""

    min_faces: int = Field(default=2, ge=1)
    """Identities with fewer faces are left out."""

    max_faces: int | None = Field(default=None, ge=1)
    """Of an identity the best so many by quality are kept; unset keeps all."""

    min_quality: float = Field(default=0.0, ge=0, le=1)
    """Faces of lower quality are left out."""

    where: str | None = None
    """Faces that do not meet this condition on the columns of faces and attributes are left out."""

    val_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the identities held out for validation; names that share a cluster go to the same side."""

    classes: str | None = None
    """classes.parquet of an earlier export: its names keep their class ids and their side."""

    seed: int = Field(default=0, ge=0)
    """Of the shuffle, the split and ties."""

    shard_faces: int = Field(default=10_000, ge=1)
    """Faces of a shard."""

    memory_gib: float = Field(default=0.5, gt=0)
    """Memory of each worker for the faces that are shuffled together; more mixes better. Changes the order only."""

    jpeg_quality: int = Field(default=95, ge=1, le=100)
    """Of the chips."""
