"""What alarms are worth: on hand-made lists, and on a published stream whose changes are known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from monitors.streams import ADWIN, CUSUM
from monitors.streams.evaluate import Evaluation, always, evaluate, never
from tests.monitors.test_cbpe import data


def test_the_documented_examples_give_the_documented_numbers() -> None:
    # From the documentation of river's evaluation of drift.
    one = evaluate([110, 900], [100], length=1000, patience=50)
    assert (one.precision, one.false_alarms, one.false_alarm_rate, one.delay) == (0.5, 1, 0.001, 10.0)
    assert evaluate([110, 130], [100, 500], length=1000, patience=50).recall == 0.5
    assert evaluate([110, 530], [100, 500, 900], length=1000, patience=50).delay == 20.0
    assert evaluate([200, 300, 500], [], length=1000, patience=50).time_between_false == 150.0
    assert evaluate([110, 400, 700], [100, 900], length=1000, patience=50).ratio == 15.0


def test_an_alarm_counts_for_the_earliest_change_it_can_and_at_both_ends() -> None:
    found = evaluate([100, 150, 151, 160], [100, 130], length=200, patience=50)
    assert (found.false_alarms, found.recall, found.delay) == (0, 1.0, (0 + 21) / 2)
    assert evaluate([151], [100], length=200, patience=50).false_alarms == 1
    assert evaluate([99], [100], length=200, patience=50).false_alarms == 1


def test_what_is_not_defined_is_none() -> None:
    assert evaluate([], [], length=1, patience=1) == Evaluation(0, 0, 0, 0.0, None, None, None, None, None, None)
    silent = evaluate(never(), [10, 50], length=100, patience=10)
    assert (silent.precision, silent.recall, silent.missed, silent.delay) == (None, 0.0, 1.0, None)
    assert evaluate([10], [10], length=20, patience=5).ratio is None


def test_always_alarming_is_seen_for_what_it_is() -> None:
    found = evaluate(always(1000), [500], length=1000, patience=100)
    assert (found.recall, found.delay) == (1.0, 0.0)
    # 899 false alarms from the first value to the last: 999 values in 898 gaps.
    assert found.time_between_false == pytest.approx(999 / 898)
    assert found.precision == pytest.approx(0.101)
    assert found.false_alarm_rate == pytest.approx(0.899)


@pytest.mark.parametrize(
    ("alarms", "changes", "length", "patience"),
    [([1], [], 0, 1), ([1], [], 10, 0), ([10], [], 10, 1), ([], [5, 4], 10, 1), ([-1], [], 10, 1)],
)
def test_indices_that_make_no_sense_are_refused(
    alarms: list[int], changes: list[int], length: int, patience: int
) -> None:
    with pytest.raises(ValueError, match="at least one|indices between"):
        evaluate(alarms, changes, length=length, patience=patience)


def test_errors_of_a_model_tell_each_of_three_concept_changes_that_no_input_shows() -> None:
    """1. A tree learns the first 5,000 rows of a stream whose concept changes at rows 10,000, 20,000 and 30,000 while
    the inputs stay as they are. 2. ADWIN and CUSUM read its errors on the rest.
    Result: three alarms each, one within 64 rows of each change, and none else.
    """
    stream = data("harvard_sine_0123_abrupto")
    inputs, label = np.column_stack((stream["X1"], stream["X2"])), stream["class"]
    model = DecisionTreeClassifier(min_samples_leaf=50, random_state=0).fit(inputs[:5000], label[:5000])
    errors = (model.predict(inputs[5000:]) != label[5000:]).astype(float)[:, np.newaxis]
    for detector in (ADWIN(1), CUSUM(1, min_instances=500, threshold=20.0)):
        alarms = np.flatnonzero(detector.update(errors)[:, 0]) + 5000
        found = evaluate(alarms.tolist(), [10_000, 20_000, 30_000], length=40_000, patience=64)
        assert (found.alarms, found.false_alarms, found.recall) == (3, 0, 1.0)
