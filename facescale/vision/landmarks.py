"""Images and boxes in, five landmarks a face out: dlib's ensemble of regression trees, for many faces at once.

Made by facescale.vision.registry, called by the extract stage. Fifteen cascades of 500 trees each move the
mean face towards the face in the box (Kazemi & Sullivan, CVPR 2014). A tree asks four times whether two
pixels differ by more than a threshold and adds the shift of the leaf it ends in. The result equals dlib's bit
by bit, for which float32 and float64 are used where dlib does, and shifts are added one tree at a time.

Shape legend: N faces, K landmarks, P = 800 pixels compared in a cascade, T = 500 trees, L = 16 leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from facescale.errors import DataError
from facescale.models.dlib_dat import DatReader, floats
from facescale.models.weights import read_weights
from facescale.vision.align import box_to_dlib, points_from_dlib, similarity

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from facescale.models.card import ModelCard

_SPLITS = 15  # of a tree: four levels
_LEAVES = 16
_FACES_AT_ONCE = 64  # arrays of trees × faces stay within a core's cache
_MARGIN = 0.25  # of the box, on each side of the patch that is copied; pixels beyond it are fetched singly
_PATCH_LIMIT_BYTES = 1 << 20  # of faces with larger patches (from about 400 px) all pixels are
_FARTHEST_PX = 1 << 30


@dataclass(frozen=True, eq=False)
class Cascade:
    """One stage of the regression.

    Args:
        anchors: int64 [P], the landmark each pixel moves with.
        deltas: float32 [P, 2], its offset from there, in widths of the box, before the face's turn.
        first: int64 [15, T], pixel compared at each split of each tree.
        second: int64 [15, T], pixel it is compared with.
        thresholds: int16 [15, T, 1], whole numbers: pixels are.
        leaves: float32 [T · L, 2 · K], the shift of the shape.
    """

    anchors: np.ndarray
    deltas: np.ndarray
    first: np.ndarray
    second: np.ndarray
    thresholds: np.ndarray
    leaves: np.ndarray


def load(card: ModelCard, *, device: torch.device) -> DlibLandmarker:
    """Load the landmarker of `card`; it runs on the CPU whatever `device` says, as trees are all lookups.

    Raises:
        UsageError: the package that ships the weights is missing.
        CorruptError: the weights are not those of the card, or damaged.
    """
    del device
    mean_shape, cascades = read_cascades(DatReader(read_weights(card), card.file))
    return DlibLandmarker(card, mean_shape, cascades)


class DlibLandmarker:
    """dlib's shape predictor; see facescale.vision.protocols.Landmarker.

    Args:
        card: what it was loaded from.
        mean_shape: float32 [2 · K], x and y in turn, in widths of the box.
        cascades: in order.
    """

    def __init__(self, card: ModelCard, mean_shape: np.ndarray, cascades: Sequence[Cascade]) -> None:
        self.card = card
        self.mean_shape = mean_shape
        self.cascades = cascades

    def landmarks(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Locate the landmarks in each box.

        Args:
            images: uint8 [H, W, 3] RGB arrays.
            boxes: float [n, 4] x1, y1, x2, y2 px per image; they may reach outside the image, where it is black.

        Returns:
            float32 [n, K, 2] per image, px; pixel centers, as dlib rounds its points to whole pixels.

        Raises:
            DataError: a box is not finite.
        """
        counts = np.array([len(found) for found in boxes], np.int64)
        total = int(counts.sum())
        points = np.zeros((total, len(self.mean_shape) // 2, 2), np.float32)
        if total:
            owner = np.repeat(np.arange(len(images)), counts)
            rects = box_to_dlib(np.concatenate([np.asarray(b, np.float64).reshape(-1, 4) for b in boxes]))
            if not (np.abs(rects) < _FARTHEST_PX).all():
                face = int(np.flatnonzero(~(np.abs(rects) < _FARTHEST_PX).all(axis=1))[0])
                raise DataError(
                    f"box of face {face} of {total} is not one in an image: {rects[face].tolist()}"
                )
            for start in range(0, total, _FACES_AT_ONCE):
                part = slice(start, start + _FACES_AT_ONCE)
                points[part] = self._locate([images[i] for i in owner[part]], rects[part])
        return np.split(points, counts.cumsum()[:-1]) if len(counts) else []

    def _locate(self, images: Sequence[np.ndarray], rects: np.ndarray) -> np.ndarray:
        """Landmarks of N faces, each with its own image and rect (dlib's convention, float64 [N, 4])."""
        pixels = _Pixels(images, rects)
        corner, extent = rects[:, :2].T, (rects[:, 2:] - rects[:, :2]).T
        mean = self.mean_shape.reshape(-1, 2).astype(np.float64)
        shape = np.repeat(self.mean_shape[None], len(rects), axis=0)
        for cascade in self.cascades:
            turn, _ = similarity(mean, shape.reshape(len(rects), -1, 2))
            x, y = _turned(cascade.deltas, turn)
            x += shape[:, 0::2].T.take(cascade.anchors, axis=0)
            y += shape[:, 1::2].T.take(cascade.anchors, axis=0)
            values = pixels.at(_to_pixels(x, corner[0], extent[0]), _to_pixels(y, corner[1], extent[1]))
            reached = _leaves_reached(cascade, values)
            terms = np.empty((len(reached) + 1, *shape.shape), np.float32)
            terms[0] = shape
            cascade.leaves.take(reached, axis=0, out=terms[1:], mode="clip")
            shape = sum_in_order(terms)
        points = np.stack(
            [_to_pixels(shape[:, axis::2].T, corner[axis], extent[axis]).T for axis in (0, 1)], axis=-1
        )
        return points_from_dlib(points.astype(np.float32))


class _Pixels:
    """Grey values of N images at positions near their faces.

    The patch around each face is copied into one flat buffer, so that one lookup serves all faces.
    """

    def __init__(self, images: Sequence[np.ndarray], rects: np.ndarray) -> None:
        self.images = images
        self.height, self.width = np.array([image.shape[:2] for image in images], np.float64).T
        grow = np.abs(rects[:, 2:] - rects[:, :2]).max(axis=1, keepdims=True) * _MARGIN + 1
        size = np.stack([self.width, self.height], axis=1)
        low = np.clip(np.floor(rects[:, :2] - grow), 0, size).astype(np.int64)
        high = np.clip(np.ceil(rects[:, 2:] + grow) + 1, low, size).astype(np.int64)
        high[(high - low).prod(axis=1) * 3 > _PATCH_LIMIT_BYTES] = 0
        high = np.maximum(low, high)
        self.left, self.top = low.T
        self.right, self.bottom = high.T
        row = (self.right - self.left) * 3
        length = row * (self.bottom - self.top)
        start = length.cumsum() - length
        self.flat = np.empty(int(length.sum()) + 4, np.uint8)
        bounds = zip(images, self.left, self.top, self.right, self.bottom, start, length, strict=True)
        for image, left, top, right, bottom, at, count in bounds:
            patch = image[top:bottom, left:right]
            self.flat[at : at + count].reshape(patch.shape)[:] = patch
        self.row = row
        self.base = start - self.top * row - self.left * 3

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Grey values of pixels, int16 [P, N], 0 outside the image; positions are whole numbers, float64 [P, N]."""
        copied = (x >= self.left) & (x < self.right) & (y >= self.top) & (y < self.bottom)
        column, line = x.astype(np.int64), y.astype(np.int64)
        index = line * self.row
        index += column * 3
        index += self.base
        index *= copied
        total: np.ndarray = self.flat.take(index).astype(np.int16)
        total += self.flat[1:].take(index)
        total += self.flat[2:].take(index)
        total //= 3
        if not copied.all():
            total *= copied
            far = ~copied & (x >= 0) & (y >= 0) & (x < self.width) & (y < self.height)
            for face in np.flatnonzero(far.any(axis=0)).tolist():
                rows, columns = line[far[:, face], face], column[far[:, face], face]
                total[far[:, face], face] = self.images[face][rows, columns].sum(axis=1, dtype=np.int16) // 3
        return total


def _to_pixels(values: np.ndarray, corner: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Coordinates in widths of the box → the nearest pixel, float64 [..., N], halves rounded up as dlib does."""
    position: np.ndarray = values * extent
    position += corner
    position += 0.5
    np.floor(position, out=position)
    return position


def _turned(deltas: np.ndarray, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets under each face's similarity, float32 [P, N] twice; dlib keeps its matrix in float32."""
    scale, skew = turn.real.astype(np.float32), turn.imag.astype(np.float32)
    dx, dy = deltas[:, :1], deltas[:, 1:]
    return scale * dx + -skew * dy, skew * dx + scale * dy


def _leaves_reached(cascade: Cascade, values: np.ndarray) -> np.ndarray:
    """Rows of `cascade.leaves` that N faces end in, int64 [T, N].

    All splits of all trees are answered, also those off the path: comparing rows of faces is faster than
    following paths. The path is then put together from the bottom up: `below` holds, for each node of a level,
    which of the leaves under it is reached.
    """
    answers = (
        values.take(first, axis=0) - values.take(second, axis=0) <= threshold
        for first, second, threshold in zip(cascade.first, cascade.second, cascade.thresholds, strict=True)
    )
    # 255 where a face goes to the second child, which it does unless the difference exceeds the threshold.
    seconds = [np.negative(answer.view(np.uint8)) for answer in answers]
    below = [second & np.uint8(1) for second in seconds[7:]]
    for level, half in ((seconds[3:7], 2), (seconds[1:3], 4), (seconds[:1], 8)):
        # first ^ ((first ^ second) & mask) chooses like np.where, several times faster on bytes
        below = [
            below[2 * i] ^ ((below[2 * i] ^ (below[2 * i + 1] | np.uint8(half))) & second)
            for i, second in enumerate(level)
        ]
    reached: np.ndarray = below[0] + np.arange(0, len(cascade.leaves), _LEAVES)[:, None]
    return reached


def sum_in_order(terms: np.ndarray) -> np.ndarray:
    """Add terms one after the other, in float32: another order moves a point of 8 % of faces, by up to 6 px.

    Args:
        terms: float32 [T + 1, N, 2 · K].

    Returns:
        float32 [N, 2 · K].
    """
    # Along an axis that is not the fast one in memory np.add.reduce goes row by row (notes of numpy.sum).
    total: np.ndarray = np.add.reduce(terms.reshape(len(terms), -1), axis=0)
    return total.reshape(terms.shape[1:])


def read_cascades(reader: DatReader) -> tuple[np.ndarray, list[Cascade]]:
    """Read dlib's shape_predictor from a stream that holds nothing else.

    Returns:
        mean_shape: float32 [2 · K].
        cascades: in order.

    Raises:
        CorruptError: the stream is damaged or not a shape predictor with trees of four levels.
    """
    reader.expect(1, "shape predictor version")
    table = reader.matrix()
    if table.shape[1] != 1 or len(table) % 2 or not len(table):
        reader.fail(f"mean shape of {table.shape[0]} x {table.shape[1]} values is no column of points")
    mean_shape = table[:, 0]
    stream = _Ints(reader)
    num_cascades = stream.count()
    forests = [_forest(stream, len(mean_shape)) for _ in range(num_cascades)]
    stream.expect(num_cascades)
    anchors = [stream.take(stream.count()) for _ in range(num_cascades)]
    stream.expect(num_cascades)
    deltas = [stream.take(4 * stream.count()).reshape(-1, 2, 2) for _ in range(num_cascades)]
    stream.expect_end()
    cascades = []
    for (splits, thresholds, leaves), anchor, delta in zip(forests, anchors, deltas, strict=True):
        pixels, points = splits.reshape(-1), anchor
        sound = len(anchor) == len(delta) and 0 <= pixels.min() and pixels.max() < len(anchor)
        if not sound or points.min() < 0 or points.max() >= len(mean_shape) // 2:
            stream.fail("an index points outside its table")
        offsets = floats(delta[..., 0], delta[..., 1]).astype(np.float32)
        cascades.append(Cascade(anchor, offsets, splits[0], splits[1], thresholds, leaves))
    return mean_shape, cascades


def _forest(stream: _Ints, num_values: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The trees of one cascade: pixels int64 [2, 15, T], thresholds int16 [15, T, 1], leaves float32 [T · L, 2 · K]."""
    leaf = 2 + 2 * num_values
    num_trees = stream.count()
    trees = stream.take(num_trees * (2 + 4 * _SPLITS + _LEAVES * leaf)).reshape(num_trees, -1)
    splits = trees[:, 1 : 1 + 4 * _SPLITS].reshape(num_trees, _SPLITS, 4)
    leaves = trees[:, 2 + 4 * _SPLITS :].reshape(num_trees * _LEAVES, leaf)
    counts = trees[:, [0, 1 + 4 * _SPLITS]]
    if (counts != [_SPLITS, _LEAVES]).any() or (leaves[:, :2] != [-num_values, -1]).any():
        stream.fail("a tree is not of four levels, or its leaves are of another length than the shape")
    values = leaves[:, 2:].reshape(len(leaves), num_values, 2)
    # A whole number exceeds a threshold exactly if it exceeds the threshold rounded down.
    thresholds = np.floor(floats(splits[..., 2], splits[..., 3])).clip(-256, 256).astype(np.int16)
    return (
        np.ascontiguousarray(splits[..., :2].transpose(2, 1, 0)),
        np.ascontiguousarray(thresholds.T[..., None]),
        floats(values[..., 0], values[..., 1]).astype(np.float32),
    )


class _Ints:
    """The rest of a stream that holds nothing but packed ints, read at once: one by one would take seconds."""

    def __init__(self, reader: DatReader) -> None:
        self.reader = reader
        self.values = reader.ints()
        self.used = 0

    def take(self, count: int) -> np.ndarray:
        if count > len(self.values) - self.used:
            self.fail("the stream ends too early")
        self.used += count
        return self.values[self.used - count : self.used]

    def count(self) -> int:
        value = int(self.take(1)[0])
        if value < 1:
            self.fail(f"a table of {value} entries")
        return value

    def expect(self, value: int) -> None:
        if self.count() != value:
            self.fail(f"a table of other than {value} entries")

    def expect_end(self) -> None:
        if self.used < len(self.values):
            self.fail(f"{len(self.values) - self.used} integers too many")

    def fail(self, what: str) -> NoReturn:
        self.reader.fail(f"{what} (integer {self.used} of {len(self.values)})")
