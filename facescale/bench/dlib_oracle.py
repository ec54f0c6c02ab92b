"""dlib itself, from the package dlib-bin, as the judge of the default models; its answers can be kept in a file.

Called by facescale.bench.oracle, which holds facescale against these answers, by facescale.bench.verification
(coverage), and by the tests. Boxes and points are in dlib's convention: whole pixels, centers at integers, the last
pixel of a box included. dlib takes about 0.4 s for a 250 x 250 photo without upsampling and 1.6 s with one, so many
photos are asked about in several processes, and `AnswerFile` resumes where an earlier run stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.errors import CorruptError, MismatchError, MissingExtraError, UsageError
from facescale.imaging.decode import decode
from facescale.imaging.hashes import sha256
from facescale.models.registry import card
from facescale.models.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Rect = tuple[int, int, int, int]  # left, top, right, bottom, the last pixel included
MODELS = ("dlib_mmod", "dlib_5pt", "dlib_resnet")
MIN_FACE_PX = {0: 80, 1: 40}
"""What facescale calls dlib's number of upsamplings."""
_FORMAT = 1


def load_dlib() -> Any:
    """The module dlib.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import dlib
    except ImportError as error:
        raise MissingExtraError("dlib-bin", "dev", "comparing with dlib") from error
    return dlib


@cache
def _model(kind: str, name: str) -> Any:
    return getattr(load_dlib(), kind)(str(find_weights(card(name))))


def dlib_boxes(image: np.ndarray, upsample: int) -> list[tuple[Rect, float]]:
    """Rectangle and score of each face of uint8 [H, W, 3], best first."""
    found = _model("cnn_face_detection_model_v1", "dlib_mmod")(image, upsample)
    return [
        ((one.rect.left(), one.rect.top(), one.rect.right(), one.rect.bottom()), one.confidence)
        for one in found
    ]


def dlib_shape(image: np.ndarray, rect: Rect) -> Any:
    """The full_object_detection of the five landmarks."""
    return _model("shape_predictor", "dlib_5pt")(image, load_dlib().rectangle(*rect))


def dlib_points(shape: Any) -> np.ndarray:
    """int64 [5, 2] px of a result of `dlib_shape`."""
    return np.array([(point.x, point.y) for point in shape.parts()], np.int64)


def dlib_landmarks(image: np.ndarray, rect: Rect) -> np.ndarray:
    """int64 [5, 2] px."""
    return dlib_points(dlib_shape(image, rect))


def dlib_chip(image: np.ndarray, shape: Any) -> np.ndarray:
    """uint8 [150, 150, 3] aligned to `shape`, a result of `dlib_shape`."""
    return np.asarray(load_dlib().get_face_chip(image, shape, size=150, padding=0.25))


def dlib_descriptor(chip: np.ndarray) -> np.ndarray:
    """float64 [128] of uint8 [150, 150, 3], not normalized."""
    return np.array(_model("face_recognition_model_v1", "dlib_resnet").compute_face_descriptor(chip))


def dlib_describe(image: np.ndarray, shape: Any) -> np.ndarray:
    """float64 [128] of a face in its image: dlib cuts the chip itself."""
    return np.array(_model("face_recognition_model_v1", "dlib_resnet").compute_face_descriptor(image, shape))


def dlib_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize as dlib does, bilinear: uint8 [H, W, 3] or float32 [H, W]."""
    return np.asarray(load_dlib().resize_image(image, height, width))


def shape_of(rect: Sequence[int], points: np.ndarray) -> Any:
    """A full_object_detection from numbers: what `dlib_shape` gave."""
    dlib = load_dlib()
    corners = [dlib.point(int(x), int(y)) for x, y in points]
    return dlib.full_object_detection(dlib.rectangle(*(int(side) for side in rect)), corners)


@dataclass(frozen=True)
class DlibAnswer:
    """What dlib says about one photograph; lists, as JSON holds them.

    Attributes:
        path: of the photograph, relative to the folder.
        sha256: of its bytes, hex.
        status: ok, or why it was not judged: facescale's status when it cannot be decoded, or too_many_pixels.
        seconds: what dlib took.
        boxes: n rectangles, best first.
        scores: n.
        landmarks: n times 5 points.
        descriptors: n times 128, of each face in the photograph.
        chip_descriptors: n times 128, of dlib's own chip of each face.
    """

    path: str
    sha256: str
    status: str
    seconds: float
    boxes: list[list[int]]
    scores: list[float]
    landmarks: list[list[list[int]]]
    descriptors: list[list[float]]
    chip_descriptors: list[list[float]]


def ask_dlib(root: str, path: str, upsample: int, max_pixels: int) -> DlibAnswer:
    """Have dlib judge one photograph; a bad one is a status."""
    data = (Path(root) / path).read_bytes()
    image = decode(data, max_pixels=max_pixels)
    if image.pixels is None:
        return DlibAnswer(path, sha256(data).hex(), image.status, 0.0, [], [], [], [], [])
    start = time.monotonic()
    faces = dlib_boxes(image.pixels, upsample)
    shapes = [dlib_shape(image.pixels, rect) for rect, _ in faces]
    descriptors = [dlib_describe(image.pixels, shape) for shape in shapes]
    seconds = time.monotonic() - start
    of_chips = [dlib_descriptor(dlib_chip(image.pixels, shape)) for shape in shapes]
    return DlibAnswer(
        path,
        sha256(data).hex(),
        "ok",
        round(seconds, 4),
        [list(rect) for rect, _ in faces],
        [score for _, score in faces],
        [dlib_points(shape).tolist() for shape in shapes],
        [_short(values) for values in descriptors],
        [_short(values) for values in of_chips],
    )


def _short(values: np.ndarray) -> list[float]:
    # Descriptors are float32 of about 0.1: nine decimals lose nothing that is compared at 1e-5.
    short: list[float] = np.round(values, 9).tolist()
    return short


class AnswerFile:
    """dlib's answers on disk: a line of JSON a photograph, the first line saying what was asked.

    Args:
        path: the file; made when absent, added to when it was made with the same models and upsampling.
        upsample: dlib's number of upsamplings.
    """

    def __init__(self, path: str | Path, upsample: int) -> None:
        self.path, self.upsample = Path(path), upsample

    @classmethod
    def open(cls, path: str | Path) -> AnswerFile:
        """A file that exists, whatever its upsampling.

        Raises:
            UsageError: it is not there, or not such a file.
        """
        try:
            with open(path, encoding="utf-8") as file:
                return cls(path, int(json.loads(file.readline())["upsample"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path} is not a file of `facescale bench oracle --save` ({error}): make one first"
            ) from None

    def header(self) -> dict[str, Any]:
        """The first line."""
        models = {name: card(name).sha256 for name in MODELS}
        return {"format": _FORMAT, "upsample": self.upsample, "models": models}

    def read(self) -> dict[str, DlibAnswer]:
        """All whole lines, by path; a last line cut short by a kill is dropped from the file.

        Raises:
            MismatchError: it was made with other models or another upsampling.
            CorruptError: a line is not JSON.
        """
        if not self.path.exists():
            return {}
        text = self.path.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1]
        if len(whole) < len(text):
            self.path.write_text(whole, "utf-8")
        lines = whole.splitlines()
        if not lines:
            return {}
        values = [self._parse(number, line) for number, line in enumerate(lines, start=1)]
        if values[0] != self.header():
            raise MismatchError(
                f"{self.path} holds dlib's answers to another question ({json.dumps(values[0])}); "
                "give another file, or the upsampling it was made with"
            )
        try:
            answers = [DlibAnswer(**value) for value in values[1:]]
        except TypeError as error:
            raise CorruptError(f"{self.path} holds something else than dlib's answers ({error})") from None
        return {answer.path: answer for answer in answers}

    def _parse(self, number: int, line: str) -> Any:
        try:
            return json.loads(line)
        except ValueError as error:
            raise CorruptError(f"{self.path}, line {number} is not JSON ({error}): delete the file") from None

    def append(self, answer: DlibAnswer) -> None:
        """Add one answer."""
        new = not self.path.exists() or self.path.stat().st_size == 0
        with open(self.path, "a", encoding="utf-8") as file:
            if new:
                file.write(json.dumps(self.header()) + "\n")
            file.write(json.dumps(asdict(answer)) + "\n")


def ask_about(
    root: Path, paths: Sequence[str], *, upsample: int, max_pixels: int, processes: int
) -> Iterator[DlibAnswer]:
    """Have dlib judge many photographs, in several processes; answers come in the order of `paths`.

    Args:
        root: folder of the photographs.
        paths: relative to it.
        upsample: dlib's number of upsamplings.
        max_pixels: larger photographs get the status too_many_pixels.
        processes: dlib uses one core in each.
    """
    load_dlib()
    # spawn: a fork would copy the locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = [pool.submit(ask_dlib, str(root), path, upsample, max_pixels) for path in paths]
        try:
            for future in waiting:
                yield future.result()
        finally:
            for future in waiting:
                future.cancel()
