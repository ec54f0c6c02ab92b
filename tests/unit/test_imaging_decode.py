"""Decoding: every format to the right pixels, every defect to its status, nothing raised, nothing printed."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from facescale.imaging import decode as decode_module
from facescale.imaging.decode import decode
from facescale.imaging.headers import read_header

if TYPE_CHECKING:
    from pathlib import Path

STATUSES = {
    *("ok", "empty", "not_image", "unsupported", "truncated", "corrupt", "too_many_bytes", "too_many_pixels"),
}
ORIENTATION = 274


def photo(width: int = 200, height: int = 120) -> Image.Image:
    """Smooth, colorful and without symmetry, so that a wrong turn or swapped channel shows."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 8).astype(np.float32)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min()) * 200
    smooth[..., 0] += np.linspace(0, 55, width)[None, :]
    return Image.fromarray(smooth.astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def png_of(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


LOSSLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "webp lossless": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff deflate": ("TIFF", {"compression": "tiff_deflate"}),
    "png 8 kB chunks": ("PNG", {"compress_level": 0}),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_give_the_exact_pixels(name: str) -> None:
    kind, options = LOSSLESS[name]
    image = photo()
    result = decode(saved(image, kind, **options))
    assert (result.status, result.detail, result.width, result.height) == ("ok", None, 200, 120)
    assert result.pixels is not None
    assert result.pixels.dtype == np.uint8
    assert result.pixels.flags.c_contiguous
    np.testing.assert_array_equal(result.pixels, as_array(image))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 60, "progressive": True}),
        ("JPEG", {"quality": 90, "subsampling": 0, "restart_marker_blocks": 2}),
        ("WEBP", {"quality": 80}),
    ],
)
def test_lossy_formats_agree_with_pillow(kind: str, options: dict[str, Any]) -> None:
    data = saved(photo(), kind, **options)
    assert read_header(data).plain, "this is the fast path's test"
    result = decode(data)
    assert result.pixels is not None
    assert largest_difference(result.pixels, as_array(Image.open(io.BytesIO(data)).convert("RGB"))) <= 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_modes_without_transparent_pixels_convert_as_in_pillow(mode: str) -> None:
    image = photo().convert(mode)
    result = decode(saved(image, "PNG"))
    assert result.pixels is not None
    np.testing.assert_array_equal(result.pixels, as_array(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_composited_on_white(kind: str) -> None:
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[:, :10] = (200, 100, 0, 255)
    pixels[:, 10:20] = (200, 100, 0, 0)  # the hidden color must not appear
    pixels[:, 20:] = (200, 100, 0, 128)
    result = decode(saved(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert result.pixels is not None
    assert result.pixels[5, 5].tolist() == [200, 100, 0]
    assert result.pixels[5, 15].tolist() == [255, 255, 255]
    assert np.abs(result.pixels[5, 25].astype(int) - [227, 177, 127]).max() <= 1


def test_palette_and_color_key_transparency() -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(0, (0, 0, 4, 8))
    for data in (saved(palette, "PNG", transparency=0), saved(palette, "GIF", transparency=0)):
        result = decode(data)
        assert result.pixels is not None
        assert result.pixels[4, 1].tolist() == [255, 255, 255]
        assert result.pixels[4, 6].tolist() == [0, 0, 255]
    keyed = Image.new("RGB", (8, 8), (9, 9, 9))
    result = decode(saved(keyed, "PNG", transparency=(9, 9, 9)))
    assert result.pixels is not None
    assert result.pixels[0, 0].tolist() == [255, 255, 255]


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (saved(Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG"), RAMP),
        (saved(Image.fromarray(RAMP.astype(np.uint16) * 257), "TIFF"), RAMP),
        (saved(Image.fromarray(RAMP.astype(np.int32) * 257), "TIFF"), RAMP),
        (saved(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"), RAMP),
        (saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), RAMP),
        (saved(Image.fromarray(RAMP.astype(np.float32) * 257), "TIFF"), RAMP),
        (cv2.imencode(".png", np.dstack([RAMP.astype(np.uint16) * 257] * 3))[1].tobytes(), RAMP),
        (cv2.imencode(".tiff", np.dstack([RAMP.astype(np.uint16) * 257] * 3))[1].tobytes(), RAMP),
    ],
    ids=["png 16", "tiff 16", "tiff 32", "float 0..1", "float 0..255", "float 0..65535", "png 48", "tiff 48"],
)
def test_deep_samples_keep_their_high_byte(data: bytes, expected: np.ndarray) -> None:
    result = decode(data)
    assert result.status == "ok", result.detail
    assert result.pixels is not None
    np.testing.assert_array_equal(result.pixels, np.dstack([expected] * 3))


def test_float_images_with_holes_decode() -> None:
    samples = RAMP.astype(np.float32) / 255
    samples[0, :3] = (np.nan, np.inf, -np.inf)
    result = decode(saved(Image.fromarray(samples), "TIFF"))
    assert result.pixels is not None
    assert result.pixels[0, :3].max() == 0
    assert result.pixels[15, 15, 0] == 255


@pytest.mark.parametrize("adobe", [True, False], ids=["Adobe, inverted", "plain"])
def test_cmyk_jpeg_in_both_polarities(adobe: bool) -> None:
    image = photo()
    if adobe:  # Adobe's samples are 255 - ink, and Pillow writes them so
        data = saved(image.convert("CMYK"), "JPEG", quality=95, subsampling=0)
        assert b"Adobe" in data
    else:  # without Adobe's marker samples are ink: 255 - color, and no black
        inverted = Image.merge("CMYK", [*image.split(), Image.new("L", image.size, 255)])
        data = saved(inverted, "JPEG", quality=95, subsampling=0)
        marker = data.index(b"\xff\xee")
        data = data[:marker] + data[marker + 2 + struct.unpack_from(">H", data, marker + 2)[0] :]
    result = decode(data)
    assert result.pixels is not None
    assert largest_difference(result.pixels, as_array(image)) <= 16


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
    ids=["jpeg", "png", "webp", "tiff", "tiff-lzw"],
)
def test_exif_orientation_is_applied_exactly_once(
    kind: str, options: dict[str, Any], orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = saved(photo(40, 24), kind, exif=exif, **options)
    expected = as_array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    result = decode(data)
    assert result.pixels is not None
    assert result.pixels.flags.c_contiguous
    assert (result.width, result.height) == ((24, 40) if orientation >= 5 else (40, 24))
    assert largest_difference(result.pixels, expected) <= 3


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + b"\0" * 20]
)
def test_broken_exif_means_upright(exif: bytes) -> None:
    data = saved(photo(40, 24), "JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + data[2:]
    assert decode(data).status == "ok"
    assert (decode(data).width, decode(data).height) == (40, 24)


def test_animations_give_their_first_frame() -> None:
    first, second = photo(40, 24), ImageOps.invert(photo(40, 24))
    for kind, options in (("WEBP", {"lossless": True}), ("PNG", {}), ("GIF", {}), ("TIFF", {})):
        data = saved(first, kind, save_all=True, append_images=[second], **options)
        result = decode(data)
        assert result.pixels is not None, (kind, result.detail)
        limit = 60 if kind == "GIF" else 0  # a GIF has 256 colors
        assert largest_difference(result.pixels, as_array(first)) <= limit, kind


WHOLE = {
    "jpeg": saved(photo(), "JPEG"),
    "progressive jpeg": saved(photo(), "JPEG", progressive=True),
    "cmyk jpeg": saved(photo().convert("CMYK"), "JPEG"),
    "png": saved(photo(), "PNG"),
    "png alpha": saved(photo().convert("RGBA"), "PNG"),
    "webp": saved(photo(), "WEBP"),
    "webp lossless": saved(photo(), "WEBP", lossless=True),
    "gif": saved(photo(), "GIF"),
    "bmp": saved(photo(), "BMP"),
    "tiff": saved(photo(), "TIFF"),
    "tiff lzw": saved(photo(), "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9, 0.99])
def test_a_cut_file_is_truncated(name: str, part: float, capfd: pytest.CaptureFixture[str]) -> None:
    data = WHOLE[name]
    assert decode(data).status == "ok"
    result = decode(data[: int(len(data) * part)])
    assert result.status == "truncated", result.detail
    assert result.detail
    assert result.pixels is None
    assert capfd.readouterr().err == ""


def test_a_jpeg_without_its_end_marker_is_truncated_and_one_with_a_tail_is_not() -> None:
    data = WHOLE["jpeg"]
    assert decode(data[:-2]).status == "truncated"
    assert decode(data + b"trailing garbage" * 100).status == "ok"
    assert decode(data + saved(photo(30, 30), "JPEG")).width == 200


def test_the_end_marker_of_a_thumbnail_does_not_count() -> None:
    thumbnail = saved(photo(32, 20), "JPEG")
    body = b"Exif\0\0" + thumbnail
    data = WHOLE["jpeg"]
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body + data[2:]
    assert decode(data).status == "ok"
    assert decode(data[: len(data) - 400]).status == "truncated"


JPEG = WHOLE["jpeg"]
FLIPPED_PNG = bytearray(WHOLE["png"])
FLIPPED_PNG[len(FLIPPED_PNG) // 2] ^= 0xFF
LOSSLESS_JPEG = JPEG.replace(b"\xff\xc0", b"\xff\xc3", 1)


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (b"", "empty", "no bytes"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not_image", "HTML"),
        (b"\xef\xbb\xbf\n<HTML>", "not_image", "HTML"),
        (b'<?xml version="1.0"?><html>', "not_image", "HTML"),
        (b"just some words", "not_image", "text"),
        (b'{"error": "not found\x00"}', "not_image", "JSON"),
        (b"<?xml version='1.0'?><rss>\xff", "not_image", "XML"),
        (bytes(100), "not_image", "no image format"),
        (b"PK\x03\x04" + bytes(50), "not_image", "no image format"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported", "SVG"),
        (b'<?xml version="1.0"?>\n<svg/>', "unsupported", "SVG"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "unsupported", "HEIC"),
        (b"\0\0\0\x18ftypavif" + bytes(20), "unsupported", "AVIF"),
        (b"\0\0\0\x18ftypisom" + bytes(20), "unsupported", "MP4"),
        (b"8BPS" + bytes(30), "unsupported", "Photoshop"),
        (b"%PDF-1.7\n" + bytes(30), "unsupported", "PDF"),
        (b"P6\n2 2\n255\n" + bytes(12), "unsupported", "PNM"),
        (b"\x00\x00\x01\x00" + bytes(30), "unsupported", "icon"),
        (LOSSLESS_JPEG, "unsupported", "lossless"),
        (b"\x89PNG\r\n", "truncated", "signature"),
        (b"\xff\xd8", "truncated", "signature"),
        (b"\xff\xd8\xff", "truncated", "header"),
        (b"\xff\xd8\xff\xd9", "corrupt", "before any image data"),
        (JPEG[:2] + JPEG[JPEG.index(b"\xff\xda") :], "corrupt", "no frame header"),
        (bytes(FLIPPED_PNG), "corrupt", "checksum"),
        (png_of(0, 5, b""), "corrupt", "size of 0"),
        (png_of(30_000, 30_000, bytes(1000)), "too_many_pixels", "max_pixels"),
        (b"II*\0\xff\xff\xff\x7f", "truncated", "directory"),
        (cv2.imencode(".tiff", np.ones((4, 4, 3), np.float32))[1].tobytes(), "unsupported", "TIFF"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_what_is_wrong_becomes_a_status(
    data: bytes, status: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    result = decode(data)
    assert (result.status, result.pixels) == (status, None), result.detail
    assert result.detail is not None
    assert says.lower() in result.detail.lower()
    assert capfd.readouterr().err == ""


def test_a_png_with_too_little_data_behind_right_checksums_is_truncated() -> None:
    result = decode(png_of(300, 300, bytes(1000)))
    assert (result.status, result.pixels) == ("truncated", None)


def test_limits_hold_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(decode_module, "_pixels", never)
    bomb = decode(png_of(30_000, 30_000, bytes(1000)))
    assert (bomb.status, bomb.width, bomb.height) == ("too_many_pixels", 30_000, 30_000)
    for name, data in WHOLE.items():
        small = decode(data, max_pixels=200 * 120 - 1)
        assert (small.status, small.width, small.height) == ("too_many_pixels", 200, 120), name
        assert decode(data, max_bytes=len(data) - 1).status == "too_many_bytes"
    monkeypatch.undo()
    assert decode(JPEG, max_pixels=200 * 120, max_bytes=len(JPEG)).status == "ok"


def test_a_turned_image_over_the_limit_still_tells_its_upright_size() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    result = decode(saved(photo(40, 24), "JPEG", exif=exif), max_pixels=10)
    assert (result.status, result.width, result.height) == ("too_many_pixels", 24, 40)


def test_a_gif_frame_larger_than_its_canvas_is_held_to_the_limit() -> None:
    data = bytearray(WHOLE["gif"])
    data[6:10] = struct.pack("<HH", 1, 1)
    assert decode(bytes(data), max_pixels=1000).status == "too_many_pixels"


def test_large_images_do_not_trip_pillows_own_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # each image has 24,000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {name: decode(data).status for name, data in WHOLE.items()} == dict.fromkeys(WHOLE, "ok")


def test_odd_metadata_is_neither_warned_about_nor_printed(capfd: pytest.CaptureFixture[str]) -> None:
    icc = saved(photo(40, 24), "PNG", icc_profile=b"junk" * 20)
    apng = saved(photo(40, 24), "PNG")
    bad_actl = struct.pack(">I", 8) + b"acTL" + bytes(8) + struct.pack(">I", zlib.crc32(b"acTL" + bytes(8)))
    apng = apng[:33] + bad_actl + apng[33:]
    tiff = bytearray(WHOLE["tiff"])
    garbage = JPEG[:20] + b"\0\0\0" + JPEG[20:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (icc, apng, bytes(tiff), garbage):
            result = decode(data)
            assert result.status == "ok", result.detail
    assert capfd.readouterr().err == ""


def test_damaged_tiff_does_not_leak_warnings() -> None:
    data = bytearray(saved(photo(40, 24), "TIFF"))
    start = struct.unpack_from("<I", data, 4)[0]
    statuses = set()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for at in range(start, len(data)):
            spoiled = bytearray(data)
            spoiled[at] ^= 0xFF
            statuses.add(decode(bytes(spoiled), max_pixels=1_000_000).status)
    assert statuses <= STATUSES
    assert len(statuses) > 2


@pytest.mark.parametrize("name", WHOLE)
def test_no_mutation_raises(name: str) -> None:
    rng = np.random.default_rng(7)
    seen = set()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(150):
            data = bytearray(WHOLE[name])
            for _ in range(rng.integers(1, 6)):
                data[rng.integers(0, min(len(data), 900))] = rng.integers(0, 256)
            if rng.random() < 0.3:
                del data[rng.integers(1, len(data)) :]
            result = decode(bytes(data), max_pixels=1_000_000)
            seen.add(result.status)
            assert result.status in STATUSES
            assert (result.pixels is None) == (result.status != "ok") == (result.detail is not None)
            if result.pixels is not None:
                assert result.pixels.shape == (result.height, result.width, 3)
    assert len(seen) > 1


def test_memory_that_runs_out_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode_module, "_by_pillow", fail)
    result = decode(WHOLE["gif"])
    assert result.status == "transient"
    assert "--retry-failed" in (result.detail or "")


def test_threads_get_what_one_thread_gets() -> None:
    inputs = [*WHOLE.values(), *(data[: len(data) // 2] for data in WHOLE.values())] * 6
    alone = [decode(data) for data in inputs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(decode, inputs))
    for a, b in zip(alone, together, strict=True):
        assert (a.status, a.detail, a.width, a.height) == (b.status, b.detail, b.width, b.height)
        np.testing.assert_array_equal(a.pixels, b.pixels)


def test_warning_filters_are_left_as_they_were() -> None:
    before = list(warnings.filters)
    decode(WHOLE["tiff"])
    assert list(warnings.filters) == before


def test_real_photos_decode_as_in_pillow(test_data: Path) -> None:
    paths = sorted(p for p in test_data.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = [*paths[::60], *(p for p in paths if p.suffix == ".png")]
    assert len(chosen) > 50
    for path in chosen:
        result = decode(path.read_bytes())
        assert result.status == "ok", (path, result.detail)
        with Image.open(path) as image:
            expected = ImageOps.exif_transpose(image)
            if expected.has_transparency_data:
                continue
            limit = 3 if image.format == "JPEG" else 0
            assert result.pixels is not None
            assert largest_difference(result.pixels, as_array(expected.convert("RGB"))) <= limit, path
