"""MXNet's IndexedRecordIO as insightface's arcface_torch reads it: images and class ids in, records out.

Written and read here without mxnet, which is no longer maintained. A file is a run of records, each

    uint32 0xced7230a | uint32 kind << 29 | length | payload | zeros up to a multiple of four bytes

where kind is 0 for a whole record; a payload that holds the magic number at a multiple of four bytes is cut there into
records of kind 1 (first), 2 (middle) and 3 (last), and the magic itself is left out (dmlc-core, src/recordio.cc). The
payload of an image is a header (uint32 flag, float32 label, uint64 id, uint64 id2: mxnet.recordio.IRHeader) and
its JPEG; where flag is not 0, that many float32 labels follow the header in place of `label`. The index holds a line
`key TAB offset` a record.

The keys: 0 is a header whose labels are the first key after the images and the first after the identities; images have
1 … N, ordered by class; one record an identity follows, whose labels are its range of keys. Called by the export stage
and driver.export.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAGIC = 0xCED7230A
MAX_LABEL = 1 << 24
"""float32 counts no further, so larger sets have neither header nor identities: then every key is an image."""
_MAGIC = struct.pack("<I", MAGIC)
_HEADER = struct.Struct("<IfQQ")
_MAX_LENGTH = (1 << 29) - 1
_KIND_SHIFT = 29


def image_record(key: int, class_id: int, jpeg: bytes) -> bytes:
    """The record of one image."""
    return _record(_HEADER.pack(0, float(class_id), key, 0) + jpeg)


def labels_record(key: int, labels: Sequence[float]) -> bytes:
    """A record that holds labels and no image: the header, and the identities."""
    values = np.asarray(labels, "<f4")
    return _record(_HEADER.pack(len(values), 0.0, key, 0) + values.tobytes())


def read_records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and payload of each record of a file's bytes.

    Raises:
        CorruptError: it is no RecordIO file, or cut off.
    """
    at, start, pieces = 0, 0, list[bytes]()
    while at < len(data):
        if at + 8 > len(data):
            raise CorruptError(f"RecordIO: {len(data) - at} bytes at {at} are no record")
        magic, word = struct.unpack_from("<II", data, at)
        kind, length = word >> _KIND_SHIFT, word & _MAX_LENGTH
        if magic != MAGIC or at + 8 + length > len(data):
            raise CorruptError(f"RecordIO: the record at {at} is damaged or cut off")
        pieces.append(data[at + 8 : at + 8 + length])
        at += 8 + length + -length % 4
        if kind in (0, 3):
            yield start, _MAGIC.join(pieces)
            start, pieces = at, []


def unpack(payload: bytes) -> tuple[int, list[float], bytes]:
    """Key, labels and content of a payload; an image has one label."""
    flag, label, key, _ = _HEADER.unpack_from(payload)
    rest = payload[_HEADER.size :]
    if not flag:
        return key, [label], rest
    return key, np.frombuffer(rest, "<f4", flag).tolist(), rest[4 * flag :]


def _record(payload: bytes) -> bytes:
    cuts = _magic_inside(payload)
    edges = [0, *(cut + 4 for cut in cuts)], [*cuts, len(payload)]
    pieces = [payload[start:stop] for start, stop in zip(*edges, strict=True)]
    kinds = [0] if len(pieces) == 1 else [1, *[2] * (len(pieces) - 2), 3]
    return b"".join(
        _MAGIC + struct.pack("<I", kind << _KIND_SHIFT | len(piece)) + piece + bytes(-len(piece) % 4)
        for kind, piece in zip(kinds, pieces, strict=True)
    )


def _magic_inside(payload: bytes) -> list[int]:
    """Where the magic number lies at a multiple of four bytes."""
    if _MAGIC not in payload:
        return []
    words = np.frombuffer(payload, "<u4", len(payload) // 4)
    return (np.flatnonzero(words == MAGIC) * 4).tolist()
