"""What clean data of the past say about seasons and wandering."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.evidence.calibration import clumping, hour_classes, hours_of_week, strayed
from monitors.evidence.multinomial import log_evidence
from monitors.evidence.reference import Reference
from monitors.types import Counts


@settings(deadline=None)
@given(st.datetimes(datetime(1800, 1, 1), datetime(2200, 1, 1)))
def test_the_hour_of_the_week_is_that_of_the_calendar(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC, microsecond=0)
    expected = moment.weekday() * 24 + moment.hour
    assert hours_of_week(int(moment.timestamp()) * 10**9) == expected


def week(seed: int, night: list[float], rows: int = 300) -> Counts:
    """Counts (168, 1, 3) with days from 6 to 18 and nights that may differ."""
    rng = np.random.default_rng(seed)
    is_day = (np.arange(168) % 24 >= 6) & (np.arange(168) % 24 < 18)
    return np.array([[rng.multinomial(rows, [0.7, 0.2, 0.1] if day else night)] for day in is_day])


def test_hours_that_are_alike_share_a_class_and_day_and_night_do_not() -> None:
    classes = hour_classes(week(1, [0.2, 0.2, 0.6]), most=2)
    is_day = (np.arange(168) % 24 >= 6) & (np.arange(168) % 24 < 18)
    assert (classes == is_day).all()


def test_a_week_without_seasons_is_one_class() -> None:
    assert not hour_classes(week(2, [0.7, 0.2, 0.1])).any()


def test_every_class_has_the_rows_it_must_have() -> None:
    counts = week(3, [0.2, 0.2, 0.6], rows=20)
    classes = hour_classes(counts, most=168, least_rows=400)
    rows = np.bincount(classes, weights=counts.sum(axis=(1, 2)))
    assert rows.min() >= 400
    assert classes[0] == 0
    assert hour_classes(np.zeros((168, 2, 4), dtype=int)).max() == 0


def test_counts_that_are_not_of_a_week_are_refused() -> None:
    with pytest.raises(ValueError, match="168"):
        hour_classes(np.zeros((24, 1, 3)))
    with pytest.raises(ValueError, match="50 blocks"):
        clumping(np.zeros((49, 1, 3)))
    with pytest.raises(ValueError, match="16 blocks"):
        strayed(np.zeros((15, 1, 3)))


def wandering(phi: float, seed: int, blocks: int = 400, rows: int = 50) -> Counts:
    """Blocks of an autoregressive feature (T, 1, 8), in bins of equal probability."""
    rng = np.random.default_rng(seed)
    x = np.empty(blocks * rows)
    value = rng.standard_normal()
    for index, step in enumerate(rng.standard_normal(len(x)) * np.sqrt(1 - phi**2)):
        value = phi * value + step
        x[index] = value
    cuts = [-1.15035, -0.67449, -0.31864, 0, 0.31864, 0.67449, 1.15035]
    bins = np.searchsorted(cuts, x).reshape(blocks, rows)
    return np.array([[np.bincount(block, minlength=8)] for block in bins])


def test_rows_that_are_independent_are_no_copies_and_stray_nowhere() -> None:
    past = wandering(0.0, 1)
    assert strayed(past, ordered=True)[0] == 0
    assert clumping(past)[0] < 1.1


def test_rows_that_come_in_copies_are_counted_once() -> None:
    once = wandering(0.0, 3)
    assert clumping(7 * once)[0] == pytest.approx(7, rel=0.1)
    plain, copied = Reference.build(once.sum(axis=0)), Reference.build(7 * once.sum(axis=0), copies=7)
    assert log_evidence(copied, 7 * once[:9]) == pytest.approx(log_evidence(plain, once[:9]), abs=0.01)
    with pytest.raises(ValueError, match="copies"):
        Reference.build([[5, 5]], copies=0.5)


def test_rows_that_depend_on_one_another_are_weighed_so_that_their_own_past_is_silent() -> None:
    """1. An autoregressive feature, a clean past and a second run. 2. The second run is read with and without what the
    past says about copies and tolerance. Result: only the reference that knows of the dependence is silent.
    """
    past, later = wandering(0.95, 2), wandering(0.95, 5)
    copies = clumping(past)
    tolerance = strayed(past, ordered=True, copies=copies)
    assert 10 < copies[0] < 60
    assert tolerance[0] < 0.05
    stretches = later.reshape(50, 8, 1, 8).sum(axis=1)
    whole = past.sum(axis=0)
    plain = log_evidence(Reference.build(whole, ordered=True), stretches)
    calm = log_evidence(Reference.build(whole, ordered=True, copies=copies, tolerance=tolerance), stretches)
    assert plain.max() > 20
    assert calm.max() <= 5
