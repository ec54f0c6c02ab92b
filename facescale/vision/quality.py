"""Stored views of faces in, quality components and one score of each face out: the scorer `iso_v1`.

Called by the extract stage through facescale.vision.registry. Components are those of ISO/IEC 29794-5:2025 as far as
five landmarks and pixels tell them; docs/QUALITY.md has the table of formulas and what they were fitted on. Pixels are
measured on a luminance chip of fixed geometry (eyes level, 36 px apart), inside an oval from brows to chin, and only
where that is inside the image. So a photograph at twice the size gets the same values, as long as its faces are
no smaller than the chip; faces below that lose detail, and quality with it.

Shape legend: N faces, K landmarks, H and W of a chip's measured window.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.special import expit

from facescale.vision.crops import REACH, face_geometry
from facescale.vision.pose import head_pose
from facescale.vision.protocols import FaceQuality, FaceViews

NAME = "iso_v1"

EYES_PX = 36
"""Inter-eye distance on the chip: about that of ArcFace's template, two thirds of dlib's."""
_SIDE_PX = round(2 * REACH * EYES_PX)
# The oval, in inter-eye distances from the eyes' midpoint: 0.6 above to 1.6 below, 0.9 to each side.
_OVAL_DOWN, _OVAL_HALF_WIDTH, _OVAL_HALF_HEIGHT = 0.5, 0.9, 1.1
_SMOOTHING, _WINDOW = 0.8, 2.5
"""Deviations of the smoothing before second derivatives and of the structure tensor's window, px of the chip."""
_BORDER = 9
"""Pixels around the oval that these filters look at."""
_INSIDE_PX = 2.5
"""A pixel this near to the image's border is not measured: the filters would see the black beyond."""
_MIN_SEEN = 0.05
"""Share of the oval; with less of it inside the image, pixels are not measured."""
_FACES_AT_ONCE = 64  # 64 windows in ten float32 maps are 20 MB

# Second derivatives across, down and along the diagonals, and their deviation over the luminance's in a face in focus.
_DIRECTIONS = (
    (np.array([[0, 0, 0], [1, -2, 1], [0, 0, 0]], np.float32), 0.095),
    (np.array([[0, 1, 0], [0, -2, 0], [0, 1, 0]], np.float32), 0.153),
    (np.array([[0.5, 0, 0], [0, -1, 0], [0, 0, 0.5]], np.float32), 0.111),
    (np.array([[0, 0, 0.5], [0, -1, 0], [0.5, 0, 0]], np.float32), 0.111),
)

# (x0, w) of 1 / (1 + exp((x0 - x) / w)), the standard's form for turning a measure into a quality value.
DETAIL = (-1.3, 0.28)
STRENGTH = (-2.85, 0.24)
COHERENCE = (-1.35, 0.2)
CONTRAST = (0.017, 0.017)
DARK, BRIGHT = (0.01, 0.005), (0.93, 0.05)
EYES = (6.5, 3.0)
YAW, PITCH = (60.0, 8.0), (45.0, 8.0)  # of the absolute angle, and what is left falls with it


class IsoQuality:
    """The scorer `iso_v1`; see the module's head and docs/QUALITY.md."""

    name = NAME

    def score(self, faces: FaceViews) -> FaceQuality:
        """Measure faces; see facescale.vision.protocols.QualityScorer."""
        eyes_px, roll_deg = face_geometry(faces.landmarks, faces.scheme)
        yaw_deg, pitch_deg = head_pose(faces.landmarks, faces.scheme)
        pixels = [
            _measure(faces.slice(start, start + _FACES_AT_ONCE))
            for start in range(0, len(faces), _FACES_AT_ONCE)
        ]
        sharpness, brightness, contrast, truncation = (
            np.concatenate(pixels, axis=1) if pixels else np.zeros((4, 0), np.float32)
        )
        return FaceQuality(
            sharpness=sharpness,
            brightness=brightness,
            contrast=contrast,
            yaw_deg=yaw_deg,
            pitch_deg=pitch_deg,
            truncation=truncation,
            quality=combine(
                sharpness=sharpness,
                brightness=brightness,
                contrast=contrast,
                yaw_deg=yaw_deg,
                pitch_deg=pitch_deg,
                roll_deg=roll_deg,
                truncation=truncation,
                inter_eye_px=eyes_px,
            ),
        )


def combine(
    *,
    sharpness: np.ndarray,
    brightness: np.ndarray,
    contrast: np.ndarray,
    yaw_deg: np.ndarray,
    pitch_deg: np.ndarray,
    roll_deg: np.ndarray,
    truncation: np.ndarray,
    inter_eye_px: np.ndarray,
) -> np.ndarray:
    """One score from the components: the product of what each leaves.

    It never falls when sharpness, contrast or inter_eye_px rise, or when an angle or truncation nears 0; in brightness
    it rises up to the middle and falls beyond. An unknown angle counts as 0; without measured pixels the score is 0.

    Args:
        sharpness: [N] in 0..1, NaN where not measured.
        brightness: [N] in 0..1, NaN likewise.
        contrast: [N] in 0..1, NaN likewise.
        yaw_deg: [N], NaN where unknown.
        pitch_deg: [N], NaN where unknown.
        roll_deg: [N] in -180..180.
        truncation: [N] in 0..1.
        inter_eye_px: [N], at least 0.

    Returns:
        float32 [N] in 0..1.
    """
    yaw, pitch = (np.where(np.isnan(angle), 0, np.abs(angle)) for angle in (yaw_deg, pitch_deg))
    score = (
        np.asarray(sharpness, np.float64)
        * sigmoid(contrast, *CONTRAST)
        * sigmoid(brightness, *DARK)
        * (1 - sigmoid(brightness, *BRIGHT))
        * sigmoid(inter_eye_px, *EYES)
        * (1 - sigmoid(yaw, *YAW))
        * (1 - sigmoid(pitch, *PITCH))
        * np.cos(np.radians(roll_deg) / 2) ** 2
        * (1 - np.asarray(truncation, np.float64)) ** 1.5
    )
    return np.where(np.isnan(score), 0, score).astype(np.float32)


def sigmoid(x: np.ndarray, x0: float, w: float) -> np.ndarray:
    """1 / (1 + exp((x0 - x) / w)), float64; 1/2 at x0."""
    curve: np.ndarray = expit((np.asarray(x, np.float64) - x0) / w)
    return curve


def _oval() -> tuple[np.ndarray, slice, slice]:
    """Which pixels of the window lie in the oval, bool [H, W], and the window's rows and columns on the chip."""
    axis = (np.arange(_SIDE_PX) + 0.5 - _SIDE_PX / 2) / EYES_PX
    inside = (axis / _OVAL_HALF_WIDTH) ** 2 + ((axis[:, None] - _OVAL_DOWN) / _OVAL_HALF_HEIGHT) ** 2 <= 1
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    window = [slice(int(at[0]) - _BORDER, int(at[-1]) + 1 + _BORDER) for at in (rows, columns)]
    return inside[window[0], window[1]], window[0], window[1]


_OVAL, _ROWS, _COLUMNS = _oval()
_HEIGHT, _WIDTH = _OVAL.shape
_OVAL_AT = np.flatnonzero(_OVAL)


def _measure(faces: FaceViews) -> np.ndarray:
    """sharpness, brightness, contrast and truncation, float32 [4, N]."""
    pixels = np.stack([_luminance(crop) for crop in faces.crops])
    inside, seen = np.ones(pixels.shape, bool), np.ones(len(faces))
    y, x = np.arange(_ROWS.start, _ROWS.stop), np.arange(_COLUMNS.start, _COLUMNS.stop)
    cut = _depth(faces, y[[0, -1]], x[[0, -1]]).min(axis=(1, 2)) <= _INSIDE_PX
    if cut.any():
        depth = _depth(faces.take(cut), y, x)
        inside[cut] = depth > _INSIDE_PX
        seen[cut] = _in_oval(depth > 0).mean(axis=1)
    weight = _in_oval(inside).astype(np.float32)
    enough = weight.mean(axis=1) > _MIN_SEEN
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1)
    mean, deviation = _moments(_in_oval(pixels), weight)
    strength, coherence = _structure(pixels, inside, deviation, weight)
    sharpness = (
        sigmoid(_detail(pixels, deviation, weight), *DETAIL)
        * sigmoid(strength, *STRENGTH)
        * sigmoid(coherence, *COHERENCE)
    )
    # A mean of float32 may pass the largest value by its last bit.
    values = np.where(enough, np.clip([sharpness, mean / 255, deviation / 127.5], 0, 1), np.nan)
    components: np.ndarray = np.concatenate([values, 1 - seen[None]]).astype(np.float32)
    return components


def _luminance(crop: np.ndarray) -> np.ndarray:
    """The window of one face's chip: float32 [H, W], luma of ITU-R BT.601, 0..255."""
    luma = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    # A crop is 2 REACH inter-eye distances wide (in profile those of a frontal face), so its whole is the chip.
    how = cv2.INTER_AREA if len(luma) > _SIDE_PX else cv2.INTER_CUBIC
    chip = cv2.resize(luma, (_SIDE_PX, _SIDE_PX), interpolation=how)
    window: np.ndarray = chip[_ROWS, _COLUMNS].astype(np.float32)
    return window


def _depth(faces: FaceViews, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """How far inside its image each of some pixels of the chip lies, in px of the chip, negative outside; [N, H, W]."""
    to_crop = np.array([len(crop) for crop in faces.crops])[:, None] / _SIDE_PX
    turn, shift = faces.matrices[:, :, :2], faces.matrices[:, :, 2]
    # A crop's matrix turns and scales: its inverse is the transpose over the square of the scale.
    scale = np.hypot(turn[:, 0, 0], turn[:, 0, 1])[:, None]
    y = ((rows + 0.5) * to_crop - shift[:, 1:]) / scale**2
    x = ((columns + 0.5) * to_crop - shift[:, :1]) / scale**2
    px = (to_crop / scale)[:, :, None]  # px of the image on a px of the chip
    inside = []
    for axis in (0, 1):
        at = (turn[:, 0, axis, None] * x)[:, None, :] + (turn[:, 1, axis, None] * y)[:, :, None]
        inside.append(np.minimum(at, faces.image_sizes[:, 1 - axis, None, None] - at))
    depth: np.ndarray = np.minimum(*inside) / px
    return depth


def _moments(values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of [N, P] under weights that sum to 1; float32 [N] each."""
    mean = (values * weight).sum(axis=1)
    return mean, np.sqrt(((values - mean[:, None]) ** 2 * weight).sum(axis=1))


def _detail(pixels: np.ndarray, deviation: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Log of the second derivative's deviation over the luminance's, in the direction that has least; float32 [N].

    The deviation of the Laplacian is the common measure of focus (Pech-Pacheco et al. 2000). Relative to that of
    luminance it does not depend on gain; smoothed first, it does not take noise for detail so easily; and taken by
    direction, each relative to what is usual in a face, it sees the blur of motion, which leaves one direction sharp.
    """
    tall = cv2.GaussianBlur(_tall(pixels), (0, 0), _SMOOTHING)
    directions = [
        _moments(_in_oval(cv2.filter2D(tall, cv2.CV_32F, kernel)), weight)[1] / usual
        for kernel, usual in _DIRECTIONS
    ]
    # The constants are fractions of a gray level: a flat chip has neither detail nor a ratio.
    ratio: np.ndarray = np.log((np.min(directions, axis=0) + 1) / (deviation + 2))
    return ratio


def _structure(
    pixels: np.ndarray, inside: np.ndarray, deviation: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Strength and coherence of the gradients, both as logs; float32 [N] each.

    With the eigenvalues a² ≥ b² of the structure tensor, strength is the mean of a (a - b) / (a + b) over the deviation
    of luminance, the metric Q of Zhu & Milanfar (2010): edges of a face have one direction, noise and the ringing of
    strong compression have none, and blur weakens what there is, so it falls with each. Coherence is the sum of
    a² - b² over that of a² + b², which tells heavy noise from edges.
    """
    across, down = (
        cv2.Sobel(_tall(pixels), cv2.CV_32F, *order, ksize=1, scale=0.5) for order in ((1, 0), (0, 1))
    )
    across *= _tall(inside)
    down *= _tall(inside)
    xx, xy, yy = (
        _in_oval(cv2.GaussianBlur(product, (_BORDER * 2 - 1,) * 2, _WINDOW))
        for product in (across * across, across * down, down * down)
    )
    middle, spread = (xx + yy) / 2, np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    strong, weak = np.sqrt(middle + spread), np.sqrt(np.maximum(middle - spread, 0))
    directed = strong * (strong - weak) / (strong + weak + 1e-3)
    strength = np.log(((directed * weight).sum(axis=1) + 0.05) / (deviation + 2))
    coherence = np.log(((spread * weight).sum(axis=1) + 1e-3) / ((middle * weight).sum(axis=1) + 1e-3))
    return strength, coherence


def _tall(maps: np.ndarray) -> np.ndarray:
    """[N, H, W] as [N · H, W]: one call filters all, and what one does to the border of the next is not in the oval."""
    return maps.reshape(-1, _WIDTH)


def _in_oval(maps: np.ndarray) -> np.ndarray:
    """The values in the oval of each face, [N, P], of [N, H, W] or [N · H, W]."""
    # In C order, so that each face is summed in the same order however many there are.
    return np.take(maps.reshape(-1, _HEIGHT * _WIDTH), _OVAL_AT, axis=1)
