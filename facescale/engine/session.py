"""Start a private Ray on this machine, or join the cluster whose address is given; hand it back afterwards.

Called by the drivers; everything else in the package may assume that Ray is up.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from facescale.engine.placement import ClusterSize
from facescale.errors import EXIT_INCOMPLETE, UsageError

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
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():  # a library user's own session: use it, leave it running
        yield _cluster_size()
        return
    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    with _own_sigterm():
        if address:
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UsageError(f"no Ray cluster answers at {address}: {error}") from error
        else:
            _lock_down()
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


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's SIGTERM handler: starting Ray installs one that ends the process with code 1 or 15.

    A process without a handler of its own keeps Ray's, which at least ends Ray's processes too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers belong to the main thread; there Ray installs none either
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # a SIGTERM while Ray's handler was in place
        raise SystemExit(EXIT_INCOMPLETE) from None
    finally:
        if callable(before):
            signal.signal(signal.SIGTERM, before)


def _lock_down() -> None:
    """Let only this process and its workers talk to the Ray it starts.

    Ray listens on every network interface, and who may talk to it may run code. Newer versions ask for a token when
    one is started here; without one in the environment they would leave a file in the user's home. A cluster that
    is joined has its own rules (RAY_AUTH_MODE, RAY_AUTH_TOKEN, ~/.ray/auth_token), which are left alone.
    """
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # It would advise to opt out of the token.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)


def usable_cpus() -> int:
    """CPUs this process may run on (its affinity mask, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cluster_size() -> ClusterSize:
    import ray

    resources = ray.cluster_resources()
    return ClusterSize(cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0))
