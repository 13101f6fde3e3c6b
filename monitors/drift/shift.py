"""Shifts of the mean and of the variance of a number."""

from __future__ import annotations

import numpy as np
from scipy.special import stdtr

from monitors.drift.statistic import Statistic, statistic
from monitors.moments import moments, resolution
from monitors.state import State


def mean_shift(reference: State, current: State) -> Statistic:
    """Welch's t of the means: (current - baseline) / sqrt(v/n + u/m); `p` is two-sided, by Student's distribution.

    Welch and Satterthwaite give the degrees of freedom. Both means and deviations are known to half a unit w (see
    `monitors.moments`); the bounds are what that does to t, to first order. Infinities and missing values are left out.
    """
    m, mean, variance = moments(reference)
    n, other, spread = moments(current)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = variance / m, spread / n
        error = np.sqrt(a + b)
        t = np.where(error > 0, (other - mean) / error, np.where(other == mean, 0.0, np.nan))
        freedom = (a + b) ** 2 / (a**2 / (m - 1) + b**2 / (n - 1))
        p = np.where(error > 0, 2 * stdtr(freedom, -np.abs(t)), np.where(other == mean, 1.0, np.nan))
        unit = resolution(reference)
        deviation = np.sqrt(variance / m**2 + spread / n**2) / error
        slack = unit / error + np.abs(t) * unit * deviation / error
    sd = np.sqrt(np.where(freedom > 2, freedom / (np.where(freedom > 2, freedom, 3) - 2), np.nan))
    zero = np.zeros(len(t))
    return statistic(
        t,
        n.astype(float),
        m.astype(float),
        null_mean=zero,
        null_sd=sd,
        debiased=t,
        lower=t - slack,
        upper=t + slack,
        p=p,
    )


def variance_shift(reference: State, current: State) -> Statistic:
    """ln(variance now / variance in the baseline): 0 where equal, ln 4 where the deviation has doubled.

    `null_sd` is sqrt(2/(n-1) + 2/(m-1)), which is right for normal values and too small for heavier tails: there is no
    `p`. The bounds come from deviations known to half a unit w.
    """
    m, _, variance = moments(reference)
    n, _, spread = moments(current)
    with np.errstate(invalid="ignore", divide="ignore"):
        known = (variance > 0) & (spread > 0)
        value = np.where(known, np.log(spread / variance), np.nan)
        sd = np.sqrt(2 / (n - 1) + 2 / (m - 1))
        one, other = np.sqrt(variance), np.sqrt(spread)
        wide, close = resolution(reference) / 2 * np.sqrt(n / (n - 1)), resolution(reference) / 2 * np.sqrt(m / (m - 1))
        lower = 2 * np.log(np.maximum(other - wide, 0) / (one + close))
        upper = 2 * np.log((other + wide) / np.maximum(one - close, 0))
    zero = np.zeros(len(value))
    n, m = np.where(known, n, 0), np.where(known, m, 0)
    return statistic(
        value,
        n.astype(float),
        m.astype(float),
        null_mean=zero,
        null_sd=sd,
        debiased=value,
        lower=lower,
        upper=upper,
    )
