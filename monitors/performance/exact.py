"""Exact sums of doubles, held as integers in units of 2**-bits, so that they can be merged and taken back.

A double is a 53-bit integer times a power of two, and Python's integers have no end: with 1074 bits after the point
every finite double is such an integer and its sum is exact, whatever the order. What a relabelled prediction once added
can be subtracted again to the last bit, which no sum in floating point allows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ALL_BITS = 1074  # the smallest double is 2**-1074
SHORT_BITS = 128  # for values of the size of a probability: exact from 2**-75 up, floored to 2**-128 below
_CHUNK = 1 << 20  # rows whose shifted halves, each below 2**42, are added up in an int64
_HALF = 27
_STEP = 16  # exponents are taken together in steps, which leaves few groups


def zeros(cells: int) -> Array:
    """`cells` sums, all zero: an object array of Python integers."""
    return np.array([0] * cells, dtype=object)


def sums(values: Array, cells: Array | None = None, size: int = 1, *, bits: int = ALL_BITS) -> Array:
    """The sums of `values` (n,), finite, per cell 0..size-1, (size,) integers in units of 2**-bits.

    `cells` (n,) says which cell a value belongs to; without it there is one.
    """
    totals = zeros(size)
    for start in range(0, len(values), _CHUNK):
        part = np.asarray(values[start : start + _CHUNK], np.float64)
        cell = np.zeros(len(part), np.int64) if cells is None else cells[start : start + _CHUNK]
        _add(totals, part, cell, bits)
    return totals


def _add(totals: Array, values: Array, cells: Array, bits: int) -> None:
    fraction, exponent = np.frexp(values)
    whole = np.ldexp(fraction, 53).astype(np.int64)
    shift = exponent.astype(np.int64) - 53 + bits
    whole >>= np.minimum(np.maximum(-shift, 0), 63)  # floors what is below the unit
    shift = np.maximum(shift, 0)
    low, high = whole & ((1 << _HALF) - 1), whole >> _HALF
    group, rest = np.divmod(shift, _STEP)
    first = int(group.min(initial=0 if not len(group) else int(group[0])))
    groups = int(group.max(initial=first)) - first + 1
    place = cells * groups + (group - first)
    added = np.zeros((2, len(totals) * groups), np.int64)
    np.add.at(added[0], place, low << rest)
    np.add.at(added[1], place, high << rest)
    for each in np.flatnonzero(added.any(axis=0)).tolist():
        cell, power = divmod(each, groups)
        both = int(added[0, each]) + (int(added[1, each]) << _HALF)
        totals[cell] += both << ((first + power) * _STEP)


def number(total: int, *, bits: int = ALL_BITS) -> float:
    """A sum as the nearest double. Raises OverflowError beyond the largest."""
    return total / (1 << bits)


def numbers(totals: Array, *, bits: int = ALL_BITS) -> npt.NDArray[np.float64]:
    """Sums as doubles."""
    return np.array([number(each, bits=bits) for each in totals.tolist()], np.float64)


def square(values: Array) -> tuple[Array, Array]:
    """The squares of `values` (n,) as pairs of doubles that add up to them exactly (T. J. Dekker, 1971).

    Exact for magnitudes between 1e-140 and 1e140; below that the second part loses what is under 2**-1074.
    """
    product = values * values
    scaled = values * float((1 << _HALF) + 1)
    high = scaled - (scaled - values)
    low = values - high
    return product, ((high * high - product) + 2.0 * high * low) + low * low


def to_pair(total: int) -> tuple[int, bytes]:
    """A sum in few bytes: the number of zero bits it ends with, and what stands before them."""
    zero_bits = (total & -total).bit_length() - 1 if total else 0
    odd = total >> zero_bits
    return zero_bits, odd.to_bytes(odd.bit_length() // 8 + 1, "little", signed=True)


def from_pair(zero_bits: int, odd: bytes) -> int:
    """The reverse of `to_pair`."""
    return int.from_bytes(odd, "little", signed=True) << zero_bits
