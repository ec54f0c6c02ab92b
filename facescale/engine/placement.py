"""How many workers, with how many CPUs, GPUs and threads each: pure functions of configuration and cluster.

Comes in: what the user asked for, what the cluster has, how many parts there are. Goes out: a Placement for map_parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from facescale.errors import UsageError


@dataclass(frozen=True)
class ClusterSize:
    """CPUs and GPUs that can be used, over all nodes."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Placement:
    """What every worker of a stage gets.

    Attributes:
        workers: number of actors; 0 means in the driver's own process, without Ray.
        cpus: CPUs reserved for each.
        gpus: GPUs reserved for each, also a fraction.
        threads: size of the numeric libraries' thread pools in each.
    """

    workers: int
    cpus: float
    gpus: float
    threads: int


def place(
    *,
    workers: int | None,
    threads: int | None,
    gpus_per_worker: float,
    device: str,
    cluster: ClusterSize,
    num_parts: int,
    threads_wanted: int = 1,
) -> Placement:
    """Choose a placement.

    Where more workers or threads are asked for than there are CPUs, less is reserved for each worker than it has
    threads: what does not fit all at once would wait for ever.

    Args:
        workers: as asked for; None works it out: one for each share of a GPU, or on CPUs as many as fit.
        threads: as asked for; None takes `threads_wanted` on CPUs, and a GPU's fair share of CPUs on GPUs.
        gpus_per_worker: share of a GPU each worker takes when the device is a GPU.
        device: "cpu" or "cuda"; other devices are refused by the configuration.
        cluster: what there is.
        num_parts: more workers than parts are never started.
        threads_wanted: threads at which this stage runs best on a CPU.

    Raises:
        UsageError: GPUs were asked for and the cluster has none, or more threads than the cluster has CPUs.
    """
    if workers == 0:
        return Placement(0, 0.0, 0.0, threads or max(1, int(cluster.cpus)))
    if device == "cuda":
        if cluster.gpus < gpus_per_worker:
            raise UsageError(
                f"device cuda was asked for with {gpus_per_worker:g} GPU a worker, but the cluster offers "
                f"{cluster.gpus:g}: check nvidia-smi and `facescale doctor`, or use --device cpu"
            )
        fitting = int(cluster.gpus / gpus_per_worker + 1e-6)
        count = min(workers or fitting, max(1, num_parts))
        each = threads or max(1, int(cluster.cpus / fitting))
        return Placement(count, min(float(each), cluster.cpus / count), gpus_per_worker, each)
    if threads is not None and threads > cluster.cpus:
        raise UsageError(f"--threads {threads} is more than the {cluster.cpus:g} CPUs there are")
    each = threads or max(1, min(threads_wanted, int(cluster.cpus)))
    count = min(workers or max(1, int(cluster.cpus // each)), max(1, num_parts))
    if threads is None and workers is None:
        each = max(each, int(cluster.cpus // count))  # few parts: the CPUs left over become threads
    return Placement(count, min(float(each), cluster.cpus / count), 0.0, each)
