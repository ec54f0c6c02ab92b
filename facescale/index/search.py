"""Search: queries come in, the most similar faces of a lake go out.

    index = Index.open(lake, "dlib_resnet")
    ids, similarities = index.search(queries, 10)

Called by the command line (through results) and by users of the library. Every answer is ordered by descending
similarity, equal ones by ascending id, and holds no face of an image that was superseded. (Matrix products round
differently for batches of other sizes: two faces whose similarities differ by 1e-7 may trade places between calls.)
"""

from __future__ import annotations

import logging
import math
import operator
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import MismatchError, UsageError
from facescale.index.backends import load_backend
from facescale.index.build import TABLE, parts_behind
from facescale.index.exact import NO_ID
from facescale.index.labels import label_faces, label_top_k
from facescale.index.manifest import read_manifest
from facescale.index.quality import Wanted
from facescale.index.shards import ShardSet
from facescale.lake.face_filter import FaceFilter
from facescale.lake.ids import image_id_of
from facescale.lake.lineage import versions_of
from facescale.lake.parts import TableVersion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from facescale.index.manifest import Manifest
    from facescale.lake.lake import Lake

log = logging.getLogger(__name__)

_SPARE = 8  # fetched beyond k: enough to see whether equals stand at the border
_MAX_TIES = 4096  # equals beyond this many are not sorted out
_EXACT_LABEL_FACES = 200_000  # up to this many faces of a label are compared one by one
_FETCH_ENTRIES = 8 << 20  # neighbors held at once: 96 MiB of ids and similarities


class Index:
    """An index that is ready for questions; make one with `open`.

    Args:
        lake: the lake.
        version: of the index.
        manifest: its own account of itself.
        shards: its files.
        warnings: what the user should know before trusting the answers (the index is behind the lake).
    """

    def __init__(
        self, lake: Lake, version: TableVersion, manifest: Manifest, shards: ShardSet, warnings: list[str]
    ) -> None:
        self.lake, self.version, self.manifest, self.shards = lake, version, manifest, shards
        self.warnings = warnings
        self._superseded = lake.superseded()

    @classmethod
    def open(
        cls,
        lake: Lake,
        model: str,
        *,
        version: TableVersion | None = None,
        memory_bytes: int = 4 << 30,
        threads: int = 1,
        gpu: bool = False,
        check: str = "sha256",
    ) -> Index:
        """Open the index of a model; shards are read with the first search.

        Args:
            lake: the lake.
            model: whose embeddings the queries are.
            version: another version than the current one.
            memory_bytes: shards beyond this are streamed for each search.
            threads: for each search.
            gpu: search on the GPU where the library and the kind can.
            check: "sha256" reads and compares every byte of a shard when it is loaded, "size" its size only.

        Raises:
            UsageError: there is no finished index of the model.
            MismatchError: the index is of another model, or of embeddings that are no longer current.
            CorruptError: a file is missing or damaged.
            MissingExtraError: the library that built it is not installed.
        """
        chosen = version or lake.current(TABLE, model) or _only_finished(lake, model)
        manifest = None if chosen is None else read_manifest(lake.store, chosen)
        if chosen is None or manifest is None:
            others = sorted({v.model for v in versions_of(lake.store, TABLE)} - {model})
            having = f"; there are indexes of {', '.join(others)}" if others else ""
            raise UsageError(
                f"{lake.uri} has no finished index of {model}{having}: run `facescale index {lake.uri} "
                f"--embedder {model}` first"
            )
        if manifest.model != model or chosen.model != model:
            raise MismatchError(
                f"{lake.store.location(chosen.folder)} indexes {manifest.model}, and the queries are of {model}: "
                "vectors of different models cannot be compared"
            )
        warnings = _staleness(lake, chosen, manifest)
        for warning in warnings:
            log.warning("%s", warning)
        load_backend(manifest.layout.backend).version()
        shards = ShardSet(
            lake.store,
            chosen.folder,
            manifest.layout,
            manifest.shards,
            memory_bytes=memory_bytes,
            threads=threads,
            gpu=gpu,
            check=check,
        )
        shards.check_sizes()
        return cls(lake, chosen, manifest, shards, warnings)

    def search(
        self,
        queries: NDArray[np.floating],
        k: int,
        *,
        label: str | None = None,
        min_quality: float = 0.0,
        where: str | None = None,
        probes: int | None = None,
        names: Sequence[str] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k most similar faces of each query.

        Args:
            queries: [Q, D] of the index's model, raw or unit length.
            k: faces wanted, at least 1.
            label: only faces of images that claim this label.
            min_quality: leave out faces of less quality, 0..1; others take their places. Faces whose quality nobody
                has measured stay.
            where: leave out faces that do not meet this condition (facescale.lake.where); others take their places.
            probes: nprobe or efSearch instead of the tuned one.
            names: of the queries, for messages.

        Returns:
            (face_ids int64 [Q, k], cosine similarities float32 [Q, k] in -1..1); where there are fewer than k faces
            the rest is -1 and NaN.

        Raises:
            MismatchError: the queries have another dimension.
            UsageError: k is less than 1, min_quality is not 0..1, `where` is no condition on columns that there are, a
                query is zero or not finite, or no image claims the label.
        """
        k = operator.index(k)  # faiss takes no numpy integers
        if k < 1:
            raise UsageError(f"k: {k} neighbors; ask for at least 1")
        if not 0 <= min_quality <= 1:
            raise UsageError(f"min_quality: expected 0..1, got {min_quality}")
        unit = unit_queries(queries, self.manifest.dim, model=self.manifest.model, names=names)
        probes = probes or self.manifest.probes
        wanted = Wanted(min_quality, None if where is None else FaceFilter(self.lake, where))
        if label is None:
            ids, sims = self._search_kept(unit, k, probes, None, wanted)
        else:
            ids, sims = self._search_label(unit, k, probes, label, wanted)
        return ids, np.where(ids == NO_ID, np.float32(np.nan), np.clip(sims, -1, 1)).astype(np.float32)

    def close(self) -> None:
        """Let go of the shards."""
        self.shards.close()

    def _search_label(
        self, queries: NDArray[np.float32], k: int, probes: int | None, label: str, wanted: Wanted
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Exact among the label's faces; through the index only where they are many and the kind can select."""
        faces = label_faces(self.lake, label, superseded=self._superseded)
        faces = faces[wanted.mask(self.lake, faces)]
        if self.shards.selects and len(faces) > _EXACT_LABEL_FACES:
            if probes is not None:
                # The k best of one face in s are as far away as the s·k best of all. Faces that are not allowed cost
                # next to nothing, so s times the lists take the time of one ordinary search.
                probes = math.ceil(probes * self.shards.count / max(1, len(faces)))
                probes = min(probes, self.manifest.layout.nlist)
            return self._search_kept(queries, k, probes, faces, Wanted())
        embeddings = TableVersion("embeddings", self.manifest.inputs["embeddings"], self.manifest.model)
        return label_top_k(self.lake, embeddings, queries, faces, k, threads=self.shards.threads)

    def _search_kept(
        self,
        queries: NDArray[np.float32],
        k: int,
        probes: int | None,
        allowed: NDArray[np.int64] | None,
        wanted: Wanted,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Search, leave out superseded and unwanted faces, and ask again, wider, for rows that are not settled yet.

        A row is settled when k faces are left and the last one fetched is less similar than the k-th, or when there
        is nothing more to fetch.
        """
        ids = np.full((len(queries), k), NO_ID, np.int64)
        sims = np.full((len(queries), k), -np.inf, np.float32)
        waiting = np.arange(len(queries))
        fetch, count = min(k + _SPARE, self.shards.count), self.shards.count
        layout = self.manifest.layout
        while len(waiting) and fetch:
            unsettled = []
            step = max(1, _FETCH_ENTRIES // fetch)
            for start in range(0, len(waiting), step):
                rows = waiting[start : start + step]
                found, found_sims = self.shards.search(queries[rows], fetch, probes=probes, allowed=allowed)
                last, exhausted = found_sims[:, -1].copy(), found[:, -1] == NO_ID
                found, found_sims = self._kept(found, found_sims, k, wanted)
                ids[rows], sims[rows] = found, found_sims
                full = found[:, -1] != NO_ID
                settled = full & ((last < found_sims[:, -1]) | exhausted | (fetch >= max(_MAX_TIES, 4 * k)))
                unsettled.append(rows[~settled])
            waiting = np.concatenate(unsettled)
            if fetch >= count and (not layout.has_lists or (probes or 1) >= layout.nlist):
                break
            fetch = min(4 * fetch, count)
            if layout.has_lists:
                # A list that ran out before k faces were found: look into more lists.
                probes = min(4 * (probes or 1), layout.nlist)
        return ids, sims

    def _kept(
        self, ids: NDArray[np.int64], sims: NDArray[np.float32], k: int, wanted: Wanted
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        gone = self._superseded
        if len(gone) or wanted.asks:
            keep = (ids != NO_ID) & wanted.mask(self.lake, ids)
            if len(gone):
                images = image_id_of(ids)
                keep &= gone[np.minimum(np.searchsorted(gone, images), len(gone) - 1)] != images
            # Stable: what stays keeps its order, what goes is pushed to the end.
            order = np.argsort(~keep, axis=1, kind="stable")
            ids = np.take_along_axis(np.where(keep, ids, NO_ID), order, 1)
            sims = np.take_along_axis(np.where(keep, sims, -np.inf).astype(np.float32), order, 1)
        missing = k - ids.shape[1]
        if missing > 0:
            ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=NO_ID)
            sims = np.pad(sims, ((0, 0), (0, missing)), constant_values=-np.inf)
        return ids[:, :k], sims[:, :k]


def unit_queries(
    queries: NDArray[np.floating], dim: int, *, model: str, names: Sequence[str] | None = None
) -> NDArray[np.float32]:
    """Check queries and scale them to unit length.

    Args:
        queries: [Q, D], raw or unit length.
        dim: D of the index.
        model: of the index, for messages.
        names: of the queries, for messages.

    Returns:
        float32 [Q, D].

    Raises:
        MismatchError: another dimension.
        UsageError: not a matrix, or a row is zero or not finite; the message names the row.
    """
    array = np.asarray(queries)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise UsageError(
            f"queries: expected a matrix of floats [Q, D], got {array.dtype} of shape {array.shape}; one query is "
            "[1, D]"
        )
    if array.shape[1] != dim:
        raise MismatchError(
            f"the queries have dimension {array.shape[1]}, and the index of {model} has {dim}: embed them with {model}"
        )
    vectors = array.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = ~(np.isfinite(lengths) & (lengths > 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        name = f" ({names[row]})" if names is not None else ""
        what = "zero" if lengths[row] == 0 else "not finite"
        raise UsageError(
            f"query row {row}{name} is {what}, as are {int(wrong.sum())} of {len(array)} rows in all: leave out what "
            "has no embedding"
        )
    unit: NDArray[np.float32] = (vectors / lengths[:, None]).astype(np.float32)
    return unit


def _staleness(lake: Lake, version: TableVersion, manifest: Manifest) -> list[str]:
    """Why the answers may lack faces; refuses an index whose face_ids mean other faces by now."""
    current = lake.current("embeddings", manifest.model)
    indexed = TableVersion("embeddings", manifest.inputs["embeddings"], manifest.model)
    again = f"run `facescale index {lake.uri} --embedder {manifest.model}`"
    if current is not None and current != indexed:
        raise MismatchError(
            f"{lake.store.location(version.folder)} was built from {indexed.folder}, and {current.folder} is current: "
            f"{again}, or choose the older tables with `facescale lake use`"
        )
    behind = parts_behind(lake, indexed, manifest.inputs["parts"], manifest.inputs["num_parts"])
    if behind:
        return [
            f"the index of {manifest.model} is stale: {behind} parts of embeddings are not in it; {again}"
        ]
    return []


def _only_finished(lake: Lake, model: str) -> TableVersion | None:
    """The one finished index of a model where none is current (a job that died between manifest and lake.yaml)."""
    finished = [
        version
        for version in versions_of(lake.store, TABLE)
        if version.model == model and read_manifest(lake.store, version) is not None
    ]
    return finished[0] if len(finished) == 1 else None
