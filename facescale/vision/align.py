"""Landmarks in, aligned chips out: pixel conventions, landmark schemes, templates, similarities.

Called by the extract stage (chips for the embedder), by facescale.vision.crops and by whatever talks to
a library that counts pixels another way.

Two conventions exist for the coordinates of a pixel. facescale puts the center of the first pixel at
(0.5, 0.5), so that a box of the whole image is (0, 0, width, height). dlib and OpenCV put it at (0, 0).
This module is the only place that converts between the two.

Shape legend: N faces of a batch, n faces of one image, K landmarks, S chip side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from facescale.errors import DataError, MismatchError, UsageError
from facescale.vision import warp
from facescale.vision.warp_batch import cut_all

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor


def points_from_dlib(points: np.ndarray) -> np.ndarray:
    """Points with pixel centers at integers (dlib, OpenCV) → centers at .5; any shape."""
    return np.asarray(points) + np.float32(0.5)


def points_to_dlib(points: np.ndarray) -> np.ndarray:
    """Points with pixel centers at .5 → centers at integers (dlib, OpenCV); any shape."""
    return np.asarray(points) - np.float32(0.5)


def box_from_dlib(rects: np.ndarray) -> np.ndarray:
    """Rectangles of whole pixels → the area that those pixels cover.

    Args:
        rects: [..., 4] left, top, right, bottom: the first and the last pixel that belong to it, as dlib
            counts.

    Returns:
        [..., 4] x1, y1, x2, y2 with x2 - x1 the width in px.
    """
    return np.asarray(rects) + np.array([0, 0, 1, 1], np.float32)


def box_to_dlib(boxes: np.ndarray) -> np.ndarray:
    """The inverse of `box_from_dlib`; whole numbers come back whole."""
    return np.asarray(boxes) - np.array([0, 0, 1, 1], np.float32)


@dataclass(frozen=True)
class LandmarkScheme:
    """What each landmark of a face is.

    Args:
        name: as cards and table footers have it.
        points: what the K landmarks are, in order; left and right as seen in the image.
        left_eye: landmarks whose mean is the eye on the left of the image.
        right_eye: landmarks whose mean is the eye on the right of the image.
    """

    name: str
    points: tuple[str, ...]
    left_eye: tuple[int, ...]
    right_eye: tuple[int, ...]


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        LandmarkScheme(
            "dlib5",
            (
                "right eye, outer corner",
                "right eye, inner corner",
                "left eye, outer corner",
                "left eye, inner corner",
                "nose base",
            ),
            left_eye=(2, 3),
            right_eye=(0, 1),
        ),
        LandmarkScheme(
            "arcface5",
            ("left eye", "right eye", "nose tip", "left mouth corner", "right mouth corner"),
            left_eye=(0,),
            right_eye=(1,),
        ),
        LandmarkScheme(
            "blazeface6",
            ("left eye", "right eye", "nose tip", "middle of the mouth", "left ear", "right ear"),
            left_eye=(0,),
            right_eye=(1,),
        ),
    )
}


def landmark_scheme(name: str) -> LandmarkScheme:
    """The scheme called `name`; UsageError when there is none."""
    if name not in SCHEMES:
        raise UsageError(f"landmark scheme {name!r} is not known: use one of {', '.join(sorted(SCHEMES))}")
    return SCHEMES[name]


@dataclass(frozen=True, eq=False)
class Template:
    """Where an embedder wants the landmarks to lie in its input.

    Args:
        name: as cards have it.
        scheme: the landmark scheme of `points`.
        size: S, side of the chip in px.
        points: float64 [K, 2] in the chip, px, centers at .5.
        like_dlib: resample as dlib's extract_image_chips does, quirks included, instead of plainly.
    """

    name: str
    scheme: str
    size: int
    points: np.ndarray
    like_dlib: bool


# dlib's mean face (get_face_chip_details in dlib/image_transforms/interpolation.h) in units of the
# face's width, padded by a quarter on each side and scaled to 150 px; in dlib's own pixel convention.
_DLIB5 = np.array(
    [
        (0.8595674595992, 0.2134981538014),
        (0.6460604764104, 0.2289674387677),
        (0.1205750620789, 0.2137274526848),
        (0.3340850613712, 0.2290642403242),
        (0.4901123135679, 0.6277975316475),
    ]
)
# The five points that ArcFace and its descendants align to at 112 px, in OpenCV's pixel convention.
_ARCFACE5 = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
# FaceNet cuts out MTCNN's box with a margin and does not turn it: there is no template to be found anywhere. This is
# where MTCNN's landmarks lie in MTCNN's box on average (its last network over 600 photographs of LFW, mirrored halves
# averaged), in units of the box, which with FaceNet's margin covers 128 of 160 px. Chips are turned upright.
_FACENET5 = np.array([(0.274, 0.386), (0.726, 0.386), (0.5, 0.583), (0.2995, 0.755), (0.7005, 0.755)])
# The whole head for networks that were not made for faces: ArcFace's points, eyes a quarter of the side apart.
_WIDE_SCALE, _WIDE_EYES = 56 / (73.5318 - 38.2946), np.array([112.0, 105.0])
_WIDE5 = (
    points_from_dlib(_ARCFACE5) - points_from_dlib(_ARCFACE5[:2]).mean(axis=0)
) * _WIDE_SCALE + _WIDE_EYES

TEMPLATES = {
    template.name: template
    for template in (
        Template("dlib_150", "dlib5", 150, points_from_dlib((_DLIB5 + 0.25) / 1.5 * 150), like_dlib=True),
        Template("arcface_112", "arcface5", 112, points_from_dlib(_ARCFACE5), like_dlib=False),
        Template("facenet_160", "arcface5", 160, 16 + 128 * _FACENET5, like_dlib=False),
        Template("wide_224", "arcface5", 224, _WIDE5, like_dlib=False),
    )
}


_LEAST_SCALE = 1e-6
"""Chip pixels for one of the image: no photograph is a million times as large as a chip."""


def chip_template(name: str) -> Template:
    """The template called `name`; UsageError when there is none."""
    if name not in TEMPLATES:
        raise UsageError(f"chip template {name!r} is not known: use one of {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]


def check_scheme(template: str, scheme: str, *, embedder: str = "the embedder") -> None:
    """Refuse landmarks of another scheme than a template is made for.

    Args:
        template: name of the template the embedder's chips are aligned to.
        scheme: what the landmarker or detector produces, or a faces table holds.
        embedder: name for the message.

    Raises:
        MismatchError: the schemes differ; five eye corners and five face parts are both five points.
    """
    needed = chip_template(template).scheme
    if scheme != needed:
        raise MismatchError(
            f"{embedder} needs landmarks of scheme {needed!r} (template {template}), but these are "
            f"{scheme!r}: choose a landmarker that gives {needed!r}, or an embedder for {scheme!r}"
        )


def eye_centers(landmarks: np.ndarray, scheme: str) -> tuple[np.ndarray, np.ndarray]:
    """Centers of the eyes on the left and on the right of the image.

    Args:
        landmarks: [N, K, 2] px.
        scheme: name of their landmark scheme.

    Returns:
        Two float64 [N, 2].

    Raises:
        UsageError: no such scheme.
        MismatchError: another number of landmarks than the scheme has.
        DataError: a landmark is not a finite number.
    """
    eyes = landmark_scheme(scheme)
    landmarks = _checked(landmarks, len(eyes.points), scheme)
    return landmarks[:, eyes.left_eye].mean(axis=1), landmarks[:, eyes.right_eye].mean(axis=1)


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scale, turn and shift that bring points onto others with the least squared error.

    In the plane the least-squares similarity without reflection (Umeyama 1991) is a linear fit over the
    complex
    numbers: target ≈ turn · source + shift.

    Args:
        source: [K, 2] or [N, K, 2].
        target: [N, K, 2].

    Returns:
        turn: complex128 [N], its modulus is the scale and its argument the rotation (y down: clockwise);
        0 when all source points, or all target points, coincide.
        shift: complex128 [N].
    """
    a, b = _complex(source), _complex(target)
    a_mean, b_mean = a.mean(axis=-1, keepdims=True), b.mean(axis=-1, keepdims=True)
    spread = (np.abs(a - a_mean) ** 2).sum(axis=-1)
    product = ((a - a_mean).conj() * (b - b_mean)).sum(axis=-1)
    turn = product / np.where(spread > 0, spread, 1)
    shift: np.ndarray = b_mean[..., 0] - turn * a_mean[..., 0]
    return turn, shift


def placement(target: Template, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a template's chips lie in their images: the similarity from chip to image, pixels from center to center.

    A face that is turned away does not fit, and then it matters where the error is least: dlib measures it in the
    image, ArcFace and what follows it in the chip, which shows more of such a face. Networks were trained on either.

    Args:
        target: the template.
        points: [N, K, 2] landmarks, px of the image.

    Returns:
        turn, shift: complex128 [N], as of `similarity`.
    """
    chip, image = points_to_dlib(target.points), points_to_dlib(points)
    turn, shift = similarity(chip, image)
    if target.like_dlib:
        return turn, shift
    into, moved = similarity(image, np.broadcast_to(chip, image.shape))
    # Landmarks in one spot, or as if mirrored about it, have no such fit: those chips show what the other one shows.
    fits = np.abs(into) > _LEAST_SCALE
    into = np.where(fits, into, 1)
    return np.where(fits, 1 / into, turn), np.where(fits, -moved / into, shift)


def extract_chips(
    images: Sequence[np.ndarray],
    landmarks: Sequence[np.ndarray],
    template: str,
    *,
    pool: Executor | None = None,
) -> np.ndarray:
    """Cut every face out of its image, aligned to a template.

    Args:
        images: uint8 [H, W, 3].
        landmarks: [n, K, 2] px per image, in the template's scheme (see `check_scheme`).
        template: name of the template that says where the landmarks go.
        pool: threads to spread the faces over; the resampling does not hold the interpreter lock.

    Returns:
        uint8 [N, S, S, 3], the faces of all images in order; black where a chip reaches outside its image.

    Raises:
        MismatchError: another number of landmarks than the template has.
        DataError: a landmark is not a finite number.
    """
    target = chip_template(template)
    chips = np.zeros((sum(map(len, landmarks)), target.size, target.size, 3), np.uint8)
    if not len(chips):
        return chips
    owner, plan = _plan(images, landmarks, target)
    jobs = ((images[owner[i]], plan, i, chips[i]) for i in range(len(chips)))
    run = map if pool is None else pool.map
    for _ in run(_cut, jobs):
        pass
    return chips


def chips_on_device(
    images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray], template: str, device: torch.device
) -> torch.Tensor:
    """As `extract_chips`, sampled on `device` and left there: uint8 [N, S, S, 3].

    Equal to it but for the rounding of single gray levels. On a CPU it is the slower of the two.

    Raises:
        UsageError: a template that is cut as dlib does, which works on one face at a time.
        MismatchError, DataError: as `extract_chips`.
    """
    target = chip_template(template)
    if target.like_dlib:
        raise UsageError(
            f"chips of the template {template!r} are cut as dlib does, face by face: extract_chips"
        )
    if not any(map(len, landmarks)):
        return torch.zeros(0, target.size, target.size, 3, dtype=torch.uint8, device=device)
    owner, plan = _plan(images, landmarks, target)
    return cut_all(images, owner, plan, device)


def _plan(
    images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray], target: Template
) -> tuple[np.ndarray, warp.Plan]:
    """The image of each face, int [N], and how to cut its chip; there is at least one face."""
    points = np.concatenate([_checked(p, len(target.points), target.scheme) for p in landmarks if len(p)])
    owner = np.repeat(np.arange(len(images)), [len(points) for points in landmarks])
    shapes = np.array([image.shape[:2] for image in images])[owner]
    turn, shift = placement(target, points)
    plan = warp.plan_like_dlib if target.like_dlib else warp.plan
    return owner, plan(turn, shift, target.size, shapes)


def _cut(job: tuple[np.ndarray, warp.Plan, int, np.ndarray]) -> None:
    image, plan, i, out = job
    warp.cut(image, plan, i, out)


def _complex(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float64)
    return points[..., 0] + 1j * points[..., 1]


def _checked(landmarks: np.ndarray, num_points: int, scheme: str) -> np.ndarray:
    landmarks = np.asarray(landmarks, np.float64)
    if landmarks.ndim != 3 or landmarks.shape[1:] != (num_points, 2):
        raise MismatchError(
            f"landmarks of shape {landmarks.shape} are not of scheme {scheme!r}, whose shape is "
            f"[n, {num_points}, 2]: choose a landmarker of that scheme"
        )
    if not np.isfinite(landmarks).all():
        face = int(np.flatnonzero(~np.isfinite(landmarks).all(axis=(1, 2)))[0])
        raise DataError(f"landmarks of face {face} are not finite: {landmarks[face].tolist()}")
    return landmarks
