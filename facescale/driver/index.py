"""Drive index: plan it, train once, encode shards on the engine, measure recall, write the manifest, set it current.

Comes in: a lake with embeddings. Goes out: an index version whose manifest says how good it is; falls back to exact
search, and says so, when an approximate index does not reach the recall target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from facescale.driver.context import StageSummary
from facescale.index.build import IndexSettings, plan_index
from facescale.index.finish import check_training, finish_index
from facescale.index.manifest import read_manifest
from facescale.index.stages import IndexStage, TrainStage, training_units, units_to_do

if TYPE_CHECKING:
    from facescale.config.job import JobConfig
    from facescale.driver.context import JobContext
    from facescale.index.build import IndexBuild
    from facescale.index.manifest import Manifest


def run_index(context: JobContext) -> StageSummary:
    """Build the index over the current embeddings of one model; resumes by itself."""
    lake = context.lake
    total = StageSummary("index")
    build = plan_index(lake, context.config.index.embedder, index_settings(context.config))
    total.parts_kept = len(build.shards)
    while read_manifest(lake.store, build.version) is None:
        _map(context, build, total, training=True)
        trained = check_training(lake, build)
        if trained is build:
            _map(context, build, total, training=False)
            if total.left_over:
                return total
            trained = finish_index(lake, build, threads=max(1, int(context.cluster.cpus)))
        if trained is not build:
            context.reporter.warn(f"{build.plan.layout.factory} is given up: {trained.plan.why}")
        build = trained
    manifest = read_manifest(lake.store, build.version)
    assert manifest is not None
    lake.set_current([build.version])
    total.parts_kept = max(0, len(build.shards) - total.parts_run)
    total.tables = {"index": build.version.folder}
    total.counters = {"faces": manifest.count, "bytes": manifest.num_bytes}
    total.notes.append(_describe(manifest))
    return total


def index_settings(config: JobConfig) -> IndexSettings:
    """What the index stage asks for, of a job's configuration."""
    index = config.index
    return IndexSettings(
        backend=index.backend,
        memory_bytes=int(index.memory_gib * 2**30),
        recall_target=index.recall,
        shard_vectors=index.shard_faces,
        seed=index.seed,
        gpu=False if config.engine.device == "cpu" else None,
    )


def _map(context: JobContext, build: IndexBuild, total: StageSummary, *, training: bool) -> None:
    """Train, or encode the shards that are not done; adds to the summary."""
    store = context.lake.store
    units = training_units(context.lake, build) if training else units_to_do(context.lake, build)
    if not units:
        return
    device = "cuda" if training and build.gpu else "cpu"
    cpus = int(context.cluster.cpus)
    threads = context.place(len(units), device=device, threads_wanted=cpus).threads
    stage = (
        TrainStage(store, build, threads=threads) if training else IndexStage(store, build, threads=threads)
    )
    done = context.map(
        stage,
        units,
        num_parts=len(units),
        items=sum(unit.key.num_rows for unit in units),
        unit="faces",
        device=device,
        threads_wanted=cpus,
    )
    if not training:
        total.parts_run += done.parts_run
    total.seconds += done.seconds
    total.workers, total.deaths = done.workers, total.deaths + done.deaths
    total.left_over += done.left_over


def _describe(manifest: Manifest) -> str:
    measured = manifest.recall["measured"]
    text = manifest.why
    if measured is None:
        return text
    return (
        f"{text}; recall@{manifest.recall['k']} {measured['recall']:.4f} and self-match {measured['self_match']:.4f} "
        f"on {manifest.recall['queries']:,} held-out faces, {measured['ms_per_query']:.2f} ms a query"
    )
