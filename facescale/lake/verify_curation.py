"""What must hold between the tables of curation and those that they were made of; problems in words come out.

Called by verify for every part of duplicates, neighbors, clusters and decisions, and once for each version of
duplicates and clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from facescale.lake.ids import MAX_FACES, image_id_of
from facescale.lake.lineage import images_of, input_versions
from facescale.lake.parts import DoneParts, PartKey, TableVersion, list_done
from facescale.lake.scan import scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.lake.lake import Lake

    Ids = NDArray[np.int64]

BY_FACE = ("neighbors", "clusters", "decisions")
CURATED = ("duplicates", *BY_FACE)
_PART_FACES = 8_192 * MAX_FACES  # a part has at most so many images, and is read whole


class CurationChecks:
    """Checks that need other tables; what is needed of those is read once.

    Args:
        lake: the lake.
    """

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._inputs: dict[TableVersion, dict[str, TableVersion]] = {}
        self._done: dict[TableVersion, DoneParts] = {}
        self._copies: dict[TableVersion, tuple[Ids, Ids]] = {}

    def part_problems(self, version: TableVersion, key: PartKey, ids: Ids) -> list[str]:
        """What is wrong with the ids of one part, given those of its input.

        Args:
            version: of a table of curation.
            key: the part.
            ids: its id column, int64 [N].
        """
        images = self._input(version, "images")
        if images is not None and (key.shard, key.first_row) not in self._parts(images):
            return ["the table `images` that it was made of has no such part"]
        embeddings = self._input(version, "embeddings")
        if version.table not in BY_FACE or embeddings is None:
            return []
        tables = scan(self.lake, embeddings, columns=["face_id"], parts=[key], drop_superseded=False)
        promised = np.concatenate([_NONE, *(table["face_id"].to_numpy() for table in tables)])
        extra, lacking = np.setdiff1d(ids, promised), np.setdiff1d(promised, ids)
        excused = self.lake.superseded()
        duplicates = self._input(version, "duplicates")
        if version.table == "neighbors" and duplicates is not None:
            excused = np.union1d(excused, self.copies(duplicates)[0])
        lacking = lacking[~np.isin(image_id_of(lacking), excused)]
        if not len(extra) and not len(lacking):
            return []
        return [f"{len(lacking)} embedded faces have no row, {len(extra)} rows have no embedded face"]

    def group_problems(self, version: TableVersion) -> list[str]:
        """What is wrong with a version of duplicates as a whole; 16 bytes a copy are held."""
        copies, keepers = self.copies(version)
        problems = []
        if len(chained := np.intersect1d(keepers, copies)):
            problems.append(
                f"{len(chained)} representatives are copies themselves, the first has id {chained[0]}"
            )
        images = self._input(version, "images")
        if images is not None:
            wanted = np.union1d(keepers, copies)
            for table in scan(self.lake, images, columns=["image_id"], drop_superseded=False):
                wanted = np.setdiff1d(wanted, table["image_id"].to_numpy(), assume_unique=True)
            if len(wanted):
                problems.append(
                    f"{len(wanted)} images of groups are not in `images`, the first has id {wanted[0]}"
                )
        return problems

    def cluster_problems(self, version: TableVersion, *, whole: bool) -> list[str]:
        """What is wrong with a version of clusters as a whole; 16 bytes a cluster and the ids of a part are held.

        Args:
            version: of clusters.
            whole: whether all of its parts are there.
        """
        named, founding, sharing = [_NONE], [_NONE], [_NONE]
        columns = ["face_id", "cluster_id"]
        for table in scan(self.lake, version, columns=columns, batch_rows=_PART_FACES, drop_superseded=False):
            known = table.filter(table["cluster_id"].is_valid())
            ids, clusters = known["face_id"].to_numpy(), known["cluster_id"].to_numpy()
            images = image_id_of(ids)
            order = np.lexsort((clusters, images))
            twice = (np.diff(images[order]) == 0) & (np.diff(clusters[order]) == 0)
            sharing.append(images[order][1:][twice])
            founding.append(ids[ids == clusters])
            named.append(np.unique(clusters))
        problems = []
        if len(images := np.unique(np.concatenate(sharing))):
            problems.append(
                f"{len(images)} images have two faces in one cluster, the first has id {images[0]}"
            )
        strays = np.setdiff1d(np.concatenate(named), np.concatenate(founding))
        if whole and len(strays):
            problems.append(
                f"{len(strays)} clusters are named by a face that is not in them, the first by {strays[0]}"
            )
        return problems

    def copies(self, version: TableVersion) -> tuple[Ids, Ids]:
        """(image ids of copies, their representatives) of a version of duplicates."""
        if version not in self._copies:
            columns = ["image_id", "representative"]
            tables = list(scan(self.lake, version, columns=columns, drop_superseded=False))
            ids, keepers = (
                np.concatenate([_NONE, *(table[name].to_numpy() for table in tables)]) for name in columns
            )
            self._copies[version] = ids, keepers
        return self._copies[version]

    def _input(self, version: TableVersion, table: str) -> TableVersion | None:
        """The version of a table that another was made of; that of images also by way of embeddings."""
        if version not in self._inputs:
            found = {entry.table: entry for entry in input_versions(self.lake, version)}
            if "images" not in found and "embeddings" in found:
                images = images_of(self.lake, found["embeddings"])
                found |= {"images": images} if images is not None else {}
            self._inputs[version] = found
        return self._inputs[version].get(table)

    def _parts(self, images: TableVersion) -> DoneParts:
        if images not in self._done:
            self._done[images] = list_done(self.lake.store, images)
        return self._done[images]


_NONE = np.empty(0, np.int64)
