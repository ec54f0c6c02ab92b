"""Drive cluster: find out which faces show one person, over the whole lake, and write a row about every face.

Comes in: a lake with current faces, embeddings and neighbors (and duplicates, where dedup has run). Goes out: a
clusters version of the embedder, set as current. The clustering is done here, in one process, on arrays: a face takes
16 D + 300 bytes and 75 more for each of its neighbors above the lowest threshold. Only the table is written part by
part, so a killed job clusters again and writes what is missing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.curate import cluster as algorithm
from facescale.curate.calibration import require_calibration
from facescale.curate.cluster import ClusterRules, Clusters
from facescale.curate.cluster_copies import inherit
from facescale.curate.cluster_fit import UNASSIGNED
from facescale.curate.drift import drift_warning
from facescale.curate.duplicates import representatives
from facescale.curate.graph import Links
from facescale.driver.clean import read_faces
from facescale.driver.context import StageSummary
from facescale.driver.whole import input_digest, is_behind
from facescale.errors import UsageError
from facescale.lake.fingerprint import fingerprint
from facescale.lake.ids import image_id_of, make_image_id
from facescale.lake.parts import DoneParts, TableVersion, commit_part, list_done
from facescale.lake.scan import scan, sum_counters

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from facescale.config.cluster import ClusterConfig
    from facescale.curate.calibration import Calibration
    from facescale.driver.context import JobContext
    from facescale.lake.lake import Lake
    from facescale.lake.parts import PartKey

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ClusterPlan:
    """What a run of cluster will make, and of what."""

    faces: TableVersion
    embeddings: TableVersion
    neighbors: TableVersion
    duplicates: TableVersion | None
    output: TableVersion
    calibration: Calibration
    min_quality: float | None
    settings: dict[str, Any]
    inputs: dict[str, str]
    wanted: DoneParts
    done: DoneParts


@dataclass(frozen=True, eq=False)
class Lists:
    """The table of neighbors in memory.

    Attributes:
        face_id: int64 [N], rising: faces that have a list.
        links: their entries above a similarity.
        nearest: float32 [N], similarity of each list's first entry, however low; -1 for an empty list.
    """

    face_id: Ints
    links: Links
    nearest: Floats


@dataclass(frozen=True, eq=False)
class Rows:
    """The table of clusters in memory.

    Attributes:
        face_id: int64 [N], rising: every face of the lake.
        cluster_id: int64 [N], smallest face id of the cluster; -1 for unassigned.
        size: int64 [N], faces in the cluster; 0 for unassigned.
        confidence: float32 [N]; NaN for unassigned.
    """

    face_id: Ints
    cluster_id: Ints
    size: Ints
    confidence: Floats

    def counts(self, rows: slice) -> dict[str, int]:
        """What sums up over parts; a cluster is counted where its first face is."""
        first = self.cluster_id[rows] == self.face_id[rows]
        return {
            "faces": len(first),
            "clusters": int(first.sum()),
            "singletons": int((self.size[rows] == 1).sum()),
            "unassigned": int((self.size[rows] == 0).sum()),
        }

    def table(self, rows: slice) -> pa.Table:
        """Rows as the table `clusters` has them."""
        import pyarrow as pa

        none = self.size[rows] == 0
        return pa.table(
            {
                "face_id": pa.array(self.face_id[rows]),
                "cluster_id": pa.array(self.cluster_id[rows], pa.int64(), mask=none),
                "confidence": pa.array(self.confidence[rows], pa.float32(), mask=none),
            }
        )


def run_cluster(context: JobContext) -> StageSummary:
    """Cluster the faces of one embedder; resumes by itself.

    Raises:
        UsageError: there are no neighbors of it, it is not calibrated, or neighbors are older than the images.
        MismatchError: the calibration is for other weights.
    """
    start = time.monotonic()
    lake, config = context.lake, context.config.cluster
    plan = plan_cluster(lake, config)
    lake.write_version(
        plan.output, stage="cluster", settings=plan.settings, revision=algorithm.REVISION, inputs=plan.inputs
    )
    summary = StageSummary("cluster")
    left = [part for part in plan.wanted.parts() if part not in plan.done]
    summary.parts_kept = len(plan.wanted) - len(left)
    if left:
        rows, found = make_rows(lake, plan, config)
        context.reporter.say(f"cluster: {int((rows.cluster_id == rows.face_id).sum()):,} clusters")
        _write(lake, plan, left, rows, found)
        summary.parts_run, summary.workers = len(left), 1
    summary.counters = sum_counters(lake, plan.output)
    summary.notes = _remarks(lake, plan, config, summary.counters)
    lake.set_current([plan.output])
    summary.tables = {"clusters": plan.output.folder}
    summary.seconds = time.monotonic() - start
    return summary


def plan_cluster(lake: Lake, config: ClusterConfig) -> ClusterPlan:
    """Find the inputs and name the output; writes nothing.

    Raises:
        UsageError, MismatchError: see run_cluster.
    """
    calibration = require_calibration(config.embedder, lake)
    again = f"run `facescale neighbors {lake.uri} --embedder {config.embedder}` first"
    images, faces = lake.current("images"), lake.current("faces")
    embeddings = lake.current("embeddings", config.embedder)
    neighbors = lake.current("neighbors", config.embedder)
    if images is None or faces is None or embeddings is None or neighbors is None:
        raise UsageError(f"{lake.uri} has no finished neighbors of {config.embedder} yet: {again}")
    wanted, duplicates = list_done(lake.store, images), lake.current("duplicates")
    described = lake.describe_version(neighbors) or {}
    inputs = {"neighbors": neighbors.fingerprint, "embeddings": embeddings.fingerprint}
    if duplicates is not None:
        inputs["duplicates"] = duplicates.fingerprint
    min_quality = calibration.min_quality
    if min_quality is not None:
        inputs["faces"] = faces.fingerprint
    made_of, made_with = described.get("inputs", {}), described.get("settings", {})
    if (
        is_behind(lake, neighbors, wanted)
        or any(made_of.get(table) != inputs.get(table) for table in ("embeddings", "duplicates", "faces"))
        or made_with.get("min_quality") != min_quality
        or not list_done(lake.store, neighbors).covers(wanted)
    ):
        raise UsageError(
            f"{lake.uri}: images, embeddings, duplicates or the calibration have changed since its neighbors were "
            f"found: {again}"
        )
    settings = (
        config.model_dump(mode="json") | {"calibration": calibration.digest} | input_digest(lake, wanted)
    )
    name = fingerprint("cluster", settings, algorithm.REVISION, inputs)
    output = TableVersion("clusters", name, config.embedder)
    return ClusterPlan(
        faces=faces,
        embeddings=embeddings,
        neighbors=neighbors,
        duplicates=duplicates,
        output=output,
        calibration=calibration,
        min_quality=min_quality,
        settings=settings,
        inputs=inputs,
        wanted=wanted,
        done=list_done(lake.store, output),
    )


def rules_of(config: ClusterConfig) -> ClusterRules:
    """The settings as the algorithm takes them."""
    return ClusterRules(config.link_ratio, config.merge_ratio, config.merge_ratio_large, config.max_size)


def make_rows(lake: Lake, plan: ClusterPlan, config: ClusterConfig) -> tuple[Rows, Clusters]:
    """Cluster, and give copies the clusters of what they copy; the rows, and what the algorithm said."""
    every = read_faces(lake, plan.faces, plan.embeddings, plan.min_quality)
    copies, keepers = representatives(lake) if plan.duplicates else (np.empty(0, np.int64),) * 2
    at = np.flatnonzero(~np.isin(image_id_of(every.face_id), copies))
    rules = rules_of(config)
    cuts = algorithm.resolve(rules, plan.calibration, int(every.good[at].sum()))
    lists = read_lists(lake, plan.neighbors, cuts.floor)
    if not np.array_equal(lists.face_id, every.face_id[at]):
        raise UsageError(
            f"{lake.uri}: {plan.neighbors.folder} does not list the faces of {plan.embeddings.folder}: run "
            f"`facescale lake verify {lake.uri}`"
        )
    faces = algorithm.Faces(
        lists.face_id, image_id_of(lists.face_id), every.unit[at], every.good[at], lists.nearest
    )
    found = algorithm.cluster_faces(faces, lists.links, plan.calibration, cuts, max_size=rules.max_size)
    N = len(every.face_id)
    label, confidence = np.full(N, UNASSIGNED), np.full(N, np.nan, np.float32)
    label[at], confidence[at] = found.label, found.confidence
    found.counts["no_counterpart"] = inherit(
        label, confidence, every.unit, every.face_id, copies, keepers, plan.calibration.re_encode
    )
    return rows_of(every.face_id, label, confidence), found


def rows_of(face_id: Ints, label: Ints, confidence: Floats) -> Rows:
    """Name each cluster by its smallest face id.

    Args:
        face_id: int64 [N], rising.
        label: int64 [N], any numbers; UNASSIGNED (-1) for none.
        confidence: float32 [N].
    """
    inside = np.flatnonzero(label != UNASSIGNED)
    _, first, cluster, count = np.unique(
        label[inside], return_index=True, return_inverse=True, return_counts=True
    )
    cluster_id, size = np.full(len(face_id), UNASSIGNED), np.zeros(len(face_id), np.int64)
    cluster_id[inside] = face_id[inside][first][cluster]
    size[inside] = count[cluster]
    return Rows(face_id, cluster_id, size, confidence)


def read_lists(lake: Lake, neighbors: TableVersion, floor: float) -> Lists:
    """Read the lists of a lake, without entries below a similarity.

    Args:
        lake: the lake.
        neighbors: version.
        floor: cosine.

    Returns:
        The lists, by rising face id. 8 bytes an entry, and 12 more while they are put together.
    """
    ids, counts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    near, similar = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    first = [np.empty(0, np.float32)]
    for table in scan(lake, neighbors, columns=["face_id", "neighbor_ids", "similarities"]):
        rows = table.combine_chunks()
        if not rows.num_rows:
            continue
        lists, values = rows["neighbor_ids"].chunk(0), rows["similarities"].chunk(0)
        length = lists.value_lengths().to_numpy().astype(np.int64)
        similarity = values.flatten().to_numpy()
        kept = similarity >= np.float32(floor)
        row = np.repeat(np.arange(len(length)), length)
        start = np.cumsum(length) - length
        ids.append(rows["face_id"].to_numpy())
        counts.append(np.bincount(row[kept], minlength=len(length)))
        near.append(lists.flatten().to_numpy()[kept])
        similar.append(similarity[kept])
        best = np.full(len(length), -1, np.float32)
        best[length > 0] = similarity[start[length > 0]]
        first.append(best)
    face_id = np.concatenate(ids)
    neighbor = np.concatenate(near)
    there = np.minimum(np.searchsorted(face_id, neighbor), max(len(face_id) - 1, 0))
    if (face_id[there] != neighbor).any():
        raise UsageError(
            f"{lake.uri}: {neighbors.folder} lists faces that have no list: run `facescale lake verify {lake.uri}`"
        )
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    links = Links(starts, there.astype(np.int32), np.concatenate(similar))
    return Lists(face_id, links, np.concatenate(first))


def _write(lake: Lake, plan: ClusterPlan, parts: Sequence[PartKey], rows: Rows, found: Clusters) -> None:
    """Commit each part; what is known of the lake as a whole is counted with its first part."""
    whole = min(plan.wanted.pairs(), default=None)
    for part in parts:
        first = make_image_id(part.shard, part.first_row)
        low, high = np.searchsorted(rows.face_id, [first, first + (part.num_rows << 8)])
        span = slice(int(low), int(high))
        counters = rows.counts(span)
        if (part.shard, part.first_row) == whole:
            counters |= {name: found.counts[name] for name in _WHOLE}
        commit_part(lake.store, part, [(plan.output, rows.table(span))], counters=counters)


_WHOLE = (
    "attached",
    "largest_cluster",
    "merges_prevented",
    "no_counterpart",
    "oversized",
    "put_out",
)


def _remarks(lake: Lake, plan: ClusterPlan, config: ClusterConfig, counters: dict[str, int]) -> list[str]:
    """What a user should look at."""
    notes = []
    if counters.get("oversized") or counters.get("merges_prevented"):
        notes.append(
            f"no cluster grows beyond {config.max_size:,} faces, which has stopped {counters['merges_prevented']:,} "
            f"merges and leaves {counters['oversized']:,} larger clusters of all but identical faces: look at them, "
            "as something other than a person holds them together (one picture many times, or faceless detections)"
        )
    if plan.duplicates is None:
        notes.append(
            "no duplicates are known, so a photograph and its copy count as two: run `facescale dedup "
            f"{lake.uri}` first"
        )
    made = (lake.describe_version(plan.neighbors) or {}).get("settings", {})
    looked_at = algorithm.resolve(rules_of(config), plan.calibration, counters.get("faces", 0)).floor
    if made.get("method") == "cells" and looked_at < made["floor"]:
        notes.append(
            f"pairs down to a cosine of {looked_at:.4f} were looked at, and {plan.neighbors.folder} has its recall "
            f"measured above {made['floor']:.4f}: lower ratios, or run `facescale neighbors {lake.uri}` with a higher "
            "neighbors.edge_ratio"
        )
    if (warning := drift_warning(plan.calibration, lake, plan.embeddings)) is not None:
        notes.append(warning)
    return notes
