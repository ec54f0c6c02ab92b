"""RecordIO: the bytes mxnet writes, payloads that hold the magic number, and files that are cut off."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facescale.errors import CorruptError
from facescale.training.recordio import MAGIC, image_record, labels_record, read_records, unpack

MAGIC_BYTES = struct.pack("<I", MAGIC)


def test_an_image_is_the_bytes_that_mxnet_packs() -> None:
    """mxnet.recordio.pack(IRHeader(0, 7, 3, 0), data), then MXRecordIO.write, by its published layout."""
    payload = struct.pack("<IfQQ", 0, 7.0, 3, 0) + b"jpeg!"
    assert image_record(3, 7, b"jpeg!") == struct.pack("<II", 0xCED7230A, len(payload)) + payload + b"\0\0\0"


def test_labels_are_the_bytes_that_mxnet_packs() -> None:
    payload = struct.pack("<IfQQ", 2, 0.0, 0, 0) + struct.pack("<ff", 101.0, 111.0)
    assert labels_record(0, (101, 111)) == struct.pack("<II", 0xCED7230A, len(payload)) + payload


def test_the_magic_number_inside_a_payload_cuts_it() -> None:
    """At a multiple of four bytes only; the parts are of kinds 1, 2 and 3, and the magic is not stored again."""
    jpeg = MAGIC_BYTES + b"abcd" + MAGIC_BYTES + b"x" + MAGIC_BYTES  # the last one is off by one byte
    data = image_record(1, 2, jpeg)
    kinds = [word >> 29 for magic, word in _heads(data) if magic == MAGIC]
    assert kinds == [1, 2, 3]
    ((_, payload),) = read_records(data)
    assert unpack(payload) == (1, [2.0], jpeg)


def _heads(data: bytes) -> list[tuple[int, int]]:
    at, heads = 0, []
    while at < len(data):
        magic, word = struct.unpack_from("<II", data, at)
        length = word & ((1 << 29) - 1)
        heads.append((magic, word))
        at += 8 + length + -length % 4
    return heads


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**24), st.lists(st.sampled_from([MAGIC_BYTES, b"a", b"bc", b"\0"]), max_size=12)
        ),
        max_size=6,
    )
)
def test_what_is_written_is_read(images: list[tuple[int, list[bytes]]]) -> None:
    records = [image_record(key, label, b"".join(parts)) for key, (label, parts) in enumerate(images)]
    offsets = np.cumsum([0, *map(len, records)])[:-1].tolist()
    found = list(read_records(b"".join(records)))
    assert [at for at, _ in found] == offsets
    assert [unpack(payload) for _, payload in found] == [
        (key, [float(label)], b"".join(parts)) for key, (label, parts) in enumerate(images)
    ]


@pytest.mark.parametrize("cut", [3, 11, 40])
def test_a_file_that_is_cut_off_is_refused(cut: int) -> None:
    data = image_record(1, 2, b"x" * 30)
    with pytest.raises(CorruptError, match="RecordIO"):
        list(read_records(data[:cut]))
