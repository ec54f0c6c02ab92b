"""Chips in, 128 numbers a face out: dlib's face recognition network (ResNet-29) in torch.

Made by facescale.vision.registry, called by the extract and embed stages. dlib's affine layers are folded into
the convolutions, and the input's mean and scale into the first one, which pads nothing.

Shape legend: N faces, B faces of a batch, S chip side, D descriptor length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from facescale.errors import MismatchError
from facescale.models.dlib_dat import DatReader
from facescale.models.dlib_layers import (
    Convolution,
    expect_name,
    expect_plain,
    expect_pooling,
    read_affine,
    read_convolution,
    read_linear,
    skip_layer_state,
)
from facescale.models.weights import read_weights
from facescale.vision.precision import DTYPES, exact_convolutions

if TYPE_CHECKING:
    from facescale.models.card import ModelCard

_DOWN = (False,) * 3 + (True,) + (False,) * 3 + (True,) + (False,) * 2 + (True,) + (False,) * 2 + (True,)
_INPUT_SCALE = 256.0  # a constant of dlib's input layer; its means are in the file


@dataclass(frozen=True, eq=False)
class ResnetWeights:
    """What the file holds.

    Args:
        mean: float64 [3], RGB, subtracted from the pixels.
        size: S, px.
        stem: the first convolution; a ReLU and a 3×3/2 max pool follow.
        blocks: two convolutions each, a ReLU between them; of stride 2 where the block halves the resolution.
        linear: float32 [256, D].
    """

    mean: np.ndarray
    size: int
    stem: Convolution
    blocks: tuple[tuple[Convolution, Convolution], ...]
    linear: np.ndarray


def load(card: ModelCard, *, device: torch.device, precision: str, batch: int) -> DlibRecognizer:
    """Load the recognizer of `card`.

    Args:
        card: which weights.
        device: where it runs.
        precision: of weights and activations, a key of facescale.vision.registry.PRECISIONS.
        batch: chips at a time.

    Raises:
        UsageError: the package that ships the weights is missing.
        CorruptError: the weights are not those of the card, or damaged.
    """
    weights = read_resnet(DatReader(read_weights(card), card.file))
    return DlibRecognizer(card, weights, device=device, precision=precision, batch=batch)


class DlibRecognizer:
    """dlib's recognizer; see facescale.vision.protocols.Embedder.

    Args:
        card: what it was loaded from.
        weights: of the network.
        device: where it runs.
        precision: of weights and activations.
        batch: chips at a time.
    """

    def __init__(
        self, card: ModelCard, weights: ResnetWeights, *, device: torch.device, precision: str, batch: int
    ) -> None:
        self.card = card
        self.dim = weights.linear.shape[1]
        self.size = weights.size
        self.device = torch.device(device)
        self.batch = batch
        self.precision = precision
        network = _Resnet(weights, DTYPES[precision]).to(self.device)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs

    def embed(self, chips: np.ndarray) -> np.ndarray:
        """Describe each chip.

        Args:
            chips: uint8 [N, S, S, 3] RGB, aligned to the card's template.

        Returns:
            float32 [N, D], not of unit length; what else is in the batch changes nothing but float noise.

        Raises:
            MismatchError: chips of another size or type.
        """
        if chips.shape[1:] != (self.size, self.size, 3) or chips.dtype != np.uint8:
            raise MismatchError(
                f"{self.card.name} takes uint8 chips of [N, {self.size}, {self.size}, 3], got {chips.dtype} "
                f"{list(chips.shape)}: align them to the template {self.card.template}"
            )
        descriptors = np.empty((len(chips), self.dim), np.float32)
        with torch.inference_mode(), exact_convolutions(self.device):
            for start in range(0, len(chips), self.batch):
                part = chips[start : start + self.batch].copy()  # torch wants it contiguous and writable
                pixels = torch.from_numpy(part).to(self.device)
                descriptors[start : start + len(part)] = self.network(pixels).float().cpu().numpy()
        return descriptors


class _Resnet(torch.nn.Module):
    def __init__(self, weights: ResnetWeights, dtype: torch.dtype) -> None:
        super().__init__()
        self.stem = _with_input_folded(weights, dtype)
        self.blocks = torch.nn.ModuleList(_Block(first, second, dtype) for first, second in weights.blocks)
        self.linear = torch.nn.Parameter(torch.from_numpy(weights.linear).to(dtype), requires_grad=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Descriptors [B, D] of uint8 pixels [B, S, S, 3]."""
        x = pixels.permute(0, 3, 1, 2).to(self.linear.dtype)  # stays channels-last in memory
        x = functional.max_pool2d(functional.relu_(self.stem(x)), 3, stride=2)
        for block in self.blocks:
            x = block(x)
        return x.mean(dim=(2, 3)) @ self.linear


class _Block(torch.nn.Module):
    """A residual block; the shortcut of one that halves the resolution is a 2×2 average."""

    def __init__(self, first: Convolution, second: Convolution, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second = _convolution(first, dtype), _convolution(second, dtype)
        self.halves = first.stride == 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(functional.relu_(self.first(x)))
        if not self.halves:
            return functional.relu_(y.add_(x))
        x = functional.avg_pool2d(x, 2)
        # Sizes differ where a side is even: dlib adds as if the smaller had zeros on the right and below, and
        # as if the channels that the shortcut lacks were zero.
        y = functional.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
        y[:, : x.shape[1]] += x
        return functional.relu_(y)


def _convolution(convolution: Convolution, dtype: torch.dtype) -> torch.nn.Conv2d:
    out, channels, side, _ = convolution.weight.shape
    module = torch.nn.Conv2d(channels, out, side, convolution.stride, convolution.padding)
    module.weight.data = torch.from_numpy(convolution.weight).to(dtype)
    module.bias = torch.nn.Parameter(torch.from_numpy(convolution.bias).to(dtype))
    return module.requires_grad_(False)


def _with_input_folded(weights: ResnetWeights, dtype: torch.dtype) -> torch.nn.Conv2d:
    """The stem on raw pixels, which bfloat16 and float16 hold exactly.

    The offset comes from the weights as rounded to `dtype`, so that rounding does not act on the mean.
    """
    stem = weights.stem
    scaled = torch.from_numpy(stem.weight / np.float32(_INPUT_SCALE)).to(dtype)
    offset = np.einsum("oihw,i->o", scaled.double().numpy(), weights.mean)
    bias = (stem.bias - offset).astype(np.float32)
    return _convolution(Convolution(scaled.float().numpy(), bias, stem.stride, stem.padding), dtype)


def read_resnet(reader: DatReader) -> ResnetWeights:
    """Read the whole stream.

    Raises:
        CorruptError: it is damaged, or not this network.
    """
    reader.expect(1, "loss layer version")
    expect_name(reader, "loss_metric_2")
    reader.float_(), reader.float_()  # margin and distance threshold of training
    while (version := reader.int_()) in (1, 2):
        pass  # one of each layer; the input layer's is 3
    if version != 3:
        reader.fail(f"layer version {version}")
    expect_name(reader, "input_rgb_image_sized")
    mean = np.array([reader.float_() for _ in range(3)])
    size = reader.int_()
    reader.expect(size, "rows of the input")
    stem = _read_folded(reader, is_first=True)
    expect_plain(reader, "relu_")
    expect_pooling(reader, "max_pool_2", 3, 2)
    skip_layer_state(reader)
    blocks = tuple(_read_block(reader, is_down) for is_down in _DOWN)
    expect_pooling(reader, "avg_pool_2", 0, 1)
    skip_layer_state(reader)
    linear = read_linear(reader)
    skip_layer_state(reader)
    reader.expect_end()
    return ResnetWeights(mean, size, stem, blocks, linear)


def _read_block(reader: DatReader, is_down: bool) -> tuple[Convolution, Convolution]:
    first = _read_folded(reader)
    expect_plain(reader, "relu_")
    second = _read_folded(reader)
    if is_down:
        expect_pooling(reader, "avg_pool_2", 2, 2)
        skip_layer_state(reader)
    expect_plain(reader, "add_prev_")
    expect_plain(reader, "relu_")
    if (first.stride, second.stride) != (2 if is_down else 1, 1):
        reader.fail(f"block with strides {first.stride} and {second.stride}")
    return first, second


def _read_folded(reader: DatReader, *, is_first: bool = False) -> Convolution:
    convolution = read_convolution(reader)
    skip_layer_state(reader)
    if is_first:
        reader.expect(1, "images per sample")
    folded = convolution.then(*read_affine(reader, len(convolution.bias)))
    skip_layer_state(reader)
    return folded
