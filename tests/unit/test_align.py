from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from facescale.errors import DataError, MismatchError, UsageError
from facescale.vision import align

DLIB = align.chip_template("dlib_150")
ARCFACE = align.chip_template("arcface_112")


def _placed(template: align.Template, scale: float, degrees: float, x: float, y: float) -> np.ndarray:
    """Landmarks [1, K, 2] of a face whose chip is `scale` image px a chip px, turned, its center at x, y."""
    turn = scale * np.exp(1j * np.radians(degrees))
    points = (template.points - template.size / 2) @ (1, 1j) * turn + complex(x, y)
    return np.stack([points.real, points.imag], axis=-1)[None]


def _ramp(height: int, width: int) -> np.ndarray:
    """Red is the x and green the y of a pixel's center, halved; bilinear sampling gives positions back."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    return np.stack([x / 2, y / 2, np.full_like(x, 200)], axis=-1).astype(np.uint8)


def _exact_dlib_chip(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """dlib's chip in plain float64, for faces that need no halving."""
    turn, shift = align.similarity(DLIB.points - 0.5, landmarks - 0.5)
    side = 150 * abs(turn[0])
    middle = turn[0] * (75 + 75j) + shift[0]
    step = turn[0] / abs(turn[0]) * (side - 1) / 149
    chip = np.zeros((150, 150, 3), np.uint8)
    for row, column in np.ndindex(150, 150):
        p = middle + step * complex(column - 74.5, row - 74.5)
        left, top = int(np.floor(p.real)), int(np.floor(p.imag))
        if left < 0 or top < 0 or left + 1 >= image.shape[1] or top + 1 >= image.shape[0]:
            continue
        across, down = p.real - left, p.imag - top
        near = image[top : top + 2, left : left + 2].astype(np.float64)
        upper, lower = near[:, 0] * (1 - across) + near[:, 1] * across
        chip[row, column] = (upper * (1 - down) + lower * down).astype(np.uint8)
    return chip


def test_pixel_conventions() -> None:
    # An image of 1 x 1 px: dlib's rectangle (0, 0, 0, 0) holds one pixel, whose center is (0, 0) there, .5 here.
    np.testing.assert_array_equal(align.box_from_dlib(np.zeros(4)), [0, 0, 1, 1])
    np.testing.assert_array_equal(align.box_to_dlib(np.array([[0.0, 0, 640, 480]])), [[0, 0, 639, 479]])
    np.testing.assert_array_equal(align.points_from_dlib(np.zeros((2, 2))), np.full((2, 2), 0.5))
    np.testing.assert_array_equal(align.points_to_dlib(np.array([0.5, 10.5])), [0, 10])
    assert align.box_from_dlib(np.zeros((3, 4), np.float32)).dtype == np.float32
    assert align.points_from_dlib(np.zeros((3, 2), np.float32)).dtype == np.float32


def test_templates_and_schemes_agree() -> None:
    for template in align.TEMPLATES.values():
        scheme = align.landmark_scheme(template.scheme)
        assert template.points.shape == (len(scheme.points), 2)
        assert (template.points > 0).all() and (template.points < template.size).all()
        left, right = align.eye_centers(template.points[None], template.scheme)
        assert left[0, 0] < template.size / 2 < right[0, 0]
        assert abs(left[0, 1] - right[0, 1]) < 2


def test_unknown_names_are_usage_errors() -> None:
    with pytest.raises(UsageError, match=r"'dlib_151'.*arcface_112, dlib_150"):
        align.chip_template("dlib_151")
    with pytest.raises(UsageError, match=r"'five'.*arcface5, blazeface6, dlib5"):
        align.landmark_scheme("five")


def test_an_embedder_refuses_landmarks_of_another_scheme() -> None:
    align.check_scheme("dlib_150", "dlib5")
    with pytest.raises(MismatchError, match=r"arcface_r100 needs .*'arcface5'.*these are 'dlib5'"):
        align.check_scheme("arcface_112", "dlib5", embedder="arcface_r100")


def test_similarity_ignores_a_degenerate_side() -> None:
    points = np.arange(10.0).reshape(1, 5, 2)
    turn, shift = align.similarity(np.zeros((5, 2)), points)
    assert turn[0] == 0 and shift[0] == complex(*points[0].mean(0))
    turn, _ = align.similarity(points[0], np.ones((1, 5, 2)))
    assert turn[0] == 0


def test_chips_for_arcface_lie_where_the_error_in_the_chip_is_least() -> None:
    """As ArcFace's own alignment: landmarks onto the template by least squares, here by numpy's solver."""
    rng = np.random.default_rng(3)
    target = align.chip_template("arcface_112")
    # Faces turned away: squeezed across, so that no similarity fits.
    squeezed = (target.points - 56) * [0.4, 1.0] + 56
    faces = 1.7 * squeezed + rng.normal(0, 3, (20, 5, 2)) + [30, 80]
    turn, shift = align.placement(target, faces)
    for points, scale, moved in zip(faces - 0.5, turn, shift, strict=True):
        x, y = points.T
        rows = np.concatenate(
            [np.stack([x, -y, np.ones(5), np.zeros(5)], 1), np.stack([y, x, np.zeros(5), np.ones(5)], 1)]
        )
        goal = (target.points - 0.5).T.ravel()
        a, b, right, down = np.linalg.lstsq(rows, goal, rcond=None)[0]
        middle = 55.5 + 55.5j
        in_image = scale * middle + moved
        assert (a + 1j * b) * in_image + right + 1j * down == pytest.approx(middle, abs=1e-6)
        assert (a + 1j * b) * scale == pytest.approx(1, abs=1e-9)
    shown, _ = align.similarity(target.points, faces)
    assert (np.abs(turn) > 1.05 * np.abs(shown)).all()  # more of the face than a fit in the image would show


@pytest.mark.parametrize("scale", [0.05, 0.4, 0.99])
@pytest.mark.parametrize("degrees", [0, 17, -120])
@pytest.mark.parametrize("center", [(90, 80), (5, 150), (160, 1)])
def test_dlib_chips_equal_plain_float64(scale: float, degrees: float, center: tuple[float, float]) -> None:
    image = np.random.default_rng(4).integers(0, 256, (160, 170, 3), np.uint8)
    landmarks = _placed(DLIB, scale, degrees, *center)
    chip = align.extract_chips([image], [landmarks], "dlib_150")[0].astype(int)
    error = np.abs(chip - _exact_dlib_chip(image, landmarks))
    assert error.max() <= 1  # truncation turns float32 noise into a step of one
    assert (error > 0).mean() < 1e-3


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.7, 2.7])
@pytest.mark.parametrize("degrees", [0, 25, 180])
def test_arcface_chips_show_what_lies_where(scale: float, degrees: float) -> None:
    chip = align.extract_chips(
        [_ramp(440, 460)], [_placed(ARCFACE, scale, degrees, 230, 215)], "arcface_112"
    )[0]
    y, x = np.mgrid[0:112, 0:112] + 0.5 - 56
    at = (x + 1j * y) * scale * np.exp(1j * np.radians(degrees)) + 230 + 215j
    np.testing.assert_allclose(chip[..., 0], at.real / 2, atol=1.01)
    np.testing.assert_allclose(chip[..., 1], at.imag / 2, atol=1.01)
    assert (chip[..., 2] == 200).all()
    # Halving and truncating made the ramp half a level darker on average; any more would be a shift.
    assert abs((chip[..., 0] - at.real / 2).mean() + 0.5) < 0.02
    assert abs((chip[..., 1] - at.imag / 2).mean() + 0.5) < 0.02


@pytest.mark.parametrize("name", ["dlib_150", "arcface_112"])
def test_large_faces_are_averaged_not_picked(name: str) -> None:
    checkers = (np.indices((2400, 2400)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image = np.repeat(checkers[..., None], 3, axis=2)
    template = align.chip_template(name)
    chip = align.extract_chips([image], [_placed(template, 9.0, 10, 1200, 1200)], name)[0]
    assert chip.min() > 120 and chip.max() < 135


def test_outside_is_black_and_never_an_error() -> None:
    image = np.full((60, 70, 3), 255, np.uint8)
    for template in align.TEMPLATES.values():
        for scale, x, y in ((0.3, -4000, 30), (50, 1e7, -1e7), (40, 35, 30), (1, 0, 30)):
            chip = align.extract_chips([image], [_placed(template, scale, 5, x, y)], template.name)[0]
            assert chip.shape == (template.size, template.size, 3)
            assert (chip == 0).any()
        assert align.extract_chips([image], [_placed(template, 1, 0, 0, 30)], template.name)[0].any()
        assert not align.extract_chips([image], [_placed(template, 1, 0, -500, 30)], template.name)[0].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (2, 2), (3, 400)])
def test_smallest_images(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 9, np.uint8)
    for template in align.TEMPLATES.values():
        for scale in (1e-4, 0.05, 1, 30):
            align.extract_chips([image], [_placed(template, scale, 3, 0.7, 0.5)], template.name)


def test_landmarks_that_coincide_give_a_flat_chip() -> None:
    image = np.random.default_rng(5).integers(0, 256, (40, 40, 3), np.uint8)
    for template in align.TEMPLATES.values():
        chip = align.extract_chips([image], [np.full((1, 5, 2), 20.5)], template.name)[0]
        assert np.ptp(chip.reshape(-1, 3).astype(int), axis=0).max() <= 255
        assert chip.any()


def test_order_counts_and_threads() -> None:
    images = [np.full((80, 80, 3), level, np.uint8) for level in (10, 20, 30)]
    face = _placed(ARCFACE, 0.5, 0, 40, 40)
    landmarks = [np.repeat(face, 2, axis=0), face[:0], face]
    chips = align.extract_chips(images, landmarks, "arcface_112")
    assert chips.dtype == np.uint8 and chips.shape == (3, 112, 112, 3)
    assert chips[:, 56, 56, 0].tolist() == [10, 10, 30]
    with ThreadPoolExecutor(3) as pool:
        np.testing.assert_array_equal(align.extract_chips(images, landmarks, "arcface_112", pool=pool), chips)
    assert align.extract_chips([], [], "dlib_150").shape == (0, 150, 150, 3)
    assert align.extract_chips(images[:1], [face[:0]], "dlib_150").shape == (0, 150, 150, 3)


def test_images_are_not_written_to() -> None:
    image = _ramp(90, 90)
    image.flags.writeable = False
    align.extract_chips([image], [_placed(DLIB, 0.5, 0, 45, 45)], "dlib_150")


def test_wrong_landmarks_are_refused() -> None:
    image = np.zeros((50, 50, 3), np.uint8)
    with pytest.raises(MismatchError, match=r"\(1, 68, 2\).*'dlib5'"):
        align.extract_chips([image], [np.ones((1, 68, 2))], "dlib_150")
    with pytest.raises(DataError, match="landmarks of face 0 are not finite"):
        align.extract_chips([image], [np.full((1, 5, 2), np.nan)], "dlib_150")
