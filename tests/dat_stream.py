"""Writes dlib's serialization stream, for the tests of what reads it."""

from __future__ import annotations

import math

import numpy as np


def packed(value: int) -> bytes:
    magnitude = abs(value)
    body = magnitude.to_bytes(max(1, (magnitude.bit_length() + 7) // 8), "little")
    return bytes([len(body) | (0x80 if value < 0 else 0)]) + body


def real(value: float) -> bytes:
    if math.isnan(value) or math.isinf(value):
        return packed(0) + packed(32002 if math.isnan(value) else 32000 if value > 0 else 32001)
    mantissa, exponent = math.frexp(value)
    return packed(int(mantissa * 2**53)) + packed(exponent - 53)


def text(value: str) -> bytes:
    return packed(len(value)) + value.encode("ascii")


def matrix(values: np.ndarray) -> bytes:
    rows, columns = values.shape
    return packed(-rows) + packed(-columns) + b"".join(real(float(v)) for v in values.ravel())


def tensor(values: np.ndarray) -> bytes:
    return b"".join(packed(n) for n in (2, *values.shape)) + values.astype("<f4").tobytes()


def alias(*dims: int) -> bytes:
    return b"".join(packed(n) for n in (1, *dims))
