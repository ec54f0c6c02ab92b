"""What each family of detectors reads out of its outputs, against loops written down from the papers; NMS; crops."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import torch
from onnx_samples import pooling_network, scrfd_network

from facescale.errors import CorruptError, MismatchError, UsageError
from facescale.models.card import ModelCard
from facescale.models.onnx_shapes import free_input
from facescale.models.registry import card
from facescale.vision import blazeface, centerface, mtcnn, retinaface, scrfd, ultraface
from facescale.vision.dense import MAX_CANVAS_PIXELS, Canvas, DenseDetector
from facescale.vision.networks import load_network
from facescale.vision.nms import greedy_nms, intersection_over_smaller
from facescale.vision.retinaface_network import RetinaFace
from facescale.vision.sampling import CropSource

if TYPE_CHECKING:
    from pathlib import Path

HEIGHT, WIDTH = 64, 96
STRIDES = (8, 16, 32)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32))


def same(found: torch.Tensor, expected: object) -> None:
    np.testing.assert_allclose(found.numpy(), np.array(expected, np.float32), rtol=1e-5, atol=1e-4)


def cells(stride: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(HEIGHT // stride) for column in range(WIDTH // stride)]


def test_scrfd() -> None:
    places = [2 * len(cells(stride)) for stride in STRIDES]
    values = {
        f"{start + level}": noise(2, places[level], size, seed=start + level)
        for start, size in ((0, 1), (3, 4), (6, 10))
        for level in range(3)
    }
    found = scrfd.decode(values, HEIGHT, WIDTH, card=card("scrfd_10g"))
    for image in range(2):
        scores, boxes, points = [], [], []
        for level, stride in enumerate(STRIDES):
            for place in range(places[level]):
                row, column = cells(stride)[place // 2]
                x, y = column * stride, row * stride
                left, top, right, bottom = (values[f"{3 + level}"][image, place] * stride).tolist()
                scores.append(values[f"{level}"][image, place, 0].item())
                boxes.append((x - left, y - top, x + right, y + bottom))
                k = values[f"{6 + level}"][image, place].tolist()
                points.append([(x + k[2 * i] * stride, y + k[2 * i + 1] * stride) for i in range(5)])
        assert found.landmarks is not None
        same(found.scores[image], scores)
        same(found.boxes[image], boxes)
        same(found.landmarks[image], points)


def test_scrfd_of_another_shape_is_refused() -> None:
    outputs = {str(i): noise(1, 8, 4) for i in range(9)}
    with pytest.raises(MismatchError, match=r"judges 8 places at stride 8 of a canvas of 96 x 64 px"):
        scrfd.decode(outputs, HEIGHT, WIDTH, card=card("scrfd_10g"))
    with pytest.raises(MismatchError, match="has 6 outputs"):
        scrfd.decode(dict(list(outputs.items())[:6]), HEIGHT, WIDTH, card=card("scrfd_10g"))


def test_scrfd_file_without_a_batch_in_its_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file as insightface exports them, for one image, outputs [places, values]: a bright cell is a face."""
    (tmp_path / "bright.onnx").write_bytes(scrfd_network(reach=2.0))
    monkeypatch.setenv("FACESCALE_WEIGHTS", str(tmp_path))
    own = ModelCard(
        name="bright",
        task="detector",
        architecture="scrfd",
        file="bright.onnx",
        licence="MIT",
        non_commercial=False,
        source="a test",
        mean=(127.5,) * 3,
        scale=(128.0,) * 3,
        landmark_scheme="arcface5",
        threshold=0.6,
        min_face_px=8,
    )
    detector = scrfd.load(
        own, device=torch.device("cpu"), precision="fp32", min_face_px=8, max_batch_pixels=None
    )
    images = [np.zeros((64, 64, 3), np.uint8) for _ in range(3)]
    images[1][16:24, 40:48] = 255  # one cell of stride 8: row 2, column 5
    for _ in range(2):
        empty, one, other = detector.detect(images)
        assert len(empty) == len(other) == 0 and len(one) == 1
        np.testing.assert_allclose(one.boxes[0], [40 - 16, 16 - 16, 40 + 16, 16 + 16], atol=1e-4)
        assert one.landmarks is not None
        np.testing.assert_allclose(one.landmarks[0], [[40.5, 16.5]] * 5, atol=1e-4)
        images = images[::-1]


def test_retinaface() -> None:
    sides = [[10, 20], [32, 64], [128, 256]]
    num = sum(2 * len(cells(stride)) for stride in STRIDES)
    values = {"scores": noise(1, num, 2), "boxes": noise(1, num, 4), "landmarks": noise(1, num, 10)}
    found = retinaface.decode(values, HEIGHT, WIDTH, anchors_px=sides)
    scores, boxes, points, at = [], [], [], 0
    for stride, pair in zip(STRIDES, sides, strict=True):
        for row, column in cells(stride):
            for side in pair:
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                dx, dy, dw, dh = values["boxes"][0, at].tolist()
                cx, cy = x + 0.1 * dx * side, y + 0.1 * dy * side
                w, h = side * math.exp(0.2 * dw), side * math.exp(0.2 * dh)
                boxes.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
                no, yes = values["scores"][0, at].tolist()
                scores.append(math.exp(yes) / (math.exp(no) + math.exp(yes)))
                k = values["landmarks"][0, at].tolist()
                points.append([(x + 0.1 * side * k[2 * i], y + 0.1 * side * k[2 * i + 1]) for i in range(5)])
                at += 1
    assert found.landmarks is not None
    same(found.scores[0], scores)
    same(found.boxes[0], boxes)
    same(found.landmarks[0], points)


@pytest.mark.parametrize(("backbone", "width"), [("mobilenet_025", 64), ("resnet_50", 256)])
def test_retinaface_networks_have_the_names_and_places_of_the_public_checkpoints(
    backbone: str, width: int
) -> None:
    with torch.device("meta"):
        network = RetinaFace(backbone).eval()
        outputs = network(torch.empty(2, 3, HEIGHT, WIDTH))
    num = sum(2 * len(cells(stride)) for stride in STRIDES)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "scores": (2, num, 2),
        "boxes": (2, num, 4),
        "landmarks": (2, num, 10),
    }
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["ssh3.conv7x7_3.0.weight"] == (width // 4, width // 4, 3, 3)
    assert shapes["fpn.output3.0.weight"] == (width, 4 * width if width == 64 else 8 * width, 1, 1)
    assert shapes["ClassHead.2.conv1x1.bias"] == (4,) and shapes["LandmarkHead.0.conv1x1.bias"] == (20,)
    if backbone == "resnet_50":  # as torchvision has it, without its classifier
        body = {name: shape for name, shape in shapes.items() if name.startswith("body.")}
        assert len(body) == 318
        assert body["body.layer4.0.downsample.0.weight"] == (2048, 1024, 1, 1)
        assert body["body.layer3.5.conv2.weight"] == (256, 256, 3, 3)
        assert body["body.conv1.weight"] == (64, 3, 7, 7)


def test_ultraface() -> None:
    outputs = {
        "scores": torch.tensor([[[0.9, 0.1], [0.2, 0.8]]]),
        "boxes": torch.tensor([[[0.0, 0, 1, 1], [0.25, 0.5, 0.5, 0.75]]]),
    }
    found = ultraface.decode(outputs, 240, 320)
    same(found.scores, [[0.1, 0.8]])
    same(found.boxes, [[(0, 0, 320, 240), (80, 120, 160, 180)]])
    assert found.landmarks is None


def test_blazeface() -> None:
    outputs = {"scores": noise(1, 896), "places": noise(1, 896, 16) * 30}
    found = blazeface.decode(outputs, 128, 128)
    anchors = [((c + 0.5) * 8, (r + 0.5) * 8) for r in range(16) for c in range(16) for _ in range(2)]
    anchors += [((c + 0.5) * 16, (r + 0.5) * 16) for r in range(8) for c in range(8) for _ in range(6)]
    assert len(anchors) == 896 and found.landmarks is not None
    for i, (x, y) in enumerate(anchors):
        dx, dy, w, h, *k = outputs["places"][0, i].tolist()
        cx, cy = x + dx, y + dy
        same(found.scores[0, i], 1 / (1 + math.exp(-outputs["scores"][0, i].item())))
        w, h = abs(w), abs(h)
        same(found.boxes[0, i], (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
        same(found.landmarks[0, i], [(x + k[2 * j] - 0.5, y + k[2 * j + 1] - 0.5) for j in range(6)])


def test_centerface() -> None:
    rows, columns = HEIGHT // 4, WIDTH // 4
    heat = torch.zeros(1, 1, rows, columns)
    heat[0, 0, 5, 7], heat[0, 0, 5, 8], heat[0, 0, 12, 20] = 0.9, 0.8, 0.7
    outputs = {
        "537": heat,
        "538": noise(1, 2, rows, columns, seed=1) + 1.5,
        "539": noise(1, 2, rows, columns, seed=2),
        "540": noise(1, 10, rows, columns, seed=3),
    }
    found = centerface.decode(outputs, HEIGHT, WIDTH)
    peaks = found.scores[0].nonzero().squeeze(1).tolist()
    assert peaks == [5 * columns + 7, 12 * columns + 20]  # the neighbor of a higher one is none
    assert found.landmarks is not None
    for peak in peaks:
        row, column = divmod(peak, columns)
        h, w = (math.exp(outputs["538"][0, i, row, column]) * 4 for i in range(2))
        dy, dx = (outputs["539"][0, i, row, column].item() for i in range(2))
        x, y = (column + dx + 0.5) * 4 - w / 2, (row + dy + 0.5) * 4 - h / 2
        same(found.boxes[0, peak], (x, y, x + w, y + h))
        k = outputs["540"][0, :, row, column].tolist()
        same(found.landmarks[0, peak], [(x + k[2 * i + 1] * w, y + k[2 * i] * h) for i in range(5)])
    with pytest.raises(MismatchError, match="of 1, 2, 2 and 10 channels"):
        centerface.decode({"537": heat}, HEIGHT, WIDTH)


def test_overlap_with_the_smaller_box() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [2, 2, 4, 4], [9, 9, 13, 13], [5, 5, 5, 9]])
    same(intersection_over_smaller(boxes[:1], boxes), [[1, 1, 1 / 16, 0]])
    kept = greedy_nms(boxes, torch.tensor([0, 0, 0, 1]), 0.7, intersection_over_smaller)
    assert kept.tolist() == [True, False, True, True]  # IoU of the second is 0.04


def test_canvas_is_bounded_whatever_the_smallest_face() -> None:
    detector = DenseDetector(
        card("yunet_n"),
        lambda batch: {},
        lambda outputs, height, width: pytest.fail("not called"),
        device=torch.device("cpu"),
        min_face_px=1,
        canvas=Canvas(),
    )
    plan = detector._plan(0, 9000, 6000)
    assert plan.canvas[0] * plan.canvas[1] <= MAX_CANVAS_PIXELS * 1.02
    assert plan.height / plan.width == pytest.approx(1.5, rel=1e-3)


# Crops


def test_crops_are_what_resizing_each_box_gives() -> None:
    rng = np.random.default_rng(4)
    images = [
        cv2.GaussianBlur(rng.integers(0, 256, shape, dtype=np.uint8), (0, 0), 6)
        for shape in ((300, 201, 3), (97, 160, 3), (31, 40, 3))
    ]
    boxes = np.array(
        [[20, 30, 116, 126], [3, 5, 27, 29], [40, 7, 136, 103], [0, 0, 31, 31], [0, 0, 200, 200]]
    )
    owner = np.array([0, 1, 0, 2, 0])
    source = CropSource(images, torch.device("cpu"), largest_crop_px=48)
    found = source.crop(torch.from_numpy(owner), torch.from_numpy(boxes.astype(np.float32)), 24).numpy()
    for crop, image, (x1, y1, x2, y2) in zip(found, owner, boxes, strict=True):
        expected = cv2.resize(images[image][y1:y2, x1:x2], (24, 24), interpolation=cv2.INTER_AREA)
        assert np.abs(crop - expected).mean() < 1.0
        assert np.corrcoef(crop.ravel(), expected.ravel().astype(float))[0, 1] > 0.98


def test_crops_are_black_outside_and_do_not_depend_on_the_batch() -> None:
    image = np.full((60, 60, 3), 200, np.uint8)
    boxes = torch.tensor([[-60.0, 0, 60, 120], [0, 0, 60, 60], [500, 500, 600, 600], [10, 10, 10, 10]])
    source = CropSource([image], torch.device("cpu"), largest_crop_px=48)
    found = source.crop(torch.zeros(4, dtype=torch.long), boxes, 24)
    assert found[0, :, :12].max() == 0 and found[0, 12:].max() == 0
    assert found[0, :12, 12:].min() == pytest.approx(200)
    assert found[1].min() == pytest.approx(200) and found[2].max() == 0
    for i in range(4):
        assert torch.equal(source.crop(torch.zeros(1, dtype=torch.long), boxes[i : i + 1], 24)[0], found[i])


# Cards


def test_parts_of_a_card() -> None:
    parts = card("mtcnn").parts
    assert set(parts) == {"pnet", "rnet"} and parts["pnet"].name == "mtcnn_pnet"
    assert parts["pnet"].sha256 != card("mtcnn").sha256 and parts["rnet"].file == "mtcnn_rnet.pt"
    assert not parts["pnet"].parts and not card("yunet_n").parts


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"parts": {"pnet": {"sha256": None}}}, "field 'file' is missing"),
        ({"parts": {"pnet": {"file": 3}}}, "expected str, got 3"),
        ({"parts": ["pnet"]}, "must map names to files"),
        ({"parts": {"pnet": {"file": "p.pt"}}}, r"must name pnet and rnet, got \['pnet'\]"),
        ({}, r"must name pnet and rnet, got \[\]"),
    ],
)
def test_parts_that_are_wrong(options: dict[str, object], complaint: str) -> None:
    wrong = dataclasses.replace(card("mtcnn"), options=options)
    with pytest.raises(UsageError, match=complaint):
        mtcnn.load(wrong, device=torch.device("cpu"), precision="fp32", min_face_px=40, max_batch_pixels=None)


@pytest.mark.parametrize(
    ("module", "name", "options", "complaint"),
    [
        (ultraface, "ultraface_rfb_320", {}, r"options.canvas of its card must be \[height, width\]"),
        (blazeface, "blazeface", {"camera": "side"}, "must be front or back, got 'side'"),
        (retinaface, "retinaface_r50", {"backbone": "vgg"}, "must be one of mobilenet_025, resnet_50"),
        (retinaface, "retinaface_r50", {"backbone": "resnet_50"}, "options.anchors_px of its card"),
    ],
)
def test_options_that_are_wrong(
    module: object, name: str, options: dict[str, object], complaint: str
) -> None:
    wrong = dataclasses.replace(card(name), options=options)
    with pytest.raises(UsageError, match=complaint):
        module.load(  # type: ignore[attr-defined]
            wrong, device=torch.device("cpu"), precision="fp32", min_face_px=40, max_batch_pixels=None
        )


def test_a_file_that_declares_its_examples_size_takes_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fixed.onnx").write_bytes(pooling_network(32, 4, batch=10))
    monkeypatch.setenv("FACESCALE_WEIGHTS", str(tmp_path))
    fixed = dataclasses.replace(card("centerface"), name="fixed", file="fixed.onnx")
    images = torch.rand(3, 3, 64, 96)
    found = load_network(fixed, device=torch.device("cpu"))(images)["descriptor"]
    expected = torch.nn.functional.avg_pool2d(images, 8).flatten(1)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-6)
    with pytest.raises(MismatchError, match=r"does not take a batch of shape \(10, 3, 64, 96\)"):
        load_network(dataclasses.replace(fixed, options={}), device=torch.device("cpu"))(images)


@pytest.mark.parametrize("cut", [3, 40, 100])
def test_a_file_that_is_no_onnx_file_is_refused(cut: int) -> None:
    with pytest.raises(CorruptError, match="not an ONNX file"):
        free_input(pooling_network()[:cut])
    with pytest.raises(CorruptError, match="not an ONNX file"):
        free_input(b"\xff" * 50)
