"""Which face of a photograph a face of its copy is: embeddings and images in, rows and similarities out.

Called by curate.clean and curate.cluster_copies. A copy may be cropped or may be no copy after all, so the most similar
face counts only where it is as similar as a face stays to itself when its picture is saved again
(Calibration.re_encode); the callers decide that.

Shape legend: N faces of the lake, D dimension, F faces of copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from facescale.curate.claims import faces_of, spread
from facescale.curate.products import row_products

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]


def counterparts(unit: Floats, face_id: Ints, face: Ints, image_id: Ints) -> tuple[Ints, Floats]:
    """The most similar face on another image, for each of some faces; of equally similar ones that of the largest id.

    Args:
        unit: float32 [N, D].
        face_id: int64 [N], rising.
        face: int64 [F], rows.
        image_id: int64 [F], the image that each is looked for on.

    Returns:
        (rows int64 [F], -1 where the image has no face; similarities float32 [F], NaN there).
    """
    pair, other = spread(*faces_of(face_id, image_id))
    similarity = row_products(unit, face[pair], unit, other).astype(np.float32)
    order = np.lexsort((face_id[other], similarity, pair))
    best = order[np.flatnonzero(np.diff(pair[order], append=-1))]
    rows, nearest = np.full(len(face), -1), np.full(len(face), np.nan, np.float32)
    rows[pair[best]], nearest[pair[best]] = other[best], similarity[best]
    return rows, nearest
