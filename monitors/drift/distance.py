"""Distances between shares: total variation and the largest difference of a bin."""

from __future__ import annotations

import numpy as np

from monitors.drift.statistic import Pair, Statistic, statistic


def total_variation(pair: Pair) -> Statistic:
    """Half the sum of |p - q|: the share of rows that would have to move, 0..1. On bins no more than on raw values.

    Under the null each difference is near normal with variance s (1 - s) (1/n + 1/m), where s is the pooled share, and
    E|N(0, v)| = sqrt(2 v / pi). The deviation ignores the weak correlation between bins.
    """
    difference = np.abs(pair.p - pair.q)
    variance = _variance(pair)
    value = difference.sum(axis=1) / 2
    mean = np.sqrt(variance * 2 / np.pi).sum(axis=1) / 2
    sd = np.sqrt((variance * (1 - 2 / np.pi)).sum(axis=1)) / 2
    debiased = np.sqrt(np.maximum(value**2 - mean**2, 0.0))
    top = np.ones(len(value))
    return statistic(value, pair.n, pair.m, null_mean=mean, null_sd=sd, debiased=debiased, upper=top)


def largest_difference(pair: Pair) -> Statistic:
    """The greatest |p - q| of a bin (Chebyshev, L-infinity), 0..1: a statement about these bins alone.

    `null_mean` is a bound from above: the maximum of B normals of deviation at most s averages at most s sqrt(2 ln 2B).
    """
    value = np.abs(pair.p - pair.q).max(axis=1, initial=0.0)
    sd = np.sqrt(_variance(pair).max(axis=1, initial=0.0))
    mean = sd * np.sqrt(2 * np.log(2 * np.maximum(pair.freedom + 1, 1)))
    return statistic(value, pair.n, pair.m, null_mean=mean, null_sd=sd, lower=value, upper=value)


def _variance(pair: Pair) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    pooled = (pair.reference + pair.current) / np.maximum(pair.n + pair.m, 1)[:, None]
    with np.errstate(invalid="ignore"):
        return np.where(pooled > 0, pooled * (1 - pooled) * pair.noise[:, None], 0.0)
