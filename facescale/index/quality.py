"""Which faces a search wants, by quality and by a condition: face ids come in, masks go out. Called by search.

Only the faces asked about are looked up, since the table of a crawl is not read for one question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import UsageError
from facescale.index.exact import NO_ID
from facescale.lake.scan import scan_ids

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.lake.face_filter import FaceFilter
    from facescale.lake.lake import Lake


@dataclass(frozen=True)
class Wanted:
    """What a face has to be to be among the answers.

    Attributes:
        min_quality: see `below_quality`.
        condition: on the columns of faces and attributes; None has none.
    """

    min_quality: float = 0.0
    condition: FaceFilter | None = None

    @property
    def asks(self) -> bool:
        """Whether there is anything to look up."""
        return self.min_quality > 0 or self.condition is not None

    def mask(self, lake: Lake, face_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which faces are wanted: bool of the shape of `face_ids`; raises as `below_quality` and FaceFilter.mask."""
        keep = ~below_quality(lake, face_ids, self.min_quality)
        return keep if self.condition is None else keep & self.condition.mask(face_ids)


def below_quality(lake: Lake, face_ids: NDArray[np.int64], min_quality: float) -> NDArray[np.bool_]:
    """Which faces are of less quality than wanted.

    Args:
        lake: the lake.
        face_ids: int64 of any shape; -1 is no face.
        min_quality: 0..1; 0 wants none, and nothing is read.

    Returns:
        bool of that shape; False for no face, and for a face whose quality nobody has measured (faces made by an
        earlier release): a filter that took unknown for bad would empty such a lake.

    Raises:
        UsageError: the lake has no finished faces.
        DataError: a face has no row in the current faces.
    """
    if min_quality <= 0:
        return np.zeros(face_ids.shape, bool)
    faces = lake.current("faces")
    if faces is None:
        raise UsageError(f"{lake.uri} has no finished faces: run `facescale extract SRC {lake.uri}` first")
    unique, inverse = np.unique(face_ids, return_inverse=True)
    known = unique != NO_ID
    poor = np.zeros(len(unique), bool)
    if known.any():
        quality = scan_ids(lake, faces, unique[known], ["quality"])["quality"].to_numpy()  # NaN where null
        poor[known] = quality < min_quality
    found: NDArray[np.bool_] = poor[inverse].reshape(face_ids.shape)
    return found
