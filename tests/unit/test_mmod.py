"""The detector on a public-domain portrait: scale, size, memory, batching, precision, damaged weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from oracle import dlib_boxes
from skimage import data

from facescale.errors import CorruptError, MismatchError
from facescale.models.dlib_dat import DatReader
from facescale.models.registry import card
from facescale.models.weights import read_weights
from facescale.vision import mmod
from facescale.vision.align import box_to_dlib
from facescale.vision.mmod_weights import read_mmod
from facescale.vision.pyramid import tiled_layout
from facescale.vision.registry import load_detector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.vision.protocols import Detections

CARD = card("dlib_mmod")
FACE = np.array([91, 62, 191, 161])  # in the portrait, as dlib finds it with one upsampling
FACE_PX = 100


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """One face, about 100 px, in 320 x 300 px."""
    return np.ascontiguousarray(data.astronaut()[:320, 80:380])


@pytest.fixture(scope="module")
def weights() -> mmod.MmodWeights:
    return read_mmod(DatReader(read_weights(CARD)))


def detector(weights: mmod.MmodWeights, **options: object) -> mmod.MmodDetector:
    return mmod.MmodDetector(CARD, weights, device=torch.device("cpu"), **options)  # type: ignore[arg-type]


def resized(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    inner = np.prod(np.maximum(high - low, 0))
    return float(inner / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - inner))


def assert_same(ours: Sequence[Detections], theirs: Sequence[Detections]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        # The convolution library may pick another kernel for another shape: a last bit of the score.
        np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("min_face_px", "upsample"), [(80, 0), (40, 1)])
def test_equals_dlib(portrait: np.ndarray, min_face_px: int, upsample: int) -> None:
    found = load_detector("dlib_mmod", min_face_px=min_face_px).detect([portrait])[0]
    expected = dlib_boxes(portrait, upsample)
    assert len(expected) == 1
    np.testing.assert_array_equal(box_to_dlib(found.boxes), [rect for rect, _ in expected])
    np.testing.assert_allclose(found.scores, [score for _, score in expected], rtol=0, atol=1e-4)


@pytest.mark.parametrize("min_face_px", [20, 40, 60, 80, 120])
def test_min_face_decides_what_is_found(
    portrait: np.ndarray, weights: mmod.MmodWeights, min_face_px: int
) -> None:
    search = detector(weights, min_face_px=min_face_px)
    limit = min_face_px / FACE_PX
    found = search.detect([resized(portrait, 1.2 * limit)])[0]
    assert len(found) == 1
    assert iou(found.boxes[0] / (1.2 * limit), FACE) > 0.7
    assert len(search.detect([resized(portrait, 0.65 * limit)])[0]) == 0


def test_very_large_faces(portrait: np.ndarray, weights: mmod.MmodWeights) -> None:
    large = cv2.resize(portrait, None, fx=6, fy=6, interpolation=cv2.INTER_CUBIC)
    found = detector(weights, min_face_px=80).detect([large])[0]
    assert len(found) == 1 and iou(found.boxes[0] / 6, FACE) > 0.6


@pytest.mark.parametrize("min_face_px", [80, 40, 100])
def test_result_does_not_depend_on_the_batch(
    monkeypatch: pytest.MonkeyPatch, portrait: np.ndarray, weights: mmod.MmodWeights, min_face_px: int
) -> None:
    """Images of every size in one padded forward pass, against each alone."""
    monkeypatch.setattr(mmod, "_FILLED", 0.0)
    images = [
        portrait,
        portrait[:250],
        portrait[20:280, :251],
        portrait[:, 40:],
        portrait[:90, :70],
        portrait,
    ]
    search = detector(weights, min_face_px=min_face_px, max_batch_pixels=1 << 30)
    plans = [search._plan(i, *image.shape[:2]) for i, image in enumerate(images)]
    assert [len(batch) for batch in mmod._batches(plans, 1 << 30)] == [6]
    together = search.detect(images)
    assert sum(len(found) for found in together) >= 5
    assert_same(together, [search.detect([image])[0] for image in images])
    assert_same(together, search.detect(images[::-1])[::-1])


def test_padding_mask_matters(
    monkeypatch: pytest.MonkeyPatch, portrait: np.ndarray, weights: mmod.MmodWeights
) -> None:
    """Scores near an edge see what lies beyond it: without the mask the batch would change them."""
    small, layouts = portrait[:100, :100], [tiled_layout(100, 100), tiled_layout(320, 300)]
    search = detector(weights, min_face_px=80)
    plans = [search._plan(i, *image.shape[:2]) for i, image in enumerate((small, portrait))]
    with torch.inference_mode():
        alone = search._network(search._planes([small], plans[:1]), layouts[:1])[0]
        planes = search._planes([small, portrait], plans)
        masked = search._network(planes, layouts)[0]
        monkeypatch.setattr(mmod._Network, "_inside", lambda *_: None)
        unmasked = search._network(planes, layouts)[0]
    rows, columns = alone.shape
    torch.testing.assert_close(masked[:rows, :columns], alone, rtol=0, atol=2e-6)
    assert (unmasked[:rows, :columns] - alone).abs().max() > 1e-3
    assert torch.isneginf(masked[rows:]).all() and torch.isneginf(masked[:, columns:]).all()


def test_batches_are_full_enough_and_small_enough(weights: mmod.MmodWeights) -> None:
    rng = np.random.default_rng(0)
    search = detector(weights, min_face_px=80)
    sizes = rng.integers(20, 400, (200, 2)).tolist() + [[250, 250]] * 50
    plans = [search._plan(i, *size) for i, size in enumerate(sizes)]
    cap = 1 << 20
    batches = list(mmod._batches(plans, cap))
    assert sorted(plan.position for batch in batches for plan in batch) == list(range(250))
    for batch in batches:
        padded = len(batch) * max(p.layout.height for p in batch) * max(p.layout.width for p in batch)
        assert len(batch) == 1 or (
            padded <= cap and sum(p.layout.area for p in batch) >= mmod._FILLED * padded
        )
    assert sum(len(batch) > 1 for batch in batches) > 10


def test_image_above_the_batch_limit_runs_alone(portrait: np.ndarray, weights: mmod.MmodWeights) -> None:
    usual, tight = detector(weights), detector(weights, max_batch_pixels=1000)
    assert_same(tight.detect([portrait, portrait[:200]]), usual.detect([portrait, portrait[:200]]))


@pytest.mark.parametrize("min_face_px", [80, 40])
def test_image_above_the_plane_limit_is_made_smaller(
    portrait: np.ndarray, weights: mmod.MmodWeights, min_face_px: int
) -> None:
    full = detector(weights, min_face_px=min_face_px)
    limit = full._plan(0, *portrait.shape[:2]).layout.area * 2 // 3
    capped = detector(weights, min_face_px=min_face_px, max_plane_pixels=limit)
    plan = capped._plan(0, *portrait.shape[:2])
    assert 0.7 * limit < plan.layout.area <= limit
    found, expected = capped.detect([portrait])[0], full.detect([portrait])[0]
    assert len(found) == len(expected) == 1 and iou(found.boxes[0], expected.boxes[0]) > 0.6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near(portrait: np.ndarray, weights: mmod.MmodWeights, precision: str) -> None:
    half, full = (detector(weights, precision=name).detect([portrait])[0] for name in (precision, "fp32"))
    np.testing.assert_allclose(half.boxes, full.boxes, atol=8)
    np.testing.assert_allclose(half.scores, full.scores, atol=0.03)
    assert half.scores[0] != full.scores[0]


def test_network_is_the_convolutions_in_the_file(weights: mmod.MmodWeights) -> None:
    """Against the plain chain: the split last convolution and the memory format change nothing."""
    planes = torch.from_numpy(np.random.default_rng(4).normal(size=(2, 143, 95, 3)).astype(np.float32))
    values = planes.permute(0, 3, 1, 2)
    for index, layer in enumerate(weights.convolutions):
        weight, bias = torch.from_numpy(layer.weight), torch.from_numpy(layer.bias)
        values = F.conv2d(values, weight, bias, layer.stride, layer.padding)
        values = values.relu() if index < 6 else values
    layout = dataclasses.replace(tiled_layout(9, 9), height=143, width=95)
    network = mmod._Network(weights, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(network(planes, [layout, layout]), values[:, 0], rtol=1e-5, atol=1e-5)


def test_cells_map_to_boxes_as_dlib_maps_them(weights: mmod.MmodWeights) -> None:
    """Every cell of a score map, against the rule written out for one cell."""
    layout = tiled_layout(130, 210)
    rows, columns = np.mgrid[: layout.height // 8, : layout.width // 8].reshape(2, -1)
    index = torch.zeros(len(rows), dtype=torch.int64)
    boxes = mmod._boxes_in_image(
        index, torch.from_numpy(rows), torch.from_numpy(columns), [layout], weights.window_px
    )
    for row, column, box in zip(rows.tolist(), columns.tolist(), boxes.tolist(), strict=True):
        x, y = 8 * column + 14, 8 * row + 14
        distances = []
        for left, top, width, height in layout.levels:
            across = max(left - x, 0, x - (left + width - 1))
            down = max(top - y, 0, y - (top + height - 1))
            distances.append(across**2 + down**2)
        level = distances.index(min(distances))
        left, top = layout.levels[level][:2]
        corners = [x - 39.5 - left, y - 39.5 - top, x + 39.5 - left, y + 39.5 - top]
        for _ in range(level):
            corners = [value * 1.2 + 0.3 for value in corners]
        rounded = [float(int(abs(value) + 0.5)) * (1 if value >= 0 else -1) for value in corners]
        assert box == rounded


def test_weights_that_are_damaged_or_another_network(weights: mmod.MmodWeights) -> None:
    content = read_weights(CARD)
    assert [layer.weight.shape[:2] for layer in weights.convolutions] == [
        (16, 3), (32, 16), (32, 32), (45, 32), (45, 45), (45, 45), (1, 45),
    ]  # fmt: skip
    other = {
        "does not fit at byte 142 of 5000": content[:5000],
        "the stream ends": content[:-5],
        "bytes too many": content + b"\0",
        "where 'bn_con2' should be": content.replace(b"bn_con2", b"bn_con3", 1),
        "where 'loss_mmod_' should be": content.replace(b"loss_mmod_", b"loss_ranks", 1),
    }
    for complaint, damaged in other.items():
        with pytest.raises(CorruptError, match=complaint):
            read_mmod(DatReader(damaged))


def test_card_that_contradicts_the_weights() -> None:
    wrong = dataclasses.replace(CARD, mean=(1.0, 2.0, 3.0))
    with pytest.raises(MismatchError, match=r"model card 'dlib_mmod': .*correct the card"):
        mmod.load(wrong, device=torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("min_face_px", [80, 40, 60])
def test_cuda_equals_cpu(portrait: np.ndarray, min_face_px: int) -> None:
    images = [portrait, portrait[:200, :211], portrait[:10], portrait]
    here = load_detector("dlib_mmod", min_face_px=min_face_px).detect(images)
    there = load_detector("dlib_mmod", device="cuda", min_face_px=min_face_px).detect(images)
    for ours, theirs in zip(there, here, strict=True):
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-4)
