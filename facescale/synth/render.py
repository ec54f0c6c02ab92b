"""One synthetic photograph: people placed before a background, lit, blurred, occluded and noisy as web images are.

In: painted portraits, how each is bent and placed, a random generator. Out: uint8 RGB pixels and the box of each
face. Called by facescale.synth.cast and facescale.synth.shoot.

Everything geometric is composed into one map, so the portrait is resampled once and stays sharp.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np

from facescale.synth.portrait import Portrait, load_portrait, skimage_data
from facescale.synth.raster import blur, convert, ellipse, enlarge, sample
from facescale.synth.warp import Warp, make_warp, similarity, turn_head

_BACKGROUNDS = ("brick", "grass", "gravel", "coffee", "rocket")  # what lies behind a person, out of focus


@dataclass(frozen=True, eq=False)
class View:
    """How one sitter stands in one photograph.

    Args:
        center_px: where the middle of the face falls, x, y.
        face_px: width of the face.
        roll_deg: rotation in the picture, clockwise.
        yaw_deg: turn of the head.
        pitch_deg: nod of the head.
        expression: one coefficient per expression mode.
        flip: mirrored left to right.
        suit_turn: shift of the suit's hue in turns, 0..1.
        suit_gain: brightness of the suit.
    """

    center_px: tuple[float, float]
    face_px: float
    roll_deg: float = 0.0
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    expression: tuple[float, ...] = ()
    flip: bool = False
    suit_turn: float = 0.0
    suit_gain: float = 1.0


@dataclass(frozen=True, eq=False)
class Look:
    """What happens to the whole photograph after the people are in it.

    Args:
        blur_px: standard deviation of the focus blur.
        motion_px: length of the motion blur; 0 is none.
        noise: standard deviation of the sensor noise, in levels of 255.
        gamma: above 1 darkens.
        gains: white balance per channel.
        shade: strength of the light's fall-off across the picture, 0..1.
        shade_deg: its direction.
        occlusion: `none`, `scarf`, `cap` or `side`: what hides part of the first face.
    """

    blur_px: float = 0.0
    motion_px: float = 0.0
    noise: float = 0.0
    gamma: float = 1.0
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shade: float = 0.0
    shade_deg: float = 0.0
    occlusion: str = "none"


@dataclass(frozen=True, eq=False)
class Photograph:
    """A rendered photograph.

    Args:
        pixels: uint8 [H, W, 3] RGB.
        boxes: float32 [n, 4] x1, y1, x2, y2 px with pixel centers at .5, one per sitter.
    """

    pixels: np.ndarray
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))


def render(
    sitters: list[tuple[np.ndarray, np.ndarray, View]],
    size: tuple[int, int],
    look: Look,
    rng: np.random.Generator,
) -> Photograph:
    """Photograph people.

    Args:
        sitters: per person the painted portrait (float32 [512, 512, 3] in 0..1), the displacement of its
            points (float64 [P, 2] px) and the view; later ones stand in front.
        size: width and height in px.
        look: what the camera and the light do.
        rng: of the background and the noise.
    """
    portrait = load_portrait()
    canvas = background(size, rng)
    boxes = []
    for painted, displacement, view in sitters:
        warp = make_warp(displacement + _movement(portrait, view))
        scale, offset = _placement(portrait, view, warp)
        _draw(canvas, portrait, painted, warp, view, scale, offset)
        boxes.append(_face_box(portrait, warp, view, scale, offset))
    if look.occlusion != "none":
        _occlude(canvas, boxes[0], look.occlusion, rng)
    return Photograph(finish(canvas, look, rng), np.array(boxes, np.float32).reshape(-1, 4))


def background(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Something out of focus, or a studio wall: float32 [H, W, 3] in 0..1, different for every draw."""
    W, H = size
    shade = rng.uniform(0.2, 0.85, (2, 1, 1))
    colors = (shade + rng.uniform(-0.18, 0.18, (2, 1, 3))).astype(np.float32)
    cells = rng.integers(2, 5)
    clouds = np.clip(enlarge(rng.random((cells, cells + 1)).astype(np.float32), (W, H)), 0, 1)
    wall = np.asarray(colors[0] + clouds[..., None] * (colors[1] - colors[0]))
    if rng.random() < 0.35:
        return wall
    picture = _scenery(_BACKGROUNDS[rng.integers(len(_BACKGROUNDS))])
    height, width = picture.shape[:2]
    side = rng.uniform(0.45, 1.0) * min(height, width)
    ratio = min(1.0, side / max(W, H) * 2)
    w, h = min(width, round(W * ratio)), min(height, round(H * ratio))
    x, y = rng.integers(width - w + 1), rng.integers(height - h + 1)
    scene = enlarge(picture[y : y + h, x : x + w], (W, H))[:, :: rng.choice([-1, 1])]
    scene = blur(np.ascontiguousarray(scene), rng.uniform(1.5, 9.0))
    return np.clip(scene * rng.uniform(0.5, 1.0) * 0.65 + wall * 0.35, 0, 1).astype(np.float32)


def finish(canvas: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Light, lens and sensor: float32 [H, W, 3] in 0..1 → uint8 [H, W, 3]."""
    H, W = canvas.shape[:2]
    if look.shade:
        angle = np.radians(look.shade_deg)
        x, y = np.linspace(-1, 1, W, dtype=np.float32), np.linspace(-1, 1, H, dtype=np.float32)
        ramp = np.float32(np.cos(angle)) * x[None] + np.float32(np.sin(angle)) * y[:, None]
        canvas = canvas * (1 + np.float32(look.shade) * ramp)[..., None]
    canvas = np.clip(canvas * np.array(look.gains, np.float32), 0, 1) ** np.float32(look.gamma)
    if look.blur_px > 0.2:
        canvas = blur(canvas, look.blur_px)
    if look.motion_px > 1:
        length = round(look.motion_px)
        canvas = cv2.blur(canvas, (length, 1) if rng.random() < 0.5 else (1, length))
    levels = canvas * 255
    if look.noise:
        levels = levels + np.float32(look.noise) * rng.standard_normal(canvas.shape, np.float32)
    return np.asarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def _movement(portrait: Portrait, view: View) -> np.ndarray:
    moved = turn_head(portrait, view.yaw_deg, view.pitch_deg)
    if view.expression:
        moved = moved + np.einsum("m,mpc->pc", np.array(view.expression), portrait.expression_modes)
    return moved


def _placement(portrait: Portrait, view: View, warp: Warp) -> tuple[complex, complex]:
    """Portrait px → photograph px as z → a·z + b, with x mirrored beforehand when the view is flipped."""
    middle = warp.move(portrait.points).mean(axis=0)
    scale = view.face_px / portrait.face_width * np.exp(1j * np.radians(view.roll_deg))
    z = complex(-middle[0] if view.flip else middle[0], middle[1])
    return complex(scale), complex(*view.center_px) - complex(scale) * z


def _draw(
    canvas: np.ndarray,
    portrait: Portrait,
    painted: np.ndarray,
    warp: Warp,
    view: View,
    a: complex,
    b: complex,
) -> None:
    H, W = canvas.shape[:2]
    x, y = np.meshgrid(np.arange(W, dtype=np.float32), np.arange(H, dtype=np.float32))
    inverse, shift = 1 / a, -b / a
    places = np.empty((H, W, 2), np.float32)
    places[..., 0] = inverse.real * x - inverse.imag * y + shift.real
    places[..., 1] = inverse.imag * x + inverse.real * y + shift.imag
    if view.flip:
        places[..., 0] *= -1
    at = warp.sources(places)
    color = sample(painted, at)
    masks = np.dstack([portrait.subject, np.clip(portrait.subject - portrait.hair - portrait.skin, 0, 1)])
    masks = sample(masks, at, linear=True, outside=0.0)
    color = _dress(np.clip(color, 0, 1), masks[..., 1:], view)
    canvas += masks[..., :1] * (color - canvas)


def _dress(color: np.ndarray, cloth: np.ndarray, view: View) -> np.ndarray:
    """Another suit: hue turned and brightness scaled where the cloth is."""
    hsv = convert(color, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + np.float32(360 * view.suit_turn)) % 360
    hsv[..., 2] *= np.float32(view.suit_gain)
    return np.asarray(np.clip(color + cloth * (convert(hsv, cv2.COLOR_HSV2RGB) - color), 0, 1))


def _face_box(portrait: Portrait, warp: Warp, view: View, a: complex, b: complex) -> np.ndarray:
    """Square around the face: the marked one, carried along by the best similarity of the face's points."""
    moved = warp.move(portrait.points)
    inner = np.array([not n.startswith(("hair_", "crown", "neck", "ear")) for n in portrait.names])
    grow, move = similarity(portrait.points[inner], moved[inner])
    x1, y1, x2, y2 = portrait.face_box
    center = grow * complex((x1 + x2) / 2, (y1 + y2) / 2) + move
    center = a * (complex(-center.real, center.imag) if view.flip else center) + b
    half = abs(grow * a) * (x2 - x1) / 2
    box = np.array([center.real - half, center.imag - half, center.real + half, center.imag + half])
    return box + 0.5  # from pixel centers at integers to pixel centers at .5


def _occlude(canvas: np.ndarray, box: np.ndarray, kind: str, rng: np.random.Generator) -> None:
    """Hide part of a face behind a soft-edged, textured shape, in place."""
    H, W = canvas.shape[:2]
    x1, y1, x2, y2 = box - 0.5
    side, cx = x2 - x1, (x1 + x2) / 2
    center, axes = {
        "scarf": ((cx, y2 + 0.3 * side), (0.72 * side, 0.42 * side)),
        "cap": ((cx, y1 - 0.3 * side), (0.84 * side, 0.48 * side)),
        "side": ((x1 - 0.12 * side, y2 - 0.1 * side), (0.3 * side, 0.42 * side)),
    }[kind]
    mask = ellipse((H, W), center, axes, float(rng.uniform(-8, 8)))
    weight = blur(mask, max(0.8, 0.012 * side))[..., None]
    cloth = (rng.uniform(0.12, 0.6) + rng.uniform(-0.1, 0.1, 3)).astype(np.float32)
    weave = enlarge(rng.normal(1, 0.12, (H // 3 + 1, W // 3 + 1)).astype(np.float32), (W, H))[..., None]
    canvas += weight * (np.clip(cloth * weave, 0, 1) - canvas)


@lru_cache(maxsize=len(_BACKGROUNDS))
def _scenery(name: str) -> np.ndarray:
    return skimage_data(name).astype(np.float32) / 255
