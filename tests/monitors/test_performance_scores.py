"""Labelled performance of classifiers, held to scikit-learn on random and adversarial rows."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn import metrics

from monitors.performance.calibration import isotonic
from monitors.performance.confusion import Confusion
from monitors.performance.figure import Figure, plain
from monitors.performance.scores import Scores, score_edges
from monitors.types import Columns


def rows(scores: Any, labels: Any, known: Any = None, weight: Any = None) -> Columns:
    """Predictions `p` with labels `y`, of which `known` are there."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    known = np.ones(len(labels), bool) if known is None else np.asarray(known)
    features = {} if weight is None else {"w": np.asarray(weight)}
    return Columns(np.zeros(len(scores), np.int64), features, {"p": scores}, {"y": labels}, {"y": known})


def monitor(**settings: Any) -> Scores:
    return Scores(**{"output": "p", "label": "y", **settings})


grid = st.integers(0, 64).map(lambda k: k / 64)
unit = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 1e-300, 1 - 1e-16, 5e-324]), st.floats(0, 1), grid)


@st.composite
def judged(draw: Any, score: st.SearchStrategy[float] = unit) -> tuple[Any, Any, Any]:
    n = draw(st.integers(1, 60))
    scores = np.array(draw(st.lists(score, min_size=n, max_size=n)))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    weight = np.array(draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 1e-9, 1e9]), min_size=n, max_size=n)))
    return scores, labels, weight


def close(figure: Figure, expected: float, slack: float = 0.0) -> None:
    assert figure.value == pytest.approx(expected, rel=1e-9, abs=1e-9 + slack)


def sane(value: Any) -> None:
    """No NaN anywhere, and every interval holds its value."""
    if isinstance(value, dict):
        for each in value.values():
            sane(each)
    elif isinstance(value, Figure):
        assert value.n >= 0
        assert math.isfinite(value.error)
        if value.value is None:
            assert value.low is value.high is None
        else:
            assert math.isfinite(value.value)
            if value.low is not None:
                assert value.high is not None
                assert value.low - 1e-9 <= value.value <= value.high + 1e-9
    elif isinstance(value, list):
        for each in value:
            sane(each)
    elif isinstance(value, float):
        assert math.isfinite(value)
    else:
        assert value is None or isinstance(value, int | str)


def decision_oracles(y: Any, guess: Any, weight: Any) -> dict[str, float | None]:
    """What scikit-learn says of decisions; None where it would warn that a figure is not defined."""
    some = weight > 0
    y_, guess_ = y[some], guess[some]
    args = {"sample_weight": weight}
    both = {**args, "zero_division": np.nan}
    found = {
        "accuracy": metrics.accuracy_score(y, guess, **args) if some.any() else None,
        "precision": metrics.precision_score(y, guess, **both) if (guess_ == 1).any() else None,
        "recall": metrics.recall_score(y, guess, **both) if (y_ == 1).any() else None,
        "specificity": metrics.recall_score(y, guess, pos_label=0, **both) if (y_ == 0).any() else None,
        "f1": metrics.f1_score(y, guess, **both) if ((y_ == 1) | (guess_ == 1)).any() else None,
    }
    varied = len(set(y_)) > 1 and len(set(guess_)) > 1
    return {**found, "mcc": metrics.matthews_corrcoef(y, guess, **args) if varied else None}


@settings(max_examples=60, deadline=None)
@given(data=judged(), weighted=st.booleans(), threshold=st.sampled_from([0.5, 0.1, 1.0, 1e-300]))
@example(data=(np.array([0.5]), np.array([1]), np.array([0.0])), weighted=True, threshold=0.5)
def test_decisions_and_losses_equal_scikit_learns(data: Any, weighted: bool, threshold: float) -> None:
    p, y, weight = data
    w = weight if weighted else np.ones(len(p))
    state = monitor(weight="w" if weighted else None, threshold=threshold)
    state.update(rows(p, y, weight=weight))
    found = state.figures()
    sane(found)
    for name, expected in decision_oracles(y, (p >= threshold).astype(int), w).items():
        if expected is None:
            assert found[name].value is None, name
        elif name != "mcc" or w.max() / w[w > 0].min() < 1e6:  # scikit-learn's form cancels beyond
            close(found[name], expected, slack=1e-6 if name == "mcc" else 0)
    if w.sum() > 0:
        held = np.clip(p, np.finfo(float).eps, 1 - np.finfo(float).eps)
        close(found["log_loss"], metrics.log_loss(y, held, sample_weight=w, labels=[0, 1]))
        close(found["brier"], metrics.brier_score_loss(y, p, sample_weight=w, labels=[0, 1], pos_label=1))
    else:
        assert found["log_loss"].value is found["brier"].value is found["ece"].value is None
    assert found["accuracy"].n == len(p)


@settings(max_examples=60, deadline=None)
@given(data=judged(), weighted=st.booleans())
@example(data=(np.array([0.2, 0.2, 0.2]), np.array([0, 1, 0]), np.ones(3)), weighted=False)
def test_ranking_is_within_its_error_of_scikit_learns(data: Any, weighted: bool) -> None:
    p, y, weight = data
    w = weight if weighted else np.ones(len(p))
    state = monitor(weight="w" if weighted else None)
    state.update(rows(p, y, weight=weight))
    found = state.figures()
    positive, negative = w[y == 1].sum() > 0, w[y == 0].sum() > 0
    if positive and negative:
        auc = metrics.roc_auc_score(y, p, sample_weight=w)
        assert abs(found["roc_auc"].value - auc) <= found["roc_auc"].error + 1e-9
    else:
        assert found["roc_auc"].value is None
    if positive:
        precision = metrics.average_precision_score(y, p, sample_weight=w)
        assert abs(found["average_precision"].value - precision) <= found["average_precision"].error + 1e-9
    else:
        assert found["average_precision"].value is None


@settings(max_examples=40, deadline=None)
@given(data=judged(score=grid))
def test_ranking_of_scores_on_the_grid_of_bins_is_exactly_scikit_learns(data: Any) -> None:
    p, y, _ = data
    state = monitor(edges=[k / 64 for k in range(65)])
    state.update(rows(p, y))
    found = state.figures()
    if 0 < y.sum() < len(y):
        close(found["roc_auc"], metrics.roc_auc_score(y, p))
    if y.any():
        close(found["average_precision"], metrics.average_precision_score(y, p))


def test_calibration_error_is_that_of_the_bins() -> None:
    rng = np.random.default_rng(3)
    p = rng.beta(0.7, 1.3, 20_000)
    y = (rng.random(len(p)) < p**1.5).astype(int)
    state = monitor(edges=np.arange(1, 20) / 20, threshold=0.5)
    state.update(rows(p, y))
    place = np.minimum((p * 20).astype(int), 19)
    expected = sum(abs(y[place == b].sum() - p[place == b].sum()) for b in range(20)) / len(p)
    found = state.figures()
    close(found["ece"], expected)
    # A calibrated model's error is what chance alone gives it; this one's is far above.
    calm = monitor(edges=np.arange(1, 20) / 20)
    calm.update(rows(p, (rng.random(len(p)) < p).astype(int)))
    by_chance = calm.figures()["ece_by_chance"].value
    assert calm.figures()["ece"].value == pytest.approx(by_chance, rel=0.5)
    assert expected > 5 * by_chance


@settings(max_examples=30, deadline=None)
@given(data=judged(), seed=st.integers(0, 99), pieces=st.integers(1, 5), weighted=st.booleans())
def test_any_order_partition_and_merge_gives_the_same_bytes(data: Any, seed: int, pieces: int, weighted: bool) -> None:
    p, y, weight = data
    name = "w" if weighted else None
    known = np.random.default_rng(seed).random(len(p)) < 0.7
    whole = monitor(weight=name)
    whole.update(rows(p, y, known, weight))
    order = np.random.default_rng(seed).permutation(len(p))
    merged = monitor(weight=name)
    for part in np.array_split(order, pieces):
        one = whole.fresh()
        one.update(rows(p[part], y[part], known[part], weight[part]))
        again = whole.fresh()
        again.load(one.to_bytes())
        merged.merge(again)
    assert merged.to_bytes() == whole.to_bytes()
    assert merged.figures() == whole.figures()


@settings(max_examples=30, deadline=None)
@given(data=judged(), seed=st.integers(0, 99), weighted=st.booleans())
def test_late_and_superseded_labels_leave_the_state_of_the_last_labels(data: Any, seed: int, weighted: bool) -> None:
    """1. Predictions are counted without labels. 2. Wrong labels come, in two processes. 3. They are superseded.
    Result: bit for bit the state of the right labels, wherever the wrong ones were taken out.
    """
    p, y, weight = data
    name = "w" if weighted else None
    rng = np.random.default_rng(seed)
    wrong = np.where(rng.random(len(y)) < 0.5, 1 - y, y).astype(object)
    wrong[rng.random(len(y)) < 0.1] = None
    nobody = np.zeros(len(p), bool)
    here, there = monitor(weight=name), monitor(weight=name)
    here.update(rows(p, y, nobody, weight))
    here.label(rows(p, wrong, weight=weight))
    there.retract(rows(p, wrong, weight=weight))
    assert there.negative() == len(p)
    sane(there.figures())
    there.label(rows(p, y, weight=weight))
    here.merge(there)
    expected = monitor(weight=name)
    expected.update(rows(p, y, weight=weight))
    assert here.to_bytes() == expected.to_bytes()
    assert here.negative() == 0


def test_what_cannot_be_used_is_counted_by_what_it_lacks() -> None:
    scores = [0.2, np.nan, np.inf, -0.1, 1.1, 0.7, 0.8, -0.0]
    labels = [1, 1, 0, 1, 0, 2, np.nan, 0]
    state = monitor()
    state.update(rows(scores, labels))
    found = state.figures()
    assert found["unusable"] == {"prediction": 4, "score": 4, "label": 2, "weight": 0}
    assert found["accuracy"].n == 2
    assert found["score_mean"].n == 4
    weighted = monitor(weight="w")
    weighted.update(rows([0.2, 0.4, 0.6], [1, 0, 1], weight=[np.nan, -1.0, 2.0]))
    assert weighted.figures()["unusable"] == {"prediction": 2, "score": 0, "label": 0, "weight": 2}
    assert weighted.figures()["accuracy"].value == 1.0


@pytest.mark.parametrize(
    "columns",
    [
        Columns(np.zeros(0, np.int64)),
        Columns(np.zeros(0, np.int64), outputs={"p": np.zeros((0, 2))}, labels={"y": np.zeros(0)}),
        Columns(np.zeros(3, np.int64)),
        Columns(np.zeros(3, np.int64), outputs={"p": np.array(["a", None, 3], object)}),
        Columns(np.zeros(2, np.int64), outputs={"p": np.zeros((2, 3))}, labels={"y": np.array([1, 0])}),
        Columns(np.zeros(2, np.int64), outputs={"p": np.array([2**63 - 1, -(2**63)])}, labels={"y": np.array([1, 0])}),
        Columns(
            np.zeros(2, np.int64), outputs={"p": np.array([0.1, 0.2])}, labels={"y": np.array([{}, 10**400], object)}
        ),
    ],
)
@pytest.mark.parametrize("weight", [None, "w"])
def test_rows_of_any_kind_are_counted_and_nothing_raises(columns: Columns, weight: str | None) -> None:
    for state in (monitor(weight=weight), Confusion(output="p", label="y", classes=(0, 1, 2), weight=weight)):
        state.update(columns)
        state.retract(columns)
        sane(state.figures())


def test_labels_of_another_type_than_the_classes_are_of_no_class() -> None:
    state = Confusion(output="p", label="y", classes=("0", "1"))
    state.update(rows([0, 1], [0, 1]))
    assert state.figures()["unusable"] == {"prediction": 2, "label": 0, "weight": 0}
    assert plain(state.figures())["predicted"] == {"0": 0, "1": 0, "None": 2}


def test_figures_are_plain_mappings_for_json() -> None:
    state = monitor()
    state.update(rows([0.2, 0.9, 0.6], [0, 1, 0]))
    found = json.loads(json.dumps(state.value(), allow_nan=False))
    assert found["accuracy"]["value"] == 2 / 3
    assert set(found["accuracy"]) == {"value", "n", "low", "high", "error"}
    assert found == state.value()


def test_an_empty_state_knows_nothing_and_says_so() -> None:
    found = monitor().figures()
    sane(found)
    figures = {name: each for name, each in found.items() if isinstance(each, Figure)}
    assert {each.value for each in figures.values()} == {None}
    assert {each.n for each in figures.values()} == {0}


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="rising edges"):
        monitor(edges=[0.2, 0.1, 0.5])
    with pytest.raises(ValueError, match="threshold 0.5"):
        monitor(edges=[0.2, 0.4])
    with pytest.raises(ValueError, match="both 1"):
        monitor(negative=1)
    with pytest.raises(ValueError, match="at least two"):
        Confusion(output="p", label="y", classes=(1, 1))
    with pytest.raises(ValueError, match="strings, numbers"):
        Confusion(output="p", label="y", classes=(1, None))


def test_a_state_of_another_monitor_or_cut_short_is_refused() -> None:
    state = monitor()
    state.update(rows([0.2, 0.9], [0, 1]))
    data = state.to_bytes()
    other = monitor(threshold=0.25)
    kind, settings, counts, sums = msgspec.msgpack.decode(data)
    extra = msgspec.msgpack.encode((kind, settings, counts | {"extra": ((1,), b"")}, sums))
    short = msgspec.msgpack.encode((kind, settings, counts | {"unusable": ((4,), b"\x00" * 31)}, sums))
    for wrong in (other.to_bytes(), b"", data[:-1], b"\x94\x01\x02\x03\x04", extra, short):
        with pytest.raises(ValueError, match="state"):
            state.load(wrong)
    with pytest.raises(ValueError, match="cannot be merged"):
        state.merge(other)
    assert state.to_bytes() == data


def test_edges_follow_the_baseline_and_stay_few() -> None:
    rng = np.random.default_rng(0)
    odd = np.array([np.nan, np.inf, -1.0, 0.2, 0.8])
    for scores in (rng.beta(0.1, 0.1, 10_000), np.full(50, 0.3), np.zeros(10), odd, odd[:3], None):
        for bins in (12, 57):
            edges = score_edges(scores, bins=bins, threshold=0.37)
            assert 0.37 in edges
            assert len(edges) < bins
            assert list(edges) == sorted(set(edges))
            assert np.isfinite(edges).all()
    assert len(score_edges(odd)) > 20
    with pytest.raises(ValueError, match="at least 12"):
        score_edges(bins=11)
    mass = np.histogram(values := rng.beta(0.1, 0.1, 10_000), [-1, *score_edges(values), 2])[0] / 10_000
    assert mass.max() < 0.2


@settings(max_examples=40, deadline=None)
@given(bins=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_isotonic_rates_equal_scikit_learns(bins: list[tuple[int, int]]) -> None:
    from sklearn.isotonic import IsotonicRegression

    positives, negatives = (np.array(each, float) for each in zip(*bins, strict=True))
    mass = positives + negatives
    found = isotonic(positives, mass)
    if not mass.any():
        assert np.isnan(found).all()
        return
    some = mass > 0
    oracle = IsotonicRegression(out_of_bounds="clip").fit(
        np.flatnonzero(some), positives[some] / mass[some], mass[some]
    )
    np.testing.assert_allclose(found, oracle.predict(np.arange(len(mass))), atol=1e-12)


classes = st.sampled_from(["cat", "dog", "eel"])


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(classes, classes, st.sampled_from([0.0, 0.5, 2.0])), min_size=1, max_size=40),
    weighted=st.booleans(),
)
def test_figures_of_many_classes_equal_scikit_learns(pairs: list[tuple[str, str, float]], weighted: bool) -> None:
    guess, truth, weight = (np.array(each) for each in zip(*pairs, strict=True))
    w = weight if weighted else np.ones(len(guess))
    state = Confusion(output="p", label="y", classes=("cat", "dog", "eel"), weight="w" if weighted else None)
    state.update(rows(guess.astype(object), truth.astype(object), weight=weight))
    found = state.figures()
    sane(found)
    if w.sum() == 0:
        assert found["accuracy"].value is None
        return
    close(found["accuracy"], metrics.accuracy_score(truth, guess, sample_weight=w))
    np.testing.assert_allclose(
        state.matrix(), metrics.confusion_matrix(truth, guess, sample_weight=w, labels=["cat", "dog", "eel"])
    )
    seen = set(truth[w > 0]) | set(guess[w > 0])
    for name in ("cat", "dog", "eel"):
        args = {"labels": [name], "average": None, "sample_weight": w, "zero_division": np.nan}
        for figure, score in (
            ("precision", metrics.precision_score),
            ("recall", metrics.recall_score),
            ("f1", metrics.f1_score),
        ):
            expected = score(truth, guess, **args)[0]
            value = found["classes"][name][figure].value
            assert (value is None and (np.isnan(expected) or name not in seen)) or value == pytest.approx(expected)
    if set(truth[w > 0]) == {"cat", "dog", "eel"} == set(guess[w > 0]):
        for figure, score in (
            ("precision", metrics.precision_score),
            ("recall", metrics.recall_score),
            ("f1", metrics.f1_score),
        ):
            for average in ("macro", "weighted"):
                close(found[f"{figure}_{average}"], score(truth, guess, average=average, sample_weight=w))
        close(found["mcc"], metrics.matthews_corrcoef(truth, guess, sample_weight=w), slack=1e-7)


def test_the_largest_of_several_scores_is_the_prediction() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [np.nan, 0.2, 0.3], [0.2, 0.2, 0.6]])
    state = Confusion(output="p", label="y", classes=(10, 20, 30))
    state.update(rows(scores, [20, 30, 10, 7]))
    found = state.figures()
    assert state.matrix().tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert found["predicted"] == {10: 1, 20: 1, 30: 1, None: 1}
    assert found["unusable"] == {"prediction": 1, "label": 1, "weight": 0}


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """400 samples of 300 rows of a model whose true figures are known from a sample of a million."""
    rng = np.random.default_rng(11)

    def sample(n: int) -> tuple[Any, Any]:
        z = rng.normal(0, 1.2, n)
        p = 1 / (1 + np.exp(-z))
        return p, (rng.random(n) < p).astype(int)

    p, y = sample(1_000_000)
    truth = monitor()
    truth.update(rows(p, y))
    names = ("accuracy", "precision", "recall", "f1", "roc_auc", "log_loss", "brier")
    expected = {name: truth.figures()[name].value for name in names}
    held = dict.fromkeys(names, 0)
    for _ in range(400):
        state = monitor()
        state.update(rows(*sample(300)))
        found = state.figures()
        for name in names:
            held[name] += found[name].low <= expected[name] <= found[name].high
    for name, count in held.items():
        assert 0.91 <= count / 400 <= 0.99, name
