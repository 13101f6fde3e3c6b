"""How rows become counts: a fast way over a grid, an exact way over any edges, and one for categories.

The two ways for numbers give equal counts where both apply. Nothing here raises for what a value is.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monitors import fixed
from monitors.baseline.layout import FIRST, MINUS_INF, MISSING, OTHER, PLUS_INF, UNSEEN, Category, Grid, Numeric
from monitors.types import Array, Counts

BLOCK = 1 << 18  # values held in scratch at a time: several arrays of it lie in the second-level cache
GROUP = 256  # features counted by one table
_HASH = 8  # bytes of a value's hash: two of 65,536 values share one with probability 1e-10
_SMALL = frozenset("?bBhHef")  # array types whose every value is a float32


@dataclass(slots=True)
class Tally:
    """What a batch of rows adds to a state, for a group of features: see `monitors.state.State` for the fields."""

    counts: Counts
    below: Counts
    above: Counts
    held: Counts
    total: Array
    squares: Array

    @classmethod
    def zero(cls, features: int, bins: int) -> Tally:
        below, above, held = np.zeros((3, features), dtype=np.int64)
        counts = np.zeros((features, bins), dtype=np.int64)
        return cls(counts, below, above, held, fixed.zeros(features), fixed.zeros(features))


class GridTable:
    """Numeric features with a grid, counted together: each value costs a few passes and one step of a bincount."""

    def __init__(self, features: Sequence[Numeric], bins: int) -> None:
        grids = [feature.grid for feature in features if feature.grid is not None]
        self.bins = bins
        self.exponent = np.array([grid.exponent for grid in grids], dtype=np.intc)
        self.low = np.array([grid.low for grid in grids], dtype=np.int64)
        self.high = self.low + np.array([grid.cells for grid in grids], dtype=np.int64)
        self.width = int((self.high - self.low).max())
        self.integral = np.array([grid.integral for grid in grids], dtype=bool)
        self.minimum = np.array([-math.inf if f.minimum is None else f.minimum for f in features])
        self.maximum = np.array([math.inf if f.maximum is None else f.maximum for f in features])
        self.edges = [np.array(feature.edges) for feature in features]
        self.points = np.zeros((len(grids), bins - FIRST), dtype=bool)
        self.lefts = np.full((len(grids), bins - FIRST), -math.inf)
        for row, feature in enumerate(features):
            self.points[row, : feature.bins] = feature.points
            self.lefts[row, 1 : feature.bins] = feature.edges
        self.bounds = np.full((len(grids), bins - FIRST + 1), self.width, dtype=np.int64)
        for row, (grid, edges) in enumerate(zip(grids, self.edges, strict=True)):
            self.bounds[row, 0] = 0
            self.bounds[row, 1 : len(edges) + 1] = cells_of(grid, edges)

    def __len__(self) -> int:
        return len(self.low)

    def count(self, columns: Sequence[Array]) -> Tally:
        """Count `columns`, one (n,) per feature, all float32 or all float64."""
        dtype = columns[0].dtype
        rows, features = len(columns[0]), len(columns)
        matrix = as_matrix(columns)
        step = max(BLOCK // features, 1)
        shape = (features, 1) if matrix is None else (features,)
        factor = np.ldexp(1.0, -self.exponent).astype(dtype).reshape(shape)
        low = self.low.astype(dtype).reshape(shape)
        high = np.nextafter(self.high.astype(dtype), dtype.type(-math.inf)).reshape(shape)
        place = (np.arange(features) * self.width - self.low).astype(dtype).reshape(shape)
        coarse = bool((self.exponent > 0).any())
        whole = self.integral.any()
        table = np.zeros(features * self.width, dtype=np.int64)
        outside: list[tuple[Array, Array]] = []
        size = (features, min(step, rows)) if matrix is None else (min(step, rows), features)
        raw, held = np.empty(size, dtype), np.empty(size, dtype)
        index, odd = np.empty(size, np.int64), np.empty(size, bool)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                if matrix is None:
                    used = slice(0, features), slice(0, stop - start)
                    block = np.stack([column[start:stop] for column in columns])
                else:
                    used = slice(0, stop - start), slice(0, features)
                    block = matrix[start:stop]
                y, x, k, out = raw[used], held[used], index[used], odd[used]
                if coarse:
                    x = np.where(self.exponent.reshape(shape) > 0, np.floor(block), block)
                    np.multiply(x, factor, out=y)
                else:
                    np.multiply(block, factor, out=y)
                x = np.fmax(y, low)
                np.fmin(x, high, out=x)
                np.not_equal(x, y, out=out)
                np.floor(x, out=x)
                if whole:
                    out |= (x != y) & self.integral.reshape(shape)
                np.add(x, place, out=x)
                np.copyto(k, x, casting="unsafe")
                found = np.flatnonzero(out)
                table += np.bincount(k.reshape(-1), minlength=len(table))
                if len(found):
                    np.subtract.at(table, k.reshape(-1)[found], 1)
                    at = np.unravel_index(found, out.shape)
                    outside.append((at[0] if matrix is None else at[1], block[at]))
        return self._tally(table.reshape(features, self.width), outside)

    def _tally(self, table: Counts, outside: list[tuple[Array, Array]]) -> Tally:
        tally = Tally.zero(len(self), self.bins)
        running = np.zeros((len(self), self.width + 1), dtype=np.int64)
        np.cumsum(table, axis=1, out=running[:, 1:])
        tally.counts[:, FIRST:] = np.diff(np.take_along_axis(running, self.bounds, axis=1), axis=1)
        cell = np.arange(self.width, dtype=np.int64)
        n, first, second = (each.astype(object) for each in (running[:, -1], table @ cell, table @ (cell * cell)))
        low = self.low.astype(object)
        tally.total = first + low * n
        tally.squares = second + 2 * low * first + low * low * n
        if outside:
            features = np.concatenate([feature for feature, _ in outside])
            values = np.concatenate([value for _, value in outside]).astype(np.float64)
            for start in range(0, len(values), BLOCK):
                self._count_outside(tally, features[start : start + BLOCK], values[start : start + BLOCK])
        return tally

    def _count_outside(self, tally: Tally, feature: Array, value: Array) -> None:
        """Count values that lie in no cell, one by one: beyond the grid, not finite, or between whole numbers."""
        for column, is_it in ((MISSING, np.isnan(value)), (PLUS_INF, value == np.inf), (MINUS_INF, value == -np.inf)):
            tally.counts[:, column] += np.bincount(feature[is_it], minlength=len(self))
        finite = np.isfinite(value)
        feature, value = feature[finite], value[finite]
        np.add.at(tally.below, feature[value < self.minimum[feature]], 1)
        np.add.at(tally.above, feature[value > self.maximum[feature]], 1)
        own = np.empty(len(value), dtype=np.int64)
        for each in np.unique(feature):
            its = feature == each
            own[its] = np.searchsorted(self.edges[each], value[its], side="right")
        at = own + FIRST
        at[self.points[feature, own] & (value != self.lefts[feature, own])] = UNSEEN
        np.add.at(tally.counts, (feature, at), 1)
        feature, value = feature[at != UNSEEN], value[at != UNSEEN]
        k, beyond = fixed.units(value, self.exponent[feature])
        np.add.at(tally.held, feature[beyond], 1)
        total, squares = fixed.grouped(k, feature, len(self))
        tally.total = tally.total + total
        tally.squares = tally.squares + squares


def cells_of(grid: Grid, edges: Array) -> Counts:
    """The cells at which bins begin. Edges lie on cell boundaries unless the grid is integral, when ceil is exact."""
    return np.ceil(np.ldexp(edges, -grid.exponent)).astype(np.int64) - grid.low


def as_matrix(columns: Sequence[Array]) -> Array | None:
    """`columns` as one (n, F) view where they are neighbours in the rows of a matrix, as a journal's are; else None."""
    first = columns[0]
    step, size = first.strides[0], first.itemsize
    if len(columns) * size > step:
        return None
    start = first.__array_interface__["data"][0]
    for place, column in enumerate(columns):
        if column.strides[0] != step or column.__array_interface__["data"][0] != start + place * size:
            return None
    return np.lib.stride_tricks.as_strided(first, (len(first), len(columns)), (step, size), writeable=False)


def count_numbers(feature: Numeric, values: Array, bins: int) -> Tally:
    """Count (n,) floats of one feature by comparing with every edge: exact whatever the edges are."""
    tally = Tally.zero(1, bins)
    dtype = values.dtype.type
    edges = [ceiling(edge, values.dtype) for edge in feature.edges]
    minimum = math.inf if feature.minimum is None else feature.minimum
    maximum = -math.inf if feature.maximum is None else feature.maximum
    wide = np.uint8 if len(edges) < 256 else np.uint16
    points, lefts = np.array(feature.points), np.array([-math.inf, *feature.edges])
    counts = tally.counts[0]
    for start in range(0, len(values), BLOCK >> 4):
        x = np.ascontiguousarray(values[start : start + (BLOCK >> 4)])
        if not np.isfinite(x).all():
            counts[MISSING] += np.count_nonzero(np.isnan(x))
            counts[PLUS_INF] += np.count_nonzero(x == dtype(math.inf))
            counts[MINUS_INF] += np.count_nonzero(x == dtype(-math.inf))
            x = x[np.isfinite(x)]
        own, reached = np.zeros(len(x), wide), np.empty(len(x), bool)
        for edge in edges:
            np.greater_equal(x, edge, out=reached)
            np.add(own, reached, out=own, casting="unsafe")
        x = x.astype(np.float64, copy=False)
        tally.below += np.count_nonzero(x < minimum)
        tally.above += np.count_nonzero(x > maximum)
        if any(feature.points):
            strange = points[own] & (x != lefts[own])
            counts[UNSEEN] += np.count_nonzero(strange)
            x, own = x[~strange], own[~strange]
        counts[FIRST:] += np.bincount(own, minlength=bins - FIRST)
        k, beyond = fixed.units(x, feature.unit)
        tally.held += np.count_nonzero(beyond)
        total, squares = fixed.summed(k)
        tally.total[0] += total
        tally.squares[0] += squares
    return tally


def ceiling(edge: float, dtype: np.dtype[np.floating]) -> np.floating:
    """The least number of `dtype` that is not below `edge`: comparing with it is comparing with `edge`."""
    with np.errstate(over="ignore"):
        rounded = dtype.type(edge)
    return rounded if float(rounded) >= edge else np.nextafter(rounded, dtype.type(math.inf))


def count_categories(feature: Category, values: Array, bins: int, known: dict[str, int]) -> Counts:
    """Count (n,) values of one category, (B,); `known` is `known_values(feature)`."""
    counts = np.zeros(bins, dtype=np.int64)
    others = {feature.others[at : at + _HASH] for at in range(0, len(feature.others), _HASH)}
    for value, times in tallied(values).items():
        key = text_of(value)
        if key is None:
            counts[MISSING] += times
        elif (own := known.get(key)) is not None:
            counts[own] += times
        else:
            counts[OTHER if others and hashed(key) in others else UNSEEN] += times
    return counts


def known_values(feature: Category) -> dict[str, int]:
    """The column of the count matrix for each value that has one."""
    return {value: FIRST + place for place, value in enumerate(feature.values)}


def tallied(values: Array) -> Counter[object]:
    """How often each value of an array occurs; every NaN is a value of its own."""
    if values.dtype.kind in "biuf":
        distinct, times = np.unique(values, return_counts=True)
        return Counter(dict(zip(distinct.tolist(), times.tolist(), strict=True)))
    try:
        return Counter(values.tolist())
    except TypeError:  # something unhashable in an object array
        return Counter(map(repr, values.tolist()))


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
