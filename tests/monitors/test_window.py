"""Windows in event time: panes, their sums, coarser rings, late rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.quality.freshness import Freshness
from monitors.types import Columns
from monitors.window import Panes

PANE = 1000


def at(*times: int) -> Columns:
    return Columns(np.array(times, dtype=np.int64))


def panes(keep: int = 4, levels: int = 1) -> Panes[Freshness]:
    return Panes(Freshness, PANE, keep, levels)


def test_rows_go_to_the_panes_of_their_times_whatever_the_order() -> None:
    ring = panes()
    ring.update(at(3500, 1, 999, 1000))
    assert [(begin, end, state.rows) for begin, end, state in ring.panes()] == [
        (0, 1000, 2),
        (1000, 2000, 1),
        (3000, 4000, 1),
    ]


def test_a_window_is_the_sum_of_the_panes_wholly_within_it() -> None:
    ring = panes()
    ring.update(at(0, 1000, 2000, 3000))
    assert ring.window(1000, 3000).rows == 2
    assert ring.window(1001, 3999).rows == 1
    assert ring.last(2).rows == 2
    assert ring.last(99).rows == 4
    assert panes().last(3).rows == 0


def test_old_panes_leave_and_rows_too_late_are_counted_but_not_kept() -> None:
    ring = panes(keep=2)
    ring.update(at(0, 1000))
    ring.update(at(9000))
    ring.update(at(8000, 1000))
    assert [begin for begin, _, _ in ring.panes()] == [8000, 9000]
    assert ring.value() == {"rows": 5, "panes": 2, "from_ns": 8000, "to_ns": 10_000}


def test_coarser_levels_reach_further_back() -> None:
    ring = panes(keep=2, levels=4)
    for time in range(0, 32_000, 1000):
        ring.update(at(time))
    assert [begin for begin, _, _ in ring.panes(0)] == [30_000, 31_000]
    assert [(begin, end, state.rows) for begin, end, state in ring.panes(3)] == [
        (16_000, 24_000, 8),
        (24_000, 32_000, 8),
    ]


def test_times_before_1970_have_panes_too() -> None:
    ring = panes(levels=3)
    ring.update(at(-1, -1000, 0))
    assert [(begin, state.rows) for begin, _, state in ring.panes()] == [(-1000, 2), (0, 1)]
    assert [begin for begin, _, _ in ring.panes(2)] == [-4000, 0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(-20_000, 20_000), max_size=6), max_size=8), st.randoms(use_true_random=False))
def test_what_is_held_does_not_depend_on_the_order_of_arrival(batches: list[list[int]], random: object) -> None:
    one, other, merged = panes(levels=3), panes(levels=3), panes(levels=3)
    for batch in batches:
        one.update(at(*batch))
    shuffled = [time for batch in batches for time in batch]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for time in shuffled:
        other.update(at(time))
        part = panes(levels=3)
        part.update(at(time))
        merged.merge(part)
    assert other.to_bytes() == one.to_bytes()
    assert merged.to_bytes() == one.to_bytes()


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 41)])
def test_impossible_shapes_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Panes(Freshness, *shape)


def test_rings_of_two_shapes_are_kept_apart() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        panes(keep=2).merge(panes(keep=3))
    with pytest.raises(ValueError, match="another shape"):
        panes(keep=2).load(panes(keep=3).to_bytes())
    with pytest.raises(ValueError, match="no ring"):
        panes().load(b"")
