"""Batcher: which waiting calls run together next. Pure: calls go in, batches come out.

What waits when the session is free runs together, urgent calls first; a lone call never waits. A batch is one
stretch of a block's rows, so calls that left in the middle are run with it and dropped after; calls without a block
run together where their shapes agree. Versions never mix, since every version has a batcher of its own.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from gateway.inference.block import Block
from gateway.inference.call import Call
from gateway.inference.reader import PRIORITIES
from gateway.types import Array


class Batch(NamedTuple):
    """Calls to run together: rows `start` to `stop` of `block`, or (block None) the arrays of the calls joined."""

    calls: list[Call]
    block: Block | None
    start: int
    stop: int

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


class Batcher:
    """The calls of one version that wait, by priority."""

    def __init__(self) -> None:
        self._lanes: tuple[deque[Call], ...] = tuple(deque() for _ in range(PRIORITIES))
        self.rows = 0

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    def add(self, call: Call) -> None:
        """A decoded call waits from now on."""
        self._lanes[call.priority].append(call)
        self.rows += call.rows

    def waiting(self) -> list[Call]:
        """Every call that waits, urgent ones first."""
        return [call for lane in self._lanes for call in lane]

    def take(self, max_rows: int, *, join_loose: bool) -> tuple[Batch | None, list[Call]]:
        """The next batch of at most `max_rows` rows (a single larger call goes alone), and the calls that were gone.

        `join_loose`: calls without a block may be joined, which needs a batch axis.
        """
        dropped: list[Call] = []
        for lane in self._lanes:
            while lane and lane[0].gone:
                dropped.append(self._pop(lane))
            if lane:
                calls = self._stretch(lane, max_rows) if lane[0].block else self._alike(lane, max_rows, join_loose)
                kept = [call for call in calls if not call.gone]
                dropped += [call for call in calls if call.gone]
                start, stop = (kept[0].row, kept[-1].row + kept[-1].rows) if kept[0].block else (0, _rows(kept))
                return Batch(kept, kept[0].block, start, stop), dropped
        return None, dropped

    def _pop(self, lane: deque[Call]) -> Call:
        call = lane.popleft()
        self.rows -= call.rows
        return call

    def _stretch(self, lane: deque[Call], max_rows: int) -> list[Call]:
        first = self._pop(lane)
        calls = [first]
        limit = first.row + max_rows
        while lane and (lane[0].gone or (lane[0].block is first.block and lane[0].row + lane[0].rows <= limit)):
            calls.append(self._pop(lane))
        return calls

    def _alike(self, lane: deque[Call], max_rows: int, join: bool) -> list[Call]:
        first = self._pop(lane)
        calls, rows = [first], first.rows
        key = _shapes(first) if join else ()
        while join and lane and not lane[0].gone and lane[0].block is None:
            if rows + lane[0].rows > max_rows or _shapes(lane[0]) != key:
                break
            rows += lane[0].rows
            calls.append(self._pop(lane))
        return calls


def _rows(calls: list[Call]) -> int:
    return sum(call.rows for call in calls)


def _shapes(call: Call) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape[1:] for array in (call.arrays or {}).values())
