"""The end of a build: measure recall on the held-out queries, tune, write the manifest, or fall back to exact search.

A build whose shards are done comes in; a manifest goes out. Called by the driver.

The truth is exact: every face of the index was compared with every query by blocked matrix products in torch while
the shards were built (facescale.index.exact; no index library is involved). The queries are faces of the index that
no training has seen; each is left out of its own list, and whether it finds itself is measured separately, because
libraries lose that silently.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.errors import CorruptError, IncompleteError
from facescale.index.backends import load_backend
from facescale.index.build import fall_back, plan_index
from facescale.index.exact import drop_self, merge_top_k, recall_at_k
from facescale.index.manifest import Manifest, RecallPoint, read_manifest, write_manifest
from facescale.index.plan import Layout, estimate_bytes
from facescale.index.scratch import done_shards, read_queries, read_record, read_training, read_truth
from facescale.index.shards import ShardSet
from facescale.index.stages import IndexStage, TrainStage, training_units, units_to_do
from facescale.lake.stage import Guard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from facescale.index.build import IndexBuild, IndexSettings
    from facescale.lake.lake import Lake

METHOD = (
    "blocked exact inner products (torch float32) of held-out queries with every face of the index; the query itself "
    "left out, faces as similar as the k-th (1e-6) count as found; probes widened until mean recall minus one "
    "standard error meets the target"
)
_MIN_EF = 16
_MAX_EF = 4096
_REFINEMENTS = 3
_MAX_LIST_SHARE = 1 / 8


def check_training(lake: Lake, build: IndexBuild) -> IndexBuild:
    """Go on with a build, or with exact search when the trained codes cannot reach the recall target.

    Args:
        lake: the lake.
        build: a build whose training is done.

    Returns:
        The same build, or the one that replaces it.

    Raises:
        IncompleteError: the training is not done.
    """
    if build.plan.count == 0:
        return build
    record = read_training(lake.store, build)
    if record is None:
        raise IncompleteError(
            f"{lake.uri}: the training of the index is not done; run `facescale index {lake.uri}` again"
        )
    recall = record.get("sample_recall")
    if recall is None or recall >= build.settings.recall_target:
        return build
    return fall_back(lake, build, {"recall": round(recall, 4), "when": "on its training sample"})


def finish_index(lake: Lake, build: IndexBuild, *, threads: int = 1, gpu: bool = False) -> IndexBuild:
    """Measure, tune and write the manifest; or plan exact search when the recall target is out of reach.

    Args:
        lake: the lake.
        build: a build whose shards are done.
        threads: of the searches that are measured.
        gpu: measure on the GPU where the kind can be searched there.

    Returns:
        The same build when its manifest is written (now or before), else the one that replaces it and is to be built.

    Raises:
        IncompleteError: shards are missing.
        CorruptError: shards do not hold the faces they should, or exact search is not exact.
    """
    if read_manifest(lake.store, build.version) is not None:
        lake.store.delete_tree(build.scratch)  # left over when the job died right after the manifest
        return build
    done = done_shards(lake.store, build)
    left = [shard.file for shard in build.shards if shard.key.shard not in done]
    if left:
        raise IncompleteError(
            f"{lake.uri}: {len(left)} of {len(build.shards)} index shards are not done ({left[0]} is the first); run "
            f"`facescale index {lake.uri}` again"
        )
    records = tuple(read_record(lake.store, build, shard) for shard in build.shards)
    count = sum(record.count for record in records)
    if count != build.plan.count:
        raise CorruptError(
            f"{lake.store.location(build.version.folder)}: its shards hold {count:,} faces, and the embeddings have "
            f"{build.plan.count:,}; delete {lake.store.location(build.scratch)} and run `facescale index` again"
        )
    curve: list[RecallPoint] = []
    chosen: RecallPoint | None = None
    if count:
        shards = ShardSet(
            lake.store,
            build.version.folder,
            build.plan.layout,
            records,
            memory_bytes=build.settings.memory_bytes,
            threads=threads,
            gpu=gpu,
        )
        measure = _measure(lake, build, shards)
        target = build.settings.recall_target
        chosen, curve = tune(measure, target, *_probe_range(build))
        shards.close()
        if chosen.recall < target:
            if build.plan.layout.is_exact:
                raise CorruptError(
                    f"{lake.store.location(build.version.folder)}: exact search found only {chosen.recall:.4f} of the "
                    "true neighbors, so a shard is damaged or the library is faulty; delete the folder and run "
                    "`facescale index` again"
                )
            return fall_back(
                lake, build, {"recall": round(chosen.recall, 4), "when": "with its widest search"}
            )
        if _is_slower_than_exact(build, chosen):
            when = f"only by probing {chosen.probes:,} of {build.plan.layout.nlist:,} lists"
            return fall_back(lake, build, {"recall": round(chosen.recall, 4), "when": when})
    write_manifest(lake.store, build.version, _manifest(lake, build, records, chosen, curve))
    lake.store.delete_tree(build.scratch)
    return build


def tune(
    measure: Callable[[int | None], RecallPoint], target: float, first: int | None, most: int | None
) -> tuple[RecallPoint, list[RecallPoint]]:
    """Find the narrowest search that meets a recall target.

    Probes are doubled from `first` until the mean recall less one standard error meets the target, then bisected
    three times between the last that failed and the first that did.

    Args:
        measure: gives recall at a number of probes.
        target: recall wanted.
        first: probes to begin with; None for an exact index, which is measured once.
        most: the widest search there is.

    Returns:
        (the chosen point, all points measured by ascending probes). When nothing meets the target the chosen one is
        that of `most`; whether its mean does is for the caller to see.
    """
    if first is None or most is None:
        point = measure(None)
        return point, [point]
    points: list[RecallPoint] = []
    low = probes = min(first, most)
    while True:
        points.append(measure(probes))
        if _is_enough(points[-1], target) or probes == most:
            break
        low, probes = probes, min(2 * probes, most)
    high = points[-1]
    for _ in range(_REFINEMENTS):
        middle = (low + (high.probes or 0)) // 2
        if not _is_enough(high, target) or middle in (low, high.probes):
            break
        points.append(measure(middle))
        if _is_enough(points[-1], target):
            high = points[-1]
        else:
            low = middle
    return high, sorted(points, key=lambda point: point.probes or 0)


def _is_enough(point: RecallPoint, target: float) -> bool:
    return point.recall - point.standard_error >= target


def _is_slower_than_exact(build: IndexBuild, chosen: RecallPoint) -> bool:
    """Whether lists were chosen for speed and have none, while exact search would fit the memory.

    Lists are scanned vector by vector, exact search in matrix products: on 300,000 × 128 a scan of 31 % of the lists
    took three times as long as exact search, so an eighth is about where they meet.
    """
    layout, settings = build.plan.layout, build.settings
    if (
        settings.kind != "auto"
        or not layout.has_lists
        or (chosen.probes or 0) <= layout.nlist * _MAX_LIST_SHARE
    ):
        return False
    flat = Layout(backend=layout.backend, kind="flat", dim=layout.dim)
    return estimate_bytes(flat, build.plan.count) <= settings.memory_bytes


def _probe_range(build: IndexBuild) -> tuple[int | None, int | None]:
    layout = build.plan.layout
    if layout.probe_name is None:
        return None, None
    if layout.has_lists:
        return 1, layout.nlist
    # A graph search keeps at least as many candidates as neighbors are asked for (k and the query itself).
    first = max(_MIN_EF, build.settings.recall_k + 1)
    return first, max(first, _MAX_EF)


def _measure(lake: Lake, build: IndexBuild, shards: ShardSet) -> Callable[[int | None], RecallPoint]:
    """A function that searches the held-out queries at a number of probes and compares with the truth."""
    k = build.settings.recall_k
    own, queries = read_queries(lake.store, build)
    truth_ids, truth_sims = _merged_truth(lake, build)
    # With more than k copies of a face in the lake, not finding the one asked with is no fault.
    crowded = truth_sims[:, k] >= 1 - 1e-6
    others_ids, others_sims = drop_self(truth_ids, truth_sims, own)
    shards.search(queries[:1], 1, probes=1)  # load before the clock runs

    def measure(probes: int | None) -> RecallPoint:
        start = time.perf_counter()
        ids, sims = shards.search(queries, k + 1, probes=probes)
        seconds = time.perf_counter() - start
        found, _ = drop_self(ids, sims, own)
        recall = recall_at_k(found, others_ids, others_sims, k)
        recall = recall[np.isfinite(recall)]
        if not len(recall):
            recall = np.ones(1)  # a single face: nothing could be missed
        return RecallPoint(
            probes=probes,
            recall=round(float(recall.mean()), 6),
            standard_error=round(float(recall.std() / np.sqrt(len(recall))), 6),
            self_match=round(float(((ids == own[:, None]).any(1) | crowded).mean()), 6),
            ms_per_query=round(1000 * seconds / len(queries), 4),
        )

    return measure


def _merged_truth(lake: Lake, build: IndexBuild) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    ids, sims = read_truth(lake.store, build, build.shards[0])
    for shard in build.shards[1:]:
        more_ids, more_sims = read_truth(lake.store, build, shard)
        ids, sims = merge_top_k(
            np.concatenate([ids, more_ids], axis=1), np.concatenate([sims, more_sims], axis=1), ids.shape[1]
        )
    return ids, sims


def _manifest(
    lake: Lake, build: IndexBuild, records: Any, chosen: RecallPoint | None, curve: list[RecallPoint]
) -> Manifest:
    training = read_training(lake.store, build) or {}
    queries = training.pop("queries", 0)
    return Manifest(
        model=build.version.model,
        dim=build.plan.layout.dim,
        count=build.plan.count,
        layout=build.plan.layout,
        probes=None if chosen is None else chosen.probes,
        shards=records,
        why=build.plan.why,
        recall={
            "k": build.settings.recall_k,
            "target": build.settings.recall_target,
            "queries": queries,
            "seed": build.settings.seed,
            "method": METHOD,
            "measured": None if chosen is None else vars(chosen),
            "curve": [vars(point) for point in curve],
        },
        training=training if build.plan.train_size else {},
        inputs={**build.inputs, "num_parts": len(build.parts)},
        fallback=build.fallback,
        library=load_backend(build.plan.layout.backend).version(),
    )


def build_index(lake: Lake, model: str, settings: IndexSettings, *, threads: int = 1) -> IndexBuild:
    """Build an index from end to end in this process, without Ray, and make it current.

    Args:
        lake: the lake.
        model: embedder.
        settings: what is asked for.
        threads: of faiss and torch.

    Returns:
        The build that is finished; its manifest is read by facescale.index.manifest.read_manifest.
    """
    build = plan_index(lake, model, settings)
    while read_manifest(lake.store, build.version) is None:
        _run(TrainStage(lake.store, build, threads=threads), training_units(lake, build))
        trained = check_training(lake, build)
        if trained is not build:
            build = trained
            continue
        _run(IndexStage(lake.store, build, threads=threads), units_to_do(lake, build))
        build = finish_index(lake, build, threads=threads)
    lake.set_current([build.version])
    return build


def _run(stage: TrainStage | IndexStage, units: Sequence[Any]) -> None:
    if units:
        stage.open()
    for unit in units:
        stage.process(unit, Guard())
