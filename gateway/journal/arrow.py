"""A segment as Arrow tables: one row for each row of each request, in the columns of journal.columns."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from gateway.journal.columns import Tensor, fields_of, prediction_ids, schema_of, tensors_of
from gateway.journal.keep import DIGEST_BYTES, SUMMARY
from gateway.journal.reader import Segment, Side
from gateway.journal.schema import Form
from gateway.types import Array

CHUNK_BYTES = 32 << 20
CHUNK_ROWS = 1 << 16

_KNOWN = frozenset({"row", "n", "inputs", "outputs", "notes", "digest", "summary", "samples", "code", "only"})
_REFUSED = frozenset({"refused", "status", "message", "time_ns", "latency_ns", "request_id"})


def batches(segment: Segment, columns: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a segment in pieces that end with a run; last what was refused. `columns`: only these.

    Arrays that lie in the segment as the table has them are views of its file. Raises Damaged.
    """
    schema = schema_of(segment.spec)
    tensors = tensors_of(segment.spec)
    if columns is not None:
        schema = pa.schema([field for field in schema if field.name in columns], schema.metadata)
        tensors = [each for each in tensors if not set(columns).isdisjoint(fields_of(each))]
    step = max(1, min(CHUNK_ROWS, CHUNK_BYTES // segment.spec.row_bytes))
    start, stop = 0, segment.rows()
    with Side(segment) as side:
        while start < stop:
            end = _boundary(segment, min(start + step, stop), stop)
            batch = _Piece(segment, side, start, end).batch(schema, tensors)
            # Of rows that were taken and never written nothing is left.
            if batch.num_rows:
                yield batch
            start = end
        if (refused := _refused(side, schema)) is not None:
            yield refused


def _boundary(segment: Segment, end: int, stop: int) -> int:
    """The first row from `end` on with which neither a request nor a run goes on."""
    span, batch, run_ns = (segment.column(name) for name in ("span", "batch", "run_ns"))
    while end < stop:
        inside = span[end] == 0 and segment.column("status")[end] != 0
        same_run = batch[end] > 1 and batch[end] == batch[end - 1] and run_ns[end] == run_ns[end - 1]
        if not inside and not same_run:
            break
        end += 1
    return end


class _Piece:
    """Rows `start` to `stop` of a segment on their way to a table."""

    def __init__(self, segment: Segment, side: Side, start: int, stop: int) -> None:
        self.segment = segment
        self.start = start
        take = slice(start, stop)
        self.meta = {name: segment.column(name)[take] for name in ("status", "form", "span", "batch", "side")}
        count = stop - start
        written = self.meta["status"] != 0
        places = np.arange(count)
        begins = (self.meta["span"] > 0) & written
        self.first = places if begins.all() else np.maximum.accumulate(np.where(begins, places, 0))
        offsets: list[int] = []
        if (beside := self.meta["side"] > 0).any():
            offsets = np.unique(self.meta["side"][beside & written]).tolist()
        self.frames = {offset: frame for offset in offsets if "row" in (frame := side.frame(offset))}
        self.lost = [offset for offset in offsets if offset not in self.frames]
        self.counts = written.astype(np.int64)
        self.whole: set[int] = set()
        self.loose = np.flatnonzero(written & (self.meta["form"] == Form.FRAME))
        for index in self.loose.tolist():
            frame = self.frames.get(int(self.meta["side"][index]), {})
            if rows := _splits(frame):
                self.counts[index] = rows
            else:
                self.whole.add(index)
        self.plain = bool((self.counts == 1).all())
        self.begin = places if self.plain else np.cumsum(self.counts) - self.counts
        self.total = int(self.counts.sum())
        self.at = places if self.plain else np.repeat(places, self.counts)

    def take(self, array: Array) -> Array:
        """Values of segment rows as values of table rows."""
        return self._each(array[self.start : self.start + len(self.counts)])

    def _each(self, piece: Array) -> Array:
        """Values of the rows of this piece as values of table rows."""
        return piece if self.plain else piece[self.at]

    def batch(self, schema: pa.Schema, tensors: list[Tensor]) -> pa.RecordBatch:
        """The table of these rows."""
        total = self.total
        wanted = set(schema.names)
        found: dict[str, pa.Array] = {}
        loose = self._each(self.meta["form"] == Form.FRAME)
        first = self._each(self.first)
        rows = self.at - first
        if len(self.loose):
            # A request whose rows are in a frame has one row in the segment, with which it begins.
            first = np.where(loose, self.at, first)
            rows = np.where(loose, np.arange(total) - self.begin[self.at], rows)
        if "prediction_id" in wanted:
            found["prediction_id"] = prediction_ids(self.segment.spec.prefix, first + self.start)
        found["row"] = pa.array(rows.astype(np.int32))
        if "span" in wanted:
            found["span"] = pa.array(self.meta["span"][first].astype(np.int32))
        if "time" in wanted:
            time_ns = self.take(self.segment.column("time_ns"))
            found["time"] = pa.array(time_ns // 1000).cast(pa.timestamp("us", "UTC"))
        for name in wanted & {"time_ns", "latency_ns", "queue_ns", "run_ns"}:
            found[name] = pa.array(self.take(self.segment.column(name)))
        if "key" in wanted:
            key = self.take(self.segment.column("key"))
            found["key"] = pa.array(key, mask=key == 0)
        for name in wanted & {"batch", "route"}:
            found[name] = pa.array(self.take(self.segment.column(name)).astype(np.int32))
        if "sample_rate" in wanted:
            found["sample_rate"] = pa.array(np.full(total, self.segment.spec.sample_rate))
        if "redaction_version" in wanted:
            found["redaction_version"] = pa.array([self.segment.spec.redaction_version] * total, pa.string())
        if "status" in wanted:
            found["status"] = pa.array(self.take(self.segment.column("status")).astype(np.int16))
        found["whole"] = pa.array(np.isin(self.at, list(self.whole)) if self.whole else np.zeros(total, np.bool_))
        self.extra: dict[int, dict[str, Any]] = {}
        self._mark_lost()
        self._texts(found)
        for tensor in tensors:
            if tensor.keep.startswith("digest"):
                self._digests(tensor, found)
            elif tensor.name in self._columns(tensor.group):
                found[tensor.field] = self._column(tensor, loose)
            else:
                self._cells(tensor, found)
        if self.extra:
            packed = [msgspec.msgpack.encode(self.extra[at]) if at in self.extra else None for at in range(total)]
            found["extra"] = pa.array(packed, pa.binary())
        return pa.record_batch(
            [found[field.name] if field.name in found else pa.nulls(total, field.type) for field in schema],
            schema=schema,
        )

    def _columns(self, group: str) -> dict[str, Array]:
        return self.segment.inputs if group == "input" else self.segment.outputs

    def _own(self, offset: int, frame: dict[str, Any]) -> tuple[Array, Array]:
        """Which rows of a frame are its own (places in the frame), and where they begin in the table."""
        index = int(frame["row"]) - self.start
        if self.meta["form"][index] == Form.FRAME:
            rows = np.arange(self.counts[index])
            return rows, self.begin[index] + rows
        rows = np.arange(int(frame["n"]))
        own = (self.meta["side"][index : index + len(rows)] == offset) & (self.counts[index : index + len(rows)] > 0)
        return rows[: len(own)][own], self.begin[index : index + len(rows)][own]

    def _mark_lost(self) -> None:
        """Say of rows whose frame is damaged that something of them is missing."""
        if not self.lost:
            return
        for index in np.flatnonzero(np.isin(self.meta["side"], self.lost) & (self.counts > 0)).tolist():
            for at in range(self.begin[index], self.begin[index] + self.counts[index]):
                self.extra[int(at)] = {"damaged": True}

    def _texts(self, found: dict[str, pa.Array]) -> None:
        """Codes and the names that clients gave; and whatever else a frame holds."""
        if not self.frames:
            return
        texts: dict[str, list[str | None]] = {
            name: [None] * self.total for name in ("code", "request_id", "id", "trace")
        }
        some = set()
        for offset, frame in self.frames.items():
            places = self._own(offset, frame)[1]
            if "code" in frame:
                some.add("code")
                for at in places.tolist():
                    texts["code"][at] = frame["code"]
            for slot, *names in frame.get("notes", ()):
                index = slot - self.start
                if not 0 <= index < len(self.counts) or not len(places):
                    self._beside(offset, "notes", [slot, *names])
                    continue
                rows = int(self.counts[index])
                if self.meta["form"][index] != Form.FRAME:
                    rows = int(self.counts[index : index + int(self.meta["span"][index])].sum())
                at = int(self.begin[index])
                for name, text in zip(("request_id", "id", "trace"), names, strict=False):
                    if text:
                        some.add(name)
                        texts[name][at : at + rows] = [_text(text)] * rows
            others = {name: value for name, value in frame.items() if name not in _KNOWN}
            if others and len(places):
                self.extra.setdefault(int(places[0]), {}).update(others)
        for name in some:
            found[name] = pa.array(texts[name], pa.string())

    def _beside(self, offset: int, name: str, value: Any) -> None:
        """Keep what belongs to no row of this piece with the first row of its frame."""
        first = int(self.frames[offset]["row"]) - self.start
        place = int(self.begin[first]) if 0 <= first < len(self.begin) else 0
        self.extra.setdefault(place, {}).setdefault(name, []).append(value)

    def _framed(self, tensor: Tensor) -> Iterator[tuple[Array, Array]]:
        """Values that frames hold for a tensor: (their places in the table, an array with one entry for each)."""
        group = tensor.group + "s"
        for offset, frame in self.frames.items():
            value = frame.get(group, {}).get(tensor.name)
            rows, places = self._own(offset, frame)
            if value is not None and len(places):
                array = _array(value)
                index = int(frame["row"]) - self.start
                if array is not None and index in self.whole:
                    yield places[:1], array[np.newaxis]
                elif array is not None and array.ndim and len(array) == int(frame["n"]):
                    yield places, array[rows]
                else:
                    self._misfit(tensor, int(places[0]), value)
            sample = frame.get("samples", {}).get(tensor.name)
            if sample is not None:
                array = _array(sample["values"])
                for at, row in enumerate(sample["at"]):
                    if row in rows and array is not None:
                        yield places[rows == row], array[at : at + 1]

    def _misfit(self, tensor: Tensor, place: int, value: Any) -> None:
        self.extra.setdefault(place, {}).setdefault(tensor.group + "s", {})[tensor.name] = value

    def _column(self, tensor: Tensor, loose: Array) -> pa.Array:
        """A tensor whose values lie in the segment, but for those rows that have them in a frame."""
        values = self.take(self._columns(tensor.group)[tensor.name])
        none = loose.copy() if tensor.group == "input" else loose | self._each(self.meta["batch"] == 0)
        for offset, frame in self.frames.items():
            if tensor.group == "output" and tensor.name not in frame.get("only", (tensor.name,)):
                none[self._own(offset, frame)[1]] = True
        owned = False
        for places, array in self._framed(tensor):
            if array.shape[1:] != tensor.shape or array.dtype != values.dtype:
                none[places] = True
                whole = {"d": array.dtype.str, "s": list(array.shape), "b": array.tobytes()}
                self._misfit(tensor, int(places[0]), whole)
                continue
            if not owned:
                values, owned = values.copy(), True
            values[places] = array
            none[places] = False
        mask = none if none.any() else None
        if tensor.width == 1:
            return pa.array(np.ascontiguousarray(values).reshape(-1), mask=mask)
        if tensor.width == 0:
            return pa.array([None if each else [] for each in none.tolist()], tensor.type)
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, type=tensor.type, mask=None if mask is None else pa.array(mask))

    def _cells(self, tensor: Tensor, found: dict[str, pa.Array]) -> None:
        """A tensor whose values lie in frames."""
        cells: list[Any] = [None] * self.total
        shapes: list[Any] = [None] * self.total
        single = tensor.fixed and tensor.width == 1
        for places, array in self._framed(tensor):
            row_shape = list(array.shape[1:])
            flat = array.reshape(len(array), -1)
            for at, row in zip(places.tolist(), flat, strict=True):
                value = _strings(row) if row.dtype == object else row
                if value is None or (tensor.fixed and tuple(row_shape) != tensor.shape):
                    self._misfit(tensor, at, _as_frame(row, row_shape))
                    continue
                cells[at] = value[0] if single else value
                shapes[at] = row_shape
        found[tensor.field] = pa.array(cells, tensor.type)
        if not tensor.fixed:
            found[f"shape_{tensor.field}"] = pa.array(shapes, pa.list_(pa.int32()))

    def _digests(self, tensor: Tensor, found: dict[str, pa.Array]) -> None:
        digests: list[bytes | None] = [None] * self.total
        summaries: list[Array | None] = [None] * self.total
        for offset, frame in self.frames.items():
            rows, places = self._own(offset, frame)
            data = frame.get("digest", {}).get(tensor.name)
            if data is not None:
                means = np.frombuffer(frame["summary"][tensor.name], np.float32).reshape(-1, len(SUMMARY))
                for row, at in zip(rows.tolist(), places.tolist(), strict=True):
                    digests[at] = data[DIGEST_BYTES * row : DIGEST_BYTES * (row + 1)]
                    summaries[at] = means[row]
            value = frame.get(tensor.group + "s", {}).get(tensor.name)
            if value is not None and len(places):
                # Of all rows of a request together.
                self._misfit(tensor, int(places[0]), value)
        found[f"digest_{tensor.field}"] = pa.array(digests, pa.binary(DIGEST_BYTES))
        found[f"summary_{tensor.field}"] = pa.array(summaries, pa.list_(pa.float32(), len(SUMMARY)))


def _splits(frame: dict[str, Any]) -> int:
    """Rows of a request whose values stand in its frame, where axis 0 of all of them counts its rows; else 0."""
    rows = int(frame.get("n", 0))
    arrays = [_array(value) for group in ("inputs", "outputs") for value in frame.get(group, {}).values()]
    fits = [array is not None and array.ndim > 0 and len(array) == rows for array in arrays]
    return rows if fits and all(fits) else 0


def _array(value: Any) -> Array | None:
    """A value of a frame as an array; None where only its digest is there."""
    if isinstance(value, dict):
        return np.frombuffer(value["b"], value["d"]).reshape(value["s"]) if "b" in value else None
    return np.array(value, dtype=object)


def _as_frame(row: Array, shape: list[int]) -> Any:
    return row.reshape(shape).tolist() if row.dtype == object else {"d": row.dtype.str, "s": shape, "b": row.tobytes()}


def _strings(row: Array) -> list[str] | None:
    """Strings of a row; None where one of them is no UTF-8."""
    texts: list[str | bytes] = row.tolist()
    try:
        return [text.decode() if isinstance(text, bytes) else text for text in texts]
    except UnicodeDecodeError:
        return None


def _text(text: Any) -> str:
    return text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else str(text)


def _refused(side: Side, schema: pa.Schema) -> pa.RecordBatch | None:
    """Requests that never had a row, which only frames tell of."""
    frames = [frame for frame in side.rowless() if frame]
    if not frames:
        return None
    count = len(frames)
    time_ns = [frame.get("time_ns") for frame in frames]
    extras = [{name: value for name, value in frame.items() if name not in _REFUSED} for frame in frames]
    found = {
        "time_ns": pa.array(time_ns, pa.int64()),
        "time": pa.array([None if each is None else each // 1000 for each in time_ns], pa.timestamp("us", "UTC")),
        "code": pa.array([frame.get("refused") for frame in frames], pa.string()),
        "extra": pa.array([msgspec.msgpack.encode(each) if each else None for each in extras], pa.binary()),
    }
    for name in {"status", "latency_ns", "message", "request_id"} & set(schema.names):
        found[name] = pa.array([frame.get(name) for frame in frames], schema.field(name).type)
    return pa.record_batch(
        [found[field.name] if field.name in found else pa.nulls(count, field.type) for field in schema], schema=schema
    )
