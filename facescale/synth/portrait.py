"""The one portrait every synthetic face is made of: pixels, mattes, hand-marked points and how they may move.

In: skimage.data.astronaut (public domain, shipped with the scikit-image wheel) and portrait.yaml beside this
file. Out: a `Portrait`, made once per process. Called by the other modules
of facescale.synth.

Coordinates here have pixel centers at integers, as cv2.remap takes them; facescale.synth.render converts when
boxes leave for the truth table. Shape legend: P points that may move, M modes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import yaml

from facescale.errors import CorruptError, MissingExtraError
from facescale.synth.raster import box_mean, polygon

SHAPE = (512, 512)  # height and width in px
_SIDES = {":left": -1.0, ":right": 1.0, "": 0.0}  # which way is outward
_MATTE_RADIUS_PX = 5
_MATTE_EPSILON = 1e-4  # of intensities 0..1 squared: edges weaker than 1 % are smoothed over


@dataclass(frozen=True, eq=False)
class Portrait:
    """The portrait and everything marked on it; arrays are read-only.

    Args:
        pixels: uint8 [512, 512, 3] RGB.
        subject: float32 [512, 512], 1 on the person, 0 on the background, soft at the hair.
        hair: float32 [512, 512], likewise for the hair alone.
        skin: float32 [512, 512], likewise for face and neck, teeth and eyes left out by their lack of color.
        names: P point names, pairs as `name:left` and `name:right`.
        points: float64 [P, 2] px, those that move.
        fixed: float64 [F, 2] px, those that never do.
        identity_modes: float64 [M, P, 2] px per unit coefficient; what differs between people.
        identity_mode_names: M names, in order.
        expression_modes: float64 [M', P, 2] px per unit coefficient; what differs between photographs.
        depth: float64 [P] px towards the camera.
        face_width: px.
        face_box: float64 [4] x1, y1, x2, y2 px.
        brows: two float64 [n, 2] center lines.
        eyes: float64 [2, 4] center x, y, half width, half height.
    """

    pixels: np.ndarray
    subject: np.ndarray
    hair: np.ndarray
    skin: np.ndarray
    names: tuple[str, ...]
    points: np.ndarray
    fixed: np.ndarray
    identity_modes: np.ndarray
    identity_mode_names: tuple[str, ...]
    expression_modes: np.ndarray
    depth: np.ndarray
    face_width: float
    face_box: np.ndarray
    brows: tuple[np.ndarray, np.ndarray]
    eyes: np.ndarray


def skimage_data(name: str) -> np.ndarray:
    """One of scikit-image's pictures, of those inside its wheel.

    Args:
        name: e.g. `astronaut`, `coffee`.

    Returns:
        uint8 [H, W, 3] RGB; grey and boolean pictures are widened.

    Raises:
        MissingExtraError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtraError("scikit-image", "synth", "the synthetic crawl") from error
    picture = np.asarray(getattr(data, name)())
    if picture.dtype == bool:
        picture = picture.astype(np.uint8) * 255
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    return np.ascontiguousarray(picture[..., :3])


@lru_cache(maxsize=1)
def load_portrait() -> Portrait:
    """Read, matte and mark the portrait (about 0.3 s the first time in a process).

    Raises:
        MissingExtraError: scikit-image is not installed.
        CorruptError: the installed scikit-image has another portrait than the one that was marked.
    """
    text = resources.files("facescale.synth").joinpath("portrait.yaml").read_text("utf-8")
    marks: dict[str, Any] = yaml.safe_load(text)
    pixels = skimage_data("astronaut")
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    if digest != marks["sha256"]:
        raise CorruptError(
            f"skimage.data.astronaut() has sha256 {digest}, and facescale/synth/portrait.yaml was marked on "
            f"{marks['sha256']}: install a scikit-image that ships that picture (0.26 does)"
        )
    points = _named_points(marks)
    names = tuple(points)
    identity = {n: _mode(m, names, marks["face_width"]) for n, m in marks["identity_modes"].items()}
    expression = [_mode(m, names, marks["face_width"]) for m in marks["expression_modes"].values()]
    depth = [marks["depth"][name.partition(":")[0]] * marks["face_width"] / 100 for name in names]
    outlines = {name: polygon(SHAPE, np.array(outline)) for name, outline in marks["outlines"].items()}
    outlines["pale"] = np.maximum.reduce([polygon(SHAPE, np.array(outline)) for outline in marks["pale"]])
    subject, hair, skin = _mattes(pixels, outlines)
    portrait = Portrait(
        pixels=pixels,
        subject=subject,
        hair=hair,
        skin=skin,
        names=names,
        points=np.array(list(points.values()), np.float64),
        fixed=np.array(marks["fixed"], np.float64),
        identity_modes=np.stack(list(identity.values())),
        identity_mode_names=tuple(identity),
        expression_modes=np.stack(expression),
        depth=np.array(depth, np.float64),
        face_width=float(marks["face_width"]),
        face_box=np.array(marks["face_box"], np.float64),
        brows=(np.array(marks["brows"][0], np.float64), np.array(marks["brows"][1], np.float64)),
        eyes=np.array(marks["eyes"], np.float64),
    )
    for value in vars(portrait).values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)  # shared by every thread of the process
    return portrait


def _named_points(marks: dict[str, Any]) -> dict[str, tuple[float, float]]:
    points = {}
    for name, (left, right) in marks["pairs"].items():
        points[f"{name}:left"], points[f"{name}:right"] = tuple(left), tuple(right)
    return points | {name: tuple(point) for name, point in marks["midline"].items()}


def _mode(moves: dict[str, list[float]], names: tuple[str, ...], face_width: float) -> np.ndarray:
    """A mode's displacement of every point, float64 [P, 2] px; a move that names no point is refused."""
    out = np.zeros((len(names), 2))
    for name, (outward, down) in moves.items():
        found = [(names.index(name + s), sign) for s, sign in _SIDES.items() if name + s in names]
        if not found:
            raise CorruptError(f"facescale/synth/portrait.yaml: a mode moves {name}, which is not a point")
        for index, sign in found:
            out[index] = (sign * outward, down)
    return out * face_width / 100


def _mattes(pixels: np.ndarray, outlines: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Subject, hair and skin as soft masks that follow the edges of the picture."""
    guide = pixels.astype(np.float32) / 255
    subject = _guided(guide, np.maximum.reduce([outlines[name] for name in ("hair", "skin", "body")]))
    hair = _guided(guide, outlines["hair"]) * subject
    # Teeth and the whites of the eyes keep their color; highlights on the cheeks must not, so look only around both.
    chroma = guide.max(axis=2) - guide.min(axis=2)
    colored = np.clip((chroma - 0.06) / 0.12, 0, 1)
    skin = _guided(guide, outlines["skin"]) * (1 - outlines["pale"] * (1 - colored))
    # The filter leaves a faint halo; the steeper ramp removes it and keeps the strands.
    subject, hair, skin = (np.clip((m - 0.25) / 0.6, 0, 1).astype(np.float32) for m in (subject, hair, skin))
    return subject, hair, skin


def _guided(guide: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Guided filter with a color guide (He, Sun, Tang, ECCV 2010): snaps a drawn outline to the picture's edges.

    Args:
        guide: float32 [H, W, 3] in 0..1.
        mask: float32 [H, W] in 0..1.

    Returns:
        float32 [H, W] in 0..1.
    """
    H, W = guide.shape[:2]
    mean_guide, mean_mask = _mean(guide), _mean(mask)
    covariance = _mean(guide * mask[..., None]) - mean_guide * mean_mask[..., None]
    products = guide[..., :, None] * guide[..., None, :]
    spread = np.stack([_mean(products[..., i, :]) for i in range(3)], axis=2).reshape(H, W, 3, 3)
    spread -= mean_guide[..., :, None] * mean_guide[..., None, :]
    spread += _MATTE_EPSILON * np.eye(3, dtype=np.float32)
    slope = np.linalg.solve(spread, covariance[..., None])[..., 0]
    offset = mean_mask - (slope * mean_guide).sum(axis=2)
    return np.asarray(np.clip((_mean(slope) * guide).sum(axis=2) + _mean(offset), 0, 1))


def _mean(values: np.ndarray) -> np.ndarray:
    return box_mean(values, _MATTE_RADIUS_PX)
