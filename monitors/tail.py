"""Tail: the rows that the journal has gained since the last look, as columns, each exactly once."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from gateway.journal.frames import Torn, scan
from gateway.journal.reader import Damaged, Segment, segments, tensors
from gateway.journal.schema import FRAME_BEGINS, SIDE_SUFFIX, Form, SegmentSpec
from monitors.types import Array, Columns

BATCH_ROWS = 65_536
ANSWERED = 200


class Rows(NamedTuple):
    """Rows `start` to `stop` of one segment: those that were answered as `columns`, and what else was there.

    `requests`: every request among them, answered or not, with the features status and latency_ns, int64. `loose`:
    rows of requests whose values have no columns, which monitors do not see.
    """

    prefix: str
    start: int
    stop: int
    columns: Columns
    requests: Columns
    loose: int


class Beside(NamedTuple):
    """What the frames of a segment hold of some of its rows.

    `strings`: object arrays (rows, ...) of inputs without a column, None where there is none. `unasked`: rows, from the
    first one on, whose outputs of these names were not computed, because nobody had asked for them.
    """

    strings: dict[str, Array]
    unasked: list[tuple[slice, frozenset[str]]]


def beside(segment: Segment, names: list[str], start: int, stop: int, first: int) -> Beside:
    """What stands in frames of rows `start` to `stop`; the first of these frames begins at byte `first`."""
    found = Beside({name: np.full(stop - start, None, object) for name in names}, [])
    with segment.path.with_suffix(SIDE_SUFFIX).open("rb") as file:
        # Mapped and not read: only the frames of these rows are looked at, however many follow them.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for item in scan(data, first, FRAME_BEGINS):
        if isinstance(item, Torn):
            continue
        frame = msgspec.msgpack.decode(item.payload)
        row = frame.get("row")
        if row is None:
            continue
        if row >= stop:
            break
        rows = slice(max(row, start) - start, min(row + frame["n"], stop) - start)
        if "only" in frame:
            found.unasked.append((rows, frozenset(segment.outputs) - set(frame["only"])))
        for name, values in tensors(frame.get("inputs", {})).items():
            if name in found.strings and isinstance(values, list):
                own = [each[0] if isinstance(each, list) and len(each) == 1 else str(each) for each in values]
                found.strings[name][rows] = own[rows.start + start - row : rows.stop + start - row]
    return found


class Tail:
    """Reads what is new in the segments of a journal. `cursors` are the rows read of each segment, by its prefix."""

    def __init__(self, folder: Path, cursors: dict[str, int] | None = None) -> None:
        self._folder = folder
        self._open: dict[str, Segment] = {}
        self._done: dict[str, SegmentSpec] = {}
        self.cursors = dict(cursors or {})
        self.damaged: dict[str, str] = {}

    def specs(self) -> dict[str, SegmentSpec]:
        """Every segment that is there, by prefix, oldest first; new ones are opened, those that are done are closed."""
        present = {path.stem: path for path in segments(self._folder)}
        for prefix, segment in list(self._open.items()):
            # A mapping holds its file, also after a smaller one has taken its name.
            if self.is_done(prefix):
                self._done[prefix] = segment.spec
            if prefix in self._done or prefix not in present:
                del self._open[prefix]
        for prefix in [prefix for prefix in self._done if prefix not in present]:
            del self._done[prefix]
        for prefix, path in present.items():
            if prefix not in self._open and prefix not in self._done and prefix not in self.damaged:
                try:
                    self._open[prefix] = Segment.open(path)
                except Damaged as error:
                    self.damaged[prefix] = str(error)
                except FileNotFoundError:
                    continue
        known = {prefix: segment.spec for prefix, segment in self._open.items()} | self._done
        return {prefix: known[prefix] for prefix in present if prefix in known}

    def waiting(self, prefix: str) -> int:
        """Rows of a segment that were not read yet."""
        segment = self._open.get(prefix)
        return 0 if segment is None else segment.rows() - self.cursors.get(prefix, 0)

    def is_done(self, prefix: str) -> bool:
        """Whether nothing more will come from a segment."""
        segment = self._open.get(prefix)
        return segment is None or (segment.sealed and self.waiting(prefix) == 0)

    def leave(self, prefix: str) -> None:
        """Close a segment that nobody will read, once nothing more can come."""
        segment = self._open.get(prefix)
        if segment is not None and segment.sealed:
            self._done[prefix] = segment.spec

    def read(self, prefix: str, limit: int = BATCH_ROWS) -> Iterator[Rows]:
        """What is new in one segment, in stretches of at most `limit` rows; the cursor moves behind each of them."""
        segment = self._open.get(prefix)
        if segment is None:
            return
        while (start := self.cursors.get(prefix, 0)) < (end := segment.rows()):
            stop = min(end, start + limit)
            rows = _rows(segment, start, stop)
            self.cursors[prefix] = stop
            yield rows

    def forget(self, model: str, version: int) -> None:
        """Begin anew with the segments of a version: nothing of them was read."""
        known = {prefix: segment.spec for prefix, segment in self._open.items()} | self._done
        for prefix in [prefix for prefix, spec in known.items() if (spec.model, spec.version) == (model, version)]:
            self.cursors.pop(prefix, None)
            self._done.pop(prefix, None)


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
    outputs = {name: array[part] for name, array in segment.outputs.items()}
    strings = [name for name in spec.kept if name not in segment.inputs and name not in segment.outputs]
    offsets = segment.column("side")[part]
    if len(positive := offsets[offsets > 0]):
        found = beside(segment, strings, start, stop, int(positive.min()))
        for name, array in found.strings.items():
            if any(value is not None for value in array):
                features[name] = array[keep]
        for rows, names in found.unasked:
            for name in names:
                # An output that was not computed is missing, and no zero.
                outputs[name] = outputs[name].astype(np.float64)
                outputs[name][rows] = np.nan
    outputs = {name: array[keep] for name, array in outputs.items()}
    begins = segment.column("span")[part] > 0
    begun = {name: segment.column(name)[part][begins].astype(np.int64) for name in ("status", "latency_ns")}
    requests = Columns(segment.column("time_ns")[part][begins].astype(np.int64), begun)
    columns = Columns(segment.column("time_ns")[part][keep], features, outputs)
    return Rows(spec.prefix, start, stop, columns, requests, int(np.count_nonzero(form != Form.COLUMNS)))


def flat(name: str, array: Array) -> dict[str, Array]:
    """A tensor as columns: one of several values a row gives ``name[0]``, ``name[1]`` and so on."""
    if array.ndim == 1:
        return {name: array}
    wide = array.reshape(len(array), math.prod(array.shape[1:]))
    if wide.shape[1] == 1:
        return {name: wide[:, 0]}
    return {f"{name}[{index}]": wide[:, index] for index in range(wide.shape[1])}
