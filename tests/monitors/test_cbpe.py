"""Performance without labels: the published numbers, its intervals, and its reckoning with labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from monitors.performance.cbpe import Calibration, estimate, reconcile
from monitors.performance.cbpe_classes import ClassCalibration, estimate_classes
from monitors.performance.figure import Figure
from monitors.performance.multiclass import ClassScores
from monitors.performance.scores import Scores, score_edges
from monitors.types import Columns
from tests.monitors.test_performance_scores import sane

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 5_000
# ROC-AUC of the ten chunks of 5,000 loans as the notebook of NannyML 0.13.1 prints it: realised, and its estimate.
REALISED = (0.970962, 0.970248, 0.976282, 0.967721, 0.969886, 0.960050, 0.958530, 0.959041, 0.963094, 0.957556)
NANNYML = (0.970744, 0.971011, 0.971407, 0.971091, 0.971123, 0.961090, 0.961825, 0.961073, 0.962533, 0.961316)

# What NannyML 0.13.1 itself estimates of the same chunks, with the decisions of the data set (score >= 0.65), and what
# it then finds with the labels: (estimated, realised) by figure.
DECIDED = {
    "accuracy": (
        (0.941792, 0.943321, 0.945492, 0.944816, 0.944645, 0.910714, 0.911149, 0.911193, 0.914389, 0.911731),
        (0.942200, 0.942200, 0.950200, 0.943600, 0.941000, 0.914600, 0.915600, 0.914400, 0.922400, 0.912200),
    ),
    "f1": (
        (0.943030, 0.941324, 0.943574, 0.943159, 0.944204, 0.911753, 0.911766, 0.911661, 0.913763, 0.914751),
        (0.943344, 0.940178, 0.948201, 0.942142, 0.940488, 0.913685, 0.914954, 0.913395, 0.920589, 0.913498),
    ),
    "precision": (
        (0.957786, 0.957956, 0.958275, 0.956998, 0.958208, 0.941318, 0.941868, 0.939413, 0.943347, 0.941133),
        (0.956660, 0.957016, 0.958368, 0.959866, 0.953764, 0.922449, 0.931473, 0.925379, 0.935524, 0.921304),
    ),
    "recall": (
        (0.928723, 0.925261, 0.929317, 0.929713, 0.930604, 0.883990, 0.883528, 0.885501, 0.885978, 0.889808),
        (0.930394, 0.923922, 0.938246, 0.925060, 0.927577, 0.905086, 0.899010, 0.901718, 0.906124, 0.905823),
    ),
    "specificity": (
        (0.955879, 0.960769, 0.961058, 0.959469, 0.958873, 0.939872, 0.941023, 0.938748, 0.944190, 0.936675),
        (0.954847, 0.959874, 0.961494, 0.961875, 0.954564, 0.924091, 0.932525, 0.927113, 0.938443, 0.918886),
    ),
}


def data(name: str) -> Any:
    folder = Path(os.environ.get("HEADGATE_TEST_DATA", ROOT.parent / "shared" / "data"))
    path = folder / f"{name}.parquet"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there: HEADGATE_TEST_DATA names the folder of the data sets")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path)
    return {column: table[column].to_numpy() for column in table.column_names}


def rows(scores: Any, labels: Any = None) -> Columns:
    scores = np.asarray(scores)
    known = {} if labels is None else {"y": np.asarray(labels)}
    return Columns(np.zeros(len(scores), np.int64), outputs={"p": scores}, labels=known)


def state_of(scores: Any, labels: Any = None, **settings: Any) -> Scores:
    state = Scores(**{"output": "p", "label": "y", **settings})
    state.update(rows(scores, labels))
    return state


@pytest.mark.parametrize("bins", [18, 57])
def test_auc_of_the_car_loans_is_estimated_as_well_as_nannyml_does_from_at_most_57_counters(bins: int) -> None:
    reference = data("nannyml_synthetic_car_loan_reference")
    live, truth = data("nannyml_synthetic_car_loan_analysis"), data("nannyml_synthetic_car_loan_analysis_target")
    assert (live["id"] == truth["id"]).all()
    edges = score_edges(reference["y_pred_proba"], bins=bins)
    learnt = Calibration.learn(state_of(reference["y_pred_proba"], reference["repaid"], edges=edges).by_class())
    estimated, inside = [], 0
    for start in range(0, len(live["id"]), CHUNK):
        chunk = slice(start, start + CHUNK)
        state = state_of(live["y_pred_proba"][chunk], edges=edges)
        assert state.bins <= 57
        found = estimate(state.predicted(), learnt, state.cut)
        sane(found)
        estimated.append(found["roc_auc"].value)
        labels = truth["repaid"][chunk]
        accuracy = metrics.accuracy_score(labels, live["y_pred_proba"][chunk] >= 0.5)
        inside += found["accuracy"].low <= accuracy <= found["accuracy"].high
        inside += found["roc_auc"].low <= REALISED[start // CHUNK] <= found["roc_auc"].high
    error = np.abs(np.subtract(estimated, REALISED)).mean()
    assert error <= 0.0021
    assert error <= np.abs(np.subtract(NANNYML, REALISED)).mean()
    assert inside >= 17  # of 20 intervals of 95 %


def test_decisions_on_the_car_loans_are_estimated_within_a_thousandth_of_nannymls() -> None:
    reference = data("nannyml_synthetic_car_loan_reference")
    live, truth = data("nannyml_synthetic_car_loan_analysis"), data("nannyml_synthetic_car_loan_analysis_target")
    how = {"edges": score_edges(reference["y_pred_proba"], threshold=0.65), "threshold": 0.65}
    learnt = Calibration.learn(state_of(reference["y_pred_proba"], reference["repaid"], **how).by_class())
    for place in range(10):
        chunk = slice(place * CHUNK, (place + 1) * CHUNK)
        state = state_of(live["y_pred_proba"][chunk], truth["repaid"][chunk], **how)
        guessed, found = estimate(state.predicted(), learnt, state.cut), state.figures()
        for name, (estimated, realised) in DECIDED.items():
            assert guessed[name].value == pytest.approx(estimated[place], abs=0.001), (name, place)
            assert found[name].value == pytest.approx(realised[place], abs=1e-6), (name, place)


def test_the_census_model_whose_labels_still_mean_the_same_is_estimated_and_raises_no_doubt() -> None:
    """Ten chunks of 20,000 people of 2016 to 2018, the model and its calibration of 2015: a test of false alarms."""
    reference, live = data("nannyml_employment_MA_reference"), data("nannyml_employment_MA_analysis")
    truth = data("nannyml_employment_MA_analysis_target")
    name, size = "predicted_probability", 20_000
    edges = score_edges(reference[name])
    learnt = Calibration.learn(state_of(reference[name], reference["employed"], edges=edges).by_class())
    for start in range(0, 10 * size, size):
        chunk = slice(start, start + size)
        found = reconcile(state_of(live[name][chunk], truth["employed"][chunk], edges=edges), learnt)["labelled"]
        for figure in ("accuracy", "roc_auc", "f1"):
            assert abs(found[figure].z) < 4, (start, figure)
            assert abs(found[figure].difference) < 0.01, (start, figure)


def simulated(seed: int, n: int, shift: float = 0.0, steep: float = 1.0) -> tuple[Any, Any]:
    """A miscalibrated model: scores, and labels whose odds are their square; `steep` changes what scores mean."""
    rng = np.random.default_rng(seed)
    z = rng.normal(shift, 1.5, n)
    return 1 / (1 + np.exp(-z)), (rng.random(n) < 1 / (1 + np.exp(-2 * steep * z))).astype(int)


def test_a_shift_of_the_inputs_is_followed_for_every_figure() -> None:
    edges = score_edges(simulated(0, 50_000)[0])
    learnt = Calibration.learn(state_of(*simulated(0, 50_000), edges=edges).by_class())
    for shift in (-1.0, 0.0, 1.5):
        scores, labels = simulated(1, 200_000, shift)
        guessed = estimate(state_of(scores, edges=edges).predicted(), learnt, state_of([], edges=edges).cut)
        truth = state_of(scores, labels, edges=edges).figures()
        for name in ("accuracy", "precision", "recall", "f1", "specificity", "roc_auc", "average_precision", "mcc"):
            assert guessed[name].value == pytest.approx(truth[name].value, abs=0.012), (shift, name)


def test_intervals_hold_what_the_labels_will_say_about_as_often_as_they_promise() -> None:
    """Two hundred pairs of a baseline of 2,000 rows and 1,000 live rows from a shifted population."""
    edges = score_edges(simulated(0, 50_000)[0], bins=30)
    names = ("accuracy", "precision", "recall", "f1", "roc_auc", "positive_rate")
    held = dict.fromkeys(names, 0)
    for seed in range(200):
        learnt = Calibration.learn(state_of(*simulated(1000 + seed, 2_000), edges=edges).by_class())
        state = state_of(*simulated(5000 + seed, 1_000, 0.5), edges=edges)
        guessed, truth = estimate(state.predicted(), learnt, state.cut), state.figures()
        for name in names:
            held[name] += guessed[name].low <= truth[name].value <= guessed[name].high
    for name, count in held.items():
        assert 0.88 <= count / 200 <= 1.0, (name, count)


def test_labels_show_that_scores_mean_something_else_now_while_the_estimate_cannot() -> None:
    edges = score_edges(simulated(0, 50_000)[0])
    learnt = Calibration.learn(state_of(*simulated(0, 20_000), edges=edges).by_class())
    same = reconcile(state_of(*simulated(7, 5_000, 0.7), edges=edges), learnt)
    sane({name: each for name, each in same.items() if name != "labelled"})
    assert same["coverage"].value == 1.0
    assert abs(same["surplus_z"]) < 4
    assert all([abs(each.z) < 4 for each in same["labelled"].values()])
    changed = reconcile(state_of(*simulated(8, 5_000, 0.7, steep=0.3), edges=edges), learnt)
    assert changed["labelled"]["accuracy"].z < -6
    assert changed["labelled"]["roc_auc"].z < -6
    assert changed["labelled"]["accuracy"].difference < -0.05


def test_labels_that_are_known_replace_the_guess_for_their_rows() -> None:
    edges = score_edges(simulated(0, 50_000)[0])
    learnt = Calibration.learn(state_of(*simulated(0, 20_000), edges=edges).by_class())
    scores, labels = simulated(9, 8_000, steep=0.3)
    truth = state_of(scores, labels, edges=edges).figures()["accuracy"].value
    errors, widths = [], []
    for share in (0.0, 0.5, 1.0):
        state = state_of(scores, edges=edges)
        some = slice(0, int(share * len(scores)))
        state.label(rows(scores[some], labels[some]))
        found = reconcile(state, learnt)
        assert found["coverage"].value == pytest.approx(share)
        errors.append(abs(found["combined"]["accuracy"].value - truth))
        widths.append(found["combined"]["accuracy"].high - found["combined"]["accuracy"].low)
    assert errors[0] > errors[1] > errors[2] == pytest.approx(0, abs=1e-12)
    assert widths[0] > widths[1] > widths[2] == pytest.approx(0, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.tuples(*[st.integers(0, 4)] * 4), min_size=3, max_size=3),
    reference=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=3),
)
def test_an_estimate_of_any_counts_is_finite_or_none(counts: Any, reference: Any) -> None:
    by_class = np.array(reference).T
    if not by_class.any():
        with pytest.raises(ValueError, match="labelled rows"):
            Calibration.learn(by_class)
        return
    learnt = Calibration.learn(by_class)
    mass = np.array(counts)
    for cut in range(4):
        found = estimate(mass.sum(axis=1), learnt, cut, mass[:, :2].T)
        sane(found)
        for each in found.values():
            assert not isinstance(each, Figure) or each.value is None or -1 <= each.value <= 1


def test_reconciling_with_another_models_calibration_is_refused() -> None:
    learnt = Calibration.learn(np.ones((2, 5)))
    with pytest.raises(ValueError, match="5 bins"):
        reconcile(state_of([0.1]), learnt)
    empty = state_of([], edges=(0.2, 0.4, 0.5, 0.9))
    found = reconcile(empty, learnt)
    assert found["surplus_z"] is None
    assert found["combined"]["accuracy"].value is None


def test_many_classes_are_estimated_without_labels() -> None:
    rng = np.random.default_rng(3)

    def sample(n: int, weights: tuple[float, ...]) -> tuple[Any, Any]:
        scores = rng.dirichlet(weights, n)
        sharper = scores**1.7
        sharper /= sharper.sum(axis=1, keepdims=True)
        labels = (rng.random(n)[:, np.newaxis] > sharper.cumsum(axis=1)).sum(axis=1)
        return scores, np.minimum(labels, 2)

    def state(scores: Any, labels: Any = None) -> ClassScores:
        found = ClassScores(output="p", label="y", classes=(0, 1, 2), edges=score_edges(bins=40))
        found.update(rows(scores, labels))
        return found

    learnt = ClassCalibration.learn(state(*sample(60_000, (1, 1, 1))))
    scores, labels = sample(60_000, (2.0, 0.7, 0.5))
    guessed, truth = estimate_classes(state(scores), learnt), state(scores, labels).figures()
    sane(guessed)
    assert guessed["accuracy"].value == pytest.approx(truth["accuracy"].value, abs=0.01)
    for name in (0, 1, 2):
        for each in ("precision", "recall", "f1", "roc_auc"):
            assert guessed["classes"][name][each].value == pytest.approx(truth["classes"][name][each].value, abs=0.03)
    nothing = estimate_classes(state(np.zeros((0, 3))), learnt)
    sane(nothing)
    assert nothing["accuracy"].value is None
    with pytest.raises(ValueError, match="labelled rows"):
        ClassCalibration.learn(state(scores))
    partial = ClassCalibration((None, *learnt.of_class[1:]), (None, *learnt.of_prediction[1:]))
    found = estimate_classes(state(scores), partial)
    assert found["uncalibrated"] == (scores.argmax(axis=1) == 0).sum()
    assert found["classes"][0]["roc_auc"].value is None
