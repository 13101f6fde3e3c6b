"""Whether a score means what it says: calibration error, and the isotonic regression that mends it."""

from __future__ import annotations

import math

import numpy as np

from monitors.performance import figure
from monitors.performance.figure import Figure
from monitors.types import Array, Floats


def expected_calibration_error(mass: Array, scores: Array, positives: Array, rows: int) -> Figure:
    """The mean over rows of |share of positives - mean score| of their bin; arrays (bins,) of masses and sums.

    A calibrated model does not have 0 but about `chance_level`; compare with that.
    """
    total = float(mass.sum())
    if total <= 0 or rows <= 0:
        return figure.undefined(max(rows, 0))
    return Figure(float(np.abs(positives - scores).sum()) / total, rows)


def chance_level(mass: Array, scores: Array, counts: Array) -> float | None:
    """What the calibration error of a calibrated model is on average: sum (m_b / m) sqrt(2 p_b (1 - p_b) / (pi n_b)).

    `counts` (bins,) are rows, `mass` their weights. The normal approximation of E|.|, high in bins of few rows.
    """
    some = (mass > 0) & (counts > 0)
    if not some.any():
        return None
    level = np.clip(scores[some] / mass[some], 0.0, 1.0)
    expected = mass[some] / mass[some].sum() * np.sqrt(2 / math.pi * level * (1 - level) / counts[some])
    return float(expected.sum())


def isotonic(positives: Array, mass: Array) -> Floats:
    """The non-decreasing rates (bins,) closest to positives / mass in weighted squares, by pool-adjacent-violators.

    Bins without mass take the rate between those of their neighbours; without any mass the result is all NaN.
    Ayer et al., Annals of Mathematical Statistics 26 (1955).
    """
    blocks: list[list[float]] = []  # positives, mass, bins
    places = np.flatnonzero(mass > 0)
    for hit, weight in zip(positives[places].tolist(), mass[places].tolist(), strict=True):
        blocks.append([hit, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            hit, weight, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + hit, blocks[-1][1] + weight, blocks[-1][2] + count]
    if not blocks:
        return np.full(len(mass), np.nan)
    rates = np.concatenate([np.full(int(count), hit / weight) for hit, weight, count in blocks])
    spread: Floats = np.interp(np.arange(len(mass)), places, rates)
    return spread
