"""What every detector shares: skipping what is not a number, counting, starting anew after an alarm, saving.

A detector is a state (a struct of arrays, one row per stream) and a `_step` that moves some rows of it by one value.
The step never sees NaN, infinities or values outside the detector's range: one NaN in a running mean would make it deaf
for ever while it looks healthy, so such a value is counted in `skipped`, and the stream is as if it had not come.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
State = dict[str, Array]

# The square of a loss is added up, which must stay far from the largest double.
LARGEST = 1e100


class _Saved(msgspec.Struct, array_like=True):
    """The form in which a detector is saved: its constructor's arguments and its arrays as raw bytes."""

    kind: str
    settings: dict[str, Any]
    arrays: dict[str, tuple[str, tuple[int, ...], bytes]]


class Detector(ABC):
    """A detector over `streams` independent streams.

    `seen`, `skipped` and `alarms` count, per stream, the values used, the values that were left out (not finite, or
    outside `bounds`) and the alarms; `warning` is the warning zone after the last value, for detectors that have one.
    """

    bounds: ClassVar[tuple[float, float]] = (-LARGEST, LARGEST)

    def __init__(self, streams: int, **settings: Any) -> None:
        if streams < 1:
            raise ValueError(f"a detector needs at least one stream, not {streams}")
        self.streams = streams
        self.settings: Mapping[str, Any] = settings
        self.seen = np.zeros(streams, np.int64)
        self.skipped = np.zeros(streams, np.int64)
        self.alarms = np.zeros(streams, np.int64)
        self.warning = np.zeros(streams, np.bool_)
        self._fresh = self._initial()
        self._state = {name: np.repeat(row[np.newaxis], streams, axis=0) for name, row in self._fresh.items()}

    @abstractmethod
    def _initial(self) -> State:
        """One row of the state: what a stream without values has."""

    @abstractmethod
    def _step(self, state: State, values: Array) -> tuple[Bools, Bools]:
        """Move every row of `state`, in place, by one finite value each; returns (alarm, warning) per row."""

    def update(self, values: npt.ArrayLike) -> Bools:
        """Move by one step, `values` of shape (streams,), or by a block of them, (steps, streams); oldest first.

        Returns where an alarm was raised, in the shape of `values`. A stream starts anew after its alarm. Raises
        ValueError for any other shape.
        """
        given = np.asarray(values, np.float64)
        block = given[np.newaxis] if given.ndim == 1 else given
        if block.ndim != 2 or block.shape[1] != self.streams:
            raise ValueError(
                f"expected values of shape ({self.streams},) or (steps, {self.streams}), not {given.shape}"
            )
        low, high = self.bounds
        usable = (block >= low) & (block <= high)  # False for NaN
        complete: list[bool] = np.logical_and.reduce(usable, axis=1).tolist()
        alarms = np.zeros(block.shape, np.bool_)
        for step, all_usable in enumerate(complete):
            rows = None if all_usable else np.flatnonzero(usable[step])
            self._advance(block[step], rows, alarms[step])
        self.seen += usable.sum(axis=0)
        self.skipped += (~usable).sum(axis=0)
        self.alarms += alarms.sum(axis=0)
        return alarms if given.ndim == 2 else alarms[0]

    def _advance(self, values: Array, rows: Array | None, alarms: Bools) -> None:
        """One step of all streams, or of the rows that have a usable value; writes into `alarms`."""
        if rows is None:
            alarm, self.warning = self._step(self._state, values)
            alarms[:] = alarm
        elif rows.size:
            part = {name: array[rows] for name, array in self._state.items()}
            alarm, warning = self._step(part, values[rows])
            for name, array in self._state.items():
                array[rows] = part[name]
            self.warning = self.warning.copy()
            self.warning[rows] = warning
            alarms[rows] = alarm
        if alarms.any():
            for name, array in self._state.items():
                array[alarms] = self._fresh[name]

    @property
    def nbytes(self) -> int:
        """Bytes of state, which do not grow with the length of the streams."""
        return sum(array.nbytes for array in self._arrays().values())

    def _arrays(self) -> State:
        counters = {"seen": self.seen, "skipped": self.skipped, "alarms": self.alarms, "warning": self.warning}
        return counters | {f"state.{name}": array for name, array in self._state.items()}

    def to_bytes(self) -> bytes:
        """Settings and state; equal states give equal bytes."""
        arrays = {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in self._arrays().items()}
        saved = _Saved(type(self).__name__, {"streams": self.streams, **self.settings}, arrays)
        return msgspec.msgpack.encode(saved)

    def load(self, data: bytes) -> None:
        """Replace the state by one that `to_bytes` gave. Raises ValueError where it is not one of this detector's."""
        try:
            saved = msgspec.msgpack.decode(data, type=_Saved)
        except msgspec.MsgspecError as error:
            raise ValueError("not the saved state of a detector") from error
        if (saved.kind, saved.settings) != (type(self).__name__, {"streams": self.streams, **self.settings}):
            raise ValueError(f"the state is of {saved.kind} with other settings than those of {self!r}")
        own = self._arrays()
        form = {name: (array.dtype.str, array.shape) for name, array in own.items()}
        if {name: (dtype, shape) for name, (dtype, shape, _) in saved.arrays.items()} != form:
            raise ValueError(f"the arrays of the state are not those of {self!r}")
        if any(len(raw) != own[name].nbytes for name, (_, _, raw) in saved.arrays.items()):
            raise ValueError("the state is cut short")
        for name, (dtype, shape, raw) in saved.arrays.items():
            own[name][...] = np.frombuffer(raw, np.dtype(dtype)).reshape(shape)

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"{type(self).__name__}({self.streams}{settings})"


def running_mean(count: Array, mean: Array, values: Array) -> None:
    """Move counts and means by one value each, in place: mean += (1 / count) * (value - mean).

    Written in this order because the detectors are compared with others to the last bit.
    """
    count += 1.0
    mean += (1.0 / count) * (values - mean)
