"""dlib's serialization stream (`.dat`): bytes in; ints, floats, strings and float32 arrays out.

Read by the loaders of the default models (`facescale.vision`), which know the layout of each network. Written
from the format itself (dlib/serialize.h and dlib/cuda/tensor.cpp describe it); dlib is not needed.

Stream primitives:
    int       a control byte (low nibble: number of magnitude bytes, 1 to 8; 0x80: negative; 0x70: always 0),
              then the magnitude, little-endian
    float     int mantissa, int exponent; value = mantissa * 2**exponent; exponents 32000, 32001 and 32002
              mean inf, -inf and nan
    bool      ASCII `0` or `1`
    string    int length, then the bytes
    matrix    int -rows, int -columns, then the items, row-major
    tensor    int 2 (version), four dims (samples, k, rows, columns), then raw little-endian float32
    alias     int 1 (version), four dims
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np

from facescale.errors import CorruptError

_SPECIAL = {32000: np.inf, 32001: -np.inf, 32002: np.nan}
_LANES = 4096  # chunks of a packed stream that are walked side by side
_ROUNDS = 8  # of walking all chunks that start wrong; two are usual
_FEW_LANES = 16  # up to here one after the other is faster
_SMALL = 64  # below this many ints the plain loop beats setting up the lanes


class DatReader:
    """A cursor over one `.dat` stream.

    Args:
        data: the whole file.
        name: what to call it in messages, usually its path.
    """

    def __init__(self, data: bytes, name: str = "<bytes>") -> None:
        self._data = data
        self.name = name
        self.offset = 0

    @classmethod
    def from_file(cls, path: str | Path) -> DatReader:
        """Read the file at `path` whole (the largest default model is 22 MB)."""
        return cls(Path(path).read_bytes(), str(path))

    @property
    def remaining(self) -> int:
        """Bytes between the cursor and the end of the stream."""
        return len(self._data) - self.offset

    def fail(self, what: str, offset: int | None = None) -> NoReturn:
        """Raise CorruptError for damage at `offset`, by default the cursor; loaders call it too."""
        at = self.offset if offset is None else offset
        raise CorruptError(
            f"{self.name}: {what} at byte {at} of {len(self._data)}: the weights file is damaged "
            "or belongs to another model; reinstall the package it came from"
        )

    def expect_end(self) -> None:
        """Raise CorruptError when bytes are left over."""
        if self.remaining:
            self.fail(f"{self.remaining} bytes too many")

    def expect(self, value: int, what: str) -> None:
        """Read an int and raise CorruptError unless it is `value`."""
        start = self.offset
        found = self.int_()
        if found != value:
            self.fail(f"{what} is {found}, expected {value}", start)

    def int_(self) -> int:
        """One packed int."""
        start = self.offset
        control = self._take(1)[0]
        count = control & 0x0F
        if control & 0x70 or not 1 <= count <= 8:
            self.fail(f"control byte 0x{control:02x} is no integer", start)
        magnitude = int.from_bytes(self._take(count), "little")
        if magnitude >> 63:
            self.fail("integer beyond 63 bits", start)
        return -magnitude if control & 0x80 else magnitude

    def float_(self) -> float:
        """One float or double scalar."""
        mantissa, exponent = self.int_(), self.int_()
        return float(floats(np.array([mantissa], np.int64), np.array([exponent], np.int64))[0])

    def bool_(self) -> bool:
        """One bool."""
        start = self.offset
        byte = self._take(1)
        if byte not in (b"0", b"1"):
            self.fail(f"byte 0x{byte[0]:02x} is no bool", start)
        return byte == b"1"

    def string(self) -> str:
        """One string; dlib writes ASCII names."""
        start = self.offset
        length = self._length("string")
        try:
            return self._take(length).decode("ascii")
        except UnicodeDecodeError:
            self.fail("string is not ASCII", start)

    def matrix(self) -> np.ndarray:
        """One dense matrix of floats, float32 [rows, columns]."""
        start = self.offset
        rows, columns = -self.int_(), -self.int_()
        if rows < 0 or columns < 0 or 4 * rows * columns > self.remaining:
            self.fail(f"matrix of {rows} x {columns} does not fit", start)
        pairs = self.ints(2 * rows * columns).reshape(-1, 2)
        return floats(pairs[:, 0], pairs[:, 1]).astype(np.float32).reshape(rows, columns)

    def tensor(self) -> np.ndarray:
        """One tensor, float32 [samples, k, rows, columns]; a writable copy."""
        start = self.offset
        self.expect(2, "tensor version")
        dims = self._dims("tensor", start)
        count = int(np.prod(dims, dtype=object))
        if 4 * count > self.remaining:
            self.fail(f"tensor of {dims} does not fit", start)
        return np.frombuffer(self._take(4 * count), "<f4").astype(np.float32).reshape(dims)

    def alias_tensor(self) -> tuple[int, int, int, int]:
        """One alias tensor: the dims (samples, k, rows, columns) of a view into another tensor."""
        start = self.offset
        self.expect(1, "alias tensor version")
        return self._dims("alias tensor", start)

    def ints(self, count: int | None = None) -> np.ndarray:
        """The next `count` packed ints, or all up to the end of the stream; int64 [count].

        Vectorized: the 3 million ints of the landmark file take about 0.2 s.
        """
        if count is not None and count <= _SMALL:
            return np.array([self.int_() for _ in range(count)], np.int64)
        window = self.remaining if count is None else min(self.remaining, 9 * count)
        raw = np.frombuffer(self._data, np.uint8, window, self.offset) if window else np.empty(0, np.uint8)
        starts = _token_starts(raw)[:count]
        control = raw[starts]
        width = control & 0x0F
        bad = np.flatnonzero((control & 0x70 != 0) | (width == 0) | (width > 8))
        if len(bad):
            at = self.offset + int(starts[bad[0]])
            self.fail(f"control byte 0x{control[bad[0]]:02x} is no integer", at)
        end = int(starts[-1]) + 1 + int(width[-1]) if len(starts) else 0
        if end > window or (count is not None and len(starts) < count):
            self.fail("the stream ends too early", self.offset + window)
        # An unaligned 8-byte load behind every control byte, cut to the bytes that belong to it.
        padded = np.concatenate([raw[:end], np.zeros(8, np.uint8)])
        words: np.ndarray = np.ndarray((end,), "<u8", padded, strides=(1,))
        mask = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
        magnitude = words[starts + 1] & mask[width]
        too_big = np.flatnonzero(magnitude >> np.uint64(63))
        if len(too_big):
            self.fail("integer beyond 63 bits", self.offset + int(starts[too_big[0]]))
        values: np.ndarray = magnitude.astype(np.int64)
        np.negative(values, out=values, where=(control & 0x80).astype(bool))
        self.offset += end
        return values

    def _dims(self, what: str, start: int) -> tuple[int, int, int, int]:
        dims = (self.int_(), self.int_(), self.int_(), self.int_())
        if min(dims) < 0:
            self.fail(f"{what} has negative dims {dims}", start)
        return dims

    def _length(self, what: str) -> int:
        start = self.offset
        length = self.int_()
        if not 0 <= length <= self.remaining:
            self.fail(f"{what} of {length} bytes does not fit", start)
        return length

    def _take(self, count: int) -> bytes:
        if count > self.remaining:
            self.fail("the stream ends too early")
        self.offset += count
        return self._data[self.offset - count : self.offset]


def floats(mantissas: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Floats from their stored pairs.

    Args:
        mantissas: int64 [N].
        exponents: int64 [N]; 32000, 32001 and 32002 mean inf, -inf and nan.

    Returns:
        float64 [N]; exact for everything that was stored from a float or double.
    """
    exponents_i32 = np.clip(exponents, -5000, 5000).astype(np.int32)  # beyond, the result is 0 or inf anyway
    values: np.ndarray = np.ldexp(mantissas.astype(np.float64), exponents_i32)
    for exponent, value in _SPECIAL.items():
        values[exponents == exponent] = value
    return values


def _token_starts(raw: np.ndarray) -> np.ndarray:
    """Positions of the control bytes in a stream of packed ints.

    Each position says only where the next one is, a chain that Python would walk one by one. Instead the
    stream is cut into chunks that are walked side by side, each from a guessed start. Chains that start wrong
    soon fall in with the right one, so the end of a chunk is nearly always right at once. Chunks whose guess
    was not the end of the one before are walked again from there, until every chunk starts where its
    predecessor ended, which is the proof.

    Args:
        raw: uint8 [N]; damaged streams are walked all the same, the caller judges the control bytes.

    Returns:
        int64 [M], ascending; the last token may reach beyond the end.
    """
    size = len(raw)
    step = (raw & 0x0F) + np.uint8(1)  # at most 16, also where the stream is damaged
    chunk = max(-(-size // _LANES), 16)  # so that no token jumps over a whole chunk
    first = np.arange(0, size, chunk)
    stop = np.minimum(first + chunk, size)
    begin = first.copy()
    end = np.empty_like(begin)
    stale = np.arange(len(first))
    rounds = 0
    while len(stale):
        end[stale] = _walk(step, begin[stale], stop[stale], None)
        rounds += 1
        # Streams exist whose chains never fall in: there only the first wrong start is known to be put right.
        stale = (np.flatnonzero(begin[1:] != end[:-1]) + 1)[: None if rounds < _ROUNDS else 1]
        begin[stale] = end[stale - 1]
    is_start = np.zeros(size, bool)
    _walk(step, begin, stop, is_start)
    return np.flatnonzero(is_start)


def _walk(
    step: np.ndarray,
    begin: np.ndarray,
    stop: np.ndarray,
    mark: np.ndarray | None,
) -> np.ndarray:
    """Follow the chain from each `begin` to the first position not before `stop`; set `mark` on the way."""
    at = begin.copy()
    lanes = np.flatnonzero(at < stop)
    while len(lanes) > _FEW_LANES:
        here = at[lanes]
        if mark is not None:
            mark[here] = True
        here = here + step[here]
        at[lanes] = here
        lanes = lanes[here < stop[lanes]]
    for lane in lanes.tolist():
        low, high = int(at[lane]), int(stop[lane])
        steps = step[low:high].tobytes()
        position = 0
        while position < len(steps):
            if mark is not None:
                mark[low + position] = True
            position += steps[position]
        at[lane] = low + position
    return at
