"""ByTime: a tally of labelled performance, of everything and by panes of the times of its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from monitors.performance.slices import Sliced
from monitors.performance.tally import Tally
from monitors.types import Columns
from monitors.window import Panes

PANES = 24
"""A window is the sum of so many panes."""

AnyTally = Tally | Sliced


class ByTime:
    """A tally of everything, and one of each pane of time; `make` gives an empty one."""

    def __init__(self, make: Callable[[], AnyTally], window_ns: int) -> None:
        self.total: Any = make()
        self.panes: Panes[Any] = Panes(make, max(1, window_ns // PANES), PANES)

    def change(self, columns: Columns, how: str) -> None:
        """Do something (``update``, ``label`` or ``retract``) with rows, in all and in the panes of their times.

        A pane that is not held any more stays as it is: it never comes back.
        """
        if len(columns):
            getattr(self.total, how)(columns)
            self.panes.update(columns, lambda tally, rows: getattr(tally, how)(rows))

    def since(self, pane: int) -> Any:
        """The sum of the panes from a number on."""
        found = self.panes.make()
        for began_ns, _, state in self.panes.panes():
            if began_ns >= pane * self.panes.pane_ns:
                found.merge(state)
        return found

    def to_bytes(self) -> bytes:
        """Everything; equal histories give equal bytes."""
        return msgspec.msgpack.encode((self.total.to_bytes(), self.panes.to_bytes()))

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where the state is of another tally."""
        try:
            total, panes = msgspec.msgpack.decode(data, type=tuple[bytes, bytes])
        except msgspec.MsgspecError as error:
            raise ValueError(f"the state of a window cannot be read: {error}") from None
        self.total.load(total)
        self.panes.load(panes)
