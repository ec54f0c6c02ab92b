"""How photographs of one person differ: framing, pose, light, camera; drawn at random within plausible limits.

In: a random generator. Out: sizes, `View`s and `Look`s for facescale.synth.render, with the names of what is
special about them. Called by facescale.synth.crawl.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from facescale.synth.render import Look, View

_OCCLUSIONS = ("scarf", "cap", "side")


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything about one photograph but who is in it.

    Args:
        size: width and height in px.
        views: one per sitter.
        look: light and camera.
        shrink: factor by which the finished picture is reduced, in (0, 1].
        jpeg_quality: 1..95.
        variations: names of what is unusual here, for the truth table.
    """

    size: tuple[int, int]
    views: tuple[View, ...]
    look: Look
    shrink: float
    jpeg_quality: int
    variations: tuple[str, ...]


def single_scene(rng: np.random.Generator) -> Scene:
    """One person, as people are photographed."""
    W, H = _size(rng)
    face_px = float(rng.uniform(0.27, 0.4) * min(W, H))
    center = np.array([W * rng.normal(0.5, 0.05), H * rng.normal(0.47, 0.03)])
    variations = []
    if rng.random() < 0.08:  # carelessly cropped: hair, ear or chin is cut off
        center += np.array(rng.choice([-1, 1]), float) * [0.16 * W, 0]
        center[1] += rng.uniform(-0.1, 0.1) * H
        variations.append("crop")
    margin = 0.58 * face_px
    center = np.clip(center, margin, np.array([W, H]) - margin)
    view = _view(rng, (float(center[0]), float(center[1])), face_px)
    occlusion = "none"
    if rng.random() < 0.12:
        occlusion = _OCCLUSIONS[rng.integers(len(_OCCLUSIONS))]
        variations.append("occlusion")
    look = _look(rng, occlusion)
    variations += ["flip"] * view.flip + ["blur"] * (look.blur_px > 1) + ["motion"] * (look.motion_px > 1)
    return Scene((W, H), (view,), look, 1.0, int(rng.integers(62, 96)), tuple(variations))


def pair_scene(rng: np.random.Generator) -> Scene:
    """Two people side by side."""
    H = int(rng.integers(256, 361))
    W = int(H * rng.uniform(1.45, 1.8))
    views = []
    for x in (0.28, 0.72):
        center = (W * (x + rng.uniform(-0.03, 0.03)), H * rng.uniform(0.42, 0.52))
        views.append(_view(rng, center, float(rng.uniform(0.26, 0.34) * H)))
    return Scene((W, H), tuple(views), _look(rng, "none"), 1.0, int(rng.integers(70, 96)), ("two_faces",))


def poor_scene(rng: np.random.Generator) -> Scene:
    """One person, in one of three ways that make a face hard to recognize."""
    W, H = _size(rng)
    face_px = float(rng.uniform(0.34, 0.4) * min(W, H))
    view = _view(rng, (W * 0.5, H * 0.47), face_px)
    way = ("small", "blurred", "dark")[rng.integers(3)]
    gains = (1.0, 1.0, 1.0)
    if way == "small":
        shrink = float(rng.uniform(46, 58)) / face_px
        return Scene((W, H), (view,), Look(noise=4.0), min(1.0, shrink), int(rng.integers(25, 50)), (way,))
    if way == "blurred":
        look = Look(blur_px=float(rng.uniform(0.022, 0.032) * face_px), noise=3.0)
        return Scene((W, H), (view,), look, 1.0, int(rng.integers(20, 45)), (way,))
    look = Look(noise=float(rng.uniform(9, 14)), gamma=float(rng.uniform(1.7, 2.1)), gains=gains, shade=0.25)
    return Scene((W, H), (view,), look, 1.0, int(rng.integers(25, 50)), (way,))


def _size(rng: np.random.Generator) -> tuple[int, int]:
    side = rng.uniform(232, 400)
    aspect = np.sqrt(rng.uniform(0.75, 1.3))
    return round(side * aspect), round(side / aspect)


def _view(rng: np.random.Generator, center: tuple[float, float], face_px: float) -> View:
    def jitter(spread: float) -> float:
        return float(np.clip(rng.normal(0, spread), -2 * spread, 2 * spread))

    return View(
        center_px=center,
        face_px=face_px,
        roll_deg=jitter(7.0),
        yaw_deg=jitter(8.0),
        pitch_deg=jitter(5.0),
        expression=tuple(rng.uniform(-0.2, 1.0, 3).tolist()),
        flip=bool(rng.random() < 0.3),
        suit_turn=float(rng.random()),
        suit_gain=float(rng.uniform(0.35, 1.05)),
    )


def _look(rng: np.random.Generator, occlusion: str) -> Look:
    return Look(
        blur_px=float(rng.uniform(0, 1.3)),
        motion_px=float(rng.uniform(2, 4)) if rng.random() < 0.08 else 0.0,
        noise=float(rng.uniform(0, 5)),
        gamma=float(rng.uniform(0.75, 1.35)),
        gains=tuple(rng.uniform(0.9, 1.08, 3).tolist()),
        shade=float(rng.uniform(0, 0.3)),
        shade_deg=float(rng.uniform(0, 360)),
        occlusion=occlusion,
    )
