"""Philox4x64-10, a counter-based random generator: word = f(key, counter), with no state between draws.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC11). The words are those of `numpy.random.Philox`; this
vectorised form draws the words of many counters, in any order, in one call. The project uses only raw words and the two
transforms below: they never change, while the methods of `numpy.random.Generator` may change between releases.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

# The multipliers and key increments (Weyl constants) of Philox4x64, table 2 of the paper and its reference code.
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_MASK64 = (1 << 64) - 1
_LOW32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox(key: tuple[int, int], counters: Words) -> Words:
    """Return the four words of each counter: uint64 [N, 4], uniform over all 64-bit values.

    key: two integers in [0, 2**64). counters: uint64 [N, 4].
    """
    assert counters.dtype == np.uint64 and counters.ndim == 2 and counters.shape[1] == 4
    assert all(0 <= half <= _MASK64 for half in key)
    c0, c1, c2, c3 = (np.ascontiguousarray(column) for column in counters.T)
    for number in range(_ROUNDS):
        k0, k1 = (np.uint64((half + number * weyl) & _MASK64) for half, weyl in zip(key, _WEYL, strict=True))
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return np.stack([c0, c1, c2, c3], axis=1)


def uniform(words: Words) -> NDArray[np.float64]:
    """Turn words into float64 in [0, 1) by their upper 53 bits, as every float64 generator does."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def standard_normal(words: Words) -> NDArray[np.float64]:
    """Turn words uint64 [N, 2k] into standard normals float64 [N, 2k], by the Box-Muller transform."""
    u = uniform(words)
    radius = np.sqrt(-2.0 * np.log(1.0 - u[:, 0::2]))  # 1 - u is in (0, 1]: the logarithm is finite
    angle = 2.0 * np.pi * u[:, 1::2]
    normals = np.empty_like(u)
    normals[:, 0::2] = radius * np.cos(angle)
    normals[:, 1::2] = radius * np.sin(angle)
    return normals


def _multiply(constant: int, words: Words) -> tuple[Words, Words]:
    """Return the upper and lower 64 bits of the 128-bit products, by the schoolbook method on 32-bit halves."""
    a1, a0 = np.uint64(constant >> 32), np.uint64(constant & 0xFFFFFFFF)
    b1, b0 = words >> _32, words & _LOW32
    cross = a1 * b0 + ((a0 * b0) >> _32)
    middle = a0 * b1 + (cross & _LOW32)
    high = a1 * b1 + (cross >> _32) + (middle >> _32)
    return high, words * np.uint64(constant)
