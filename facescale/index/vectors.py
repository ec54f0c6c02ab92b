"""Embeddings of a lake as blocks of unit vectors, and a seeded random sample of them, in bounded memory.

A lake, an embeddings version and parts come in; (face_ids, float32 vectors) blocks go out. Called by the index
stages and by search (label filters).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import CorruptError
from facescale.lake.parts import PartKey
from facescale.lake.scan import scan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from facescale.index.exact import Block
    from facescale.lake.lake import Lake
    from facescale.lake.parts import TableVersion

    PartPair = tuple[int, int]

BLOCK_ROWS = 65_536
_MIN_SAMPLE_PARTS = 256
_OVERSAMPLE = 4


@dataclass(frozen=True)
class Sample:
    """Vectors drawn at random without replacement.

    Attributes:
        train: float32 [T, D].
        query_ids: int64 [Q]; none of them is in the training vectors.
        queries: float32 [Q, D].
        parts_read: how many parts they were drawn from.
    """

    train: NDArray[np.float32]
    query_ids: NDArray[np.int64]
    queries: NDArray[np.float32]
    parts_read: int


def read_blocks(lake: Lake, embeddings: TableVersion, parts: Iterable[PartPair]) -> Iterator[Block]:
    """Stream the embeddings of some parts as unit vectors in float32, at most 65,536 at a time.

    Small parts are joined, so that what consumes them works on large blocks. Superseded images are included: an
    index is a function of its parts alone, and search leaves them out.

    Args:
        lake: the lake.
        embeddings: version of the table `embeddings`.
        parts: (shard, first row) of each part, in the order wanted.

    Yields:
        (face_ids int64 [n], vectors float32 [n, D]).

    Raises:
        CorruptError: an embedding is zero or not finite.
    """
    keys = (PartKey(shard, row, 0) for shard, row in parts)
    waiting: list[Block] = []
    rows = 0
    columns = ["face_id", "embedding"]
    for table in scan(
        lake, embeddings, columns=columns, parts=keys, batch_rows=BLOCK_ROWS, drop_superseded=False
    ):
        if rows + table.num_rows > BLOCK_ROWS and waiting:
            yield _joined(waiting)
            waiting, rows = [], 0
        waiting.append((table["face_id"].to_numpy(), vectors_of(table, where=embeddings.folder)))
        rows += table.num_rows
    if waiting:
        yield _joined(waiting)


def vectors_of(table: pa.Table, *, where: str) -> NDArray[np.float32]:
    """The column `embedding` as unit vectors.

    Args:
        table: with the columns face_id and embedding (fixed-size lists of float16).
        where: what the table is, for messages.

    Returns:
        float32 [n, D]. Rounding to float16 left lengths off by some 1e-4, so they are scaled once more.

    Raises:
        CorruptError: a vector is zero or not finite.
    """
    half, lengths = stored_vectors(table, where=where)
    return unit_vectors(half, lengths)


def stored_vectors(table: pa.Table, *, where: str) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """The column `embedding` as it is stored, and the lengths of its vectors: (float16 [n, D], float32 [n]).

    Raises:
        CorruptError: a vector is zero or not finite.
    """
    column = table["embedding"].combine_chunks()
    half: NDArray[np.float16] = column.flatten().to_numpy(zero_copy_only=False)
    half = half.reshape(-1, column.type.list_size)
    lengths: NDArray[np.float32] = np.linalg.norm(half.astype(np.float32), axis=1)
    wrong = ~(np.isfinite(lengths) & (lengths > 0))
    if wrong.any():
        face = table["face_id"][int(np.argmax(wrong))]
        raise CorruptError(
            f"{where}: the embedding of face {face} is zero or not finite, as are {int(wrong.sum())} of "
            f"{len(half)} in this part; make the embeddings again"
        )
    return half, lengths


def unit_vectors(half_ND: NDArray[np.float16], lengths_N: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stored vectors at unit length, float32 [N, D]."""
    vectors: NDArray[np.float32] = half_ND.astype(np.float32)
    vectors /= lengths_N[:, None]
    return vectors


def draw_sample(
    lake: Lake,
    embeddings: TableVersion,
    parts: Sequence[PartPair],
    *,
    count: int,
    train_size: int,
    num_queries: int,
    seed: int,
) -> Sample:
    """Draw training vectors and held-out queries at random from all over the lake.

    Each face gets a pseudo-random number from its id and the seed; those of the smallest numbers are taken, the
    queries first. So the sample depends on nothing but the ids and the seed. When less than a quarter of the faces
    is wanted, a random choice of parts (at least 256, with four times the faces wanted) is read and no other.

    Args:
        lake: the lake.
        embeddings: version of the table `embeddings`.
        parts: (shard, first row) of all parts.
        count: faces in all parts together.
        train_size: training vectors wanted.
        num_queries: queries wanted.
        seed: any integer.

    Notes:
        Memory: 2.5·D bytes for each vector wanted while drawing (float16; twice that while it is cut back), then
        6·D.
    """
    wanted = train_size + num_queries
    chosen = choose_parts(parts, count=count, wanted=wanted, seed=seed)
    pool = _Pool(wanted)
    for ids, vectors in read_blocks(lake, embeddings, chosen) if wanted else ():
        pool.add(random_keys(ids, seed), ids, vectors)
    ids, drawn = pool.result()
    return Sample(drawn[num_queries:], ids[:num_queries], drawn[:num_queries], len(chosen))


class _Pool:
    """The rows with the smallest keys of a stream; cut back whenever a quarter more than wanted are held."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.held = wanted, 0
        self.highest: np.uint64 | None = None  # largest key that is still wanted, once the pool has been full
        self.rows: list[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.float16]]] = []

    def add(self, keys: NDArray[np.uint64], ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        if self.highest is not None:
            fresh = keys < self.highest
            keys, ids, vectors = keys[fresh], ids[fresh], vectors[fresh]
        self.rows.append((keys, ids, vectors.astype(np.float16)))
        self.held += len(keys)
        if self.held > self.wanted * 5 // 4:
            self._cut()

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(ids, unit vectors) by ascending key."""
        self._cut()
        if not self.rows:
            return np.empty(0, np.int64), np.empty((0, 0), np.float32)
        _, ids, half = self.rows.pop()
        vectors = half.astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return ids, vectors

    def _cut(self) -> None:
        if not self.rows:
            return
        keys, ids, vectors = (np.concatenate(column) for column in zip(*self.rows, strict=True))
        order = np.argsort(keys, kind="stable")[: self.wanted]
        self.rows = [(keys[order], ids[order], vectors[order])]
        self.held = len(order)
        if self.held == self.wanted:
            self.highest = keys[order[-1]]


def choose_parts(parts: Sequence[PartPair], *, count: int, wanted: int, seed: int) -> list[PartPair]:
    """The parts to draw a sample from: all, or a random choice when that holds enough."""
    if not parts or count <= _OVERSAMPLE * wanted or len(parts) <= _MIN_SAMPLE_PARTS:
        return list(parts)
    enough = max(_MIN_SAMPLE_PARTS, -(-_OVERSAMPLE * wanted * len(parts) // count))
    if enough >= len(parts):
        return list(parts)
    picked = np.random.default_rng(seed).choice(len(parts), size=enough, replace=False)
    return [parts[i] for i in np.sort(picked)]


def random_keys(ids: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A pseudo-random uint64 for each id (the mixing steps of SplitMix64, Steele et al. 2014): [N] → [N]."""
    with np.errstate(over="ignore"):
        start = np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & (2**64 - 1))
        z = (ids.astype(np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _joined(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate([ids for ids, _ in blocks]), np.concatenate([vectors for _, vectors in blocks])
