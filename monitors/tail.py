"""Tail: the rows that the journal has gained since the last look, as columns, each exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from gateway.journal.frames import MAGIC, Torn, scan
from gateway.journal.reader import Damaged, Segment, segments, tensors
from gateway.journal.schema import Form, SegmentSpec
from monitors.types import Array, Columns

BATCH_ROWS = 65_536
ANSWERED = 200


class Rows(NamedTuple):
    """Rows `start` to `stop` of one segment: those that were answered as `columns`, and what else was there.

    `operation`: int64 arrays time_ns, status and latency_ns of every request among them, answered or not. `loose`: rows
    of requests whose values have no columns, which monitors do not see.
    """

    prefix: str
    start: int
    stop: int
    columns: Columns
    operation: dict[str, Array]
    loose: int


class Frames:
    """The frames of a segment in the order of their rows: strings that belong to the columns."""

    def __init__(self, segment: Segment) -> None:
        self._path = segment.path.with_suffix(".side")
        self._offset = len(MAGIC)

    def seek(self, offset: int) -> None:
        """Go on at a frame: offset 0 means nothing."""
        self._offset = max(offset, len(MAGIC))

    def inputs(self, names: list[str], start: int, stop: int, first: int) -> dict[str, Array]:
        """Object arrays (stop - start, ...) of the inputs that stand in frames; None where there is none."""
        found = {name: np.full(stop - start, None, object) for name in names}
        if first <= 0:
            return found
        with self._path.open("rb") as file:
            file.seek(first)
            data = file.read()
        for item in scan(data, 0):
            if isinstance(item, Torn):
                break
            frame = msgspec.msgpack.decode(item.payload)
            row = frame.get("row")
            if row is None:
                continue
            if row >= stop:
                break
            for name, values in tensors(frame.get("inputs", {})).items():
                if name in found and isinstance(values, list):
                    at = max(row, start)
                    own = [each[0] if isinstance(each, list) and len(each) == 1 else str(each) for each in values]
                    part = own[at - row : stop - row]
                    found[name][at - start : at - start + len(part)] = part
        return found


class Tail:
    """Reads what is new in the segments of a journal. `cursors` are the rows read of each segment, by its prefix."""

    def __init__(self, folder: Path, cursors: dict[str, int] | None = None) -> None:
        self._folder = folder
        self._open: dict[str, Segment] = {}
        self.cursors = dict(cursors or {})
        self.damaged: dict[str, str] = {}

    def specs(self) -> dict[str, SegmentSpec]:
        """Every segment that is there, by prefix, oldest first; new ones are opened."""
        present = {path.stem: path for path in segments(self._folder)}
        for prefix in [prefix for prefix in self._open if prefix not in present]:
            del self._open[prefix]
        for prefix, path in present.items():
            if prefix not in self._open and prefix not in self.damaged:
                try:
                    self._open[prefix] = Segment.open(path)
                except Damaged as error:
                    self.damaged[prefix] = str(error)
                except FileNotFoundError:
                    continue
        return {prefix: self._open[prefix].spec for prefix in present if prefix in self._open}

    def waiting(self, prefix: str) -> int:
        """Rows of a segment that were not read yet."""
        segment = self._open[prefix]
        return segment.rows() - self.cursors.get(prefix, 0)

    def next_time_ns(self, prefix: str) -> int | None:
        """When the next unread row of a segment came; None where there is none."""
        segment, cursor = self._open[prefix], self.cursors.get(prefix, 0)
        return int(segment.column("time_ns")[cursor]) if cursor < segment.rows() else None

    def is_done(self, prefix: str) -> bool:
        """Whether nothing more will come from a segment."""
        segment = self._open[prefix]
        return segment.sealed and self.waiting(prefix) == 0

    def read(self, prefix: str, limit: int = BATCH_ROWS) -> Iterator[Rows]:
        """What is new in one segment, in stretches of at most `limit` rows; the cursor moves behind each of them."""
        segment = self._open[prefix]
        while (start := self.cursors.get(prefix, 0)) < (end := segment.rows()):
            stop = min(end, start + limit)
            rows = _rows(segment, start, stop)
            self.cursors[prefix] = stop
            yield rows

    def forget(self, prefixes: set[str]) -> None:
        """Drop the cursors of segments that are gone for good."""
        for prefix in prefixes:
            self.cursors.pop(prefix, None)


def _rows(segment: Segment, start: int, stop: int) -> Rows:
    part = slice(start, stop)
    status = segment.column("status")[part]
    form = segment.column("form")[part]
    answered = (status == ANSWERED) & (form == Form.COLUMNS)
    keep: Any = slice(None) if answered.all() else answered
    features: dict[str, Array] = {}
    for name, array in segment.inputs.items():
        features.update(flat(name, array[part][keep]))
    spec = segment.spec
    strings = [name for name in spec.kept if name not in segment.inputs and name not in segment.outputs]
    offsets = segment.column("side")[part]
    if strings and len(positive := offsets[offsets > 0]):
        for name, array in Frames(segment).inputs(strings, start, stop, int(positive.min())).items():
            if any(value is not None for value in array):
                features[name] = array[keep]
    outputs = {name: array[part][keep] for name, array in segment.outputs.items()}
    begins = segment.column("span")[part] > 0
    operation = {
        name: segment.column(name)[part][begins].astype(np.int64) for name in ("time_ns", "status", "latency_ns")
    }
    columns = Columns(segment.column("time_ns")[part][keep], features, outputs)
    return Rows(spec.prefix, start, stop, columns, operation, int(np.count_nonzero(form != Form.COLUMNS)))


def flat(name: str, array: Array) -> dict[str, Array]:
    """A tensor as columns: one of several values a row gives ``name[0]``, ``name[1]`` and so on."""
    if array.ndim == 1:
        return {name: array}
    wide = array.reshape(len(array), -1)
    if wide.shape[1] == 1:
        return {name: wide[:, 0]}
    return {f"{name}[{index}]": wide[:, index] for index in range(wide.shape[1])}
