"""Start a private Ray on this machine, or join the cluster whose address is given; hand it back afterwards.

Called by the drivers; everything else in the package may assume that Ray is up.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from facescale.engine.placement import ClusterSize
from facescale.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_OBJECT_STORE_BYTES = 128 << 20  # only descriptors and counters cross it


@contextmanager
def ray_session(address: str | None, *, num_cpus: int | None = None) -> Iterator[ClusterSize]:
    """Ray for the length of a `with` block.

    Args:
        address: of a running cluster; None looks at RAY_ADDRESS, and without that starts Ray here.
        num_cpus: for a Ray started here; None takes the CPUs this process may use.

    Yields:
        What the cluster offers.

    Raises:
        UsageError: no cluster answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():  # a library user's own session: use it, leave it running
        yield _cluster_size()
        return
    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(f"no Ray cluster answers at {address}: {error}") from error
    else:
        ray.init(
            address="local",
            num_cpus=num_cpus or usable_cpus(),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            # Same machine, same interpreter: what the driver can import (plug-ins), workers can.
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}},
            **quiet,
        )
    try:
        yield _cluster_size()
    finally:
        ray.shutdown()


def usable_cpus() -> int:
    """CPUs this process may run on (its affinity mask, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cluster_size() -> ClusterSize:
    import ray

    resources = ray.cluster_resources()
    return ClusterSize(cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0))
