"""The cost model: it finds the line behind noisy runs, and what follows from it stays within reason."""

from __future__ import annotations

import math
import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.inference.cost import KEPT, LONGEST_BATCH_S, MAX_SIZES, REFIT_RUNS, SAVES, TRIAL_RUNS, WORTH_IT, Cost

NOTHING = (None, None, 0)
ROWS = (1, 2, 4, 8, 16, 32, 64)


def learn(cost: Cost, a: float, b: float, *, seed: int, outliers: float = 0.0, noise: float = 0.0) -> None:
    """Runs of all sizes in random order; a share of them took a thousand times as long."""
    chance = random.Random(seed)
    runs = [rows for rows in ROWS for _ in range(KEPT)] * 3
    chance.shuffle(runs)
    # Of each size outliers are spread, so that they are never more than their share of the runs that are kept.
    seen = dict.fromkeys(ROWS, 0)
    for rows in runs:
        seen[rows] += 1
        slow = 1000 if outliers and seen[rows] % round(1 / outliers) == 0 else 1
        cost.learn(rows, (a * rows + b) * slow * (1 + noise * chance.uniform(-1, 1)))


@given(a=st.floats(1e-7, 1e-2), b=st.floats(1e-6, 1e-2), seed=st.integers(0, 1000))
def test_the_line_is_found_in_spite_of_one_run_in_three_that_took_a_thousand_times_as_long(
    a: float, b: float, seed: int
) -> None:
    cost = Cost(*NOTHING)
    learn(cost, a, b, seed=seed, outliers=1 / 3)
    assert cost.a == pytest.approx(a, rel=1e-6, abs=1e-9)
    assert cost.b == pytest.approx(b, rel=1e-6, abs=1e-7)


@given(a=st.floats(1e-6, 1e-2), share=st.floats(0, 20), seed=st.integers(0, 1000))
def test_noise_moves_what_is_expected_by_no_more_than_itself(a: float, share: float, seed: int) -> None:
    b = a * share
    cost = Cost(*NOTHING)
    learn(cost, a, b, seed=seed, noise=0.1)
    for rows in ROWS:
        assert cost.expect_s(rows) == pytest.approx(a * rows + b, rel=0.5)


@pytest.mark.parametrize("slow", ROWS)
def test_the_line_is_found_in_spite_of_one_size_that_always_took_ten_times_as_long(slow: int) -> None:
    cost = Cost(*NOTHING)
    for _ in range(2 * REFIT_RUNS):
        for rows in ROWS:
            cost.learn(rows, (1e-5 * rows + 1e-4) * (10 if rows == slow else 1))
    assert (cost.a, cost.b) == (pytest.approx(1e-5, rel=0.3), pytest.approx(1e-4, rel=0.3))


def test_a_cost_that_changes_is_followed() -> None:
    cost = Cost(*NOTHING)
    learn(cost, 1e-5, 1e-4, seed=1)
    learn(cost, 5e-5, 2e-4, seed=2)
    assert (cost.a, cost.b) == (pytest.approx(5e-5), pytest.approx(2e-4))


def test_before_any_run_it_holds_what_quarantine_measured() -> None:
    cost = Cost(0.001, 0.0024, 8)
    assert cost.known
    assert cost.expect_s(1) == pytest.approx(0.001)
    assert cost.expect_s(8) == pytest.approx(0.0024)


def test_where_nothing_is_known_a_run_is_taken_for_a_long_one_until_the_first() -> None:
    cost = Cost(*NOTHING)
    assert cost.expect_s(1) >= 1.0
    assert cost.best_rows(64) == 1
    cost.learn(1, 0.0001)
    assert cost.expect_s(1) == pytest.approx(0.0001)


def test_long_runs_are_learned_from_at_once_so_that_a_bad_first_measurement_refuses_nobody_for_long() -> None:
    cost = Cost(1.0, 8.0, 8)
    cost.learn(1, 0.02)
    assert cost.expect_s(1) == pytest.approx(0.02)


def test_runs_of_one_size_alone_scale_what_was_known() -> None:
    cost = Cost(0.001, 0.0024, 8)
    for _ in range(REFIT_RUNS):
        cost.learn(1, 0.002)
    assert cost.expect_s(1) == pytest.approx(0.002)
    assert cost.expect_s(8) == pytest.approx(0.0048)


@pytest.mark.parametrize("known", [NOTHING, (0.001, None, 0), (0.001, 0.008, 8)])
def test_runs_of_no_rows_break_nothing_and_teach_nothing(known: tuple[float | None, float | None, int]) -> None:
    """A request may have no rows. A cost without a fixed part would have it take no time at all."""
    cost = Cost(*known)
    before = [cost.expect_s(rows) for rows in ROWS]
    for _ in range(2 * REFIT_RUNS):
        cost.learn(0, 0.0001)
    assert [cost.expect_s(rows) for rows in ROWS] == before


@given(
    known=st.sampled_from([NOTHING, (0.0, 0.0, 8), (1e-5, None, 0), (0.001, 0.0005, 8), (0.001, 1.0, 8)]),
    runs=st.lists(st.tuples(st.integers(1, 1 << 20), st.floats(0, 100)), max_size=2 * REFIT_RUNS),
    limit=st.integers(1, 65536),
    patience_s=st.floats(-1, 1),
)
def test_whatever_was_seen_the_line_never_falls_and_batches_are_of_one_row_to_the_limit(
    known: tuple[float | None, float | None, int], runs: list[tuple[int, float]], limit: int, patience_s: float
) -> None:
    cost = Cost(*known)
    for rows, seconds in runs:
        cost.learn(rows, seconds)
        assert cost.a >= 0
        assert cost.b >= 0
        assert math.isfinite(cost.expect_s(1 << 20))
    best = cost.best_rows(limit, patience_s)
    assert 1 <= best <= limit
    # Rows that cost nothing may as well run together, however long a run takes.
    assert best == 1 or cost.a == 0 or cost.expect_s(best) <= max(LONGEST_BATCH_S, patience_s) * 1.001


@pytest.mark.parametrize(
    ("a", "b", "pays"),
    [(0.0, 1e-3, True), (1e-4, 1e-4, True), (1e-3, 0.0, False), (1e-3, 1e-6, False), (0.0, 0.0, True)],
)
def test_batching_pays_where_a_run_costs_something_besides_its_rows(a: float, b: float, pays: bool) -> None:
    cost = Cost(a + b, a * 8 + b, 8)
    assert cost.batching_pays is pays
    assert cost.best_rows(64) == (1 if not pays else 64)


def test_where_batching_is_off_a_larger_batch_is_tried_now_and_then_and_turns_it_on_again() -> None:
    """What was measured first may have been measured while something else ran."""
    cost = Cost(0.01, 0.08, 8)
    sizes = []
    for _ in range(20 * TRIAL_RUNS):
        sizes.append(rows := cost.best_rows(64))
        cost.learn(rows, 0.001 + 1e-5 * rows)
    assert sizes[: TRIAL_RUNS - 1] == [1] * (TRIAL_RUNS - 1)
    assert cost.batching_pays
    assert sizes[-1] == 64


def test_a_row_that_takes_just_too_large_a_share_of_a_row_alone_is_run_alone() -> None:
    assert Cost(1.0, 1.0 + 7 * (WORTH_IT + 0.01), 8).batching_pays is False
    assert Cost(1.0, 1.0 + 7 * (WORTH_IT - 0.01), 8).batching_pays is True


def test_rows_that_gain_a_little_run_together_for_who_has_the_patience_and_those_that_gain_nothing_do_not() -> None:
    assert [Cost(1.0, 1.0 + 7 * 0.97, 8).best_rows(64, patience_s) for patience_s in (0.0, 1.9, 2.0, 4.0)] == [
        1,
        1,
        2,
        4,
    ]
    assert Cost(1.0, 1.0 + 7 * (SAVES + 0.005), 8).best_rows(64, 1000.0) == 1
    assert Cost(1.5, 2.2, 8).best_rows(64, 5.05) == 36


def test_where_rows_gain_nothing_a_long_run_is_tried_again_by_who_has_the_patience() -> None:
    cost = Cost(0.04, 0.32, 8)
    sizes = []
    for _ in range(2 * TRIAL_RUNS):
        sizes.append(rows := cost.best_rows(64, 0.2))
        cost.learn(rows, 0.04 * rows)
    assert {size for size in sizes if size > 1} == {4}
    assert sizes.count(1) >= 2 * TRIAL_RUNS - 3


def test_what_a_busy_core_adds_to_runs_hides_no_gain_where_it_is_known_how_long_they_computed() -> None:
    """A row alone computes for 34 ms, four together for 33 each; a run takes up to twice as long as it computes."""
    dice = random.Random(7)
    blind, seeing = Cost(0.034, 0.272, 8), Cost(0.034, 0.272, 8)
    stretched = []
    for number in range(400):
        rows = (1, 4, 2)[number % 3]
        computed_s = 0.0013 + 0.0327 * rows
        stretched.append(dice.uniform(1, 2))
        blind.learn(rows, computed_s * stretched[-1])
        seeing.learn(rows, computed_s * stretched[-1], computed_s)
    assert seeing.b / seeing.a == pytest.approx(0.0013 / 0.0327)
    assert seeing.expect_s(1) == pytest.approx(0.034 * median(stretched[-KEPT:]))
    assert blind.b / blind.a != pytest.approx(0.0013 / 0.0327, rel=0.5)


def test_sizes_without_end_take_no_memory_without_end() -> None:
    cost = Cost(*NOTHING)
    for power in range(64):
        for _ in range(100):
            cost.learn(1 << power, 1e-6 * (1 << power))
    assert len(cost._times) == len(cost._rows) <= MAX_SIZES
    assert all(len(times) <= KEPT for times in cost._times.values())


def test_a_batch_is_cut_where_it_would_hold_up_the_next_one_for_too_long() -> None:
    assert Cost(0.011, 0.018, 8).best_rows(64) == 40
    # One row alone takes longer than that already, and fifteen of them not twice as long.
    assert Cost(1.5, 2.2, 8).best_rows(64) == 15
    assert Cost(0.14, 0.1442, 8).best_rows(64) == 64
