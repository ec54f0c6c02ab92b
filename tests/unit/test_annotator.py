"""Annotators: what is read off a network's outputs, how chips are cut from crops, the way back to the photograph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx_files import pooled_scores

from facescale.errors import MismatchError, UsageError
from facescale.models.annotator_card import AnnotatorColumn, AnnotatorPart, EyeCrop
from facescale.models.card import ModelCard
from facescale.vision.align import chip_template
from facescale.vision.annotate import to_arrow
from facescale.vision.annotator import NetworkAnnotator, decode
from facescale.vision.annotator_chips import annotator_chips, check_crop
from facescale.vision.crops import MAX_SIDE_PX, wide_crops
from facescale.vision.registry import load_annotator

RNG = np.random.default_rng(0)


def column(how: str, type_: str, **more: Any) -> dict[str, Any]:
    return {"name": "x", "type": type_, "description": "X.", "how": how, **more}


def card(*columns: dict[str, Any], **more: Any) -> ModelCard:
    own: dict[str, Any] = {
        "name": "net",
        "task": "annotator",
        "architecture": "onnx",
        "file": "net.onnx",
        "licence": "MIT",
        "non_commercial": False,
        "source": "the tests",
        "input_size": 32,
        "annotator": {"columns": list(columns), **more.pop("section", {})},
    }
    return ModelCard(**(own | more))


def read(output: np.ndarray, how: str, type_: str, **more: Any) -> list[Any]:
    """What a column of this kind holds, as the table has it."""
    spec = AnnotatorColumn(name="x", type=type_, description="X.", how=how, **more)
    values, finite = decode(spec, np.asarray(output, np.float32), card(column("raw", "float")))
    array, broken = to_arrow(spec, values)
    assert not (broken & finite).any()
    found: list[Any] = array.to_pylist()
    return found


def softmax(row: np.ndarray) -> np.ndarray:
    raised = np.exp(row.astype(np.float64))
    soft: np.ndarray = raised / raised.sum()
    return soft


SCORES = RNG.normal(size=(6, 4)).astype(np.float32)


def test_each_way_of_reading() -> None:
    soft = np.array([softmax(row) for row in SCORES])
    near = {"rel": 1e-5, "abs": 1e-6}
    assert read(SCORES[:, :1], "raw", "float", multiply=100, add=-1) == pytest.approx(
        SCORES[:, 0] * 100 - 1, **near
    )
    assert read(SCORES, "raw", "float", pick=2) == pytest.approx(SCORES[:, 2], **near)
    assert read(SCORES, "raw", "list<float>") == [pytest.approx(row, **near) for row in SCORES]
    assert read(SCORES * 9, "raw", "int32", pick=1) == np.rint(SCORES[:, 1] * 9).tolist()
    assert read(SCORES, "sigmoid", "float", pick=3) == pytest.approx(1 / (1 + np.exp(-SCORES[:, 3])), **near)
    names = ("a", "b", "c", "d")
    assert read(SCORES, "softmax", "float", classes=names, pick="b") == pytest.approx(soft[:, 1], **near)
    assert read(SCORES, "softmax", "list<float>") == [pytest.approx(row, **near) for row in soft]
    assert read(SCORES, "expected", "float", bins=(0.0, 10.0, 20.0, 80.0)) == pytest.approx(
        soft @ [0, 10, 20, 80], **near
    )
    best = SCORES.argmax(axis=1)
    assert read(SCORES, "argmax", "string", classes=names) == [names[i] for i in best]
    assert read(SCORES, "argmax", "int32") == best.tolist()
    sure = soft.max(axis=1) >= 0.5
    assert 0 < sure.sum() < 6
    expected = [names[i] if known else None for i, known in zip(best, sure, strict=True)]
    assert read(SCORES, "argmax", "string", classes=names, min_probability=0.5) == expected
    assert read(SCORES, "threshold", "bool", pick=0, threshold=0.2) == (SCORES[:, 0] >= 0.2).tolist()
    of_two = [softmax(row[2:])[1] >= 0.5 for row in SCORES]
    more = {"range": (2, 4), "pick": 1, "activation": "softmax", "threshold": 0.5}
    assert read(SCORES, "threshold", "bool", **more) == of_two


def test_maps_and_points() -> None:
    maps = RNG.normal(size=(3, 5, 8, 6))
    shares = [[(face.argmax(axis=0) == c).mean() for c in range(5)] for face in maps]
    assert read(maps, "shares", "list<float>") == [pytest.approx(row, abs=1e-6) for row in shares]
    named = {"classes": ("skin", "hair", "eye", "hat", "none"), "pick": "hat"}
    assert read(maps, "shares", "float", **named) == pytest.approx([row[3] for row in shares], abs=1e-6)
    points = RNG.uniform(size=(2, 68, 2))
    flat = points.reshape(2, -1)
    assert read(points, "points", "list<float>", point_unit="side") == [
        pytest.approx(row * 32, abs=1e-4) for row in flat
    ]
    assert read(points, "points", "list<float>") == [pytest.approx(row + 0.5, abs=1e-5) for row in flat]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(bad: float) -> None:
    """One face's numbers are no numbers: its value is null, the others' are as ever."""
    names = ("a", "b", "c", "d")
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("raw", "float", {"pick": 1}),
        ("raw", "int32", {"pick": 1}),
        ("raw", "list<float>", {}),
        ("softmax", "float", {"pick": 0}),
        ("sigmoid", "list<float>", {}),
        ("expected", "float", {"bins": (1.0, 2.0, 3.0, 4.0)}),
        ("argmax", "string", {"classes": names}),
        ("argmax", "int32", {}),
        ("threshold", "bool", {"pick": 1, "threshold": 0.0}),
        ("points", "list<float>", {}),
    ]
    broken = SCORES.copy()
    broken[2, 1] = bad
    for how, type_, more in ways:
        found = read(broken, how, type_, **more)
        assert found[2] is None and None not in found[:2] + found[3:], how
    maps = RNG.normal(size=(3, 5, 8, 6))
    maps[1, 2, 3, 4] = bad
    found = read(maps, "shares", "list<float>")
    assert found[1] is None and None not in (found[0], found[2])
    assert read(broken, "raw", "float", pick=0)[2] is not None  # a number that is not looked at does no harm


@pytest.mark.parametrize(
    ("output", "how", "type_", "more", "what"),
    [
        (SCORES, "raw", "float", {}, "`pick` is None and there are 4 values"),
        (SCORES, "raw", "float", {"pick": 4}, "`pick` is 4 and there are 4 values"),
        (SCORES, "argmax", "string", {"classes": ("a", "b")}, r"names 2 classes.*\(6, 4\) gives 4 values"),
        (SCORES, "expected", "float", {"bins": (1.0, 2.0, 3.0)}, "names 3 classes or bins"),
        (SCORES, "raw", "list<float>", {"range": (2, 5)}, "range ends at 5"),
        (SCORES[:, :3], "points", "list<float>", {}, "3 values a face are no pairs"),
        (SCORES, "shares", "list<float>", {}, r"shares are of maps \[N, C, H, W\]"),
    ],
)
def test_shapes_that_the_card_does_not_mean(
    output: np.ndarray, how: str, type_: str, more: dict[str, Any], what: str
) -> None:
    with pytest.raises(MismatchError, match=f"model 'net', column x: .*{what}"):
        read(output, how, type_, **more)


def test_an_onnx_file_against_its_arithmetic(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any batch size, a file that takes one batch size only, no faces at all."""
    weights, bias = RNG.normal(size=(4, 3)).astype(np.float32), RNG.normal(size=4).astype(np.float32)
    chips = RNG.integers(0, 256, (7, 32, 32, 3), np.uint8)
    means = (chips.astype(np.float64) - 100).mean(axis=(1, 2)) / 50
    expected = means[:, ::-1] @ weights.T + bias
    monkeypatch.setenv("FACESCALE_WEIGHTS", str(tmp_path))
    own: dict[str, Any] = {"channel_order": "bgr", "mean": (100.0,) * 3, "scale": (50.0,) * 3}
    pooled_scores(tmp_path / "net.onnx", weights, bias, 32)
    pooled_scores(tmp_path / "fixed.onnx", weights, bias, 32, batch=3)
    one = column("raw", "list<float>")
    for batch, file, options in ((1, "net.onnx", {}), (5, "net.onnx", {}), (5, "fixed.onnx", {"batch": 3})):
        net = load_annotator(card(one, file=file, options=options, **own), batch=batch)
        np.testing.assert_allclose(net.annotate(chips)["x"], expected, atol=1e-4)
        assert net.annotate(chips[:0])["x"].shape == (0, 4)
    wrong = card(one | {"output": "ages"}, **own)
    with pytest.raises(MismatchError, match="names the output 'ages', and the network gives scores"):
        load_annotator(wrong).annotate(chips)
    with pytest.raises(UsageError, match="column x is `given`"):
        load_annotator(card(column("given", "string"), **own))
    with pytest.raises(UsageError, match=r"options\.batch is 'two'"):
        load_annotator(card(one, options={"batch": "two"}, **own))


def test_outputs_without_a_row_for_each_face() -> None:
    class Pooled:
        def __call__(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"a": batch.mean(dim=(0, 2, 3)), "b": batch}

    for output, what in (
        ("a", r"shape \(3,\) for 2 faces"),
        (None, "names no output, and the network gives"),
    ):
        one = card(column("raw", "list<float>", output=output))
        net = NetworkAnnotator(one, Pooled(), device=torch.device("cpu"), batch=8)
        with pytest.raises(MismatchError, match=what):
            net.annotate(np.zeros((2, 32, 32, 3), np.uint8))


# Chips


def faces(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A photograph whose red and green say where a pixel is, and arcface5 landmarks on it, of many sizes and turns."""
    rng = np.random.default_rng(seed)
    side = 900
    ramp = np.rint((np.arange(side) + 0.5) * (250 / side))
    photo = np.zeros((side, side, 3), np.uint8)
    photo[..., 0], photo[..., 1] = ramp[None, :], ramp[:, None]
    points = chip_template("arcface_112").points - 56
    turn = rng.uniform(0.6, 2.2, count) * np.exp(1j * rng.uniform(-0.6, 0.6, count))
    moved = turn[:, None] * (points[:, 0] + 1j * points[:, 1]) + (450 + 450j)
    return photo, np.stack([moved.real, moved.imag], axis=-1)


PARTS = {
    "eyes": ({"input_size": 64}, EyeCrop(eyes_at=(0.5, 0.4), eye_distance=0.3)),
    "wide": ({"input_size": 128}, EyeCrop()),
    "template": (
        {"input_size": 112, "template": "arcface_112", "landmark_scheme": "arcface5"},
        None,
    ),
}


@pytest.mark.parametrize("kind", PARTS)
def test_points_come_back_to_the_photograph(kind: str) -> None:
    """A pixel of a chip shows the place of the photograph that `to_image` leads it to."""
    more, crop = PARTS[kind]
    photo, landmarks = faces(12)
    crops, matrices = wide_crops(photo, landmarks, "arcface5")
    assert {len(c) for c in crops} >= {MAX_SIDE_PX} and min(len(c) for c in crops) < MAX_SIDE_PX
    spec = card(column("raw", "float"), **more)
    part = AnnotatorPart((), crop)
    chips = annotator_chips(crops, matrices, landmarks, "arcface5", spec, part)
    size = more["input_size"]
    assert chips.pixels.shape == (12, size, size, 3)
    at = np.floor(np.array([(x, y) for x in (0.25, 0.5, 0.75) for y in (0.3, 0.5, 0.7)]) * size) + 0.5
    there = chips.to_image(np.tile(at.ravel(), (12, 1))).reshape(12, 9, 2)
    rows, columns = np.floor(at).astype(int).T[::-1]
    shown = chips.pixels[:, rows, columns, :2].astype(float) * (900 / 250)
    # 250 shades over 900 px: a shade is 3.6 px, and it is rounded three times.
    assert np.abs(shown - there).max() < 4
    assert np.abs((shown - there).mean(axis=(0, 1))).max() < 0.4


def test_where_the_eyes_are() -> None:
    photo, landmarks = faces(9, seed=1)
    crops, matrices = wide_crops(photo, landmarks, "arcface5")
    spec = card(column("raw", "float"), input_size=100)
    part = AnnotatorPart((), EyeCrop(eyes_at=(0.5, 0.4), eye_distance=0.3))
    chips = annotator_chips(crops, matrices, landmarks, "arcface5", spec, part)
    eyes = chips.to_image(np.tile(np.float32([35, 40, 65, 40]), (9, 1))).reshape(9, 2, 2)
    np.testing.assert_allclose(eyes, landmarks[:, :2], atol=0.05)


def test_faces_whose_eyes_coincide_are_cut_too() -> None:
    photo, landmarks = faces(2)
    landmarks[0] = 450
    crops, matrices = wide_crops(photo, landmarks, "arcface5")
    chips = annotator_chips(
        crops, matrices, landmarks, "arcface5", card(column("raw", "float")), AnnotatorPart((), EyeCrop())
    )
    assert np.isfinite(chips.to_image(np.zeros((2, 2)))).all()


@given(st.integers(0, 2**32 - 1))
def test_a_chip_holds_nothing_but_the_crop(seed: int) -> None:
    """The widest crop that a card may ask for never reaches beyond what is stored."""
    photo, landmarks = faces(3, seed)
    crops, matrices = wide_crops(np.full_like(photo, 200), landmarks, "arcface5")
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0.3, 0.7, 2)
    widest = EyeCrop(eyes_at=(x, y), eye_distance=max(x, 1 - x, y, 1 - y) / 2.2)
    part, spec = AnnotatorPart((), widest), card(column("raw", "float"), input_size=48)
    chips = annotator_chips(crops, matrices, landmarks, "arcface5", spec, part)
    assert chips.pixels.min() >= 199


def test_crops_refused() -> None:
    points = AnnotatorPart(
        (AnnotatorColumn(name="x", type="list<float>", description="X.", how="points"),), None
    )
    arcface = {"template": "arcface_112", "landmark_scheme": "arcface5"}
    one = column("points", "list<float>")
    with pytest.raises(MismatchError, match="annotator net needs landmarks of scheme 'arcface5'"):
        check_crop(card(one, input_size=112, **arcface), points, "dlib5")
    with pytest.raises(UsageError, match="'input_size' is 96, and chips of the template arcface_112 are 112"):
        check_crop(card(one, input_size=96, **arcface), points, "arcface5")
    with pytest.raises(UsageError, match="resampled"):
        check_crop(card(one, input_size=150, template="dlib_150", landmark_scheme="dlib5"), points, "dlib5")
    check_crop(card(one, input_size=112, **arcface), points, "arcface5")


def test_values_of_plug_ins_become_columns() -> None:
    """Integers out of range and infinities are no values; NaN in a number that may be unknown is null, not broken."""
    whole = AnnotatorColumn(name="x", type="int32", description="X.")
    array, broken = to_arrow(whole, np.array([1, np.nan, 3e9, -np.inf]))
    assert (array.to_pylist(), broken.tolist()) == ([1, None, None, None], [False, False, True, True])
    flag = AnnotatorColumn(name="x", type="bool", description="X.", how="threshold", threshold=0)
    array, broken = to_arrow(flag, np.array([True, False]))
    assert (array.to_pylist(), broken.any()) == ([True, False], False)
    many = AnnotatorColumn(name="x", type="list<float>", description="X.")
    array, broken = to_arrow(many, np.array([[1, 2], [np.nan, 1], [1e300, 0]]))
    assert (array.to_pylist(), broken.tolist()) == ([[1, 2], None, None], [False, True, True])
    assert array.type == pa.list_(pa.float32())
