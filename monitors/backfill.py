"""Backfill: a watcher is fed all predictions of a version that are kept, from archive and segments, in order of time.

It is the same watcher as in the service, so its counts are those of a service that read the same rows, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gateway.journal import archive, shelves
from gateway.journal.columns import Tensor, source_of, tensors_of, to_array
from gateway.journal.reader import Damaged, Segment
from gateway.journal.schema import VARYING, SegmentSpec
from monitors.alarms import Alarm
from monitors.merge import Origin, Piece, merged
from monitors.tail import ANSWERED, Tail, flat
from monitors.types import Array, Columns
from monitors.watcher import Watcher

Key = tuple[str, int]


class Backfill:
    """The predictions of one version that are kept in a data folder.

    `rows` of them, about. By the prefix of a segment: `bare`, rows whose inputs have been taken away, which cannot be
    counted; `damaged`, why it could not be read (to its end). `first_ns`, `last_ns`: the time of what was counted.
    """

    def __init__(self, data: Path, key: Key) -> None:
        """Raises OSError."""
        self.key = key
        self.bare: dict[str, int] = {}
        self.damaged: dict[str, str] = {}
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self._tail = Tail(data / "journal")
        own = {prefix for prefix, spec in self._tail.specs().items() if (spec.model, spec.version) == key}
        self.damaged.update(self._tail.damaged)
        found: dict[str, Origin] = {}
        for place in shelves.places(data / shelves.FOLDER, *key):
            try:
                origin = self._archived(place, data / shelves.FOLDER)
            except Damaged as error:
                self.damaged[place.prefix] = str(error)
                continue
            if origin is not None:
                found[place.prefix] = origin
        # What is in the archive cannot be released while it is read; a segment can.
        self._cursors = {prefix: self._tail.waiting(prefix) for prefix in own & set(found)}
        for prefix in own - set(found):
            opened_ns = shelves.opened_ns(prefix)
            found[prefix] = Origin(opened_ns, prefix, self._tail.waiting(prefix), self._segment(prefix))
            self.bare.pop(prefix, None)
        self._origins = list(found.values())
        self.rows = sum(origin.rows for origin in self._origins)

    def _archived(self, place: shelves.Place, folder: Path) -> Origin | None:
        """A file of the archive; None where its inputs have been taken away."""
        schema = archive.read_schema(place.path)
        rows = pq.read_metadata(place.path).num_rows
        if source_of(schema).bare:
            self.bare[place.prefix] = rows
            return None
        index = shelves.index_of(folder, place.prefix)
        return Origin(shelves.opened_ns(place.prefix), place.prefix, rows, lambda: archived(place.path, index))

    def _segment(self, prefix: str) -> Callable[[], Iterator[Piece]]:
        def read() -> Iterator[Piece]:
            for rows in self._tail.read(prefix):
                yield Piece(rows.columns, rows.loose, rows.stop - rows.start, rows.requests, rows.stop)

        return read

    def run(self, watcher: Watcher, until_ns: int, advance: Callable[[int], None] = lambda rows: None) -> list[Alarm]:
        """Feed a fresh watcher, close all blocks that ended by `until_ns`; the alarms that were raised on the way.

        Afterwards its cursors are behind the rows of every segment that was read. `advance` is told of rows.
        """
        raised: list[Alarm] = []
        for turn in merged(self._origins, self._fail):
            self._feed(watcher, turn.piece)
            raised += watcher.close(min(turn.complete_ns, until_ns))
            advance(turn.piece.rows)
        raised += watcher.close(until_ns)
        watcher.cursors = self._cursors | self._tail.cursors
        return raised

    def _fail(self, prefix: str, why: str) -> None:
        self.damaged[prefix] = why

    def _feed(self, watcher: Watcher, piece: Piece) -> None:
        columns = piece.columns
        if len(columns):
            first, last = int(columns.time_ns.min()), int(columns.time_ns.max())
            self.first_ns = first if self.first_ns is None else min(first, self.first_ns)
            self.last_ns = last if self.last_ns is None else max(last, self.last_ns)
        watcher.update(columns, piece.loose, piece.requests)


def versions(data: Path, model: str | None = None, version: int | None = None) -> list[Key]:
    """The versions of which there are predictions, of all models or of one."""
    keys = {(place.model, place.version) for place in shelves.places(data / shelves.FOLDER, model, version)}
    keys |= {(spec.model, spec.version) for spec in Tail(data / "journal").specs().values()}
    return sorted(key for key in keys if model in (None, key[0]) and version in (None, key[1]))


def archived(path: Path, index: Path) -> Iterator[Piece]:
    """The rows of a file of the archive as a tail would have read them of its segment. Raises Damaged, OSError.

    `index`: what is left of the segment. It tells requests that had columns from larger ones, whose rows the file
    shows in the same way.
    """
    schema = archive.read_schema(path)
    spec = source_of(schema).segment
    own = {(column.group, column.name) for column in spec.columns}
    tensors = [each for each in tensors_of(spec) if (each.group, each.name) in own or _is_text(each)]
    wanted = ["row", "time_ns", "status", "latency_ns", "whole", *(each.field for each in tensors)]
    loose = _without_columns(spec, index)
    begun = 0
    for batch in archive.read(path, wanted):
        rows = batch.num_rows
        if batch.column("row").null_count:
            # Requests that were refused before they had a row.
            yield Piece(Columns(np.empty(0, np.int64)), 0, rows)
            continue
        begins = _numbers(batch, "row") == 0
        request = begun + np.cumsum(begins) - 1
        begun += int(np.count_nonzero(begins))
        if begun > len(loose):
            raise Damaged(f"{path.name} has more requests than what is left of its segment")
        apart = loose[request] | np.asarray(batch.column("whole").to_numpy(zero_copy_only=False), np.bool_)
        answered = (_numbers(batch, "status") == ANSWERED) & ~apart
        keep: Any = slice(None) if answered.all() else answered
        requests = Columns(
            _numbers(batch, "time_ns")[begins],
            {name: _numbers(batch, name)[begins].astype(np.int64) for name in ("status", "latency_ns")},
        )
        yield Piece(_columns(batch, tensors, keep), int(np.count_nonzero(begins & apart)), rows, requests)


def _columns(batch: pa.RecordBatch, tensors: list[Tensor], keep: Any) -> Columns:
    features: dict[str, Array] = {}
    outputs: dict[str, Array] = {}
    for tensor in tensors:
        column = batch.column(tensor.field)
        if _is_text(tensor):
            if column.null_count < len(column):
                features[tensor.name] = _texts(column, tensor)[keep]
            continue
        values = to_array(column, tensor)
        if tensor.group == "input":
            features.update(flat(tensor.name, values[keep]))
            continue
        if column.null_count:
            # Not computed, because nobody asked for it: missing, and no zero.
            values = values.astype(np.float64)
            values[np.asarray(column.is_null())] = np.nan
        outputs[tensor.name] = values[keep]
    return Columns(_numbers(batch, "time_ns")[keep], features, outputs)


def _without_columns(spec: SegmentSpec, index: Path) -> Array:
    """bool, by request in their order: whether its values had no columns in the segment. Raises Damaged, OSError."""
    left = Segment.open(index)
    rows = left.rows()
    status, span = left.column("status")[:rows] != 0, left.column("span")[:rows]
    begins = np.flatnonzero(status & (span > 0))
    beside = [each for each in spec.side if each.group == "input"]
    if any(each.shape == VARYING or (each.dtype != "|O" and spec.kept.get(each.name) == "full") for each in beside):
        # Rows of no fixed shape: no request of this version had columns.
        return np.ones(len(begins), np.bool_)
    taken = np.add.reduceat(status.astype(np.int64), begins) if len(begins) else np.empty(0, np.int64)
    # A request of several rows that took one row of the segment was larger than a block.
    apart: Array = (span[begins] > 1) & (taken == 1)
    return apart


def _is_text(tensor: Tensor) -> bool:
    return tensor.group == "input" and tensor.dtype == "|O" and tensor.fixed and tensor.keep.split()[0] == "full"


def _texts(column: pa.Array, tensor: Tensor) -> Array:
    """Strings as a tail reads them from frames: that of a row by itself, several as one text."""
    texts = np.empty(len(column), object)
    if tensor.shape in ((), (1,)):
        texts[:] = column.to_pylist()
        return texts
    for place, value in enumerate(column.to_pylist()):
        if value is not None:
            nested = np.array(value, object).reshape(tensor.shape).tolist()
            texts[place] = nested[0] if len(nested) == 1 else str(nested)
    return texts


def _numbers(batch: pa.RecordBatch, name: str) -> Array:
    numbers: Array = batch.column(name).to_numpy(zero_copy_only=False)
    return numbers
