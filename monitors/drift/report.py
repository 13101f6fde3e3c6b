"""The drift statistics of all features in one pass over the counts: what a scrape asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from monitors.drift.cumulative import anderson_darling, cramer_von_mises, kolmogorov_smirnov
from monitors.drift.distance import largest_difference, total_variation
from monitors.drift.divergence import hellinger, jensen_shannon, kl, psi
from monitors.drift.homogeneity import chi_squared, cramers_v, g_test
from monitors.drift.shift import mean_shift, variance_shift
from monitors.drift.statistic import Ordered, Pair, Statistic, ordered
from monitors.drift.wasserstein import wasserstein
from monitors.state import State

_OF_COUNTS: Mapping[str, Callable[[Pair], Statistic]] = {
    "psi": psi,
    "kl": kl,
    "jensen_shannon": jensen_shannon,
    "hellinger": hellinger,
    "total_variation": total_variation,
    "largest_difference": largest_difference,
    "chi_squared": chi_squared,
    "g_test": g_test,
    "cramers_v": cramers_v,
}
_OF_ORDER: Mapping[str, Callable[[Ordered], Statistic]] = {
    "kolmogorov_smirnov": kolmogorov_smirnov,
    "cramer_von_mises": cramer_von_mises,
    "anderson_darling": anderson_darling,
}
_OF_NUMBERS: Mapping[str, Callable[[State, State], Statistic]] = {
    "wasserstein": wasserstein,
    "mean_shift": mean_shift,
    "variance_shift": variance_shift,
}
STATISTICS = (*_OF_COUNTS, *_OF_ORDER, *_OF_NUMBERS)
"""All of them by name."""


def drift(reference: State, current: State, names: Collection[str] = STATISTICS) -> Mapping[str, Statistic]:
    """Statistics by name, each over all F features of the layout.

    Those of order (from `kolmogorov_smirnov` on) are NaN for categories. Raises ValueError where the two states are not
    of one layout.
    """
    if reference.layout.digest != current.layout.digest:
        raise ValueError("states of two different baselines cannot be compared")
    pair = Pair(reference.layout, reference.counts, current.counts)
    found = {name: of(pair) for name, of in _OF_COUNTS.items() if name in names}
    if not _OF_ORDER.keys().isdisjoint(names):
        numbers = ordered(pair)
        found |= {name: of(numbers) for name, of in _OF_ORDER.items() if name in names}
    return found | {name: of(reference, current) for name, of in _OF_NUMBERS.items() if name in names}
