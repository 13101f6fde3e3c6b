"""All drift statistics of all features in one pass over the counts: what a scrape asks for."""

from __future__ import annotations

from collections.abc import Mapping

from monitors.drift.cumulative import anderson_darling, cramer_von_mises, kolmogorov_smirnov
from monitors.drift.distance import largest_difference, total_variation
from monitors.drift.divergence import hellinger, jensen_shannon, kl, psi
from monitors.drift.homogeneity import chi_squared, cramers_v, g_test
from monitors.drift.shift import mean_shift, variance_shift
from monitors.drift.statistic import Pair, Statistic, ordered
from monitors.drift.wasserstein import wasserstein
from monitors.state import State


def drift(reference: State, current: State) -> Mapping[str, Statistic]:
    """Every statistic by name, each over all F features of the layout.

    Those of order (from `kolmogorov_smirnov` on) are NaN for categories. Raises ValueError where the two states are not
    of one layout.
    """
    if reference.layout.digest != current.layout.digest:
        raise ValueError("states of two different baselines cannot be compared")
    pair = Pair(reference.layout, reference.counts, current.counts)
    numbers = ordered(pair)
    return {
        "psi": psi(pair),
        "kl": kl(pair),
        "jensen_shannon": jensen_shannon(pair),
        "hellinger": hellinger(pair),
        "total_variation": total_variation(pair),
        "largest_difference": largest_difference(pair),
        "chi_squared": chi_squared(pair),
        "g_test": g_test(pair),
        "cramers_v": cramers_v(pair),
        "kolmogorov_smirnov": kolmogorov_smirnov(numbers),
        "cramer_von_mises": cramer_von_mises(numbers),
        "anderson_darling": anderson_darling(numbers),
        "wasserstein": wasserstein(reference, current),
        "mean_shift": mean_shift(reference, current),
        "variance_shift": variance_shift(reference, current),
    }
