"""What cluster is told. Thresholds are ratios of errors that calibration and the size of the lake turn into cosines."""

from __future__ import annotations

from pydantic import Field

from facescale.config.base import Config


class ClusterConfig(Config):
    """Faces of the same person, found without labels.

    The three ratios say where a threshold lies: where the false links expected of a face (faces in the lake ×
    false-match rate) are this many times the share of true links that are lost there. Higher is looser.
    """

    embedder: str = "dlib_resnet"
    """Whose embeddings and neighbors; it must be calibrated."""

    link_ratio: float = Field(default=0.1, gt=0, le=100)
    """For the links between faces that labels spread over. Strict, as one wrong link can join two people."""

    merge_ratio: float = Field(default=20.0, gt=0, le=1000)
    """For the mean similarity of a single face to another face or cluster that it joins."""

    merge_ratio_large: float = Field(default=10.0, gt=0, le=1000)
    """For the mean similarity of two large clusters that become one; in between it goes with 1 / the smaller size."""

    max_size: int = Field(default=100_000, ge=2)
    """No cluster grows beyond this many faces: above it, something other than a person holds it together."""
