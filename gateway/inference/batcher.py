"""Batcher: which waiting calls run together next. Pure: calls go in, batches come out.

What waits when the session is free runs together, urgent calls first; a lone call never waits. A batch is one
stretch of a block's rows, so calls that left in the middle are run with it and dropped after; calls without a block
run together where their shapes agree. Versions never mix, since every version has a batcher of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from gateway.inference.block import Block
from gateway.inference.call import Call
from gateway.inference.reader import PRIORITIES
from gateway.types import Array

if TYPE_CHECKING:
    from gateway.inference.writer import ReplyPlan


class Batch(msgspec.Struct, gc=False):
    """Calls to run together: rows `start` to `stop` of `block`, or (block None) the arrays of the calls joined.

    `plain`: all of them are plain and alike (see Call), so that nobody need look at each; call i has row `start` + i.
    """

    calls: list[Call]
    block: Block | None
    start: int
    stop: int
    plain: bool = False

    @property
    def rows(self) -> int:
        """Rows of the run."""
        return self.stop - self.start

    def feed(self, names: tuple[str, ...]) -> dict[str, Array]:
        """The inputs of the run; views of the block where there is one."""
        if self.block is not None and len(names) == 1:
            return {names[0]: self.block.arrays[0][self.start : self.stop]}
        if self.block is not None:
            return {name: array[self.start : self.stop] for name, array in zip(names, self.block.arrays, strict=True)}
        first = self.calls[0].arrays
        assert first is not None
        if len(self.calls) == 1:
            return dict(first)
        return {name: np.concatenate([call.arrays[name] for call in self.calls if call.arrays]) for name in first}


class _Lane:
    """Calls of one priority in the order in which they came. `alike`: they are a plain batch, so far.

    The next one is like them if it is plain, with this plan, in this row of this block.
    """

    __slots__ = ("alike", "block", "calls", "plan", "row")

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.alike = False
        self.plan: ReplyPlan | None = None
        self.block: Block | None = None
        self.row = 0


class Batcher:
    """The calls of one version that wait, by priority."""

    def __init__(self) -> None:
        self._lanes = tuple(_Lane() for _ in range(PRIORITIES))
        self.rows = 0

    def __len__(self) -> int:
        return sum([len(lane.calls) for lane in self._lanes])

    def add(self, call: Call) -> None:
        """A decoded call waits from now on."""
        lane = self._lanes[call.priority]
        if lane.plan is not call.plan or lane.block is not call.block or lane.row != call.row or not call.plain:
            # Of the first one all of this may be as the last one that waited left it.
            lane.alike = not lane.calls and call.plain
            lane.plan, lane.block = call.plan, call.block
        elif not lane.calls:
            lane.alike = True
        lane.row = call.row + 1
        lane.calls.append(call)
        self.rows += call.rows

    @property
    def first(self) -> Call | None:
        """The call that is to run next, if it has not gone meanwhile."""
        for lane in self._lanes:
            if lane.calls:
                return lane.calls[0]
        return None

    def waiting(self) -> list[Call]:
        """Every call that waits, urgent ones first."""
        return [call for lane in self._lanes for call in lane.calls]

    def take(self, max_rows: int, *, join_loose: bool) -> tuple[Batch | None, list[Call]]:
        """The next batch of at most `max_rows` rows (a single larger call goes alone), and the calls that were gone.

        `join_loose`: calls without a block may be joined, which needs a batch axis.
        """
        dropped: list[Call] = []
        for lane in self._lanes:
            calls = lane.calls
            if calls and lane.alike and True not in [call.gone for call in calls[:max_rows]]:
                taken = self._pop(lane, max_rows)
                start = taken[0].row
                return Batch(taken, taken[0].block, start, start + len(taken), plain=True), dropped
            gone = next((at for at, call in enumerate(calls) if not call.gone), len(calls))
            if gone:
                dropped += self._pop(lane, gone)
            if lane.calls:
                first = lane.calls[0]
                count = _stretch(lane.calls, max_rows) if first.block else _alike(lane.calls, max_rows, join_loose)
                taken = self._pop(lane, count)
                kept = [call for call in taken if not call.gone]
                dropped += [call for call in taken if call.gone]
                start, stop = (first.row, kept[-1].row + kept[-1].rows) if first.block else (0, _rows(kept))
                return Batch(kept, first.block, start, stop), dropped
        return None, dropped

    def _pop(self, lane: _Lane, count: int) -> list[Call]:
        """The first `count` calls, which wait no more."""
        calls = lane.calls
        if count < len(calls):
            taken, lane.calls = calls[:count], calls[count:]
        else:
            taken, lane.calls = calls, []
        self.rows -= len(taken) if lane.alike else _rows(taken)
        return taken


def _stretch(calls: Sequence[Call], max_rows: int) -> int:
    """How many of the first calls lie in one stretch of at most `max_rows` rows; those between that are gone count."""
    first, count = calls[0], 1
    limit = first.row + max_rows
    for call in calls[1:]:
        if not call.gone and (call.block is not first.block or call.row + call.rows > limit):
            break
        count += 1
    return count


def _alike(calls: Sequence[Call], max_rows: int, join: bool) -> int:
    """How many of the first calls, which have arrays of their own, can be joined."""
    first, count = calls[0], 1
    rows, key = first.rows, _shapes(first) if join else ()
    for call in calls[1:] if join else ():
        rows += call.rows
        if call.gone or call.block is not None or rows > max_rows or _shapes(call) != key:
            break
        count += 1
    return count


def _rows(calls: Sequence[Call]) -> int:
    return sum([call.rows for call in calls])


def _shapes(call: Call) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape[1:] for array in (call.arrays or {}).values())
