"""The pure parts of a replay: which rows ran together, how far answers are apart, and what labels say of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from gateway.errors import SettingError
from gateway.feedback.rules import FeedbackRule
from gateway.replay.cli import choose_score
from gateway.replay.compare import Difference, Tolerance, difference, differing
from gateway.replay.quality import Quality
from gateway.replay.report import Wish
from gateway.replay.runs import pieces, requests, runs
from gateway.types import Array, Contract, TensorSpec

SIZES = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), max_size=30)


@given(SIZES)
def test_rows_are_grouped_as_they_ran(ran: list[tuple[int, int]]) -> None:
    """Also neighbours of one size that took the same time; rows that never ran (batch 0) are in no group."""
    batch = [size for size, _ in ran for _ in range(max(1, size))]
    took = [run_ns if size else 0 for size, run_ns in ran for _ in range(max(1, size))]
    expected, at = [], 0
    for size, _ in ran:
        if size:
            expected.append((at, at + size))
        at += max(1, size)
    assert runs(np.array(batch, np.int32), np.array(took, np.int64)) == expected


def test_a_run_that_was_cut_is_as_long_as_what_is_left_of_it() -> None:
    assert runs(np.array([4, 4, 4, 2, 2, 8]), np.array([1, 1, 1, 1, 1, 5])) == [(0, 3), (3, 5), (5, 6)]


def test_runs_are_taken_apart_into_pieces_and_requests() -> None:
    assert pieces((3, 10), 3) == [(3, 6), (6, 9), (9, 10)]
    first = np.array([True, False, True, True, False, True])
    assert requests((2, 6), first) == [(2, 3), (3, 5), (5, 6)]
    assert requests((0, 2), first) == [(0, 2)]


def floats(*rows: list[float]) -> Array:
    return np.array(rows, np.float32)


def test_rows_differ_where_any_bit_does() -> None:
    nan = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert differing(floats([0.0, 1], [1, 2]), floats([-0.0, 1], [1, 2])).tolist() == [True, False]
    assert differing(nan[:1], nan[:1]).tolist() == [False]
    assert differing(nan[:1], nan[1:]).tolist() == [True]
    words = np.array([["a"], ["b"]], object)
    assert differing(words, np.array([["a"], ["c"]], object)).tolist() == [False, True]


def test_a_tolerance_is_relative_and_absolute_and_nan_is_near_nan_alone() -> None:
    logged = floats([100], [0], [np.nan], [np.inf], [1], [np.inf])
    got = floats([100.05], [0.0009], [np.nan], [np.inf], [np.nan], [-np.inf])
    found, beyond = difference(got, logged, Tolerance(rtol=1e-3, atol=1e-3))
    assert beyond.tolist() == [False, False, False, False, True, True]
    assert (found.rows, found.differing, found.beyond) == (6, 4, 2)
    assert found.max_abs == pytest.approx(0.05, rel=1e-3)
    assert difference(got, logged, Tolerance())[0].beyond == 4


def test_answers_of_another_shape_are_beyond_every_tolerance() -> None:
    found, beyond = difference(np.zeros((2, 3)), np.zeros((2, 4)), Tolerance(1e9, 1e9))
    assert beyond.all()
    assert found == Difference(rows=2, differing=2, beyond=2, misshapen=2)


@given(st.lists(st.tuples(st.floats(-2, 2, width=32), st.floats(-2, 2, width=32)), max_size=20), st.integers(0, 20))
def test_differences_add_up(pairs: list[tuple[float, float]], cut: int) -> None:
    got, logged = (np.array([pair[side] for pair in pairs], np.float32).reshape(-1, 1) for side in (0, 1))
    whole = difference(got, logged, Tolerance(0.1, 0.1))[0]
    total = Difference()
    for part in (slice(None, cut), slice(cut, None)):
        total.add(difference(got[part], logged[part], Tolerance(0.1, 0.1))[0])
    assert total.sum_abs == pytest.approx(whole.sum_abs)
    total.sum_abs = whole.sum_abs
    assert total == whole


def test_quality_is_what_scikit_learn_says_of_all_rows_at_once() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random(5000) < 0.3
    score = np.clip(rng.normal(0.35 + 0.2 * truth, 0.15), 0, 1).astype(np.float32)
    quality = Quality("boolean")
    for part in np.array_split(np.arange(5000), 7):
        quality.add(truth[part].astype(np.float64), score[part])
    found = quality.result()
    assert found["rows"] == 5000
    assert found["brier"] == pytest.approx(brier_score_loss(truth, score))
    assert found["log_loss"] == pytest.approx(log_loss(truth, score.astype(np.float64)), rel=1e-6)
    assert found["accuracy"] == np.mean((score > 0.5) == truth)
    assert abs(found["auc"] - roc_auc_score(truth, score)) <= found["auc_error"] < 1e-3


def test_numbers_and_classes_have_figures_of_their_own() -> None:
    numbers, classes = Quality("number"), Quality("class")
    numbers.add(np.array([1.0, 2, 3]), np.array([1.0, 4, np.nan]))
    classes.add(np.array([1.0, 2, 3]), np.array([1, 2, 2]))
    assert numbers.result()["mean_absolute_error"] == 1.0
    assert numbers.result()["nonfinite"] == 1
    assert classes.result() == {"rows": 3, "accuracy": pytest.approx(2 / 3)}
    assert Quality("boolean").result() == {"rows": 0}


def outputs(*specs: tuple[str, str, tuple[int, ...]]) -> Contract:
    return Contract((), tuple(TensorSpec(*spec) for spec in specs), batched=True)


def test_the_score_is_chosen_where_it_is_plain_and_else_asked_for() -> None:
    both = outputs(("label", "INT64", (-1,)), ("probabilities", "FP32", (-1, 2)))
    yes, three = FeedbackRule(type="boolean"), FeedbackRule(type="category", values=("a", "b", "c"))
    assert choose_score(both, yes, Wish("m")) == ("probabilities", 1, "boolean")
    assert choose_score(both, three, Wish("m")) == ("label", 0, "class")
    assert choose_score(both, yes, Wish("m", score="probabilities:0")) == ("probabilities", 0, "boolean")
    assert choose_score(outputs(("y", "FP32", (-1, 1))), FeedbackRule(type="number"), Wish("m")) == ("y", 0, "number")
    with pytest.raises(SettingError, match="no element of an output"):
        choose_score(both, yes, Wish("m", score="probabilities:2"))
    with pytest.raises(SettingError, match="say with --score"):
        choose_score(outputs(("y", "FP32", (-1, 3))), yes, Wish("m"))
