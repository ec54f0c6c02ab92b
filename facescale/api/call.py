"""The arguments of a function of the Python API in, the job they mean run: called by every module of this package."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from facescale import pipeline
from facescale.config.flags import job_overrides
from facescale.config.job import JobConfig
from facescale.config.load import load_config
from facescale.lake.lake import Lake as AnyLake

if TYPE_CHECKING:
    from collections.abc import Mapping

    from facescale.driver.context import JobSummary

    PathLike = str | os.PathLike[str]
    LakeLike = PathLike | AnyLake


def run_job(job: str, given: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> JobSummary:
    """Run a job for a function of this package.

    Args:
        job: a key of pipeline.JOBS.
        given: the arguments of the function, by name.
        own: settings that only this job has, by dotted path.
    """
    return pipeline.run_job(job, settings_of(given, own), given["reporter"])


def settings_of(given: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> JobConfig:
    """The configuration that a function was called with.

    Args:
        given: the arguments of the function, by name.
        own: settings that only this job has, by dotted path.
    """
    flags = dict(given)
    for name in ("src", "labels", "weights_dir"):
        if flags.get(name) is not None:
            flags[name] = os.fspath(flags[name])
    if flags["lake"] is not None:
        flags["lake"] = lake_uri(flags["lake"])
    overrides = {**job_overrides(flags), **(own or {})}
    config = flags["config"]
    if config is None or isinstance(config, JobConfig):
        return load_config(JobConfig, base=config, overrides=overrides)
    return load_config(JobConfig, file=os.fspath(config), overrides=overrides)


def lake_uri(lake: LakeLike) -> str:
    """URI of a lake that is given by path, URI, or as a Lake."""
    return lake.uri if isinstance(lake, AnyLake) else os.fspath(lake)
