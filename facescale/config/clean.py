"""What clean is told. Thresholds are false-match rates and shares; calibration turns them into cosines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from facescale.config.base import Config


class CleanConfig(Config):
    """One round of label cleaning on the claims of the labels table."""

    embedder: str = "dlib_resnet"
    """Whose embeddings; it must be calibrated."""

    method: Literal["ownership", "cast"] = "ownership"
    """ownership decides over the whole set whose name each label is. cast, the baseline, keeps the largest DBSCAN
    cluster of each label, then merges labels with like centers or drops the smaller."""

    split_fmr: float = Field(default=3e-3, gt=0, le=0.1)
    """ownership: faces of a label are one person above this false-match rate, in the mean of pairs."""

    merge_fmr: float = Field(default=3e-4, gt=0, le=0.1)
    """ownership: people of different labels are one above this false-match rate; it falls when there are more than 300
    labels."""

    same_name_fmr: float = Field(default=5e-5, gt=0, le=0.1)
    """ownership: two labels whose main people are one above this false-match rate are two names of one person; it falls
    likewise."""

    keep_fmr: float = Field(default=2e-2, gt=0, le=0.5)
    """ownership: a face keeps its label above this false-match rate of face to center."""

    rival_margin: float = Field(default=0.2, ge=0, le=2)
    """ownership: a face leaves its label when another center is nearer by this share of the spread of impostor
    similarities."""

    rival_fmr: float = Field(default=0.1, gt=0, le=1)
    """ownership: such a center must be above this false-match rate of face to center, divided by the number of
    labels."""

    relabel_fmr: float = Field(default=0.005, gt=0, le=0.5)
    """ownership: a face moves to another label above this false-match rate of face to center, divided by the number of
    labels."""

    quarantine_share: float = Field(default=0.67, gt=0, le=1)
    """ownership: a second person with this share of the owner's photographs, and no other name with clearly more, puts
    both into quarantine."""

    cast_link_fmr: float = Field(default=5e-4, gt=0, le=0.1)
    """cast: faces of a label are DBSCAN neighbors above this false-match rate."""

    cast_min_faces: int = Field(default=2, ge=2)
    """cast: neighbors of a DBSCAN core face, itself included."""

    cast_merge_fmr: float = Field(default=1e-8, gt=0, le=0.1)
    """cast: labels are one person when their centers are above this false-match rate of two faces."""

    cast_drop_fmr: float = Field(default=1e-7, gt=0, le=0.1)
    """cast: of two labels whose centers are above this false-match rate of two faces, the smaller is dropped."""

    preset: Literal["arcface"] | None = None
    """cast: published cosines in place of cast_merge_fmr and cast_drop_fmr; for embedders like ArcFace only."""
