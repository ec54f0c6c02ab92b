"""Images and landmarks in, wide aligned crops out; stored crops in, chips for any embedder out.

A crop is what the lake keeps of a face: a view wide enough for every embedder's template, turned so that the
eyes are level, from which another model can be run without the photograph. Called by the extract stage
(`wide_crops`, `encode_jpeg`, `face_geometry`) and the embed stage (`decode_jpeg`, `chips_from_crops`).

Shape legend: N faces of a batch, n faces of one image, K landmarks, S chip side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from facescale.errors import CorruptError, DataError
from facescale.vision.align import TEMPLATES, extract_chips, eye_centers, placement

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

MAX_SIDE_PX = 256
REACH = 2.25
"""Inter-eye distances from the eyes' midpoint to each edge; 2.2 are promised, the rest feeds the resampling."""
JPEG_QUALITY = 90
"""With colors at half resolution this is 8.5 kB a crop on LFW. Between dlib_resnet's embeddings of stored crop and
source pixels the cosine is 0.9996 in the median (1st percentile 0.9986); 95 costs 38 % more for 0.9998."""
PROFILE = 1.15
"""Of a thousand faces of photographs 49 are so much larger by all of ArcFace's landmarks than by their eyes."""
_MIN_EYES_PX = 1.0  # landmarks of tiny faces may coincide


def face_geometry(landmarks: np.ndarray, scheme: str) -> tuple[np.ndarray, np.ndarray]:
    """Size and turn of each face.

    Args:
        landmarks: [N, K, 2] px.
        scheme: name of their landmark scheme.

    Returns:
        inter_eye_px: float32 [N], distance of the eye centers; 0 when they coincide.
        roll_deg: float32 [N] in [-180, 180], 0 when the eyes are level or coincide, positive when the eye on
            the right of the image is the lower one (clockwise as seen).
    """
    left, right = eye_centers(landmarks, scheme)
    across, down = (right - left).T
    return np.hypot(across, down).astype(np.float32), np.degrees(np.arctan2(down, across)).astype(np.float32)


def wide_crops(
    image: np.ndarray, landmarks: np.ndarray, scheme: str, *, pool: Executor | None = None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Cut the view of each face that the lake keeps.

    The eyes are level and their midpoint is the crop's center; each edge is at least 2.2 inter-eye distances away from
    it. In profile the eyes coincide and tell neither size nor turn: where all landmarks together say that the face
    is larger by PROFILE, they do (see `_axis`). A crop is never enlarged; of large faces it is reduced to
    MAX_SIDE_PX, each of its pixels the mean of what it covers. Outside the image it is black: mirrored or repeated
    pixels would look like a face.

    Args:
        image: uint8 [H, W, 3] RGB.
        landmarks: [n, K, 2] px.
        scheme: name of their landmark scheme.
        pool: threads to spread the faces over; OpenCV does not hold the interpreter lock.

    Returns:
        crops: n arrays uint8 [side, side, 3], side at most MAX_SIDE_PX.
        matrices: float64 [n, 2, 3], px of the image → px of the crop, both with pixel centers at .5.
    """
    left, right = eye_centers(landmarks, scheme)
    axis = _axis(left, right, landmarks, scheme)
    eyes_px = np.hypot(axis[:, 0], axis[:, 1])
    cos, sin = np.where(eyes_px[:, None] > 0, axis / np.maximum(eyes_px, 1e-9)[:, None], (1.0, 0.0)).T
    wanted_px = 2 * REACH * np.maximum(eyes_px, _MIN_EYES_PX)
    sides = np.minimum(np.ceil(wanted_px), MAX_SIDE_PX).astype(np.int64)
    scale = np.minimum(MAX_SIDE_PX / wanted_px, 1.0)
    turn = scale[:, None, None] * np.stack([cos, sin, -sin, cos], axis=-1).reshape(-1, 2, 2)
    shift = sides[:, None] / 2 - (turn @ ((left + right) / 2)[..., None])[..., 0]
    matrices = np.concatenate([turn, shift[..., None]], axis=2)
    jobs = ((image, matrix, side) for matrix, side in zip(matrices, sides.tolist(), strict=True))
    return list((map if pool is None else pool.map)(_cut, jobs)), matrices


def chips_from_crops(
    crops: Sequence[np.ndarray],
    matrices: np.ndarray,
    landmarks: np.ndarray,
    template: str,
    *,
    pool: Executor | None = None,
) -> np.ndarray:
    """Chips of stored crops, as `extract_chips` would cut them from the photographs.

    Args:
        crops: N arrays uint8 [side, side, 3] RGB, as decoded.
        matrices: [N, 2, 3], px of the image → px of the crop.
        landmarks: [N, K, 2] px of the image, in the template's scheme.
        template: name of the template.
        pool: see `extract_chips`.

    Returns:
        uint8 [N, S, S, 3].

    Raises:
        MismatchError: another number of landmarks than the template has.
    """
    inside = np.einsum("nij,nkj->nki", matrices[:, :, :2], landmarks) + matrices[:, None, :, 2]
    return extract_chips(crops, list(inside[:, None]), template, pool=pool)


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """JPEG bytes of uint8 [H, W, 3] RGB pixels, at JPEG_QUALITY, colors at half resolution."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise DataError(f"OpenCV cannot encode a crop of {pixels.shape[1]} x {pixels.shape[0]} px as JPEG")
    return bytes(data)


def decode_jpeg(data: bytes) -> np.ndarray:
    """Pixels, uint8 [H, W, 3] RGB, of a stored crop.

    Raises:
        CorruptError: the bytes are no JPEG.
    """
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if pixels is None:
        raise CorruptError(
            f"a stored crop of {len(data)} bytes is not a JPEG: run `facescale lake verify`, then extract again"
        )
    rgb: np.ndarray = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return rgb


def _axis(left: np.ndarray, right: np.ndarray, landmarks: np.ndarray, scheme: str) -> np.ndarray:
    """From the left eye to the right one, float64 [n, 2] px; in profile where a frontal face would have them.

    That is how a template of their scheme is laid over the landmarks (facescale.vision.align.placement), where there
    is one.
    """
    axis: np.ndarray = right - left
    template = next((template for template in TEMPLATES.values() if template.scheme == scheme), None)
    if template is None or not len(landmarks):
        return axis
    turn, _ = placement(template, landmarks)
    eyes = [center[0] for center in eye_centers(template.points[None], scheme)]
    across, down = eyes[1] - eyes[0]
    fitted = turn * (across + 1j * down)
    is_profile = np.abs(fitted) > PROFILE * np.hypot(axis[:, 0], axis[:, 1])
    return np.where(is_profile[:, None], np.stack([fitted.real, fitted.imag], axis=1), axis)


def _cut(job: tuple[np.ndarray, np.ndarray, int]) -> np.ndarray:
    """One crop: uint8 [side, side, 3]."""
    image, matrix, side = job
    scale = np.hypot(matrix[0, 0], matrix[0, 1])
    to_image = matrix[:, :2].T / scale**2
    corners = (np.array([(0, 0), (side, 0), (0, side), (side, side)]) - matrix[:, 2]) @ to_image.T
    margin = 3 / scale  # the cubic filter looks two pixels around
    size = (image.shape[1], image.shape[0])
    left, top = np.clip(np.floor(corners.min(axis=0) - margin), 0, size).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=0) + margin), 0, size).astype(int)
    if right <= left or bottom <= top:
        return np.zeros((side, side, 3), np.uint8)
    pixels = image[top:bottom, left:right]
    step = np.ones(2)  # px of the image on a pixel of `pixels`
    if scale < 1:
        reduced = np.maximum(np.ceil(np.array([right - left, bottom - top]) * scale), 1).astype(int)
        step = np.array([right - left, bottom - top]) / reduced
        pixels = cv2.resize(pixels, reduced.tolist(), interpolation=cv2.INTER_AREA)
    # crop px, centers at 0 → crop px, centers at .5 → image → reduced patch → centers at 0 again
    back = to_image / step[:, None]
    origin = (to_image @ (0.5 - matrix[:, 2]) - (left, top)) / step - 0.5
    crop: np.ndarray = cv2.warpAffine(
        pixels,
        np.column_stack([back, origin]),
        (side, side),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return crop
