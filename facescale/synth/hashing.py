"""Random numbers that belong to things: integers in, the same numbers out wherever and whenever they are asked for.

Nothing is drawn in sequence, so any part of a simulation can be made alone, and no table of millions of people is held.
The mixing is that of SplitMix64 (Steele et al. 2014). Called by population and geometry.

Shape legend: N keys, D dimension.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Keys = NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 4


def mix(values: Keys) -> Keys:
    """The finalizer of SplitMix64: uint64 of any shape, every bit of the result depends on every bit given."""
    with np.errstate(over="ignore"):
        z = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Keys = z ^ (z >> np.uint64(31))
    return mixed


def keys_of(seed: int, stream: str, values: Ints) -> Keys:
    """A key for each value, uint64 [N]; streams (purposes) and seeds are independent of each other."""
    start = _start(seed, stream)
    with np.errstate(over="ignore"):
        return mix(mix(values.astype(np.uint64) * np.uint64(_GOLDEN) + start) + start)


@functools.cache
def _start(seed: int, stream: str) -> np.uint64:
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def uniforms(seed: int, stream: str, values: Ints) -> NDArray[np.float64]:
    """A number of [0, 1) for each value, float64 [N]."""
    return (keys_of(seed, stream, values) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(seed: int, stream: str, values: Ints, dim: int) -> NDArray[np.float32]:
    """Standard normal vectors for values: float32 [N, D], by Box and Muller, two numbers a hash.

    Notes:
        Memory: 24 D bytes a value while they are made.
    """
    half = -(-dim // 2)
    with np.errstate(over="ignore"):
        steps = np.arange(1, half + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        hashes = mix(keys_of(seed, stream, values)[:, None] + steps)
    first = ((hashes >> np.uint64(32)).astype(np.float32) + np.float32(1)) * np.float32(2.0**-32)
    angle = (hashes & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2 * np.pi * 2.0**-32)
    radius = np.sqrt(-2 * np.log(np.minimum(first, np.float32(1))))
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :dim]


def permute(seed: int, stream: str, values: Ints, size: int) -> Ints:
    """Where a random permutation of 0..size - 1 sends values: a Feistel network, walked until it is inside.

    Args:
        seed: of the simulation.
        stream: which permutation.
        values: int64 [N], 0..size - 1.
        size: at least 1.
    """
    return _walk(seed, stream, values, size, range(_ROUNDS))


def unpermute(seed: int, stream: str, values: Ints, size: int) -> Ints:
    """What `permute` sends to values."""
    return _walk(seed, stream, values, size, range(_ROUNDS - 1, -1, -1))


def _walk(seed: int, stream: str, values: Ints, size: int, turns: range) -> Ints:
    half = max(1, -(-max(size - 1, 1).bit_length() // 2))
    low = np.int64((1 << half) - 1)
    found, active = values.copy(), np.arange(len(values))
    while len(active):
        left, right = found[active] >> half, found[active] & low
        for turn in turns:
            if turns.step > 0:
                left, right = right, left ^ _hashed(seed, f"{stream}{turn}", right, low)
            else:
                left, right = right ^ _hashed(seed, f"{stream}{turn}", left, low), left
        found[active] = left << half | right
        active = active[found[active] >= size]
    return found


def _hashed(seed: int, stream: str, values: Ints, low: np.int64) -> Ints:
    return (keys_of(seed, stream, values) & np.uint64(low)).astype(np.int64)
