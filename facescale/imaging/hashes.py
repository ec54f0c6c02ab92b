"""Hashes of an image: of its bytes (exact copies) and of what it shows (near copies); called by extract.

PDQ is Meta's 256-bit perceptual hash (ThreatExchange, "The TMK+PDQF video-hashing algorithm and the PDQ
image-hashing algorithm", 2019). By its authors' rule two images are copies when their hashes differ in at most
31 bits; quality (0..100) measures gradients, and hashes below 50 mean little.

The arithmetic is that of Meta's C++ code, which the package pdqhash wraps and the tests compare with, bit for bit.
It is written anew because that package holds the GIL and takes longer than decoding: 0.8 against 0.2 ms for a
250x250 photo, 2.4 against 0.5 ms at 512 px. All steps up to the 64x64 image are linear and separable, so two box
filters and the decimation become one short weighted sum for each of 64 rows, and then of 64 columns.

PDQ reduces an image from its upper left corner and compares with the median, so the hash of a mirrored picture cannot
be told from that of the picture: on 250 px photographs 22 bits go wrong. The symmetric hash beside it has the signs of
the same 256 cosine frequencies of an image that is reduced symmetrically. Mirroring inverts those of odd frequency and
transposing swaps rows and columns, exactly (`turned`), so one hash stands for all eight ways to turn a picture.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

# PDQ smooths to 64x64 first, so more pixels than this only cost time; Meta's own tools reduce to it too.
PDQ_SIDE_PX = 512
_MIN_SIDE_PX = 5  # smaller images have no hash, by definition
_GRID = 64
_FREQUENCIES = 16


def sha256(data: bytes) -> bytes:
    """SHA-256 of the file's bytes, 32 bytes; releases the GIL for files above 2 KiB."""
    return hashlib.sha256(data).digest()


TURNS = (
    "upright",
    "mirrored",
    "flipped",
    "rotated 180",
    "transposed",
    "rotated 90",
    "rotated 270",
    "transversed",
)
"""The eight ways a picture can lie, by the bits of their number: 1 mirrors left and right, 2 top and bottom, and 4
swaps rows and columns before that. rotated 90 is clockwise."""


@dataclass(frozen=True)
class Perceptual:
    """What an image looks like.

    Attributes:
        pdq: PDQ hash, 32 bytes, as `pdq` gives it.
        quality: of PDQ, 0..100.
        symmetric: 32 bytes, a bit for each of frequencies 1..16 down (slow) and across (fast), most significant bit
            first; set where the coefficient is positive.
    """

    pdq: bytes
    quality: int
    symmetric: bytes


def perceptual(pixels: npt.NDArray[np.uint8]) -> Perceptual:
    """Both hashes of what an image shows; `pixels` as for `pdq`. Images under 5 px a side have zeros for both."""
    if min(pixels.shape[:2]) < _MIN_SIDE_PX:
        return Perceptual(bytes(32), 0, bytes(32))
    luma = _luma(pixels)
    found, quality = _pdq(luma)
    small = cv2.blur(cv2.resize(luma, (_GRID, _GRID), interpolation=cv2.INTER_AREA), (3, 3))
    return Perceptual(found, quality, np.packbits(_dct() @ small @ _dct().T > 0).tobytes())


def turned(hashes: npt.NDArray[np.uint8], turn: int) -> npt.NDArray[np.uint8]:
    """Symmetric hashes of pictures that are turned.

    Args:
        hashes: uint8 [..., 32].
        turn: which way, an index into TURNS.

    Returns:
        uint8 [..., 32], what `perceptual` would give for the turned pictures.
    """
    bits = np.unpackbits(hashes, axis=-1).reshape(*hashes.shape[:-1], _FREQUENCIES, _FREQUENCIES)
    if turn & 4:
        bits = bits.swapaxes(-1, -2)
    odd = (np.arange(_FREQUENCIES) % 2 == 0).astype(np.uint8)  # the first frequency is 1
    if turn & 1:
        bits = bits ^ odd
    if turn & 2:
        bits = bits ^ odd[:, None]
    return np.packbits(bits.reshape(*hashes.shape[:-1], _FREQUENCIES**2), axis=-1)


def pdq(pixels: npt.NDArray[np.uint8]) -> tuple[bytes, int]:
    """Hash what an image shows.

    Args:
        pixels: uint8 [H, W, 3] RGB. One whose longer side is 1,024 px or more is first reduced to a longer side
            of 512..1,023 px by a whole factor, each pixel the mean of a square.

    Returns:
        the hash, 32 bytes, most significant bit first as in PDQ's own hexadecimal form; and its quality
        0..100 (0, with a zero hash, for images under 5 px a side, which PDQ does not hash).
    """
    if min(pixels.shape[:2]) < _MIN_SIDE_PX:
        return bytes(32), 0
    return _pdq(_luma(pixels))


def _luma(pixels: npt.NDArray[np.uint8]) -> Floats:
    """Luminance, float32 [H, W], of an image that is reduced first where it is large."""
    height, width = pixels.shape[:2]
    factor = max(height, width) // PDQ_SIDE_PX
    if factor > 1:  # a very long image keeps at least 5 px across
        down, across = (min(factor, side // _MIN_SIDE_PX) for side in (height, width))
        height, width = height // down, width // across
        pixels = pixels[: height * down, : width * across]
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    luma: Floats = cv2.cvtColor(pixels.astype(np.float32), cv2.COLOR_RGB2GRAY)
    return luma


def _pdq(luma: Floats) -> tuple[bytes, int]:
    """PDQ's hash and quality of a luminance [H, W]."""
    height, width = luma.shape
    rows, row_weights = _taps(height)
    columns, column_weights = _taps(width)
    small = np.einsum("ok,okw->ow", row_weights, luma[rows])
    small = np.einsum("ok,hok->ho", column_weights, small[:, columns])
    spectrum = (_dct() @ small @ _dct().T).ravel()
    # The lower median of 256, so that half of the bits are set.
    bits = spectrum > np.partition(spectrum, spectrum.size // 2 - 1)[spectrum.size // 2 - 1]
    return np.packbits(bits[::-1]).tobytes(), _quality(small)


def _quality(small: Floats) -> int:
    """Sum of the gradients of the 64x64 image in whole percent of white, over 90, at most 100."""
    steps = (np.abs(np.trunc(np.diff(small, axis=axis) * 100 / 255)).sum() for axis in (0, 1))
    return min(int(sum(steps)) // 90, 100)


@functools.lru_cache(maxsize=256)
def _taps(length: int) -> tuple[npt.NDArray[np.intp], Floats]:
    """How one of 64 output samples is summed from a line of `length` input samples.

    Two passes of a box filter (Jarosz), whose window shrinks at the borders, then every (length / 64)-th sample.

    Returns:
        indices [64, K] into the line, and their weights float32 [64, K].
    """
    window = (length + 2 * _GRID - 1) // (2 * _GRID)
    ahead = (window + 2) // 2 - 1
    at = np.arange(length)
    distance = at[None, :] - at[:, None]
    box = ((distance >= ahead + 1 - window) & (distance <= ahead)).astype(np.float64)
    box /= box.sum(axis=1, keepdims=True)
    picked = ((np.arange(_GRID) + 0.5) * length / _GRID).astype(np.intp)
    weights = box[picked] @ box
    used = weights > 0
    first = used.argmax(axis=1)
    count = int(used.sum(axis=1).max())
    indices = np.minimum(first, length - count)[:, None] + np.arange(count)
    return indices, np.take_along_axis(weights, indices, axis=1).astype(np.float32)


@functools.cache
def _dct() -> Floats:
    """Frequencies 1..16 of the cosine transform of 64 samples, float32 [16, 64]."""
    frequency, sample = np.arange(1, _FREQUENCIES + 1)[:, None], np.arange(_GRID)[None, :]
    matrix = np.sqrt(2 / _GRID) * np.cos(np.pi / (2 * _GRID) * frequency * (2 * sample + 1))
    single: Floats = matrix.astype(np.float32)
    return single
