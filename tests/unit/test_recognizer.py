"""dlib's recognizer in torch; that its numbers are dlib's is for tests/integration/test_oracle_faces.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facescale.errors import CorruptError, FacescaleError, MismatchError
from facescale.models.dlib_dat import DatReader
from facescale.models.registry import card
from facescale.models.weights import read_weights
from facescale.vision.recognizer import DlibRecognizer, ResnetWeights, read_resnet


@pytest.fixture(scope="module")
def stream() -> bytes:
    try:
        return read_weights(card("dlib_resnet"))
    except FacescaleError as error:
        pytest.skip(f"the default models are not installed: {error}")


@pytest.fixture(scope="module")
def weights(stream: bytes) -> ResnetWeights:
    return read_resnet(DatReader(stream, "resnet.dat"))


def _model(weights: ResnetWeights, precision: str = "fp32", batch: int = 4) -> DlibRecognizer:
    cpu = torch.device("cpu")
    return DlibRecognizer(card("dlib_resnet"), weights, device=cpu, precision=precision, batch=batch)


@pytest.fixture(scope="module")
def chips() -> np.ndarray:
    """Soft random pictures: what a convolution sees in a photograph, not noise."""
    coarse = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (9, 3, 12, 12)))
    smooth = torch.nn.functional.interpolate(coarse, size=150, mode="bilinear")
    return smooth.permute(0, 2, 3, 1).to(torch.uint8).numpy().copy()


def test_the_file_holds_the_card_s_network(weights: ResnetWeights) -> None:
    model = card("dlib_resnet")
    np.testing.assert_allclose(weights.mean, model.mean, atol=1e-4)
    assert weights.size == model.input_size
    assert weights.linear.shape == (256, model.dim)
    widths = [len(second.bias) for _, second in weights.blocks]
    assert widths == [32] * 3 + [64] * 4 + [128] * 3 + [256] * 4


def test_descriptors_do_not_depend_on_the_batch(weights: ResnetWeights, chips: np.ndarray) -> None:
    together = _model(weights, batch=9).embed(chips)
    assert together.shape == (9, 128) and together.dtype == np.float32
    np.testing.assert_allclose(_model(weights, batch=4).embed(chips), together, atol=2e-6)
    np.testing.assert_allclose(_model(weights, batch=4).embed(chips[::-1])[::-1], together, atol=2e-6)
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_folding_changes_nothing(weights: ResnetWeights, chips: np.ndarray) -> None:
    """The same network in double precision, with the input layer as dlib has it."""
    x = (torch.from_numpy(chips[:2]).double() - torch.from_numpy(weights.mean)) / 256
    x = x.permute(0, 3, 1, 2)

    def convolve(x: torch.Tensor, layer: object) -> torch.Tensor:
        weight, bias = (torch.from_numpy(getattr(layer, name)).double() for name in ("weight", "bias"))
        return torch.nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding)

    x = torch.nn.functional.max_pool2d(convolve(x, weights.stem).relu(), 3, stride=2)
    for first, second in weights.blocks:
        y = convolve(convolve(x, first).relu(), second)
        shortcut = x if first.stride == 1 else torch.nn.functional.avg_pool2d(x, 2)
        total = torch.zeros(
            len(x), y.shape[1], max(y.shape[2], shortcut.shape[2]), max(y.shape[3], shortcut.shape[3])
        ).double()
        total[:, :, : y.shape[2], : y.shape[3]] += y
        total[:, : shortcut.shape[1], : shortcut.shape[2], : shortcut.shape[3]] += shortcut
        x = total.relu()
    expected = x.mean(dim=(2, 3)).numpy() @ weights.linear
    np.testing.assert_allclose(_model(weights).embed(chips[:2]), expected, atol=2e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.005)])
def test_half_precision_stays_close(
    weights: ResnetWeights, chips: np.ndarray, precision: str, tolerance: float
) -> None:
    exact = _model(weights).embed(chips[:3])
    half = _model(weights, precision).embed(chips[:3])
    assert half.dtype == np.float32
    distance = np.linalg.norm(half - exact, axis=1)
    assert 0 < distance.max() < tolerance


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_agrees_with_the_cpu(weights: ResnetWeights, chips: np.ndarray) -> None:
    expected = _model(weights).embed(chips)
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 0.01), ("bf16", 0.1)):
        model = DlibRecognizer(
            card("dlib_resnet"), weights, device=torch.device("cuda"), precision=precision, batch=4
        )
        assert np.linalg.norm(model.embed(chips) - expected, axis=1).max() < tolerance


def test_no_chips_and_wrong_chips(weights: ResnetWeights, chips: np.ndarray) -> None:
    model = _model(weights)
    assert model.embed(chips[:0]).shape == (0, 128)
    for wrong in (chips[:, :112, :112], chips.astype(np.float32), chips.transpose(0, 3, 1, 2), chips[0]):
        with pytest.raises(MismatchError, match="dlib_resnet takes uint8 chips"):
            model.embed(wrong)


def test_chips_need_not_be_contiguous_or_writable(weights: ResnetWeights, chips: np.ndarray) -> None:
    model = _model(weights)
    frozen = chips[:2].copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(model.embed(frozen), model.embed(chips[:2]))
    np.testing.assert_allclose(model.embed(chips[:, ::-1][:2, ::-1]), model.embed(chips[:2]), atol=2e-6)


@pytest.mark.parametrize("keep", [10, 300, 19_000, 1_000_000, -1])
def test_a_truncated_file_is_refused(stream: bytes, keep: int) -> None:
    with pytest.raises(CorruptError, match=r"cut\.dat: .* at byte"):
        read_resnet(DatReader(stream[:keep], "cut.dat"))


def test_another_network_is_refused(stream: bytes) -> None:
    for name, other in ((b"add_prev_", b"add_prev1"), (b"max_pool_2", b"max_pool_9"), (b"fc_2", b"fc_1")):
        with pytest.raises(CorruptError, match=f"where '{name.decode()}' should be"):
            read_resnet(DatReader(stream.replace(name, other), "other.dat"))
    with pytest.raises(CorruptError, match="1 bytes too many"):
        read_resnet(DatReader(stream + b"x", "long.dat"))
