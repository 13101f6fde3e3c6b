"""The error of a regression before its labels come, beside gradient boosting of scikit-learn and the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingRegressor

from monitors.performance.dle import DirectLoss, loss_edges, reconcile_loss
from monitors.performance.loss_model import LossModel
from monitors.types import Columns
from tests.monitors.test_performance_scores import sane


def population(seed: int, n: int, *, shift: float = 0.0, kind: str = "a", noise: float = 1.0) -> tuple[Any, Any, Any]:
    """Inputs, predictions and labels of a model whose error grows with x where u is positive, and in category b."""
    rng = np.random.default_rng(seed)
    x, u = rng.normal(shift, 1, n), rng.normal(0, 1, n)
    letter = np.where(rng.random(n) < (0.2 if kind == "a" else 0.7), "b", "a").astype(object)
    scale = 0.3 + np.exp(0.6 * x) * (u > 0) + 1.5 * (letter == "b")
    predicted = 3 * x + u
    return {"x": x, "u": u, "letter": letter}, predicted, predicted + noise * rng.normal(0, scale)


def columns(inputs: Any, predicted: Any, labels: Any = None) -> Columns:
    known = {} if labels is None else {"y": labels}
    return Columns(np.zeros(len(predicted), np.int64), inputs, {"p": predicted}, known)


def baseline(seed: int = 0, n: int = 20_000) -> tuple[LossModel, DirectLoss]:
    """The loss is modelled on one half of the baseline and calibrated on the other."""
    inputs, predicted, labels = population(seed, n)
    first = {name: each[: n // 2] for name, each in inputs.items()}
    model = LossModel.fit(
        columns(first, predicted[: n // 2]), np.abs(labels - predicted)[: n // 2], outputs=["p"], trees=40
    )
    second = {name: each[n // 2 :] for name, each in inputs.items()}
    rows = columns(second, predicted[n // 2 :], labels[n // 2 :])
    state = DirectLoss(output="p", label="y", model=model.to_bytes(), edges=loss_edges(model, rows))
    state.update(rows)
    return model, state


@pytest.fixture(scope="module")
def learnt() -> tuple[LossModel, DirectLoss]:
    return baseline()


def test_errors_are_foreseen_where_the_inputs_move_about_as_well_as_by_gradient_boosting(
    learnt: tuple[LossModel, DirectLoss],
) -> None:
    """1. Inputs move in four ways, which changes the mean error by up to two thirds. 2. It is estimated without labels.
    Result: the estimate misses by less than a quarter of the change, in sum by no more than 1.5 times as much as
    gradient boosting on the raw columns does, which needs all rows.
    """

    def matrix(given: Any, p: Any) -> Any:
        return np.column_stack((given["x"], given["u"], given["letter"] == "b", p))

    old_inputs, old_predicted, old_labels = population(0, 20_000)
    boosted = HistGradientBoostingRegressor(max_iter=50, random_state=0)
    boosted.fit(matrix(old_inputs, old_predicted), np.abs(old_labels - old_predicted))
    calibration, before = learnt[1].learn(), learnt[1].figures()["mae"].value
    changes: list[Any] = [{}, {"shift": 1.0}, {"kind": "b"}, {"shift": -0.7, "kind": "b"}]
    ours, theirs = [], []
    for change in changes:
        inputs, predicted, labels = population(1, 20_000, **change)
        state = learnt[1].fresh()
        state.update(columns(inputs, predicted))
        guessed = calibration.estimate(state.counts["rows"], state.expected())
        sane(guessed)
        truth = np.abs(labels - predicted).mean()
        ours.append(abs(guessed["mae"].value - truth))
        theirs.append(abs(boosted.predict(matrix(inputs, predicted)).mean() - truth))
        if change:
            assert ours[-1] < 0.25 * abs(truth - before)
            assert abs(truth - before) > 0.35
        assert guessed["rmse"].value == pytest.approx(np.sqrt(np.square(labels - predicted).mean()), rel=0.12)
    assert sum(ours) <= 1.5 * sum(theirs)


def test_intervals_hold_the_error_that_labels_will_show(learnt: tuple[LossModel, DirectLoss]) -> None:
    calibration, held = learnt[1].learn(), 0
    for seed in range(100):
        inputs, predicted, labels = population(100 + seed, 500)
        state = learnt[1].fresh()
        state.update(columns(inputs, predicted))
        found = calibration.estimate(state.counts["rows"], state.expected())["mae"]
        held += found.low <= np.abs(labels - predicted).mean() <= found.high
    assert held >= 88


def test_labels_show_that_errors_have_grown_while_the_estimate_cannot(learnt: tuple[LossModel, DirectLoss]) -> None:
    calibration = learnt[1].learn()
    for noise, expected in ((1.0, False), (1.5, True)):
        inputs, predicted, labels = population(5, 4_000, noise=noise)
        state = learnt[1].fresh()
        state.update(columns(inputs, predicted))
        half = {name: each[:2_000] for name, each in inputs.items()}
        state.label(columns(half, predicted[:2_000], labels[:2_000]))
        found = reconcile_loss(state, calibration)
        assert (found["mae"]["z"] > 6) is expected
        assert found["coverage"].value == 0.5
        guessed = calibration.estimate(state.counts["rows"], state.expected())["mae"].value
        between = sorted((guessed, np.abs(labels - predicted).mean()))
        assert between[0] - 0.06 <= found["combined"].value <= between[1] + 0.06
    nothing = reconcile_loss(learnt[1].fresh(), calibration)
    assert nothing["mae"]["z"] is nothing["combined"].value is None


def test_a_state_does_not_depend_on_order_partition_or_labels_that_were_superseded(
    learnt: tuple[LossModel, DirectLoss],
) -> None:
    inputs, predicted, labels = population(6, 700)
    predicted[3], labels[5] = np.nan, np.inf
    whole, merged = learnt[1].fresh(), learnt[1].fresh()
    whole.update(columns(inputs, predicted, labels))
    rng = np.random.default_rng(0)
    for part in np.array_split(rng.permutation(700), 4):
        some = {name: each[part] for name, each in inputs.items()}
        one = whole.fresh()
        one.update(columns(some, predicted[part], labels[part] * 3))
        one.retract(columns(some, predicted[part], labels[part] * 3))
        one.label(columns(some, predicted[part], labels[part]))
        again = whole.fresh()
        again.load(one.to_bytes())
        merged.merge(again)
    assert merged.to_bytes() == whole.to_bytes()
    assert whole.figures()["unusable"] == {"prediction": 1, "labelled": 2}


def test_a_model_survives_saving_and_refuses_what_it_is_not(learnt: tuple[LossModel, DirectLoss]) -> None:
    model = learnt[0]
    assert LossModel.from_bytes(model.to_bytes()) == model
    rows = columns(*population(3, 50)[:2])
    assert (LossModel.from_bytes(model.to_bytes()).predict(rows) == model.predict(rows)).all()
    for wrong in (b"", b"\x80", model.to_bytes()[:-3]):
        with pytest.raises(ValueError, match="not a saved model"):
            LossModel.from_bytes(wrong)
    tree = model.trees[0]
    for columns_, values in (((99, 0, 0), tree.values), (tree.columns, tree.values[:3])):
        broken = LossModel(model.columns, 0.0, (type(tree)(columns_, tree.cuts, values),))
        with pytest.raises(ValueError, match="a tree"):
            LossModel.from_bytes(broken.to_bytes())
    with pytest.raises(ValueError, match="at least one row"):
        LossModel.fit(columns({}, np.zeros(0)), np.zeros(0))
    with pytest.raises(ValueError, match="labelled rows"):
        learnt[1].fresh().learn()
    with pytest.raises(ValueError, match="rising edges"):
        DirectLoss(output="p", label="y", model=model.to_bytes(), edges=(1.0, 1.0))


odd = st.one_of(
    st.none(),
    st.text(max_size=2),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    st.sampled_from(["a", "b"]),
)


@settings(max_examples=40, deadline=None)
@given(values=st.lists(odd, min_size=1, max_size=20), other=st.lists(odd, min_size=1, max_size=20))
def test_columns_of_any_kind_are_learnt_from_and_predicted_for(values: list[Any], other: list[Any]) -> None:
    def column(given: list[Any]) -> Columns:
        array = np.empty(len(given), object)
        array[:] = given
        return Columns(np.zeros(len(given), np.int64), {"f": array}, {"p": np.zeros((len(given), 1))})

    model = LossModel.fit(column(values), np.arange(len(values), dtype=float), outputs=["p"], trees=3, least=1)
    for rows in (column(values), column(other), Columns(np.zeros(2, np.int64))):
        assert np.isfinite(model.predict(rows)).all()
    assert len(model.predict(column([]))) == 0


def test_without_columns_the_expected_loss_is_the_mean() -> None:
    rows = Columns(np.zeros(4, np.int64))
    model = LossModel.fit(rows, np.array([1.0, 2.0, 3.0, 6.0]))
    assert model.predict(rows).tolist() == [3.0] * 4
    assert loss_edges(model, rows) == (3.0,)
    assert loss_edges(model, Columns(np.zeros(0, np.int64))) == ()
