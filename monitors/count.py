"""How rows become counts: numbers by comparing with every edge, categories by looking them up.

`monitors.grid` counts numbers faster where it applies, and equally. Nothing here raises for what a value is.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monitors import fixed
from monitors.baseline.layout import FIRST, MINUS_INF, MISSING, OTHER, PLUS_INF, UNSEEN, Category, Numeric
from monitors.gather import contiguous
from monitors.types import Array, Counts

BLOCK = 1 << 14  # values counted at a time: a column of them lies in the first-level cache
_HASH = 8  # bytes of a value's hash: two of 65,536 values share one with probability 1e-10
_PLAIN = str | bytes | int | float | None
_SMALL = frozenset("?bBhHef")  # array types whose every value is a float32


@dataclass(slots=True)
class Tally:
    """What a batch of rows adds to a state, for a group of features: see `monitors.state.State` for the fields."""

    counts: Counts
    below: Counts
    above: Counts
    held: Counts
    sums: Counts
    squares: Array

    @classmethod
    def zero(cls, features: int, bins: int) -> Tally:
        below, above, held = np.zeros((3, features), dtype=np.int64)
        counts = np.zeros((features, bins), dtype=np.int64)
        sums = np.zeros((features, bins - FIRST), dtype=np.int64)
        return cls(counts, below, above, held, sums, fixed.zeros(features))


class Edges:
    """A number that is counted by comparing with every edge, ready for values of one type."""

    def __init__(self, feature: Numeric, bins: int, dtype: np.dtype[Any]) -> None:
        self._bins = bins - FIRST
        self._edges = [ceiling(edge, dtype) for edge in feature.edges]
        self._minimum = math.inf if feature.minimum is None else feature.minimum
        self._maximum = -math.inf if feature.maximum is None else feature.maximum
        self._small = np.uint8 if len(self._edges) < 256 else np.uint16
        self._points, self._lefts = np.array(feature.points), np.array([-math.inf, *feature.edges])
        self._unit, self._centre = feature.unit, feature.centre

    def count(self, x: Array, tally: Tally, row: int) -> None:
        """Add up to 2**20 contiguous values to a row of a tally."""
        counts = tally.counts[row]
        finite = np.isfinite(x)
        if not finite.all():
            counts[MISSING] += np.count_nonzero(np.isnan(x))
            counts[PLUS_INF] += np.count_nonzero(x == x.dtype.type(math.inf))
            counts[MINUS_INF] += np.count_nonzero(x == x.dtype.type(-math.inf))
            x = x[finite]
        if not len(x):
            return
        own, reached = np.zeros(len(x), self._small), np.empty(len(x), bool)
        as_number = reached.view(np.uint8)
        for edge in self._edges:
            np.greater_equal(x, edge, out=reached)
            np.add(own, as_number, out=own)
        if float(x.min()) < self._minimum:
            tally.below[row] += np.count_nonzero(x.astype(np.float64) < self._minimum)
        if float(x.max()) > self._maximum:
            tally.above[row] += np.count_nonzero(x.astype(np.float64) > self._maximum)
        if self._points.any():
            strange = self._points[own] & (x != self._lefts[own])
            counts[UNSEEN] += np.count_nonzero(strange)
            x, own = x[~strange], own[~strange]
        place = own.astype(np.intp)
        counts[FIRST:] += np.bincount(place, minlength=self._bins)
        k, beyond = fixed.units(x, self._unit, self._centre)
        tally.held[row] += np.count_nonzero(beyond)
        tally.sums[row] += fixed.sums(k, place, self._bins)
        tally.squares[row] += fixed.square(k)


def count_numbers(features: Sequence[Numeric], columns: Sequence[Array], bins: int) -> Tally:
    """Count columns of one type, (n,) floats each, by comparing with every edge: exact whatever the edges are."""
    tally = Tally.zero(len(features), bins)
    edges = [Edges(feature, bins, columns[0].dtype) for feature in features]
    for start in range(0, len(columns[0]), BLOCK):
        block = contiguous(columns, start, min(start + BLOCK, len(columns[0])))
        for row, (one, values) in enumerate(zip(edges, block, strict=True)):
            one.count(values, tally, row)
    return tally


def ceiling(edge: float, dtype: np.dtype[np.floating]) -> np.floating:
    """The least number of `dtype` that is not below `edge`: comparing with it is comparing with `edge`."""
    with np.errstate(over="ignore"):
        rounded = dtype.type(edge)
    return rounded if float(rounded) >= edge else np.nextafter(rounded, dtype.type(math.inf))


class Vocabulary:
    """A category's known values, ready for looking up."""

    def __init__(self, feature: Category) -> None:
        self._known = {value: FIRST + place for place, value in enumerate(feature.values)}
        self._others = {feature.others[at : at + _HASH] for at in range(0, len(feature.others), _HASH)}

    def count(self, values: Array, bins: int) -> Counts:
        """The counts of (n,) values, (bins,)."""
        counts = np.zeros(bins, dtype=np.int64)
        for value, times in tallied(values).items():
            key = text_of(value)
            if key is None:
                counts[MISSING] += times
            elif (own := self._known.get(key)) is not None:
                counts[own] += times
            else:
                counts[OTHER if self._others and hashed(key) in self._others else UNSEEN] += times
        return counts


def looked_up(values: Array, places: Mapping[str, int], other: int) -> Counts:
    """The place of each of (n,) values by its text, int64 (n,); `other` where it has none or is missing."""
    items = values.tolist()
    try:
        found = {value: places.get(text_of(value) or "", other) for value in set(items)}
        return np.array([found[value] for value in items], dtype=np.int64)
    except TypeError:  # something unhashable in an object array
        return np.array([places.get(text_of(value) or "", other) for value in items], dtype=np.int64)


def texts(values: Array) -> Array:
    """(n,) values as the texts they are known by, None where they are missing; an array of objects."""
    items = values.tolist()
    found = np.empty(len(items), object)
    try:
        known = {value: text_of(value) for value in set(items)}
        found[:] = [known[value] for value in items]
    except TypeError:  # something unhashable in an object array
        found[:] = [text_of(value) for value in items]
    return found


def tallied(values: Array) -> Counter[object]:
    """How often each value of an array occurs; every NaN is a value of its own."""
    if values.dtype.kind in "biuf":
        distinct, times = np.unique(values, return_counts=True)
        return Counter(dict(zip(distinct.tolist(), times.tolist(), strict=True)))
    try:
        return Counter(values.tolist())
    except TypeError:  # something unhashable in an object array
        return Counter(value if isinstance(value, _PLAIN) else repr(value) for value in values.tolist())


def text_of(value: object) -> str | None:
    """A value as the text it is known by, None where it is missing: True, 1, 1.0 and "1" are one category."""
    if value is None or value != value:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def hashed(key: str) -> bytes:
    """What a value of `other` is remembered by."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_HASH).digest()


def as_floats(values: Array) -> tuple[Array, int]:
    """Values of any type as float32 or float64, and how many of them were no numbers.

    Nothing is lost but the last digits of integers beyond 2**53. What is no number becomes NaN, and so does None, which
    is not counted.
    """
    if values.dtype.char in _SMALL:
        return values.astype(np.float32, copy=False), 0
    if values.dtype.kind in "iuf":
        return values.astype(np.float64, copy=False), 0
    if values.dtype.kind in "mM":
        whole = values.astype(np.int64).astype(np.float64)
        return np.where(np.isnat(values), np.nan, whole), 0
    strange = 0
    numbers = np.empty(len(values))
    for place, value in enumerate(values.tolist()):
        if isinstance(value, int | float | np.number | np.bool_):
            try:
                numbers[place] = value
            except OverflowError:
                numbers[place] = math.inf if value > 0 else -math.inf
        else:
            numbers[place] = math.nan
            strange += value is not None
    return numbers, strange
