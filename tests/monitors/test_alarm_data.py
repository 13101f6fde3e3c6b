"""Alarms on data sets whose drift is known, and the simulations behind docs/monitoring-results.md in small."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from loadtests.alarm_data import CAR_LOAN, HARVARD, data_tables
from loadtests.alarm_nulls import frozen, loss_years, recent_years, years_with_alarms
from loadtests.alarm_streams import baseline_of, error_bound, label_alarms, read, rows, watch_inputs, watch_losses
from loadtests.alarms import DOCUMENT, alarms_in, autoregressive, binned, delays, record
from monitors.evidence.calibration import clumping
from monitors.evidence.detector import Detector
from monitors.evidence.reference import Reference

FOLDER = Path(os.environ.get("HEADGATE_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
with_data = pytest.mark.skipif(not FOLDER.is_dir(), reason="the data sets are not here: set HEADGATE_TEST_DATA")


@with_data
def test_car_loans_raise_an_alarm_soon_after_row_25000_and_not_before() -> None:
    """The reference is the baseline; features and score are watched. Result: as in the title, naming car_value."""
    known, stream = (
        read(FOLDER / f"nannyml_synthetic_car_loan_{which}.parquet") for which in ("reference", "analysis")
    )
    names = [*CAR_LOAN, "y_pred_proba"]
    told = watch_inputs(baseline_of({n: known[n] for n in names}), {n: stream[n] for n in names}, most=1)
    assert 25_000 <= told.at[0] < 28_000
    assert abs(told.began[0] - 25_000) < 200
    assert told.about[0].startswith("car_value")


@with_data
def test_car_loans_make_more_errors_after_row_25000_and_the_label_monitor_says_so() -> None:
    known, stream = (
        read(FOLDER / f"nannyml_synthetic_car_loan_{which}.parquet") for which in ("reference", "analysis")
    )
    truth = read(FOLDER / "nannyml_synthetic_car_loan_analysis_target.parquet")["repaid"]
    errors = (stream["y_pred"] != truth).astype(np.float64)
    told = watch_losses(errors, error_bound(known["y_pred"] != known["repaid"]), most=1)
    assert 25_000 <= told.at[0] < 35_000
    assert abs(told.began[0] - 25_000) < 500


@with_data
@pytest.mark.parametrize("name", HARVARD)
def test_a_break_in_the_meaning_of_labels_is_for_the_label_monitors_alone(name: str) -> None:
    """Breaks at 10,000, 20,000 and 30,000, a model trained anew after each alarm. Result: the input monitor is silent
    over 35,000 rows; the label monitors raise one alarm in each stretch after a break, and none before the first.
    """
    data = read(FOLDER / f"{name}.parquet")
    features = {n: values for n, values in data.items() if n != "class"}
    told = watch_inputs(baseline_of(rows(features, 0, 5000)), rows(features, 5000))
    assert told.watched > 34_000
    assert told.at == []
    alarms = label_alarms(np.stack(list(features.values()), axis=1), data["class"])
    assert [each.row // 10_000 for each in alarms] == [1, 2, 3]
    assert all(each.row % 10_000 < 3500 for each in alarms)


def test_a_table_is_left_out_where_its_data_are_missing(tmp_path: Path) -> None:
    assert data_tables(tmp_path / "nowhere", quick=True) == ""


@pytest.mark.parametrize("kind", ["normal", "lognormal", "Bernoulli"])
def test_a_hundred_years_without_a_change_stay_within_a_budget_of_one_alarm_each(kind: str) -> None:
    """In the same years, baselines that are taken as exact raise alarms in most: the simulation can fail."""
    found, ratio = years_with_alarms(kind, 100, 52, 1000)
    assert found <= 5
    assert ratio <= 1
    naive, _ = years_with_alarms(kind, 50, 52, 1000, exact=True)
    assert naive > 25


def test_rows_as_far_from_the_baseline_as_is_tolerated_are_no_false_alarms() -> None:
    """Without a tolerance they would be found in every year: the simulation can fail."""
    found, ratio = years_with_alarms("normal", 60, 52, 10_000, tolerance=0.1)
    assert found <= 3
    assert ratio <= 1


def test_lognormal_features_give_the_very_counts_of_normal_ones() -> None:
    """Bins lie at the feature's own quantiles, so only ranks count: one simulation stands for both."""
    normal, other = (frozen(kind, np.random.default_rng(4), 4, 5000) for kind in ("normal", "lognormal"))
    assert np.array_equal(normal[0], other[0])
    assert np.allclose(normal[1], other[1], atol=1e-3)


def test_weeks_of_one_distribution_stay_within_the_budget_of_what_changed_since_last_week() -> None:
    found, ratio = recent_years("normal", 5)
    assert found <= 1
    assert ratio <= 1


def test_errors_at_the_very_bound_stay_within_the_budget_of_what_performs_worse() -> None:
    """There is no harder case: alarms come, and no more than were allowed."""
    found, ratio = loss_years(0.1, 300, 52, 0)
    assert 30 < found < 150
    assert ratio <= 1


def test_rows_that_remember_raise_false_alarms_unless_they_are_counted_as_copies() -> None:
    rng = np.random.default_rng(3)
    past = autoregressive(0.9, rng, 1000 * 64, 2)
    edges = np.quantile(past, np.arange(1, 10) / 10, axis=1).T
    known, stream = binned(past, edges), binned(autoregressive(0.9, rng, 500 * 64, 2), edges)
    assert known.sum() == past.size
    plain = Reference.build(known.sum(axis=0), ordered=True, tolerance=0.01)
    aware = Reference.build(known.sum(axis=0), ordered=True, tolerance=0.01, copies=clumping(known))
    assert alarms_in(Detector([plain]), stream) > 10
    assert alarms_in(Detector([aware]), stream) == 0


def test_a_simulated_change_is_found_sooner_the_larger_it_is() -> None:
    quantiles = tuple(each / 10 for each in range(1, 10))
    small, large = (max(delays(quantiles, psi, 10_000, 0.01, 1.0, 2, seed=1)) for psi in (0.1, 0.25))
    assert large < small < 2500


def test_tables_are_recorded_between_their_markers_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "results.md"
    copy.write_text(DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr("loadtests.alarms.DOCUMENT", copy)
    record("alarms-delay", "a table")
    record("alarms-delay", "another table")
    text = copy.read_text(encoding="utf-8")
    assert "<!-- alarms-delay:begin -->\n\nanother table\n\n<!-- alarms-delay:end -->" in text
    with pytest.raises(ValueError, match="markers"):
        record("unknown", "a table")
