"""Freezing: from values of the training data to bins that never move again.

Edges are quantiles that reach into the tails, because a drift of 0.5 % of rows to far outside moves no decile. Atoms
(single values with much of the mass) get bins of their own. Where the edges may be moved to the boundaries of a uniform
grid without making a bin heavy, they are, because counting on a grid is several times faster and just as exact.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from monitors.baseline.layout import Category, Grid, Numeric, Role
from monitors.types import Floats

QUANTILES = (1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999)
CELLS = 512
WIDE = 8  # times as many cells, for skewed numbers
VALUES = 200  # categories with a bin of their own
_ATOM = 1 / (len(QUANTILES) + 1)  # a single value with more than its share of the mass
_HEAVY = 0.2  # no bin of a grid may hold more of the baseline, atoms excepted: twice what a decile holds
_FINE = 16  # bits of resolution of moments without a grid


def numeric(
    name: str, role: Role, values: Floats, minimum: float, maximum: float, whole: bool, cells: int = CELLS
) -> Numeric:
    """Bins for a number. `values` (n,): finite values of the baseline, or a sample of its rows; may be empty.

    `minimum`, `maximum`, `whole`: over all of the baseline. `cells` = 0 asks for the exact quantiles and no grid.
    """
    if not len(values):
        return Numeric(name, role, (), (False,), None, None, 0, 0, whole=False)
    distinct, times = np.unique(values, return_counts=True)
    distinct = distinct + 0.0  # -0.0 becomes 0.0
    reached = np.cumsum(times) / len(values)
    wanted = distinct[np.searchsorted(reached, np.array(QUANTILES), side="left").clip(max=len(distinct) - 1)]
    few = whole and len(distinct) <= len(QUANTILES) + 1
    atoms = distinct[(times > _ATOM * len(values)) | few]
    if whole and _span(wanted, atoms) < cells - 1 and float(np.abs(wanted).max()) < 2**21:
        edges = np.unique(np.concatenate([wanted, atoms, atoms + 1]))
        low = max(int(edges[0]), int(minimum))
        grid = Grid(exponent=0, low=low, cells=min(int(edges[-1]), int(maximum)) + 1 - low, integral=True)
        return _numeric(name, role, edges, atoms, minimum, maximum, 0, whole, grid)
    for size in (cells, WIDE * cells) if cells and not len(atoms) else ():
        if not (found := _snapped(values, wanted, minimum, maximum, size)):
            continue
        grid, edges = found
        return _numeric(name, role, edges, atoms, minimum, maximum, grid.exponent, whole, grid)
    with np.errstate(over="ignore"):
        edges = np.unique(np.concatenate([wanted, atoms, np.nextafter(atoms, math.inf)]))
    edges = edges[np.isfinite(edges)]
    return _numeric(name, role, edges, atoms, minimum, maximum, _unit(wanted, whole), whole, None)


def _numeric(
    name: str,
    role: Role,
    edges: Floats,
    atoms: Floats,
    minimum: float,
    maximum: float,
    unit: int,
    whole: bool,
    grid: Grid | None,
) -> Numeric:
    points = (False, *np.isin(edges, atoms).tolist())
    middle = float(edges[len(edges) // 2])
    centre = grid.low if grid is not None else math.floor(math.ldexp(math.floor(middle) if unit > 0 else middle, -unit))
    return Numeric(name, role, tuple(edges.tolist()), points, minimum + 0.0, maximum + 0.0, unit, centre, whole, grid)


def _snapped(values: Floats, wanted: Floats, minimum: float, maximum: float, cells: int) -> tuple[Grid, Floats] | None:
    """The finest grid of at most `cells` cells from the first to the last edge, but no further than the baseline went.

    None where it does not fit the data. The bins may reach beyond the grid: values there are counted one by one.
    """
    span = _span(wanted)
    if not (0 < span < math.inf):
        return None
    exponent = math.frexp(span / (cells - 2))[1]
    if not -100 <= exponent <= 100 or float(np.abs(wanted).max()) >= math.ldexp(1.0, exponent + 21):
        return None
    places = np.unique(np.rint(np.ldexp(wanted, -exponent)))
    edges = np.ldexp(places, exponent)
    share = np.bincount(np.searchsorted(edges, values, side="right")) / len(values)
    if share.max() > _HEAVY:
        return None
    low = max(int(places[0]), math.floor(math.ldexp(minimum, -exponent)))
    high = min(int(places[-1]), math.floor(math.ldexp(maximum, -exponent))) + 1
    return (Grid(exponent, low, high - low, integral=False), edges) if high > low else None


def _span(*arrays: Floats) -> float:
    """From the least to the greatest number; inf where that is more than a float holds."""
    numbers = np.concatenate(arrays)
    return float(numbers.max() / 2 - numbers.min() / 2) * 2.0


def _unit(wanted: Floats, whole: bool) -> int:
    """The exponent of the unit of moments where there is no grid: 16 bits below the span, 60 below the largest edge."""
    largest = float(np.abs(wanted).max())
    span = min(_span(wanted), 1.6e308) or largest
    fine = math.frexp(span)[1] - _FINE
    if whole and fine <= 0:
        return 0
    return max(min(max(fine, math.frexp(largest)[1] - 60), 1000), -1000)


def category(name: str, role: Role, sample: Counter[str], hashes: set[bytes], open_ended: bool) -> Category:
    """Bins for a category: the most frequent values of `sample` (ties by name), and the hashes of all there were."""
    from monitors.count import hashed

    ranked = sorted(sample.items(), key=lambda item: (-item[1], item[0]))
    values = tuple(value for value, _ in ranked[:VALUES])
    others = hashes - {hashed(value) for value in values}
    return Category(name, role, values, b"".join(sorted(others)), open_ended)
