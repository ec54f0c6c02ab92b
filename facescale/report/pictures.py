"""Pictures for the page: face ids come in, small JPEGs as data URIs go out, within a budget of bytes.

Called by collect. Only the crops of faces that are shown are read.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import cv2
import numpy as np

from facescale.errors import CorruptError
from facescale.vision.crops import decode_jpeg

if TYPE_CHECKING:
    from collections.abc import Iterable

    from facescale.report.source import Source

_QUALITY = 82
_LESS = 45  # for what stays large: noise
_LARGEST_BYTES = 9 << 10
_MARGIN = 0.12  # a crop shows more around the face than a small picture has room for
_DOWN = 0.04  # the middle of a crop lies between the eyes
_AT_ONCE = 256


def read_pictures(source: Source, face_ids: Iterable[int], budget_bytes: int) -> tuple[dict[int, str], int]:
    """Fetch and shrink the crops of some faces.

    Args:
        source: the lake.
        face_ids: in the order of the page; a face counts as often as it is shown.
        budget_bytes: of all data URIs, repeats included; once it is used up no more are made.

    Returns:
        ({face_id: data URI}, number of faces left out for want of room). A face without a crop, or with a damaged one,
        has none.
    """
    version = source.version("crops")
    wanted = list(face_ids)
    if version is None or not wanted:
        return {}, 0
    times: dict[int, int] = {}
    for face in wanted:
        times[face] = times.get(face, 0) + 1
    pictures: dict[int, str] = {}
    unique = list(times)
    for start in range(0, len(unique), _AT_ONCE):
        block = unique[start : start + _AT_ONCE]
        rows = source.rows(version, np.array(block, np.int64), ["face_id", "jpeg"])
        for face, data in zip(rows["face_id"].to_pylist(), rows["jpeg"].to_pylist(), strict=True):
            picture = thumbnail(data, source.config.picture_px)
            if picture is None:
                continue
            budget_bytes -= len(picture) * times[face]
            if budget_bytes < 0:
                return pictures, len(unique) - start - block.index(face)
            pictures[face] = picture
    return pictures, 0


def thumbnail(jpeg: bytes, side_px: int) -> str | None:
    """A crop as a square data URI of at most `side_px`, never enlarged; None when it cannot be decoded."""
    try:
        pixels = decode_jpeg(jpeg)
    except CorruptError:
        return None
    height, width = pixels.shape[:2]
    cut = round(min(height, width) * _MARGIN)
    down = round(height * _DOWN)
    pixels = pixels[cut + down : height - cut + down, cut : width - cut]
    if not pixels.size:
        return None
    side = min(side_px, *pixels.shape[:2])
    small = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    for quality in (_QUALITY, _LESS):
        done, data = cv2.imencode(
            ".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )
        if done and (len(data) <= _LARGEST_BYTES or quality == _LESS):
            return "data:image/jpeg;base64," + base64.b64encode(bytes(data)).decode()
    return None
