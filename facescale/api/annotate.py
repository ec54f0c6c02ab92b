"""The job that runs other models over the stored crops, as a function; offered as facescale.annotate.

What is said in facescale.api.jobs of keywords, errors and exit codes goes for it too.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from facescale.api.call import run_job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.api.call import LakeLike, PathLike
    from facescale.config.job import JobConfig
    from facescale.driver.context import JobSummary, Reporter


def annotate(
    lake: LakeLike | None = None,
    *,
    annotators: Sequence[PathLike] | None = None,
    precision: str | None = None,
    runtime: str | None = None,
    weights_dir: PathLike | None = None,
    offline: bool = False,
    accept_license: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    plugins: Sequence[str] | None = None,
    config: JobConfig | PathLike | None = None,
    reporter: Reporter | None = None,
) -> JobSummary:
    """Run other models over the stored crops; what they say of each face becomes columns of `attributes`.

    Args:
        lake: the lake.
        annotators: registry names, or paths of model cards (.yaml): what --with is on the command line.
        precision: as the others below, see `run`.
        runtime: "auto", "torch" or "onnx".
        weights_dir: folder with weights; they are also looked for beside a card.
        offline: download no weights.
        accept_license: run models whose licence forbids commercial use.
        workers: processes; 0 runs in this process without Ray.
        threads: in each worker.
        device: "auto", "cpu" or "cuda".
        gpus_per_worker: share of a GPU for each worker.
        address: Ray cluster to join.
        plugins: Python modules that register further models.
        config: all other settings: a JobConfig or a YAML file; keywords override it.
        reporter: where progress goes; None is silent.

    Raises:
        UsageError: no annotator, a wrong card, no weights, or the lake has no crops.
        MismatchError: the network's outputs, or the faces' landmarks, are not what the card says.
        FacescaleError: the job could not be done; see the module.
    """
    names = None if annotators is None else tuple(os.fspath(name) for name in annotators)
    return run_job("annotate", locals(), {"annotate.annotators": names})
