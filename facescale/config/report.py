"""What report is told. Every number here bounds the page: a billion faces make no larger one than a thousand."""

from __future__ import annotations

from pydantic import Field

from facescale.config.base import Config


class ReportConfig(Config):
    """One HTML page about the lake, with pictures of faces in it."""

    enabled: bool = True
    """Whether `run` ends with a report."""

    embedder: str = "dlib_resnet"
    """Whose neighbors, clusters, decisions and index are shown."""

    photos: bool = True
    """Without photos the page holds counts and drawings only: no picture, no label, no file name."""

    seed: int = Field(default=0, ge=0)
    """Of the samples: which clusters, copies, decisions and queries are shown."""

    max_parts: int = Field(default=512, ge=1)
    """Parts of a table that histograms and examples are read from; of more a sample is taken, and the page says so."""

    clusters: int = Field(default=12, ge=1, le=50)
    """Largest clusters shown; half as many ordinary ones, and as many of the least certain."""

    copies: int = Field(default=8, ge=1, le=50)
    """Groups of duplicates shown, of each kind."""

    decisions: int = Field(default=8, ge=1, le=50)
    """Faces shown for each reason of a decision."""

    queries: int = Field(default=6, ge=1, le=50)
    """Faces whose most similar ones are shown."""

    strip: int = Field(default=9, ge=2, le=24)
    """Faces shown of a cluster, of a group of duplicates, of a query's answer."""

    picture_px: int = Field(default=112, ge=32, le=256)
    """Side of a picture in the page."""

    max_mib: int = Field(default=15, ge=4, le=64)
    """Largest size of the page; pictures that would pass it are left out, from the end."""
