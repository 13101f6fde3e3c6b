"""The frozen bins of a model's features and outputs: what counts of the baseline and of live rows are counts of.

Every column of a count matrix [F, B] is one of `SPECIAL` (missing, -inf, +inf, unseen, other) or, from `FIRST` on, a
bin of the feature's own: for a number an interval between its edges, closed on the left; for a category a known value.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np

from monitors.types import Array, Counts, Floats

if TYPE_CHECKING:
    from monitors.count import Vocabulary
    from monitors.grid import GridTable

SPECIAL = ("missing", "-inf", "+inf", "unseen", "other")
MISSING, MINUS_INF, PLUS_INF, UNSEEN, OTHER = range(5)
FIRST = len(SPECIAL)
GROUP = 256  # features counted by one table
NARROW = 512  # cells of a grid up to which that many tables stay in the caches

Role = Literal["feature", "output"]


class Grid(msgspec.Struct, frozen=True):
    """Cells of width 2**`exponent`: cell c holds [(low + c) * width, (low + c + 1) * width), c in 0..cells-1.

    Edges of a numeric feature with a grid lie on cell boundaries, so counting cells counts bins exactly. `integral`:
    the width is 1 and the baseline held whole numbers only; any other number is then looked at one by one.
    """

    exponent: int
    low: int
    cells: int
    integral: bool


class Numeric(msgspec.Struct, frozen=True, tag="numeric"):
    """A number: bin i holds `edges[i-1] <= x < edges[i]`; below the first edge is bin 0.

    `points[i]`: bin i is for one value, its left edge (an atom, such as 0 in "minutes late"); other values before the
    next edge are counted as unseen. `minimum` and `maximum` are the baseline's, over finite values, None where there
    was none. Moments are of floor(x / 2**unit) - centre; `whole`: the baseline held whole numbers only.
    """

    name: str
    role: Role
    edges: tuple[float, ...]
    points: tuple[bool, ...]
    minimum: float | None
    maximum: float | None
    unit: int
    centre: int
    whole: bool
    grid: Grid | None = None

    @property
    def bins(self) -> int:
        return len(self.edges) + 1

    @property
    def half(self) -> float:
        """What rounding down takes from a value, on average and in units: nothing from whole numbers."""
        return 0.0 if self.whole and self.unit <= 0 else 0.5

    def labels(self) -> list[str]:
        """What each own bin holds, to be read by people."""
        ends = ["-inf", *(f"{edge:.6g}" for edge in self.edges), "inf"]
        return [ends[i] if point else f"[{ends[i]}, {ends[i + 1]})" for i, point in enumerate(self.points)]


class Category(msgspec.Struct, frozen=True, tag="category"):
    """A category: bin i counts `values[i]`, the most frequent of the baseline.

    The baseline's further values are known by hash and counted in `other`; what the baseline never held is `unseen`.
    `open_ended`: it held more than could be kept, so a value that is not known may have been in it.
    """

    name: str
    role: Role
    values: tuple[str, ...]
    others: bytes = b""
    open_ended: bool = False

    @property
    def bins(self) -> int:
        return len(self.values)

    def labels(self) -> list[str]:
        """What each own bin holds, to be read by people."""
        return list(self.values)


Feature = Numeric | Category


class Metric(NamedTuple):
    """Where the bins of numbers are, one row per feature; zeros for categories.

    `numeric` bool [F]; `bins` [F]: own bins; `edges` [F, K - 1], padded on the right with the last edge; `lefts` [F,
    K]: the left edge of each own bin, 0 for the first; `points` bool [F, K]; `unit` [F]: the width of a unit of the
    moments; `centre`, `half` [F]: what to add to a mean in units; `reach` [F]: the largest absolute edge.
    """

    numeric: Array
    bins: Counts
    edges: Floats
    lefts: Floats
    points: Array
    unit: Floats
    centre: Floats
    half: Floats
    reach: Floats


class Layout(msgspec.Struct, frozen=True, dict=True):
    """The features and outputs of a model, in the order of the rows of its count matrices."""

    features: tuple[Feature, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """[F, B] of a count matrix; features with fewer bins leave the last columns zero."""
        return len(self.features), FIRST + max((feature.bins for feature in self.features), default=0)

    @cached_property
    def valid(self) -> Array:
        """bool [F, B]: the columns that mean something for the feature of that row."""
        mask = np.zeros(self.shape, dtype=bool)
        for row, feature in enumerate(self.features):
            if isinstance(feature, Numeric):
                mask[row, [MISSING, MINUS_INF, PLUS_INF, UNSEEN]] = True
            else:
                mask[row, [MISSING, UNSEEN, OTHER]] = True
            mask[row, FIRST : FIRST + feature.bins] = True
        return mask

    @cached_property
    def numeric(self) -> Array:
        """bool [F]: which rows are numbers, whose bins have an order and a width."""
        return np.array([isinstance(feature, Numeric) for feature in self.features], dtype=bool)

    @cached_property
    def outputs(self) -> Array:
        """bool [F]: which rows are outputs of the model."""
        return np.array([feature.role == "output" for feature in self.features], dtype=bool)

    @cached_property
    def metric(self) -> Metric:
        """The positions of the bins of numbers."""
        features, own = len(self.features), max(self.shape[1] - FIRST, 2)
        table = Metric(
            self.numeric,
            np.array([f.bins if isinstance(f, Numeric) else 1 for f in self.features], dtype=np.int64),
            np.zeros((features, own - 1)),
            np.zeros((features, self.shape[1] - FIRST)),
            np.zeros((features, self.shape[1] - FIRST), dtype=bool),
            np.zeros(features),
            np.zeros(features),
            np.zeros(features),
            np.zeros(features),
        )
        for row, feature in enumerate(self.features):
            if isinstance(feature, Numeric):
                table.unit[row] = math.ldexp(1.0, feature.unit)
                table.centre[row], table.half[row] = feature.centre, feature.half
                table.points[row, : feature.bins] = feature.points
                if feature.edges:
                    table.edges[row] = feature.edges[-1]
                    table.edges[row, : feature.bins - 1] = feature.edges
                    table.lefts[row, 1 : feature.bins] = feature.edges
                    table.reach[row] = max(abs(feature.edges[0]), abs(feature.edges[-1]))
        return table

    @cached_property
    def gridded(self) -> tuple[tuple[int, ...], ...]:
        """The rows of the numbers with a grid, in groups that are counted together."""
        grids = {row: f.grid for row, f in enumerate(self.features) if isinstance(f, Numeric) and f.grid is not None}
        narrow = [row for row, grid in grids.items() if grid.cells <= NARROW]
        wide = [row for row, grid in grids.items() if grid.cells > NARROW]
        return (*_groups(narrow, GROUP), *_groups(wide, GROUP // 8))

    @cached_property
    def ungridded(self) -> tuple[tuple[int, ...], ...]:
        """The rows of the numbers without one, in groups that are read together."""
        rows = [row for row, f in enumerate(self.features) if isinstance(f, Numeric) and f.grid is None]
        return _groups(rows, GROUP)

    @cached_property
    def tables(self) -> Mapping[tuple[int, ...], GridTable]:
        """What counts each of the groups of `gridded`."""
        return {rows: self.table(rows) for rows in self.gridded}

    def table(self, rows: tuple[int, ...]) -> GridTable:
        """What counts the features in `rows`, which have grids."""
        from monitors.grid import GridTable

        chosen = [feature for row in rows if isinstance(feature := self.features[row], Numeric)]
        return GridTable(chosen, self.shape[1])

    @cached_property
    def vocabularies(self) -> Mapping[int, Vocabulary]:
        """What counts each category, by row."""
        from monitors.count import Vocabulary

        return {row: Vocabulary(f) for row, f in enumerate(self.features) if isinstance(f, Category)}

    @cached_property
    def digest(self) -> bytes:
        """What two states must share to be merged."""
        return hashlib.sha256(msgspec.msgpack.encode(self)).digest()

    def split(self, counts: Counts) -> tuple[Counts, Counts]:
        """A count matrix as its special columns [F, 5] and the features' own bins [F, B - 5]."""
        return counts[:, :FIRST], counts[:, FIRST:]


def _groups(rows: list[int], size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(rows[start : start + size]) for start in range(0, len(rows), size))
