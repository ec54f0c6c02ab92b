"""Ids: bit layout, bounds, scalars and arrays alike."""

from __future__ import annotations

import numpy as np
import pytest

from facescale.errors import DataError
from facescale.lake.ids import (
    MAX_FACES,
    MAX_ROW,
    MAX_SHARD,
    image_id_of,
    make_face_id,
    make_image_id,
    split_ids,
)


def test_bit_layout():
    assert make_image_id(1, 0) == 1 << 40
    assert make_image_id(0, 1) == 1 << 8
    assert make_face_id(make_image_id(5, 7), 9) == (5 << 40) | (7 << 8) | 9
    assert (MAX_SHARD, MAX_ROW, MAX_FACES) == (2**23 - 1, 2**32 - 1, 255)


def test_largest_id_is_a_positive_int64():
    largest = make_face_id(make_image_id(MAX_SHARD, MAX_ROW), MAX_FACES)
    assert largest == np.iinfo(np.int64).max
    assert split_ids(largest) == (MAX_SHARD, MAX_ROW, MAX_FACES)


def test_scalars_give_ints_and_arrays_give_int64():
    assert type(make_image_id(3, 4)) is int
    assert type(image_id_of(make_face_id(make_image_id(3, 4), 1))) is int
    ids = make_image_id(3, np.arange(4, dtype=np.int32))
    assert ids.dtype == np.int64
    faces = make_face_id(ids, np.array([1, 2, 3, 255], np.uint8))
    assert faces.dtype == np.int64
    assert image_id_of(faces).tolist() == ids.tolist()
    assert [part.tolist() for part in split_ids(faces)] == [[3] * 4, [0, 1, 2, 3], [1, 2, 3, 255]]


def test_empty_arrays():
    none = make_face_id(make_image_id(np.empty(0, np.int64), np.empty(0, np.int64)), np.empty(0, np.int64))
    assert none.shape == (0,)
    assert none.dtype == np.int64


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: make_image_id(MAX_SHARD + 1, 0), "shard 8388608 is outside"),
        (lambda: make_image_id(-1, 0), "shard -1 is outside"),
        (lambda: make_image_id(0, np.array([0, MAX_ROW + 1])), "row 4294967296 is outside"),
        (lambda: make_face_id(0, 0), "ordinal 0 is outside 1..255"),
        (lambda: make_face_id(0, 256), "ordinal 256 is outside"),
        (lambda: make_face_id(make_face_id(0, 1), 1), "a face id was given"),
        (lambda: make_image_id(0, 1.5), "expected integers, got float64"),
    ],
)
def test_values_that_do_not_fit_are_refused(make, says):
    with pytest.raises(DataError, match=says):
        make()
