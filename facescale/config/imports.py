"""What import reads: embeddings made elsewhere."""

from __future__ import annotations

from pydantic import Field

from facescale.config.base import Config


class ImportConfig(Config):
    """Embeddings made elsewhere, to images, faces and embeddings of a lake."""

    model: str | None = None
    """Name of the model that made the embeddings: what later jobs call the embedder. Import needs it."""

    column: str = "embedding"
    """Column of a Parquet file that holds the embeddings."""

    dim: int | None = Field(default=None, ge=1, le=65_536)
    """Dimension of the embeddings; unset takes that of the first rows. Raw float32 files need it."""
