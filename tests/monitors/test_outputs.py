"""How answers are distributed: few bins that hold as much of the baseline each, and nothing left out."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from monitors.baseline.build import Arrays, build
from monitors.baseline.document import Baseline
from monitors.outputs import BINS, NONE, OUTPUTS, shares
from monitors.state import State
from monitors.types import Array, Columns


def baseline(**outputs: Array) -> Baseline:
    rows = len(next(iter(outputs.values())))
    return build(Arrays({"x": np.zeros(rows)}, outputs))


def seen(known: Baseline, **outputs: Array) -> dict[str, dict[str, float]]:
    """Shares by output and bin of rows with these answers."""
    rows = len(next(iter(outputs.values())))
    state = known.new_state()
    state.update(Columns(np.zeros(rows, np.int64), {"x": np.zeros(rows)}, outputs))
    return told(known.state, state)


def told(reference: State, current: State) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for each in shares(reference, current):
        found[each.output][each.bin] = each.share
    return found


def test_bins_of_a_number_hold_about_a_tenth_of_the_baseline_each() -> None:
    known = baseline(y=np.random.default_rng(1).normal(size=20_000))
    own = told(known.state, known.state)["y"]
    assert own.pop(NONE) == 0
    assert list(own) == sorted(own)
    assert len(own) == BINS
    assert all(0.05 < share < 0.15 for share in own.values())
    assert sum(own.values()) == pytest.approx(1)


def test_answers_that_move_leave_the_bins_where_they_were() -> None:
    dice = np.random.default_rng(2)
    known = baseline(y=dice.normal(size=20_000))
    moved = seen(known, y=dice.normal(2, 1, 5000))["y"]
    last = max(name for name in moved if name != NONE)
    assert moved[last] > 0.6
    assert moved.keys() == told(known.state, known.state)["y"].keys()


def test_answers_that_are_no_numbers_or_new_are_in_none_of_the_bins() -> None:
    known = baseline(y=np.arange(1000.0), word=np.array(["yes", "no"] * 500, dtype=object))
    found = seen(known, y=np.array([np.nan, np.inf, 1.0, 2.0]), word=np.array(["yes", "yes", "never", None], object))
    assert found["y"][NONE] == 0.5
    assert found["word"] == {"0: no": 0, "1: yes": 0.5, NONE: 0.5}


def test_rare_categories_stand_together_with_what_is_in_none_of_the_bins() -> None:
    words = np.array([f"w{place:02d}" for place in range(30) for _ in range(30 - place)], dtype=object)
    own = told(baseline(word=words).state, baseline(word=words).state)["word"]
    assert len(own) == BINS + 1
    assert sum(own.values()) == pytest.approx(1)
    assert own["0: w00"] == 30 / len(words)


def test_many_outputs_do_not_make_many_series() -> None:
    known = baseline(**{f"y{place}": np.arange(100.0) for place in range(OUTPUTS + 3)})
    assert len(told(known.state, known.state)) == OUTPUTS


def test_without_rows_there_is_nothing_to_show() -> None:
    known = baseline(y=np.arange(100.0))
    assert shares(known.state, known.new_state()) == []


def test_features_are_not_answers() -> None:
    known = baseline(y=np.arange(100.0))
    assert told(known.state, known.state).keys() == {"y"}
