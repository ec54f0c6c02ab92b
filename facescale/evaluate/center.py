"""Whose face a photograph of one person shows: image ids in, the face nearest each image's center out.

A name given to an image says nothing about which of its faces is meant; of photographs taken of a person it is the one
in the middle. Used where truth or trusted labels are per image: driver.calibrate and driver.evaluate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import UsageError
from facescale.lake.ids import image_id_of
from facescale.lake.scan import scan, scan_ids

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.lake.lake import Lake


def center_faces(lake: Lake, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The face of each image whose box's center is nearest to the image's; the first where its size is not known.

    Args:
        lake: with finished images and faces.
        image_ids: int64 [I], in any order.

    Returns:
        int64 [I], face ids; -1 for an image without faces, superseded, or not in the lake.

    Raises:
        UsageError: the lake has no finished faces.
    """
    images, faces = lake.current("images"), lake.current("faces")
    if images is None or faces is None:
        raise UsageError(f"{lake.uri} has no finished faces: run `facescale extract SRC {lake.uri}` first")
    wanted = np.unique(image_ids)
    ids, boxes = [np.zeros(0, np.int64)], [np.zeros((0, 4), np.float32)]
    for table in scan(lake, faces, columns=["face_id", "box"]):
        found = table["face_id"].to_numpy()
        kept = np.isin(image_id_of(found), wanted)
        flat = table["box"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        ids.append(found[kept])
        boxes.append(flat.reshape(-1, 4)[kept])
    face_ids, box_N4 = np.concatenate(ids), np.concatenate(boxes)
    nearest = np.full(len(image_ids), -1, np.int64)
    if not len(face_ids):
        return nearest
    owner = image_id_of(face_ids)
    sizes = scan_ids(lake, images, owner, ["width", "height"])
    unknown = sizes["width"].is_null().to_numpy()  # imported: then the detector's best face is meant
    size = np.column_stack([sizes[side].fill_null(0).to_numpy() for side in ("width", "height")])
    box_N4[unknown] = 0
    chosen = nearest_to_center(box_N4, owner, size)
    owners = owner[chosen]  # ascending, one face each
    at = np.minimum(np.searchsorted(owners, image_ids), len(owners) - 1)
    hit = owners[at] == image_ids
    nearest[hit] = face_ids[chosen][at[hit]]
    return nearest


def nearest_to_center(
    boxes: NDArray[np.floating], image: NDArray[np.int64], size: NDArray[np.generic]
) -> NDArray[np.int64]:
    """Rows of the faces nearest their images' centers.

    Args:
        boxes: float [N, 4], x1, y1, x2, y2 px.
        image: int64 [N], image of each face.
        size: [N, 2], width and height of that image, px.

    Returns:
        int64 [distinct images], rows, in ascending order of the image; of equally near faces the first.
    """
    offset = (boxes[:, :2] + boxes[:, 2:]).astype(np.float64) - size.astype(np.float64)
    order = np.lexsort([np.arange(len(image)), (offset**2).sum(axis=1), image])
    _, first = np.unique(image[order], return_index=True)
    rows: NDArray[np.int64] = order[first]
    return rows
