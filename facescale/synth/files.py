"""Pixels → the bytes of a file, and the files that are no pictures at all.

In: uint8 RGB pixels, or nothing. Out: bytes. Called by facescale.synth.crawl.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from facescale.synth.raster import reduce

# Kind of damaged file → extension and the status that facescale.imaging gives it.
DAMAGE = {
    "truncated": (".jpg", "truncated"),
    "empty": (".jpg", "empty"),
    "html": (".jpg", "not_image"),
    "garbage": (".jpg", "not_image"),
    "broken": (".png", "corrupt"),
    "bomb": (".png", "too_many_pixels"),
}
# How a picture is stored → extension; `mislabeled` is a PNG called .jpg, `rotated` needs its EXIF tag.
FORMATS = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "rotated": ".jpg", "mislabeled": ".jpg"}
_EXIF_ORIENTATION = 274
_BOMB_SIDE_PX = 30_000
_HTML = b"""<!DOCTYPE html>
<html><head><title>404 Not Found</title></head>
<body><h1>Not Found</h1><p>The image you asked for is no longer here.</p></body></html>
"""


def encode(pixels: np.ndarray, how: str, quality: int) -> bytes:
    """Store a picture.

    Args:
        pixels: uint8 [H, W, 3] RGB, upright.
        how: a key of FORMATS.
        quality: 1..95, of the lossy formats.
    """
    if how in ("png", "mislabeled"):
        return _save(pixels, "PNG", compress_level=3)
    if how == "webp":
        return _save(pixels, "WEBP", quality=quality, method=2)
    if how == "rotated":  # stored lying on its side; orientation 6 says: turn a quarter clockwise to show
        exif = Image.Exif()
        exif[_EXIF_ORIENTATION] = 6
        return _save(np.ascontiguousarray(np.rot90(pixels)), "JPEG", quality=quality, exif=exif)
    return _save(pixels, "JPEG", quality=quality)


def reencode(data: bytes, scale: float, gain: float, quality: int) -> bytes:
    """What a second web site makes of a picture: a little smaller, a little brighter, JPEG again.

    Args:
        data: bytes of a picture that decodes.
        scale: of each side, in (0, 1].
        gain: of brightness.
        quality: JPEG quality of the copy.
    """
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    small = reduce(pixels, size).astype(np.float32)
    return _save(np.clip(np.rint(small * gain), 0, 255).astype(np.uint8), "JPEG", quality=quality)


def damaged(kind: str, intact: bytes, rng: np.random.Generator) -> bytes:
    """A file that is not a whole picture.

    Args:
        kind: a key of DAMAGE.
        intact: a JPEG (for `truncated`) or PNG (for `broken`) to spoil; unused by the others.
        rng: where to cut, what the garbage is.
    """
    if kind == "truncated":
        return intact[: int(len(intact) * rng.uniform(0.4, 0.8))]
    if kind == "empty":
        return b""
    if kind == "html":
        return _HTML
    if kind == "garbage":
        return b"\x00" + rng.bytes(int(rng.integers(2_000, 20_000)))
    if kind == "broken":  # one flipped byte inside the compressed pixels: their checksum no longer agrees
        spoiled = bytearray(intact)
        spoiled[len(spoiled) // 2] ^= 0xFF
        return bytes(spoiled)
    header = struct.pack(">IIBBBBB", _BOMB_SIDE_PX, _BOMB_SIDE_PX, 8, 2, 0, 0, 0)
    row = zlib.compress(bytes(3 * _BOMB_SIDE_PX + 1))  # one row is enough to promise the rest
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", row) + _chunk(b"IEND", b"")


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _save(pixels: np.ndarray, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()
