"""Seen: all that is counted of some rows on the bins of a baseline; and the window, which is a sum of such counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from monitors.baseline.build import update_slices
from monitors.baseline.document import Baseline
from monitors.quality.duplicates import Duplicates
from monitors.state import State, flattened
from monitors.types import Columns

PANES = 24
"""A window is the sum of so many panes."""


class _Document(msgspec.Struct, frozen=True, array_like=True):
    state: bytes
    joint: bytes
    repeated: bytes
    slices: dict[str, dict[str, bytes]]


class Seen:
    """`state`: the counts of features and outputs. `joint`: of whole rows, None where the baseline has none.

    `repeated`: a sample of rows that tells how many repeat another. `slices`: by column and value of the baseline's
    slices, a state of the rows with that value.
    """

    def __init__(self, baseline: Baseline) -> None:
        self.state = State(baseline.layout)
        self.joint = baseline.new_joint()
        self.repeated = Duplicates(baseline.layout)
        self.slices = {
            name: {value: State(baseline.layout) for value in values} for name, values in baseline.slices.items()
        }

    @property
    def rows(self) -> int:
        """How many were counted."""
        return self.state.rows

    @property
    def nbytes(self) -> int:
        """Bytes of memory, which do not grow with rows."""
        states = [self.state, *(state for values in self.slices.values() for state in values.values())]
        joint = 0 if self.joint is None else self.joint.sums.nbytes
        return sum(state.state_bytes for state in states) + joint + 16 * self.repeated.size

    def update(self, columns: Columns) -> None:
        """Count rows."""
        self.state.update(columns)
        self.repeated.update(columns)
        if self.joint is not None:
            self.joint.update(columns)
        if self.slices:
            available = {**flattened(columns.features), **flattened(columns.outputs)}
            for name, states in self.slices.items():
                if name in available:
                    update_slices(states, available[name], columns)

    def merge(self, other: Seen) -> None:
        """Add the rows of another."""
        self.state.merge(other.state)
        self.repeated.merge(other.repeated)
        if self.joint is not None and other.joint is not None:
            self.joint.merge(other.joint)
        for name, states in self.slices.items():
            for value, state in states.items():
                state.merge(other.slices[name][value])

    def value(self) -> Mapping[str, Any]:
        """Rows and bytes."""
        return {"rows": self.rows, "bytes": self.nbytes}

    def to_bytes(self) -> bytes:
        """Everything; equal rows give equal bytes."""
        slices = {
            name: {value: state.to_bytes() for value, state in sorted(states.items())}
            for name, states in sorted(self.slices.items())
        }
        joint = b"" if self.joint is None else self.joint.to_bytes()
        return msgspec.msgpack.encode(_Document(self.state.to_bytes(), joint, self.repeated.to_bytes(), slices))

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where it belongs to another baseline."""
        try:
            document = msgspec.msgpack.decode(data, type=_Document)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the counts cannot be read: {error}") from None
        self.state.load(document.state)
        self.repeated.load(document.repeated)
        if self.joint is not None:
            self.joint.load(document.joint)
        saved = {name: set(values) for name, values in document.slices.items()}
        if saved != {name: set(values) for name, values in self.slices.items()}:
            raise ValueError("the counts are of other slices")
        for name, states in self.slices.items():
            for value, state in states.items():
                state.load(document.slices[name][value])


class Window:
    """The newest `PANES` panes of time that got rows, by number, and the sum of their states."""

    def __init__(self, make: Callable[[], Seen], pane_ns: int) -> None:
        self._make, self.pane_ns = make, pane_ns
        self.panes: dict[int, Seen] = {}
        self.state = make().state
        self._all: Seen | None = None

    def add(self, began_ns: int, seen: Seen) -> None:
        """Add the rows of a block, which is not changed any more."""
        pane = began_ns // self.pane_ns
        self._all = None
        self.state.merge(seen.state)
        if pane not in self.panes:
            self.panes[pane] = self._make()
        self.panes[pane].merge(seen)
        newest = max(self.panes)
        for old in [each for each in self.panes if each <= newest - PANES]:
            self.state.subtract(self.panes.pop(old).state)

    @property
    def seen(self) -> Seen:
        """The sum of all panes; made when somebody asks, and kept until there is more."""
        if self._all is None:
            whole = self._make()
            for pane in self.panes.values():
                whole.merge(pane)
            self._all = whole
        return self._all
