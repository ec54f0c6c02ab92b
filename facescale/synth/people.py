"""Invented people: how a face is bent and painted so that it is somebody else's, and stays the same person's.

In: a random generator and the portrait. Out: `Person` records (plain numbers, drawn first) and the painted portrait
of each (made when needed). Called by facescale.synth.cast, which keeps only people that are far enough apart,
and facescale.synth.render.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from facescale.synth.portrait import SHAPE
from facescale.synth.raster import blur, convert, ellipse, strokes
from facescale.synth.warp import spread, steepness

if TYPE_CHECKING:
    from facescale.synth.portrait import Portrait

# Lightness gain and the a, b of CIE Lab at mid lightness: black, dark brown, brown, auburn, red, blond, grey, white.
_HAIR = np.array(
    [
        [0.36, 1, 2],
        [0.5, 5, 9],
        [0.68, 7, 17],
        [0.72, 16, 20],
        [0.85, 24, 32],
        [1.12, 3, 30],
        [0.95, 0, 2],
        [1.3, 0, 4],
    ]
)
_MODE_LIMIT = 2.0  # coefficients beyond this many standard deviations are clipped: caricature, not variety
_MAX_STEEPNESS = 0.85  # of a warp; nearer to 1 skin visibly crumples, and poses add to it
_RIM = (1.45, 2.1)  # of glasses, in half widths and half heights of an eye
# Center x, y, half width, half height in px of the portrait.
_LIPS, _MOUTH, _BEARD = (224, 147, 25, 10), (224, 147, 22, 10), (224, 154, 42, 25)


@dataclass(frozen=True, eq=False)
class Person:
    """What makes one invented person look unlike the others; units as in `paint`.

    Args:
        displacement: float64 [P, 2] px of the portrait's points.
        hair: lightness gain, a, b.
        skin: lightness gain, shift of a, shift of b.
        lips: shift of a.
        texture: gain of the skin's fine detail: below 1 smooth, above 1 lined.
        brow_px: width of the painted eyebrows.
        brow: their strength 0..1.
        beard: strength 0..1; 0 is none.
        glasses: frame thickness in px; 0 is none.
        frame: shade of the frame, 0..255.
        seed: of the fixed pattern in beard and freckles.
    """

    displacement: np.ndarray
    hair: tuple[float, float, float]
    skin: tuple[float, float, float]
    lips: float
    texture: float
    brow_px: float
    brow: float
    beard: float
    glasses: float
    frame: int
    seed: int


def draw_people(portrait: Portrait, count: int, rng: np.random.Generator, *, strength: float) -> list[Person]:
    """Draw people at random; those whose warp nearly folds are dropped, so fewer than `count` may come back.

    Args:
        portrait: supplies points and modes.
        count: how many to draw.
        rng: the only source of randomness.
        strength: scale of the shape modes; 1 gives displacements of about 6 % of the face width.
    """
    P, M = len(portrait.points), len(portrait.identity_modes)
    weights = np.clip(rng.normal(size=(count, M)), -_MODE_LIMIT, _MODE_LIMIT) * strength
    displacement = np.einsum("nm,mpc->npc", weights, portrait.identity_modes)
    # Nobody is symmetric: a little of what no mode describes.
    displacement += rng.normal(size=(count, P, 2)) * (0.006 * portrait.face_width * strength)
    smooth = steepness(spread(displacement)) < _MAX_STEEPNESS
    hair = _HAIR[rng.integers(len(_HAIR), size=count)] * rng.uniform(0.88, 1.12, (count, 3))
    gain = rng.uniform(0.58, 1.06, count)
    skin = np.stack([gain, rng.normal(0, 2.5, count), rng.normal(1, 2, count)], axis=1)
    lips, texture = rng.uniform(-4, 12, count), rng.uniform(0.4, 1.9, count)
    brow_px, brow = rng.uniform(2.0, 4.5, count), rng.uniform(0.15, 0.8, count)
    beard = np.where(rng.random(count) < 0.25, rng.uniform(0.35, 0.8, count), 0.0)
    glasses = np.where(rng.random(count) < 0.2, rng.uniform(1.2, 2.4, count), 0.0)
    frame, seeds = rng.integers(15, 90, count), rng.integers(2**31, size=count)
    return [
        Person(
            displacement=displacement[i],
            hair=tuple(hair[i].tolist()),
            skin=tuple(skin[i].tolist()),
            lips=float(lips[i]),
            texture=float(texture[i]),
            brow_px=float(brow_px[i]),
            brow=float(brow[i]),
            beard=float(beard[i]),
            glasses=float(glasses[i]),
            frame=int(frame[i]),
            seed=int(seeds[i]),
        )
        for i in np.flatnonzero(smooth)
    ]


def paint(portrait: Portrait, person: Person) -> np.ndarray:
    """The portrait in this person's colors, not yet bent.

    Args:
        portrait: the original.
        person: the colors.

    Returns:
        float32 [512, 512, 3] RGB in 0..1.
    """
    rng = np.random.default_rng(person.seed)
    lab = convert(portrait.pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    smooth = blur(lab[..., 0], 1.5)
    lab[..., 0] += (person.texture - 1) * (lab[..., 0] - smooth) * portrait.skin
    _blend(lab, portrait.skin, _skin_tone(lab, person))
    _blend(lab, portrait.hair, _hair_tone(lab, person))
    lab[..., 1] += person.lips * _soft_ellipse(_LIPS, 2.0) * portrait.skin
    hair_color = np.array([26 * person.hair[0], person.hair[1] / 2, person.hair[2] / 2], np.float32)
    brows = strokes(SHAPE, portrait.brows, person.brow_px, 0.8)
    _blend(lab, brows * person.brow, hair_color)
    if person.beard:
        grain = blur(rng.normal(1, 0.7, SHAPE).astype(np.float32), 0.7)
        _blend(lab, np.clip(_beard_area(portrait) * person.beard * grain, 0, 1), hair_color * np.float32(1.2))
    if person.glasses:
        _blend(lab, _glasses(portrait, person.glasses), np.array([person.frame / 2.55, 0, 0], np.float32))
    lab[..., 0] = np.clip(lab[..., 0], 0, 100)
    return np.asarray(np.clip(convert(lab, cv2.COLOR_LAB2RGB), 0, 1))


def _blend(lab: np.ndarray, weight: np.ndarray, color: np.ndarray) -> None:
    """Move lab [H, W, 3] towards color by weight [H, W], in place."""
    lab += weight[..., None] * (color - lab)


def _skin_tone(lab: np.ndarray, person: Person) -> np.ndarray:
    gain, shift_a, shift_b = person.skin
    warmth = 1 + 0.5 * max(0.0, 1 - gain)  # darker skin is more saturated, not grey
    return lab * np.array([gain, warmth, warmth], np.float32) + np.array([0, shift_a, shift_b], np.float32)


def _hair_tone(lab: np.ndarray, person: Person) -> np.ndarray:
    gain, a, b = person.hair
    lightness = lab[..., 0] * gain
    tint = np.clip(lightness / 45, 0.2, 1.3)
    return np.stack([lightness, a * tint, b * tint], axis=2)


def _soft_ellipse(shape: tuple[float, float, float, float], soft_px: float) -> np.ndarray:
    x, y, half_width, half_height = shape
    return blur(ellipse(SHAPE, (x, y), (half_width, half_height)), soft_px)


def _beard_area(portrait: Portrait) -> np.ndarray:
    return np.asarray(_soft_ellipse(_BEARD, 4.0) * (1 - _soft_ellipse(_MOUTH, 2.0)) * portrait.skin)


def _glasses(portrait: Portrait, thickness_px: float) -> np.ndarray:
    (x1, y1, w1, h1), (x2, y2, w2, h2) = portrait.eyes * [1, 1, *_RIM]
    turn = np.linspace(0, 2 * np.pi, 60)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    drop = np.array([0, 1.25])  # rims hang a little lower than the eyes
    rims = [circle * [w1, h1] + [x1, y1] + drop, circle * [w2, h2] + [x2, y2] + drop]
    left, right = (portrait.points[portrait.names.index(f"temple:{side}")] for side in ("left", "right"))
    bridge = np.array([[x1 + w1, y1], [x2 - w2, y2]])
    arms = [np.array([[x1 - w1, y1], left]), np.array([[x2 + w2, y2], right])]
    return strokes(SHAPE, [*rims, bridge, *arms], thickness_px, 0.5)
