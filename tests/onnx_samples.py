"""ONNX files that tests make byte by byte: a network without weights that says how bright a chip is where."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(key: int, value: int | str | bytes) -> bytes:
    """One field of a protocol buffer message."""
    if isinstance(value, int):
        return _number(key << 3) + _number(value)
    content = value.encode() if isinstance(value, str) else value
    return _number(key << 3 | 2) + _number(len(content)) + content


def _value(name: str, shape: Sequence[int | str], kind: int = 1) -> bytes:
    dims = b"".join(_field(1, _field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


def _ints(name: str, values: Sequence[int]) -> bytes:
    return _field(1, name) + b"".join(_field(8, value) for value in values) + _field(20, 7)


def pooling_network(
    side: int = 112,
    cells: int = 2,
    *,
    batch: int | str = "N",
    channels: int = 3,
    free_side: bool = False,
    kind: int = 1,
    layout: str = "nchw",
) -> bytes:
    """An ONNX file: N × 3 × side × side in, the mean of each of cells × cells fields and channels out, N × 3·cells².

    Args:
        side: of the input, px; a multiple of `cells`.
        cells: fields in a row.
        batch: size of the batch, or a name for any.
        channels: of the input.
        free_side: height and width are free in the file.
        kind: ONNX's number of the element type; 1 is float32, 10 float16.
        layout: of the input, nchw or nhwc.
    """
    field = side // cells
    pool = b"".join(_field(5, _ints(name, (field, field))) for name in ("kernel_shape", "strides"))
    is_last = layout == "nhwc"
    turn = (
        _field(1, "chips")
        + _field(2, "turned")
        + _field(4, "Transpose")
        + _field(5, _ints("perm", (0, 3, 1, 2)))
    )
    nodes = (
        *([turn] if is_last else []),
        _field(1, "turned" if is_last else "chips") + _field(2, "pooled") + _field(4, "AveragePool") + pool,
        _field(1, "pooled") + _field(2, "descriptor") + _field(4, "Flatten"),
    )
    sides: tuple[int | str, ...] = ("H", "W") if free_side else (side, side)
    shape = (batch, *sides, channels) if is_last else (batch, channels, *sides)
    graph = (
        b"".join(_field(1, node) for node in nodes)
        + _field(2, "pooling")
        + _field(11, _value("chips", shape, kind))
        + _field(12, _value("descriptor", (batch, "D"), kind))
    )
    opset = _field(1, "") + _field(2, 13)
    return _field(1, 8) + _field(8, opset) + _field(7, graph)


def _tensor(name: str, shape: Sequence[int], values: bytes, kind: int) -> bytes:
    return b"".join(_field(1, size) for size in shape) + _field(2, kind) + _field(8, name) + _field(9, values)


def scrfd_network(reach: float) -> bytes:
    """A detector with SCRFD's nine outputs, in insightface's form: for one image, outputs [places, 1, 4 or 10].

    A place's score is the sigmoid of the mean brightness of its cell as the network sees it (-1..1), four times that
    at stride 8 and minus ten at the others; distances are `reach` strides; landmarks lie on the cell's corner.
    """
    nodes, initializers, outputs = [], [], []
    for kind, per_cell in (("score", 2), ("bbox", 8), ("kps", 20)):
        for stride in (8, 16, 32):
            name, cell = f"{kind}_{stride}", _field(5, _ints("kernel_shape", (stride, stride)))
            gain = 4 / 3 if kind == "score" and stride == 8 else 0.0
            bias = {"score": 0.0 if stride == 8 else -10.0, "bbox": reach, "kps": 0.0}[kind]
            width = per_cell // 2
            weights, biases = array("f", [gain] * 3 * per_cell), array("f", [bias] * per_cell)
            initializers += [
                _tensor(f"w_{name}", (per_cell, 3, 1, 1), weights.tobytes(), 1),
                _tensor(f"b_{name}", (per_cell,), biases.tobytes(), 1),
                _tensor(f"s_{name}", (2,), array("q", [-1, width]).tobytes(), 7),
            ]
            order = _field(5, _ints("perm", (0, 2, 3, 1)))
            chain = [
                ("AveragePool", ["image"], cell + _field(5, _ints("strides", (stride, stride)))),
                ("Conv", [f"w_{name}", f"b_{name}"], b""),
                ("Transpose", [], order),
                ("Reshape", [f"s_{name}"], b""),
                *([("Sigmoid", [], b"")] if kind == "score" else []),
            ]
            before = ""
            for step, (operator, extra, attributes) in enumerate(chain):
                inputs = [*([before] if before else []), *extra]
                after = name if step == len(chain) - 1 else f"{name}_{step}"
                node = b"".join(_field(1, one) for one in inputs) + _field(2, after) + _field(4, operator)
                nodes.append(node + attributes)
                before = after
            outputs.append(_value(name, ("P", width)))
    graph = (
        b"".join(_field(1, node) for node in nodes)
        + _field(2, "scrfd")
        + b"".join(_field(5, one) for one in initializers)
        + _field(11, _value("image", (1, 3, "H", "W")))
        + b"".join(_field(12, one) for one in outputs)
    )
    return _field(1, 8) + _field(8, _field(1, "") + _field(2, 13)) + _field(7, graph)
