"""The two distributed stages of an index: train once, then encode shards; plain Python that the engine calls.

A build (facescale.index.build) comes in; index files and their records go out. Both are run by facescale.driver.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.errors import InfrastructureError, UsageError
from facescale.index.backends import load_backend, visible_gpus
from facescale.index.exact import TopK, exact_top_k, recall_at_k
from facescale.index.manifest import ShardFile
from facescale.index.scratch import (
    done_shards,
    read_queries,
    read_template,
    read_training,
    write_shard,
    write_training,
)
from facescale.index.vectors import draw_sample, read_blocks
from facescale.lake.lake import Lake
from facescale.lake.parts import PartKey
from facescale.lake.stage import StageResult

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from facescale.index.build import IndexBuild, IndexShard
    from facescale.index.exact import Block
    from facescale.lake.stage import Guard
    from facescale.lake.store import Store

TRUTH_EXTRA = 33
"""Exact neighbors kept beyond k: the query itself, and those as similar as the k-th."""
_TRIAL_VECTORS = 200_000
_TRIAL_QUERIES = 256


@dataclass(frozen=True)
class TrainingUnit:
    """The one unit of work of a training: `key` counts the vectors that are trained on."""

    key: PartKey


def training_units(lake: Lake, build: IndexBuild) -> list[TrainingUnit]:
    """What is left to train: one unit, or none when it is done or there is nothing to index."""
    if build.plan.count == 0 or read_training(lake.store, build) is not None:
        return []
    return [TrainingUnit(PartKey(0, 0, build.plan.train_size + build.num_queries))]


def units_to_do(lake: Lake, build: IndexBuild) -> list[IndexShard]:
    """The shards that are not done."""
    done = done_shards(lake.store, build)
    return [shard for shard in build.shards if shard.key.shard not in done]


class TrainStage:
    """Draws the sample and the held-out queries, trains, and tries the result on the sample.

    Args:
        store: of the lake.
        build: what is built.
        threads: of faiss and torch.
    """

    name = "index-train"

    def __init__(self, store: Store, build: IndexBuild, *, threads: int = 1) -> None:
        self.store, self.build, self.threads = store, build, threads

    def open(self) -> None:
        """Load the library.

        Raises:
            MissingExtraError: it is not installed.
            UsageError: the build is for a GPU, and faiss sees none here.
        """
        self.backend = load_backend(self.build.plan.layout.backend)
        self.backend.version()
        if self.build.gpu and visible_gpus() == 0:
            raise UsageError(
                "the index was planned for a GPU, and faiss sees none here: install 'facescale[gpu]' on this machine "
                "(without faiss-cpu), give the stage a GPU, or plan with --device cpu"
            )

    def process(self, part: TrainingUnit, guard: Guard) -> StageResult:
        """Train and keep the result in the build's scratch folder."""
        _refuse_poison(guard, "the training of the index")
        build, plan = self.build, self.build.plan
        sample = draw_sample(
            Lake(self.store),
            build.embeddings,
            build.parts,
            count=plan.count,
            train_size=plan.train_size,
            num_queries=build.num_queries,
            seed=build.settings.seed,
        )
        template = b""
        record: dict[str, Any] = {"queries": len(sample.query_ids), "seed": build.settings.seed}
        if plan.train_size:
            template = self.backend.train(
                plan.layout, sample.train, seed=build.settings.seed, threads=self.threads, gpu=build.gpu
            )
            record |= {"vectors": len(sample.train), "parts_read": sample.parts_read, "gpu": build.gpu}
        if plan.layout.is_lossy:
            record["sample_recall"] = self._try_on_sample(template, sample.train, sample.queries)
        write_training(
            self.store,
            build,
            query_ids=sample.query_ids,
            queries=sample.queries,
            template=template,
            record=record,
        )
        _note_end(guard, part.key)
        return StageResult([], {"trained": len(sample.train)})

    def _try_on_sample(
        self, template: bytes, vectors: NDArray[np.float32], queries: NDArray[np.float32]
    ) -> float:
        """Recall with every list probed, among some of the training vectors.

        Codes lose more among more vectors, so what fails here would fail on the whole: better known before hours of
        encoding than after.
        """
        plan, k = self.build.plan, self.build.settings.recall_k
        vectors, queries = vectors[:_TRIAL_VECTORS], queries[:_TRIAL_QUERIES]
        ids = np.arange(len(vectors), dtype=np.int64)
        with self.store.temporary_folder() as folder:
            path = folder / "trial"
            self.backend.build(
                plan.layout,
                template,
                [(ids, vectors)],
                path,
                expected=len(ids),
                seed=self.build.settings.seed,
                threads=self.threads,
            )
            shard = self.backend.load(plan.layout, path)
        wanted = min(k + TRUTH_EXTRA, len(ids))
        found, _ = shard.search(queries, min(k, len(ids)), probes=plan.layout.nlist, threads=self.threads)
        truth = exact_top_k(queries, [(ids, vectors)], max(wanted, k), threads=self.threads)
        return float(np.nanmean(recall_at_k(found, *truth, k)))


class IndexStage:
    """Encodes one shard: embeddings parts in, one index file out, written atomically.

    While the vectors pass, the exact neighbors of the held-out queries among them are noted: recall is then measured
    against all faces without reading them again.

    Args:
        store: of the lake.
        build: what is built; its training is done.
        threads: of faiss and torch. Graphs are grown by one thread whatever this says.
    """

    name = "index"

    def __init__(self, store: Store, build: IndexBuild, *, threads: int = 1) -> None:
        self.store, self.build, self.threads = store, build, threads

    def open(self) -> None:
        """Load the library, the trained index and the queries.

        Raises:
            MissingExtraError: the library is not installed.
        """
        self.backend = load_backend(self.build.plan.layout.backend)
        self.backend.version()
        self.template = read_template(self.store, self.build)
        _, self.queries = read_queries(self.store, self.build)

    def process(self, part: IndexShard, guard: Guard) -> StageResult:
        """Build one shard; its record, which is written last, says that it is done.

        Returns:
            No tables; counters shards, faces and bytes.
        """
        _refuse_poison(guard, f"index shard {part.key.shard}")
        build = self.build
        truth = TopK(self.queries, build.settings.recall_k + TRUTH_EXTRA, threads=self.threads)
        with self.store.temporary_folder() as folder:
            path = folder / part.file
            count = self.backend.build(
                build.plan.layout,
                self.template,
                self._blocks(part, truth),
                path,
                expected=part.key.num_rows,
                seed=build.settings.seed,
                threads=self.threads,
            )
            record = ShardFile(file=part.file, count=count, bytes=path.stat().st_size, sha256=sha256_of(path))
            self.store.write_file(f"{build.version.folder}/{part.file}", path)
        write_shard(self.store, build, part, record, (truth.ids_QK, truth.sims_QK))
        _note_end(guard, part.key)
        return StageResult([], {"shards": 1, "faces": count, "bytes": record.bytes})

    def _blocks(self, part: IndexShard, truth: TopK) -> Iterator[Block]:
        for ids, vectors in read_blocks(Lake(self.store), self.build.embeddings, part.parts):
            truth.add(ids, vectors)
            yield ids, vectors


def sha256_of(path: Path) -> str:
    """Hex digest of a local file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_poison(guard: Guard, what: str) -> None:
    """An index has no row that could be left out: a worker that dies here died of something else."""
    if guard.poison:
        reasons: Any = ", ".join(sorted(set(guard.reasons.values()))) or "no reason given"
        raise InfrastructureError(
            f"{what} has killed its workers ({reasons}); most likely memory ran out: use fewer workers or a smaller "
            "--shard-faces, then run the same command again"
        )


def _note_end(guard: Guard, key: PartKey) -> None:
    if guard.note is not None:
        guard.note(key.first_row + key.num_rows)
