"""Labelled performance of regressions and of many classes, held to scikit-learn on random and adversarial rows."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from monitors.performance import exact
from monitors.performance.confusion import Confusion
from monitors.performance.labels import LabelFlow
from monitors.performance.multiclass import ClassScores
from monitors.performance.regression import Regression
from monitors.performance.scores import Scores
from monitors.performance.slices import Sliced
from monitors.types import Columns
from tests.monitors.test_performance_scores import close, sane

value = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-300, 5e-324, 1e9, 1e9 + 1, 1e-9]),
    st.floats(-1e3, 1e3),
    st.floats(-1e60, 1e60),
)


def rows(outputs: dict[str, Any], labels: Any, weight: Any = None, known: Any = None) -> Columns:
    labels = np.asarray(labels)
    known = np.ones(len(labels), bool) if known is None else known
    features = {} if weight is None else {"w": np.asarray(weight)}
    outputs = {name: np.asarray(each) for name, each in outputs.items()}
    return Columns(np.zeros(len(labels), np.int64), features, outputs, {"y": labels}, {"y": known})


def regression(**settings: Any) -> Regression:
    return Regression(**{"output": "p", "label": "y", **settings})


pairs = st.lists(st.tuples(value, value, st.sampled_from([0.0, 0.25, 1.0, 3.0])), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(data=pairs, weighted=st.booleans())
def test_errors_equal_scikit_learns(data: list[tuple[float, float, float]], weighted: bool) -> None:
    p, y, weight = (np.array(each) for each in zip(*data, strict=True))
    w = weight if weighted else np.ones(len(p))
    state = regression(weight="w" if weighted else None)
    state.update(rows({"p": p}, y, weight))
    found = state.figures()
    sane(found)
    if w.sum() == 0:
        assert found["mae"].value is found["r2"].value is None
        return
    close(found["mae"], metrics.mean_absolute_error(y, p, sample_weight=w))
    close(found["rmse"], metrics.root_mean_squared_error(y, p, sample_weight=w))
    close(found["mse"], metrics.mean_squared_error(y, p, sample_weight=w))
    close(found["mape"], metrics.mean_absolute_percentage_error(y, p, sample_weight=w))
    # Errors of both signs cancel, where numpy's sums lose what small ones hold beside large ones.
    exact = sum((Fraction(e) * Fraction(v) for e, v in zip((y - p).tolist(), w.tolist(), strict=True)), Fraction(0))
    close(found["bias"], float(exact / sum(map(Fraction, w.tolist()))))


@settings(max_examples=60, deadline=None)
@given(data=pairs)
def test_r2_is_that_of_exact_arithmetic_also_for_labels_far_from_zero(data: list[tuple[float, float, float]]) -> None:
    p, y, _ = (np.array(each) for each in zip(*data, strict=True))
    state = regression()
    state.update(rows({"p": p}, y))
    found = state.figures()["r2"]
    labels = [Fraction(each) for each in y.tolist()]
    mean = sum(labels) / len(labels)
    spread = sum((each - mean) ** 2 for each in labels)
    if spread == 0 or np.abs(y[y != 0]).min(initial=1) < 1e-100:  # where squares of labels are no doubles
        assert found.value is None or spread != 0
        return
    expected = 1 - Fraction(sum(Fraction(e) for e in ((y - p) ** 2).tolist())) / spread
    if abs(expected) < Fraction(10) ** 290:
        assert found.value == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


def test_r2_equals_scikit_learns_on_ordinary_rows_and_is_none_where_labels_are_constant() -> None:
    rng = np.random.default_rng(1)
    y, w = rng.normal(5, 2, 1000), rng.random(1000)
    p = y + rng.normal(0, 1, 1000)
    for name, weight in ((None, np.ones(1000)), ("w", w)):
        state = regression(weight=name)
        state.update(rows({"p": p}, y, w))
        close(state.figures()["r2"], metrics.r2_score(y, p, sample_weight=weight))
    constant = regression()
    constant.update(rows({"p": p}, np.full(1000, 0.1)))
    assert constant.figures()["r2"].value is None


def test_quantiles_are_judged_by_coverage_and_pinball_loss() -> None:
    rng = np.random.default_rng(2)
    y, w = rng.normal(0, 1, 2000), rng.integers(0, 3, 2000).astype(float)
    low, high = np.full(2000, -1.2816), np.full(2000, 1.2816)
    high[:10] = np.nan
    levels = {"p90": 0.9, "p10": 0.1}
    for name, weight in ((None, np.ones(2000)), ("w", w)):
        state = regression(quantiles=levels, weight=name)
        state.update(rows({"p": np.zeros(2000), "p10": low, "p90": high}, y, w))
        found = state.figures()
        sane(found)
        for output, bound, level in (("p10", low, 0.1), ("p90", high, 0.9)):
            there = ~np.isnan(bound)
            args = {"sample_weight": weight[there], "alpha": level}
            close(found["quantiles"][output]["pinball"], metrics.mean_pinball_loss(y[there], bound[there], **args))
            close(found["quantiles"][output]["coverage"], np.average(y[there] <= bound[there], weights=weight[there]))
        assert found["quantiles"]["p90"]["missing"] == 10
        between = (low <= y) & (y <= high)
        close(found["interval_coverage"], between.sum() / 1990)


def probabilities(rng: Any, n: int, classes: int) -> tuple[Any, Any]:
    scores = rng.dirichlet(np.ones(classes) * 0.7, n)
    labels = (rng.random(n)[:, np.newaxis] > scores.cumsum(axis=1)).sum(axis=1)
    return scores, np.minimum(labels, classes - 1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 200), classes=st.integers(2, 5), coarse=st.booleans())
def test_probabilities_of_many_classes_equal_scikit_learns(seed: int, n: int, classes: int, coarse: bool) -> None:
    rng = np.random.default_rng(seed)
    scores, y = probabilities(rng, n, classes)
    if coarse:  # ties, zeros and ones; rows that still add up to one
        scores = np.eye(classes)[scores.argmax(axis=1)]
    state = ClassScores(output="p", label="y", classes=tuple(range(classes)))
    state.update(rows({"p": scores}, y))
    found = state.figures()
    sane(found)
    close(found["accuracy"], metrics.accuracy_score(y, scores.argmax(axis=1)))
    held = np.clip(scores, np.finfo(float).eps, 1 - np.finfo(float).eps)
    close(found["log_loss"], -np.log(held[np.arange(n), y]).mean())
    if not coarse:
        close(found["log_loss"], metrics.log_loss(y, scores, labels=range(classes)))
    close(found["brier"], ((scores - np.eye(classes)[y]) ** 2).sum(axis=1).mean())
    aucs = []
    for each in range(classes):
        auc = found["classes"][each]["roc_auc"]
        if 0 < (y == each).sum() < n:
            aucs.append((metrics.roc_auc_score(y == each, scores[:, each]), (y == each).sum()))
            assert abs(auc.value - aucs[-1][0]) <= auc.error + 1e-9
        else:
            assert auc.value is None
    if aucs:
        assert abs(found["roc_auc_macro"].value - np.mean([a for a, _ in aucs])) <= found["roc_auc_macro"].error + 1e-9
        expected = np.average([a for a, _ in aucs], weights=[m for _, m in aucs])
        assert abs(found["roc_auc_weighted"].value - expected) <= found["roc_auc_weighted"].error + 1e-9


@settings(max_examples=25, deadline=None)
@given(data=pairs, seed=st.integers(0, 99), weighted=st.booleans())
def test_errors_do_not_depend_on_order_partition_or_labels_that_were_superseded(
    data: list[tuple[float, float, float]], seed: int, weighted: bool
) -> None:
    p, y, weight = (np.array(each) for each in zip(*data, strict=True))
    settings = {"quantiles": {"p": 0.5, "q": 0.9}, "weight": "w" if weighted else None}
    outputs = {"p": p, "q": np.where(y > 0, np.nan, p + 1)}
    whole = regression(**settings)
    whole.update(rows(outputs, y, weight))
    rng = np.random.default_rng(seed)
    wrong = np.where(rng.random(len(y)) < 0.3, np.nan, rng.permutation(y) * 1.7)
    merged = regression(**settings)
    for part in np.array_split(rng.permutation(len(y)), 3):
        some = {name: each[part] for name, each in outputs.items()}
        one = whole.fresh()
        one.update(rows(some, wrong[part], weight[part]))
        one.retract(rows(some, wrong[part], weight[part]))
        one.label(rows(some, y[part], weight[part]))
        again = whole.fresh()
        again.load(one.to_bytes())
        merged.merge(again)
    assert merged.to_bytes() == whole.to_bytes()
    assert merged.figures() == whole.figures()


def test_many_classes_do_not_depend_on_order_partition_or_labels_that_were_superseded() -> None:
    rng = np.random.default_rng(4)
    scores, y = probabilities(rng, 300, 4)
    scores[5, 2], scores[6, 0] = np.nan, 1.5
    names = np.array(["a", "b", "c", "d", "unheard"], object)
    wrong = names[rng.integers(0, 5, 300)]
    whole = ClassScores(output="p", label="y", classes=tuple("abcd"))
    whole.update(rows({"p": scores}, names[y]))
    merged = whole.fresh()
    for part in np.array_split(rng.permutation(300), 4):
        one = whole.fresh()
        one.update(rows({"p": scores[part]}, wrong[part]))
        other = whole.fresh()
        other.retract(rows({"p": scores[part]}, wrong[part]))
        other.label(rows({"p": scores[part]}, names[y[part]]))
        one.merge(other)
        merged.merge(one)
    assert merged.to_bytes() == whole.to_bytes()
    assert whole.figures()["unusable"] == {"prediction": 2, "scores": 2, "label": 0}
    assert whole.figures()["predictions"] == 298


@pytest.mark.parametrize(
    "state", [regression(quantiles={"q": 0.5, "r": 0.9}), ClassScores(output="p", label="y", classes=(0, 1))]
)
@pytest.mark.parametrize(
    "columns",
    [
        Columns(np.zeros(0, np.int64)),
        Columns(np.zeros(3, np.int64), labels={"y": np.array([1.0, np.nan, np.inf])}),
        Columns(np.zeros(2, np.int64), outputs={"p": np.array(["a", None], object)}, labels={"y": np.array([1, 0])}),
        Columns(np.zeros(2, np.int64), outputs={"p": np.zeros((2, 0))}, labels={"y": np.array([1, 0])}),
        Columns(np.zeros(2, np.int64), outputs={"p": np.array([10**400, 1], object)}, labels={"y": np.array([1, 0])}),
        Columns(np.zeros(2, np.int64), outputs={"p": np.array([2**63 - 1, -(2**63)])}, labels={"y": np.array([1, 0])}),
        Columns(
            np.zeros(2, np.int64), outputs={"p": np.array([1e308, -1e308])}, labels={"y": np.array([-1e308, 1e308])}
        ),
    ],
)
def test_rows_of_any_kind_are_counted_and_nothing_raises(state: Any, columns: Columns) -> None:
    state = state.fresh()
    sane(state.figures())
    state.update(columns)
    sane(state.figures())
    before = state.to_bytes()
    state.label(columns)
    state.retract(columns)
    assert state.to_bytes() == before


@settings(max_examples=40, deadline=None)
@given(data=pairs, seed=st.integers(0, 99))
def test_a_state_from_which_labels_of_others_were_taken_out_still_answers(data: Any, seed: int) -> None:
    """1. Labels are taken out that another state has counted. Result: figures are finite or None, and `negative` or
    the sums say that something is missing; once merged with the other, nothing is.
    """
    p, y, _ = (np.array(each) for each in zip(*data, strict=True))
    rng = np.random.default_rng(seed)
    score, kind = rng.dirichlet((1, 1), len(p)), rng.integers(0, 2, len(p))
    label = {"y": y, "k": kind, "when": rng.integers(0, 10**15, len(p))}
    outputs = {"p": p, "s": score, "k": kind}
    columns = Columns(np.zeros(len(p), np.int64), {"f": p}, outputs, label)
    states = [
        regression(quantiles={"p": 0.5}),
        ClassScores(output="s", label="k", classes=(0, 1)),
        Scores(output="s", label="k"),
        Confusion(output="k", label="k", classes=(0, 1)),
        LabelFlow(label="y", arrival="when", buckets=4),
    ]
    some = rng.random(len(p)) < 0.5
    for state in [*states, Sliced(monitor=states[2], by="f", edges=(0.0,))]:
        other = state.fresh()
        other.update(columns)
        state.label(columns.take(some))
        state.retract(columns.take(~some))
        sane(state.figures())
        json.dumps(state.value(), allow_nan=False)
        other.merge(state)
        other.label(columns.take(~some))
        other.retract(columns.take(some))
        expected = state.fresh()
        expected.update(columns)
        assert other.to_bytes() == expected.to_bytes()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        regression(quantiles={"q": 1.0})
    with pytest.raises(ValueError, match="rising edges"):
        ClassScores(output="p", label="y", classes=(0, 1), edges=[0.5, 0.5])


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 3)), max_size=60),
    pieces=st.integers(1, 4),
)
def test_sums_are_exact_whatever_their_order(values: list[tuple[float, int]], pieces: int) -> None:
    numbers, cells = np.array([v for v, _ in values]), np.array([c for _, c in values], np.int64)
    found = exact.zeros(4)
    for part in np.array_split(np.random.default_rng(0).permutation(len(values)), pieces):
        found += exact.sums(numbers[part], cells[part], 4)
    expected = [sum((Fraction(v) for v, c in values if c == cell), Fraction(0)) for cell in range(4)]
    assert [Fraction(int(each), 2**exact.ALL_BITS) for each in found] == expected
    assert [exact.from_pair(*exact.to_pair(each)) for each in found.tolist()] == found.tolist()


@settings(max_examples=80, deadline=None)
@given(values=st.lists(st.floats(-1e130, 1e130).filter(lambda x: x == 0 or abs(x) > 1e-130), min_size=1, max_size=30))
def test_squares_are_exact(values: list[float]) -> None:
    high, low = exact.square(np.array(values))
    for each, product, rest in zip(values, high.tolist(), low.tolist(), strict=True):
        assert Fraction(product) + Fraction(rest) == Fraction(each) ** 2


def test_short_sums_of_probabilities_are_exact_to_the_last_bit_that_matters() -> None:
    rng = np.random.default_rng(0)
    p = np.concatenate((rng.random(3_000), rng.random(3_000) ** 40, [0.0, 1.0, 5e-324]))
    (found,) = exact.sums(p, bits=exact.SHORT_BITS)
    truth = sum(map(Fraction, p.tolist()))
    assert 0 <= truth - Fraction(found, 2**exact.SHORT_BITS) < Fraction(len(p), 2**exact.SHORT_BITS)
