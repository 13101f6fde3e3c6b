"""Data quality: rates with their intervals, constants, repeated rows, freshness."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from monitors.baseline.build import Arrays, build
from monitors.quality.duplicates import Duplicates
from monitors.quality.freshness import Freshness
from monitors.quality.report import constant, quality, rate
from monitors.state import State
from monitors.types import Array, Columns

RNG = np.random.default_rng(11)


def columns(**features: Array) -> Columns:
    return Columns(np.zeros(len(next(iter(features.values()))), dtype=np.int64), features)


def training(rows: int = 4000, missing: int = 0) -> dict[str, Array]:
    x = RNG.normal(size=rows)
    x[:missing] = math.nan
    return {
        "x": x,
        "flag": (RNG.random(rows) < 0.5).astype(float),
        "word": np.array(["a", "b", "c", "d"], dtype=object)[RNG.integers(0, 4, rows)],
    }


BASELINE = build(Arrays(training(missing=40)))


def live(**features: Array) -> State:
    state = BASELINE.new_state()
    state.update(columns(**features))
    return state


def test_rates_are_told_beside_those_of_the_training_data() -> None:
    rows = 1000
    x = RNG.uniform(-1, 1, rows)
    x[:100], x[100:150], x[150:170] = math.nan, math.inf, 99.0
    word = np.array(["new"] * 30 + ["a"] * (rows - 30), dtype=object)
    found = quality(BASELINE.state, live(x=x, word=word))
    assert found["missing"].rate.tolist() == [0.1, 1.0, 0.0]
    assert found["missing"].expected.tolist() == [0.01, 0.0, 0.0]
    assert found["absent"].count.tolist() == [0, rows, 0]
    assert found["infinite"].count.tolist() == [50, 0, 0]
    assert found["out_of_range"].count.tolist() == [20, 0, 0]
    assert found["unseen"].count.tolist() == [0, 0, 30]
    assert found["missing"].p[0] < 1e-9
    assert found["unseen"].p[2] < 1e-9
    assert found["infinite"].p[1] == 1.0


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 5000), data=st.data())
def test_intervals_are_wilsons(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    found = rate(np.array([count]), n, np.array([5]), 100)
    exact = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
    assert found.low[0] == pytest.approx(exact.low, abs=1e-9)
    assert found.high[0] == pytest.approx(exact.high, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(20, 3000), m=st.integers(20, 3000), data=st.data())
def test_p_is_that_of_the_corrected_table(n: int, m: int, data: st.DataObject) -> None:
    count, reference = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    found = rate(np.array([count]), n, np.array([reference]), m)
    table = np.array([[count, n - count], [reference, m - reference]])
    if (table.sum(axis=0) == 0).any():
        assert found.p[0] == 1.0
    else:
        assert found.p[0] == pytest.approx(stats.chi2_contingency(table, correction=True).pvalue, abs=1e-9)


def test_no_rows_have_no_rate() -> None:
    found = quality(BASELINE.state, BASELINE.new_state())
    assert np.isnan(found["missing"].rate).all()
    assert np.isnan(found["missing"].p).all()


def test_a_feature_that_stopped_moving_is_constant() -> None:
    rows = 200
    moving = training(rows)
    stuck = {**moving, "x": np.full(rows, 0.25), "word": np.array(["a"] * rows, dtype=object)}
    assert constant(BASELINE.state, live(**moving)).tolist() == [False, False, False]
    assert constant(BASELINE.state, live(**stuck)).tolist() == [True, False, True]
    assert constant(BASELINE.state, live(**{name: values[:50] for name, values in stuck.items()})).sum() == 0
    assert constant(BASELINE.state, live(**{**stuck, "flag": np.ones(rows)})).tolist() == [True, True, True]


def test_states_of_two_baselines_are_not_compared() -> None:
    other = build(Arrays({"x": RNG.normal(size=20)}))
    with pytest.raises(ValueError, match="two different baselines"):
        quality(other.state, BASELINE.new_state())


# --- repeated rows ---


def test_repeated_rows_are_counted_exactly_while_they_are_few() -> None:
    counter = Duplicates(BASELINE.layout)
    rows = training(500)
    counter.update(columns(**rows))
    assert counter.value() == {"rows": 500, "distinct": 500, "exact": True, "share": 0.0}
    counter.update(columns(**{name: values[:100] for name, values in rows.items()}))
    assert counter.value()["share"] == pytest.approx(100 / 600)


def test_the_share_of_repeats_is_estimated_within_its_error_when_rows_are_many() -> None:
    counter = Duplicates(BASELINE.layout, size=1024)
    rows = training(20_000)
    counter.update(columns(**rows))
    assert counter.value()["share"] == 0.0
    counter.update(columns(**{name: values[:2000] for name, values in rows.items()}))
    exact = 2000 / 22_000
    assert not counter.value()["exact"]
    assert counter.value()["share"] == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 1024))


def test_equal_rows_are_equal_in_any_type_and_with_either_zero() -> None:
    counter = Duplicates(BASELINE.layout)
    word = np.array(["a", None], dtype=object)
    counter.update(columns(x=np.array([0.5, -0.0]), flag=np.array([1.0, 0.0]), word=word))
    counter.update(columns(x=np.array([0.5, 0.0], np.float32), flag=np.array([True, False]), word=word))
    assert counter.value()["distinct"] == 2
    counter.update(columns(x=np.array([math.nan, -math.nan]), flag=np.array([1, 1]), word=np.array(["a", "a"])))
    assert counter.value()["distinct"] == 3


def test_rows_that_differ_in_one_value_or_swap_two_are_distinct() -> None:
    baseline = build(Arrays({"a": np.arange(9.0), "b": np.arange(9.0)}))
    counter = Duplicates(baseline.layout)
    counter.update(columns(a=np.array([1.0, 2.0, 1.0]), b=np.array([2.0, 1.0, 1.0])))
    assert counter.value()["distinct"] == 3


# --- freshness ---


def test_freshness_knows_the_age_of_the_newest_row() -> None:
    fresh = Freshness()
    assert fresh.age_s(5) is None
    fresh.update(Columns(np.array([5, 3, 4], dtype=np.int64) * 10**9))
    assert fresh.age_s(65 * 10**9) == 60.0
    assert fresh.value() == {"rows": 3, "first_ns": 3 * 10**9, "last_ns": 5 * 10**9}
