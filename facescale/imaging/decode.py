"""Bytes of one image file in, upright RGB pixels or a status out; called by extract's reader threads.

The order is: bytes limit, format by content, header, pixel limit, and only then pixels. Plain 8-bit JPEG, PNG
and WebP go to OpenCV (fast; releases the GIL); everything else goes to Pillow, chosen by the header alone, so
that the same bytes always give the same pixels. What both can decode, they decode identically.

Decisions that change pixels:
- Orientation is applied here, once, from EXIF in JPEG, PNG and WebP, by Pillow in TIFF; never by OpenCV.
- Transparency is composited on white, the page most images were made for; hidden colors do not appear.
- Animations give their first frame. Color profiles are ignored.
- CMYK samples of a JPEG with Adobe's marker are inverted, others are not; they become RGB without a profile.
- Integer samples of more than 8 bits keep the high byte of 16. Floats are taken as 0..1 if none exceeds 1,
  else as 0..255 if none exceeds 255, else as 0..65535.

Limits: damage inside the entropy-coded data of a complete JPEG cannot be told, since JPEG has no checksum;
the image is `ok`, and libjpeg prints one line. A PNG's checksums are verified, so libpng has no cause to print,
unless an encoder put right checksums on too little data.
"""

from __future__ import annotations

import io
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageChops
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from facescale.imaging.headers import Header, Rejected, read_header

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.ImageFile import ImageFile

    Pixels = npt.NDArray[np.uint8]

DEFAULT_MAX_BYTES = 256 << 20
DEFAULT_MAX_PIXELS = 100_000_000

# Classes instead of Image.open: the header told the format, and Image.open would warn about large images.
_OPENERS: dict[str, type[ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "gif": GifImageFile,
    "bmp": BmpImageFile,
    "tiff": TiffImageFile,
}
# Pillow warns about odd metadata in these. Silencing it means changing Python's warning filters, which are
# process-wide: one thread at a time. PNG needs none (its ancillary chunks are gone) and WebP never warns.
_WARNING_KINDS = frozenset({"jpeg", "gif", "bmp", "tiff"})
_warning_lock = threading.Lock()


@dataclass(slots=True)
class Decoded:
    """One decoded image, or why there is none.

    Attributes:
        status: ok, empty, not_image, unsupported, truncated, corrupt, too_many_bytes, too_many_pixels or
            transient (memory ran out).
        detail: what is wrong, for a person; None when ok.
        width: px after orientation; None when the header could not be read.
        height: px after orientation.
        pixels: uint8 [height, width, 3] RGB, C-contiguous; None unless ok.
    """

    status: str
    detail: str | None = None
    width: int | None = None
    height: int | None = None
    pixels: Pixels | None = None


def decode(
    data: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Decoded:
    """Decode one image file; never raises for anything its bytes can hold, never warns. Thread safe.

    Args:
        data: the whole file.
        max_bytes: larger files are `too_many_bytes`, unread.
        max_pixels: images of more pixels are `too_many_pixels`, by their header, before anything is
            allocated. Pillow's own limit (179 million) also holds for GIF, tiled TIFF and WebP.

    Notes:
        Memory: 3 bytes a pixel for the result, up to 8 more a pixel while Pillow decodes.
    """
    if len(data) > max_bytes:
        return Decoded("too_many_bytes", f"{len(data):,} bytes, the limit is {max_bytes:,} (max_bytes)")
    header: Header | None = None
    try:
        header = read_header(data)
        _check_size(header.width, header.height, max_pixels)
        pixels = _pixels(data, header, max_pixels)
    except Rejected as verdict:
        width, height = verdict.width, verdict.height
        if header is not None:
            width, height = header.width, header.height
            if header.orientation >= 5:
                width, height = height, width
        return Decoded(verdict.status, verdict.detail, width, height)
    height, width = pixels.shape[:2]
    return Decoded("ok", None, width, height, pixels)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        what = f"{width:,} x {height:,} is {width * height / 1e6:,.1f} million pixels"
        raise Rejected("too_many_pixels", f"{what}, the limit is {max_pixels / 1e6:,.1f} (max_pixels)")
    if width < 1 or height < 1:
        raise Rejected("corrupt", f"the header gives a size of {width} x {height}")


def _pixels(data: bytes, header: Header, max_pixels: int) -> Pixels:
    body = data if header.body is None else header.body
    pixels = _by_opencv(body, header) if header.plain else None
    if pixels is None:  # not plain, or OpenCV refused: Pillow decodes it or says what is wrong
        try:
            if header.kind in _WARNING_KINDS:
                with _warning_lock, warnings.catch_warnings():
                    warnings.filterwarnings("ignore", module=r"PIL\.")
                    pixels = _by_pillow(body, header, max_pixels)
            else:
                pixels = _by_pillow(body, header, max_pixels)
        except Rejected:
            raise
        except MemoryError:
            raise Rejected("transient", "not enough memory to decode; rerun with --retry-failed") from None
        except Image.DecompressionBombError as error:
            raise Rejected("too_many_pixels", str(error)) from None
        except Exception as error:  # on hostile bytes Pillow raises nearly everything
            raise Rejected(*_verdict(error, header.kind)) from None
    return _upright(pixels, header.orientation)


def _by_opencv(body: bytes, header: Header) -> Pixels | None:
    try:
        pixels: Pixels | None = cv2.imdecode(
            np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:
        return None
    if pixels is None or pixels.shape != (header.height, header.width, 3):
        return None
    return pixels


def _by_pillow(body: bytes, header: Header, max_pixels: int) -> Pixels:
    with _OPENERS[header.kind](io.BytesIO(body)) as image:
        _check_size(*image.size, max_pixels)  # a GIF's first frame may be larger than its canvas
        image.load()
        if image.mode.startswith("I"):
            samples = np.clip(np.asarray(image).astype(np.int64), 0, 65_535) >> 8
            return _gray(samples.astype(np.uint8))
        if image.mode == "F":
            return _gray(_from_float(np.asarray(image)))
        if image.has_transparency_data:
            over = image.convert("RGBA")
            white = Image.new("RGBA", over.size, (255, 255, 255, 255))
            return np.array(Image.alpha_composite(white, over).convert("RGB"))
        flat: Image.Image = image
        if header.kind == "jpeg" and image.mode == "CMYK" and "adobe" not in image.info:
            flat = ImageChops.invert(
                image
            )  # Pillow takes all CMYK JPEGs for Adobe's, whose samples are inverted
        try:
            return np.array(flat.convert("RGB"))
        except ValueError:
            raise Rejected("unsupported", f"{image.mode} color is not read; convert to RGB") from None


def _gray(samples: Pixels) -> Pixels:
    return np.repeat(samples[:, :, None], 3, axis=2)


def _from_float(samples: npt.NDArray[np.float32]) -> Pixels:
    samples = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
    top = samples.max(initial=0.0)
    scale = 255.0 if top <= 1 else 1.0 if top <= 255 else 1 / 257
    scaled: Pixels = np.clip(np.rint(samples * scale), 0, 255).astype(np.uint8)
    return scaled


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo the EXIF orientation: flips by OpenCV, which copies at memory speed and stays C-contiguous."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    # How the (for 5..8 transposed) image still has to be flipped: OpenCV's 1 left-right, 0 up-down, -1 both.
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    upright: Pixels = pixels if flip is None else cv2.flip(pixels, flip)
    return upright


def _verdict(error: Exception, kind: str) -> tuple[str, str]:
    """Status and detail for what Pillow said about a file whose header was good."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, EOFError) or "truncated" in text.lower() or "unexpected end" in text.lower():
        return "truncated", f"the image data ends early ({text})"
    if "unknown pixel mode" in text.lower() or "unsupported" in text.lower():
        return "unsupported", f"this kind of {kind.upper()} is not read ({text}); convert to 8-bit RGB"
    return "corrupt", f"the image data cannot be decoded ({text})"
