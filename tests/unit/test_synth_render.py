"""One photograph: pixels land where the boxes say."""

from __future__ import annotations

import numpy as np
import pytest

from facescale.synth.portrait import load_portrait
from facescale.synth.render import Look, View, background, finish, render
from facescale.synth.variety import pair_scene, poor_scene, single_scene

PORTRAIT = load_portrait()
PLAIN = PORTRAIT.pixels.astype(np.float32) / 255
STILL = np.zeros_like(PORTRAIT.points)
MIDDLE = PORTRAIT.points.mean(axis=0)


def photograph(view: View, size: tuple[int, int] = (300, 300), look: Look | None = None, seed: int = 0):
    return render([(PLAIN, STILL, view)], size, look or Look(), np.random.default_rng(seed))


def test_at_its_own_scale_the_portrait_comes_back() -> None:
    shift = np.round(MIDDLE) - 150
    made = photograph(View(tuple((MIDDLE - shift).tolist()), PORTRAIT.face_width))
    x, y = (int(v) for v in shift)
    x1, y1, x2, y2 = (made.boxes[0] + np.array([12, 12, -12, -12])).round().astype(int)
    window = PORTRAIT.pixels[y + y1 : y + y2, x + x1 : x + x2].astype(int)
    assert np.abs(made.pixels[y1:y2, x1:x2].astype(int) - window).max() <= 2


def test_box_is_the_marked_one_with_pixel_centers_at_half() -> None:
    shift = np.round(MIDDLE) - 150
    made = photograph(View(tuple((MIDDLE - shift).tolist()), PORTRAIT.face_width))
    assert made.boxes.dtype == np.float32
    assert made.boxes[0] == pytest.approx(PORTRAIT.face_box - np.tile(shift, 2) + 0.5, abs=1e-3)


def test_boxes_follow_scale_shift_roll_and_flip() -> None:
    base = photograph(View((150, 150), 80)).boxes[0]
    assert photograph(View((163, 141), 80)).boxes[0] == pytest.approx(
        base + np.array([13, -9, 13, -9]), abs=1e-3
    )
    half = photograph(View((150, 150), 40)).boxes[0]
    assert half[2] - half[0] == pytest.approx((base[2] - base[0]) / 2, abs=1e-3)
    rolled = photograph(View((150, 150), 80, roll_deg=15)).boxes[0]
    assert rolled[2] - rolled[0] == pytest.approx(base[2] - base[0], abs=1e-3)
    # With pixel centers at .5, mirroring about the center x = 150 (pixel 150 is at 150.5) gives 301 - x.
    flipped = photograph(View((150, 150), 80, flip=True)).boxes[0]
    assert flipped == pytest.approx([301 - base[2], base[1], 301 - base[0], base[3]], abs=1e-3)


def test_flip_mirrors_the_pixels() -> None:
    size = (301, 301)  # its center is the pixel 150
    straight = photograph(View((150, 150), 90), size).pixels[120:200, 110:191].astype(int)
    mirrored = photograph(View((150, 150), 90, flip=True), size).pixels[120:200, 110:191].astype(int)
    inside = np.abs(straight - mirrored[:, ::-1])[:60]
    assert inside.max() <= 2
    assert np.abs(straight - mirrored)[:60].max() > 40


def test_skin_lies_inside_the_box_and_two_people_give_two() -> None:
    rng = np.random.default_rng(0)
    views = [View((110, 130), 70), View((300, 140), 60, roll_deg=10, flip=True)]
    made = render([(PLAIN, STILL, view) for view in views], (420, 280), Look(), rng)
    assert made.pixels.shape == (280, 420, 3)
    assert len(made.boxes) == 2
    for box in made.boxes:
        x1, y1, x2, y2 = box.round().astype(int)
        red, green, blue = made.pixels[y1 + 12 : y2 - 12, x1 + 12 : x2 - 12].reshape(-1, 3).mean(axis=0)
        assert red > green > blue
        assert red > 150


@pytest.mark.parametrize("kind", ["scarf", "cap", "side"])
def test_occlusion_hides_a_part_and_no_more(kind: str) -> None:
    plain = photograph(View((150, 140), 90))
    hidden = photograph(View((150, 140), 90), look=Look(occlusion=kind))
    x1, y1, x2, y2 = plain.boxes[0].round().astype(int)
    changed = np.abs(plain.pixels.astype(int) - hidden.pixels)[y1:y2, x1:x2].max(axis=2) > 12
    assert 0.02 < changed.mean() < 0.4
    eyes = changed[round(0.25 * len(changed)) : round(0.4 * len(changed)), 25:-25]
    assert eyes.mean() < 0.1


def test_finish_without_effects_only_rounds() -> None:
    canvas = np.random.default_rng(0).random((20, 30, 3)).astype(np.float32)
    assert np.array_equal(
        finish(canvas, Look(), np.random.default_rng(0)), np.rint(canvas * 255).astype(np.uint8)
    )


def test_backgrounds_differ_and_repeat() -> None:
    made = [background((120, 90), np.random.default_rng(seed)) for seed in range(8)]
    assert all(b.shape == (90, 120, 3) and b.dtype == np.float32 for b in made)
    assert all(b.min() >= -0.2 and b.max() <= 1.2 for b in made)
    gaps = [np.abs(made[i] - made[j]).mean() for i in range(8) for j in range(i)]
    assert min(gaps) > 0.02
    assert np.array_equal(made[3], background((120, 90), np.random.default_rng(3)))


@pytest.mark.parametrize("draw", [single_scene, poor_scene, pair_scene])
def test_scenes_keep_their_faces_in_the_picture(draw) -> None:
    for seed in range(60):
        scene = draw(np.random.default_rng(seed))
        W, H = scene.size
        assert 150 <= min(W, H)
        assert max(W, H) <= 700
        assert 0.1 < scene.shrink <= 1
        assert 1 <= scene.jpeg_quality <= 95
        assert len(scene.views) == (2 if draw is pair_scene else 1)
        for view in scene.views:
            x, y = view.center_px
            assert 0.5 * view.face_px < x < W - 0.5 * view.face_px
            assert 0.5 * view.face_px < y < H - 0.5 * view.face_px
            assert view.face_px * scene.shrink > 45  # the default detector finds from 40 px
