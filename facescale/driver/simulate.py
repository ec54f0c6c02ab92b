"""Drive `synth embeddings`: a simulation becomes a lake, part by part on the engine, with the truth in one file.

Comes in: what to simulate. Goes out: sources, images, faces, embeddings and labels, set as current, and
LAKE/truth.parquet (facescale.synth.simulate.TRUTH_SCHEMA). Running it again resumes it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from facescale.config.job import JobConfig
from facescale.driver.context import JobContext, JobSummary, SilentReporter, exit_code_of
from facescale.errors import UsageError
from facescale.lake.fingerprint import fingerprint
from facescale.lake.lake import Lake
from facescale.lake.lake_file import TRUTH_FILE
from facescale.lake.parts import TableVersion, list_done
from facescale.lake.scan import sum_counters
from facescale.lake.schema import check_table
from facescale.lake.sources_table import list_shards, shard_path
from facescale.sources.plan import choose_part_rows, planned_parts
from facescale.sources.vector_types import SIMULATED
from facescale.synth import simulate as stage_module
from facescale.synth.simulate import (
    SHARD_ROWS,
    TRUTH_SCHEMA,
    SimulateStage,
    SimulateVersions,
    Simulation,
    shard_uri,
    truth_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from facescale.driver.context import Reporter
    from facescale.sources.plan import SourcePart

STAGE = "simulate"


def run_simulate(
    uri: str,
    simulation: Simulation,
    *,
    model: str = "simulated",
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> JobSummary:
    """Make a lake of simulated embeddings.

    Args:
        uri: root of the lake.
        simulation: what to make.
        model: what the embedder is called.
        workers: processes; 0 runs in this process without Ray, None takes the CPUs there are.
        reporter: where progress goes.

    Raises:
        UsageError: there are more identities than photographs, or the lake holds something else.
    """
    start = time.monotonic()
    if not 1 <= simulation.identities <= simulation.photos:
        raise UsageError(
            f"{simulation.identities:,} identities on {simulation.photos:,} photographs: each needs at least one"
        )
    name = fingerprint(STAGE, simulation.settings(), stage_module.REVISION, {})
    versions = SimulateVersions(
        TableVersion("images", name),
        TableVersion("faces", name),
        TableVersion("embeddings", name, model),
        TableVersion("labels", name),
    )
    lake = Lake.open_or_create(uri)
    _plan(lake, simulation, name)
    config = JobConfig.model_validate({"lake": lake.uri, "engine": {"workers": workers}})
    summary = JobSummary("synth embeddings", lake.uri)
    with JobContext(config, lake, reporter or SilentReporter()) as context:
        for version in (versions.images, versions.faces, versions.embeddings, versions.labels):
            settings = (
                {"embedder": model, **simulation.settings()}
                if version.model == model
                else simulation.settings()
            )
            inputs = {"faces": name} if version.model == model else {}
            lake.write_version(
                version, stage=STAGE, settings=settings, revision=stage_module.REVISION, inputs=inputs
            )
        done = list_done(lake.store, versions.images)

        def to_do() -> Iterator[SourcePart]:
            return (part for part in planned_parts(lake) if part.key not in done)

        left = [part.key.num_rows for part in to_do()]
        stage = context.map(
            SimulateStage(simulation, versions), to_do(), num_parts=len(left), items=sum(left), unit="images"
        )
    stage.parts_kept = len(done)
    if not stage.left_over:
        _write_truth(lake, simulation)
        stage.counters = sum_counters(lake, versions.images)
        made = [versions.images, versions.faces, versions.embeddings, versions.labels]
        lake.set_current(made)
        stage.tables = {version.table: version.folder for version in made}
        stage.notes.append(f"truth: {lake.store.location(TRUTH_FILE)}")
    summary.stages = [stage]
    summary.exit_code = exit_code_of(summary.stages)
    summary.seconds = time.monotonic() - start
    return summary


def _plan(lake: Lake, simulation: Simulation, name: str) -> None:
    """Freeze the plan: a shard for each million photographs."""
    shards = -(-simulation.photos // SHARD_ROWS)
    part_rows = choose_part_rows(simulation.photos)
    for shard in list_shards(lake.store):
        table = lake.store.read_table(shard_path(shard), ["format", "stamp"])
        if table["format"].to_pylist() != [SIMULATED] or table["stamp"].to_pylist() != [name]:
            raise UsageError(f"{lake.uri} holds something else: give each simulation a lake of its own")
    for shard in range(shards):
        rows = min(SHARD_ROWS, simulation.photos - shard * SHARD_ROWS)
        table = pa.table(
            {
                "shard": pa.array([shard], pa.int32()),
                "row": pa.array([0], pa.int64()),
                "uri": [shard_uri(shard)],
                "format": [SIMULATED],
                "bytes": pa.array([0], pa.int64()),
                "stamp": [name],
                "num_rows": pa.array([rows], pa.int64()),
                "part_rows": pa.array([part_rows], pa.int32()),
                "root": [SIMULATED],
            }
        )
        with lake.store.batch(if_absent=True) as batch:
            batch.add_table(shard_path(shard), check_table("sources", table))


def _write_truth(lake: Lake, simulation: Simulation) -> None:
    """The truth of all parts in one file, part by part; it follows from the simulation alone."""
    if lake.store.exists(TRUTH_FILE):
        return
    population = simulation.population()
    with lake.store.temporary_folder() as folder:
        path = folder / "truth.parquet"
        with pq.ParquetWriter(path, TRUTH_SCHEMA, compression="zstd") as writer:
            for part in planned_parts(lake):
                writer.write_table(truth_table(simulation, population, part.key))
        lake.store.write_file(TRUTH_FILE, path)
