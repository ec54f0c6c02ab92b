"""How well each face fits its cluster: labels in, confidences and the clusters of low-quality faces out.

Called by curate.cluster when the clusters of the usable faces stand. A face is compared with its own cluster (without
itself) and with every cluster that one of its similar faces is in, by exact means.

Shape legend: N faces, D dimension, C clusters, R rivalries (a face and a cluster that it is not in).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.curate.products import row_products, sums_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.curate.curve import Curve
    from facescale.curate.graph import Links
    from facescale.curate.propagate import Labels

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]
    Bools = NDArray[np.bool_]

UNASSIGNED = -1
_LEAST = 1e-12
"""False-match rates below it are equal; keeps quotients finite."""


@dataclass(frozen=True, eq=False)
class Rivalries:
    """Clusters near a face that it is not in, and may be in: none holds another face of its image.

    Attributes:
        face: int64 [R], rising.
        cluster: int64 [R].
        mean: float64 [R], mean similarity of the face to the cluster.
    """

    face: Ints
    cluster: Ints
    mean: NDArray[np.float64]


class Fit:
    """Faces against clusters.

    Args:
        labels: int32 [N], UNASSIGNED for faces without a cluster.
        unit: float32 [N, D].
        image: int64 [N].
        links: lists of similar faces.
    """

    def __init__(self, labels: Labels, unit: Floats, image: Ints, links: Links) -> None:
        self.labels, self.unit, self.image = labels, unit, image
        self.num = int(labels.max(initial=-1)) + 1
        self.sizes = np.bincount(labels[labels >= 0], minlength=self.num)
        self.sums = sums_of(labels, unit, self.num)
        self.rivalries = self._rivalries(links)

    def own(self) -> NDArray[np.float64]:
        """Mean similarity of each face to the others of its cluster, float64 [N]; NaN where there are none."""
        result = np.full(len(self.labels), np.nan)
        at = np.flatnonzero(self.labels >= 0)
        at = at[self.sizes[self.labels[at]] > 1]
        label = self.labels[at]
        total = row_products(self.unit, at, self.sums, label)
        itself = row_products(self.unit, at, self.unit, at)
        result[at] = (total - itself) / (self.sizes[label] - 1)
        return result

    def best_rival(self) -> NDArray[np.float64]:
        """Mean similarity of each face to the nearest other cluster, float64 [N]; -inf where none is near."""
        best = np.full(len(self.labels), -np.inf)
        np.maximum.at(best, self.rivalries.face, self.rivalries.mean)
        return best

    def attach(
        self, least: float, curve: Curve, odds: float, *, max_size: int
    ) -> tuple[Labels, NDArray[np.float64]]:
        """Put each unassigned face into one cluster or none.

        It joins the nearest cluster when the mean similarity reaches a bound and the false-match rate there is
        smaller than that of the second nearest by a factor. Of two faces of an image that would join one cluster,
        only the nearer does, and of more faces than a cluster has room for only the nearest do.

        Args:
            least: cosine.
            curve: false-match rates of the embedder.
            odds: the factor.
            max_size: no cluster grows beyond it.

        Returns:
            (labels int32 [N], mean similarity to the cluster joined float64 [N], NaN for the other faces).
        """
        rivals = self.rivalries
        open_ = np.flatnonzero(self.labels[rivals.face] == UNASSIGNED)
        open_ = open_[np.lexsort((rivals.cluster[open_], -rivals.mean[open_], rivals.face[open_]))]
        face, cluster, mean = rivals.face[open_], rivals.cluster[open_], rivals.mean[open_]
        first = np.flatnonzero(np.concatenate([[True], face[1:] != face[:-1]])[: len(face)])
        after = np.minimum(first + 1, len(face) - 1)
        second = np.where((after > first) & (face[after] == face[first]), mean[after], -np.inf)
        clear = (mean[first] >= least) & (_rate(curve, second) >= odds * _rate(curve, mean[first]))
        face, cluster, mean = face[first][clear], cluster[first][clear], mean[first][clear]
        order = np.lexsort((face, -mean, self.image[face], cluster))
        face, cluster, mean = face[order], cluster[order], mean[order]
        doubled = (cluster[1:] == cluster[:-1]) & (self.image[face[1:]] == self.image[face[:-1]])
        single = np.concatenate([[True], ~doubled])[: len(face)]
        face, cluster, mean = face[single], cluster[single], mean[single]
        order = np.lexsort((face, -mean, cluster))
        face, cluster, mean = face[order], cluster[order], mean[order]
        rank = np.arange(len(cluster)) - np.searchsorted(cluster, cluster)
        kept = rank < max_size - self.sizes[cluster]
        labels, joined = self.labels.copy(), np.full(len(self.labels), np.nan)
        labels[face[kept]] = cluster[kept]
        joined[face[kept]] = mean[kept]
        return labels, joined

    def _rivalries(self, links: Links) -> Rivalries:
        rows = links.rows()
        # A face is near a cluster when either has the other in its list.
        face = np.concatenate([rows, links.neighbor]).astype(np.int64)
        cluster = self.labels[np.concatenate([links.neighbor, rows])].astype(np.int64)
        kept = (cluster >= 0) & (cluster != self.labels[face])
        key = np.unique(face[kept] * max(self.num, 1) + cluster[kept])
        face, cluster = key // max(self.num, 1), key % max(self.num, 1)
        allowed = ~self._holds_image_of(face, cluster)
        face, cluster = face[allowed], cluster[allowed]
        mean = row_products(self.unit, face, self.sums, cluster) / self.sizes[cluster]
        return Rivalries(face, cluster, mean)

    def _holds_image_of(self, face: Ints, cluster: Ints) -> Bools:
        """Whether the cluster holds a face of the face's image."""
        _, image = np.unique(self.image, return_inverse=True)
        num_images = int(image.max(initial=-1)) + 1
        inside = np.flatnonzero(self.labels >= 0)
        taken = np.unique(self.labels[inside].astype(np.int64) * num_images + image[inside])
        held: Bools = np.isin(cluster * num_images + image[face], taken)
        return held


def confidence_of(
    own: NDArray[np.float64], rival: NDArray[np.float64], alone: float, curve: Curve
) -> NDArray[np.float32]:
    """How sure it is that each face belongs where it is, 0 to 1.

    With F(s) the false-match rate at a similarity, it is f / (f + F(own)) where f is the smaller of F(best rival) and
    F(bound): a rival to every cluster is to be alone, which it would be below the bound. For a face that is alone, own
    is the bound. So 0.5 is undecided, and 0.9 means that strangers come as near as the rival nine times as often as
    they come as near as the cluster.

    Args:
        own: float64 [N], mean similarity to the others of its cluster; NaN for a face that is alone.
        rival: float64 [N], that to the nearest other cluster; -inf for none.
        alone: cosine, the bound at which single faces join.
        curve: false-match rates.
    """
    single = np.isnan(own)
    limit = _rate(curve, np.full(1, alone))
    mine = np.where(single, limit, _rate(curve, np.where(single, alone, own)))
    theirs = _rate(curve, rival)
    theirs = np.where(single, theirs, np.minimum(theirs, limit))
    result: NDArray[np.float32] = (theirs / (theirs + mine)).astype(np.float32)
    return result


def _rate(curve: Curve, similarity: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(curve.fmr_of(similarity), _LEAST)
