from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from facescale.errors import CorruptError, DataError, MismatchError
from facescale.vision import crops
from facescale.vision.align import chip_template, extract_chips


def _face(eyes_px: float, degrees: float, x: float, y: float) -> np.ndarray:
    """Landmarks [1, 5, 2] of scheme arcface5 with the eyes' midpoint at x, y."""
    points = chip_template("arcface_112").points
    points = (points - points[:2].mean(axis=0)) / np.hypot(*(points[1] - points[0])) @ (1, 1j)
    level = (points[1] - points[0]) / abs(points[1] - points[0])
    points = points / level * eyes_px * np.exp(1j * np.radians(degrees)) + complex(x, y)
    return np.stack([points.real, points.imag], axis=-1)[None]


def _smooth(height: int, width: int) -> np.ndarray:
    """A picture of soft waves, different in each color."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / a + y / b) + np.cos(x / b - y / a) for a, b in ((9, 23), (14, 11), (31, 8))]
    return (np.stack(waves, axis=-1) * 55 + 128).astype(np.uint8)


def test_geometry() -> None:
    faces = np.concatenate([_face(40, 30, 100, 100), _face(3.5, -170, 0, -20), np.full((1, 5, 2), 7.0)])
    eyes, roll = crops.face_geometry(faces, "arcface5")
    np.testing.assert_allclose(eyes, [40, 3.5, 0], rtol=1e-6)
    np.testing.assert_allclose(roll, [30, -170, 0], rtol=1e-6)
    assert eyes.dtype == roll.dtype == np.float32
    eyes, roll = crops.face_geometry(faces[:0], "arcface5")
    assert eyes.shape == roll.shape == (0,)


def test_dlib_eyes_are_the_means_of_their_corners() -> None:
    face = np.array([[(90.0, 48), (70, 52), (10, 50), (30, 50), (50, 80)]])
    eyes, roll = crops.face_geometry(face, "dlib5")
    assert (eyes[0], roll[0]) == (60, 0)


def test_unknown_and_wrong_landmarks() -> None:
    with pytest.raises(MismatchError, match="scheme 'dlib5'"):
        crops.face_geometry(np.zeros((1, 68, 2)), "dlib5")
    with pytest.raises(DataError, match="not finite"):
        crops.wide_crops(np.zeros((9, 9, 3), np.uint8), np.full((1, 5, 2), np.inf), "dlib5")


@pytest.mark.parametrize(
    ("eyes_px", "side"), [(0.2, 5), (4, 18), (40, 180), (56, 252), (57, 256), (150, 256), (700, 256)]
)
def test_size(eyes_px: float, side: int) -> None:
    image = np.zeros((300, 400, 3), np.uint8)
    (crop,), (matrix,) = crops.wide_crops(image, _face(eyes_px, 20, 200, 150), "arcface5")
    assert crop.shape == (side, side, 3)
    scale = np.hypot(matrix[0, 0], matrix[0, 1])
    assert scale <= 1 + 1e-12
    assert scale == pytest.approx(1) or side == crops.MAX_SIDE_PX
    assert side / 2 >= 2.2 * eyes_px * scale


@pytest.mark.parametrize("eyes_px", [12, 50, 90, 230])
@pytest.mark.parametrize("degrees", [0, 33, -145])
def test_the_matrix_says_where_every_pixel_lies(eyes_px: float, degrees: float) -> None:
    y, x = np.mgrid[0:1000, 0:1000] + 0.5
    image = np.stack([x / 4, y / 4, np.full_like(x, 90)], axis=-1).astype(np.uint8)
    (crop,), (matrix,) = crops.wide_crops(image, _face(eyes_px, degrees, 480, 520), "arcface5")
    row, column = np.mgrid[0 : len(crop), 0 : len(crop)] + 0.5
    at = np.stack([column, row], axis=-1) - matrix[:, 2]
    at = at @ np.linalg.inv(matrix[:, :2]).T
    margin = 4 / np.hypot(matrix[0, 0], matrix[0, 1])
    inside = ((at > margin) & (at < 1000 - margin)).all(axis=-1)
    assert inside.mean() > 0.5
    error = (crop[..., :2] - at / 4)[inside]
    # The ramp was truncated to quarters: 0.5 darker on average.
    assert np.abs(error + 0.5).max() < 1.6
    assert np.abs(error.mean(axis=0) + 0.5).max() < 0.1
    assert (crop[inside][:, 2] == 90).all()


def test_large_faces_are_averaged_not_picked() -> None:
    checkers = (np.indices((2000, 2000)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image = np.repeat(checkers[..., None], 3, axis=2)
    for eyes_px, spread in ((75, 40), (130, 20), (400, 6)):
        (crop,), _ = crops.wide_crops(image, _face(eyes_px, 10, 1000, 1000), "arcface5")
        inner = crop[32:-32, 32:-32].astype(float)
        assert abs(inner.mean() - 127.5) < 2
        assert inner.std() < spread


def test_outside_is_black() -> None:
    image = np.full((100, 100, 3), 255, np.uint8)
    (crop,), _ = crops.wide_crops(image, _face(30, 0, 0, 50), "arcface5")
    half = len(crop) // 2
    assert not crop[:, : half - 3].any()
    assert (crop[half - 30 : half + 30, half + 3 : half + 60] == 255).all()
    (crop,), _ = crops.wide_crops(image, _face(29.9, 40, -5000, 9e6), "arcface5")
    assert crop.shape == (135, 135, 3) and not crop.any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (2, 2)])
@pytest.mark.parametrize("eyes_px", [0.0, 0.3, 10, 5000])
def test_smallest_images(shape: tuple[int, int], eyes_px: float) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    (crop,), matrices = crops.wide_crops(image, _face(eyes_px, 12, 0.5, 0.5), "arcface5")
    assert crop.shape[0] == crop.shape[1] <= crops.MAX_SIDE_PX
    assert np.isfinite(matrices).all()


def test_no_faces_and_threads() -> None:
    image = _smooth(300, 300)
    cut, matrices = crops.wide_crops(image, np.zeros((0, 5, 2), np.float32), "arcface5")
    assert cut == [] and matrices.shape == (0, 2, 3)
    faces = np.concatenate([_face(e, 5 * e, 150, 140) for e in (5, 20, 60, 90)])
    alone, matrices = crops.wide_crops(image, faces, "arcface5")
    with ThreadPoolExecutor(3) as pool:
        threaded, same = crops.wide_crops(image, faces, "arcface5", pool=pool)
    np.testing.assert_array_equal(matrices, same)
    assert all((a == b).all() for a, b in zip(alone, threaded, strict=True))


@pytest.mark.parametrize("template", ["arcface_112", "dlib_150"])
@pytest.mark.parametrize(("eyes_px", "degrees"), [(20, 0), (45, -20), (56, 75), (110, 10), (240, 160)])
def test_chips_from_stored_crops_resemble_those_from_the_photograph(
    template: str, eyes_px: float, degrees: float
) -> None:
    image = (
        np.repeat(np.repeat(_smooth(300, 300), 4, axis=0), 4, axis=1) if eyes_px > 60 else _smooth(500, 500)
    )
    center = len(image) / 2
    face = _face(eyes_px, degrees, center, center)
    scheme = chip_template(template).scheme
    if scheme == "dlib5":
        eye = (face[0, 1] - face[0, 0]) * 0.25
        corners = (face[0, 1] + eye, face[0, 1] - eye, face[0, 0] - eye, face[0, 0] + eye, face[0, 2])
        face = np.stack(corners)[None]
    cut, matrices = crops.wide_crops(image, face, scheme)
    decoded = [crops.decode_jpeg(crops.encode_jpeg(crop)) for crop in cut]
    stored = matrices.astype(np.float32)  # as the table keeps them
    chips = crops.chips_from_crops(decoded, stored, face.astype(np.float32), template)
    expected = extract_chips([image], [face], template)
    assert chips.shape == expected.shape
    difference = chips.astype(float) - expected
    assert np.sqrt((difference**2).mean()) < 6  # of waves with a deviation of 55; JPEG alone makes about 2
    assert abs(difference.mean()) < 2  # dlib's chips truncate once per halving


def test_jpeg_keeps_colors_in_order() -> None:
    pixels = np.full((32, 40, 3), (250, 10, 120), np.uint8)
    data = crops.encode_jpeg(pixels)
    assert data[:2] == b"\xff\xd8"
    back = crops.decode_jpeg(data)
    assert back.shape == (32, 40, 3) and back.dtype == np.uint8
    assert np.abs(back.astype(int) - pixels).max() <= 4


@pytest.mark.parametrize("data", [b"", b"no jpeg", b"\xff\xd8\xff\xe0"])
def test_a_damaged_crop_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError, match="lake verify"):
        crops.decode_jpeg(data)


@pytest.mark.parametrize("turn_deg", [0, 30, 180])
def test_a_face_in_profile_is_whole_in_its_crop(turn_deg: float) -> None:
    """Its eyes are 4 px apart in a face of 130 px: by them alone the crop would be 18 px wide."""
    image = _smooth(400, 400)
    points = np.array([(0.0, -46.0), (4.0, -46.0), (-22.0, -18.0), (-6.0, 8.0), (0.0, 8.0)])
    angle = np.radians(turn_deg)
    landmarks = points @ np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))]) + 200
    cut, matrices = crops.wide_crops(image, landmarks[None], "arcface5")
    direct = extract_chips([image], [landmarks[None]], "arcface_112").astype(float)
    stored = crops.chips_from_crops(cut, matrices, landmarks[None], "arcface_112").astype(float)
    assert np.abs(direct - stored).mean() < 4
    assert (stored.max(axis=-1) == 0).mean() < 0.01  # nothing of it lies outside the crop
