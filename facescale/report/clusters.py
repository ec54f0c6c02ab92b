"""Clusters: how large they are, and pictures of the largest, of ordinary ones and of those that are least certain.

Called by collect. Two passes over the table: sizes first (24 bytes a cluster), then the members of those shown.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.lake.ids import image_id_of
from facescale.report.model import Plot, Section, Sheet, Shown, Strip
from facescale.report.plots import columns, doubling_names
from facescale.report.source import Groups, ends_of_groups, numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from facescale.lake.parts import TableVersion
    from facescale.report.source import Source

    Ids = NDArray[np.int64]
    Doubles = NDArray[np.float64]

_ORDINARY = 3  # faces of the smallest cluster worth a look
_UNSURE = 0.8  # confidence below which a face is marked


def clusters_section(source: Source) -> Section | None:
    """Counts, sizes and contact sheets of clusters; None before cluster has run."""
    version = source.version("clusters")
    if version is None:
        return None
    groups, unassigned, faces = Groups(), 0, 0
    for table in source.scan(version, ["cluster_id", "confidence"], every_part=True):
        faces += table.num_rows
        unassigned += table["cluster_id"].null_count
        table = table.filter(pc.is_valid(table["cluster_id"]))
        groups.add(table["cluster_id"].to_numpy(), np.nan_to_num(numbers(table["confidence"]), nan=1.0))
    cluster, size, confidence = groups.result()
    section = Section(
        "clusters",
        "Clusters",
        "Faces that show the same person, found without labels. No two faces of one image share a cluster.",
        facts=[
            ("clusters", len(cluster)),
            ("with two faces or more", int((size > 1).sum())),
            ("faces in those", int(size[size > 1].sum())),
            ("alone", int((size == 1).sum())),
            ("unassigned", unassigned),
            ("largest", int(size.max()) if len(size) else 0),
        ],
    )
    if len(size):
        section.plots.append(_sizes(size))
    if source.config.photos and (size > 1).any():
        section.sheets += _sheets(source, version, cluster, size, confidence)
    return section


def _sizes(size: Ids) -> Plot:
    """Clusters by size, in doubling steps."""
    step = np.floor(np.log2(size)).astype(np.int64)
    number = np.bincount(step)
    drawing = columns(doubling_names(len(number)), number.tolist(), what="clusters by number of faces")
    return Plot("Clusters by size", "How many clusters have so many faces.", drawing)


def _sheets(
    source: Source, version: TableVersion, cluster: Ids, size: Ids, confidence: Doubles
) -> list[Sheet]:
    number = source.config.clusters
    rows = np.arange(len(cluster))
    keys = source.keys(cluster)
    largest = np.lexsort((cluster, -size))[:number]
    largest = largest[size[largest] > 1]
    left = rows[(size >= 2) & ~np.isin(rows, largest)]
    doubtful = left[np.lexsort((keys[left], confidence[left]))][: -(-number // 2)]
    left = left[(size[left] >= _ORDINARY) & ~np.isin(left, doubtful)]
    ordinary = left[np.argsort(keys[left], kind="stable")][: -(-number // 2)]
    ordinary = ordinary[np.lexsort((cluster[ordinary], -size[ordinary]))]
    members = _members(
        source, version, np.concatenate([cluster[largest], cluster[doubtful], cluster[ordinary]])
    )
    names = source.claims(members["face_id"].to_numpy())
    strips = {
        int(cluster[at]): _strip(members, int(cluster[at]), int(size[at]), names)
        for at in np.concatenate([largest, doubtful, ordinary])
    }

    def sheet(title: str, text: str, which: Sequence[int], folded: bool = False) -> Sheet:
        return Sheet(title, text, tuple(strips[int(cluster[at])] for at in which), folded)

    text = "The surest faces first, then the least sure, each with its confidence."
    sheets = [
        sheet("The largest", text, largest.tolist()),
        sheet(
            "The least certain",
            "Lowest mean confidence. At 0.5 another cluster is as likely.",
            doubtful.tolist(),
        ),
        sheet("Ordinary ones", "A random sample of the others.", ordinary.tolist(), folded=True),
    ]
    return [entry for entry in sheets if entry.strips]


def _members(source: Source, version: TableVersion, wanted: Ids) -> pa.Table:
    """The surest and the least sure faces of some clusters; holds those and one part."""
    last = source.config.strip // 3
    found: pa.Table | None = None
    for table in source.scan(version, ["face_id", "cluster_id", "confidence"], every_part=True):
        table = table.filter(pc.is_in(table["cluster_id"], pa.array(wanted)))
        found = table if found is None else pa.concat_tables([found, table])
        surest = np.nan_to_num(numbers(found["confidence"]), nan=1.0)
        ids = found["face_id"].to_numpy()
        chosen = ends_of_groups(
            found["cluster_id"].to_numpy(), surest, source.keys(ids), source.config.strip - last, last
        )
        found = found.take(pa.array(chosen)).combine_chunks()
    assert found is not None  # there are clusters, so there is a part
    return found


def _strip(members: pa.Table, cluster: int, size: int, names: dict[int, str]) -> Strip:
    rows = members.filter(pc.equal(members["cluster_id"], cluster)).to_pylist()
    shown = []
    for row in rows:
        sure = row["confidence"]
        unsure = sure is not None and sure < _UNSURE
        shown.append(
            Shown(
                row["face_id"],
                names.get(image_id_of(row["face_id"]), ""),
                "" if sure is None else f"{sure:.2f}",
                "unsure" if unsure else "",
                "doubt" if unsure else "",
            )
        )
    claimed = Counter(face.name for face in shown if face.name).most_common(2)
    note = f"{size:,} faces" + (f", {len(rows)} shown" if len(rows) < size else "")
    if len(claimed) > 1:
        note += ", under more than one label"
    return Strip(f"cluster {cluster}", note, tuple(shown))
