"""Tests that two columns of counts come from one distribution: chi-squared, G, and Cramer's V.

All are of homogeneity: the baseline is a sample too. Treating it as exact inflates chi-squared by 1 + n/m, which calls
the same distribution drifted in up to 96 % of looks.
"""

from __future__ import annotations

import numpy as np
from scipy.special import chdtrc, xlogy

from monitors.drift.statistic import Pair, Statistic, statistic
from monitors.types import Floats


def chi_squared(pair: Pair) -> Statistic:
    """Pearson's statistic of the 2 x B table, sum (sqrt(m/n) N - sqrt(n/m) R)^2 / (N + R); exact on the bins."""
    return _with_null(pair, _pearson(pair))


def g_test(pair: Pair) -> Statistic:
    """The log-likelihood ratio of the table, 2 sum O ln(O / E): 0 ln 0 = 0, so empty cells are fine."""
    pooled = (pair.reference + pair.current) / np.maximum(pair.n + pair.m, 1)[:, None]
    value = np.zeros(len(pair.n))
    for counts, rows in ((pair.reference, pair.m), (pair.current, pair.n)):
        expected = pooled * rows[:, None]
        value += 2 * xlogy(counts, np.where(expected > 0, counts / np.where(expected > 0, expected, 1.0), 1.0)).sum(
            axis=1
        )
    return _with_null(pair, np.maximum(value, 0.0))


def cramers_v(pair: Pair) -> Statistic:
    """Cramer's V with Bergsma's correction (2013), sqrt(max(0, x/N - (B-1)/(N-1)) / (min(B', 2') - 1)): 0..1.

    x is Pearson's statistic, N = n + m, and k' = k - (k-1)^2/(N-1). It is debiased by construction.
    """
    both = pair.n + pair.m
    bins = pair.freedom + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        square = np.maximum(0.0, _pearson(pair) / both - pair.freedom / (both - 1))
        rows = 2 - 1 / (both - 1)
        columns = bins - pair.freedom**2 / (both - 1)
        divisor = np.minimum(rows, columns) - 1
        value = np.sqrt(np.where(divisor > 0, square / np.where(divisor > 0, divisor, 1.0), 0.0))
    return statistic(value, pair.n, pair.m, debiased=value, lower=value, upper=value)


def _pearson(pair: Pair) -> Floats:
    ratio = np.sqrt(np.maximum(pair.m, 1) / np.maximum(pair.n, 1))[:, None]
    both = np.where(pair.used, pair.reference + pair.current, 1)
    value: Floats = ((pair.current * ratio - pair.reference / ratio) ** 2 / both).sum(axis=1)
    return value


def _with_null(pair: Pair, value: Floats) -> Statistic:
    tail = np.where(pair.freedom > 0, chdtrc(np.maximum(pair.freedom, 1), value), 1.0)
    sd = np.sqrt(2 * pair.freedom)
    debiased = value - pair.freedom
    return statistic(
        value, pair.n, pair.m, null_mean=pair.freedom, null_sd=sd, debiased=debiased, lower=value, upper=value, p=tail
    )
