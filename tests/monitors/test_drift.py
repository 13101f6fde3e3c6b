"""Drift statistics against scipy: equal on the counts, and within their published bounds on the raw values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance

from monitors.baseline.build import Arrays, build
from monitors.baseline.layout import FIRST, Layout, Numeric
from monitors.drift.report import drift
from monitors.drift.statistic import Pair, Statistic, ordered
from monitors.drift.wasserstein import relative
from monitors.state import State
from monitors.types import Array, Columns

DRAWS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "lognormal": lambda rng, n: rng.lognormal(sigma=1.5, size=n),
    "cauchy": lambda rng, n: rng.standard_cauchy(size=n),
    "uniform": lambda rng, n: rng.random(n),
    "zeros and more": lambda rng, n: np.where(rng.random(n) < 0.4, 0.0, rng.exponential(size=n)),
    "whole": lambda rng, n: rng.poisson(4, n).astype(float),
    "wide whole": lambda rng, n: rng.integers(0, 50_000, n).astype(float),
    "two": lambda rng, n: (rng.random(n) < 0.2).astype(float),
    "constant": lambda rng, n: np.full(n, 2.5),
    "rounded": lambda rng, n: np.round(rng.normal(size=n), 1),
}
SHIFTS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "moved": lambda x: x + 1,
    "scaled": lambda x: x * 3,
    "mirrored": lambda x: -x,
    "far": lambda x: x + 1e4,
    "one outlier": lambda x: np.concatenate([x, [1e6]]),
    "half": lambda x: np.concatenate([x[: len(x) // 2], x[len(x) // 2 :] + 2]),
}


def states(reference: Array, current: Array) -> tuple[State, State]:
    baseline = build(Arrays({"x": reference}))
    state = baseline.new_state()
    state.update(Columns(np.zeros(len(current), dtype=np.int64), {"x": current}))
    return baseline.state, state


def in_bins(state: State, values: Array) -> Array:
    """The values that have a bin: all but fractions where the training data held two whole numbers."""
    feature = state.layout.features[0]
    assert isinstance(feature, Numeric)
    edges = np.array([-math.inf, *feature.edges])
    own = np.searchsorted(feature.edges, values, side="right")
    kept: Array = values[~(np.array(feature.points)[own] & (values != edges[own]))]
    return kept


def within(statistic: Statistic, exact: float) -> None:
    slack = 1e-9 * max(abs(exact), 1e-3)
    assert statistic.lower[0] - slack <= exact <= statistic.upper[0] + slack
    assert statistic.lower[0] - slack <= statistic.value[0] <= statistic.upper[0] + slack


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("n", [3, 1000])
def test_ks_and_wasserstein_are_within_their_bounds_of_scipy_on_raw_values(draw: str, shift: str, n: int) -> None:
    rng = np.random.default_rng(n)
    reference = DRAWS[draw](rng, 3000)
    current = SHIFTS[shift](DRAWS[draw](rng, n))
    baseline, state = states(reference, current)
    current = in_bins(state, current)
    found = drift(baseline, state)
    if not len(current):
        assert math.isnan(found["kolmogorov_smirnov"].value[0])
        return
    assert found["wasserstein"].n[0] == len(current)
    within(found["kolmogorov_smirnov"], stats.ks_2samp(reference, current).statistic)
    within(found["wasserstein"], stats.wasserstein_distance(reference, current))
    within(found["cramer_von_mises"], cramer_von_mises_by_hand(reference, current))
    within(found["anderson_darling"], anderson_darling_by_hand(reference, current))


@settings(max_examples=80, deadline=None)
@given(
    reference=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60),
    current=st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, 1e-300, 0.5]), min_size=1, max_size=60),
)
def test_the_bounds_hold_for_any_values(reference: list[float], current: list[float]) -> None:
    baseline, state = states(np.array(reference), np.array(current))
    values = in_bins(state, np.array(current))
    found = drift(baseline, state)
    if len(values):
        within(found["kolmogorov_smirnov"], stats.ks_2samp(reference, values).statistic)
        within(found["wasserstein"], stats.wasserstein_distance(reference, values))
        within(found["cramer_von_mises"], cramer_von_mises_by_hand(np.array(reference), values))
        within(found["anderson_darling"], anderson_darling_by_hand(np.array(reference), values))


def anderson_darling_by_hand(reference: Array, current: Array) -> float:
    """Equation 7 of Scholz and Stephens 1987, of raw values: 0 where all are one."""
    pooled, sides = np.concatenate([reference, current]), (reference, current)
    both, total = len(pooled), 0.0
    distinct, times = np.unique(pooled + 0.0, return_counts=True)
    if len(distinct) < 2:
        return 0.0
    rank = np.cumsum(times) - times / 2
    for side in sides:
        own = np.searchsorted(np.sort(side + 0.0), distinct, side="left").astype(float)
        own += np.searchsorted(np.sort(side + 0.0), distinct, side="right")
        term = times / both * (both * own / 2 - len(side) * rank) ** 2 / (rank * (both - rank) - both * times / 4)
        total += float(term.sum()) / len(side)
    return total * (both - 1) / both


def test_anderson_darling_by_hand_is_scipys() -> None:
    rng = np.random.default_rng(2)
    reference, current = rng.normal(size=50).round(1), rng.normal(size=30).round(1) + 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normalised = stats.anderson_ksamp([reference, current], midrank=True).statistic
    assert anderson_darling_by_hand(reference, current) == pytest.approx(normalised * sigma(50, 30) + 1)


def test_where_nothing_drifts_wasserstein_is_what_it_is_said_to_be_on_average() -> None:
    """1. Many samples of one distribution. Result: mean and deviation of the value are those that are given with it,
    and without them little is left.
    """
    rng = np.random.default_rng(3)
    for draw in (rng.normal, rng.exponential, lambda size: rng.integers(0, 5, size).astype(float)):
        values, means, sds, left = [], [], [], []
        for _ in range(60):
            baseline, state = states(draw(size=2000), draw(size=500))
            found = drift(baseline, state)["wasserstein"]
            values.append(found.value[0])
            means.append(found.null_mean[0])
            sds.append(found.null_sd[0])
            left.append(found.debiased[0])
        assert np.mean(means) == pytest.approx(np.mean(values), rel=0.12)
        assert np.mean(sds) == pytest.approx(np.std(values), rel=0.35)
        assert np.median(left) < 0.5 * np.median(values)


def cramer_von_mises_by_hand(reference: Array, current: Array) -> float:
    pooled = np.concatenate([reference, current])
    f = np.searchsorted(np.sort(reference), pooled, side="right") / len(reference)
    g = np.searchsorted(np.sort(current), pooled, side="right") / len(current)
    return float(len(reference) * len(current) / len(pooled) ** 2 * ((f - g) ** 2).sum())


def test_cramer_von_mises_by_hand_is_scipys_where_nothing_is_tied() -> None:
    rng = np.random.default_rng(1)
    reference, current = rng.normal(size=200), rng.normal(size=100) + 0.3
    exact = stats.cramervonmises_2samp(reference, current).statistic
    assert cramer_von_mises_by_hand(reference, current) == pytest.approx(exact)


COUNTS = st.lists(st.integers(0, 400), min_size=3, max_size=12)


def pair_of(reference: list[int], current: list[int]) -> Pair:
    """Counts on the own bins of one number, as many as the shorter list has."""
    size = min(len(reference), len(current))
    edges = tuple(float(edge) for edge in range(size - 1))
    feature = Numeric("x", "feature", edges, (False,) * size, 0.0, float(size), 0, 0, False)
    layout = Layout((feature,))
    sides = np.zeros((2, *layout.shape), dtype=np.int64)
    sides[0, 0, FIRST:], sides[1, 0, FIRST:] = reference[:size], current[:size]
    return Pair(layout, sides[0], sides[1])


@settings(max_examples=100, deadline=None)
@given(reference=COUNTS, current=COUNTS)
def test_statistics_of_counts_equal_scipys(reference: list[int], current: list[int]) -> None:
    from monitors.drift import distance as distances
    from monitors.drift import divergence, homogeneity

    pair = pair_of(reference, current)
    table = np.stack([pair.reference[0, FIRST:], pair.current[0, FIRST:]])
    table = table[:, table.sum(axis=0) > 0]
    if not table.sum(axis=1).all():
        assert math.isnan(divergence.psi(pair).value[0])
        return
    p, q = table / table.sum(axis=1, keepdims=True)
    close = pytest.approx
    assert divergence.jensen_shannon(pair).value[0] == close(distance.jensenshannon(p, q, base=2), abs=1e-7)
    assert divergence.hellinger(pair).value[0] == close(np.linalg.norm(np.sqrt(p) - np.sqrt(q)) / math.sqrt(2))
    assert distances.total_variation(pair).value[0] == close(np.abs(p - q).sum() / 2)
    assert distances.largest_difference(pair).value[0] == close(np.abs(p - q).max())
    smooth = (table + 0.5) / (table + 0.5).sum(axis=1, keepdims=True)
    assert divergence.kl(pair).value[0] == close(stats.entropy(smooth[1], smooth[0]), abs=1e-12)
    both = stats.entropy(smooth[1], smooth[0]) + stats.entropy(smooth[0], smooth[1])
    assert divergence.psi(pair).value[0] == close(both, abs=1e-12)
    if table.shape[1] > 1:
        pearson = stats.chi2_contingency(table, correction=False)
        assert homogeneity.chi_squared(pair).value[0] == close(pearson.statistic, abs=1e-9)
        assert homogeneity.chi_squared(pair).p[0] == close(pearson.pvalue, abs=1e-9)
        likelihood = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
        assert homogeneity.g_test(pair).value[0] == close(likelihood.statistic, abs=1e-7)
        assert homogeneity.cramers_v(pair).value[0] == close(bergsma(table, pearson.statistic), abs=1e-9)


def bergsma(table: Array, pearson: float) -> float:
    rows, columns = table.shape
    n = table.sum()
    square = max(0.0, pearson / n - (rows - 1) * (columns - 1) / (n - 1))
    shape = min(rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)) - 1
    return math.sqrt(square / shape) if shape > 0 else 0.0


@settings(max_examples=60, deadline=None)
@given(reference=COUNTS, current=COUNTS)
def test_anderson_darling_equals_scipys_midrank_statistic(reference: list[int], current: list[int]) -> None:
    from monitors.drift.cumulative import anderson_darling

    pair = pair_of(reference, current)
    sides = [np.repeat(np.arange(len(each[0, FIRST:])), each[0, FIRST:]) for each in (pair.reference, pair.current)]
    if not (len(sides[0]) and len(sides[1])) or len(np.unique(np.concatenate(sides))) < 2:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normalised = stats.anderson_ksamp(sides, midrank=True).statistic
    value = anderson_darling(ordered(pair)).value[0]
    assert (value - 1) / sigma(len(sides[0]), len(sides[1])) == pytest.approx(normalised, abs=1e-7)


def sigma(m: int, n: int) -> float:
    """The exact null deviation of the statistic of two samples, Scholz and Stephens 1987, section 4."""
    both = m + n
    harmonic = 1 / m + 1 / n
    reversed_sums = np.cumsum(1 / np.arange(both - 1, 1, -1))
    h = reversed_sums[-1] + 1 if both > 2 else 1.0
    g = float((reversed_sums / np.arange(2, both)).sum())
    a = (4 * g - 6) + (10 - 6 * g) * harmonic
    b = (2 * g - 4) * 4 + 8 * h * 2 + (2 * g - 14 * h - 4) * harmonic - 8 * h + 4 * g - 6
    c = (6 * h + 2 * g - 2) * 4 + (4 * h - 4 * g + 6) * 2 + (2 * h - 6) * harmonic + 4 * h
    d = (2 * h + 6) * 4 - 4 * h * 2
    return math.sqrt((a * both**3 + b * both**2 + c * both + d) / ((both - 1.0) * (both - 2.0) * (both - 3.0)))


def test_welchs_t_is_scipys_within_its_bounds_and_exact_for_whole_numbers() -> None:
    rng = np.random.default_rng(2)
    for draw in ("normal", "uniform", "wide whole", "whole", "lognormal"):
        reference, current = DRAWS[draw](rng, 4000), DRAWS[draw](rng, 500)
        baseline, state = states(reference, current)
        found = drift(baseline, state)["mean_shift"]
        exact = stats.ttest_ind(current, reference, equal_var=False)
        within(found, exact.statistic)
        if draw == "whole":
            assert found.value[0] == pytest.approx(exact.statistic)
            assert found.p[0] == pytest.approx(exact.pvalue)


def test_the_variance_shift_is_within_its_bounds_of_the_raw_ratio() -> None:
    rng = np.random.default_rng(3)
    for draw in ("normal", "uniform", "wide whole", "whole", "lognormal"):
        reference, current = DRAWS[draw](rng, 4000), DRAWS[draw](rng, 500) * 2
        baseline, state = states(reference, current)
        found = drift(baseline, state)["variance_shift"]
        assert found.value[0] > 1
        within(found, math.log(current.var(ddof=1) / reference.var(ddof=1)))


NULL_MEANS = [
    "psi",
    "kl",
    "jensen_shannon",
    "hellinger",
    "total_variation",
    "chi_squared",
    "g_test",
    "cramer_von_mises",
]


@pytest.mark.parametrize("n", [400, 5000])
def test_null_means_and_deviations_are_those_of_a_simulation(n: int) -> None:
    rng = np.random.default_rng(n)
    features, m = 300, 5000
    edges = tuple(np.linspace(-1.5, 1.5, 9).tolist())
    cells = Layout(
        tuple(Numeric(str(f), "feature", edges, (False,) * 10, -5.0, 5.0, -10, 0, False) for f in range(features))
    )
    sides = []
    for rows in (m, n):
        state = State(cells)
        draws = rng.normal(size=(rows, features))
        state.update(Columns(np.zeros(rows, dtype=np.int64), {str(f): draws[:, f] for f in range(features)}))
        sides.append(state)
    found = drift(sides[0], sides[1])
    for name in NULL_MEANS:
        one = found[name]
        error = one.value.std() / math.sqrt(features)
        assert one.value.mean() == pytest.approx(one.null_mean.mean(), abs=5 * error + 0.01 * one.null_mean.mean()), (
            name
        )
        assert one.value.std() == pytest.approx(one.null_sd.mean(), rel=0.25), name
    ks = found["kolmogorov_smirnov"]
    assert ks.value.mean() < ks.null_mean.mean()
    # Tests on counts keep their level, also where the current rows are many.
    for name in ("psi", "chi_squared", "g_test", "mean_shift"):
        alarms = (found[name].p < 0.05).mean()
        assert 0.01 < alarms < 0.1, name
    assert (ks.p < 0.05).mean() < 0.08
    debiased = found["psi"].debiased
    assert abs(debiased.mean()) < 5 * debiased.std() / math.sqrt(features)


def test_an_equal_state_shows_no_drift_at_all() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=1000)
    baseline, state = states(values, values)
    for name, one in drift(baseline, state).items():
        assert one.value[0] == pytest.approx(0.0, abs=1e-7), name


def test_contamination_of_half_a_percent_far_outside_is_found() -> None:
    """Deciles alone have power 0.01 here; the tail edges see it."""
    rng = np.random.default_rng(6)
    hits = 0
    for _ in range(40):
        current = rng.normal(size=5000)
        current[rng.random(5000) < 0.005] = 6.0
        baseline, state = states(rng.normal(size=10_000), current)
        hits += drift(baseline, state)["chi_squared"].p[0] < 0.01
    assert hits >= 39


def test_missing_unseen_and_infinite_values_are_drift() -> None:
    rng = np.random.default_rng(7)
    reference = rng.normal(size=2000)
    for strange in (math.nan, math.inf, -math.inf):
        current = rng.normal(size=1000)
        current[:200] = strange
        baseline, state = states(reference, current)
        found = drift(baseline, state)
        assert found["psi"].debiased[0] > 0.25
        assert found["chi_squared"].p[0] < 1e-9
    words = np.array(["a", "b"] * 1000, dtype=object)
    baseline, state = states(words, np.array(["a", "b", "new"] * 300, dtype=object))
    assert drift(baseline, state)["psi"].value[0] > 0.25


def test_one_unseen_value_in_a_thousand_is_no_alarm_and_no_infinity() -> None:
    words = np.array(["a", "b"] * 5000, dtype=object)
    baseline, state = states(words, np.array(["a", "b"] * 500 + ["new"], dtype=object))
    found = drift(baseline, state)
    assert found["chi_squared"].p[0] > 0.001
    assert all(np.isfinite(one.value[0]) for name, one in found.items() if name in NULL_MEANS[:-1])


@pytest.mark.parametrize("live", [[], [math.nan] * 5, [math.inf], [1.0], [1.0, 1.0]])
def test_little_or_nothing_live_gives_values_or_nan_and_no_error(live: list[float]) -> None:
    baseline, state = states(np.random.default_rng(8).normal(size=100), np.array(live))
    for name, one in drift(baseline, state).items():
        assert one.value.shape == (1,), name
        assert len(live) > 0 or math.isnan(one.value[0]), name


@pytest.mark.parametrize("reference", [[math.nan] * 10, [1.5] * 10, [math.inf, 1.0], [0.0]])
def test_a_strange_baseline_gives_values_or_nan_and_no_error(reference: list[float]) -> None:
    baseline, state = states(np.array(reference), np.array([1.0, 1.5, -2.0, math.nan]))
    assert set(drift(baseline, state)) == set(drift(baseline, baseline))


def test_distances_can_be_told_in_units_of_the_interquartile_range() -> None:
    rng = np.random.default_rng(9)
    reference = np.concatenate([rng.normal(size=20_000), [1e9]])
    baseline, state = states(reference, rng.normal(size=5000) + 1.35)
    found = drift(baseline, state)["wasserstein"]
    assert relative(found, baseline)[0] > 0.8


def test_states_of_two_baselines_are_not_compared() -> None:
    rng = np.random.default_rng(10)
    one, _ = states(rng.normal(size=50), rng.normal(size=50))
    other, _ = states(rng.normal(size=50), rng.normal(size=50))
    with pytest.raises(ValueError, match="two different baselines"):
        drift(one, other)
