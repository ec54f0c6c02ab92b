"""Head pose: heads turned in space and projected, against what comes back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from facescale.errors import DataError, MismatchError
from facescale.vision.pose import head_pose

# Vertices of MediaPipe's canonical face model, x right of the image, y up, z to the viewer.
OUTER, INNER = (4.445859, 2.663991, 3.173422), (1.856432, 2.585245, 3.757904)
NOSE_BASE, NOSE_TIP = (0, -2.089024, 6.058267), (0, -1.126865, 7.475604)
MOUTH = (2.456206, -4.342621, 4.283884)


def mirrored(point: tuple[float, float, float]) -> np.ndarray:
    return np.array(point) * (-1, 1, 1)


EYE = (np.array(OUTER) + INNER) / 2
HEADS = {
    "dlib5": np.array([OUTER, INNER, mirrored(OUTER), mirrored(INNER), NOSE_BASE]),
    "arcface5": np.array([mirrored(EYE), EYE, NOSE_TIP, mirrored(MOUTH), MOUTH]),
}


def seen(scheme: str, yaw: float, pitch: float, roll: float = 0, scale: float = 9.0) -> np.ndarray:
    """Landmarks [1, 5, 2] of a head that nods (down is positive), then turns, then rolls clockwise as seen."""
    turn = Rotation.from_euler("xyz", [pitch, yaw, -roll], degrees=True)  # about fixed axes, in this order
    x, y, _ = turn.apply(HEADS[scheme]).T
    return np.stack([x, -y], axis=1)[None] * scale + (200, 150)


@given(st.floats(-75, 75), st.floats(-60, 60), st.floats(-170, 170), st.floats(0.5, 100))
def test_a_head_with_a_mouth_is_recovered(yaw: float, pitch: float, roll: float, scale: float) -> None:
    (found_yaw,), (found_pitch,) = head_pose(seen("arcface5", yaw, pitch, roll, scale), "arcface5")
    assert found_yaw == pytest.approx(yaw, abs=0.01)
    assert found_pitch == pytest.approx(pitch, abs=0.01)


@given(st.floats(-75, 75), st.floats(-170, 170))
def test_without_a_mouth_yaw_is_exact_at_pitch_0_and_pitch_unknown(yaw: float, roll: float) -> None:
    found_yaw, found_pitch = head_pose(seen("dlib5", yaw, 0, roll), "dlib5")
    assert found_yaw[0] == pytest.approx(yaw, abs=0.01)
    assert np.isnan(found_pitch[0])


@pytest.mark.parametrize(("pitch", "expected"), [(20, 10.4), (-20, 42.0)])
def test_without_a_mouth_a_nod_disturbs_yaw_as_documented(pitch: float, expected: float) -> None:
    (yaw,), _ = head_pose(seen("dlib5", 30, pitch), "dlib5")
    assert yaw == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("scheme", HEADS)
def test_signs(scheme: str) -> None:
    """The nose moves right when the face looks right, and a mirrored photograph shows the opposite turn."""
    points = seen(scheme, 25, 0)
    assert head_pose(points, scheme)[0][0] > 20
    order = {"dlib5": [2, 3, 0, 1, 4], "arcface5": [1, 0, 2, 4, 3]}[scheme]
    mirror = (points * (-1, 1) + (400, 0))[:, order]
    assert head_pose(mirror, scheme)[0][0] == pytest.approx(-head_pose(points, scheme)[0][0], abs=1e-3)


@pytest.mark.parametrize("scheme", HEADS)
def test_no_faces_and_eyes_that_coincide(scheme: str) -> None:
    assert [len(angle) for angle in head_pose(np.zeros((0, 5, 2)), scheme)] == [0, 0]
    points = np.concatenate([np.full((1, 5, 2), 7.0), seen(scheme, 10, 0)])
    yaw, pitch = head_pose(points, scheme)
    assert np.isnan([yaw[0], pitch[0]]).all() and yaw[1] == pytest.approx(10, abs=0.01)
    assert yaw.dtype == pitch.dtype == np.float32


def test_wrong_landmarks_are_refused() -> None:
    with pytest.raises(MismatchError):
        head_pose(np.zeros((1, 4, 2)), "dlib5")
    with pytest.raises(DataError):
        head_pose(np.full((1, 5, 2), np.nan), "arcface5")
