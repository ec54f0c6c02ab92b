"""What a file of embeddings is to its readers: formats, states of a row, and the interface. Called by vector_file.

Shape legend: N rows, D dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from types import TracebackType

    import pyarrow as pa
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]

FORMATS = {"parquet": "vectors_parquet", "pq": "vectors_parquet", "npy": "vectors_npy", "bin": "vectors_bin"}
"""Format in `sources` by extension."""
SIMULATED = "simulated"
"""Format of what `facescale synth embeddings` plans: there is no file."""
WITHOUT_PIXELS = (*FORMATS.values(), SIMULATED)
"""Formats of lakes that have embeddings and no photographs."""
SIDECARS = ("uri", "label", "quality", "det_score", "box")
"""What may come with an embedding: where its image is, who is claimed to be on it, 0..1, the detector's score, and
x1, y1, x2, y2 px."""
OK, EMPTY, WRONG_DIMENSION, WRONG_TYPE = range(4)
"""What a row holds: a vector of D numbers, none, one of another length, or something that is no numbers."""


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors of some rows, as the file has them.

    Attributes:
        values: float32 [N, D], not scaled; zeros where `state` is not OK. A number beyond float32 is infinite.
        state: uint8 [N], OK, EMPTY, WRONG_DIMENSION or WRONG_TYPE.
    """

    values: NDArray[np.float32]
    state: NDArray[np.uint8]


class VectorFile(ABC):
    """An open file of embeddings; use it as a context manager.

    Attributes:
        uri: where it is.
        num_rows: embeddings in it.
        kind: what a row holds, for messages, e.g. "float16 [512]".
    """

    uri: str
    num_rows: int
    kind: str

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        self._stack.close()

    @abstractmethod
    def likely_dim(self) -> int | None:
        """The dimension that the file's first rows have; None where they have none."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a column or sidecar of a name."""

    @abstractmethod
    def vectors(self, rows: Rows, dim: int) -> Vectors:
        """The vectors of rising rows, int64 [N]."""

    @abstractmethod
    def column(self, name: str, rows: Rows) -> pa.Array:
        """Values of a column or sidecar (`has`) at rising rows, int64 [N]."""


def no_vectors(count: int, dim: int, state: int) -> Vectors:
    """Rows that are all in one state, and hold nothing."""
    return Vectors(np.zeros((count, dim), np.float32), np.full(count, state, np.uint8))


def to_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Numbers as float32; what is beyond is infinite, and found out as such."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
