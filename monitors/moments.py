"""Mean and variance from sums in fixed point: exact integers until the last division."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from monitors.baseline.layout import Category, Numeric
from monitors.types import Counts, Floats

if TYPE_CHECKING:
    from monitors.state import State


def moments(state: State) -> tuple[Counts, Floats, Floats]:
    """n, mean and variance (n - 1 in the denominator), each (F,), of the finite numbers of a state.

    The values are rounded down to units of w = 2**unit of the feature, and half a unit is added back unless the
    baseline held whole numbers only. So the mean is off by at most w / 2 (0 for whole numbers while w is 1, and w for
    fractions that come where the baseline held none), and, as the rounding errors lie within +-w / 2, the standard
    deviation by at most w / 2 * sqrt(n / (n - 1)) (Minkowski's inequality). NaN where n < 1 (mean) or n < 2 (variance),
    and for categories.
    """
    n = state.finite
    mean, variance = np.full(len(n), np.nan), np.full(len(n), np.nan)
    for row, feature in enumerate(state.layout.features):
        size = int(n[row])
        if isinstance(feature, Category) or not size:
            continue
        total, squares = int(state.sums[row].sum()), int(state.squares[row])
        mean[row] = np.ldexp(feature.centre + total / size + half(feature), feature.unit)
        if size > 1:
            spread = size * squares - total * total
            variance[row] = np.ldexp(spread / (size * (size - 1)), 2 * feature.unit)
    return n, mean, variance


def half(feature: Numeric) -> float:
    """What rounding down took from a value, on average and in units: nothing from whole numbers."""
    return 0.0 if feature.whole and feature.unit <= 0 else 0.5


def resolution(state: State) -> Floats:
    """The unit w of each feature, (F,): the mean and the standard deviation are known to w / 2. NaN for categories."""
    features = state.layout.features
    return np.array([np.nan if isinstance(f, Category) else np.ldexp(1.0, f.unit) for f in features])
