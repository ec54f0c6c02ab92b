"""The layers of dlib's networks in a `.dat` stream: a reader in, convolutions with what follows folded in out.

Called by the loaders of the default networks (facescale.vision). dlib writes each layer as its name, its
parameters, and a state that training left behind. What is not needed is checked, so that another network is
refused, not misread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from facescale.models.dlib_dat import DatReader


@dataclass(frozen=True, eq=False)
class Convolution:
    """One convolution.

    Args:
        weight: float32 [out, in, height, width].
        bias: float32 [out].
        stride: step in both directions.
        padding: zeros on each side.
    """

    weight: np.ndarray
    bias: np.ndarray
    stride: int
    padding: int

    def then(self, scale: np.ndarray, offset: np.ndarray) -> Convolution:
        """The convolution whose output is scale · output + offset, both float [out]."""
        weight = (self.weight * scale[:, None, None, None]).astype(np.float32)
        return replace(self, weight=weight, bias=(self.bias * scale + offset).astype(np.float32))


def read_convolution(reader: DatReader) -> Convolution:
    """Read a "con_4" layer."""
    expect_name(reader, "con_4")
    params = reader.tensor().reshape(-1)
    filters, rows, columns = reader.int_(), reader.int_(), reader.int_()
    stride_y, stride_x, padding_y, padding_x = (reader.int_() for _ in range(4))
    if (rows, stride_y, padding_y) != (columns, stride_x, padding_x):
        reader.fail("convolution that is not square")
    shape = reader.alias_tensor()
    reader.alias_tensor()
    for _ in range(4):
        reader.float_()  # learning rates and weight decays
    if shape[0] != filters or shape[2:] != (rows, columns) or params.size != np.prod(shape) + filters:
        reader.fail(f"convolution of {filters} filters of {rows} x {columns} with weights of {shape}")
    return Convolution(params[:-filters].reshape(shape), params[-filters:], stride_y, padding_y)


def read_affine(reader: DatReader, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Read an "affine_" layer, what batch norm becomes for inference: scale and offset, float32 [channels]."""
    expect_name(reader, "affine_")
    params = reader.tensor().reshape(-1)
    reader.alias_tensor(), reader.alias_tensor()
    reader.expect(0, "affine mode")  # 0: after a convolution, per channel
    if len(params) != 2 * channels:
        reader.fail(f"affine layer of {len(params)} values behind {channels} channels")
    return params[:channels], params[channels:]


def read_linear(reader: DatReader) -> np.ndarray:
    """Read an "fc_2" layer without bias: weights float32 [in, out]."""
    expect_name(reader, "fc_2")
    outputs, inputs = reader.int_(), reader.int_()
    params = reader.tensor()
    if params.shape != (inputs, outputs, 1, 1):
        reader.fail(f"linear layer of {inputs} x {outputs} with weights of {params.shape}")
    reader.alias_tensor(), reader.alias_tensor()
    reader.expect(1, "bias mode")  # 1: none
    for _ in range(4):
        reader.float_()  # learning rates and weight decays
    return params[:, :, 0, 0]


def expect_pooling(reader: DatReader, name: str, size: int, stride: int) -> None:
    """Read a pooling layer and refuse it unless it is square, unpadded, of this size (0: global) and stride."""
    expect_name(reader, name)
    start = reader.offset
    found = [reader.int_() for _ in range(6)]
    if found != [size, size, stride, stride, 0, 0]:
        reader.fail(f"{name} of {found}, expected size {size}, stride {stride}", start)


def expect_plain(reader: DatReader, name: str) -> None:
    """Read a layer without parameters and its state."""
    expect_name(reader, name)
    skip_layer_state(reader)


def expect_name(reader: DatReader, name: str) -> None:
    """Read a layer's name and refuse another one."""
    start = reader.offset
    found = reader.string()
    if found != name:
        reader.fail(f"found {found!r} where {name!r} should be", start)


def skip_layer_state(reader: DatReader) -> None:
    """Every layer ends with three flags and three tensors that are empty in a trained network."""
    for _ in range(3):
        reader.bool_()
    for _ in range(3):
        reader.tensor()
