"""Bets on losses, confidence sequences, conformal ranks and e-BH, against definitions and exact sums."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, kstest

from monitors.evidence.confidence import BettingInterval, highest_mean, lowest_mean, mean_interval
from monitors.evidence.conformal import ConformalDetector
from monitors.evidence.losses import BETS, LossDetector
from monitors.evidence.selection import e_bh

YEAR_OF_MINUTES = math.log(525_960)


# --- losses ---


def test_the_sum_over_starts_is_what_the_recursion_computes() -> None:
    rng = np.random.default_rng(1)
    blocks = [rng.uniform(0, 1, rng.integers(1, 5)) for _ in range(12)]
    detector = LossDetector(0.3)
    for block in blocks:
        detector.update(block)
    whole = 0.0
    for bet in BETS:
        for start in range(12):
            whole += math.prod(1 + bet / 0.3 * (x - 0.3) for x in np.concatenate(blocks[start:])) / len(BETS)
    assert detector.log_m == pytest.approx(math.log(whole))


@pytest.mark.parametrize("bound", [0.05, 0.3, 0.9])
def test_no_losses_within_the_bound_raise_the_expectation_above_the_number_of_blocks(bound: float) -> None:
    """Exact: every path of four blocks, whose mean depends on the past as unkindly as it may."""
    expectation = 0.0
    for path in product((0.0, 1.0), repeat=4):
        detector, probability = LossDetector(bound), 1.0
        for index, loss in enumerate(path):
            mean = bound if index % 2 == 0 or path[index - 1] else bound / 2
            probability *= mean if loss else 1 - mean
            detector.update([loss])
        expectation += probability * math.exp(detector.log_m)
    assert expectation <= 4 + 1e-9


def test_losses_that_hold_their_bound_raise_no_alarm_and_a_rise_is_found_and_dated() -> None:
    """1. 20,000 rows with the error rate of the bound. 2. From block 400 on the rate is 0.16 in place of 0.1.
    Result: silent before, an alarm within 2,000 rows after, dated within 10 blocks of the change.
    """
    rng = np.random.default_rng(3)
    detector, loudest = LossDetector(0.1), -math.inf
    for block in range(400):
        detector.update(rng.random(50) < 0.1, began=block)
        loudest = max(loudest, detector.log_m)
    assert loudest < YEAR_OF_MINUTES
    block = 400
    while detector.log_m < YEAR_OF_MINUTES:
        detector.update(rng.random(50) < 0.16, began=block)
        block += 1
    assert block - 400 <= 40
    assert abs(detector.began - 400) <= 10
    rows, mean = detector.since
    assert rows == (block - detector.began) * 50
    assert mean == pytest.approx(0.16, abs=0.03)


@settings(deadline=None)
@given(
    blocks=st.lists(st.lists(st.floats(0, 1), max_size=6), max_size=12), cut=st.integers(0, 12), seed=st.integers(0, 9)
)
def test_losses_in_any_order_and_any_writing_give_the_same_bytes_also_after_a_restore(
    blocks: list[list[float]], cut: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    plain, other = LossDetector(0.2), LossDetector(0.2)
    for index, block in enumerate(blocks):
        if index == cut:
            state = other.to_bytes()
            other = LossDetector(0.2)
            other.load(state)
        plain.update(block, began=index)
        values, counts = np.unique(np.array(block), return_counts=True)
        order = rng.permutation(len(values))
        other.update(values[order], counts[order], began=index)
    assert plain.to_bytes() == other.to_bytes()
    assert not math.isnan(plain.log_m)


@pytest.mark.parametrize("wrong", [[1.5], [-0.1], [float("nan")], [[0.1]]])
def test_what_is_no_loss_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="expected losses"):
        LossDetector(0.5).update(wrong)


@pytest.mark.parametrize("bound", [0.0, 1.0, -1.0, float("nan")])
def test_a_bound_that_bounds_nothing_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="expected a bound"):
        LossDetector(bound)


# --- confidence ---


@settings(deadline=None)
@given(rows=st.integers(1, 10_000), share=st.floats(0, 1), delta=st.floats(1e-9, 0.4))
def test_the_highest_mean_covers_as_clopper_and_pearson_do_but_a_little_wider(
    rows: int, share: float, delta: float
) -> None:
    """The tail of the exact binomial at the bound is at most delta: the bound is never too low."""
    wrong = int(share * rows)
    high = float(highest_mean(wrong, rows, delta))
    assert binom.cdf(wrong, rows, high) <= delta * (1 + 1e-6) or high == 1
    assert float(lowest_mean(rows - wrong, rows, delta)) == pytest.approx(1 - high, abs=1e-9)
    assert wrong / rows <= high <= 1


def test_without_rows_every_mean_is_possible() -> None:
    assert highest_mean(0, 0, 0.1) == 1
    assert lowest_mean(0, 0, 0.1) == 0
    assert mean_interval(0, 0, 0.1) == (0, 1)
    assert BettingInterval(0.1).interval() == (0, 1)


@pytest.mark.parametrize("mean", [0.02, 0.5, 0.9])
def test_the_interval_of_a_sum_misses_the_mean_at_some_time_with_at_most_its_probability(mean: float) -> None:
    """1. 500 streams of 3,000 rows. 2. Every fortieth row is looked at. Result: at most 5 % ever exclude the truth."""
    rng = np.random.default_rng(5)
    sums = np.cumsum(rng.random((500, 3000)) < mean, axis=1)
    looks = np.arange(19, 3000, 40)
    low, high = mean_interval(sums[:, looks], looks + 1, 0.05)
    assert np.mean(((mean < low) | (mean > high)).any(axis=1)) <= 0.05
    assert np.median(high[:, -1] - low[:, -1]) < 0.09


@settings(deadline=None)
@given(total=st.integers(0, 50), more=st.integers(0, 50), alpha=st.floats(0.001, 0.5))
def test_the_interval_ends_where_the_mixture_reaches_one_over_alpha(total: int, more: int, alpha: float) -> None:
    rows = total + more
    low, high = (float(each) for each in mean_interval(total, rows, alpha))
    assert 0 <= low <= (total / rows if rows else 0.5) <= high <= 1
    # 1 / ((n + 1) binom(n, s)) is the mixture's probability of one order of the rows.
    mixture = 1 / ((rows + 1) * math.comb(rows, total))
    for end in (low, high):
        if 0 < end < 1:
            assert mixture / (end**total * (1 - end) ** more) == pytest.approx(1 / alpha, rel=1e-6)


def reference_betting(x: list[float], alpha: float, m: float) -> bool:
    """Whether m is ever left out: the bets written as in the paper, one mean at a time."""
    up = down = 1.0
    out = False
    for i in range(len(x)):
        past = x[:i]
        mean = (0.5 + sum(past)) / (i + 1)
        running = [(past[k] - (0.5 + sum(past[: k + 1])) / (k + 2)) ** 2 for k in range(i)]
        variance = (0.25 + sum(running)) / (i + 1)
        kelly = (mean - m) / (variance + (mean - m) ** 2)
        up *= 1 + min(max(kelly, 0), 0.5 / m) * (x[i] - m)
        down *= 1 - min(max(-kelly, 0), 0.5 / (1 - m)) * (x[i] - m)
        out = out or max(up, down) / 2 >= 1 / alpha
    return out


def test_the_betting_interval_excludes_the_means_that_its_definition_excludes() -> None:
    x = np.random.default_rng(2).beta(2, 8, 60).tolist()
    interval = BettingInterval(0.05, grid=50)
    interval.update(x)
    expected = [reference_betting(x, 0.05, m / 50) for m in range(1, 50)]
    assert interval._out[1:-1].tolist() == expected
    assert any(expected)
    assert not all(expected)


def test_the_betting_interval_is_narrow_where_losses_vary_little_and_resumes_exactly() -> None:
    rng = np.random.default_rng(4)
    x = rng.uniform(0.28, 0.32, 500)
    whole, part = BettingInterval(0.05), BettingInterval(0.05)
    whole.update(x)
    part.update(x[:200])
    resumed = BettingInterval(0.05)
    resumed.load(part.to_bytes())
    resumed.update(x[200:])
    assert resumed.to_bytes() == whole.to_bytes()
    low, high = whole.interval()
    assert low <= 0.3 <= high
    wide_low, wide_high = mean_interval(x.sum(), 500, 0.05)
    assert high - low < (wide_high - wide_low) / 3
    with pytest.raises(ValueError, match="grid of 9"):
        BettingInterval(0.05, grid=9).load(whole.to_bytes())
    with pytest.raises(ValueError, match="between 0 and 1"):
        whole.update([0.5, math.nan])


def test_numbers_that_contradict_every_mean_lead_to_no_claim() -> None:
    interval = BettingInterval(0.05, grid=20)
    interval.update([0.0] * 300 + [1.0] * 300)
    assert interval.interval() == (0.0, 1.0)


@pytest.mark.parametrize("make", [mean_interval, highest_mean, lowest_mean])
def test_a_sum_above_its_count_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match="between 0 and the count"):
        make(5, 4, 0.1)  # type: ignore[operator]


# --- conformal ---


def test_ranks_of_exchangeable_scores_are_uniform_and_independent_also_with_ties() -> None:
    rng = np.random.default_rng(6)
    p = ConformalDetector(5, seed=1).p_values(rng.choice(5, 20_000, p=[0.6, 0.2, 0.1, 0.05, 0.05]))
    assert kstest(p, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 0.03


def test_ranks_are_those_of_the_definition() -> None:
    scores = [2, 0, 2, 1, 1, 3, 2]
    detector = ConformalDetector(4)
    u = detector._uniform(7)
    p = np.concatenate([detector.p_values(scores[:3]), detector.p_values(scores[3:])])
    for n in range(7):
        above = sum(each > scores[n] for each in scores[: n + 1])
        same = sum(each == scores[n] for each in scores[: n + 1])
        assert p[n] == pytest.approx((above + u[n] * same) / (n + 1))


def test_a_change_of_scores_is_found_and_the_same_scores_shuffled_are_not() -> None:
    rng = np.random.default_rng(7)
    scores = np.concatenate([rng.integers(0, 14, 3000), rng.integers(6, 20, 1000)])
    loudest = {}
    for name, rows in (("ordered", scores), ("shuffled", rng.permutation(scores))):
        detector, top = ConformalDetector(20), -math.inf
        for block in rows.reshape(-1, 50):
            detector.update(block)
            top = max(top, detector.log_sr)
        loudest[name] = top
    assert loudest["ordered"] > YEAR_OF_MINUTES
    assert loudest["shuffled"] < math.log(80 * 20)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=9), max_size=9), st.integers(0, 9))
def test_scores_that_are_read_again_or_resumed_give_the_same_bytes(blocks: list[list[int]], cut: int) -> None:
    through, resumed = ConformalDetector(4, seed=3), ConformalDetector(4, seed=3)
    for index, block in enumerate(blocks):
        if index == cut:
            state = resumed.to_bytes()
            resumed = ConformalDetector(4, seed=3)
            resumed.load(state)
        through.update(block)
        resumed.update(block)
    assert through.to_bytes() == resumed.to_bytes()
    assert through.rows == sum(map(len, blocks))


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 3"):
        ConformalDetector(4).update([4])
    with pytest.raises(ValueError, match="at least one bin"):
        ConformalDetector(0)
    with pytest.raises(ValueError, match="with 5 bins"):
        ConformalDetector(5).load(ConformalDetector(4).to_bytes())


# --- e-BH ---


@settings(deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=12), st.floats(0, 8))
def test_e_bh_rejects_the_largest_k_whose_smallest_is_large_enough(logs: list[float], threshold: float) -> None:
    ranked = sorted(logs, reverse=True)
    enough = [k for k in range(1, len(logs) + 1) if ranked[k - 1] >= math.log(len(logs) / k) + threshold]
    rejected = e_bh(logs, threshold)
    assert rejected.sum() == max(enough, default=0)
    assert all(a >= b for a in np.array(logs)[rejected] for b in np.array(logs)[~rejected])


def test_e_bh_keeps_false_rejections_to_its_level_on_correlated_features() -> None:
    """Ten features in step have e-values of mean 1, three have large ones: the false share is within 5 %."""
    rng = np.random.default_rng(9)
    shares = []
    for _ in range(4000):
        z = rng.standard_normal()
        log_e = np.concatenate([np.full(10, 3 * z - 4.5), np.full(3, 8.0)])
        rejected = e_bh(log_e, math.log(20))
        shares.append(rejected[:10].sum() / max(rejected.sum(), 1))
        assert rejected[10:].all()
    assert np.mean(shares) <= 0.05


def test_what_is_no_number_is_never_rejected() -> None:
    assert e_bh([math.nan, 100.0], 1.0).tolist() == [False, True]
