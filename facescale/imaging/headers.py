"""What a file is, and how large: the first bytes in, a `Header` or a `Rejected` out; called by decode.py.

Nothing here decodes pixels or allocates by what a file claims. JPEG, PNG, WebP and TIFF are walked by their
own markers, because the walk answers at once what no library tells quietly: the size, the EXIF orientation,
whether the end of the file is missing, and whether OpenCV can be given the bytes without libjpeg or libpng
writing to stderr (extraneous bytes, odd color profiles).

Formats: JPEG: ITU T.81 annex B. PNG: W3C PNG third edition. WebP: RFC 9649. TIFF: revision 6.0; BigTIFF 43.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

# A hostile file can consist of millions of empty segments; more than this many is called corrupt.
MAX_SEGMENTS = 1_000_000

_UNSUPPORTED_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\x00\x00\x01\x00", "Windows icon"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"qoif", "QOI"),
    (0, b"DDS ", "DirectDraw surface"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"FORM", "IFF"),
    (0, b"\xd7\xcd\xc6\x9a", "Windows metafile"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM video"),
)
_IMAGE_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis", b"crx ")


class Rejected(Exception):  # noqa: N818 - not an error of the program: it carries a verdict on one image
    """The image gets `status` and goes no further.

    Args:
        status: one of the statuses of the `images` table.
        detail: what is wrong, for a person.
        width: width in px as stored, when it is known.
        height: height in px as stored, when it is known.
    """

    def __init__(self, status: str, detail: str, width: int | None = None, height: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.width, self.height = status, detail, width, height


@dataclass(slots=True)
class Header:
    """What the head of a file says.

    Attributes:
        kind: jpeg, png, webp, gif, bmp or tiff.
        width: px as stored, before the EXIF orientation.
        height: px as stored.
        orientation: EXIF orientation 1..8; 1 is upright.
        plain: 8-bit, opaque, regular: OpenCV gives the same pixels as Pillow, faster.
        body: bytes to decode (for PNG the chunks that make the pixels, without ancillary ones).
    """

    kind: str
    width: int
    height: int
    orientation: int = 1
    plain: bool = False
    body: bytes | None = None


def sniff(data: bytes) -> str:
    """Tell a file's format by its content; names and extensions are never asked.

    Returns:
        jpeg, png, webp, gif, bmp or tiff.

    Raises:
        Rejected: `empty`, `unsupported` (an image or document format that is known and not read) or
            `not_image` (HTML, text, anything else).
    """
    if not data:
        raise Rejected("empty", "the file has no bytes")
    head = bytes(data[:1024])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return "tiff"
    if head.startswith(b"BM") and len(head) >= 26 and head[14:18] in _BMP_HEADERS:
        return "bmp"
    for offset, magic, name in _UNSUPPORTED_MAGIC:
        if head.startswith(magic, offset):
            raise Rejected("unsupported", f"{name} files are not read; convert to JPEG or PNG")
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in _IMAGE_BRANDS:
            name = "AVIF" if brand in (b"avif", b"avis") else "HEIC or HEIF"
            raise Rejected("unsupported", f"{name} files are not read; convert to JPEG or PNG")
        raise Rejected("unsupported", "an MP4 or QuickTime container, not an image")
    lower = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<html" in lower or lower.startswith((b"<!doctype html", b"<head", b"<body", b"<script")):
        raise Rejected("not_image", "an HTML page saved under an image's name")
    if lower.startswith(b"<") and b"<svg" in lower:
        raise Rejected("unsupported", "SVG files are not read; convert to PNG")
    if head[:1] == b"P" and head[1:2] in b"1234567fF" and head[2:3].isspace():
        raise Rejected("unsupported", "PNM and PFM files are not read; convert to PNG")
    for start, name in ((b"{", "JSON"), (b"[", "JSON"), (b"<", "XML")):
        if lower.startswith(start):
            raise Rejected("not_image", f"looks like {name}, not like an image")
    if any(signature.startswith(head) for signature in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a")):
        raise Rejected("truncated", "ends inside its signature")
    if head.isascii() and head.translate(None, b"\t\n\r").decode("ascii").isprintable():
        raise Rejected("not_image", "plain text, not an image")
    raise Rejected("not_image", f"the first bytes are those of no image format ({head[:8].hex(' ')})")


_BMP_HEADERS = tuple(struct.pack("<I", n) for n in (12, 16, 40, 52, 56, 64, 108, 124))


def read_header(data: bytes) -> Header:
    """Read format, size, orientation and completeness.

    Args:
        data: the whole file.

    Raises:
        Rejected: the file is empty, of no or no supported format, truncated or corrupt, as far as its
            structure tells.
    """
    kind = sniff(data)
    try:
        return _READERS[kind](data)
    except (struct.error, IndexError):  # the walk ran past the end of the file
        raise Rejected("truncated", f"the {kind.upper()} ends inside its header") from None


def _jpeg(data: bytes) -> Header:
    """Walk the marker segments up to the first scan; then only the end marker matters."""
    position, plain, orientation = 2, True, 1
    frame: tuple[int, int, int, int, int] | None = None
    for _ in range(MAX_SEGMENTS):
        if data[position] != 0xFF:  # libjpeg skips these too, but complains on stderr: for Pillow
            plain = False
            position = data.find(b"\xff", position)
            if position < 0:
                break
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # stand-alone markers
            position += 2
            continue
        if marker == 0xD9:
            raise Rejected("corrupt", "the JPEG ends before any image data")
        (length,) = struct.unpack_from(">H", data, position + 2)
        end = position + 2 + length
        if length < 2:
            break
        if end > len(data):
            raise Rejected("truncated", "the JPEG ends inside its header")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            precision, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            frame = frame or (marker, precision, width, height, components)
        elif marker == 0xE1 and orientation == 1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = exif_orientation(data[position + 10 : end])
        elif marker == 0xDA:
            return _jpeg_frame(data, end, frame, orientation, plain)
        position = end
    raise Rejected("corrupt", "the JPEG has no readable sequence of segments")


def _jpeg_frame(
    data: bytes, scan: int, frame: tuple[int, int, int, int, int] | None, orientation: int, plain: bool
) -> Header:
    if frame is None:
        raise Rejected("corrupt", "the JPEG has image data but no frame header")
    marker, precision, width, height, components = frame
    if marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) or precision != 8:
        what = f"{precision}-bit" if precision != 8 else "lossless or hierarchical"
        raise Rejected("unsupported", f"{what} JPEG is not read; convert to 8-bit JPEG or PNG", width, height)
    # FF D9 cannot occur inside entropy-coded data, so an end marker after the scan began is the image's own
    # (a thumbnail's lies before it). Without one the decoder would invent the missing rows in gray.
    if data.rfind(b"\xff\xd9", scan) < 0:
        raise Rejected("truncated", "the JPEG has no end marker: its last rows are missing", width, height)
    return Header("jpeg", width, height, orientation, plain and components in (1, 3))


def _png(data: bytes) -> Header:
    """Walk all chunks, check the CRC of those that make pixels, and leave the others out of `body`."""
    width, height, depth, color = struct.unpack_from(">IIBB", data, 16)
    if data[12:16] != b"IHDR":
        raise Rejected("corrupt", "the PNG does not begin with its header chunk")
    position, orientation, plain = 8, 1, depth <= 8 and color in (0, 2, 3)
    kept: list[memoryview] = []
    view, run = memoryview(data), 0
    for _ in range(MAX_SEGMENTS):
        if position + 12 > len(data):
            raise Rejected("truncated", "the PNG has no end chunk: its last rows are missing", width, height)
        (length,) = struct.unpack_from(">I", data, position)
        name, end = data[position + 4 : position + 8], position + 12 + length
        if end > len(data):
            raise Rejected("truncated", "the PNG ends inside a chunk", width, height)
        transparent = name == b"tRNS"
        if not name[0] & 0x20 or transparent:  # an upper-case first letter marks a critical chunk
            if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                text = name.decode("ascii", "replace")
                raise Rejected("corrupt", f"the PNG's {text} chunk fails its checksum", width, height)
            plain = plain and not transparent
        else:
            kept.append(view[run:position])
            run = end
            if name == b"eXIf":
                orientation = exif_orientation(data[position + 8 : end - 4])
        position = end
        if name == b"IEND":
            kept.append(view[run:position])
            return Header("png", width, height, orientation, plain, b"".join(kept) if run else data)
    raise Rejected("corrupt", f"the PNG has more than {MAX_SEGMENTS:,} chunks", width, height)


def _webp(data: bytes) -> Header:
    """Walk the RIFF chunks; width and height from whichever of VP8X, VP8 and VP8L comes first."""
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    position, size, orientation, plain = 12, (0, 0), 1, True
    for _ in range(MAX_SEGMENTS):
        if position + 8 > min(end, len(data)):
            break
        name = data[position : position + 4]
        (length,) = struct.unpack_from("<I", data, position + 4)
        body = position + 8
        if name == b"VP8X":
            plain = not data[body] & 0x12  # alpha, animation
            packed = int.from_bytes(data[body + 4 : body + 10], "little")  # twice 24 bits
            size = (1 + (packed & 0xFFFFFF), 1 + (packed >> 24))
        elif name == b"VP8 " and not size[0]:
            width, height = struct.unpack_from("<HH", data, body + 6)
            size = (width & 0x3FFF, height & 0x3FFF)
        elif name == b"VP8L" and not size[0]:
            (bits,) = struct.unpack_from("<I", data, body + 1)
            size = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
            plain = not bits >> 28 & 1  # alpha_is_used
        elif name == b"EXIF":
            orientation = exif_orientation(data[body : body + length].removeprefix(b"Exif\0\0"))
        position = body + length + (length & 1)
    if not size[0]:
        raise Rejected("truncated" if end > len(data) else "corrupt", "the WebP holds no image chunk")
    if end > len(data):
        raise Rejected("truncated", f"the WebP is {end:,} bytes by its header, {len(data):,} here", *size)
    return Header("webp", *size, orientation, plain)


def _gif(data: bytes) -> Header:
    return Header("gif", *struct.unpack_from("<HH", data, 6))


def _bmp(data: bytes) -> Header:
    if data[14] == 12:
        return Header("bmp", *struct.unpack_from("<HH", data, 18))
    width, height = struct.unpack_from("<ii", data, 18)
    return Header("bmp", abs(width), abs(height))  # a negative height says that rows run from the top


def _tiff(data: bytes) -> Header:
    tags = read_ifd(data)
    if tags is None:
        raise Rejected("truncated", "the TIFF's directory lies beyond its end")
    if not tags.get(256, ()) or not tags.get(257, ()):
        raise Rejected("corrupt", "the TIFF has no width or height")
    width, height = tags[256][0], tags[257][0]
    for offsets, counts in ((273, 279), (324, 325)):  # strips, tiles
        for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False):
            if offset + count > len(data):
                raise Rejected("truncated", "the TIFF's image data lies beyond its end", width, height)
    return Header("tiff", width, height)  # Pillow turns TIFFs upright itself, so orientation stays 1 here


_READERS = {"jpeg": _jpeg, "png": _png, "webp": _webp, "gif": _gif, "bmp": _bmp, "tiff": _tiff}

_WANTED = {256, 257, 273, 274, 279, 324, 325}
_DTYPES = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}


def read_ifd(data: bytes) -> dict[int, list[int]] | None:
    """Read the integer tags of a TIFF's first directory that size, place and turn the image.

    Args:
        data: TIFF or BigTIFF stream; EXIF blocks have the same form.

    Returns:
        tag → values; None when the directory itself is not inside `data`. Tags whose values are not
        inside `data` are left out.
    """
    order = "<" if data[:2] == b"II" else ">"
    if data[:2] not in (b"II", b"MM"):
        return None
    big = data[2:4] in (b"+\0", b"\0+")
    entry, inline = (struct.Struct(order + "HHQ"), 8) if big else (struct.Struct(order + "HHI"), 4)
    word = "Q" if big else "I"
    try:
        (start,) = struct.unpack_from(order + word, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    except struct.error:
        return None
    start += 8 if big else 2
    tags: dict[int, list[int]] = {}
    for position in range(start, start + min(count, 65_535) * (entry.size + inline), entry.size + inline):
        if position + entry.size + inline > len(data):
            return None
        tag, kind, number = entry.unpack_from(data, position)
        if tag not in _WANTED or kind not in _DTYPES:
            continue
        dtype = np.dtype(order + _DTYPES[kind])
        offset = position + entry.size
        if number * dtype.itemsize > inline:
            (offset,) = struct.unpack_from(order + word, data, offset)
        if offset + number * dtype.itemsize <= len(data):
            tags[tag] = np.frombuffer(data, dtype, number, offset).tolist()
    return tags


def exif_orientation(block: bytes) -> int:
    """Orientation 1..8 of an EXIF block; 1 when it says nothing or nonsense."""
    values = (read_ifd(block) or {}).get(274)
    return values[0] if values and 1 <= values[0] <= 8 else 1
