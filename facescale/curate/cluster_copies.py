"""Clusters of faces on copies of images: clusters of the others and duplicates in, a cluster for every face out.

Called by driver.cluster. A face on a copy has the cluster of the face that it is a copy of; so copies never count as
evidence that two faces show one person. Two faces of a copy never have one counterpart, hence never one cluster.

Shape legend: N faces of the lake, K copies, F faces on copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from facescale.curate.claims import faces_of, spread
from facescale.curate.counterparts import counterparts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]


def inherit(
    label: Ints,
    confidence: Floats,
    unit: Floats,
    face_id: Ints,
    copies: Ints,
    representative: Ints,
    re_encode: float,
) -> int:
    """Give faces on copies the cluster of the face that they are a copy of, in place.

    Args:
        label: int64 [N], clusters; faces on copies have -1.
        confidence: float32 [N]; NaN where there is no cluster.
        unit: float32 [N, D].
        face_id: int64 [N], rising.
        copies: int64 [K], image ids.
        representative: int64 [K], of each.
        re_encode: cosine; a face has no counterpart below it (Calibration.re_encode).

    Returns:
        How many faces on copies have no counterpart.
    """
    which, face = spread(*faces_of(face_id, copies))
    other, similarity = counterparts(unit, face_id, face, representative[which])
    same = similarity >= np.float32(re_encode)  # False for NaN
    face, other, similarity = face[same], other[same], similarity[same]
    image = which[same]
    order = np.lexsort((-face, similarity, other, image))
    last = np.ones(len(order), bool)
    last[:-1] = (np.diff(other[order]) != 0) | (np.diff(image[order]) != 0)
    heir, source = face[order[last]], other[order[last]]
    label[heir], confidence[heir] = label[source], confidence[source]
    return len(same) - len(heir)
