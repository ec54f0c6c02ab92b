"""`bench gpu` in emulation: every step is measured, what lacks weights gets random ones, the impossible is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import torch

from facescale.bench.gpu import bench_gpu
from facescale.bench.gpu_models import lay_faces, load_or_make_detector, load_or_make_embedder
from facescale.bench.gpu_steps import make_photos
from facescale.bench.photos import evenly, find_photos, link_photos
from facescale.bench.utilization import DeviceMeter
from facescale.driver.context import SilentReporter
from facescale.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
STEPS = ["decode", "hash", "upload", "detect", "align", "crops and quality", "embed"]


def test_every_step_is_measured(test_data: Path, tmp_path: Path) -> None:
    link_photos(evenly(find_photos(test_data / "lfw"), 6), test_data, tmp_path / "some")
    result = bench_gpu(
        str(tmp_path / "some"),
        SilentReporter(),
        device="cpu",
        images=6,
        width_px=400,
        height_px=240,
        micro_batch=2,
        embed_batch=5,
        decode_threads=1,
        rounds=1,
        work=str(tmp_path),
    )
    rows = {row["step"]: row for row in result.figures["steps"]}
    assert list(rows) == [*STEPS, "sum", "pipeline (extract, one worker)"]
    alone = [rows[step]["ms an image"] for step in STEPS]
    assert min(alone) > 0 and rows["sum"]["ms an image"] == pytest.approx(sum(alone))
    assert all(row["faces/s"] == pytest.approx(2 * row["images/s"]) for row in rows.values())
    pipeline = result.figures["pipeline"]
    assert pipeline["slowest step alone"] == STEPS[int(np.argmax(alone))]
    assert pipeline["ceiling, images/s"] == pytest.approx(1000 / max(alone))
    goals = {goal.name: goal for goal in result.goals}
    assert goals["pipeline, times the slowest step alone"].value is None  # an emulation
    assert goals["device busy, share"].value is None
    assert goals["bf16 against fp32, median cosine of real faces"].met
    assert result.settings["random weights"] == "none"
    assert [path.name for path in tmp_path.iterdir()] == ["some"]


def test_photographs_are_jpegs_of_the_size_and_the_same_each_time(tmp_path: Path) -> None:
    first, again = (make_photos(tmp_path / name, 2, 320, 180) for name in ("a", "b"))
    assert first == again and first[0] != first[1]
    assert cv2.imread(str(tmp_path / "a" / "000001.jpg")).shape == (180, 320, 3)


def test_faces_lie_inside_and_apart() -> None:
    faces = lay_faces(5, 1280, 720)
    assert (faces.boxes[:, :2] >= 0).all() and (faces.boxes[:, 2:] <= (1280, 720)).all()
    assert (faces.boxes[1:, 0] >= faces.boxes[:-1, 2]).all() and (np.diff(faces.scores) < 0).all()
    assert faces.landmarks is not None
    inside = (faces.landmarks > faces.boxes[:, None, :2]) & (faces.landmarks < faces.boxes[:, None, 2:])
    assert inside.all()
    with pytest.raises(UsageError, match="do not fit"):
        lay_faces(8, 1280, 720)


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FACESCALE_WEIGHTS", raising=False)
    monkeypatch.setenv("FACESCALE_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", ["mobilefacenet", "edgeface_xxs"])
def test_an_embedder_without_weights_gets_the_same_random_ones(name: str) -> None:
    chips = np.random.default_rng(1).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    found = []
    for _ in range(2):
        embedder, real = load_or_make_embedder(name, device="cpu", precision="fp32", batch=2)
        assert not real
        found.append(embedder.embed(chips))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)
    assert np.isfinite(found[0]).all() and np.ptp(found[0], axis=0).max() > 0.01


@pytest.mark.usefixtures("no_weights")
def test_a_retinaface_without_weights_gets_random_ones() -> None:
    detector, real = load_or_make_detector("retinaface_mnet025", device="cpu", precision="fp32")
    assert not real
    detector.detect([np.zeros((64, 96, 3), np.uint8)])
    with pytest.raises(UsageError, match="yunet_n"):
        load_or_make_detector("yunet_n", device="cpu", precision="fp32")


def test_the_meter_averages_what_it_is_told() -> None:
    with DeviceMeter(CPU, ["sh", "-c", "echo 100; echo; echo '[N/A]'; echo 50"]) as meter:
        meter._reader.join()
    assert meter.busy == 0.75
    meter.restart()
    assert meter.busy is None
    with DeviceMeter(CPU) as none:
        assert none.busy is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="is not there"):
        bench_gpu(None, SilentReporter())
