"""Warps and the marked portrait: points go where they are sent, and everything can be undone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from facescale.errors import CorruptError, MissingExtraError
from facescale.synth import portrait as portrait_module
from facescale.synth.people import draw_people, paint
from facescale.synth.portrait import load_portrait
from facescale.synth.raster import ellipse, polygon, strokes
from facescale.synth.warp import make_warp, similarity, spread, steepness, turn_head

PORTRAIT = load_portrait()


def people(count: int = 12, seed: int = 4) -> list:
    return draw_people(PORTRAIT, count, np.random.default_rng(seed), strength=0.7)


def test_points_go_where_they_are_sent() -> None:
    for person in people():
        missed = make_warp(person.displacement).move(PORTRAIT.points) - PORTRAIT.points - person.displacement
        # The spline is smoothed: close points that are told to part do not part all the way.
        assert np.abs(missed).mean() < 0.4
        assert np.abs(missed).max() < 4
        assert np.abs(person.displacement).max() > 3


def test_fixed_points_stay() -> None:
    x, y = PORTRAIT.fixed.T
    in_grid = (x >= 64) & (x <= 384) & (y >= -64) & (y <= 256)
    assert 0 < in_grid.sum() < len(x)
    for person in people():
        moved = np.abs(make_warp(person.displacement).move(PORTRAIT.fixed) - PORTRAIT.fixed).max(axis=1)
        assert moved[in_grid].max() < 1.2
        assert moved.max() < 4  # beyond the grid everything moves as its border does


def test_backward_undoes_forward() -> None:
    places = np.stack(np.meshgrid(np.arange(150, 310, 7), np.arange(20, 200, 7)), axis=-1).astype(np.float32)
    for person in people():
        warp = make_warp(person.displacement)
        there = warp.sources(places)
        back = warp.move(there.reshape(-1, 2)).reshape(there.shape)
        assert np.abs(back - places).mean() < 0.06
        assert np.abs(back - places).max() < 1
        assert np.abs(there - places).max() > 3


def test_no_displacement_is_the_identity() -> None:
    warp = make_warp(np.zeros_like(PORTRAIT.points))
    assert np.abs(warp.forward).max() < 1e-4
    assert np.abs(warp.backward).max() < 1e-4


def test_steepness_is_linear_and_bounds_whoever_is_drawn() -> None:
    displacement = people()[0].displacement
    one, two = steepness(spread(np.stack([displacement, 2 * displacement])))
    assert two == pytest.approx(2 * one, rel=1e-4)
    drawn = people(60)
    assert 20 <= len(drawn) < 60  # some are refused, not most
    assert steepness(spread(np.stack([person.displacement for person in drawn]))).max() < 0.85


def test_turning_moves_the_nose_further_than_the_ears() -> None:
    moved = dict(zip(PORTRAIT.names, turn_head(PORTRAIT, 10, 0), strict=True))
    assert moved["nose_tip"][0] > moved["eye_inner:left"][0] > abs(moved["ear:left"][0])
    assert np.allclose(turn_head(PORTRAIT, 0, 0), 0)


def test_similarity_recovers_scale_turn_and_shift() -> None:
    points = PORTRAIT.points
    z = (points[:, 0] + 1j * points[:, 1]) * (1.3 * np.exp(0.4j)) + (5 - 7j)
    a, b = similarity(points, np.stack([z.real, z.imag], axis=1))
    assert a == pytest.approx(1.3 * np.exp(0.4j))
    assert b == pytest.approx(5 - 7j)


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("subject", [(223, 120), (230, 40), (200, 300)], [(20, 60), (400, 100)]),
        ("hair", [(230, 40), (165, 80), (290, 80)], [(223, 120), (200, 300), (20, 60)]),
        (
            "skin",
            [(223, 118), (195, 123), (223, 172)],
            [(230, 40), (219, 146), (200, 300)],
        ),  # a tooth is not skin
    ],
)
def test_mattes(name: str, inside: list[tuple[int, int]], outside: list[tuple[int, int]]) -> None:
    matte = getattr(PORTRAIT, name)
    assert matte.dtype == np.float32
    assert matte.shape == (512, 512)
    assert matte.min() >= 0
    assert matte.max() <= 1
    assert all(matte[y, x] > 0.9 for x, y in inside)
    assert all(matte[y, x] < 0.1 for x, y in outside)


def test_modes_are_symmetric() -> None:
    left = [i for i, name in enumerate(PORTRAIT.names) if name.endswith(":left")]
    right = [PORTRAIT.names.index(PORTRAIT.names[i].replace(":left", ":right")) for i in left]
    modes = PORTRAIT.identity_modes
    assert len(left) == 22
    assert np.allclose(modes[:, left, 0], -modes[:, right, 0])
    assert np.allclose(modes[:, left, 1], modes[:, right, 1])


def test_paint_changes_hair_and_skin_and_leaves_the_background() -> None:
    original = PORTRAIT.pixels.astype(np.float32) / 255
    for person in people(6):
        painted = paint(PORTRAIT, person)
        assert painted.shape == (512, 512, 3)
        assert painted.min() >= 0
        assert painted.max() <= 1
        change = np.abs(painted - original).max(axis=2)
        assert change[PORTRAIT.hair > 0.9].mean() > 0.03
        assert change[400:, :15].max() < 0.01
        assert np.array_equal(painted, paint(PORTRAIT, person))


def test_a_mode_of_an_unknown_point_is_refused() -> None:
    with pytest.raises(CorruptError, match="moves chinn"):
        portrait_module._mode({"chinn": [1, 2]}, PORTRAIT.names, 90.0)


def test_another_portrait_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portrait_module, "skimage_data", lambda name: np.zeros((512, 512, 3), np.uint8))
    with pytest.raises(CorruptError, match="install a scikit-image"):
        portrait_module.load_portrait.__wrapped__()


def test_without_scikit_image_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingExtraError, match=r"facescale\[synth\]"):
        portrait_module.skimage_data("astronaut")


@pytest.mark.parametrize(
    "name", ["astronaut", "chelsea", "coffee", "coins", "rocket", "horse", "brick", "grass", "gravel"]
)
def test_pictures_are_in_the_wheel(name: str) -> None:
    import skimage

    files = {path.stem for path in (Path(skimage.__file__).parent / "data").iterdir()}
    assert name in files  # not in a download cache of this machine
    picture = portrait_module.skimage_data(name)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert picture.max() > 128


def test_drawing_is_centered() -> None:
    for mask in (
        ellipse((41, 61), (30, 20), (10, 6)),
        polygon((41, 61), np.array([[20, 14], [40, 14], [40, 26], [20, 26]])),
        strokes((41, 61), [np.array([[20, 20], [40, 20]])], 3.0, 0.5),
    ):
        y, x = np.mgrid[:41, :61]
        assert (mask * x).sum() / mask.sum() == pytest.approx(30, abs=0.1)
        assert (mask * y).sum() / mask.sum() == pytest.approx(20, abs=0.15)
        assert 0.9 < mask.max() <= 1
