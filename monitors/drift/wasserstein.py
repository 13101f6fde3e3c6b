"""Wasserstein-1, the area between two distribution functions, with rigorous bounds from counts and sums per bin."""

from __future__ import annotations

import numpy as np

from monitors.baseline.layout import FIRST, Metric, Numeric
from monitors.drift.statistic import Statistic, statistic
from monitors.state import State
from monitors.types import Floats


def wasserstein(reference: State, current: State) -> Statistic:
    """The integral of |F - G| over the finite numbers in bins, in the units of the feature.

    In a bin from l to r with share p of the baseline and mean a, the integral of F is F(l) (r - l) + p (r - a): exact,
    from the sums; so is that of F - G, whose absolute value bounds the bin's part from below. If F - G can change its
    sign within the bin, being between u < 0 < v, its part is at most that of a function that takes u and v only. In the
    two outer bins, which have no width, the part lies between the difference and the sum of both tails' integrals. The
    value is the trapezoid between the cuts, held within these bounds. Sums are known to a unit w per value (see
    `monitors.moments`), so the bounds are w wider; they are infinite where a value was too far out to be summed.
    """
    layout = reference.layout
    n, m = current.finite.astype(np.float64), reference.finite.astype(np.float64)
    tables = layout.metric
    rows = np.arange(len(n))
    (p, a), (q, b) = (_shares(side, tables) for side in (reference, current))
    last = tables.bins - 1
    tails = [(p[:, 0] * tables.edges[:, 0] - a[:, 0], q[:, 0] * tables.edges[:, 0] - b[:, 0])]
    end = tables.edges[:, -1]
    tails.append((a[rows, last] - p[rows, last] * end, b[rows, last] - q[rows, last] * end))
    for each in (p, q, a, b):
        each[rows, last] = 0.0  # what is left are the bins between the first and the last edge
    gap = np.cumsum(p - q, axis=1)[:, :-1]
    inner, right, width = slice(1, -1), tables.edges[:, 1:], np.diff(tables.edges, axis=1)
    points = tables.points[:, inner]
    signed = gap[:, :-1] * width + (p - q)[:, inner] * right - (a - b)[:, inner]
    least = np.abs(signed)
    low, high = gap[:, :-1] - q[:, inner], gap[:, :-1] + p[:, inner]
    crosses = (low < 0) & (high > 0) & ~points
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        share = np.clip((signed / width - low) / (high - low), 0.0, 1.0)
    most = np.where(crosses, np.maximum(width * (share * high - (1 - share) * low), least), least)
    straight = (np.abs(gap[:, :-1]) + np.abs(gap[:, 1:])) / 2 * width
    middle = np.clip(np.where(points, least, straight), least, most)
    value, lower, upper = (each.sum(axis=1) for each in (middle, least, most))
    for one, other in tails:
        apart = np.abs(one - other)
        value, lower = value + apart, lower + apart
        both = (one > 0) & (other > 0)
        upper = upper + np.where(both, np.maximum(one, 0.0) + np.maximum(other, 0.0), apart)
    slack = tables.unit + 1e-12 * tables.reach
    unbounded = (reference.held + current.held > 0) | (tables.bins < 2)
    lower = np.where(unbounded, 0.0, np.maximum(lower - slack, 0.0))
    upper = np.where(unbounded, np.inf, upper + slack)
    return statistic(value, n, m, lower=lower, upper=upper)


def _shares(state: State, tables: Metric) -> tuple[Floats, Floats]:
    """The share of each own bin, [F, K], and the sum of its values over n, in the feature's units."""
    counts = np.where(tables.numeric[:, None], state.counts[:, FIRST:], 0)
    total = np.maximum(counts.sum(axis=1), 1)[:, None]
    shares = counts / total
    offset = (tables.centre + tables.half)[:, None]
    means = (state.sums + counts * offset) / total * tables.unit[:, None]
    return shares, np.where(tables.points, shares * tables.lefts, means)  # what a point holds is known exactly


def relative(distance: Statistic, baseline: State) -> Floats:
    """The distance in units of the baseline's interquartile range, (F,), NaN where that is 0.

    Quartiles are read from the counts (the middles of their bins), and not a standard deviation: one outlier in the
    training data would hide every drift.
    """
    spread = np.full(len(distance.value), np.nan)
    for row, feature in enumerate(baseline.layout.features):
        if isinstance(feature, Numeric) and len(feature.edges) > 1:
            counts = baseline.counts[row, FIRST : FIRST + feature.bins]
            ends = np.array([feature.edges[0], *feature.edges, feature.edges[-1]])
            reached = np.cumsum(counts) / max(int(counts.sum()), 1)
            low, high = (int(np.searchsorted(reached, share)) for share in (0.25, 0.75))
            if high < feature.bins:
                spread[row] = (ends[high] + ends[high + 1]) / 2 - (ends[low] + ends[low + 1]) / 2
    return np.where(spread > 0, distance.value / np.where(spread > 0, spread, 1.0), np.nan)
