"""Which models a measurement on photographs runs: names in, a lake made with them out; and what is expected of them.

Called by bench.verification, bench.clusters and bench.cleaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from facescale.config.extract import ExtractConfig
from facescale.config.flags import everywhere
from facescale.config.job import JobConfig
from facescale.config.load import load_config
from facescale.errors import DataError
from facescale.lake.lake import Lake
from facescale.pipeline import run_job

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from facescale.driver.context import Reporter

_DEFAULT = ExtractConfig()


@dataclass(frozen=True)
class Models:
    """The settings of `facescale run` that say which models it runs, and how.

    Attributes:
        detector: registry name.
        embedder: registry name.
        min_face_px: smallest face.
        det_threshold: in place of the one on the detector's card.
        runtime: "torch" or "onnx"; None for what the card names first.
        weights_dir: folder of weights.
    """

    detector: str = _DEFAULT.detector
    embedder: str = _DEFAULT.embedder
    min_face_px: int = _DEFAULT.min_face_px
    det_threshold: float | None = None
    runtime: str | None = None
    weights_dir: str | None = None

    def settings(self) -> dict[str, Any]:
        """For the head of a result: what is set."""
        named = {
            "detector": self.detector,
            "embedder": self.embedder,
            "min_face_px": self.min_face_px,
            "det_threshold": self.det_threshold,
            "runtime": self.runtime,
        }
        return {name: value for name, value in named.items() if value is not None}

    def expected(self) -> Mapping[str, float]:
        """What these two models must reach on the photographs that the goals were set on; empty for others."""
        return _EXPECTED.get((self.detector, self.embedder), {})


def models_of(lake: Lake, models: Models) -> Models:
    """What made a lake that is there already, as far as it says."""
    faces = lake.current("faces")
    made = {} if faces is None else (lake.describe_version(faces) or {}).get("settings", {})
    return Models(
        detector=str(made.get("detector", "unknown")),
        embedder=models.embedder,
        min_face_px=int(made.get("min_face_px", _DEFAULT.min_face_px)),
        det_threshold=made.get("det_threshold"),
        weights_dir=models.weights_dir,
    )


_EXPECTED = {
    ("dlib_mmod", "dlib_resnet"): {
        "verification": 0.985,
        "identification": 0.970,
        "bcubed_f": 0.935,
        "pairwise_f": 0.89,
    },
    ("yunet_n", "mobilefacenet"): {
        "verification": 0.993,
        "identification": 0.990,
        "bcubed_f": 0.978,
        "pairwise_f": 0.975,
    },
}


def make_lake(
    source: str,
    lake: str,
    models: Models,
    jobs: Sequence[str],
    reporter: Reporter,
    *,
    labels: str | None = None,
) -> Lake:
    """Run jobs over photographs; what is done already is not done again.

    Args:
        source: folder of photographs.
        lake: to make or to go on with.
        models: to run.
        jobs: names, in order.
        reporter: where progress goes.
        labels: CSV with the columns path and identity; None for none.

    Raises:
        DataError: parts are left over.
    """
    given: dict[str, Any] = {
        "src": source,
        "lake": lake,
        "max_failures": 1.0,
        "extract.detector": models.detector,
        "extract.min_face_px": models.min_face_px,
        "extract.det_threshold": models.det_threshold,
        "extract.runtime": models.runtime,
        "extract.weights_dir": models.weights_dir,
        "labels.source": labels,
        "labels.column": None if labels is None else "identity",
    }
    config = load_config(JobConfig, overrides=given | everywhere("embedder", models.embedder))
    for job in jobs:
        summary = run_job(job, config, reporter)
        if summary.exit_code:
            raise DataError(f"{lake} is not complete (exit code {summary.exit_code}): run the command again")
    return Lake.open(lake)
