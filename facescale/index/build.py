"""What goes into an index and into which shard: a lake and settings come in, an IndexBuild goes out.

Called by the driver before the stages run. The order of a build (without Ray it is facescale.index.finish.build_index):

    build = plan_index(lake, model, settings)       # lists parts, counts faces, chooses; writes _version.json
    while read_manifest(lake.store, build.version) is None:
        map TrainStage over training_units(lake, build)         # none when that is done
        trained = check_training(lake, build)                   # another build when the codes are hopeless: start over
        map IndexStage over units_to_do(lake, build)
        build = finish_index(lake, build)                       # writes the manifest, or falls back to exact search
    lake.set_current([build.version])

Every step looks at what exists, so running it again after a crash continues. What a build needs on its way (the
sample, the trained index, a record of each shard) lies in LAKE/_scratch/index/ until the manifest is written.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.errors import UsageError
from facescale.index.backends import visible_gpus
from facescale.index.manifest import read_manifest
from facescale.index.plan import IndexPlan, Layout, choose, estimate_bytes, shard_count, split_evenly
from facescale.lake.fingerprint import fingerprint, parts_digest
from facescale.lake.lineage import images_of, versions_of
from facescale.lake.parts import PartKey, TableVersion, list_done, part_of_path
from facescale.lake.scan import count_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.lake.lake import Lake

REVISION = 1
"""Raised whenever an index changes for the same embeddings and settings."""

TABLE = "index"


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """What is asked for.

    Attributes:
        backend: "faiss" or "hnswlib".
        kind: a rung of the ladder in facescale.index.plan, or "auto".
        memory_bytes: what the index may take in memory when it is searched.
        recall_target: wanted recall@k, 0 < r ≤ 1; 1 means exact search.
        recall_k: the k of it.
        num_queries: held-out faces that recall is measured on.
        shard_vectors: most faces in one index file.
        seed: of the sample, the queries and the training.
        gpu: train (and choose) for a GPU; None asks faiss on this machine.
    """

    backend: str = "faiss"
    kind: str = "auto"
    memory_bytes: int = 4 << 30
    recall_target: float = 0.95
    recall_k: int = 10
    num_queries: int = 1000
    shard_vectors: int = 4_000_000
    seed: int = 0
    gpu: bool | None = None

    def __post_init__(self) -> None:
        if self.recall_k < 1 or self.num_queries < 1 or self.seed < 0:
            raise UsageError(
                f"recall_k {self.recall_k}, num_queries {self.num_queries}, seed {self.seed}: the first two must be "
                "at least 1, the seed not negative"
            )


@dataclass(frozen=True)
class IndexShard:
    """One index file to make: a unit of work for the engine.

    Attributes:
        key: shard number, first row 0, expected number of faces.
        parts: (shard, first row) of the embeddings parts that go into it.
    """

    key: PartKey
    parts: tuple[tuple[int, int], ...]

    @property
    def file(self) -> str:
        """Name of its file in the index's folder."""
        return f"{self.key.shard:07d}.faiss"


@dataclass(frozen=True, kw_only=True)
class IndexBuild:
    """Everything that decides an index; pickled to workers.

    Attributes:
        version: of the index.
        embeddings: the version that is indexed.
        plan: what is built.
        settings: what was asked for.
        gpu: whether centroids are found on a GPU.
        shards: the files to make.
        inputs: {embeddings: fingerprint, parts: digest}.
        fallback: why exact search replaces an earlier choice; None when it does not.
    """

    version: TableVersion
    embeddings: TableVersion
    plan: IndexPlan
    settings: IndexSettings
    gpu: bool
    shards: tuple[IndexShard, ...]
    inputs: dict[str, str]
    fallback: dict[str, Any] | None = None

    @property
    def parts(self) -> list[tuple[int, int]]:
        """All embeddings parts, in order."""
        return [part for shard in self.shards for part in shard.parts]

    @property
    def scratch(self) -> str:
        """Folder of what is needed until the manifest is written."""
        return f"_scratch/{self.version.folder}"

    @property
    def num_queries(self) -> int:
        """Held-out queries; where something is trained at most a tenth of the faces, which training then misses."""
        count = self.plan.count
        return min(self.settings.num_queries, count // 10 if self.plan.train_size else count)


def plan_index(lake: Lake, model: str, settings: IndexSettings, *, write: bool = True) -> IndexBuild:
    """Plan the index over the current embeddings of a model.

    What an earlier run resolved for the same request and the same parts is taken over, so that a build that was
    interrupted, or that fell back to exact search, goes on where it was.

    Args:
        lake: the lake.
        model: embedder.
        settings: what is asked for.
        write: write the version's _version.json; False for a dry run.

    Returns:
        The build; it has no shards when there are no faces.

    Raises:
        UsageError: the lake has no embeddings of the model, or no index fits the memory.
        MissingExtraError: the backend is not installed.
    """
    embeddings = lake.current("embeddings", model)
    if embeddings is None:
        having = ", ".join(lake.current_models("embeddings")) or "none"
        raise UsageError(
            f"{lake.uri} has no finished embeddings of {model} (it has: {having}): run `facescale extract` or "
            f"`facescale embed {lake.uri} --embedder {model}` first"
        )
    parts, sizes = _parts_with_sizes(lake, embeddings)
    inputs = {"embeddings": embeddings.fingerprint, "parts": parts_digest(parts)}
    found = _earlier_resolution(lake, model, settings, inputs)
    if found is not None:
        plan, gpu, fallback = found
    else:
        count = count_rows(lake, embeddings)
        gpu = settings.backend == "faiss" and (visible_gpus() > 0 if settings.gpu is None else settings.gpu)
        plan = choose(
            count,
            _dimension(lake, embeddings, parts),
            memory_bytes=settings.memory_bytes,
            recall_target=settings.recall_target,
            backend=settings.backend,
            gpu=gpu,
            kind=settings.kind,
            shard_vectors=settings.shard_vectors,
        )
        gpu, fallback = gpu and plan.layout.has_lists, None
    return _assemble(lake, embeddings, plan, settings, gpu, _cut(plan, parts, sizes), inputs, fallback, write)


def fall_back(lake: Lake, build: IndexBuild, reason: dict[str, Any]) -> IndexBuild:
    """Give up an approximate index for exact search over the same faces.

    The new build's _version.json is written before the old files go, so that a rerun finds the decision.

    Args:
        lake: the lake.
        build: what did not reach its recall target.
        reason: the figures, for the manifest.

    Returns:
        The build of the exact index.
    """
    layout = Layout(backend="faiss", kind="flat", dim=build.plan.layout.dim)
    fallback = {"from": build.plan.layout.factory, **reason}
    num_shards = shard_count(layout, build.plan.count, build.settings.shard_vectors)
    plan = _flat_plan(layout, build.plan.count, num_shards, build.settings, fallback)
    _, sizes = _parts_with_sizes(lake, build.embeddings, only=build.parts)
    flat = _assemble(
        lake,
        build.embeddings,
        plan,
        build.settings,
        False,
        _cut(plan, build.parts, sizes),
        build.inputs,
        fallback,
        True,
    )
    lake.store.delete_tree(build.scratch)
    lake.store.delete_tree(build.version.folder)
    return flat


def parts_behind(lake: Lake, embeddings: TableVersion, indexed_digest: str, num_indexed: int) -> int:
    """How many finished parts an index lacks; 0 when it has them all.

    Args:
        lake: the lake.
        embeddings: the version that was indexed.
        indexed_digest: parts_digest of what was indexed.
        num_indexed: number of those parts.

    Returns:
        The difference in number; at least 1 when the sets differ.
    """
    parts, _ = _parts_with_sizes(lake, embeddings)
    if parts_digest(parts) == indexed_digest:
        return 0
    return max(1, len(parts) - num_indexed)


def _assemble(
    lake: Lake,
    embeddings: TableVersion,
    plan: IndexPlan,
    settings: IndexSettings,
    gpu: bool,
    shards: tuple[IndexShard, ...],
    inputs: dict[str, str],
    fallback: dict[str, Any] | None,
    write: bool,
) -> IndexBuild:
    resolved = {
        "layout": plan.layout.to_json(),
        "count": plan.count,
        "num_shards": plan.num_shards,
        "train_size": plan.train_size,
        "recall_target": settings.recall_target,
        "recall_k": settings.recall_k,
        "num_queries": settings.num_queries,
        "seed": settings.seed,
        "gpu": gpu,
        "fallback": fallback,
    }
    version = TableVersion(TABLE, fingerprint("index", resolved, REVISION, inputs), embeddings.model)
    if write:
        lake.write_version(
            version,
            stage="index",
            settings=resolved,
            revision=REVISION,
            inputs=inputs,
            requested=asdict(settings),
        )
    return IndexBuild(
        version=version,
        embeddings=embeddings,
        plan=plan,
        settings=settings,
        gpu=gpu,
        shards=shards,
        inputs=inputs,
        fallback=fallback,
    )


def _earlier_resolution(
    lake: Lake, model: str, settings: IndexSettings, inputs: dict[str, str]
) -> tuple[IndexPlan, bool, dict[str, Any] | None] | None:
    """(plan, gpu, fallback) of a version made for the same request and parts; a finished one is preferred."""
    found = []
    for version in versions_of(lake.store, TABLE):
        described = lake.describe_version(version) if version.model == model else None
        if (
            described is None
            or described.get("revision") != REVISION
            or described.get("requested") != asdict(settings)
            or described.get("inputs") != inputs
        ):
            continue
        found.append((read_manifest(lake.store, version) is not None, described["settings"]))
    if not found:
        return None
    # Two unfinished ones are a fallback that crashed before the old files went: the fallback is the later word.
    resolved = max(found, key=lambda item: (item[0], item[1]["fallback"] is not None))[1]
    layout, count, fallback = Layout(**resolved["layout"]), resolved["count"], resolved["fallback"]
    if fallback is not None:
        return _flat_plan(layout, count, resolved["num_shards"], settings, fallback), False, fallback
    for kind in (settings.kind, layout.kind):  # the first says why, the second insists
        plan = choose(
            count,
            layout.dim,
            memory_bytes=settings.memory_bytes,
            recall_target=settings.recall_target,
            backend=settings.backend,
            gpu=resolved["gpu"],
            kind=kind,
            shard_vectors=settings.shard_vectors,
        )
        if plan.layout == layout:
            return plan, resolved["gpu"], None
    return None


def _flat_plan(
    layout: Layout, count: int, num_shards: int, settings: IndexSettings, fallback: dict[str, Any]
) -> IndexPlan:
    estimated = estimate_bytes(layout, count, num_shards=num_shards)
    return IndexPlan(
        layout=layout,
        count=count,
        num_shards=num_shards,
        train_size=0,
        estimated_bytes=estimated,
        fits=estimated <= settings.memory_bytes,
        why=(
            f"{layout.factory}: {fallback['from']} reached recall@{settings.recall_k} {fallback['recall']:.4f} "
            f"{fallback['when']}, with {settings.recall_target:g} asked for: exact search instead"
        ),
    )


def _parts_with_sizes(
    lake: Lake, embeddings: TableVersion, only: list[tuple[int, int]] | None = None
) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
    """Finished parts in order and the sizes of their files (which stand for their numbers of faces)."""
    images = images_of(lake, embeddings)
    done = None if images is None else list_done(lake.store, images)
    skip = len(embeddings.folder) + 1
    wanted = None if only is None else set(only)
    found = []
    for path, size in lake.store.list(embeddings.folder):
        part = part_of_path(path[skip:])
        if (
            part is None
            or (done is not None and part not in done)
            or (wanted is not None and part not in wanted)
        ):
            continue
        found.append((part, size))
    found.sort()
    return [part for part, _ in found], np.array([size for _, size in found], np.int64)


def _dimension(lake: Lake, embeddings: TableVersion, parts: list[tuple[int, int]]) -> int:
    """Length of the vectors, from the schema of a part."""
    if not parts:
        raise UsageError(
            f"{lake.store.location(embeddings.folder)} has no finished parts: run `facescale extract` first"
        )
    with lake.store.open_parquet(embeddings.part_path(PartKey(*parts[0], 0))) as file:
        return int(file.schema_arrow.field("embedding").type.list_size)


def _cut(plan: IndexPlan, parts: list[tuple[int, int]], sizes: NDArray[np.int64]) -> tuple[IndexShard, ...]:
    """Contiguous runs of parts of about equal size, one for each shard."""
    if plan.count == 0:
        return ()
    offsets = split_evenly(sizes, plan.num_shards)
    total = max(1, int(sizes.sum()))
    shards = []
    for number, (start, stop) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        expected = round(plan.count * int(sizes[start:stop].sum()) / total)
        shards.append(IndexShard(PartKey(number, 0, expected), tuple(parts[start:stop])))
    return tuple(shards)
