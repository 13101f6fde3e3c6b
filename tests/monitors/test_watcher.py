"""The watcher of a version: what each monitor says of rows that change in its way, and of rows that do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from monitors.alarms import Alarm
from monitors.baseline.build import Arrays, build
from monitors.baseline.document import Baseline
from monitors.baseline.usual import PART, Usual
from monitors.report import joint_drift, plain, rows_report
from monitors.rule import Rule
from monitors.types import Array, Columns
from monitors.watcher import Watcher

HOUR_NS = 3_600_000_000_000
BEGAN_NS = 1_789_344_000_000_000_000  # a Monday, 0 h UTC
DAY = 24 * HOUR_NS


def seasonal(seed: int, days: int, rows_an_hour: int, shift: float = 0.0) -> Columns:
    """Two features, one of which follows the hour of the day, and an answer that follows it too."""
    dice, rows = np.random.default_rng(seed), days * 24 * rows_an_hour
    times = BEGAN_NS + np.arange(rows) * (HOUR_NS // rows_an_hour)
    season = 0.7 * np.sin(2 * np.pi * (times / HOUR_NS) / 24)
    x, other = dice.normal(season), dice.normal(shift, 1, rows)
    return Columns(times, {"x": x.astype(np.float32), "other": other.astype(np.float32)}, {"y": x.astype(np.float32)})


def timed(rows: Columns) -> Baseline:
    return build(Arrays(rows.features, rows.outputs, time_ns=rows.time_ns))


def later(rows: Columns, days: int) -> Columns:
    return Columns(rows.time_ns + days * DAY, rows.features, rows.outputs)


def told(watcher: Watcher, rows: Columns) -> list[Alarm]:
    """The alarms that rows raise, as they come hour by hour."""
    raised: list[Alarm] = []
    for hour in np.unique(rows.time_ns // HOUR_NS).tolist():
        watcher.update(rows.take(rows.time_ns // HOUR_NS == hour))
        raised += watcher.close((hour + 1) * HOUR_NS)
    return raised


def test_a_daily_season_that_the_baseline_has_raises_no_alarm_and_a_shift_beside_it_does() -> None:
    """1. The training data has two weeks with a daily season. 2. Another two weeks are the same, then a feature shifts.
    Result: classes of hours are found, nothing is told of the season, and the shift is told, with its feature.
    Without the times of the training data the season itself is one false alarm after the other.
    """
    known = seasonal(1, 14, 120)
    baseline, untimed = timed(known), build(Arrays(known.features, known.outputs))
    rule = Rule(block_s=900)
    watcher, blind = Watcher("m", 1, rule, baseline), Watcher("m", 1, rule, untimed)
    assert 2 <= watcher.watches.classes <= 8
    same = later(seasonal(2, 14, 120), 14)
    assert told(watcher, same) == []
    assert {alarm.watch for alarm in told(blind, same.take(slice(0, 2 * 24 * 120)))} >= {"training"}
    raised = told(watcher, later(seasonal(3, 4, 120, shift=0.5), 28))
    assert {alarm.watch for alarm in raised} == {"training", "recent"}
    assert raised[0].finding.features[0].feature == "other"
    assert watcher.value()["baseline"]["classes_of_hours"] == watcher.watches.classes


def test_a_past_that_wanders_is_learned_with_the_baseline_and_tolerated() -> None:
    """1. In the training data rows depend on those before them. 2. As many others do so too. Result: copies are found,
    no alarm comes, and without them there would be many; where rows are independent one is one.
    """
    dice = np.random.default_rng(4)

    def wandering(rows: int, length: int) -> Array:
        return np.repeat(dice.normal(0, 1, rows // length), length).astype(np.float32)

    times = BEGAN_NS + np.arange(24_000) * (DAY // 24_000)
    columns = [wandering(24_000, 10) for _ in range(2)]
    baseline = build(Arrays({"x": columns[0]}, time_ns=times))
    (copies,) = Usual.of(baseline.parts).copies
    assert 5 < copies < 20
    live = Columns(times + DAY, {"x": columns[1]})
    assert told(Watcher("m", 1, Rule(block_s=60), baseline), live) == []
    del baseline.parts[PART]
    assert told(Watcher("m", 1, Rule(block_s=60), baseline), live) != []
    independent = build(Arrays({"x": dice.normal(0, 1, 24_000).astype(np.float32)}, time_ns=times))
    assert Usual.of(independent.parts) == Usual((), (1.0,), (0.0,))


def test_features_that_no_longer_go_together_are_joint_drift_though_none_drifts_alone() -> None:
    dice = np.random.default_rng(5)
    x = dice.normal(0, 1, (4000, 2)).astype(np.float32)
    together = {"a": x[:, 0], "b": (x[:, 0] + 0.1 * x[:, 1]).astype(np.float32)}
    baseline, rows = build(Arrays(together)), 3000
    watcher = Watcher("m", 1, Rule(), baseline)
    times = BEGAN_NS + np.arange(rows)
    watcher.update(Columns(times, {name: values[:rows] for name, values in together.items()}))
    watcher.close(BEGAN_NS + DAY)
    same = joint_drift(baseline, watcher.shown.seen)
    watcher.update(Columns(times + 2 * DAY, {"a": together["a"][:rows], "b": dice.permutation(together["b"])[:rows]}))
    watcher.close(BEGAN_NS + 3 * DAY)
    report = rows_report(baseline, watcher.shown.seen)
    assert same is not None
    assert abs(same["value"]) < 4 * same["null_sd"]
    assert report["joint"]["value"] > 20 * report["joint"]["null_sd"]
    assert report["joint"]["n"] == rows
    assert max(report["features"][name]["psi"]["debiased"] for name in "ab") < 0.02


def test_repeated_and_constant_rows_late_news_and_failures_are_told_and_so_are_slices() -> None:
    """1. The baseline has two cities. 2. Live rows are one row again and again, all of one city; some requests fail.
    Result: each is in the report of the window, and the numbers of every slice are its own.
    """
    dice = np.random.default_rng(6)
    cities = np.array(["Oslo", "Rome"], object)[dice.integers(0, 2, 2000)]
    baseline = build(Arrays({"x": dice.normal(0, 1, 2000), "city": cities}), slices=["city"])
    watcher = Watcher("m", 1, Rule(window_s=3600), baseline)
    times = BEGAN_NS + np.arange(400) * 1_000_000_000
    row: dict[str, Array] = {"x": np.full(400, 0.5), "city": np.array(["Oslo"] * 400, object)}
    status = np.repeat([200, 503], [300, 100])
    requests = Columns(times, {"status": status, "latency_ns": np.full(400, 2_000_000)})
    watcher.update(Columns(times, row), requests=requests)
    watcher.close(BEGAN_NS + DAY)
    report: dict[str, Any] = plain(rows_report(baseline, watcher.shown.seen))
    assert report["constant"] == ["x", "city"]
    assert report["repeated"]["share"] == pytest.approx(399 / 400)
    oslo, rome = (report["slices"]["city"][name] for name in ("Oslo", "Rome"))
    assert (oslo["rows"], rome["rows"], oslo["share"]) == (400, 0, 1.0)
    assert 0.4 < oslo["expected_share"] < 0.6
    assert oslo["psi"]["x"]["debiased"] > 1
    operation = watcher.operation_value()
    assert (operation["requests"], operation["failed"], operation["per_second"]) == (400, 100, 400 / 3600)
    assert 0.002 <= operation["p99_s"] <= 0.002 * 2**0.25
    assert watcher.value()["newest_ns"] == times[-1]


def test_scores_that_rise_over_time_are_told_without_a_baseline_that_says_so() -> None:
    """1. A baseline of a few rows is learned. 2. The answers rise. Result: what needs no baseline tells of it."""
    dice, rows = np.random.default_rng(7), 6000
    times = BEGAN_NS + np.arange(rows) * 60_000_000_000
    still, rising = dice.normal(0, 1, rows), dice.normal(np.linspace(0, 3, rows), 1)
    for answers, expected in ((still, []), (rising, ["scores-out-of-order"])):
        watcher = Watcher("m", 1, Rule(block_s=3600, learn_rows=300, tolerance=10.0), None)
        raised = told(watcher, Columns(times, {"x": still}, {"y": answers}))
        assert [(alarm.kind, alarm.baseline) for alarm in raised] == [(kind, "none") for kind in expected]


def test_the_counts_of_another_length_of_blocks_and_windows_go_on_from_a_checkpoint() -> None:
    rows = seasonal(8, 2, 60)
    baseline = timed(seasonal(9, 7, 60))
    watcher = Watcher("m", 1, Rule(block_s=300), baseline)
    watcher.update(rows)
    watcher.close(BEGAN_NS + DAY)
    for rule in (Rule(block_s=7200), Rule(block_s=60, window_s=3600), Rule(budgets={"recent": "2 per model-month"})):
        other = Watcher("m", 1, rule, baseline)
        other.load(watcher.to_bytes())
        assert other.counted().to_bytes() == watcher.counted().to_bytes()
        other.close(BEGAN_NS + 3 * DAY)
        assert other.total.state.to_bytes() == watcher.counted().state.to_bytes()
    assert str(other.alarms.watches["recent"].budget) == "2 per model-month"
    assert str(other.alarms.watches["training"].budget) == "1 per model-year"


def test_memory_is_told_and_does_not_grow_with_rows() -> None:
    watcher = Watcher("m", 1, Rule(), timed(seasonal(9, 7, 60)))
    before = watcher.nbytes
    watcher.update(seasonal(8, 7, 60))
    watcher.close(BEGAN_NS + 7 * DAY)
    assert watcher.nbytes == before == watcher.value()["memory_bytes"]
    assert sum(seen.nbytes for seen in (watcher.total, *watcher.shown.panes.values())) <= before


def test_a_baseline_is_learned_of_as_many_rows_as_were_asked_for_however_they_come() -> None:
    rows = seasonal(8, 2, 60)
    pieces, whole = (Watcher("m", 1, Rule(learn_rows=700), None) for _ in range(2))
    whole.update(rows)
    for start in range(0, len(rows), 97):
        pieces.update(rows.take(slice(start, start + 97)))
    assert whole.baseline is not None
    assert whole.baseline.facts.rows == 700
    assert pieces.counted().to_bytes() == whole.counted().to_bytes()
