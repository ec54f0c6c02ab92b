"""Faces by the label that their image claims, and exact search among them.

A lake and a label come in; face_ids or neighbors go out. Called by search. A label has few faces among many, so they
are fetched from the lake and compared one by one: filtering what an index returns would starve the answer.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.errors import UsageError
from facescale.index.exact import TopK
from facescale.index.vectors import vectors_of
from facescale.lake.ids import make_face_id
from facescale.lake.parts import list_done
from facescale.lake.scan import scan, scan_ids

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.lake.lake import Lake
    from facescale.lake.parts import TableVersion

_FETCH_ROWS = 65_536
_MAX_NAMES = 100_000


def label_faces(lake: Lake, label: str, *, superseded: NDArray[np.int64]) -> NDArray[np.int64]:
    """All faces of the images that claim a label.

    Args:
        lake: the lake.
        label: as the table `labels` spells it.
        superseded: sorted image ids to leave out.

    Returns:
        int64, sorted face_ids.

    Raises:
        UsageError: the lake has no labels, or none of this name; the message names similar ones.
    """
    labels, images = lake.current("labels"), lake.current("images")
    if labels is None or images is None:
        raise UsageError(
            f"{lake.uri} has no labels to filter by: run `facescale extract` with --labels, or search without --label"
        )
    claimed = [np.empty(0, np.int64)]
    names: set[str] = set()
    for table in scan(lake, labels, columns=["image_id", "label"], drop_superseded=superseded):
        hits = table.filter(pc.equal(table["label"], pa.scalar(label)))
        claimed.append(hits["image_id"].to_numpy())
        if len(names) < _MAX_NAMES:
            names.update(pc.unique(table["label"]).to_pylist())
    image_ids = np.unique(np.concatenate(claimed))
    if not len(image_ids):
        near = difflib.get_close_matches(label, names, n=3)
        hint = f"; similar ones: {', '.join(map(repr, near))}" if near else ""
        raise UsageError(f"{lake.uri}: no image claims the label {label!r}{hint}")
    counts = scan_ids(lake, images, image_ids, ["num_faces"])["num_faces"].to_numpy().astype(np.int64)
    # Faces of an image are numbered from 1 without gaps.
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return make_face_id(np.repeat(image_ids, counts), np.arange(len(first)) - first + 1)


def label_top_k(
    lake: Lake,
    embeddings: TableVersion,
    queries: NDArray[np.float32],
    faces: NDArray[np.int64],
    k: int,
    *,
    threads: int = 1,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Exact neighbors among given faces.

    Args:
        lake: the lake.
        embeddings: version to fetch them from.
        queries: unit vectors, float32 [Q, D].
        faces: sorted face_ids.
        k: neighbors.
        threads: for torch.

    Returns:
        (ids int64 [Q, k], similarities float32 [Q, k]); missing ones are -1 and -inf.

    Notes:
        65,536 embeddings are held at a time.
    """
    best = TopK(queries, k, threads=threads)
    done = list_done(lake.store, embeddings)
    for start in range(0, len(faces), _FETCH_ROWS):
        wanted = faces[start : start + _FETCH_ROWS]
        # A face that was found after the index was built has no row yet.
        table = scan_ids(lake, embeddings, wanted, ["face_id", "embedding"], missing="skip", done=done)
        best.add(table["face_id"].to_numpy(), vectors_of(table, where=embeddings.folder))
    return best.ids_QK, best.sims_QK
