"""What must hold inside one block of a table, beyond its schema: blocks come in, problems in words go out.

Pure functions over Arrow tables, vectorized; called by verify for every block of every part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
from pyarrow import types as pa_types

from facescale.lake.ids import MAX_FACES, image_id_of, make_face_id
from facescale.lake.schema import table_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

MAX_CROP_PX = 256
PDQ_BITS = 256
# float16 keeps 11 bits: a unit vector stored in it is at most 2^-11 off in length; four times that is a fault.
NORM_TOLERANCE = 2.0**-9

_FACE_RANGES = (
    ("roll_deg", -180, 180),
    ("inter_eye_px", 0, np.inf),
    ("sharpness", 0, 1),
    ("brightness", 0, 1),
    ("contrast", 0, 1),
    ("yaw_deg", -90, 90),
    ("pitch_deg", -90, 90),
    ("truncation", 0, 1),
    ("quality", 0, 1),
)
"""Column of faces, lowest and highest value; a null is none of them."""

_WITH_FACES = ("ok", "too_many_faces")


def value_problems(table_name: str, block: pa.Table) -> list[str]:
    """Everything that is wrong with the values of a block.

    Args:
        table_name: which table.
        block: rows with all columns of its schema.

    Returns:
        One sentence a problem, with the number of rows and the first id; [] when all is well.
    """
    check = _CHECKS.get(table_name)
    if check is None or not block.num_rows:
        return []
    ids = block.column(table_spec(table_name).key[0]).to_numpy()
    return [
        f"{what} ({int(wrong.sum())} rows, the first has id {int(ids[int(np.argmax(wrong))])})"
        for what, wrong in check(block, ids)
        if wrong.any()
    ]


def expected_face_ids(image_ids: NDArray[np.int64], num_faces: NDArray[np.int16]) -> NDArray[np.int64]:
    """The face ids that a part of `images` promises.

    Args:
        image_ids: int64 [N].
        num_faces: int16 [N], 0..255.

    Returns:
        int64 [sum of num_faces], sorted when `image_ids` is.
    """
    counts = num_faces.astype(np.int64)
    ordinals = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    return make_face_id(np.repeat(image_ids, counts), ordinals)


def _images(block: pa.Table, ids: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    status = block.column("status")
    known = next(column.values for column in table_spec("images").columns if column.name == "status")
    faces = block.column("num_faces").to_numpy()
    has_faces = np.isin(_texts(status), _WITH_FACES)
    yield "unknown status", ~np.isin(_texts(status), known)
    yield "num_faces is not 0..255", (faces < 0) | (faces > MAX_FACES)
    yield "faces of an image that is neither ok nor too_many_faces", ~has_faces & (faces != 0)
    yield "too_many_faces without 255 faces", (_texts(status) == "too_many_faces") & (faces != MAX_FACES)
    unknown = {
        name: block.column(name).is_null().to_numpy() for name in ("width", "height", "bytes", "sha256")
    }
    imported = all(
        column.all() for column in unknown.values()
    )  # embeddings made elsewhere: no image was read
    for name, missing in unknown.items():
        yield f"{name} of a decoded image is missing", has_faces & missing & (not imported)


def _labels(block: pa.Table, ids: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    yield "a face id where an image id belongs", image_id_of(ids) != ids
    yield "empty label", _texts(block.column("label")) == ""


def _faces(block: pa.Table, ids: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    box = _matrix(block.column("box"), 4)
    score = block.column("det_score").to_numpy()
    yield "box is not finite", ~np.isfinite(box).all(axis=1)
    yield "box has no area", (box[:, 2] <= box[:, 0]) | (box[:, 3] <= box[:, 1])
    yield "det_score is not finite", ~np.isfinite(score)
    after_better = (image_id_of(ids[1:]) == image_id_of(ids[:-1])) & (score[1:] > score[:-1])
    yield "faces of an image are not ordered by descending det_score", np.concatenate([[False], after_better])
    for name, low, high in _FACE_RANGES:
        values = block.column(name)
        known, number = values.is_valid().to_numpy(), values.to_numpy()
        yield f"{name} is not {low:g}..{high:g}", known & ~((number >= low) & (number <= high))
    lengths = pc.list_value_length(block.column("landmarks")).to_numpy()
    yield (
        "landmarks are not x, y pairs, as many as those of the other faces",
        (lengths % 2 != 0) | (lengths != lengths[0]),
    )
    flat = np.concatenate([chunk.flatten().to_numpy() for chunk in block.column("landmarks").chunks])
    if len(flat):
        bad = np.repeat(np.arange(len(ids)), lengths)[~np.isfinite(flat)]
        yield "landmarks are not finite", np.isin(np.arange(len(ids)), bad)


def _crops(block: pa.Table, ids: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    for name in ("width", "height"):
        px = block.column(name).to_numpy()
        yield f"{name} is not 1..{MAX_CROP_PX} px", (px < 1) | (px > MAX_CROP_PX)
    jpeg = block.column("jpeg")
    ends = [pc.binary_slice(jpeg, 0, 2), pc.binary_slice(jpeg, -2)]
    whole = [
        pc.equal(end, mark).to_numpy() for end, mark in zip(ends, (b"\xff\xd8", b"\xff\xd9"), strict=True)
    ]
    yield "jpeg does not begin and end as JPEG does", ~(whole[0] & whole[1])
    matrix = _matrix(block.column("matrix"), 6)
    yield "matrix is not finite", ~np.isfinite(matrix).all(axis=1)
    yield "matrix mirrors or flattens", matrix[:, 0] * matrix[:, 4] - matrix[:, 1] * matrix[:, 3] <= 0


def _embeddings(block: pa.Table, ids: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    dim = block.schema.field("embedding").type.list_size
    vectors_ND = _matrix(block.column("embedding"), dim).astype(np.float32)
    with np.errstate(invalid="ignore"):
        length = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND))
        yield "embedding is not of unit length", ~(np.abs(length - 1) <= NORM_TOLERANCE)
    norm = block.column("norm").to_numpy()
    yield "norm is not positive and finite", ~(np.isfinite(norm) & (norm > 0))


def _duplicates(block: pa.Table, ids: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    keeper, group = block.column("representative").to_numpy(), block.column("group_id").to_numpy()
    distance = pc.fill_null(block.column("distance"), 0).to_numpy()
    exact = _texts(block.column("kind")) == "exact"
    yield "unknown kind", ~exact & (_texts(block.column("kind")) != "near")
    for name, other in (("image_id", ids), ("representative", keeper), ("group_id", group)):
        yield f"{name} is a face id where an image id belongs", image_id_of(other) != other
    yield "an image represents itself", keeper == ids
    yield "group_id is not the smallest of its group", group > np.minimum(ids, keeper)
    yield "distance is not 0..256 bits", (distance < 0) | (distance > PDQ_BITS)
    yield "identical files whose hashes differ", exact & (distance != 0)
    yield "a near copy without a distance", ~exact & block.column("distance").is_null().to_numpy()


def _neighbors(block: pa.Table, ids: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    rows = np.arange(len(ids))
    counts = [pc.list_value_length(block.column(n)).to_numpy() for n in ("neighbor_ids", "similarities")]
    if (uneven := counts[0] != counts[1]).any():
        yield "neighbor_ids and similarities differ in length", uneven
        return
    of = np.repeat(rows, counts[0])
    near, sims = (
        np.concatenate([chunk.flatten().to_numpy() for chunk in block.column(n).chunks])
        for n in ("neighbor_ids", "similarities")
    )
    yield "a similarity is no cosine", np.isin(rows, of[~(np.abs(sims) <= 1 + NORM_TOLERANCE)])
    yield "a face is its own neighbor", np.isin(rows, of[near == ids[of]])
    same = of[1:] == of[:-1]
    after = (sims[1:] > sims[:-1]) | ((sims[1:] == sims[:-1]) & (near[1:] <= near[:-1]))
    yield "neighbors are not in descending similarity, equal ones by id", np.isin(rows, of[1:][same & after])
    order = np.lexsort((near, of))
    twice = (np.diff(near[order]) == 0) & (np.diff(of[order]) == 0)
    yield "a neighbor appears twice", np.isin(rows, of[order][1:][twice])


def _clusters(block: pa.Table, ids: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    unassigned = block.column("cluster_id").is_null().to_numpy()
    cluster = pc.fill_null(block.column("cluster_id"), 0).to_numpy()
    confidence = pc.fill_null(block.column("confidence"), 0.0).to_numpy()
    yield "cluster_id is an image id where a face id belongs", ~unassigned & (image_id_of(cluster) == cluster)
    yield "cluster_id is not the smallest of its cluster", ~unassigned & (cluster > ids)
    yield "confidence is not 0..1", ~((confidence >= 0) & (confidence <= 1))
    yield (
        "a confidence without a cluster, or a cluster without",
        unassigned != block.column("confidence").is_null().to_numpy(),
    )


def _attributes(block: pa.Table, ids: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    status = _texts(block.column("status"))
    known = next(column.values for column in table_spec("attributes").columns if column.name == "status")
    yield "unknown status", ~np.isin(status, known)
    for name in block.column_names[2:]:  # behind face_id and status: the annotator's own
        column = block.column(name)
        yield f"{name} of a crop that was not looked at", (status == "poison") & column.is_valid().to_numpy()
        if pa_types.is_floating(column.type):
            wrong = pc.fill_null(pc.invert(pc.is_finite(column)), False)
            yield f"{name} is not finite", wrong.to_numpy()


_CHECKS: dict[str, Callable[[pa.Table, NDArray[np.int64]], Iterator[tuple[str, NDArray[np.bool_]]]]] = {
    "images": _images,
    "labels": _labels,
    "faces": _faces,
    "crops": _crops,
    "embeddings": _embeddings,
    "duplicates": _duplicates,
    "neighbors": _neighbors,
    "clusters": _clusters,
    "attributes": _attributes,
}


def _texts(column: pa.ChunkedArray) -> NDArray[np.object_]:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=object)


def _matrix(column: pa.ChunkedArray, width: int) -> NDArray[np.floating]:
    """Float [N, width] of a fixed-size list column."""
    flat = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate(flat).reshape(-1, width)
