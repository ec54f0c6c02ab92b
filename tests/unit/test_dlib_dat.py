from __future__ import annotations

import math
import time

import numpy as np
import pytest
from dat_stream import alias, matrix, packed, real, tensor, text

from facescale.errors import CorruptError
from facescale.models.dlib_dat import DatReader


@pytest.mark.parametrize("value", [0, 1, -1, 255, 256, -65536, 2**31, -(2**40), 2**63 - 1, -(2**63 - 1)])
def test_int(value: int) -> None:
    reader = DatReader(packed(value))
    assert reader.int_() == value
    reader.expect_end()
    assert DatReader(packed(value) * 100).ints().tolist() == [value] * 100


@pytest.mark.parametrize(
    "value", [0.0, 1.0, -0.5, math.pi, 1e300, -5e-324, 3.4e38, math.inf, -math.inf, math.nan]
)
def test_float(value: float) -> None:
    np.testing.assert_equal(DatReader(real(value)).float_(), value)


def test_a_stream_of_everything() -> None:
    weights = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    table = np.array([[1.5, -2.0], [0.0, 1e-20], [3.0, 4.0]], np.float32)
    data = (
        packed(7)
        + text("con_4")
        + real(0.25)
        + b"1"
        + b"0"
        + matrix(table)
        + tensor(weights)
        + alias(1, 2, 3, 4)
    )
    reader = DatReader(data, "net.dat")
    assert (reader.int_(), reader.string(), reader.float_()) == (7, "con_4", 0.25)
    assert (reader.bool_(), reader.bool_()) == (True, False)
    read = reader.matrix()
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, table)
    read = reader.tensor()
    assert read.flags.writeable
    np.testing.assert_array_equal(read, weights)
    assert reader.alias_tensor() == (1, 2, 3, 4)
    reader.expect_end()


def test_empty_tensor_and_matrix() -> None:
    reader = DatReader(tensor(np.zeros((0, 0, 0, 0))) + packed(0) + packed(0))
    assert reader.tensor().shape == (0, 0, 0, 0)
    assert reader.matrix().shape == (0, 0)


def test_ints_equal_one_by_one_and_may_stop_before_the_end() -> None:
    values = [int(v) for v in np.random.default_rng(1).integers(-(2**45), 2**45, 5000) >> 20]
    data = b"".join(map(packed, values)) + text("behind")
    reader, single = DatReader(data), DatReader(data)
    assert reader.ints(5000).tolist() == [single.int_() for _ in range(5000)] == values
    assert reader.string() == "behind"


def test_a_chain_that_never_falls_in_step_is_read_right_and_fast() -> None:
    # 01 01 01 01 …: read from an odd byte it looks as sound as from an even one, so that every guess is wrong.
    data = packed(0x0605) + packed(1) * 1_000_000
    start = time.perf_counter()
    values = DatReader(data).ints()
    assert time.perf_counter() - start < 5
    assert values[0] == 0x0605 and len(values) == 1_000_001 and (values[1:] == 1).all()


@pytest.mark.parametrize(
    ("data", "method", "what"),
    [
        (b"\x11\x01", "int_", "control byte 0x11"),
        (b"\x00", "int_", "control byte 0x00"),
        (b"\x09" + bytes(9), "int_", "control byte 0x09"),
        (b"\x08" + b"\xff" * 8, "int_", "beyond 63 bits"),
        (b"\x04\x01", "int_", "ends too early"),
        (b"", "int_", "ends too early"),
        (b"x", "bool_", "no bool"),
        (packed(100) + b"abc", "string", "string of 100 bytes"),
        (packed(-1) + b"abc", "string", "string of -1 bytes"),
        (packed(2) + b"\xff\xfe", "string", "not ASCII"),
        (packed(5) + packed(5), "matrix", "matrix of -5 x -5"),
        (packed(-(2**40)) + packed(-5), "matrix", "does not fit"),
        (packed(1) + bytes(40), "tensor", "tensor version is 1"),
        (packed(2) + packed(2**50) * 4, "tensor", "does not fit"),
        (packed(2) + packed(-1) * 4, "tensor", "negative dims"),
        (packed(2) + packed(1) * 5, "alias_tensor", "alias tensor version is 2"),
    ],
)
def test_damage_names_file_and_place(data: bytes, method: str, what: str) -> None:
    with pytest.raises(CorruptError, match=what) as error:
        getattr(DatReader(data, "/weights/net.dat"), method)()
    assert "/weights/net.dat" in str(error.value)
    assert " at byte " in str(error.value)
    assert "reinstall" in str(error.value)


@pytest.mark.parametrize("count", [None, 3000])
def test_damaged_runs_of_ints(count: int | None) -> None:
    good = packed(1000) * 3000
    bad = bytearray(good)
    bad[3 * 1500] = 0x72
    with pytest.raises(CorruptError, match="control byte 0x72 is no integer at byte 4500"):
        DatReader(bytes(bad)).ints(count)
    with pytest.raises(CorruptError, match="ends too early at byte 8999"):
        DatReader(good[:-1]).ints(count)
    with pytest.raises(CorruptError, match="beyond 63 bits at byte 9000"):
        DatReader(good + b"\x88" + b"\xff" * 8).ints(None if count is None else count + 1)


def test_too_few_and_too_many() -> None:
    with pytest.raises(CorruptError, match="ends too early"):
        DatReader(packed(1) * 99).ints(100)
    with pytest.raises(CorruptError, match="3 bytes too many"):
        DatReader(b"abc").expect_end()


def test_no_ints() -> None:
    assert DatReader(b"").ints().shape == (0,)
