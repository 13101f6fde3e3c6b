"""Wasserstein-1, the area between two distribution functions, with rigorous bounds from counts and sums per bin."""

from __future__ import annotations

import math

import numpy as np

from monitors.baseline.layout import FIRST, Numeric
from monitors.drift.statistic import Statistic, statistic
from monitors.moments import half
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
    size = len(layout.features)
    value, lower, upper = (np.zeros(size) for _ in range(3))
    n, m = current.finite.astype(np.float64), reference.finite.astype(np.float64)
    for row, feature in enumerate(layout.features):
        if isinstance(feature, Numeric) and n[row] and m[row]:
            value[row], lower[row], upper[row] = _of_one(feature, reference, current, row)
    return statistic(value, n, m, lower=lower, upper=upper)


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


def _of_one(feature: Numeric, reference: State, current: State, row: int) -> tuple[float, float, float]:
    own = slice(FIRST, FIRST + feature.bins)
    unit = math.ldexp(1.0, feature.unit)
    shares, firsts = [], []
    for state in (reference, current):
        counts = state.counts[row, own].astype(np.float64)
        total = counts.sum()
        shares.append(counts / total)
        # The sum of the values of each bin over n, in the feature's units.
        firsts.append((state.sums[row, : feature.bins] + counts * (feature.centre + half(feature))) / total * unit)
    edges, points = np.array(feature.edges), np.array(feature.points)
    if not len(edges):
        tails = abs(float(firsts[0].sum() - firsts[1].sum()))
        return tails, max(tails - unit, 0.0), math.inf
    p, q = shares
    # What a point holds is known exactly.
    a, b = (np.where(points, share * np.append(0.0, edges), first) for share, first in zip(shares, firsts, strict=True))
    f, g = np.cumsum(p)[:-1], np.cumsum(q)[:-1]
    right, width = edges[1:], np.diff(edges)
    gap = f - g
    inner, pq = slice(1, -1), p - q
    signed = gap[:-1] * width + pq[inner] * right - (a - b)[inner]
    least = np.abs(signed)
    low, high = gap[:-1] - q[inner], gap[:-1] + p[inner]
    crosses = (low < 0) & (high > 0) & ~points[inner]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        share = np.clip((signed / width - low) / (high - low), 0.0, 1.0)
    most = np.where(crosses, np.maximum(width * (share * high - (1 - share) * low), least), least)
    straight = (np.abs(gap[:-1]) + np.abs(gap[1:])) / 2 * width
    middle = np.clip(np.where(points[inner], least, straight), least, most)
    ends = [
        (p[0] * edges[0] - a[0], q[0] * edges[0] - b[0]),
        (a[-1] - p[-1] * edges[-1], b[-1] - q[-1] * edges[-1]),
    ]
    value, lower, upper = float(middle.sum()), float(least.sum()), float(most.sum())
    for one, other in ends:
        value += abs(one - other)
        lower += abs(one - other)
        upper += max(one, 0.0) + max(other, 0.0) if one > 0 and other > 0 else abs(one - other)
    if reference.held[row] or current.held[row]:
        return value, 0.0, math.inf
    slack = unit + 1e-12 * float(np.abs(edges).max())
    return value, max(lower - slack, 0.0), upper + slack
