"""Coverage and lag of labels by the age of the prediction, and performance by slice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.performance.confusion import Confusion
from monitors.performance.labels import LabelFlow, by_arrival
from monitors.performance.scores import Scores
from monitors.performance.slices import Sliced
from monitors.types import Columns
from tests.monitors.test_performance_scores import sane

S, HOUR = 1_000_000_000, 3600
START = 1_700_000_000


def flow(**settings: Any) -> LabelFlow:
    return LabelFlow(
        **{"label": "y", "arrival": "when", "buckets": 48, "ages_s": (HOUR, 4 * HOUR, 24 * HOUR), **settings}
    )


def rows(seconds: Any, lag: Any = None, known: Any = None) -> Columns:
    """Predictions at `seconds`, with labels that come `lag` seconds later for those `known`."""
    time_ns = np.asarray(seconds, np.int64) * S
    if lag is None:
        return Columns(time_ns)
    known = np.ones(len(time_ns), bool) if known is None else np.asarray(known)
    labels = {"y": np.ones(len(time_ns)), "when": time_ns + np.asarray(lag, np.int64) * S}
    return Columns(time_ns, labels=labels, labelled={"y": known})


def test_coverage_is_told_by_age_and_does_not_blame_young_predictions_for_labels_that_cannot_be_there() -> None:
    """1. A prediction every minute for two days; all labels come after three hours, but for every fifth.
    Result: nothing of the last hours is labelled, 80 % of the older ones; 0 % within one hour, 80 % within four.
    """
    seconds = START // HOUR * HOUR + np.arange(0, 48 * HOUR, 60)
    now = int(seconds[-1]) + 60
    lag = np.full(len(seconds), 3 * HOUR)
    known = (seconds + lag <= now) & (np.arange(len(seconds)) % 5 > 0)
    state = flow()
    state.update(rows(seconds, lag, known))
    found = state.figures()
    sane({name: each for name, each in found.items() if name not in ("by_age", "within")})
    by_age = {each["age_s"]: each["coverage"] for each in found["by_age"]}
    assert by_age[HOUR].value == 0.0
    assert by_age[HOUR].n == 60
    assert by_age[4 * HOUR].value == pytest.approx(0.8 / 3)  # two hours without labels and one with
    assert by_age[24 * HOUR].value == pytest.approx(0.8)
    assert by_age[None].value == pytest.approx(0.8)
    within = {each["age_s"]: each["coverage"] for each in found["within"]}
    assert within[HOUR].value == 0.0
    assert within[4 * HOUR].value == pytest.approx(0.8)
    assert within[4 * HOUR].n == 44 * 60
    assert found["lag_s"] == {"p50": 4 * HOUR, "p90": 4 * HOUR, "p99": 4 * HOUR}
    assert found["predictions"] == len(seconds)
    assert found["coverage"].value == known.mean()
    later = state.at((now + 24 * HOUR) * S)
    assert later["by_age"][0]["coverage"].n == 0
    assert later["within"][2]["coverage"].n == len(seconds)


def test_labels_are_counted_by_their_lag_also_odd_ones() -> None:
    state = flow()
    state.update(rows([START] * 4, [10, HOUR, 25 * HOUR, -5]))
    state.update(Columns(np.array([START * S]), labels={"y": np.array([1.0])}))
    found = state.figures()
    assert found["lag_s"] == {"p50": HOUR, "p90": None, "p99": None}
    assert (found["early"], found["unknown_time"], found["labels"]) == (1, 1, 5)
    empty = flow().figures()
    assert empty["lag_s"]["p50"] is None
    assert empty["coverage"].value is None
    alone = flow()
    alone.label(rows([START], [10]))
    assert alone.figures()["coverage"].value == 1.0


times = st.integers(START, START + 200 * HOUR)


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(st.tuples(times, st.integers(-10, 30 * HOUR), st.booleans()), min_size=1, max_size=40),
    seed=st.integers(0, 99),
)
def test_the_flow_does_not_depend_on_order_partition_or_labels_that_were_superseded(events: Any, seed: int) -> None:
    seconds, lag, known = (np.array(each) for each in zip(*events, strict=True))
    whole = flow()
    whole.update(rows(seconds, lag, known))
    rng = np.random.default_rng(seed)
    merged = flow()
    for part in np.array_split(rng.permutation(len(seconds)), 3):
        one, two = flow(), flow()
        one.update(rows(seconds[part[:2]]))
        one.update(rows(seconds[part[2:]]))
        two.label(rows(seconds[part], lag[part] + 999, known[part]))
        two.label(rows(seconds[part], lag[part], known[part]))
        one.retract(rows(seconds[part], lag[part] + 999, known[part]))
        assert one.negative() == known[part].sum()
        for state in (one, two) if seed % 2 else (two, one):
            again = flow()
            again.load(state.to_bytes())
            merged.merge(again)
    assert merged.to_bytes() == whole.to_bytes()
    kept = (seconds // HOUR > (seconds.max() // HOUR) - 48).sum()
    assert whole.counts["rows"][1:].sum() == kept
    assert whole.counts["rows"][0] == len(seconds) - kept


@settings(max_examples=40, deadline=None)
@given(
    time=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    arrival=st.sampled_from([np.int64, np.float64, np.uint64, object]),
)
def test_times_of_any_kind_are_counted_and_nothing_raises(time: list[int], arrival: Any) -> None:
    time_ns = np.array(time, np.int64)
    labels = {"y": np.ones(len(time)), "when": np.zeros(len(time), arrival)}
    state = flow()
    state.update(Columns(time_ns, labels=labels))
    assert state.figures()["predictions"] == state.figures()["labels"] == len(time)
    other = flow()
    other.update(rows([START], [1]))
    other.merge(state)
    assert other.figures()["predictions"] == len(time) + 1


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        flow(buckets=0)
    with pytest.raises(ValueError, match="rising ages"):
        flow(ages_s=(5, 5))
    with pytest.raises(ValueError, match="cannot be merged"):
        flow().merge(flow(buckets=3))


def test_rows_by_arrival_carry_the_time_at_which_their_label_came() -> None:
    columns = rows([START, START + 1, START + 2], [5, 6, 7], [True, False, True])
    moved = by_arrival(columns, "y", "when")
    assert (moved.time_ns // S).tolist() == [START + 5, START + 9]
    assert len(moved.labels["y"]) == len(moved.labelled["y"]) == 2
    assert len(by_arrival(columns, "y", "never")) == 0
    assert len(by_arrival(Columns(np.zeros(2, np.int64)), "y", "when")) == 0


def judged(feature: Any, scores: Any, labels: Any) -> Columns:
    return Columns(
        np.zeros(len(scores), np.int64), {"f": feature}, {"p": np.asarray(scores)}, {"y": np.asarray(labels)}
    )


def sliced(**how: Any) -> Sliced:
    return Sliced(monitor=Scores(output="p", label="y"), by="f", **how)


def test_every_row_is_in_one_slice_and_slices_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    feature = np.array([*["a"] * 40, *["b"] * 30, *["rare"] * 20, *[None] * 6, *[np.nan] * 4], object)
    scores, labels = rng.random(100), rng.integers(0, 2, 100)
    state = sliced(values=("a", "b"))
    state.update(judged(feature, scores, labels))
    found = state.figures()
    assert {name: each["accuracy"].n for name, each in found.items()} == {"a": 40, "b": 30, "other": 20, "missing": 10}
    assert found["a"]["accuracy"].value == ((scores[:40] >= 0.5) == labels[:40]).mean()
    whole, total = Scores(output="p", label="y"), Scores(output="p", label="y")
    whole.update(judged(feature, scores, labels))
    for monitor in state.slices.values():
        total.merge(monitor)
    assert total.to_bytes() == whole.to_bytes()
    assert state.nbytes > 4 * 1000


def test_numbers_are_sliced_by_edges() -> None:
    feature = np.array([-np.inf, 0.0, 17.9, 18.0, 64.9, 65.0, np.inf, np.nan])
    state = sliced(edges=(18, 65))
    state.update(judged(feature, np.full(8, 0.7), np.ones(8)))
    counts = {name: each["accuracy"].n for name, each in state.figures().items()}
    assert counts == {"below 18": 3, "[18, 65)": 2, "from 65": 2, "missing": 1}
    absent = sliced(values=(1, 2))
    absent.update(Columns(np.zeros(3, np.int64), {}, {"p": np.full(3, 0.2)}, {"y": np.zeros(3)}))
    assert absent.figures()["missing"]["accuracy"].n == 3
    whole = sliced(values=(1, 2))
    whole.update(judged(np.array([1, 2, 2, 7]), np.full(4, 0.2), np.zeros(4)))
    assert [each["accuracy"].n for each in whole.figures().values()] == [1, 2, 1, 0]


def test_slices_merge_save_and_take_back() -> None:
    rng = np.random.default_rng(1)
    feature, scores = rng.integers(0, 4, 60), rng.random(60)
    labels, wrong = rng.integers(0, 2, 60), rng.integers(0, 2, 60)
    whole = sliced(values=(0, 1))
    whole.update(judged(feature, scores, labels))
    merged = whole.fresh()
    for part in np.array_split(rng.permutation(60), 3):
        one = whole.fresh()
        one.update(judged(feature[part], scores[part], wrong[part]))
        one.retract(judged(feature[part], scores[part], wrong[part]))
        one.label(judged(feature[part], scores[part], labels[part]))
        again = whole.fresh()
        again.load(one.to_bytes())
        merged.merge(again)
    assert merged.to_bytes() == whole.to_bytes()
    for wrong_state in (b"", whole.to_bytes()[:-1], sliced(values=(0, 2)).to_bytes()):
        with pytest.raises(ValueError, match="state"):
            merged.load(wrong_state)
    with pytest.raises(ValueError, match="cannot be merged"):
        merged.merge(sliced(values=(0, 2)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "either by values or by edges"),
        ({"values": (1,), "edges": (1,)}, "either by values or by edges"),
        ({"edges": ()}, "rising edges"),
        ({"values": ("other",)}, "different names"),
        ({"values": range(300)}, "at most 200"),
    ],
)
def test_slices_that_make_no_sense_are_refused(how: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sliced(**how)


def test_slices_work_for_any_monitor() -> None:
    state = Sliced(monitor=Confusion(output="p", label="y", classes=("x", "z")), by="f", values=("a",))
    columns = judged(np.array(["a", "q"], object), np.array(["x", "z"], object), np.array(["x", "x"], object))
    state.update(columns)
    assert state.figures()["a"]["accuracy"].value == 1.0
    assert state.figures()["other"]["accuracy"].value == 0.0
