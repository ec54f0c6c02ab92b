"""dlib as the judge of our own models: the helpers of `facescale bench oracle`, under the name the tests know."""

from __future__ import annotations

from facescale.bench.dlib_oracle import (
    Rect,
    dlib_boxes,
    dlib_chip,
    dlib_descriptor,
    dlib_landmarks,
    dlib_resize,
    dlib_shape,
)

__all__ = [
    "Rect",
    "dlib_boxes",
    "dlib_chip",
    "dlib_descriptor",
    "dlib_landmarks",
    "dlib_resize",
    "dlib_shape",
]
