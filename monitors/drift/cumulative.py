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

    It weighs the tails most. Ties within a bin count half to each side; it is exact for the binned values, and bins
    bound it for raw ones by nothing. Its limit under the null has mean 1 and variance 2 (pi^2 - 9) / 3.
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
    lower = np.zeros(len(n))
    return statistic(value, n, m, null_mean=mean, null_sd=sd, debiased=value - mean, lower=lower)
