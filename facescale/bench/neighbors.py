"""`facescale bench neighbors`: the job neighbors by cells beside FAISS and hnswlib at the same recall of pairs.

Comes in: a number of simulated faces. Goes out: seconds of the whole job, of `IndexIVFFlat.search` and of hnswlib's
build and queries, and what share of this machine's matrix products ours uses. Called by the command line.

Recall is measured here and not taken from the job: every pair above the floor that brute force finds for a sample of
faces is looked for in the lists that the job wrote; one of the two must have the other. The others are tuned on the
same pairs until they find at least as many, and are then timed on some of the faces: their times are in proportion.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.bench.crowd import make_crowd
from facescale.bench.neighbors_rivals import Edges, faiss_seconds, hnswlib_seconds
from facescale.bench.results import Goal, Result, timed
from facescale.config.job import JobConfig
from facescale.config.load import load_config
from facescale.curate.calibration import calibration_path, dump_calibration
from facescale.curate.calibration_fit import fit
from facescale.engine.session import usable_cpus
from facescale.errors import DataError, UsageError
from facescale.index.exact import NO_ID
from facescale.lake.lake import Lake
from facescale.lake.scan import scan, scan_ids
from facescale.pipeline import run_job

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.bench.crowd import Crowd
    from facescale.driver.context import Reporter

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

MODEL = "simulated"
AHEAD_OF_FAISS, AHEAD_OF_HNSWLIB = 5.0, 8.0
_CALIBRATED_ON = 20_000
_CALIBRATION_PAIRS = 100_000_000
_SAMPLE = 250
_RE_ENCODE = 0.99
_GEMM_ROWS = 4096
_GEMM_TURNS = 5


def bench_neighbors(
    faces: int,
    reporter: Reporter,
    *,
    dim: int = 512,
    k: int = 50,
    edge_recall: float = 0.99,
    rival: bool = True,
    rival_queries: int = 10_000,
    hnsw_faces: int = 100_000,
    workers: int | None = None,
    seed: int = 0,
    work: str | None = None,
) -> Result:
    """Measure ours and the others, one after the other.

    Args:
        faces: how many are simulated.
        reporter: where remarks go.
        dim: D.
        k: length of the lists.
        edge_recall: asked of ours; the others are tuned to what ours then has.
        rival: measure FAISS and hnswlib too.
        rival_queries: faces that they are timed on.
        hnsw_faces: faces that hnswlib's graph is built of, at most.
        workers: of the job; None for one a core, 0 for none, in this process.
        seed: of the faces.
        work: folder for the lake; None for a temporary one.

    Raises:
        UsageError: fewer than 2,000 faces.
        DataError: a job was not done to its end.
    """
    if faces < 2000:
        raise UsageError(
            f"--faces {faces}: at least 2,000, as thresholds are fitted on some and recall on others"
        )
    settings = {
        "faces": faces,
        "dim": dim,
        "k": k,
        "edge_recall": edge_recall,
        "seed": seed,
        "workers": workers,
    }
    result = Result("neighbors", settings)
    with timed(result), tempfile.TemporaryDirectory(prefix="facescale-bench-", dir=work) as place:
        crowd = make_crowd(faces, dim, seed)
        lake, vectors = _make_lake(crowd, Path(place), workers, reporter)
        options = {"neighbors.method": "cells", "neighbors.k": k, "neighbors.edge_recall": edge_recall}
        start = time.perf_counter()
        summary = _run("neighbors", lake.uri, workers, reporter, options)
        seconds = time.perf_counter() - start
        counters = summary.stage("neighbors").counters
        version = lake.current("neighbors", MODEL)
        assert version is not None
        made = (lake.describe_version(version) or {})["settings"]
        if "probes" not in made:
            raise DataError(f"cells were given up: {'; '.join(summary.stage('neighbors').notes)}")
        reporter.say(f"neighbors: {seconds:,.1f} s, {made['probes']} of {made['cells']:,} cells visited")
        ids = np.concatenate(
            [table["face_id"].to_numpy() for table in scan(lake, version, columns=["face_id"])]
        )
        rows = np.sort(np.random.default_rng(seed).choice(faces, min(_SAMPLE, faces), replace=False))
        edges = Edges.among(vectors, rows, k, made["floor"])
        recall = edges.recall(_read_lists(lake, ids, edges.everyone))
        peak = {name: gemm_flops(name, dim) for name in ("fp32", "bf16")}
        flops = 2.0 * dim * counters["pairs"]
        result.figures["faces"] = {
            "simulated": faces,
            "cosine of pairs, at least": made["floor"],
            "pairs of a face, mean of the sample": len(edges.first) / len(rows),
        }
        result.figures["facescale neighbors"] = {
            "seconds, the whole job": seconds,
            "recall of pairs": recall,
            "self-match": counters["met_self"] / counters["in_lists"],
            "cells": made["cells"],
            "visited by each face": made["probes"],
            "products": made["precision"],
            "share of all pairs that were compared": counters["pairs"] / faces**2,
            "TFLOP/s in products, over the whole job": flops / seconds / 1e12,
            "TFLOP/s at the peak": peak[made["precision"]] / 1e12,
            "share of the peak": flops / seconds / peak[made["precision"]],
            "share of the float32 peak": flops / seconds / peak["fp32"],
        }
        goals = [Goal("recall of pairs", recall, edge_recall)]
        if rival:
            goals += _rivals(
                result, vectors, edges, recall, seconds, made, rival_queries, hnsw_faces, reporter, k=k
            )
        result.goals = goals
    return result


def _rivals(
    result: Result,
    vectors: Floats,
    edges: Edges,
    recall: float,
    seconds: float,
    made: dict[str, Any],
    rival_queries: int,
    hnsw_faces: int,
    reporter: Reporter,
    *,
    k: int,
) -> list[Goal]:
    count, cpus = len(vectors), usable_cpus()
    rng = np.random.default_rng(1)
    queries = np.sort(rng.choice(count, min(rival_queries, count), replace=False))
    rows = []
    for nlist in sorted({made["cells"], max(1, made["cells"] // 4)}):
        reporter.say(f"FAISS with {nlist:,} lists")
        rows.append(faiss_seconds(vectors, edges, recall, queries, nlist=nlist, k=k, threads=cpus))
    subset = np.sort(rng.choice(count, min(hnsw_faces, count), replace=False))
    reporter.say(f"hnswlib over {len(subset):,} faces")
    rows.append(hnswlib_seconds(vectors, made["floor"], recall, queries, subset, k=k, threads=cpus))
    for row in rows:
        row["times ours"] = row["seconds"] / seconds
    result.figures["others, at least at that recall"] = rows
    faiss, hnsw = min(row["times ours"] for row in rows[:-1]), rows[-1]["times ours"]
    return [
        Goal("times faster than IndexIVFFlat.search", faiss, AHEAD_OF_FAISS),
        Goal("times faster than hnswlib, build and queries", hnsw, AHEAD_OF_HNSWLIB),
    ]


def gemm_flops(precision: str, dim: int) -> float:
    """The most operations a second that large products reach here: best of several, every core at work."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cpus())
    try:
        matrix = torch.randn((_GEMM_ROWS, dim)).to(dtype)
        out = torch.empty((_GEMM_ROWS, _GEMM_ROWS), dtype=dtype)
        best = 0.0
        for _ in range(_GEMM_TURNS):
            start = time.perf_counter()
            torch.mm(matrix, matrix.T, out=out)
            best = max(best, 2.0 * _GEMM_ROWS**2 * dim / (time.perf_counter() - start))
    finally:
        torch.set_num_threads(before)
    return best


def _make_lake(crowd: Crowd, place: Path, workers: int | None, reporter: Reporter) -> tuple[Lake, Floats]:
    """(a lake of the faces with a calibration fitted on some of them, their vectors as the lake gives them back)."""
    count, dim = len(crowd.person), crowd.centers.shape[1]
    file = np.lib.format.open_memmap(place / "faces.npy", "w+", np.float16, (count, dim))
    start = 0
    for block in crowd.blocks():
        file[start : start + len(block)] = block
        start += len(block)
    file.flush()
    uri = str(place / "lake")
    _run("import", uri, workers, reporter, {"src": str(place / "faces.npy"), "imports.model": MODEL})
    lake = Lake.open(uri)
    vectors = np.empty((count, dim), np.float32)
    for start in range(0, count, 65_536):
        block = file[start : start + 65_536].astype(np.float32)
        vectors[start : start + 65_536] = block / np.linalg.norm(block, axis=1, keepdims=True)
    del file
    some = np.sort(np.random.default_rng(0).choice(count, min(_CALIBRATED_ON, count // 2), replace=False))
    calibration = fit(
        vectors[some],
        crowd.person[some],
        some.astype(np.int64),
        embedder=MODEL,
        re_encode=_RE_ENCODE,
        max_pairs=_CALIBRATION_PAIRS,
    )
    lake.store.write_bytes(calibration_path(MODEL), dump_calibration(calibration))
    return lake, vectors


def _run(job: str, uri: str, workers: int | None, reporter: Reporter, options: dict[str, Any]) -> Any:
    given = {
        "lake": uri,
        "engine.workers": workers,
        "engine.device": "cpu",
        "neighbors.embedder": MODEL,
        **options,
    }
    config = load_config(
        JobConfig, overrides={name: value for name, value in given.items() if value is not None}
    )
    summary = run_job(job, config, reporter)
    if summary.exit_code:
        raise DataError(f"{job} is not complete (exit code {summary.exit_code}): run the command again")
    return summary


def _read_lists(lake: Lake, ids: Ints, rows: Ints) -> Ints:
    """Lists of some rows, ids turned into rows: int64 [Q, longest]; -1 at the end of shorter ones."""
    version = lake.current("neighbors", MODEL)
    assert version is not None
    lists = (
        scan_ids(lake, version, ids[rows], ["neighbor_ids"]).combine_chunks()["neighbor_ids"].combine_chunks()
    )
    length = lists.value_lengths().to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(rows)), length)
    place = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
    found = np.full((len(rows), int(length.max(initial=0))), NO_ID, np.int64)
    found[row, place] = np.searchsorted(ids, lists.flatten().to_numpy())
    return found
