"""The state of drift and of data quality: integer counts on frozen bins, and moments in fixed point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from monitors import fixed
from monitors.baseline.layout import FIRST, MISSING, UNSEEN, Category, Layout, Numeric
from monitors.count import Tally, as_floats, count_numbers
from monitors.types import Array, Columns, Counts, Floats


class _Document(msgspec.Struct, frozen=True):
    """A serialised state; arrays are int64, little-endian."""

    layout: bytes
    rows: int
    counts: bytes
    margins: bytes
    sums: bytes
    squares: bytes


class State:
    """Counts [F, B] of the rows seen, on the bins of a layout.

    `rows`: how many. `counts` int64 [F, B]: see `monitors.baseline.layout`; every row of it sums to `rows`. `below`,
    `above` int64 [F]: finite numbers out of the baseline's range. `held` int64 [F]: numbers too far out for the
    moments, which take them at the limit. `absent` int64 [F]: rows whose batch did not have the column at all (counted
    as missing too). `sums` int64 [F, B - 5]: the sum of k over the numbers in each own bin, where k is x in units of
    the feature from its centre, rounded down; `squares` [F]: the sum of k**2 over them, as Python integers.
    """

    def __init__(self, layout: Layout) -> None:
        features, bins = layout.shape
        self.layout = layout
        self.rows = 0
        self.counts: Counts = np.zeros((features, bins), dtype=np.int64)
        self.below, self.above, self.held, self.absent = np.zeros((4, features), dtype=np.int64)
        self.sums: Counts = np.zeros((features, bins - FIRST), dtype=np.int64)
        self.squares = fixed.zeros(features)

    def __repr__(self) -> str:
        return f"<State of {self.counts.shape[0]} features, {self.rows} rows>"

    def update(self, columns: Columns) -> None:
        """Count rows. Columns that the layout does not know are not looked at; those that are not there are missing."""
        rows = len(columns)
        if not rows:
            return
        self.rows += rows
        available = {**flattened(columns.features), **flattened(columns.outputs)}
        numbers: dict[int, Array] = {}
        for row, feature in enumerate(self.layout.features):
            values = available.get(feature.name)
            if values is None:
                self.absent[row] += rows
                self.counts[row, MISSING] += rows
            elif isinstance(feature, Category):
                self.counts[row] += self.layout.vocabularies[row].count(values, self.counts.shape[1])
            else:
                numbers[row], strange = as_floats(values)
                self.counts[row, MISSING] -= strange
                self.counts[row, UNSEEN] += strange
        for group in (*self.layout.gridded, *self.layout.ungridded):
            types = {numbers[row].dtype for row in group if row in numbers}
            for dtype in types:
                own = tuple(row for row in group if row in numbers and numbers[row].dtype == dtype)
                self._add(own, self._count(group, own, [numbers[row] for row in own]))

    def _count(self, group: tuple[int, ...], own: tuple[int, ...], columns: Sequence[Array]) -> Tally:
        """Count columns of one type, which are the rows `own` of a group of features."""
        layout = self.layout
        if group in layout.tables:
            return (layout.tables[group] if own == group else layout.table(own)).count(columns)
        features = [feature for row in own if isinstance(feature := layout.features[row], Numeric)]
        return count_numbers(features, columns, layout.shape[1])

    def _add(self, rows: Sequence[int], tally: Tally) -> None:
        places = list(rows)
        self.counts[places] += tally.counts
        self.below[places] += tally.below
        self.above[places] += tally.above
        self.held[places] += tally.held
        self.sums[places] += tally.sums
        self.squares[places] += tally.squares
        self._check()

    def _check(self) -> None:
        """Sums near the end of 64 bits would wrap unseen; a state that is that full has to be begun anew."""
        if self.sums.size and int(np.abs(self.sums).max()) >= fixed.FULL:
            raise OverflowError(f"a state of {self.rows} rows is full")

    def merge(self, other: State) -> None:
        """Add the counts of another state of the same layout. Raises OverflowError beyond 2**31 rows at the limit."""
        if other.layout.digest != self.layout.digest:
            raise ValueError("states of two different baselines cannot be merged")
        self.rows += other.rows
        self.counts += other.counts
        self.below += other.below
        self.above += other.above
        self.held += other.held
        self.absent += other.absent
        self.sums += other.sums
        self.squares = self.squares + other.squares
        self._check()

    def subtract(self, other: State) -> None:
        """Take away the counts of a state that was merged before: a sliding window drops its oldest pane."""
        self.rows -= other.rows
        self.counts -= other.counts
        self.below -= other.below
        self.above -= other.above
        self.held -= other.held
        self.absent -= other.absent
        self.sums -= other.sums
        self.squares = self.squares - other.squares

    def copy(self) -> State:
        """A state of its own with the same counts."""
        other = State(self.layout)
        other.merge(self)
        return other

    @property
    def finite(self) -> Counts:
        """int64 [F]: finite numbers in bins, the n of the moments; 0 for categories."""
        return np.where(self.layout.numeric, self.counts[:, FIRST:].sum(axis=1), 0)

    @property
    def state_bytes(self) -> int:
        """Bytes of memory of the state, which do not grow with rows (Python integers taken at 40 bytes)."""
        arrays = (self.counts, self.below, self.above, self.held, self.absent, self.sums)
        return sum(array.nbytes for array in arrays) + (8 + 40) * len(self.squares)

    def moments(self) -> tuple[Counts, Floats, Floats]:
        """(n, mean, variance), each (F,): of finite numbers, NaN where n is too small; see `monitors.moments`."""
        from monitors.moments import moments

        return moments(self)

    def value(self) -> Mapping[str, Any]:
        """Rows, bytes, and the counts of each feature by bin."""
        return {
            "rows": self.rows,
            "state_bytes": self.state_bytes,
            "features": {
                feature.name: {
                    "n": self.rows,
                    "missing": int(counts[MISSING]),
                    "unseen": int(counts[UNSEEN]),
                    "counts": counts[FIRST : FIRST + feature.bins].tolist(),
                }
                for feature, counts in zip(self.layout.features, self.counts, strict=True)
            },
        }

    def to_bytes(self) -> bytes:
        """The state; equal states give equal bytes."""
        margins = np.stack([self.below, self.above, self.held, self.absent])
        return msgspec.msgpack.encode(
            _Document(
                self.layout.digest,
                self.rows,
                self.counts.astype("<i8", copy=False).tobytes(),
                margins.astype("<i8", copy=False).tobytes(),
                self.sums.astype("<i8", copy=False).tobytes(),
                fixed.pack(self.squares),
            )
        )

    def load(self, data: bytes) -> None:
        """Replace the counts by those of `to_bytes`. Raises ValueError where they are of another layout."""
        try:
            document = msgspec.msgpack.decode(data, type=_Document)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the bytes are no state: {error}") from error
        if document.layout != self.layout.digest:
            raise ValueError("the state belongs to another baseline")
        features, bins = self.layout.shape
        counts = np.frombuffer(document.counts, "<i8").astype(np.int64).reshape(features, bins)
        margins = np.frombuffer(document.margins, "<i8").astype(np.int64).reshape(4, features)
        sums = np.frombuffer(document.sums, "<i8").astype(np.int64).reshape(features, bins - FIRST)
        squares = fixed.unpack(document.squares, features)
        self.rows, self.counts, self.sums, self.squares = document.rows, counts, sums, squares
        self.below, self.above, self.held, self.absent = margins.copy()


def flattened(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Features or outputs as columns: one of k values a row gives `name[0]` and so on, and `name` if k = 1."""
    columns: dict[str, Array] = {}
    for name, values in arrays.items():
        if values.ndim == 1:
            columns[name] = values
        else:
            width = math.prod(values.shape[1:])
            flat = values.reshape(len(values), width)
            columns.update({f"{name}[{place}]" if width > 1 else name: flat[:, place] for place in range(width)})
    return columns
