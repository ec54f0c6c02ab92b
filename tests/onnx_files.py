"""Small ONNX files, written byte by byte (protocol buffers), so that no test needs the onnx package.

Field numbers are those of onnx.proto3: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_FLOAT = 1
OPSET, IR = 17, 8


def node(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int | Sequence[int]
) -> bytes:
    """One operator; attributes are whole numbers or lists of them."""
    encoded = b""
    for name, value in attributes.items():
        if isinstance(value, int):
            body = _text(1, name) + _number(3, value) + _number(20, 2)
        else:
            body = _text(1, name) + b"".join(_number(8, item) for item in value) + _number(20, 7)
        encoded += _message(5, body)
    names = b"".join(_text(1, name) for name in inputs) + b"".join(_text(2, name) for name in outputs)
    return names + _text(4, kind) + encoded


def write_onnx(
    path: Path,
    nodes: Sequence[bytes],
    weights: Mapping[str, np.ndarray],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
) -> Path:
    """Write a file of float32 tensors; a dimension is a number or a name."""
    graph = b"".join(_message(1, entry) for entry in nodes) + _text(2, "graph")
    for name, values in weights.items():
        data = np.ascontiguousarray(values, np.float32)
        dims = b"".join(_number(1, side) for side in data.shape)
        graph += _message(5, dims + _number(2, _FLOAT) + _text(8, name) + _message(9, data.tobytes()))
    graph += b"".join(_message(11, _value(name, shape)) for name, shape in inputs.items())
    graph += b"".join(_message(12, _value(name, shape)) for name, shape in outputs.items())
    opset = _text(1, "") + _number(2, OPSET)
    path.write_bytes(_number(1, IR) + _message(8, opset) + _message(7, graph))
    return path


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(
        _message(1, _number(1, side) if isinstance(side, int) else _text(2, side)) for side in shape
    )
    tensor = _number(1, _FLOAT) + _message(2, dims)
    return _text(1, name) + _message(2, _message(1, tensor))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def pooled_scores(path: Path, weights: np.ndarray, bias: np.ndarray, size: int, **more: Any) -> Path:
    """`image` [N, 3, size, size] → `scores` [N, L]: the mean of each channel, times weights [L, 3], plus bias [L]."""
    batch = more.get("batch", "n")
    return write_onnx(
        path,
        [
            node("GlobalAveragePool", ["image"], ["pooled"]),
            node("Flatten", ["pooled"], ["means"], axis=1),
            node("Gemm", ["means", "w", "b"], ["scores"], transB=1),
        ],
        {"w": weights, "b": bias},
        {"image": [batch, 3, size, size]},
        {"scores": [batch, len(bias)]},
    )
