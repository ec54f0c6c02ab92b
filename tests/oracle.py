"""dlib itself, from the package dlib-bin, as the judge of our own models. Boxes and points in dlib's convention.

dlib takes 0.4 s for a 250 x 250 photo without upsampling and 1.6 s with one, so tests ask once per photo.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import dlib
import numpy as np

from facescale.models.registry import card
from facescale.models.weights import find_weights

Rect = tuple[int, int, int, int]  # left, top, right, bottom, the last pixel included


@cache
def _model(kind: str, name: str) -> Any:
    return getattr(dlib, kind)(str(find_weights(card(name))))


def dlib_boxes(image: np.ndarray, upsample: int) -> list[tuple[Rect, float]]:
    """Rectangle and score of each face of uint8 [H, W, 3], best first."""
    found = _model("cnn_face_detection_model_v1", "dlib_mmod")(image, upsample)
    return [
        ((one.rect.left(), one.rect.top(), one.rect.right(), one.rect.bottom()), one.confidence)
        for one in found
    ]


def dlib_shape(image: np.ndarray, rect: Rect) -> Any:
    """dlib's full_object_detection of the five landmarks."""
    return _model("shape_predictor", "dlib_5pt")(image, dlib.rectangle(*rect))


def dlib_landmarks(image: np.ndarray, rect: Rect) -> np.ndarray:
    """int64 [5, 2] px, centers at integers."""
    return np.array([(point.x, point.y) for point in dlib_shape(image, rect).parts()], np.int64)


def dlib_chip(image: np.ndarray, shape: Any) -> np.ndarray:
    """uint8 [150, 150, 3] aligned to `shape`, a result of `dlib_shape`."""
    return np.asarray(dlib.get_face_chip(image, shape, size=150, padding=0.25))


def dlib_descriptor(chip: np.ndarray) -> np.ndarray:
    """float64 [128] of uint8 [150, 150, 3], not normalized."""
    return np.array(_model("face_recognition_model_v1", "dlib_resnet").compute_face_descriptor(chip))


def dlib_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """dlib's bilinear resize of uint8 [H, W, 3] or float32 [H, W]."""
    return np.asarray(dlib.resize_image(image, height, width))
