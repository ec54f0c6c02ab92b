"""A plug-in model: the default detector, but images with a colored corner end or stop the process they are in.

Whoever marks an image with one of CORNERS says by its color what is to happen. Only where FACESCALE_TEST_DEADLY is
set: without it the same model, of the same name, finds the same faces in the marked images as in any others.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from facescale.models.card import ModelCard
from facescale.models.registry import card, register_card
from facescale.vision.protocols import Detections, Detector
from facescale.vision.registry import register_detector

NAME = "deadly_mmod"
CORNER_PX = 24
CORNERS = {"kill": (255, 0, 0), "hang": (0, 255, 0), "raise": (0, 0, 255)}
"""RGB of the upper left corner; JPEG keeps it within a few levels."""


class DeadlyDetector:
    """A detector that is asked for the faces of a batch, and dies of one image in it."""

    def __init__(self, card: ModelCard, detector: Detector) -> None:
        self.card, self.detector = card, detector

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        for image in images:
            corner = image[4 : CORNER_PX - 4, 4 : CORNER_PX - 4].reshape(-1, 3).mean(axis=0)
            for what, color in CORNERS.items():
                if np.abs(corner - color).max() < 20:
                    misbehave(what)
        return self.detector.detect(images)


def misbehave(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "hang":
        threading.Event().wait()
    raise RuntimeError("cannot stand blue corners")


def _factory(found: ModelCard, **options: Any) -> Detector:
    from facescale.vision import mmod

    detector = mmod.load(found, **options)
    return DeadlyDetector(found, detector) if os.environ.get("FACESCALE_TEST_DEADLY") else detector


register_card(replace(card("dlib_mmod"), name=NAME, architecture=NAME))
register_detector(NAME, _factory)
