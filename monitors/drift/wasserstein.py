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
    mean, sd = _null(p, q, n, m, width, tails)
    for one, other in tails:
        apart = np.abs(one - other)
        value, lower = value + apart, lower + apart
        both = (one > 0) & (other > 0)
        upper = upper + np.where(both, np.maximum(one, 0.0) + np.maximum(other, 0.0), apart)
    slack = tables.unit + 1e-12 * tables.reach
    unbounded = (reference.held + current.held > 0) | (tables.bins < 2)
    lower = np.where(unbounded, 0.0, np.maximum(lower - slack, 0.0))
    upper = np.where(unbounded, np.inf, upper + slack)
    debiased = np.sqrt(np.maximum(value**2 - mean**2, 0.0))
    return statistic(value, n, m, null_mean=mean, null_sd=sd, debiased=debiased, lower=lower, upper=upper)


def _null(
    p: Floats, q: Floats, n: Floats, m: Floats, width: Floats, tails: list[tuple[Floats, Floats]]
) -> tuple[Floats, Floats]:
    """Mean and deviation (F,) of the value where nothing has drifted, for many rows.

    There F - G is a Brownian bridge of variance (1/n + 1/m) H (1 - H), H being the pooled function; E|B| is
    sqrt(2 / pi) of its deviation, and the covariance of |B| at two cuts follows from their correlation r, whose square
    is the ratio of the odds H / (1 - H): 2 / pi times r asin(r) + sqrt(1 - r^2) - 1, for which a polynomial in r^2
    stands that is within 0.008 of it. Between cuts the trapezoid, and beyond the outer ones a tail that falls
    exponentially with the mean that the sums say: the integral of sqrt(H) there is twice that of H, over sqrt(H).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        both = n + m
        h = np.cumsum((p * m[:, None] + q * n[:, None]) / both[:, None], axis=1)[:, :-1]
        h = np.clip(h, 0.0, 1.0)
        weight = np.zeros_like(h)
        weight[:, :-1] += width / 2
        weight[:, 1:] += width / 2
        if not h.shape[1]:
            return np.zeros(len(n)), np.zeros(len(n))
        rows, cuts = np.arange(len(h)), np.argmax(h >= h[:, -1:], axis=1)
        for (one, other), at, mass in zip(tails, (0 * cuts, cuts), (h[:, 0], 1 - h[:, -1]), strict=True):
            tail = np.maximum(one * m + other * n, 0.0) / both
            weight[rows, at] += np.where(mass > 0, 2 * tail / np.where(mass > 0, mass, 1.0), 0.0)
        deviation = weight * np.sqrt(h * (1 - h))
        odds = np.maximum(h, 1e-12) / np.maximum(1 - h, 1e-12)
        square = odds[:, :, None] / odds[:, None, :]
        np.minimum(square, 1 / square, out=square)
        together = square * (0.5 + (np.pi / 2 - 1.5) * square)
        variance = np.einsum("fa,fab,fb->f", deviation, together, deviation)
        scale = np.sqrt(2 / np.pi * (1 / n + 1 / m))
        return scale * deviation.sum(axis=1), scale * np.sqrt(np.maximum(variance, 0.0))


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
