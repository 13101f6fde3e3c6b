"""Sums of reals as integers, so that adding them commutes and associates exactly.

A value x is counted in units of a power of two, w = 2**exponent: k = floor(x / w). Division by a power of two and floor
are exact in binary floating point, so k is the same number whatever array, type or machine x came in. The sum of the k
and of their squares are Python integers, which do not round or overflow.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from monitors.types import Array, Counts

LIMIT = 1 << 40  # |k| stays below it: 2**40 units, where a unit is at most 1/256 of the baseline's middle range
_WIDTH = 16  # bytes per sum in a serialised state: |sum of squares| < 2**80 per value leaves 2**47 rows


def units(values: Array, exponent: Array | int) -> tuple[Counts, Array]:
    """`values` (n,), finite, in units of 2**`exponent` rounded down; and a mask of those held back at the limit.

    Exponents are within -1000..1000. Where one is positive, floor comes first: floor(floor(x) / w) = floor(x / w), and
    a tiny negative x cannot be rounded to zero by the division.
    """
    values = values.astype(np.float64, copy=False)
    values = np.where(np.asarray(exponent) > 0, np.floor(values), values)
    with np.errstate(over="ignore"):
        scaled = np.floor(values * np.ldexp(1.0, -np.asarray(exponent)))
    beyond = np.abs(scaled) > LIMIT
    return np.clip(scaled, -LIMIT, LIMIT).astype(np.int64), beyond


def zeros(size: int) -> Array:
    """`size` sums, all zero: an object array of Python integers."""
    return np.array([0] * size, dtype=object)


def grouped(k: Counts, group: Array, size: int) -> tuple[Array, Array]:
    """The sums of `k` and of its squares per group in 0..size-1, for any |k| <= LIMIT and up to 2**22 values."""
    high, low = k >> 20, k & 0xFFFFF
    totals = np.zeros((4, size), dtype=np.int64)
    for row, part in enumerate((k, high * high, high * low, low * low)):
        np.add.at(totals[row], group, part)
    total, hh, hl, ll = totals.astype(object)
    return total, (hh << 40) + (hl << 21) + ll


def summed(k: Counts) -> tuple[int, int]:
    """The sum of `k` and of its squares, for any |k| <= LIMIT and up to 2**22 values."""
    high, low = k >> 20, k & 0xFFFFF
    squares = (int(high @ high) << 40) + (int(high @ low) << 21) + int(low @ low)
    return int(k.sum()), squares


def pack(sums: Array) -> bytes:
    """Sums as bytes, little-endian two's complement of 16 bytes each. Raises OverflowError beyond 127 bits."""
    return b"".join(int(each).to_bytes(_WIDTH, "little", signed=True) for each in sums)


def unpack(data: bytes, size: int) -> Array:
    """The reverse of `pack`. Raises ValueError where `data` does not hold `size` sums."""
    if len(data) != size * _WIDTH:
        raise ValueError(f"{size} sums take {size * _WIDTH} bytes, got {len(data)}")
    return of(int.from_bytes(data[at : at + _WIDTH], "little", signed=True) for at in range(0, len(data), _WIDTH))


def of(numbers: Iterable[int]) -> Array:
    """An object array of Python integers."""
    items = list(numbers)
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array
