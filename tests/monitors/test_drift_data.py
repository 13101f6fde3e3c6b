"""Drift statistics on the car-loan data, whose drift is known: nothing before row 25,000 of the analysis, then some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monitors.baseline.build import build
from monitors.baseline.source import Roles, TableFile
from monitors.drift.report import drift
from monitors.features import discrepancy

FOLDER = Path(os.environ.get("HEADGATE_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the data sets are not here: set HEADGATE_TEST_DATA")
def test_the_car_loan_drift_is_in_the_second_half_and_in_the_features_that_drifted() -> None:
    roles = Roles(outputs=("y_pred_proba",), exclude=("id", "y_pred", "timestamp", "repaid"))
    baseline = build(TableFile(FOLDER / "nannyml_synthetic_car_loan_reference.parquet", roles))
    halves = [baseline.new_state(), baseline.new_state()]
    joints = [baseline.new_joint(), baseline.new_joint()]
    seen = 0
    for rows in TableFile(FOLDER / "nannyml_synthetic_car_loan_analysis.parquet", roles):
        cut = min(max(25_000 - seen, 0), len(rows))
        seen += len(rows)
        for place, part in enumerate((rows.take(slice(0, cut)), rows.take(slice(cut, None)))):
            halves[place].update(part)
            joint = joints[place]
            assert joint is not None
            joint.update(part)
    before, after = (drift(baseline.state, half) for half in halves)
    drifted = {"car_value", "salary_range", "loan_length", "repaid_loan_on_prev_car", "y_pred_proba"}
    names = baseline.layout.names
    assert before["psi"].debiased.max() < 0.001
    assert before["chi_squared"].p.min() > 0.01
    assert {name for name, psi in zip(names, after["psi"].debiased, strict=True) if psi > 0.1} == drifted
    assert {name for name, p in zip(names, after["chi_squared"].p, strict=True) if p < 1e-6} == drifted
    assert baseline.joint is not None
    for joint, changed in zip(joints, (False, True), strict=True):
        assert joint is not None
        found = discrepancy(baseline.joint, joint)
        assert found is not None
        assert (found[0] > 5 * found[1]) == changed
