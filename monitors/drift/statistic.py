"""What every drift statistic gives, and the proportions that most of them start from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from monitors.baseline.layout import FIRST, MINUS_INF, PLUS_INF, Layout, Numeric
from monitors.types import Array, Counts, Floats


@dataclass(frozen=True, slots=True)
class Statistic:
    """One statistic of F features; every field float64 (F,), NaN where it is not defined.

    `value`: of the counts. `n`, `m`: rows of the current counts and of the baseline that it is about. `null_mean`,
    `null_sd`: of `value` where nothing has drifted, from the finite n and m alone. `debiased`: `value` without what the
    finite samples add to it. `lower`, `upper`: between them lies the same statistic of the raw values, always (inf
    where bins say nothing about it). `p`: probability of a value as large where nothing has drifted, for one look.
    """

    value: Floats
    n: Floats
    m: Floats
    null_mean: Floats
    null_sd: Floats
    debiased: Floats
    lower: Floats
    upper: Floats
    p: Floats


def statistic(
    value: Floats,
    n: Floats,
    m: Floats,
    *,
    null_mean: Floats | None = None,
    null_sd: Floats | None = None,
    debiased: Floats | None = None,
    lower: Floats | None = None,
    upper: Floats | None = None,
    p: Floats | None = None,
) -> Statistic:
    """A statistic with NaN wherever n or m is 0, and for what is not given; bounds not given are `value` and inf."""
    known = (n > 0) & (m > 0)

    def where_known(array: Floats | float) -> Floats:
        return np.where(known, array, np.nan)

    unknown = np.nan
    return Statistic(
        where_known(value),
        n.astype(np.float64),
        m.astype(np.float64),
        where_known(unknown if null_mean is None else null_mean),
        where_known(unknown if null_sd is None else null_sd),
        where_known(unknown if debiased is None else debiased),
        where_known(value if lower is None else lower),
        where_known(np.inf if upper is None else upper),
        where_known(unknown if p is None else p),
    )


class Pair:
    """The counts of a baseline and of current rows on one layout, and what follows from them for several statistics.

    `reference`, `current`: int64 [F, B] of the same layout. All rows count, also those with a missing value.
    """

    def __init__(self, layout: Layout, reference: Counts, current: Counts) -> None:
        if reference.shape != layout.shape or current.shape != layout.shape:
            raise ValueError(f"counts of shape {layout.shape} expected, got {reference.shape} and {current.shape}")
        self.layout = layout
        self.reference = reference
        self.current = current

    @cached_property
    def m(self) -> Floats:
        """Rows of the baseline, (F,)."""
        rows: Floats = self.reference.sum(axis=1).astype(np.float64)
        return rows

    @cached_property
    def n(self) -> Floats:
        """Current rows, (F,)."""
        rows: Floats = self.current.sum(axis=1).astype(np.float64)
        return rows

    @cached_property
    def used(self) -> Array:
        """bool [F, B]: bins that hold something on either side; an empty bin carries no evidence and no freedom."""
        return (self.reference + self.current) > 0

    @cached_property
    def freedom(self) -> Floats:
        """Used bins less one, (F,): the degrees of freedom."""
        freedom: Floats = np.maximum(self.used.sum(axis=1) - 1, 0).astype(np.float64)
        return freedom

    @cached_property
    def noise(self) -> Floats:
        """1/n + 1/m, (F,), NaN where either is 0: the variance that finite samples put between equal distributions."""
        with np.errstate(divide="ignore"):
            return np.where((self.n > 0) & (self.m > 0), 1 / self.n + 1 / self.m, np.nan)

    @cached_property
    def p(self) -> Floats:
        """Shares of the baseline, [F, B]."""
        return self.reference / np.maximum(self.m, 1)[:, None]

    @cached_property
    def q(self) -> Floats:
        """Shares of the current rows, [F, B]."""
        return self.current / np.maximum(self.n, 1)[:, None]

    @cached_property
    def smooth(self) -> tuple[Floats, Floats]:
        """Both shares with half a count added to each used bin (Jeffreys), so that logarithms are finite."""
        half = np.where(self.used, 0.5, 0.0)
        size = 0.5 * self.used.sum(axis=1)
        reference = (self.reference + half) / np.maximum(self.m + size, 0.5)[:, None]
        current = (self.current + half) / np.maximum(self.n + size, 0.5)[:, None]
        return np.where(self.used, reference, 1.0), np.where(self.used, current, 1.0)


@dataclass(frozen=True, slots=True)
class Ordered:
    """Cumulative shares of the numbers, from -inf over the own bins to +inf; rows of categories are not meant.

    `f`, `g` float64 [F, K + 1]: shares of baseline and current values below each cut, 0 first and 1 last. `pooled`
    [F, K]: values of both in each interval. `single` bool [F, K]: intervals that can hold one value only. `n`, `m`:
    values, without missing and unseen ones; 0 for categories.
    """

    f: Floats
    g: Floats
    n: Floats
    m: Floats
    single: Array
    pooled: Floats

    @property
    def gap(self) -> Floats:
        """F - G just after each interval, [F, K]."""
        return self.f[:, 1:] - self.g[:, 1:]

    @property
    def inside(self) -> tuple[Floats, Floats]:
        """The least and greatest F - G that raw values within each interval can reach, [F, K]."""
        low = np.where(self.single, self.gap, self.f[:, :-1] - self.g[:, 1:])
        high = np.where(self.single, self.gap, self.f[:, 1:] - self.g[:, :-1])
        return low, high


def ordered(pair: Pair) -> Ordered:
    """The cumulative shares of a pair of counts."""
    layout = pair.layout
    numeric = layout.numeric[:, None]
    places = [MINUS_INF, *range(FIRST, layout.shape[1]), PLUS_INF]
    single = np.zeros((layout.shape[0], len(places)), dtype=bool)
    single[:, [0, -1]] = True
    for row, feature in enumerate(layout.features):
        if isinstance(feature, Numeric):
            single[row, 1 : 1 + feature.bins] = feature.points
    counts = [np.where(numeric, side[:, places], 0).astype(np.float64) for side in (pair.reference, pair.current)]
    m, n = (side.sum(axis=1) for side in counts)
    f, g = (np.zeros((len(m), len(places) + 1)) for _ in range(2))
    f[:, 1:] = np.cumsum(counts[0], axis=1) / np.maximum(m, 1)[:, None]
    g[:, 1:] = np.cumsum(counts[1], axis=1) / np.maximum(n, 1)[:, None]
    return Ordered(f, g, n, m, single, counts[0] + counts[1])
