from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.vision import align, crops

coordinates = st.floats(-500, 1500, allow_nan=False)
scales = st.floats(0.02, 30)
angles = st.floats(-180, 180)
templates = st.sampled_from(sorted(align.TEMPLATES))


def _complex(points: np.ndarray) -> np.ndarray:
    return points[..., 0] + 1j * points[..., 1]


def _moved(points: np.ndarray, scale: float, degrees: float, x: float, y: float) -> np.ndarray:
    moved = _complex(points) * scale * np.exp(1j * np.radians(degrees)) + complex(x, y)
    return np.stack([moved.real, moved.imag], axis=-1)


@settings(deadline=None)
@given(templates, scales, angles, coordinates, coordinates)
def test_similarity_finds_what_was_done_and_its_inverse_undoes_it(
    name: str, scale: float, degrees: float, x: float, y: float
) -> None:
    points = align.chip_template(name).points
    moved = _moved(points, scale, degrees, x, y)
    turn, shift = align.similarity(points, moved[None])
    np.testing.assert_allclose(turn[0], scale * np.exp(1j * np.radians(degrees)), rtol=1e-9, atol=1e-9)
    back = (_complex(moved) - shift[0]) / turn[0]
    np.testing.assert_allclose(back, _complex(points), atol=1e-6)
    inverse, _ = align.similarity(moved, points[None])
    np.testing.assert_allclose(inverse[0] * turn[0], 1, rtol=1e-9)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_similarity_is_the_least_squares_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = rng.normal(size=(5, 2)) * 30, rng.normal(size=(1, 5, 2)) * 30
    turn, shift = align.similarity(source, target)

    def error(turn: complex, shift: complex) -> float:
        return float((np.abs(turn * _complex(source) + shift - _complex(target[0])) ** 2).sum())

    best = error(turn[0], shift[0])
    for step in (1e-3, -1e-3, 1e-3j, -1e-3j):
        assert best <= error(turn[0] + step, shift[0]) + 1e-9
        assert best <= error(turn[0], shift[0] + step) + 1e-9


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_similarity_treats_faces_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = rng.normal(size=(5, 2)), rng.normal(size=(4, 5, 2))
    turn, shift = align.similarity(source, target)
    for i in range(4):
        alone = align.similarity(source, target[i : i + 1])
        np.testing.assert_allclose((turn[i], shift[i]), (alone[0][0], alone[1][0]), rtol=1e-12)


@settings(deadline=None)
@given(st.lists(st.integers(-(2**20), 2**20), min_size=4, max_size=4))
def test_conventions_come_back(numbers: list[int]) -> None:
    rect = np.array(numbers, np.float32)
    np.testing.assert_array_equal(align.box_to_dlib(align.box_from_dlib(rect)), rect)
    np.testing.assert_array_equal(align.points_to_dlib(align.points_from_dlib(rect)), rect)


@settings(deadline=None)
@given(templates, scales, angles, angles, coordinates, coordinates)
def test_geometry_turns_and_grows_with_the_face(
    name: str, scale: float, first: float, second: float, x: float, y: float
) -> None:
    template = align.chip_template(name)
    base = _moved(template.points, 1, first, x, y)
    eyes, roll = crops.face_geometry(np.stack([base, _moved(base, scale, second, 3, 4)]), template.scheme)
    np.testing.assert_allclose(eyes[1], eyes[0] * scale, rtol=1e-3)
    turned = (float(roll[1]) - float(roll[0]) - second + 180) % 360 - 180
    assert abs(turned) < 0.01


@settings(deadline=None, max_examples=60)
@given(templates, st.floats(0.01, 20), angles, st.floats(-100, 400), st.floats(-100, 400))
def test_crops_are_level_centered_wide_and_never_enlarged(
    name: str, scale: float, degrees: float, x: float, y: float
) -> None:
    template = align.chip_template(name)
    face = _moved(template.points, scale, degrees, x, y)[None]
    image = np.zeros((300, 280, 3), np.uint8)
    (crop,), matrices = crops.wide_crops(image, face, template.scheme)
    side = len(crop)
    assert crop.shape == (side, side, 3) and side <= crops.MAX_SIDE_PX
    inside = face @ matrices[0, :, :2].T + matrices[0, :, 2]
    left, right = align.eye_centers(inside, template.scheme)
    np.testing.assert_allclose((left + right)[0] / 2, side / 2, atol=1e-6)
    assert right[0, 0] > left[0, 0] and abs(right[0, 1] - left[0, 1]) < 1e-6
    assert np.linalg.det(matrices[0, :, :2]) <= 1 + 1e-9
    assert side / 2 >= 2.2 * (right - left)[0, 0]
    # Every template fits into the crop, so that any embedder can be run from it.
    for other in align.TEMPLATES.values():
        if other.scheme != template.scheme:
            continue
        turn, shift = align.similarity(other.points, inside)
        corners = turn * np.array([0, other.size, other.size * 1j, other.size * (1 + 1j)]) + shift
        assert corners.real.min() >= -1e-6 and corners.imag.min() >= -1e-6
        assert corners.real.max() <= side + 1e-6 and corners.imag.max() <= side + 1e-6


@settings(deadline=None, max_examples=40)
@given(templates, st.floats(0.01, 12), angles, st.floats(-600, 900), st.floats(-600, 900))
def test_chips_of_a_white_image_are_white_inside_and_black_outside(
    name: str, scale: float, degrees: float, x: float, y: float
) -> None:
    template = align.chip_template(name)
    face = _moved(template.points - template.size / 2, scale, degrees, x, y)[None]
    image = np.full((250, 310, 3), 255, np.uint8)
    chip = align.extract_chips([image], [face], name)[0]
    turn, shift = align.similarity(template.points, face)
    row, column = np.mgrid[0 : template.size, 0 : template.size] + 0.5
    at = turn[0] * (column + 1j * row) + shift[0]
    margin = 2 + 4 * scale
    well_inside = (abs(at.real - 155) < 155 - margin) & (abs(at.imag - 125) < 125 - margin)
    well_outside = (abs(at.real - 155) > 155 + margin) | (abs(at.imag - 125) > 125 + margin)
    assert (chip[well_inside] == 255).all()
    assert (chip[well_outside] == 0).all()
