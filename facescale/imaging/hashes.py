"""Two hashes of an image: of its bytes (exact copies) and of what it shows (near copies); called by extract.

PDQ is Meta's 256-bit perceptual hash (ThreatExchange, "The TMK+PDQF video-hashing algorithm and the PDQ
image-hashing algorithm", 2019), here by the package pdqhash. By its authors' rule two images are copies when
their hashes differ in at most 31 bits; quality (0..100) measures gradients, and hashes below 50 mean little.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pdqhash

if TYPE_CHECKING:
    import numpy.typing as npt

# PDQ smooths to 64x64 first, so more than this only costs time; the authors' own tools reduce to it too.
PDQ_MAX_SIDE_PX = 512


def sha256(data: bytes) -> bytes:
    """SHA-256 of the file's bytes, 32 bytes; releases the GIL for files above 2 KiB."""
    return hashlib.sha256(data).digest()


def pdq(pixels: npt.NDArray[np.uint8]) -> tuple[bytes, int]:
    """Hash what an image shows.

    Args:
        pixels: uint8 [H, W, 3] RGB. An image whose longer side exceeds 512 px is area-reduced to it first.

    Returns:
        the hash, 32 bytes, most significant bit first as in PDQ's own hexadecimal form; and its quality
        0..100 (0, with a zero hash, for images under 5 px a side, which PDQ does not hash).
    """
    height, width = pixels.shape[:2]
    scale = PDQ_MAX_SIDE_PX / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    bits, quality = pdqhash.compute(np.ascontiguousarray(pixels))
    return np.packbits(bits.astype(np.uint8)).tobytes(), int(quality)
