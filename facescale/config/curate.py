"""What dedup and neighbors are told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from facescale.config.base import Config


class DedupConfig(Config):
    """Which images are copies of which."""

    max_distance: int = Field(default=31, ge=0, le=31)
    """Images are near-duplicates up to this many differing bits of their hashes, of 256."""

    turns: bool = True
    """Look for mirrored and rotated copies too, for eight times the comparisons."""

    min_pdq_quality: int = Field(default=50, ge=0, le=100)
    """Images with less detail than this for PDQ (0 to 100) are copies only of identical files."""


class NeighborsConfig(Config):
    """The most similar faces of every face."""

    embedder: str = "dlib_resnet"
    """Whose embeddings."""

    k: int = Field(default=50, ge=1, le=2048)
    """Neighbors kept for each face."""

    floor_fmr: float = Field(default=1e-3, gt=0, le=0.5)
    """A list is marked saturated when all of it lies above this false-match rate: there may be more such faces."""

    memory_gib: float = Field(default=2.0, gt=0)
    """Memory of each worker for the faces compared with; more are read block by block. Does not change results."""

    method: Literal["auto", "exact", "cells"] = "auto"
    """exact compares all pairs; cells only faces of similar regions, which finds nearly all and is what large lakes
    take; auto takes exact where it is affordable."""

    nprobe: Literal["auto"] | Annotated[int, Field(ge=1, le=65_536)] = "auto"
    """cells: how many of them a face visits; auto measures on a sample how many reach edge_recall."""

    edge_recall: float = Field(default=0.99, ge=0.5, lt=1)
    """cells: share of the pairs above the floor that must be found; where that takes too many cells, all pairs are
    compared."""

    edge_ratio: float = Field(default=60.0, gt=0, le=1000)
    """cells: the floor is where the strangers expected of a face are this many times the share of true links lost
    there, or at floor_fmr where that is higher. Three times cluster.merge_ratio: clusters look at no pair below."""
