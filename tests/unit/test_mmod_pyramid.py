"""The tiled pyramid against its rules, and its resizing against dlib's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import dlib_resize

from facescale.vision.pyramid import (
    OUTER_PADDING_PX,
    PADDING_PX,
    doubled_size,
    draw_levels,
    place_first_level,
    resize,
    tiled_layout,
    upsample,
)

SIZES = [
    (250, 250),
    (501, 502),
    (90, 700),
    (700, 90),
    (37, 41),
    (5, 5),
    (4, 300),
    (300, 1),
    (1, 1),
    (1200, 874),
]


def test_known_layout() -> None:
    layout = tiled_layout(250, 250)
    assert (layout.height, layout.width) == (957, 272)
    assert layout.levels[:3] == ((11, 11, 250, 250), (11, 271, 208, 208), (11, 489, 173, 173))
    assert layout.area == 957 * 272


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_levels_shrink_and_keep_apart(height: int, width: int) -> None:
    layout = tiled_layout(height, width)
    assert layout.levels[0] == (OUTER_PADDING_PX, OUTER_PADDING_PX, width, height)
    for (_, _, upper_width, upper_height), (_, _, lower_width, lower_height) in zip(
        layout.levels, layout.levels[1:], strict=False
    ):
        assert (lower_width, lower_height) == (int(upper_width * 5 / 6), int(upper_height * 5 / 6))
        assert lower_width >= 1 and lower_height >= 5
    taken = np.zeros((layout.height, layout.width), int)
    for left, top, level_width, level_height in layout.levels:
        assert left >= OUTER_PADDING_PX and top >= OUTER_PADDING_PX
        assert left + level_width <= layout.width - OUTER_PADDING_PX
        assert top + level_height <= layout.height - OUTER_PADDING_PX
        taken[top : top + level_height, left : left + level_width] += 1
    assert taken.max() == 1


@pytest.mark.parametrize(("height", "width"), [(250, 250), (61, 640)])
def test_levels_go_down_until_nothing_is_left(height: int, width: int) -> None:
    last_width, last_height = tiled_layout(height, width).levels[-1][2:]
    assert int(last_height * 5 / 6) < 5 or int(last_width * 5 / 6) == 0


def test_second_column_stands_beside_the_first() -> None:
    lefts = [left for left, *_ in tiled_layout(250, 250).levels]
    turn = next(index for index, left in enumerate(lefts) if left != OUTER_PADDING_PX)
    assert all(left == OUTER_PADDING_PX for left in lefts[:turn])
    assert all(left > OUTER_PADDING_PX + PADDING_PX for left in lefts[turn:])


@pytest.mark.parametrize(
    ("source", "target"),
    [((250, 250), (208, 208)), ((33, 900), (27, 750)), ((6, 5), (5, 4)), ((2, 3), (2, 2)), ((7, 1), (5, 1))],
)
def test_resize_equals_dlibs_for_floats(source: tuple[int, int], target: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).normal(size=(*source, 3)).astype(np.float32)
    ours = resize(torch.from_numpy(pixels[None]), *target)[0].numpy()
    theirs = np.stack([dlib_resize(np.ascontiguousarray(pixels[..., c]), *target) for c in range(3)], -1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(250, 250), (31, 1200), (120, 77), (3, 4), (1, 9), (9, 1), (1, 1)])
def test_upsampling_equals_dlibs_for_pixels(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels[: size[0] // 2] = 255  # flat regions, where a last bit decides between 254 and 255
    ours = upsample(torch.from_numpy(pixels[None]).float(), *doubled_size(*size))[0].numpy()
    theirs = dlib_resize(pixels, *doubled_size(*size)).astype(np.float32)
    np.testing.assert_array_equal(ours[:, :-7], theirs[:, :-7])
    assert np.abs(ours - theirs).max() <= 1


def test_batch_is_drawn_like_each_image_alone() -> None:
    layout = tiled_layout(60, 50)
    pixels = torch.from_numpy(np.random.default_rng(3).normal(size=(3, 60, 50, 3)).astype(np.float32))

    def draw(images: torch.Tensor) -> torch.Tensor:
        plane = torch.zeros(len(images), layout.height, layout.width, 3)
        place_first_level(plane, layout, images)
        draw_levels(plane, layout)
        return plane

    assert torch.equal(draw(pixels), torch.cat([draw(pixels[i : i + 1]) for i in range(3)]))


def test_everything_between_levels_stays_zero() -> None:
    layout = tiled_layout(60, 50)
    plane = torch.zeros(1, layout.height, layout.width, 3)
    place_first_level(plane, layout, torch.ones(1, 60, 50, 3))
    draw_levels(plane, layout)
    covered = sum(width * height for _, _, width, height in layout.levels)
    assert int((plane[..., 0] != 0).sum()) == covered
    torch.testing.assert_close(plane[plane != 0], torch.ones(3 * covered))
