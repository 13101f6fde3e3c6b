"""What every monitor of labelled performance shares: a state that can be added to, merged, and taken back from.

A prediction is counted when it is made and its label when it comes, maybe days later, maybe in another process, maybe
twice. So a state has two parts that add up separately: `update` counts predictions (and the labels that came along),
`label` counts labels of predictions that were counted before, and `retract` takes superseded labels out again. All of
them are sums of integers: any order, partition and merge gives the same state, and `retract` undoes `label` exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

import msgspec
import numpy as np

from monitors.performance import exact
from monitors.performance.figure import plain
from monitors.types import Array, Columns, Counts

LARGEST = 1e70  # of a value: the fourth power of an error, times a weight, is still a double
HEAVIEST = 1e20  # of a weight


class _Saved(msgspec.Struct, array_like=True):
    """The form in which a state is saved."""

    kind: str
    settings: str
    counts: dict[str, tuple[tuple[int, ...], bytes]]
    sums: dict[str, list[tuple[int, bytes]]]


class Tally(ABC):
    """A mergeable, reversible state: `counts` are int64 arrays, `sums` object arrays of exact integers."""

    def __init__(self, **settings: Any) -> None:
        self.settings: Mapping[str, Any] = settings
        self.counts: dict[str, Counts] = {}
        self.sums: dict[str, Array] = {}

    @abstractmethod
    def _predict(self, columns: Columns) -> None:
        """Count the predictions."""

    @abstractmethod
    def _judge(self, columns: Columns, sign: int) -> None:
        """Count the labels of the labelled rows (`sign` 1), or take them out (-1)."""

    @abstractmethod
    def figures(self) -> Mapping[str, Any]:
        """What the state says, by name: `Figure`s, and what could not be used."""

    def value(self) -> Mapping[str, Any]:
        """The figures as plain mappings, for JSON; numbers that are not known are None, never NaN."""
        found: Mapping[str, Any] = plain(self.figures())
        return found

    def update(self, columns: Columns) -> None:
        """Count predictions, and the labels that some of them may have already."""
        self._predict(columns)
        self._judge(columns, 1)

    def label(self, columns: Columns) -> None:
        """Count labels of predictions that `update` has counted, here or in a state to be merged."""
        self._judge(columns, 1)

    def retract(self, columns: Columns) -> None:
        """Take out labels that `update` or `label` has counted, given the same predictions and the old labels."""
        self._judge(columns, -1)

    def merge(self, other: Self) -> None:
        """Add the state of another. Raises ValueError where the two do not have the same settings."""
        if type(other) is not type(self) or other.settings != self.settings:
            raise ValueError(f"{self!r} cannot be merged with {other!r}")
        for name, counts in other.counts.items():
            self.counts[name] += counts
        for name, sums in other.sums.items():
            self.sums[name] = self.sums[name] + sums

    def to_bytes(self) -> bytes:
        """Settings and state; equal states give equal bytes."""
        counts = {name: (array.shape, array.astype("<i8").tobytes()) for name, array in self.counts.items()}
        sums = {name: [exact.to_pair(each) for each in array.tolist()] for name, array in self.sums.items()}
        return msgspec.msgpack.encode(_Saved(type(self).__name__, repr(self), counts, sums))

    def load(self, data: bytes) -> None:
        """Replace the state by one that `to_bytes` gave. Raises ValueError where it is not one of this monitor's."""
        try:
            saved = msgspec.msgpack.decode(data, type=_Saved)
        except msgspec.MsgspecError as error:
            raise ValueError("not the saved state of a performance monitor") from error
        if (saved.kind, saved.settings) != (type(self).__name__, repr(self)):
            raise ValueError(f"the state is of {saved.settings[:200]} and not of {self!r}")
        shapes = {name: shape for name, (shape, _) in saved.counts.items()}
        lengths = {name: len(pairs) for name, pairs in saved.sums.items()}
        if shapes != {name: each.shape for name, each in self.counts.items()} or lengths != {
            name: len(each) for name, each in self.sums.items()
        }:
            raise ValueError(f"the arrays of the state are not those of {self!r}")
        if any(len(raw) != self.counts[name].nbytes for name, (_, raw) in saved.counts.items()):
            raise ValueError("the state is cut short")
        for name, (shape, raw) in saved.counts.items():
            self.counts[name] = np.frombuffer(raw, "<i8").reshape(shape).astype(np.int64)
        for name, pairs in saved.sums.items():
            self.sums[name][:] = [exact.from_pair(*pair) for pair in pairs]

    @property
    def nbytes(self) -> int:
        """Bytes of the state; it does not grow with the rows, but for the digits of its sums."""
        digits: int = sum(each.bit_length() // 8 + 28 for array in self.sums.values() for each in array.tolist())
        return digits + sum(array.nbytes for array in self.counts.values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"

    def fresh(self) -> Self:
        """A monitor with the same settings and nothing counted."""
        return type(self)(**self.settings)

    def negative(self) -> int:
        """Labels taken out that were not counted here: above 0 only until the states they belong to are merged."""
        return sum(int(-np.minimum(array, 0).sum()) for array in self.counts.values())


def labelled(columns: Columns, name: str) -> tuple[Array, Array]:
    """The rows (m,) that have a label of that name, and their labels (m,)."""
    labels = columns.labels.get(name)
    if labels is None:
        return np.zeros(0, np.int64), np.zeros(0)
    mask = columns.labelled.get(name)
    rows = np.arange(len(columns)) if mask is None else np.flatnonzero(mask)
    return rows, np.asarray(labels)[rows]


def floats(values: Array | None, rows: int) -> Array:
    """`values` as float64, NaN for what is no number; all NaN where the column is absent. (rows,) or (rows, k)."""
    if values is None:
        return np.full(rows, np.nan)
    array = np.asarray(values)
    if array.dtype.kind in "biuf":
        return array.astype(np.float64)
    out = np.full(array.shape, np.nan)
    for place, each in enumerate(array.ravel().tolist()):
        if isinstance(each, int | float):
            with suppress(OverflowError):
                out.flat[place] = float(each)
    return out


def one_column(values: Array | None, rows: int, place: int = 0) -> Array:
    """(rows,) float64 from (rows,) or from column `place` of (rows, k); all NaN for any other shape."""
    found = floats(values, rows)
    if found.ndim == 2 and found.shape[1]:
        found = found[:, place]
    return found if found.shape == (rows,) else np.full(rows, np.nan)


def weights(columns: Columns, name: str | None, rows: Array) -> Array | None:
    """The weights of `rows`, by the name of a feature; NaN where one is no number from 0 to HEAVIEST."""
    if name is None:
        return None
    found = floats(columns.features.get(name), len(columns))[rows]
    return np.where((found >= 0) & (found <= HEAVIEST), found, np.nan)


def class_index(values: Array | None, classes: tuple[Any, ...], rows: int) -> Array:
    """The place of each value in `classes`, (rows,) int64; -1 for what is not one of them."""
    if values is None:
        return np.full(rows, -1, np.int64)
    array = np.asarray(values)
    if array.dtype.kind in "biuf":
        numeric = [(float(each), place) for place, each in enumerate(classes) if isinstance(each, int | float)]
        if not numeric:
            return np.full(len(array), -1, np.int64)
        known, places = (np.array(each) for each in zip(*sorted(numeric), strict=True))
        near = np.minimum(np.searchsorted(known, array), len(known) - 1)
        return np.where(known[near] == array, places[near], -1)
    table = {each: place for place, each in enumerate(classes)}
    hashable = str | int | float
    return np.array([table.get(each, -1) if isinstance(each, hashable) else -1 for each in array.tolist()], np.int64)
