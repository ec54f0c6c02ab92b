"""Images in, embeddings of their faces out, in one process: what a query goes through. Called by search.

The extract stage does the same over parts with more columns and more overlap (facescale.vision.extract).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from facescale.vision.align import check_scheme, extract_chips
from facescale.vision.registry import load_detector, load_embedder, load_landmarker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from facescale.vision.protocols import Detector, Embedder, Landmarker


class FaceReader:
    """Detects, aligns and embeds.

    Args:
        detector: finds faces, perhaps with landmarks.
        landmarker: gives landmarks where the detector does not.
        embedder: describes chips.

    Raises:
        MismatchError: the embedder's template needs landmarks of another scheme.
    """

    def __init__(self, detector: Detector, landmarker: Landmarker | None, embedder: Embedder) -> None:
        self.detector, self.landmarker, self.embedder = detector, landmarker, embedder
        source = detector.card if landmarker is None else landmarker.card
        self.template = embedder.card.template or ""
        check_scheme(self.template, source.landmark_scheme or "", embedder=embedder.card.name)

    @classmethod
    def like(
        cls,
        settings: Mapping[str, Any],
        *,
        embedder: str,
        embedded: Mapping[str, Any] | None = None,
        device: str = "auto",
        threads: int = 1,
    ) -> FaceReader:
        """A reader with the models that made a lake's faces.

        Args:
            settings: of the faces version: detector, landmarker (if any), min_face_px, precision.
            embedder: registry name.
            embedded: settings of the embeddings version: precision, backend, flip; None for the defaults.
            device: "auto" takes CUDA where there is one.
            threads: of torch and OpenCV.
        """
        import cv2
        import torch

        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        precision = settings.get("precision", "fp32")
        detector = load_detector(
            settings["detector"],
            device=device,
            precision=precision,
            min_face_px=settings["min_face_px"],
            backend=settings.get("backend", "auto"),
            threshold=settings.get("det_threshold"),
        )
        name = settings.get("landmarker")
        landmarker = load_landmarker(name, device=device) if name else None
        embedded = embedded or {}
        describer = load_embedder(
            embedder,
            device=device,
            precision=embedded.get("precision", precision),
            backend=embedded.get("backend", "auto"),
            flip=embedded.get("flip", False),
        )
        return cls(detector, landmarker, describer)

    def describe(self, images: Sequence[np.ndarray]) -> tuple[list[int], np.ndarray]:
        """Embed every face.

        Args:
            images: uint8 [H, W, 3] RGB.

        Returns:
            Faces of each image, and float32 [N, D] raw embeddings, by image and then by descending score.
        """
        found = self.detector.detect(images)
        if self.landmarker is None:
            landmarks = [faces.landmarks for faces in found if faces.landmarks is not None]
        else:
            landmarks = self.landmarker.landmarks(images, [faces.boxes for faces in found])
        chips = extract_chips(images, landmarks, self.template)
        return [len(faces) for faces in found], self.embedder.embed(chips)
