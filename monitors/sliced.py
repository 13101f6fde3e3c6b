"""A monitor apart for each value of a column: performance or drift by carrier, by country, by type of customer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from monitors.count import text_of
from monitors.state import flattened
from monitors.types import Columns, Monitor

M = TypeVar("M", bound=Monitor)


class Sliced(Generic[M]):
    """A state for each of the `values` of `column` and one, `rest`, for all other rows: fixed memory whatever comes."""

    def __init__(self, make: Callable[[], M], column: str, values: Sequence[str]) -> None:
        self.column = column
        self.slices: dict[str, M] = {value: make() for value in values}
        self.rest = make()

    def update(self, columns: Columns) -> None:
        """Add each row to the state of its value; rows of a batch without the column are in `rest`."""
        if not len(columns):
            return
        available = {**columns.features, **flattened(columns.outputs)}
        values = available.get(self.column)
        places = {value: place for place, value in enumerate(self.slices)}
        own = np.full(len(columns), len(places))
        if values is not None:
            own = np.array([places.get(text_of(value) or "", len(places)) for value in values.tolist()])
        for place, state in enumerate([*self.slices.values(), self.rest]):
            if (rows := own == place).any():
                state.update(columns.take(rows))

    def merge(self, other: Sliced[M]) -> None:
        """Add the states of another monitor with the same slices."""
        if (other.column, list(other.slices)) != (self.column, list(self.slices)):
            raise ValueError(f"slices by {self.column!r} cannot be merged with others by {other.column!r}")
        for value, state in self.slices.items():
            state.merge(other.slices[value])
        self.rest.merge(other.rest)

    def value(self) -> Mapping[str, Any]:
        """What each slice says, by value, and the rest."""
        slices = {value: state.value() for value, state in self.slices.items()}
        return {"column": self.column, "slices": slices, "rest": self.rest.value()}

    def to_bytes(self) -> bytes:
        """The states of all slices; equal states give equal bytes."""
        parts = [(value, state.to_bytes()) for value, state in self.slices.items()]
        return msgspec.msgpack.encode((self.column, parts, self.rest.to_bytes()))

    def load(self, data: bytes) -> None:
        """Replace the states by those of `to_bytes`. Raises ValueError where the slices are others."""
        try:
            column, parts, rest = msgspec.msgpack.decode(data, type=tuple[str, list[tuple[str, bytes]], bytes])
        except msgspec.MsgspecError as error:
            raise ValueError(f"the bytes are no slices: {error}") from error
        if (column, [value for value, _ in parts]) != (self.column, list(self.slices)):
            raise ValueError(f"the bytes are slices by {column!r}, not these by {self.column!r}")
        for value, part in parts:
            self.slices[value].load(part)
        self.rest.load(rest)
