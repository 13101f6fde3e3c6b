"""One performance monitor per slice of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import msgspec
import numpy as np

from monitors.performance.tally import Tally, class_index, floats
from monitors.types import Array, Columns

MOST = 200  # slices: each holds a whole state


class Sliced:
    """A monitor for each slice by one feature, made as `monitor` was; the slices are fixed, so the state is.

    By `values`: one slice each, and `other` for all that is something else. By `edges` of a number: slice b holds
    edges[b-1] <= x < edges[b]. In both cases `missing` for rows that have none.
    """

    def __init__(
        self, *, monitor: Tally, by: str, values: Sequence[Any] | None = None, edges: Sequence[float] | None = None
    ) -> None:
        if (values is None) == (edges is None):
            raise ValueError("slices are given either by values or by edges")
        self._by, self._values = by, None if values is None else tuple(values)
        self._edges = None if edges is None else tuple(float(each) for each in edges)
        if self._edges is not None and (not self._edges or list(self._edges) != sorted(set(self._edges))):
            raise ValueError("expected rising edges")
        names = self._names()
        if len(names) > MOST or len(set(names)) != len(names):
            raise ValueError(f"expected at most {MOST} slices with different names, not {len(names)}")
        self._monitor = monitor
        self.slices = {name: monitor.fresh() for name in names}

    def _names(self) -> list[str]:
        if self._values is not None:
            return [*(str(each) for each in self._values), "other", "missing"]
        edges = self._edges or ()
        between = [f"[{low:g}, {high:g})" for low, high in zip(edges, edges[1:], strict=False)]
        return [f"below {edges[0]:g}", *between, f"from {edges[-1]:g}", "missing"]

    def places(self, columns: Columns) -> Array:
        """The place of each row's slice among `slices`, (n,) int64."""
        given, last = columns.features.get(self._by), len(self.slices) - 1
        numbers = floats(given, len(columns))
        if numbers.shape != (len(columns),):
            return np.full(len(columns), last)
        if self._edges is not None:
            return np.where(np.isnan(numbers), last, np.searchsorted(self._edges, numbers, side="right"))
        values = self._values or ()
        found = class_index(given, values, len(columns))
        array = np.asarray(given if given is not None else numbers)
        missing = np.isnan(numbers)
        if array.dtype.kind in "OUS":
            missing = np.array(
                [each is None or (isinstance(each, float) and each != each) for each in array.tolist()], bool
            )
        return np.where(missing, last, np.where(found < 0, last - 1, found))

    def _each(self, columns: Columns) -> list[tuple[Tally, Columns]]:
        places = self.places(columns)
        parts = []
        for place, monitor in enumerate(self.slices.values()):
            rows = np.flatnonzero(places == place)
            if len(rows):
                parts.append((monitor, columns.take(rows)))
        return parts

    def update(self, columns: Columns) -> None:
        """Count predictions, and the labels that some of them may have already."""
        for monitor, part in self._each(columns):
            monitor.update(part)

    def label(self, columns: Columns) -> None:
        """Count labels of predictions that were counted before."""
        for monitor, part in self._each(columns):
            monitor.label(part)

    def retract(self, columns: Columns) -> None:
        """Take out labels that were counted, given the same rows and the old labels."""
        for monitor, part in self._each(columns):
            monitor.retract(part)

    def merge(self, other: Self) -> None:
        """Add the state of another. Raises ValueError where the two do not have the same settings."""
        if repr(other) != repr(self):
            raise ValueError(f"{self!r} cannot be merged with {other!r}")
        for name, monitor in self.slices.items():
            monitor.merge(other.slices[name])

    def figures(self) -> Mapping[str, Any]:
        """What each slice says, by its name."""
        return {name: monitor.figures() for name, monitor in self.slices.items()}

    def value(self) -> Mapping[str, Any]:
        """The figures of each slice as plain mappings, for JSON."""
        return {name: monitor.value() for name, monitor in self.slices.items()}

    def to_bytes(self) -> bytes:
        """The states of all slices; equal states give equal bytes."""
        states = [monitor.to_bytes() for monitor in self.slices.values()]
        return msgspec.msgpack.encode((type(self).__name__, repr(self), states))

    def load(self, data: bytes) -> None:
        """Replace the state by one that `to_bytes` gave. Raises ValueError where it is not one of this monitor's."""
        try:
            kind, settings, states = msgspec.msgpack.decode(data, type=tuple[str, str, list[bytes]])
        except msgspec.MsgspecError as error:
            raise ValueError("not the saved state of a sliced monitor") from error
        if (kind, settings) != (type(self).__name__, repr(self)) or len(states) != len(self.slices):
            raise ValueError(f"the state is not one of {self!r}")
        loaded = {name: self._monitor.fresh() for name in self.slices}
        for monitor, state in zip(loaded.values(), states, strict=True):
            monitor.load(state)
        self.slices = loaded

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(monitor.nbytes for monitor in self.slices.values())

    def fresh(self) -> Self:
        """A monitor with the same settings and nothing counted."""
        return type(self)(monitor=self._monitor, by=self._by, values=self._values, edges=self._edges)

    def __repr__(self) -> str:
        how = f"values={self._values!r}" if self._values is not None else f"edges={self._edges!r}"
        return f"Sliced(monitor={self._monitor!r}, by={self._by!r}, {how})"
