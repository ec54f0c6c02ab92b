"""What a similarity of an embedder means: read from a YAML file, given to every job that needs a threshold.

No cosine threshold is portable between embedders, so jobs state false-match rates and quantiles, and a `Calibration`
turns them into cosines of one embedder. `LAKE/calibration/<embedder>.yaml` (made by `facescale calibrate`) wins over
the file that ships here. Called by the drivers of curation; fitted by curate.calibration_fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from facescale.curate.curve import Curve, Quantiles
from facescale.errors import UsageError

if TYPE_CHECKING:
    from facescale.lake.lake import Lake

__all__ = ["Calibration", "Curve", "Genuine", "Quantiles", "RandomPairs", "load_calibration"]


@dataclass(frozen=True)
class Genuine:
    """How similar faces of one person are.

    Attributes:
        pairs: two faces of one person.
        centers: a face and the center of the person's other faces (leave-one-out).
    """

    pairs: Quantiles
    centers: Quantiles


@dataclass(frozen=True)
class RandomPairs:
    """Location and spread of the similarity of two random faces, whoever they show.

    Attributes:
        median: cosine.
        deviation: 1.4826 × median absolute deviation, which is the standard deviation of a Gaussian.
    """

    median: float
    deviation: float


@dataclass(frozen=True)
class Calibration:
    """Thresholds of one embedder, as distributions.

    Attributes:
        embedder: registry name.
        weights_sha256: of the weights that made the embeddings; None where unknown.
        dim: length of the embeddings.
        pairs: faces of different people.
        centers: face to center (normalized mean of four or more faces) of another person.
        genuine: faces of one person.
        random: two random faces; what `drift` compares a lake with.
        re_encode: 0.1 % quantile of the similarity of a face with itself after re-encoding (JPEG 50 to 95, scale 0.7
            to 1.4).
        min_quality: recognizability gate on faces.quality; None where it was fitted without that column.
        evidence: data, counts, who was left out, date, command, check on other people.
    """

    embedder: str
    weights_sha256: str | None
    dim: int
    pairs: Curve
    centers: Curve
    genuine: Genuine
    random: RandomPairs
    re_encode: float
    min_quality: float | None
    evidence: dict[str, Any] = field(default_factory=dict)


def load_calibration(embedder: str, lake: Lake | None = None) -> Calibration:
    """Find the calibration of an embedder.

    Args:
        embedder: registry name.
        lake: its own calibration wins over the one that ships.

    Raises:
        UsageError: there is none; tells how to make one.
    """
    where = lake.uri if lake is not None else "LAKE"
    raise UsageError(
        f"embedder {embedder!r} is not calibrated, so no threshold has a meaning for it: "
        f"run `facescale calibrate {where} --labels FILE --label-column NAME --embedder {embedder}`"
    )
