"""Where a job runs and with how much: none of this changes results."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from facescale.config.base import Config


class EngineConfig(Config):
    """Workers, threads, devices and deadlines of the distributed stages."""

    address: str | None = None
    """Address of a running Ray cluster; unset looks at RAY_ADDRESS, and without that starts Ray here."""

    workers: int | None = Field(default=None, ge=0)
    """Number of worker processes; unset works it out from the cluster; 0 runs in this process without Ray."""

    threads: int | None = Field(default=None, ge=1)
    """Threads of the numeric libraries in each worker; unset works it out."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run. auto takes CUDA when there is a GPU; a device asked for and absent is an error."""

    gpus_per_worker: float = Field(default=1.0, gt=0)
    """Share of a GPU for each worker: 0.5 puts two workers on one GPU."""

    deadline_min_s: float = Field(default=300.0, gt=0)
    """A part is never given up earlier than this."""

    deadline_factor: float = Field(default=10.0, gt=1)
    """A part past this many times the median is given up and its worker replaced."""

    deadline_first_row_s: float = Field(default=2.0, gt=0)
    """Seconds a row allowed before any part is done."""

    deadline_item_s: float = Field(default=60.0, gt=0)
    """Seconds for one image in careful mode; a slower one gets the status poison."""
