"""`facescale bench partial-fc`: our head beside the two public ones, speed and memory, at one size after the other.

Each contender runs in a process of its own, in turns, so that memory is its own and noise hits all alike.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from facescale.bench.results import Goal, Result, progress, timed
from facescale.engine.session import usable_cpus
from facescale.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.driver.context import Reporter

_NAMES = {"ours": "ours", "V2": "V2: indexed parameter", "V1": "V1: gathered weights"}


def bench_partial_fc(
    reporter: Reporter,
    *,
    classes: Sequence[int] = (200_000, 1_000_000),
    rates: Sequence[float] = (0.1, 1.0),
    batch: int = 128,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    device: str = "cpu",
    steps: int = 3,
    rounds: int = 3,
) -> Result:
    """Measure.

    Args:
        reporter: of progress.
        classes: C of each size.
        rates: share of the classes that takes part.
        batch: faces of a step.
        dtypes: of the matrix products; every contender counts with the faster one.
        device: torch device.
        steps: timed in each process, of which the median counts.
        rounds: processes of each contender; the median counts.
    """
    threads = usable_cpus()
    settings = {
        "classes": list(classes),
        "rates": list(rates),
        "batch": batch,
        "dtypes": list(dtypes),
        "device": device,
        "steps": steps,
        "rounds": rounds,
        "dim": 512,
        "threads": threads,
    }
    result = Result("partial-fc", settings)
    rows = []
    total = len(classes) * len(rates) * len(_NAMES) * len(dtypes) * rounds
    with timed(result), progress(reporter, "partial-fc", items=total, unit="runs") as advance:
        for count in classes:
            for rate in rates:
                runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
                for turn in range(rounds):
                    order = list(_NAMES)[turn % 3 :] + list(_NAMES)[: turn % 3]
                    for contender in order:
                        for dtype in dtypes:
                            run = _run(contender, count, batch, rate, dtype, device, steps, threads)
                            runs.setdefault((contender, dtype), []).append(run)
                            advance(1)
                rows += _compare(count, rate, runs, result, device)
    result.figures["heads"] = rows
    return result


def _run(
    contender: str, classes: int, batch: int, rate: float, dtype: str, device: str, steps: int, threads: int
) -> dict[str, Any]:
    """One process; one that the system kills for memory counts as out of memory."""
    asked = {
        "contender": contender,
        "classes": classes,
        "batch": batch,
        "rate": rate,
        "dtype": dtype,
        "device": device,
        "steps": steps,
        "threads": threads,
    }
    command = [sys.executable, "-m", "facescale.bench.partial_fc_loop", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == -9:
        return {"error": "out of memory"}
    if done.returncode:
        raise InfrastructureError(f"bench partial-fc: {contender} failed: {done.stderr.strip()[-500:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _compare(
    classes: int, rate: float, runs: dict[tuple[str, str], list[dict[str, Any]]], result: Result, device: str
) -> list[dict[str, Any]]:
    """Rows of the table, and the goals, of one size."""
    best: dict[str, dict[str, Any]] = {}
    for (contender, dtype), measured in runs.items():
        if any("error" in run for run in measured):
            best.setdefault(contender, {"dtype": dtype, "faces_per_s": None})
            continue
        row = {"dtype": dtype} | {
            name: statistics.median(run[name] for run in measured)
            for name in ("faces_per_s", "state_bytes", "peak_bytes", "transient_bytes")
        }
        before = (best.get(contender) or {}).get("faces_per_s")
        if before is None or row["faces_per_s"] > before:
            best[contender] = row
    rivals = [best[name] for name in ("V1", "V2") if best[name]["faces_per_s"] is not None]
    ours = best["ours"]
    if rivals and ours["faces_per_s"] is not None:
        faster = max(rivals, key=lambda row: row["faces_per_s"])
        leaner = min(rivals, key=lambda row: row["transient_bytes"])
        smaller = min(rivals, key=lambda row: row["peak_bytes"])
        at = f"{classes:,} classes, r = {rate:g}"
        on_gpu = device != "cpu"
        sampled = rate < 1
        result.goals.append(
            Goal(
                f"{at}: faces/s, times the faster rival",
                ours["faces_per_s"] / faster["faces_per_s"],
                at_least=1.3 if on_gpu and sampled else 1.0,
            )
        )
        share = ours["transient_bytes"] / max(leaner["transient_bytes"], 1)
        total = ours["peak_bytes"] / smaller["peak_bytes"]
        if on_gpu:
            result.goals.append(
                Goal(
                    f"{at}: transient memory, share of the leaner rival's",
                    share,
                    at_most=0.3 if sampled else 0.15,
                )
            )
            if not sampled:
                result.goals.append(
                    Goal(f"{at}: total memory, share of the smaller rival's", total, at_most=0.5)
                )
    return [
        {
            "classes": f"{classes:,}",
            "r": rate,
            "head": _NAMES[name],
            "products in": best[name]["dtype"],
            "faces/s": best[name]["faces_per_s"] or "out of memory",
            "centers and momentum, MiB": _mib(best[name].get("state_bytes")),
            "transient, MiB": _mib(best[name].get("transient_bytes")),
        }
        for name in _NAMES
    ]


def _mib(count: float | None) -> int | None:
    return None if count is None else round(count / 2**20)
