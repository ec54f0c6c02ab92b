"""One photograph, then one face, at a time over ONNX files with ONNX Runtime's own settings; serves like bare_loop.

How programs around insightface's FaceAnalysis.get work, with YuNet and any recognizer that takes ArcFace's alignment.
Runs as a script in an environment that has onnxruntime and not facescale: it imports nothing of this package. A request
is {"photos": [paths]}; the answer {"images", "faces", "seconds"}. Called by facescale.bench.contender.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

import cv2
import numpy as np

STRIDES = (8, 16, 32)
CHIP_PX = 112
# ArcFace's five points at 112 px.
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)],
    np.float32,
)


class PlainLoop:
    """Two ONNX files.

    Args:
        models: detector and embedder (paths), threshold, nms_iou, max_side_px, min_face_px, and the embedder's
            channel_order, mean and scale.
    """

    def __init__(self, models: dict[str, Any]) -> None:
        # Not imported by name: it is no dependency of facescale.
        runtime = importlib.import_module("onnxruntime")
        providers = ["CPUExecutionProvider"]
        self.models = models
        self.detector = runtime.InferenceSession(models["detector"], providers=providers)
        self.embedder = runtime.InferenceSession(models["embedder"], providers=providers)
        self.detector_input, self.embedder_input = (
            session.get_inputs()[0].name for session in (self.detector, self.embedder)
        )
        self.outputs = [output.name for output in self.detector.get_outputs()]
        self.mean, self.scale = (np.array(models[name], np.float32) for name in ("mean", "scale"))

    def faces_of(self, path: str) -> int:
        """Find and describe the faces of one photograph; returns how many."""
        image = cv2.imread(path)
        if image is None:
            return 0
        boxes, points = self.detect(image)
        for landmarks in points:
            descriptor = self.describe(image, landmarks)
            descriptor /= np.linalg.norm(descriptor)
        return len(boxes)

    def detect(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [n, 4] and landmarks [n, 5, 2] of a BGR image, px, best first."""
        height, width = image.shape[:2]
        factor = min(1.0, self.models["max_side_px"] / max(height, width))
        rows, columns = max(round(height * factor), 1), max(round(width * factor), 1)
        small = image if factor == 1 else cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
        padded = np.zeros((-(-rows // 32) * 32, -(-columns // 32) * 32, 3), np.uint8)
        padded[:rows, :columns] = small
        found = self.detector.run(self.outputs, {self.detector_input: cv2.dnn.blobFromImage(padded)})
        named = dict(zip(self.outputs, found, strict=True))
        pieces = [self.decode(named, stride, padded.shape[1] // stride) for stride in STRIDES]
        scores, boxes, points = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
        scale = np.array([width / columns, height / rows], np.float32)
        boxes, points = boxes * np.tile(scale, 2), points * scale
        kept = self.suppress(scores, boxes)
        side = np.sqrt(np.prod(boxes[kept, 2:] - boxes[kept, :2], axis=1))
        kept = kept[side >= self.models["min_face_px"]]
        return boxes[kept], points[kept]

    def decode(
        self, outputs: dict[str, np.ndarray], stride: int, columns: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores [n], boxes [n, 4] and landmarks [n, 5, 2] of one stride that pass the threshold."""
        quality = outputs[f"cls_{stride}"].reshape(-1) * outputs[f"obj_{stride}"].reshape(-1)
        scores = np.sqrt(quality.clip(0, 1))
        at = np.flatnonzero(scores > self.models["threshold"])
        cells = np.stack([at % columns, at // columns], axis=1).astype(np.float32)
        box = outputs[f"bbox_{stride}"].reshape(-1, 4)[at]
        points = outputs[f"kps_{stride}"].reshape(-1, 5, 2)[at]
        center, half = (cells + box[:, :2]) * stride, np.exp(box[:, 2:]) * (stride / 2)
        return scores[at], np.hstack([center - half, center + half]), (points + cells[:, None]) * stride

    def suppress(self, scores: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Rows that no better box overlaps too much, best first."""
        order, kept = scores.argsort()[::-1], []
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        while len(order):
            best, order = order[0], order[1:]
            kept.append(best)
            low = np.maximum(boxes[best, :2], boxes[order, :2])
            high = np.minimum(boxes[best, 2:], boxes[order, 2:])
            inner = np.prod(np.clip(high - low, 0, None), axis=1)
            order = order[inner <= self.models["nms_iou"] * (areas[best] + areas[order] - inner)]
        return np.array(kept, np.intp)

    def describe(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """The descriptor of one face of a BGR image."""
        chip = cv2.warpAffine(image, similarity(landmarks), (CHIP_PX, CHIP_PX))
        if self.models["channel_order"] == "rgb":
            chip = chip[:, :, ::-1]
        values = ((chip - self.mean) / self.scale).transpose(2, 0, 1)[None]
        descriptor: np.ndarray = self.embedder.run(None, {self.embedder_input: values})[0][0]
        return descriptor


def similarity(landmarks: np.ndarray) -> np.ndarray:
    """The similarity that brings five landmarks onto the template with the least squared error, [2, 3]."""
    source, target = (points[:, 0] + 1j * points[:, 1] for points in (landmarks, TEMPLATE))
    centered = source - source.mean()
    turn = (centered.conj() @ (target - target.mean())) / (centered.conj() @ centered)
    shift = target.mean() - turn * source.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def serve(models: dict[str, Any]) -> None:
    """Answer requests from standard input until it ends."""
    loop = PlainLoop(models)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        photos = json.loads(line)["photos"]
        start = time.perf_counter()
        faces = sum(map(loop.faces_of, photos))
        seconds = time.perf_counter() - start
        print(json.dumps({"images": len(photos), "faces": faces, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
