"""Divergences between the binned distributions: PSI, Kullback-Leibler, Jensen-Shannon, Hellinger.

Coarsening can only lose divergence (the data-processing inequality), so the value on bins is a lower bound of the one
on raw values. Half a count is added to every bin in PSI and KL, whose logarithms an empty bin would make infinite;
bins that are empty on both sides are left out. Where nothing has drifted, each is a multiple of a chi-squared variable
with `freedom` degrees, to first order in 1/n + 1/m: E PSI = (B - 1)(1/n + 1/m) (Yurdakul 2018).
"""

from __future__ import annotations

import numpy as np
from scipy.special import chdtrc, gammaln, rel_entr

from monitors.drift.statistic import Pair, Statistic, statistic
from monitors.types import Floats


def psi(pair: Pair) -> Statistic:
    """Population stability index, sum (q - p) ln(q / p): symmetric, in nats. `p` is by its chi-squared limit."""
    p, q = pair.smooth
    value = ((q - p) * np.log(q / p)).sum(axis=1)
    mean = pair.freedom * pair.noise
    with np.errstate(invalid="ignore", divide="ignore"):
        tail = np.where(pair.freedom > 0, chdtrc(np.maximum(pair.freedom, 1), value / pair.noise), 1.0)
    return statistic(
        value,
        pair.n,
        pair.m,
        null_mean=mean,
        null_sd=np.sqrt(2 * pair.freedom) * pair.noise,
        debiased=value - mean,
        p=tail,
    )


def kl(pair: Pair) -> Statistic:
    """Kullback-Leibler divergence of the current rows from the baseline, sum q ln(q / p), in nats."""
    p, q = pair.smooth
    value = np.where(pair.used, rel_entr(q, p), 0.0).sum(axis=1)
    mean = pair.freedom * pair.noise / 2
    sd = np.sqrt(pair.freedom / 2) * pair.noise
    return statistic(value, pair.n, pair.m, null_mean=mean, null_sd=sd, debiased=value - mean)


def jensen_shannon(pair: Pair) -> Statistic:
    """Jensen-Shannon distance in base 2: from 0 (equal) to 1 (nothing in common)."""
    middle = (pair.p + pair.q) / 2
    square = (rel_entr(pair.p, middle) + rel_entr(pair.q, middle)).sum(axis=1) / (2 * np.log(2))
    return _root(pair, square, 1 / (8 * np.log(2)))


def hellinger(pair: Pair) -> Statistic:
    """Hellinger distance, sqrt(1 - sum sqrt(p q)): from 0 to 1."""
    square = ((np.sqrt(pair.p) - np.sqrt(pair.q)) ** 2).sum(axis=1) / 2
    return _root(pair, square, 1 / 8)


def _root(pair: Pair, square: Floats, scale: float) -> Statistic:
    """The root of a divergence whose value under the null is `scale` * noise * chi-squared: 0..1.

    The mean and deviation of the root are those of a chi variable, by the ratio of Gamma functions.
    """
    value = np.sqrt(np.clip(square, 0.0, 1.0))
    k = np.maximum(pair.freedom, 1e-9)
    chi = np.sqrt(2) * np.exp(gammaln((k + 1) / 2) - gammaln(k / 2))
    unit = np.sqrt(scale * pair.noise)
    debiased = np.sqrt(np.maximum(square - scale * pair.noise * pair.freedom, 0.0))
    sd = unit * np.sqrt(np.maximum(k - chi**2, 0.0))
    return statistic(
        value, pair.n, pair.m, null_mean=unit * chi, null_sd=sd, debiased=debiased, upper=np.ones(len(value))
    )
