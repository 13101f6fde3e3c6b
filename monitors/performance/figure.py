"""A number with what is needed to believe it: how many rows it rests on, an interval, a bound on its error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

CONFIDENCE = 0.95
Z = 1.959963984540054  # the normal quantile of (1 + CONFIDENCE) / 2


@dataclass(frozen=True, slots=True)
class Figure:
    """`value` is None where it is not defined, never NaN. `n` is the number of rows it rests on.

    `low` and `high` are a 95 % confidence interval for one look, None where there is none. `error` bounds the distance
    to the same statistic of the raw, unbinned data; 0 where it is exact.
    """

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    error: float = 0.0


def plain(value: Any) -> Any:
    """Figures, and other results that hold them, as mappings from text to what JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def undefined(n: int) -> Figure:
    """The figure of a statistic that these rows do not define."""
    return Figure(None, n)


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's score interval for a share of `n` trials; `n` may be an effective number. E. B. Wilson, 1927."""
    share = min(max(share, 0.0), 1.0)
    centre = share + Z * Z / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale))


def share(part: float, whole: float, n: int, effective: float | None = None) -> Figure:
    """The share part / whole with Wilson's interval; `n` rows, `effective` trials where weights make them fewer."""
    if whole <= 0 or n <= 0:
        return undefined(max(n, 0))
    value = min(max(part / whole, 0.0), 1.0)
    low, high = wilson(value, effective if effective is not None else n)
    return Figure(value, n, low, high)


def mean(total: float, squares: float, weight: float, n: int, effective: float | None = None) -> Figure:
    """A mean with its normal interval, from the (weighted) sums of values and of their squares."""
    if weight <= 0 or n <= 0:
        return undefined(max(n, 0))
    value = total / weight
    trials = effective if effective is not None else n
    if trials < 2:
        return Figure(value, n)
    variance = max(0.0, squares / weight - value * value) * trials / (trials - 1)
    half = Z * math.sqrt(variance / trials)
    return Figure(value, n, value - half, value + half)


def around(value: float, variance: float, n: int, *, error: float = 0.0) -> Figure:
    """A value with the normal interval that `variance` gives it."""
    half = Z * math.sqrt(max(variance, 0.0))
    return Figure(value, n, value - half, value + half, error)


def root(squared: Figure) -> Figure:
    """The square root of a figure, with its interval carried over; undefined where it is negative.

    It can be where labels were taken out that another state has counted.
    """
    if squared.value is None or squared.value < 0:
        return undefined(squared.n)
    low, high = (None if each is None else math.sqrt(max(each, 0.0)) for each in (squared.low, squared.high))
    return Figure(math.sqrt(squared.value), squared.n, low, high)


def in_unit(value: float, deviation: float, n: int, fallback: float, *, error: float = 0.0) -> Figure:
    """A value in [0, 1] with an interval that is normal on the logit scale, so it stays inside.

    `fallback` is the number of trials of Wilson's interval, used where the value is 0 or 1 or never varied.
    """
    if not 0.0 < value < 1.0 or deviation <= 0.0:
        return Figure(value, n, *wilson(value, fallback), error)
    centre, half = math.log(value / (1 - value)), Z * deviation / (value * (1 - value))
    return Figure(value, n, _expit(centre - half), _expit(centre + half), error)


def _expit(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    small = math.exp(max(x, -700.0))
    return small / (1 + small)
