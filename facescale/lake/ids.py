"""Ids say where a thing is: int64 = 23 bits of shard, 32 of row, 8 of ordinal.

Shards, rows and ordinals come in (scalars or numpy arrays), ids go out, and back. Ordinal 0 is the image itself,
1..255 its faces by descending score. Ids need no coordination, sort by locality and are legal FAISS ids; the
sign bit is never set. Called by every stage that writes a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np

from facescale.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64s = NDArray[np.int64]

ORDINAL_BITS = 8
ROW_BITS = 32
SHARD_BITS = 23

MAX_FACES = (1 << ORDINAL_BITS) - 1
MAX_ROW = (1 << ROW_BITS) - 1
MAX_SHARD = (1 << SHARD_BITS) - 1

_SHARD_SHIFT = ROW_BITS + ORDINAL_BITS


@overload
def make_image_id(shard: int, row: int) -> int: ...
@overload
def make_image_id(shard: Int64s, row: int | Int64s) -> Int64s: ...
@overload
def make_image_id(shard: int | Int64s, row: Int64s) -> Int64s: ...
def make_image_id(shard: int | Int64s, row: int | Int64s) -> int | Int64s:
    """Id of the image at a row of a shard.

    Args:
        shard: 0..MAX_SHARD, a scalar or an integer array.
        row: 0..MAX_ROW inside the shard; arrays broadcast against `shard`.

    Returns:
        An int for two scalars, else int64 of the broadcast shape.

    Raises:
        DataError: a value is no integer or outside its range.
    """
    shards = _checked("shard", shard, 0, MAX_SHARD)
    rows = _checked("row", row, 0, MAX_ROW)
    return _plain((shards << _SHARD_SHIFT) | (rows << ORDINAL_BITS))


@overload
def make_face_id(image_ids: int, ordinals: int) -> int: ...
@overload
def make_face_id(image_ids: Int64s, ordinals: int | Int64s) -> Int64s: ...
@overload
def make_face_id(image_ids: int | Int64s, ordinals: Int64s) -> Int64s: ...
def make_face_id(image_ids: int | Int64s, ordinals: int | Int64s) -> int | Int64s:
    """Id of a face: its image's id plus its rank by descending score.

    Args:
        image_ids: image ids (ordinal bits zero), a scalar or an integer array.
        ordinals: 1..MAX_FACES; arrays broadcast against `image_ids`.

    Returns:
        An int for two scalars, else int64 of the broadcast shape.

    Raises:
        DataError: an ordinal is outside 1..MAX_FACES, or an image id is negative or already names a face.
    """
    images = _checked("image_id", image_ids, 0, (1 << 63) - 1)
    if np.any(images & MAX_FACES):
        raise DataError("image_id: a face id was given where an image id belongs (its ordinal bits are set)")
    return _plain(images | _checked("ordinal", ordinals, 1, MAX_FACES))


@overload
def image_id_of(ids: int) -> int: ...
@overload
def image_id_of(ids: Int64s) -> Int64s: ...
def image_id_of(ids: int | Int64s) -> int | Int64s:
    """The image an id belongs to; an image id gives itself.

    Args:
        ids: face or image ids, a scalar or an int64 array.

    Returns:
        Image ids of the same shape.
    """
    return _plain(np.asarray(ids, dtype=np.int64) & ~np.int64(MAX_FACES))


@overload
def split_ids(ids: int) -> tuple[int, int, int]: ...
@overload
def split_ids(ids: Int64s) -> tuple[Int64s, Int64s, Int64s]: ...
def split_ids(ids: int | Int64s) -> tuple[int | Int64s, int | Int64s, int | Int64s]:
    """Take ids apart.

    Args:
        ids: face or image ids, a scalar or an int64 array.

    Returns:
        (shard, row, ordinal), each an int or int64 array of the shape of `ids`; ordinal 0 means an image.
    """
    values = np.asarray(ids, dtype=np.int64)
    return (
        _plain(values >> _SHARD_SHIFT),
        _plain((values >> ORDINAL_BITS) & MAX_ROW),
        _plain(values & MAX_FACES),
    )


def _checked(name: str, value: Any, low: int, high: int) -> Int64s:
    """The value as int64, refused unless it is integer and inside low..high."""
    array = np.asarray(value)
    if array.size and array.dtype.kind not in "iu":
        raise DataError(f"{name}: expected integers, got {array.dtype}")
    if array.size and (int(array.min()) < low or int(array.max()) > high):
        wrong = int(array.min()) if int(array.min()) < low else int(array.max())
        raise DataError(f"{name} {wrong} is outside {low}..{high}")
    return array.astype(np.int64)


def _plain(values: Int64s) -> int | Int64s:
    """An int for a 0-d result, the array otherwise, so that scalars in give scalars out."""
    return values if values.ndim else int(values)
