"""How well a score ranks, from counts of positives and negatives per score bin: ROC and precision-recall.

All functions take `positives` and `negatives`, (bins,) masses in order of the score. Rows of a bin count as ties, as
equal scores do; `error` bounds what that can change against the raw scores.
"""

from __future__ import annotations

import math

import numpy as np

from monitors.performance import figure
from monitors.performance.figure import Figure
from monitors.types import Array


def roc_auc(positives: Array, negatives: Array, rows: tuple[int, int], ratio: float = 1.0) -> Figure:
    """P(score of a positive > score of a negative) + half of P(equal), with DeLong's interval on the logit scale.

    Error: half the pairs that share a bin, sum(p_b n_b) / (2 P N). `rows` are the numbers of positive and negative
    rows behind the masses, `ratio` how many effective rows weights leave of one.
    DeLong, DeLong, Clarke-Pearson, Biometrics 44 (1988).
    """
    p, n = float(positives.sum()), float(negatives.sum())
    if p <= 0 or n <= 0 or min(rows) < 1:
        return figure.undefined(sum(rows))
    below = np.cumsum(negatives) - 0.5 * negatives
    above = p - np.cumsum(positives) + 0.5 * positives
    value = float(positives @ below) / (p * n)
    error = float(positives @ negatives) / (2 * p * n)
    variance = 0.0
    for mass, placement, total, count in ((positives, below / n, p, rows[0]), (negatives, above / p, n, rows[1])):
        spread = float(mass @ (placement - value) ** 2) / total
        variance += spread / max(ratio * count - 1, 1)
    return figure.in_unit(min(max(value, 0.0), 1.0), math.sqrt(variance), sum(rows), ratio * min(rows), error=error)


def average_precision(positives: Array, negatives: Array, rows: tuple[int, int], ratio: float = 1.0) -> Figure:
    """The sum of precision over the steps of recall, from the highest score down; also called PR-AUC.

    Error: the raw value lies between that of bins whose negatives all come first and that of bins where precision is
    read as if their negatives came later. Interval: logit, with the positives as trials (Boyd, Eng, Page, 2013).
    """
    p = float(positives.sum())
    if p <= 0 or rows[0] < 1:
        return figure.undefined(sum(rows))
    found, passed = np.asarray(positives[::-1], np.float64), np.asarray(negatives[::-1], np.float64)
    hits, misses = np.cumsum(found), np.cumsum(passed)
    some = found > 0
    found, hits, misses, passed = found[some], hits[some], misses[some], passed[some]
    before = hits - found
    value = float(found @ (hits / (hits + misses))) / p
    best = float(found @ (hits / (hits + (misses - passed)))) / p
    # With the negatives first, precision after x of a bin's positives is (before + x) / (before + x + misses); its
    # integral over x is below the sum over single rows, however they are weighted.
    start = np.where(misses > 0, before + misses, 1.0)
    tail = np.where(misses > 0, misses * np.log((hits + misses) / start), 0.0)
    worst = float((found - tail).sum()) / p
    deviation = math.sqrt(max(value * (1 - value), 0.0) / (ratio * rows[0]))
    error = max(best - value, value - worst, 0.0)
    return figure.in_unit(min(value, 1.0), deviation, sum(rows), ratio * rows[0], error=error)
