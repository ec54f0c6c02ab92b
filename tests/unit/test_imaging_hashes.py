"""sha256 and PDQ: PDQ bit for bit as Meta's own code (package pdqhash), stable under what copies undergo."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pdqhash
import pytest
from PIL import Image

from facescale.imaging.decode import decode
from facescale.imaging.hashes import pdq, sha256

if TYPE_CHECKING:
    from pathlib import Path

COPY_BITS = 31  # PDQ's authors' own threshold for "the same image"


def oracle(pixels: np.ndarray) -> tuple[bytes, int]:
    bits, quality = pdqhash.compute(pixels)
    return np.packbits(bits.astype(np.uint8)).tobytes(), quality


def bits_apart(a: bytes, b: bytes) -> int:
    return int(np.unpackbits(np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).sum())


def scene(seed: int, height: int = 300, width: int = 400) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), max(1.0, min(height, width) / 20)).astype(np.float32)
    return ((smooth - smooth.min()) / max(float(np.ptp(smooth)), 1) * 255).astype(np.uint8)


def test_sha256_is_sha256() -> None:
    assert sha256(b"abc") == hashlib.sha256(b"abc").digest()
    assert len(sha256(b"")) == 32


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (5, 5),
        (5, 700),
        (64, 64),
        (63, 65),
        (127, 128),
        (128, 129),
        (250, 250),
        (333, 1023),
        (1000, 6),
        (512, 384),
    ],
)
def test_pdq_is_metas_bit_for_bit(height: int, width: int) -> None:
    for seed in range(3):
        pixels = scene(seed, height, width)
        assert pdq(pixels) == oracle(pixels)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (4, 900), (900, 2)])
def test_tiny_images_have_no_hash(height: int, width: int) -> None:
    assert pdq(scene(0, height, width)) == (bytes(32), 0)


@pytest.mark.parametrize(("height", "width"), [(1024, 700), (1500, 2300), (2049, 1999)])
def test_large_images_are_reduced_to_nearly_the_same_hash(height: int, width: int) -> None:
    pixels = cv2.resize(scene(1, 150, 230), (width, height), interpolation=cv2.INTER_CUBIC)
    assert bits_apart(pdq(pixels)[0], oracle(pixels)[0]) <= 16


def test_very_long_images_cost_little() -> None:
    value, quality = pdq(scene(0, 60_000, 20))
    assert len(value) == 32
    assert 0 <= quality <= 100


def test_flat_images_have_quality_zero() -> None:
    assert pdq(np.full((100, 120, 3), 77, np.uint8))[1] == 0


def test_copies_are_near_and_other_images_are_far() -> None:
    original = scene(5)
    out = io.BytesIO()
    Image.fromarray(original).resize((300, 225)).save(out, "JPEG", quality=60)
    copy = decode(out.getvalue()).pixels
    assert copy is not None
    assert bits_apart(pdq(original)[0], pdq(copy)[0]) <= COPY_BITS
    assert bits_apart(pdq(original)[0], pdq(scene(6))[0]) > 2 * COPY_BITS


def test_the_input_is_left_alone_and_need_not_be_contiguous() -> None:
    pixels = scene(2)
    before = pixels.copy()
    flipped = pixels[:, ::-1]
    assert pdq(flipped) == pdq(np.ascontiguousarray(flipped))
    np.testing.assert_array_equal(pixels, before)


def test_real_photos_hash_as_metas(test_data: Path) -> None:
    paths = sorted(test_data.glob("lfw/**/*.jpg"))[::100] + sorted(test_data.glob("groups/*.jpg"))
    assert len(paths) > 40
    compared = 0
    for path in paths:
        pixels = decode(path.read_bytes()).pixels
        assert pixels is not None
        value, quality = pdq(pixels)
        expected, expected_quality = oracle(pixels)
        if max(pixels.shape) < 1024:
            assert (value, quality) == (expected, expected_quality), path
            compared += 1
        else:
            assert bits_apart(value, expected) <= 16, path
    assert compared > 30
