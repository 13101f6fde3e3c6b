"""Distances between distribution functions: Kolmogorov-Smirnov, Cramer-von Mises, Anderson-Darling.

They are of the numbers in bins, with the infinities at the ends, without missing and unseen values. Where two functions
F and G are known at the cuts only, F - G within an interval is at least F(left) - G(right) and at most F(right) -
G(left); that, and no assumption, gives the bounds for the statistic of the raw values.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import kolmogorov

from monitors.drift.statistic import Ordered, Statistic, statistic
from monitors.types import Floats

_KS_MEAN = math.sqrt(math.pi / 2) * math.log(2)
_KS_SD = math.sqrt(math.pi**2 / 12 - _KS_MEAN**2)


def kolmogorov_smirnov(ordered: Ordered) -> Statistic:
    """The greatest |F - G|: exact at the cuts. `p` is Kolmogorov's limit, conservative for binned and tied values."""
    value = np.abs(ordered.gap).max(axis=1)
    low, high = ordered.inside
    upper = np.maximum(-low, high).max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(ordered.n * ordered.m / (ordered.n + ordered.m))
        mean, sd = _KS_MEAN / scale, _KS_SD / scale
        debiased = np.sqrt(np.maximum(value**2 - mean**2, 0.0))
        p = kolmogorov(value * scale)
    return statistic(
        value,
        ordered.n,
        ordered.m,
        null_mean=mean,
        null_sd=sd,
        debiased=debiased,
        lower=value,
        upper=np.maximum(upper, value),
        p=p,
    )


def cramer_von_mises(ordered: Ordered) -> Statistic:
    """n m / (n + m)^2 times the sum of (F - G)^2 over the pooled values; F and G hold the value itself.

    Null mean and variance are the exact ones of untied values (Anderson 1962): (1 + 1/N)/6 and
    (N + 1)(4 n m N - 3 (n^2 + m^2) - 2 n m) / (180 N^2 n m).
    """
    n, m = ordered.n, ordered.m
    both = n + m
    low, high = ordered.inside
    least = np.where((low <= 0) & (high >= 0), 0.0, np.minimum(low**2, high**2))
    most = np.maximum(low**2, high**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = n * m / both**2
        value, lower, upper = (factor * (each * ordered.pooled).sum(axis=1) for each in (ordered.gap**2, least, most))
        mean = (1 + 1 / both) / 6
        variance = (both + 1) * (4 * n * m * both - 3 * (n**2 + m**2) - 2 * n * m) / (180 * both**2 * n * m)
    sd = np.sqrt(np.maximum(variance, 0.0))
    debiased = value - mean
    return statistic(value, n, m, null_mean=mean, null_sd=sd, debiased=debiased, lower=lower, upper=upper)


def anderson_darling(ordered: Ordered) -> Statistic:
    """The k-sample statistic of two samples with midranks for ties (Scholz and Stephens 1987, equation 7).

    It weighs the tails most. Ties within a bin count half to each side. Its limit under the null has mean 1 and
    variance 2 (pi^2 - 9) / 3. The bounds hold for raw values however they tie: see `_bounds`.
    """
    n, m, both = ordered.n, ordered.m, ordered.n + ordered.m
    pooled = ordered.pooled
    below = np.cumsum(pooled, axis=1) - pooled / 2
    value = np.zeros(len(n))
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = below * (both[:, None] - below) - both[:, None] * pooled / 4
        for cumulative, size in ((ordered.f, m), (ordered.g, n)):
            own = (cumulative[:, 1:] + cumulative[:, :-1]) / 2 * size[:, None]
            term = (both[:, None] * own - size[:, None] * below) ** 2 / np.where(weight > 0, weight, 1.0)
            value += np.where((pooled > 0) & (weight > 0), pooled / both[:, None] * term, 0.0).sum(axis=1) / size
        value *= (both - 1) / both
    mean, sd = np.ones(len(n)), np.full(len(n), math.sqrt(2 * (math.pi**2 - 9) / 3))
    lower, upper = _bounds(ordered)
    return statistic(value, n, m, null_mean=mean, null_sd=sd, debiased=value - mean, lower=lower, upper=upper)


def _bounds(ordered: Ordered) -> tuple[Floats, Floats]:
    """What Anderson-Darling's statistic of raw values lies between, (F,) each.

    It is nm (N - 1) / N times the sum of l d^2 / (B (N - B) - N l / 4) over groups of l tied values, B being their
    midrank and d the mean of F - G before and after them; values that do not tie are groups of one. Groups lie within
    bins. So d^2 is between the least and the greatest of the bin, the quotient at least l over the greatest B (N - B)
    there, and at most 4 l over the least of N (3 a + b) - (a + b)^2, which is what the divisor is, times 4, for a group
    from rank a to rank b: concave, hence least in a corner. At the ends, where that says little, |F - G| is at most
    rank / min(n, m); summed over all groups up to rank c that is no more than c^2 / (min(n, m)^2 (N - 2 c)).
    """
    n, m = ordered.n[:, None], ordered.m[:, None]
    both, least_side = n + m, np.minimum(n, m)
    pooled = ordered.pooled
    after = np.cumsum(pooled, axis=1)
    before = after - pooled
    low, high = ordered.inside
    least = np.where((low <= 0) & (high >= 0), 0.0, np.minimum(low**2, high**2))
    most = np.maximum(low**2, high**2)

    def divisor(a: Floats, b: Floats) -> Floats:
        return np.asarray(both * (3 * a + b) - (a + b) ** 2)

    with np.errstate(divide="ignore", invalid="ignore"):
        middle = np.clip(both / 2, before, after)
        under = least * pooled / (middle * (both - middle))
        corners = (divisor(before, after), divisor(before, before + 1), divisor(after - 1, after))
        over = most * 4 * pooled / np.minimum(np.minimum(*corners[:2]), corners[2])
        for rank, at_end in ((after, before == 0), (both - before, after == both)):
            end = rank**2 / (least_side**2 * (both - 2 * rank))
            over = np.where(at_end & (2 * rank < both), np.minimum(over, end), over)
        # A bin of one value is one group.
        gap = (ordered.f[:, 1:] + ordered.f[:, :-1] - ordered.g[:, 1:] - ordered.g[:, :-1]) / 2
        exact = 4 * pooled * gap**2 / divisor(before, after)
        exact = np.where(pooled < both, exact, 0.0)
        factor = ordered.n * ordered.m * (ordered.n + ordered.m - 1) / (ordered.n + ordered.m)
        bounds = []
        for bound in (under, over):
            part = np.where(ordered.single, exact, bound)
            bounds.append(factor * np.where(pooled > 0, np.nan_to_num(part, nan=0.0, posinf=np.inf), 0.0).sum(axis=1))
    return bounds[0], bounds[1]
