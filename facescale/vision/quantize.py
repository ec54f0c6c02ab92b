"""An embedder's ONNX file and chips in, the same network in 8-bit integers out, for CPUs.

Called by facescale.driver.quantize. ONNX Runtime's static quantization: chips of real faces go through the network,
which tells the range of every activation; weights have a scale for each output channel. Needs the extra `quantize`.

Shape legend: N chips, S chip side.
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from facescale.errors import CorruptError, MissingExtraError, UsageError
from facescale.models.weights import find_weights, verify
from facescale.vision.networks import normalize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from facescale.models.card import ModelCard

_AT_ONCE = 8  # chips of a calibration run: all activations of these are in memory


def quantize_onnx(card: ModelCard, chips: np.ndarray, out: Path) -> None:
    """Write an int8 file.

    Args:
        card: of an embedder, for the backend "onnx".
        chips: uint8 [N, S, S, 3] RGB, aligned to the card's template; a few hundred faces of all sorts.
        out: file to write.

    Raises:
        UsageError: no ONNX file, or no chips.
        MissingExtraError: the package onnx is not installed.
        CorruptError: the weights are not those of the card, or cannot be quantized.
    """
    if card.format != "onnx":
        raise UsageError(
            f"model {card.name!r} has no ONNX file, and only those are quantized: export it to ONNX and register that"
        )
    if not len(chips):
        raise UsageError("there are no faces to calibrate with: extract some photographs of people first")
    try:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise MissingExtraError("onnx", "quantize", "quantization") from error
    path = find_weights(card)
    verify(card, path)
    with tempfile.TemporaryDirectory(prefix="facescale-quantize-") as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        try:
            # Folds normalizations into convolutions, so that there is one range less to round to.
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(out),
                _Chips(card, chips, prepared),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # the package raises what its parts raise
            raise CorruptError(f"{path} cannot be quantized: {error}") from error


class _Chips:
    """What the package calls a calibration data reader: inputs of the network, one batch after the other."""

    def __init__(self, card: ModelCard, chips: np.ndarray, network: Path) -> None:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
        self._input = session.get_inputs()[0]
        size = self._input.shape[0] if isinstance(self._input.shape[0], int) else _AT_ONCE
        last = len(chips) // size * size if isinstance(self._input.shape[0], int) else len(chips)
        self._batches = (chips[start : start + size] for start in range(0, last, size))
        self._card = card

    def get_next(self) -> dict[str, np.ndarray] | None:
        some = next(self._batches, None)
        if some is None:
            return None
        batch = normalize(torch.from_numpy(some.copy()), self._card)
        if self._card.options.get("layout") == "nhwc":
            batch = batch.permute(0, 2, 3, 1)
        kind = np.float16 if self._input.type == "tensor(float16)" else np.float32
        return {self._input.name: np.ascontiguousarray(batch.numpy().astype(kind))}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        while (batch := self.get_next()) is not None:
            yield batch

    def __next__(self) -> dict[str, np.ndarray]:
        if (batch := self.get_next()) is None:
            raise StopIteration
        return batch


@contextmanager
def _quiet() -> Iterator[None]:
    """The package advises on the root logger to do what is done here already."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
