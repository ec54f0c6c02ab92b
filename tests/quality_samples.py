"""A portrait with landmarks, ways to spoil it, and views of it for quality scorers."""

from __future__ import annotations

import cv2
import numpy as np
from skimage import data

from facescale.vision.crops import wide_crops
from facescale.vision.protocols import FaceViews

# Of the astronaut below, in dlib's scheme: corners of the eyes and the base of the nose.
LANDMARKS = np.array([(175.5, 104.5), (157.5, 104.5), (115.5, 101.5), (132.5, 103.5), (144.5, 134.5)])


def portrait() -> np.ndarray:
    """uint8 [320, 300, 3]; one face of about 100 px with the eyes 39 px apart."""
    return np.ascontiguousarray(data.astronaut()[:320, 80:380])


def views(image: np.ndarray, landmarks: np.ndarray = LANDMARKS, scheme: str = "dlib5") -> FaceViews:
    """The faces of one image; landmarks [K, 2] or [n, K, 2] px."""
    points = np.asarray(landmarks, np.float64)
    points = points.reshape(-1, *points.shape[-2:])
    crops, matrices = wide_crops(image, points, scheme)
    return FaceViews(crops, matrices, points, scheme, np.tile(image.shape[:2], (len(points), 1)))


def joined(many: list[FaceViews]) -> FaceViews:
    """Faces of several images together."""
    return FaceViews(
        [crop for one in many for crop in one.crops],
        np.concatenate([one.matrices for one in many]),
        np.concatenate([one.landmarks for one in many]),
        many[0].scheme,
        np.concatenate([one.image_sizes for one in many]),
    )


def blurred(image: np.ndarray, sigma_px: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma_px) if sigma_px else image


def smeared(image: np.ndarray, length_px: float) -> np.ndarray:
    """Motion from left to right."""
    return cv2.blur(image, (int(length_px), 1))


def toned(image: np.ndarray, gain: float, offset: float = 0.0) -> np.ndarray:
    return np.clip(np.rint(image.astype(np.float64) * gain + offset), 0, 255).astype(np.uint8)


def noisy(image: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, deviation, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def compressed(image: np.ndarray, quality: float) -> np.ndarray:
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


def resized(image: np.ndarray, factor: float) -> np.ndarray:
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=how)


def rotated(image: np.ndarray, landmarks: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Turned about the face, counter-clockwise as seen, on a canvas that holds all of it."""
    matrix = cv2.getRotationMatrix2D(tuple(landmarks.mean(axis=0)), degrees, 1.0)
    matrix[:, 2] += 150
    size = (image.shape[1] + 300, image.shape[0] + 300)
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_CUBIC), landmarks @ matrix[:, :2].T + matrix[
        :, 2
    ]
