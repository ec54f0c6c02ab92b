"""Landmarks in, head pose out: yaw and pitch from five points and a mean face, in closed form.

Called by facescale.vision.quality. The head is taken for rigid and far away (weak perspective), and the model is the
mean face of MediaPipe's canonical face model (Apache License 2.0), in cm. A head is first pitched, then yawed, then
rolled; so the line through the eyes shows the roll alone, and once that is undone a point y below and z before the
eyes' midpoint is seen, to one unknown scale,

    (z cos pitch - y sin pitch) sin yaw across,  y cos pitch + z sin pitch down,  and the eyes w cos yaw apart.

The scale cancels in how far nose and mouth are down, which leaves the pitch, and then the yaw. A scheme without a mouth
has no second distance to compare with, and noses differ by as much as 8 degrees of pitch would make. So the pitch is
unknown then, and yaw is solved at pitch 0: right for a level head, and for one that turns by 30 degrees it comes out
as 10 to 42 once that nods by 20.

Shape legend: N faces, K landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from facescale.vision.align import eye_centers


@dataclass(frozen=True)
class HeadModel:
    """Where a scheme's landmarks are on the mean face, cm from the midpoint of the eyes; y down, z to the viewer.

    Args:
        eyes: distance of the eye centers.
        nose: index of the landmark on the nose.
        nose_yz: its y and z; x is 0.
        mouth: indices of landmarks whose mean is the mouth's middle; empty for schemes without.
        mouth_yz: y and z of that middle.
    """

    eyes: float
    nose: int
    nose_yz: tuple[float, float]
    mouth: tuple[int, ...] = ()
    mouth_yz: tuple[float, float] = (0.0, 0.0)


# Vertices 33, 133, 362, 263 (corners of the eyes), 2 (base of the nose), 1 (its tip), 61, 291 (corners of the mouth).
_EYES_CM, _EYES_Y, _EYES_Z = 6.302291, 2.624628, 3.465663
HEAD_MODELS = {
    "dlib5": HeadModel(_EYES_CM, 4, (_EYES_Y + 2.089024, 6.058267 - _EYES_Z)),
    "arcface5": HeadModel(
        _EYES_CM,
        2,
        (_EYES_Y + 1.126865, 7.475604 - _EYES_Z),
        (3, 4),
        (_EYES_Y + 4.342621, 4.283884 - _EYES_Z),
    ),
}
"""By landmark scheme."""


def head_pose(landmarks: np.ndarray, scheme: str) -> tuple[np.ndarray, np.ndarray]:
    """Yaw and pitch of each head.

    Args:
        landmarks: [N, K, 2] px.
        scheme: name of their landmark scheme.

    Returns:
        yaw_deg: float32 [N] in -90..90, positive when the face looks to the right of the image.
        pitch_deg: float32 [N] in -90..90, positive when it looks down; NaN for a scheme without a mouth.
        Both are NaN where the eyes coincide, and for a scheme without a head model.

    Raises:
        UsageError, MismatchError, DataError: as facescale.vision.align.eye_centers.
    """
    left, right = eye_centers(landmarks, scheme)
    model = HEAD_MODELS.get(scheme)
    eyes_px = np.hypot(*(right - left).T)
    unknown = np.full(len(landmarks), np.nan, np.float32)
    if model is None:
        return unknown, unknown.copy()
    known = eyes_px > 0
    axis = np.where(known[:, None], (right - left) / np.where(known, eyes_px, 1)[:, None], (1.0, 0.0))
    points, middle = np.asarray(landmarks, np.float64), (left + right) / 2
    across, down = _in_frame(points[:, model.nose] - middle, axis)
    y, z = model.nose_yz
    if not model.mouth:
        yaw = np.arctan2(across * model.eyes, eyes_px * z)
        return np.where(known, np.degrees(yaw), np.nan).astype(np.float32), unknown
    mouth_across, mouth_down = _in_frame(points[:, model.mouth].mean(axis=1) - middle, axis)
    mouth_y, mouth_z = model.mouth_yz
    # down / mouth_down = (y + z t) / (mouth_y + mouth_z t), solved for t = tan pitch
    pitch = np.arctan2(mouth_y * down - y * mouth_down, z * mouth_down - mouth_z * down)
    pitch -= np.pi * np.rint(pitch / np.pi)
    before = z * np.cos(pitch) - y * np.sin(pitch)
    mouth_before = mouth_z * np.cos(pitch) - mouth_y * np.sin(pitch)
    # Least squares of nose and mouth: of a head that looks far up or down one of them is not before the eyes.
    sine = (across * before + mouth_across * mouth_before) / (before**2 + mouth_before**2)
    yaw = np.arctan2(sine * model.eyes, eyes_px)
    angles = [np.where(known, np.degrees(angle), np.nan).astype(np.float32) for angle in (yaw, pitch)]
    return angles[0], angles[1]


def _in_frame(points: np.ndarray, axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of [N, 2] points along [N, 2] unit vectors, and at right angles to them (down in an upright face)."""
    across = points[:, 0] * axis[:, 0] + points[:, 1] * axis[:, 1]
    down = points[:, 1] * axis[:, 0] - points[:, 0] * axis[:, 1]
    return across, down
