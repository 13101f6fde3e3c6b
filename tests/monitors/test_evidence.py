"""The evidence of bin counts against brute force: every outcome of small experiments, and a patient solver."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import brentq
from scipy.special import gammaln, xlogy
from scipy.stats import chi2, multinomial

from monitors.evidence.multinomial import _null, log_evidence
from monitors.evidence.radius import WORST_BINOMIAL, psi_to_kl, radius, widened
from monitors.evidence.reference import Reference
from monitors.types import Counts, Floats


def compositions(rows: int, bins: int) -> Counts:
    """Every vector of `bins` counts that sums to `rows`, one a line."""
    places = np.array(list(combinations(range(rows + bins - 1), bins - 1)), dtype=np.int64)
    bars = np.column_stack([np.full(len(places), -1), places, np.full(len(places), rows + bins - 1)])
    return np.diff(bars, axis=1) - 1


def divergence(a: Floats, b: Floats) -> float:
    return float(np.sum(xlogy(a, a) - xlogy(a, np.maximum(b, 1e-300))))


def shares_in_ball(reference: Reference, rng: np.random.Generator, how_many: int) -> list[Floats]:
    """The centre, and shares on the very surface of the ball in random directions, for the first feature."""
    centre, ball = reference.share[0], reference.ball[0]
    found = [centre]
    while len(found) < how_many:
        target = rng.dirichlet(np.full(len(centre), 0.3))

        def over(step: float, target: Floats = target) -> float:
            return divergence(centre, (1 - step) * centre + step * target) - ball

        step = brentq(over, 0, 1 - 1e-9) if over(1 - 1e-9) > 0 else 1.0
        found.append((1 - step) * centre + step * target)
    return found


@pytest.mark.parametrize(
    ("baseline", "rows", "ordered"),
    [
        ([30, 20, 10], 12, 3),
        ([500, 400, 99, 1], 9, 0),
        ([1000, 0, 40], 15, 2),
        ([5, 5], 40, 2),
        ([3, 900, 3, 0, 94], 6, 3),
    ],
)
@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_no_shares_in_the_ball_make_the_evidence_exceed_one_on_average(
    baseline: list[int], rows: int, ordered: int, tolerance: float
) -> None:
    """1. Every outcome of so many rows is weighed. 2. Its probability is taken under shares all over the ball.
    Result: the exact expectation of E is at most 1 for each of them: that is what makes E evidence.
    """
    reference = Reference.build([baseline], ordered=np.arange(len(baseline)) < ordered, tolerance=tolerance)
    outcomes = compositions(rows, len(baseline))
    evidence = np.exp(log_evidence(reference, outcomes[:, None, :])[:, 0])
    for share in shares_in_ball(reference, np.random.default_rng(5), 60):
        assert multinomial(rows, share).pmf(outcomes) @ evidence <= 1 + 1e-9


def test_shares_outside_the_ball_can_make_the_evidence_exceed_one_on_average() -> None:
    """The test above can fail: it does as soon as the truth is farther away than the ball allows."""
    reference = Reference.build([[300, 200, 100]])
    outcomes = compositions(40, 3)
    evidence = np.exp(log_evidence(reference, outcomes[:, None, :])[:, 0])
    assert multinomial(40, [0.1, 0.2, 0.7]).pmf(outcomes) @ evidence > 100


def test_a_baseline_taken_as_exact_is_no_fair_bet_and_the_ball_is_what_mends_it() -> None:
    baseline = np.array([[30, 20, 10]])
    honest = Reference.build(baseline)
    outcomes = compositions(60, 3)
    seen = outcomes[:, None, :]
    naive = log_evidence(honest, seen)[:, 0] + (_null(honest, seen * 1.0, np.full((len(seen), 1), 60.0)))[:, 0]
    naive -= xlogy(outcomes, honest.share[0]).sum(axis=1)
    truth = shares_in_ball(honest, np.random.default_rng(1), 30)
    assert max(multinomial(60, share).pmf(outcomes) @ np.exp(naive) for share in truth) > 5


counts_of_two_features = arrays(np.int64, (3, 2, 6), elements=st.integers(0, 3000))


@settings(deadline=None)
@given(
    seen=counts_of_two_features,
    baseline=arrays(np.int64, (2, 6), elements=st.integers(0, 5000)),
    tolerance=st.sampled_from([0.0, 0.01, 0.3]),
)
def test_the_bound_on_the_null_is_never_below_the_best_shares_in_the_ball_and_nearly_touches_them(
    seen: Counts, baseline: Counts, tolerance: float
) -> None:
    baseline[:, 0] += 20
    reference = Reference.build(baseline, tolerance=tolerance)
    rows = seen.sum(axis=2)
    bound = _null(reference, seen.astype(np.float64), rows.astype(np.float64))
    for s, f in np.argwhere(rows > 0):
        n, counts, share = rows[s, f], seen[s, f], reference.share[f]

        def outside(log_weight: float, n: int = n, counts: Counts = counts, share: Floats = share, f: int = f) -> float:
            weight = np.exp(log_weight)
            return divergence(share, (counts + weight * share) / (n + weight)) - reference.ball[f]

        if outside(-25) <= 0:
            best = counts / n
        else:
            weight = np.exp(brentq(outside, -25, 30))
            best = (counts + weight * share) / (n + weight)
        value = xlogy(counts, np.maximum(best, 1e-300)).sum()
        assert bound[s, f] >= value - 1e-6
        assert bound[s, f] <= value + 0.02 + 1e-3 * abs(value)


def test_the_alternatives_are_the_published_dirichlet_multinomial_where_nothing_is_in_order() -> None:
    """Against the formula written out, for one concentration after the other."""
    baseline, seen = np.array([[50, 30, 20]]), np.array([[[7, 0, 9]]])
    reference = Reference.build(baseline)
    smooth = (baseline[0] + 0.5) / 101.5
    logs = []
    for kappa in (3.0, 24.0, 192.0):
        alpha = kappa * smooth
        logs.append(gammaln(kappa) - gammaln(kappa + 16) + np.sum(gammaln(alpha + seen[0, 0]) - gammaln(alpha)))
    numerator = np.logaddexp.reduce(logs) - np.log(3)
    null = _null(reference, seen * 1.0, np.array([[16.0]]))[0, 0]
    assert log_evidence(reference, seen)[0, 0] == pytest.approx(numerator - null, abs=1e-9)


def test_padding_changes_no_evidence() -> None:
    rng = np.random.default_rng(2)
    baseline, seen = rng.integers(1, 500, (1, 5)), rng.integers(0, 90, (4, 1, 5))
    plain = log_evidence(Reference.build(baseline, ordered=np.arange(5) < 4), seen)
    wide = Reference.build(np.pad(baseline, ((0, 0), (0, 7))), valid=np.arange(12) < 5, ordered=np.arange(12) < 4)
    assert log_evidence(wide, np.pad(seen, ((0, 0), (0, 0), (0, 7)))) == pytest.approx(plain, abs=1e-9)


@settings(deadline=None)
@given(seen=arrays(np.int64, (2, 3, 4), elements=st.one_of(st.integers(0, 5), st.integers(0, 2**40))))
def test_evidence_is_a_number_for_any_counts_and_zero_where_there_are_none(seen: Counts) -> None:
    reference = Reference.build([[10, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], ordered=[[True], [False], [True]])
    evidence = log_evidence(reference, seen)
    assert np.isfinite(evidence).all()
    assert (evidence[seen.sum(axis=2) == 0] == 0).all()
    assert (evidence[:, 2] == 0).all()


def test_rows_in_bins_the_baseline_never_saw_are_evidence_and_never_infinite() -> None:
    reference = Reference.build([[5000, 5000, 0]])
    few, many = log_evidence(reference, np.array([[[50, 50, 1]], [[500, 500, 60]]]))[:, 0]
    assert few < 3
    assert 20 < many < 1000


@pytest.mark.parametrize("share", [[0.5, 0.5], [0.9, 0.1], [0.98, 0.01, 0.01], [0.25] * 4, [0.7, 0.1, 0.1, 0.09, 0.01]])
@pytest.mark.parametrize("rows", [1, 10, 40])
@pytest.mark.parametrize("delta", [0.3, 0.05, 1e-3])
def test_the_truth_is_outside_the_ball_no_more_often_than_delta(share: list[float], rows: int, delta: float) -> None:
    """Exact: over every outcome of the multinomial, not simulated, with the ball that each outcome would have."""
    outcomes = compositions(min(rows, 14) if len(share) == 5 else rows, len(share))
    rows = int(outcomes[0].sum())
    balls = radius(outcomes, len(share), delta)
    far = np.array([divergence(each / rows, np.array(share)) for each in outcomes]) >= balls
    assert multinomial(rows, share).pmf(outcomes) @ far <= delta


@pytest.mark.parametrize("counts", [[1] * 6, [1, 1, 500], [100] * 10, [1, 9, 40, 200, 40, 9, 1]])
def test_the_ball_holds_the_truth_of_bins_that_were_cut_at_quantiles_too(counts: list[int]) -> None:
    rng = np.random.default_rng(3)
    share = np.array(counts) / sum(counts)
    truths = rng.dirichlet(counts, 200_000)
    distances = np.sum(share * (np.log(share) - np.log(truths)), axis=1)
    for delta in (0.3, 0.05, 1e-3):
        assert np.mean(distances >= radius(np.array([counts]), len(counts), delta)[0]) <= delta


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 20, 33, 50, 100, 400, 2000])
def test_no_binomial_exceeds_the_constant_on_which_the_ball_of_fixed_bins_rests(rows: int) -> None:
    """E exp(t n kl(k / n, p)) sqrt(1 - t) over shares p, densest where few rows are expected, and t up to 0.99."""
    k = np.arange(rows + 1)[:, None]
    p = np.unique(np.concatenate([np.linspace(0.001, 0.5, 100), np.minimum(np.geomspace(0.01, 60, 150) / rows, 0.5)]))
    ways = gammaln(rows + 1) - gammaln(k + 1) - gammaln(rows - k + 1)
    log_p = xlogy(k, p) + xlogy(rows - k, 1 - p)
    apart = xlogy(k, k / rows) + xlogy(rows - k, 1 - k / rows) - log_p
    for t in np.linspace(0.01, 0.99, 50):
        assert (np.exp(ways + log_p + t * apart).sum(axis=0) * np.sqrt(1 - t)).max() <= WORST_BINOMIAL


@settings(deadline=None)
@given(counts=arrays(np.int64, (2, 5), elements=st.integers(0, 10**7)), delta=st.floats(1e-9, 0.5))
def test_the_radius_exceeds_the_chi_squared_one_and_shrinks_as_rows_are_added(counts: Counts, delta: float) -> None:
    counts[:, 0] += 1
    r = radius(counts, 5, delta)
    assert (r > chi2.isf(delta, 4) / 2 / counts.sum(axis=1)).all()
    assert (radius(counts * 4, 5, delta) < r).all()
    assert np.isfinite(r).all()


def test_the_radius_comes_near_the_chi_squared_one_where_rows_are_many() -> None:
    counts = np.full((1, 10), 10**5)
    assert radius(counts, 10, 5e-4)[0] < 1.4 * chi2.isf(5e-4, 9) / 2 / 10**6


def test_without_rows_the_ball_is_everything_and_with_one_bin_it_is_nothing() -> None:
    assert radius(np.zeros((1, 4), np.int64), 4, 0.01)[0] == np.inf
    assert radius(np.array([[100]]), 1, 0.01)[0] == 0
    assert widened(0.01, psi_to_kl(0.5)) == 0.25


@pytest.mark.parametrize(
    "wrong",
    [
        {"counts": [1, 2]},
        {"counts": [[1, -2]]},
        {"counts": np.zeros((0, 3))},
        {"counts": [[1, 2, 3]], "valid": [[True, True, False]]},
        {"counts": [[0, 0, 0]], "valid": False},
        {"counts": [[1, 2]], "tolerance": -0.1},
        {"counts": [[1, 2]], "tolerance": float("nan")},
        {"counts": [[1, 2]], "delta": 0.0},
    ],
)
def test_a_reference_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Reference.build(**wrong)  # type: ignore[arg-type]
