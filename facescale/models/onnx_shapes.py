"""An ONNX file that declares one size of input in, the same network for inputs of any size out.

Some exporters write the size of their example into the file, though nothing in the network depends on it, and ONNX
Runtime then takes no other. Only the declarations change. Called by facescale.vision.onnx_network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from facescale.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Field numbers of ONNX's protocol buffers (onnx/onnx.proto).
_GRAPH, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 7, 5, 11, 12, 13
_TENSOR_NAME = 8
_VALUE_NAME, _VALUE_TYPE, _TENSOR_TYPE, _SHAPE, _DIM, _DIM_PARAM = 1, 2, 1, 2, 1, 2
_BYTES = 2  # wire type
_CHANNELS = 1  # position of the dimension that stays
_FREE = ("batch", "", "height", "width")


def free_input(data: bytes) -> bytes:
    """Free batch, height and width of the inputs [N, C, H, W] that are not weights; declared outputs lose their shape.

    Raises:
        CorruptError: not an ONNX file.
    """
    try:
        return _mapped(data, {_GRAPH: _graph})
    except (IndexError, ValueError) as error:
        raise CorruptError(f"not an ONNX file: {error}") from error


def _graph(graph: bytes) -> bytes:
    weights = {_name(content, _TENSOR_NAME) for number, content in _messages(graph) if number == _INITIALIZER}

    def of_input(value: bytes) -> bytes:
        if _name(value, _VALUE_NAME) in weights:
            return value
        return _shaped(value, _freed)

    freed = _mapped(graph, {_INPUT: of_input, _OUTPUT: lambda value: _shaped(value, lambda _: None)})
    return b"".join(raw for number, _, raw in _fields(freed) if number != _VALUE_INFO)


def _shaped(value: bytes, change: Callable[[bytes], bytes | None]) -> bytes:
    """A declared value with another shape."""
    return _mapped(
        value,
        {_VALUE_TYPE: lambda kind: _mapped(kind, {_TENSOR_TYPE: lambda t: _mapped(t, {_SHAPE: change})})},
    )


def _freed(shape: bytes) -> bytes:
    dims = [content for number, content in _messages(shape) if number == _DIM]
    if len(dims) != len(_FREE):
        return shape
    named = [
        dim if place == _CHANNELS else _message(_DIM_PARAM, name.encode())
        for place, (dim, name) in enumerate(zip(dims, _FREE, strict=True))
    ]
    return b"".join(_message(_DIM, dim) for dim in named)


def _mapped(message: bytes, changes: dict[int, Callable[[bytes], bytes | None]]) -> bytes:
    """A message whose fields of some numbers are replaced, or left out for None."""
    out = []
    for number, content, raw in _fields(message):
        if content is None or number not in changes:
            out.append(raw)
        elif (changed := changes[number](content)) is not None:
            out.append(_message(number, changed))
    return b"".join(out)


def _messages(message: bytes) -> Iterator[tuple[int, bytes]]:
    return ((number, content) for number, content, _ in _fields(message) if content is not None)


def _name(message: bytes, number: int) -> bytes:
    return next((content for found, content in _messages(message) if found == number), b"")


def _fields(message: bytes) -> Iterator[tuple[int, bytes | None, bytes]]:
    """Number, content (None for numbers) and the whole of each field."""
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        content = None
        if key & 7 == _BYTES:
            length, at = _varint(message, at)
            content = message[at : at + length]
            at += length
        elif key & 7 == 0:
            _, at = _varint(message, at)
        elif key & 7 in (1, 5):
            at += 8 if key & 7 == 1 else 4
        else:
            raise ValueError(f"wire type {key & 7} at byte {start}")
        if at > len(message):
            raise ValueError(f"it ends within the field at byte {start}")
        yield key >> 3, content, message[start:at]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _message(number: int, content: bytes) -> bytes:
    return _number(number << 3 | _BYTES) + _number(len(content)) + content


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
