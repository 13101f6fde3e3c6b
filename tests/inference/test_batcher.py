"""The batcher: nothing lost, nothing twice, the urgent first, and every batch one stretch of rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.inference.batcher import Batch, Batcher
from gateway.inference.block import Block, Layout
from gateway.inference.call import Call
from gateway.inference.reader import PRIORITIES
from gateway.oip.limits import Limits
from gateway.types import Array
from tests.inference.fakes import ECHO, call_of, rows_of, servable

SMALL = Layout(ECHO, Limits(max_elements=32))
"""Blocks of sixteen rows."""


@dataclass
class Lane:
    """Where the calls of one priority get their rows from, as a reader gives them."""

    block: Block
    waiting: list[Call]


class BatcherMachine(RuleBasedStateMachine):
    """Calls of all kinds come, some leave while they wait, and batches are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.batcher = Batcher()
        self.servable = servable()
        self.lanes = [Lane(Block(SMALL), []) for _ in range(PRIORITIES)]
        self.number = 0.0

    def values(self, rows: int, width: int = 2) -> Array:
        """Values that no other call has."""
        self.number += rows * width
        return np.arange(self.number - rows * width, self.number, dtype=np.float32).reshape(rows, width)

    def add(self, priority: int, **set_to: Any) -> None:
        call = call_of(self.servable, priority=priority, **set_to)
        self.lanes[priority].waiting.append(call)
        self.batcher.add(call)

    @rule(priority=st.integers(0, PRIORITIES - 1), rows=st.integers(1, 9), refused=st.integers(0, 2))
    def add_rows_of_a_block(self, priority: int, rows: int, refused: int) -> None:
        """`refused` rows before it were taken by calls that never came to wait."""
        lane = self.lanes[priority]
        if lane.block.fill + refused + rows > lane.block.capacity:
            lane.block = Block(SMALL)
        row = lane.block.fill + refused
        lane.block.fill = row + rows
        lane.block.arrays[0][row : row + rows] = self.values(rows)
        self.add(priority, block=lane.block, row=row, rows=rows)

    @rule(priority=st.integers(0, PRIORITIES - 1), rows=st.integers(0, 9), width=st.integers(1, 2))
    def add_arrays(self, priority: int, rows: int, width: int) -> None:
        self.add(priority, arrays={"x": self.values(rows, width)}, rows=rows)

    @precondition(lambda self: len(self.batcher))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.all())).gone = True

    @rule(max_rows=st.sampled_from([1, 2, 5, 8, 64]), join=st.booleans())
    def take(self, max_rows: int, join: bool) -> None:
        before = [list(lane.waiting) for lane in self.lanes]
        batch, dropped = self.batcher.take(max_rows, join_loose=join)
        calls = batch.calls if batch is not None else []
        for lane in self.lanes:
            lane.waiting = [call for call in lane.waiting if call not in calls and call not in dropped]
        assert all(call.gone for call in dropped)
        assert len(set(dropped)) == len(dropped)
        present = [[call for call in lane if not call.gone] for lane in before]
        urgent = next((lane for lane in present if lane), [])
        # The first ones of the most urgent lane, in the order in which they came, and none of them twice.
        assert calls == urgent[: len(calls)]
        if batch is None:
            assert not urgent
            return
        assert calls
        self.check(batch, max_rows, join, urgent[len(calls) :])

    def check(self, batch: Batch, max_rows: int, join: bool, behind: list[Call]) -> None:
        """The batch is one that may run, and could not have been larger."""
        first = batch.calls[0]
        assert batch.rows <= max_rows or (len(batch.calls) == 1 and batch.rows == first.rows)
        assert {id(call.block) for call in batch.calls} == {id(batch.block)}
        fed = batch.feed(("x",))["x"]
        assert len(fed) == batch.rows
        if batch.block is not None:
            assert (batch.start, batch.stop) == (first.row, batch.calls[-1].row + batch.calls[-1].rows)
            assert all(left.row + left.rows <= right.row for left, right in pairwise(batch.calls))
            assert np.shares_memory(fed, batch.block.arrays[0]), "the rows were copied"
            for call in batch.calls:
                assert (fed[call.row - batch.start :][: call.rows] == rows_of(call)[0]).all()
            fits = [each for each in behind[:1] if each.block is batch.block]
            assert all(each.row + each.rows - batch.start > max_rows for each in fits)
            return
        assert (fed == np.concatenate([rows_of(call)[0] for call in batch.calls])).all()
        assert join or len(batch.calls) == 1
        lane = self.lanes[first.priority].waiting
        if join and lane and lane[0] is (behind or [None])[0] and lane[0].block is None:
            alike = rows_of(lane[0])[0].shape[1:] == rows_of(first)[0].shape[1:]
            assert not alike or batch.rows + lane[0].rows > max_rows

    def all(self) -> list[Call]:
        """Every call that must be waiting, urgent ones first, in the order in which they came."""
        return [call for lane in self.lanes for call in lane.waiting]

    @invariant()
    def nothing_is_lost_and_nothing_is_there_twice(self) -> None:
        assert self.batcher.waiting() == self.all()
        assert len(self.batcher) == len(self.all())
        assert self.batcher.rows == sum(call.rows for call in self.all())


TestNothingIsLostAndNothingTwice = BatcherMachine.TestCase
TestNothingIsLostAndNothingTwice.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def in_block(block: Block, row: int, rows: int = 1, **set_to: Any) -> Call:
    """A call whose rows lie in a block."""
    return call_of(servable(), block=block, row=row, rows=rows, **set_to)


def test_a_call_that_left_in_the_middle_is_run_with_its_mates_and_dropped() -> None:
    block, batcher = Block(SMALL), Batcher()
    calls = [in_block(block, row) for row in range(4)]
    for call in calls:
        batcher.add(call)
    calls[1].gone = True
    batch, dropped = batcher.take(64, join_loose=True)
    assert batch == Batch([calls[0], calls[2], calls[3]], block, 0, 4)
    assert dropped == [calls[1]]


def test_calls_that_left_at_either_end_cost_no_rows() -> None:
    block, batcher = Block(SMALL), Batcher()
    calls = [in_block(block, row) for row in range(4)]
    for call in calls:
        batcher.add(call)
    calls[0].gone = calls[3].gone = True
    batch, dropped = batcher.take(64, join_loose=True)
    assert batch == Batch(calls[1:3], block, 1, 3)
    assert dropped == [calls[0], calls[3]]


def test_a_call_larger_than_the_maximum_goes_alone() -> None:
    block, batcher = Block(SMALL), Batcher()
    large, small = in_block(block, 0, 9), in_block(block, 9)
    batcher.add(large)
    batcher.add(small)
    assert batcher.take(4, join_loose=True) == (Batch([large], block, 0, 9), [])
    assert batcher.take(4, join_loose=True) == (Batch([small], block, 9, 10), [])
    assert batcher.take(4, join_loose=True) == (None, [])


@pytest.mark.parametrize("priority", [1, 2])
def test_an_urgent_call_that_came_last_runs_first(priority: int) -> None:
    batcher = Batcher()
    normal, urgent = in_block(Block(SMALL), 0, priority=priority), in_block(Block(SMALL), 0, priority=0)
    batcher.add(normal)
    batcher.add(urgent)
    assert [batch.calls for batch, _ in (batcher.take(64, join_loose=True) for _ in range(2)) if batch] == [
        [urgent],
        [normal],
    ]
