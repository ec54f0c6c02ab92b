"""What clean is told. Thresholds are false-match rates and shares; calibration turns them into cosines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from facescale.config.base import Config


class CleanConfig(Config):
    """One round of label cleaning on the claims of the labels table."""

    embedder: str = "dlib_resnet"
    """Whose embeddings; it must be calibrated."""

    method: Literal["ownership"] = "ownership"
    """ownership decides over the whole set whose name each label is."""

    split_fmr: float = Field(default=3e-3, gt=0, le=0.1)
    """Faces of a label are one person above this false-match rate, in the mean of pairs."""

    merge_fmr: float = Field(default=3e-4, gt=0, le=0.1)
    """People of different labels are one above this false-match rate; it falls when there are more than 300 labels."""

    keep_fmr: float = Field(default=3e-2, gt=0, le=0.5)
    """A face keeps its label above this false-match rate of face to center."""

    rival_margin: float = Field(default=0.4, ge=0, le=2)
    """A face leaves its label when another center is nearer by this share of the spread of impostor similarities."""

    relabel_fmr: float = Field(default=0.02, gt=0, le=0.5)
    """A face moves to another label above this false-match rate of face to center, divided by the number of labels."""

    quarantine_share: float = Field(default=0.67, gt=0, le=1)
    """A second person without a name, with this share of the owner's photographs, puts both into quarantine."""
