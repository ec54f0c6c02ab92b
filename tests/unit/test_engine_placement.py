"""How many workers, with what: a table of wishes, clusters and parts."""

from __future__ import annotations

from typing import Any

import pytest

from facescale.engine.placement import ClusterSize, Placement, place
from facescale.errors import UsageError

WISHES: dict[str, Any] = {"workers": None, "threads": None, "gpus_per_worker": 1.0, "device": "cpu"}


def placed(cpus: float, gpus: float, parts: int, **wishes: Any) -> Placement:
    return place(**(WISHES | wishes), cluster=ClusterSize(cpus, gpus), num_parts=parts)


@pytest.mark.parametrize(
    ("cpus", "gpus", "parts", "wishes", "workers", "each_cpus", "each_gpus", "threads"),
    [
        (8, 0, 100, {}, 8, 1, 0, 1),
        (8, 0, 100, {"threads_wanted": 2}, 4, 2, 0, 2),
        (8, 0, 3, {}, 3, 2, 0, 2),  # few parts: the CPUs left over become threads
        (8, 0, 1, {"threads_wanted": 8}, 1, 8, 0, 8),
        (8, 0, 100, {"workers": 2}, 2, 1, 0, 1),
        (8, 0, 100, {"threads": 3}, 2, 3, 0, 3),
        (8, 0, 100, {"workers": 3, "threads": 2}, 3, 2, 0, 2),
        (2, 0, 100, {"workers": 4}, 4, 0.5, 0, 1),  # more than fit: less is reserved for each
        (0.5, 0, 100, {}, 1, 0.5, 0, 1),
        (16, 2, 100, {"device": "cuda"}, 2, 8, 1, 8),
        (16, 2, 100, {"device": "cuda", "gpus_per_worker": 0.5}, 4, 4, 0.5, 4),
        (16, 2, 100, {"device": "cuda", "workers": 1}, 1, 8, 1, 8),
        (16, 2, 1, {"device": "cuda"}, 1, 8, 1, 8),
        (1, 4, 100, {"device": "cuda"}, 4, 0.25, 1, 1),
        (16, 1, 100, {"device": "cuda", "gpus_per_worker": 0.25, "threads": 8}, 4, 4, 0.25, 8),
        (16, 1, 100, {"device": "cuda", "gpus_per_worker": 0.1, "threads": 1}, 10, 1, 0.1, 1),
        (16, 2, 100, {}, 16, 1, 0, 1),  # GPUs that are not asked for are left alone
        (8, 2, 100, {"workers": 0, "device": "cuda"}, 0, 0, 0, 8),  # in this process
        (8, 0, 100, {"workers": 0, "threads": 2}, 0, 0, 0, 2),
    ],
)
def test_placement(
    cpus: float,
    gpus: float,
    parts: int,
    wishes: dict[str, Any],
    workers: int,
    each_cpus: float,
    each_gpus: float,
    threads: int,
) -> None:
    found = placed(cpus, gpus, parts, **wishes)
    assert found == Placement(workers, each_cpus, each_gpus, threads)
    # What is reserved fits all at once, or workers would wait for each other for ever.
    assert found.workers * found.gpus <= gpus + 1e-9
    assert found.workers * found.cpus <= cpus + 1e-9


def test_impossible_wishes_are_refused_before_anything_waits() -> None:
    with pytest.raises(UsageError, match=r"the cluster offers 0: check nvidia-smi.*--device cpu"):
        placed(8, 0, 10, device="cuda")
    with pytest.raises(UsageError, match=r"with 2 GPU a worker, but the cluster offers 1"):
        placed(8, 1, 10, device="cuda", gpus_per_worker=2.0)
    with pytest.raises(UsageError, match="--threads 9 is more than the 8 CPUs there are"):
        placed(8, 0, 10, threads=9)
