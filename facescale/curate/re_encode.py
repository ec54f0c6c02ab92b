"""How similar a face stays to itself when its picture is saved again: stored crops in, similarities out.

Each crop is resized and written as a JPEG of lower quality, cut to a chip again, and embedded; the similarity is with
the embedding that the lake has, which came from the photograph. So what storing a crop costs is in it. Landmarks are
not found anew: on 196 LFW photographs that were resized, saved and put through detector and landmarker again, the
lowest and median similarities were .9910 and .9980, against .9879 and .9986 here. Called by driver.calibrate.

Shape legend: N faces, V variants of each, D dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from facescale.vision.crops import chips_from_crops, decode_jpeg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from facescale.vision.protocols import Embedder

JPEG_QUALITY = (50, 95)
SCALE = (0.7, 1.4)
QUANTILE = 0.001
_AT_ONCE = 64


def re_encode_similarity(
    crops: Sequence[bytes],
    matrices: NDArray[np.floating],
    landmarks: NDArray[np.floating],
    embeddings: NDArray[np.floating],
    embedder: Embedder,
    *,
    variants: int = 4,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Embed every face in several re-encoded forms.

    Args:
        crops: N JPEGs, as stored.
        matrices: float [N, 2, 3], px of the image → px of the crop.
        landmarks: float [N, K, 2], px of the image.
        embeddings: float [N, D], unit length, as stored.
        embedder: the model that made them.
        variants: how many forms of each face, with quality and scale drawn uniformly.
        seed: of the draw.

    Returns:
        float64 [N · V], similarity of each form to the stored embedding.
    """
    rng = np.random.default_rng(seed)
    qualities = rng.integers(JPEG_QUALITY[0], JPEG_QUALITY[1], (len(crops), variants), endpoint=True)
    scales = rng.uniform(*SCALE, (len(crops), variants))
    found = [np.zeros(0)]
    for start in range(0, len(crops), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(crops)))
        pixels = [decode_jpeg(crops[row]) for row in rows]
        for variant in range(variants):
            forms = [
                _saved_again(image, int(qualities[row, variant]), float(scales[row, variant]))
                for row, image in zip(rows, pixels, strict=True)
            ]
            zoom = np.array(
                [
                    (form.shape[1] / image.shape[1], form.shape[0] / image.shape[0])
                    for form, image in zip(forms, pixels, strict=True)
                ]
            )
            chips = chips_from_crops(
                forms, matrices[rows] * zoom[:, :, None], landmarks[rows], embedder.card.template or ""
            )
            raw = embedder.embed(chips).astype(np.float64)
            raw /= np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-12)
            found.append((raw * embeddings[rows]).sum(axis=1))
    return np.concatenate(found)


def _saved_again(pixels: np.ndarray, quality: int, scale: float) -> np.ndarray:
    """An image resized and through JPEG: uint8 [H', W', 3]."""
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    _, data = cv2.imencode(
        ".jpg", cv2.cvtColor(resized, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    return decode_jpeg(bytes(data))
