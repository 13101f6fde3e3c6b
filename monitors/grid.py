"""Counting numbers on a uniform grid: the fast way, exact because the edges lie on cell boundaries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from monitors import fixed
from monitors.baseline.layout import FIRST, MINUS_INF, MISSING, PLUS_INF, UNSEEN, Grid, Numeric
from monitors.count import Tally, ceiling
from monitors.gather import as_matrix, contiguous
from monitors.types import Array, Counts

BLOCK = 1 << 18  # values counted at a time: the scratch arrays then lie in the caches
_MANY = 64  # one value in so many outside the grid is many


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
        low, high = (each.reshape(shape) for each in self._limits(dtype))
        place = (np.arange(features) * self.width - self.low).astype(dtype).reshape(shape)
        coarse = bool((self.exponent > 0).any())
        whole = self.integral.any()
        table = np.zeros(features * self.width, dtype=np.int64)
        missing = np.zeros(features, dtype=np.int64)
        outside: list[tuple[Array, Array]] = []
        size = (features, min(step, rows)) if matrix is None else (min(step, rows), features)
        raw, kept = np.empty(size, dtype), np.empty(size, dtype)
        index, odd = np.empty(size, np.int64), np.empty(size, bool)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                if matrix is None:
                    used = slice(0, features), slice(0, stop - start)
                    block = contiguous(columns, start, stop)
                else:
                    used = slice(0, stop - start), slice(0, features)
                    block = matrix[start:stop]
                y, x, k, out = raw[used], kept[used], index[used], odd[used]
                if coarse:
                    np.copyto(x, block)
                    np.floor(x, out=x, where=self.exponent.reshape(shape) > 0)
                    np.multiply(x, factor, out=y)
                else:
                    np.multiply(block, factor, out=y)
                np.fmax(y, low, out=x)
                np.fmin(x, high, out=x)
                np.not_equal(x, y, out=out)
                np.floor(x, out=x)
                if whole:
                    out |= (x != y) & self.integral.reshape(shape)
                np.add(x, place, out=k, casting="unsafe")
                table += np.bincount(k.reshape(-1), minlength=len(table))
                if np.count_nonzero(out) > block.size // _MANY:
                    # Missing values wait in the cell of the least one; many of them are counted by column.
                    empty = np.isnan(block)
                    times = empty.sum(axis=1 if matrix is None else 0)
                    missing += times
                    table[(np.floor(low) + place).astype(np.int64).reshape(-1)] -= times
                    out &= ~empty
                found = np.flatnonzero(out)
                if len(found):
                    np.subtract.at(table, k.reshape(-1)[found], 1)
                    at = np.unravel_index(found, out.shape)
                    outside.append((at[0] if matrix is None else at[1], block[at]))
        tally = self._tally(table.reshape(features, self.width), outside)
        tally.counts[:, MISSING] += missing
        return tally

    def _limits(self, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """The least and greatest of `dtype`, in cells, that are in a cell and surely within the baseline's range."""
        factor = np.ldexp(1.0, -self.exponent)
        # Where cells are wider than 1, values are rounded down first, and one could have been above the maximum.
        maximum = np.where(self.exponent > 0, np.floor(self.maximum) - 1, self.maximum)
        least = np.maximum(self.low, self.minimum * factor)
        greatest = np.minimum(np.nextafter(self.high.astype(np.float64), -math.inf), maximum * factor)
        low = np.array([ceiling(each, dtype) for each in least.tolist()], dtype)
        high = np.array([-ceiling(-each, dtype) for each in greatest.tolist()], dtype)
        return low, high

    def _tally(self, table: Counts, outside: list[tuple[Array, Array]]) -> Tally:
        tally = Tally.zero(len(self), self.bins)
        running = np.zeros((len(self), self.width + 1), dtype=np.int64)
        np.cumsum(table, axis=1, out=running[:, 1:])
        tally.counts[:, FIRST:] = np.diff(np.take_along_axis(running, self.bounds, axis=1), axis=1)
        cell = np.arange(self.width, dtype=np.int64)
        np.cumsum(table * cell, axis=1, out=running[:, 1:])
        tally.sums = np.diff(np.take_along_axis(running, self.bounds, axis=1), axis=1)
        tally.squares = (table @ (cell * cell)).astype(object)
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
        feature, value, own = (each[at != UNSEEN] for each in (feature, value, own))
        k, beyond = fixed.units(value, self.exponent[feature], self.low[feature])
        np.add.at(tally.held, feature[beyond], 1)
        np.add.at(tally.sums, (feature, own), k)
        tally.squares = tally.squares + fixed.squares(k, feature, len(self))


def cells_of(grid: Grid, edges: Array) -> Counts:
    """The cells at which bins begin, within 0..cells. Edges lie on cell boundaries, or between whole numbers."""
    return np.clip(np.ceil(np.ldexp(edges, -grid.exponent)).astype(np.int64) - grid.low, 0, grid.cells)
