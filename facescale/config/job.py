"""A whole job: which one, on what, and each stage's part of the configuration."""

from __future__ import annotations

from pydantic import Field

from facescale.config.annotate import AnnotateConfig
from facescale.config.base import Config
from facescale.config.clean import CleanConfig
from facescale.config.cluster import ClusterConfig
from facescale.config.curate import DedupConfig, NeighborsConfig
from facescale.config.engine import EngineConfig
from facescale.config.export import ExportConfig
from facescale.config.extract import ExtractConfig, LabelsConfig
from facescale.config.imports import ImportConfig
from facescale.config.index import IndexConfig
from facescale.config.report import ReportConfig

NEEDS_SOURCE = ("run", "extract", "import")
"""Jobs that read photographs or embeddings made elsewhere; the others work on what the lake holds."""


class JobConfig(Config):
    """Configuration of every job. In YAML the nested parts are sections."""

    src: str | None = None
    """Photographs: a folder, a tar, a Parquet file, or a folder or URL of those; for import, files of embeddings."""

    lake: str
    """Root of the lake: a folder or an fsspec URL."""

    extract: ExtractConfig = ExtractConfig()
    """Models and limits."""

    imports: ImportConfig = ImportConfig()
    """Embeddings made elsewhere."""

    annotate: AnnotateConfig = AnnotateConfig()
    """Other models over the crops."""

    labels: LabelsConfig = LabelsConfig()
    """Claimed labels."""

    dedup: DedupConfig = DedupConfig()
    """Duplicate images."""

    neighbors: NeighborsConfig = NeighborsConfig()
    """Lists of similar faces."""

    cluster: ClusterConfig = ClusterConfig()
    """Faces of one person, found without labels."""

    clean: CleanConfig = CleanConfig()
    """Claimed labels, cleaned."""

    index: IndexConfig = IndexConfig()
    """The index."""

    report: ReportConfig = ReportConfig()
    """The page about it all."""

    export: ExportConfig = ExportConfig()
    """A training set out of the lake."""

    engine: EngineConfig = EngineConfig()
    """Workers and devices."""

    max_failures: float = Field(default=0.5, ge=0, le=1)
    """Largest share of images that may be neither ok nor too_many_faces; above it the exit code is 3."""

    accept_changes: bool = False
    """Take changed and vanished input for granted: new rows supersede the old ones."""

    retry_failed: bool = False
    """Rerun the parts that hold images with a transient status."""
