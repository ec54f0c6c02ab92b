"""A judge for synthetic people that needs no models, and a small crawl made with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from facescale.synth.crawl import make_crawl
from facescale.synth.plan import Planted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from facescale.synth.truth import SynthSummary

PLANTED = Planted(
    wrong_labels=2, exact_duplicates=2, near_duplicates=3, two_faces=2, no_faces=5, low_quality=3, damaged=1
)


class PixelJudge:
    """Describes a picture by its thumbnail: different people differ, the same picture never does."""

    def describe(self, images: Sequence[np.ndarray]) -> np.ndarray:
        thumbnails = [cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA) for image in images]
        return np.array(thumbnails, np.float32).reshape(len(images), -1) / 255


def small_crawl(
    out: Path, *, seed: int = 0, threads: int = 2, progress: Callable[[int, int], None] | None = None
) -> SynthSummary:
    """4 people, 3 clean images each, and everything that can be planted."""
    return make_crawl(
        out,
        identities=4,
        images_per_identity=3,
        seed=seed,
        planted=PLANTED,
        min_distance=0.2,
        judge=PixelJudge(),
        threads=threads,
        progress=progress,
    )
