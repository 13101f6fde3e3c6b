"""Sums of reals as integers, so that adding them commutes and associates exactly.

A value x is counted in units of a power of two, w = 2**exponent, from a centre: k = floor(x / w) - centre. Division by
a power of two and floor are exact in binary floating point, so k is the same number whatever array, type or machine x
came in. Sums of the k are 64-bit integers, sums of their squares Python integers.
"""

from __future__ import annotations

import numpy as np

from monitors.types import Array, Counts

LIMIT = 1 << 31  # |k| is held to it: sums of 2**31 such values fit into 64 bits, and of far more that are smaller
FULL = 1 << 62
_FAR = float(1 << 62)
_WIDTH = 16  # bytes of a sum of squares in a serialised state


def units(values: Array, exponent: Array | int, centre: Array | int) -> tuple[Counts, Array]:
    """`values` (n,), finite, in units of 2**`exponent` from `centre`; and a mask of those held back at the limit.

    Exponents are within -1000..1000. Where one is positive, floor comes first: floor(floor(x) / w) = floor(x / w), and
    a tiny negative x cannot be rounded to zero by the division.
    """
    values = values.astype(np.float64, copy=False)
    if np.any(np.asarray(exponent) > 0):
        values = np.where(np.asarray(exponent) > 0, np.floor(values), values)
    with np.errstate(over="ignore"):
        scaled = np.floor(values * np.ldexp(1.0, -np.asarray(exponent)))
    k = np.fmin(np.fmax(scaled, -_FAR), _FAR).astype(np.int64) - centre
    if not len(k) or (k.min() >= -LIMIT and k.max() <= LIMIT):
        return k, np.zeros(len(k), dtype=bool)
    return np.clip(k, -LIMIT, LIMIT), np.abs(k) > LIMIT


def zeros(size: int) -> Array:
    """`size` sums of squares, all zero: an object array of Python integers."""
    return np.array([0] * size, dtype=object)


def sums(k: Counts, group: Array, size: int) -> Counts:
    """The sum of `k` per group in 0..size-1, int64 (size,), for up to 2**21 values with |k| <= LIMIT."""
    return np.bincount(group, weights=k, minlength=size).astype(np.int64)  # below 2**53, so the floats are exact


def squares(k: Counts, group: Array, size: int) -> Array:
    """The sum of the squares of `k` per group, as Python integers, for up to 2**20 values with |k| <= LIMIT."""
    high, low = k >> 16, k & 0xFFFF
    hh, hl, ll = (sums(part, group, size).astype(object) for part in (high * high, high * low, low * low))
    total: Array = (hh << 32) + (hl << 17) + ll
    return total


def square(k: Counts) -> int:
    """The sum of the squares of up to 2**20 values `k` with |k| <= LIMIT.

    Both halves of k are at most 2**16, so the sums are of integers and below 2**53: exact in floating point.
    """
    x = k.astype(np.float64)
    high = np.floor(x * 2.0**-16)
    low = x - high * 2.0**16
    hh, hl, ll = (int((one * other).sum()) for one, other in ((high, high), (high, low), (low, low)))
    return (hh << 32) + (hl << 17) + ll


def pack(numbers: Array) -> bytes:
    """Sums of squares as bytes, little-endian, 16 each: 2**62 per value leaves room for 2**66 of them."""
    return b"".join(int(each).to_bytes(_WIDTH, "little") for each in numbers)


def unpack(data: bytes, size: int) -> Array:
    """The reverse of `pack`. Raises ValueError where `data` does not hold `size` sums."""
    if len(data) != size * _WIDTH:
        raise ValueError(f"{size} sums take {size * _WIDTH} bytes, got {len(data)}")
    numbers = zeros(size)
    for place in range(size):
        numbers[place] = int.from_bytes(data[place * _WIDTH : (place + 1) * _WIDTH], "little")
    return numbers
