"""Files as they are written: whole ones decode upright, damaged ones get the status that is planted."""

from __future__ import annotations

import numpy as np
import pytest

from facescale.imaging.decode import decode
from facescale.imaging.hashes import pdq
from facescale.synth.files import DAMAGE, FORMATS, damaged, encode, reencode
from facescale.synth.portrait import skimage_data


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return skimage_data("coffee")[:, :500]


@pytest.mark.parametrize("how", FORMATS)
def test_every_format_decodes_upright(how: str, picture: np.ndarray) -> None:
    data = encode(picture, how, 92)
    decoded = decode(data)
    assert decoded.status == "ok"
    assert decoded.pixels is not None
    assert decoded.pixels.shape == picture.shape
    assert np.abs(decoded.pixels.astype(int) - picture).mean() < 5
    signature = {"png": b"\x89PNG", "mislabeled": b"\x89PNG", "webp": b"RIFF"}.get(how, b"\xff\xd8")
    assert data.startswith(signature)
    assert data == encode(picture, how, 92)


def test_rotated_needs_its_exif_tag(picture: np.ndarray) -> None:
    data = encode(picture, "rotated", 92)
    assert b"Exif" in data[:64]
    decoded = decode(data.replace(b"Exif\x00\x00", b"Nope\x00\x00"))
    assert (decoded.width, decoded.height) == (picture.shape[0], picture.shape[1])


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_gives_the_planted_status(kind: str, picture: np.ndarray) -> None:
    extension, status = DAMAGE[kind]
    intact = encode(picture, "png" if extension == ".png" else "jpeg", 85)
    for seed in range(8):
        data = damaged(kind, intact, np.random.default_rng(seed))
        assert decode(data).status == status
        assert len(data) <= max(len(intact), 20_001)


@pytest.mark.parametrize("how", ["jpeg", "rotated", "png"])
def test_reencoded_copies_are_near_and_not_equal(how: str, picture: np.ndarray) -> None:
    data = encode(picture, how, 90)
    copy = reencode(data, 0.8, 1.05, 55)
    decoded, original = decode(copy), decode(data)
    assert decoded.pixels is not None
    assert original.pixels is not None
    assert (decoded.width, decoded.height) == (400, 320)
    assert copy != data
    bits = [np.unpackbits(np.frombuffer(pdq(image.pixels)[0], np.uint8)) for image in (decoded, original)]
    assert np.abs(bits[0].astype(int) - bits[1]).sum() <= 31
