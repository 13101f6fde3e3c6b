"""Extents: checksums over stretches of a segment's rows, in a table that no crash takes more from than its last entry.

::

    closed  closed  ...  closed | open  open

A closed extent begins where the one before it ends; `Control.EXTENTS` counts them. Behind them are two places for the
one that is still open and grows: it is written into them by turns, so that what is on the disk stays as it is while
the next is on its way there. Long enough, it is closed by being counted, from the first place alone and only after it
was flushed: nothing is moved. A closed extent has at least 1 / `MOST` of all rows, so the table lasts for the whole
segment, however often rows are flushed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from gateway.journal.schema import MAX_EXTENTS, Control
from gateway.types import Array

MOST = MAX_EXTENTS // 2


class Extent(NamedTuple):
    """Rows `start` to `stop` and their checksum; `fits`: they are still what it was taken of."""

    start: int
    stop: int
    checksum: int
    fits: bool

    @property
    def words(self) -> str:
        """What is wrong with one that does not fit."""
        return f"rows {self.start} to {self.stop - 1} do not fit their checksum"


class Table(NamedTuple):
    """What a table says. `problem`: in words, why it cannot be read further; empty where it can."""

    extents: list[Extent]
    problem: str


class Extents:
    """The table of a segment that is written. Belongs to the thread that flushes it."""

    def __init__(self, table: Array, control: Array, columns: Sequence[Array], capacity: int) -> None:
        self._table = table
        self._control = control
        self._columns = columns
        self._least = -(-capacity // MOST)
        self._closed = 0
        self._place = 0
        self.protected = 0
        """Rows that have a checksum."""

    def protect(self, stop: int) -> None:
        """Checksum the rows up to `stop`; where it has to outlive the machine, the file is flushed after each call."""
        if stop == self.protected:
            return
        count = int(self._control[Control.EXTENTS])
        if self._place == 1 and self.protected - self._closed >= self._least:
            count += 1
            self._control[Control.EXTENTS] = count
            self._closed = self.protected
            self._place = 0
        # A kill between two of these leaves an entry of no rows, and the one beside it counts.
        entry = self._table[count + self._place : count + self._place + 1]
        entry["stop"] = 0
        entry["hash"] = checksum(self._columns, self._closed, stop)
        entry["stop"] = stop
        self.protected = stop
        self._place = 1 - self._place

    def entries(self) -> Array:
        """The closed extents and the last open one, as a table in which all are closed."""
        count = int(self._control[Control.EXTENTS])
        last = count + 1 - self._place
        grown = self._table[last : last + 1] if self.protected > self._closed else self._table[:0]
        return np.concatenate((self._table[:count], grown))


def read(table: Array, control: Array, columns: Sequence[Array], capacity: int) -> Table:
    """The extents of a segment in order, and whether they fit; of the open one what fits, and then what does not."""
    count = int(control[Control.EXTENTS])
    if not 0 <= count <= MAX_EXTENTS:
        return Table([], f"it says that it has {count} extents")
    found: list[Extent] = []
    start = 0
    for stop, expected in table[:count].tolist():
        if not start <= stop <= capacity:
            return Table(found, f"an extent ends at row {stop}, after row {start} of {capacity}")
        found.append(Extent(start, stop, expected, checksum(columns, start, stop) == expected))
        start = stop
    grown = [
        Extent(start, stop, expected, checksum(columns, start, stop) == expected)
        for stop, expected in sorted(table[count : count + 2].tolist())
        if start < stop <= capacity
    ]
    if len(grown) == 2 and grown[0].fits and not grown[1].fits:
        return Table([*found, grown[0], grown[1]._replace(start=grown[0].stop)], "")
    return Table(found + grown[-1:], "")


def checksum(columns: Sequence[Array], start: int, stop: int) -> int:
    """XXH3 over rows `start` to `stop` of every column, in their order. It runs at the speed of memory."""
    digest = xxhash.xxh3_64()
    for array in columns:
        digest.update(array[start:stop].reshape(-1).view(np.uint8).data)
    return digest.intdigest()
