"""Mean and variance from sums in fixed point: exact integers until the last division."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

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
    table = state.layout.metric
    n = state.finite
    size = n.astype(object)
    total = np.where(table.numeric, state.sums.sum(axis=1), 0).astype(object)
    spread = size * state.squares - total * total
    one, two = np.maximum(n, 1).astype(object), np.maximum(n * (n - 1), 1).astype(object)
    mean = (table.centre + (total / one).astype(np.float64) + table.half) * table.unit
    variance = (spread / two).astype(np.float64) * table.unit**2
    return n, np.where(n > 0, mean, np.nan), np.where(n > 1, variance, np.nan)


def resolution(state: State) -> Floats:
    """The unit w of each feature, (F,): the mean and the standard deviation are known to w / 2. NaN for categories."""
    table = state.layout.metric
    return np.where(table.numeric, table.unit, np.nan)
