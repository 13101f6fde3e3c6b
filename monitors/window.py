"""Windows in event time: panes of a monitor's state, whose sums are the windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from monitors.types import Columns, Monitor

M = TypeVar("M", bound=Monitor)


class _Document(msgspec.Struct, frozen=True):
    pane_ns: int
    keep: int
    levels: int
    rows: int
    latest: int | None
    blocks: dict[str, bytes]


class Panes(Generic[M]):
    """A ring of states by event time, and coarser rings of their sums.

    At level i a block covers 2**i panes and begins at a multiple of that; the `keep` newest blocks of each level are
    held, so level 0 is a ring of panes and all levels together reach 2**(levels - 1) * keep panes back in memory for
    levels * keep states. Which blocks are held depends on the newest time alone: rows that come late are added where
    their block is still held, and what is held is the same for any order of arrival. `rows` counts all rows, also those
    too old for any block.
    """

    def __init__(self, make: Callable[[], M], pane_ns: int, keep: int, levels: int = 1) -> None:
        if pane_ns < 1 or keep < 1 or not 1 <= levels <= 40:
            raise ValueError(f"a pane of 1 ns, one pane and 1 to 40 levels at least, got {pane_ns}, {keep}, {levels}")
        self.make = make
        self.pane_ns, self.keep, self.levels = pane_ns, keep, levels
        self.rows = 0
        self.latest: int | None = None
        self._blocks: dict[tuple[int, int], M] = {}

    def update(self, columns: Columns, how: Callable[[M, Columns], None] | None = None) -> None:
        """Add rows to the panes of their times. `how`: what is done with them, where not `update` of the monitor."""
        if not len(columns):
            return
        self.rows += len(columns)
        panes = columns.time_ns.astype(np.int64) // self.pane_ns
        self._advance(int(panes.max()))
        for pane in np.unique(panes).tolist():
            if not any(self._holds(level, pane >> level) for level in range(self.levels)):
                continue
            part = self.make()
            own = panes == pane
            rows = columns if own.all() else columns.take(own)
            if how is None:
                part.update(rows)
            else:
                how(part, rows)
            self._add(0, pane, part)

    def merge(self, other: Panes[M]) -> None:
        """Add the panes of another ring of the same shape."""
        if (other.pane_ns, other.keep, other.levels) != (self.pane_ns, self.keep, self.levels):
            raise ValueError("rings of two different shapes cannot be merged")
        self.rows += other.rows
        if other.latest is None:
            return
        self._advance(other.latest)
        for (level, block), state in other._blocks.items():
            self._add_at(level, block, state)

    def _advance(self, pane: int) -> None:
        self.latest = pane if self.latest is None else max(self.latest, pane)
        for level, block in list(self._blocks):
            if not self._holds(level, block):
                del self._blocks[level, block]

    def _holds(self, level: int, block: int) -> bool:
        return self.latest is not None and block > (self.latest >> level) - self.keep

    def _add(self, first: int, pane: int, state: M) -> None:
        for level in range(first, self.levels):
            self._add_at(level, pane >> level, state)

    def _add_at(self, level: int, block: int, state: M) -> None:
        if self._holds(level, block):
            if (level, block) not in self._blocks:
                self._blocks[level, block] = self.make()
            self._blocks[level, block].merge(state)

    def panes(self, level: int = 0) -> Iterator[tuple[int, int, M]]:
        """(begin, end, state) of the blocks held at a level that got rows, oldest first; times in Unix nanoseconds."""
        width = self.pane_ns << level
        for at, block in sorted(self._blocks):
            if at == level:
                yield block * width, (block + 1) * width, self._blocks[at, block]

    def window(self, from_ns: int, to_ns: int) -> M:
        """The sum of the panes of level 0 that lie wholly within the times."""
        total = self.make()
        for begin, end, state in self.panes():
            if from_ns <= begin and end <= to_ns:
                total.merge(state)
        return total

    def last(self, panes: int) -> M:
        """The sum of the newest `panes` panes."""
        newest = ((self.latest or 0) + 1) * self.pane_ns
        return self.window(newest - panes * self.pane_ns, newest)

    def value(self) -> Mapping[str, Any]:
        """Rows in all, rows too old for any pane, and the times that the panes cover."""
        held = list(self.panes())
        return {
            "rows": self.rows,
            "panes": len(held),
            "from_ns": held[0][0] if held else None,
            "to_ns": held[-1][1] if held else None,
        }

    def to_bytes(self) -> bytes:
        """The ring; equal rings give equal bytes."""
        blocks = {f"{level}:{block}": self._blocks[level, block].to_bytes() for level, block in sorted(self._blocks)}
        document = _Document(self.pane_ns, self.keep, self.levels, self.rows, self.latest, blocks)
        return msgspec.msgpack.encode(document)

    def load(self, data: bytes) -> None:
        """Replace the ring by one that `to_bytes` gave. Raises ValueError where it has another shape."""
        try:
            document = msgspec.msgpack.decode(data, type=_Document)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the bytes are no ring of panes: {error}") from error
        if (document.pane_ns, document.keep, document.levels) != (self.pane_ns, self.keep, self.levels):
            raise ValueError("the ring has another shape")
        blocks: dict[tuple[int, int], M] = {}
        for key, state in document.blocks.items():
            level, _, block = key.partition(":")
            blocks[int(level), int(block)] = own = self.make()
            own.load(state)
        self.rows, self.latest, self._blocks = document.rows, document.latest, blocks
