"""Reading segments, open or sealed, as numpy views; and finding what a prediction id names."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from gateway.journal import extents, ids, schema
from gateway.journal.frames import MAGIC, Torn, mapped, scan, unpack
from gateway.journal.schema import (
    EXTENT,
    FRAME_BEGINS,
    MAX_EXTENTS,
    SEGMENT_SUFFIX,
    SIDE_SUFFIX,
    Control,
    Form,
    SegmentSpec,
)
from gateway.journal.segment import map_columns
from gateway.types import Array


class Damaged(ValueError):
    """A file of the journal that cannot be read; the message says why."""


class Record(NamedTuple):
    """One row: `meta` as the columns of schema.META say, `inputs` and `outputs` by name (row values, or None).

    `spec` is that of its segment, with the rules by which it was kept.
    """

    prediction_id: str
    model: str
    version: int
    digest: str
    spec: SegmentSpec
    meta: dict[str, int]
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    frame: dict[str, Any]


class Found(NamedTuple):
    """What a prediction id names. `where` is segment or archive; `span` is the number of rows of its request."""

    model: str
    version: int
    time_ns: int
    status: int
    key: int
    span: int
    where: str


class Segment:
    """A segment that is read, while it is written or after."""

    def __init__(self, path: Path, spec: SegmentSpec, buffer: mmap.mmap) -> None:
        self.path = path
        self.spec = spec
        self._buffer = buffer
        self.columns = map_columns(buffer, spec)
        self._control: Array = np.frombuffer(buffer, "<i8", len(Control), spec.control_at)
        self.inputs = {name: array for (group, name), array in self.columns.items() if group == "input"}
        self.outputs = {name: array for (group, name), array in self.columns.items() if group == "output"}

    @classmethod
    def open(cls, path: Path) -> Segment:
        """Map a file, read-only. Raises Damaged, or FileNotFoundError."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size == 0:
                raise Damaged(f"segment {path.name} is empty")
            buffer = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        try:
            spec = schema.unpack_header(memoryview(buffer))
        except ValueError as error:
            raise Damaged(f"segment {path.name}: {error}") from None
        if size < spec.size:
            raise Damaged(f"segment {path.name} has {size} bytes, its header says {spec.size}")
        return cls(path, spec, buffer)

    @property
    def sealed(self) -> bool:
        """True when nothing is written to it any more."""
        return bool(self._control[Control.SEALED_NS])

    def rows(self) -> int:
        """Rows from 0 on that are settled: written, or (status 0) never to be."""
        return int(self._control[Control.ROWS])

    def column(self, name: str) -> Array:
        """A meta column, (capacity,)."""
        return self.columns["meta", name]

    def verify(self) -> list[str]:
        """What is wrong with what was checksummed, in words; nothing for a good segment."""
        return self.verify_rows() + [each.words for each in self.bad_frames()]

    def verify_rows(self) -> list[str]:
        """What is wrong with its columns, in words."""
        known, problem = self.checksums()
        return [each.words for each in known if not each.fits] + [problem] * bool(problem)

    def bad_frames(self) -> list[Torn]:
        """What is wrong with the file beside it."""
        data = mapped(self.side_path)
        begins = data[: len(MAGIC)]
        bad = [] if begins in (MAGIC, b"") else [Torn(0, len(begins), "it does not begin as a file of frames")]
        return bad + [item for item in scan(data, begins=FRAME_BEGINS) if isinstance(item, Torn)]

    def checksums(self) -> extents.Table:
        """Its checksums, and whether they fit."""
        table = np.frombuffer(self._buffer, EXTENT, MAX_EXTENTS, self.spec.extents_at)
        return extents.read(table, self._control, list(self.columns.values()), self.spec.capacity)

    @property
    def protected(self) -> int:
        """Rows that are covered by checksums."""
        known = self.checksums().extents
        return known[-1].stop if known else 0

    def frame(self, row: int) -> dict[str, Any] | None:
        """The frame of a row, or None where it has none. Raises Damaged."""
        at = int(self.column("side")[row])
        if at == 0:
            return None
        try:
            with self.side_path.open("rb") as file:
                file.seek(at)
                head = file.read(8)
                length = int.from_bytes(head[:4], "little")
                found = unpack(head + file.read(length), 0)
        except FileNotFoundError:
            found = "the file of frames is missing"
        if isinstance(found, str):
            raise Damaged(f"segment {self.path.name}, row {row}: {found}")
        return _decode(found[0])

    def frames(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(offset, frame) of every good frame, in the order in which they were written."""
        for item in scan(mapped(self.side_path), begins=FRAME_BEGINS):
            if not isinstance(item, Torn):
                yield item.offset, _decode(item.payload)

    @property
    def side_path(self) -> Path:
        """The file of its frames, which need not be there."""
        return self.path.with_suffix(SIDE_SUFFIX)

    def record(self, row: int, part: int | None = None) -> Record | None:
        """The prediction whose request begins at `row`, or None; `part` is a row of the request."""
        if not 0 <= row < self.spec.capacity or not int(self.column("status")[row]):
            return None
        meta = {name: int(self.column(name)[row]) for name, _ in schema.META}
        span = meta["span"]
        if part is not None and not 0 <= part < span:
            return None
        frame = self.frame(row) or {}
        loose = meta["form"] == Form.FRAME
        at = row if loose else row + (part or 0)
        inputs: dict[str, Any] = {}
        outputs: dict[str, Any] = {}
        if not loose:
            inputs = {name: array[at] for name, array in self.inputs.items()}
            only = frame.get("only", self.outputs)
            outputs = {name: array[at] for name, array in self.outputs.items() if name in only}
        for group, values in (("inputs", inputs), ("outputs", outputs)):
            first = 0 if loose else int(frame.get("row", row))
            for name, value in tensors(frame.get(group, {})).items():
                if loose and part is None:
                    values[name] = value
                elif len(value) > (index := (part or 0) if loose else at - first):
                    values[name] = value[index]
        spec = self.spec
        groups = {column.name: column.group for column in spec.side}
        for name, sample in frame.get("samples", {}).items():
            if (index := at - int(frame["row"])) in sample["at"]:
                value = tensors({name: sample["values"]})[name][sample["at"].index(index)]
                (inputs if groups.get(name) == "input" else outputs)[name] = value
        name = str(ids.PredictionId(spec.prefix, row, part))
        return Record(name, spec.model, spec.version, spec.digest, spec, meta, inputs, outputs, frame)


class Side:
    """The frames of a segment, mapped: for reading many of them. `damaged` counts those that could not be read."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._data: mmap.mmap | bytes = b""
        self.damaged = 0

    def __enter__(self) -> Side:
        self._data = mapped(self._segment.path.with_suffix(SIDE_SUFFIX))
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._data, mmap.mmap):
            self._data.close()

    def frame(self, offset: int) -> dict[str, Any]:
        """The frame at an offset; empty where it is damaged."""
        found = unpack(self._data, offset)
        if isinstance(found, str):
            self.damaged += 1
            return {}
        return _decode(found[0])

    def rowless(self) -> Iterator[dict[str, Any]]:
        """Frames that belong to no row: of requests that were refused before they had one."""
        for item in scan(self._data, begins=FRAME_BEGINS):
            if not isinstance(item, Torn):
                frame = _decode(item.payload)
                if "row" not in frame:
                    yield frame


def tensors(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a frame as arrays: ``{"d": dtype, "s": shape, "b": bytes}``, or a list of strings.

    Of what a frame has only a digest of there is no value.
    """
    return {
        name: np.frombuffer(value["b"], value["d"]).reshape(value["s"]) if isinstance(value, dict) else value
        for name, value in values.items()
        if not isinstance(value, dict) or "b" in value
    }


def segments(folder: Path) -> list[Path]:
    """The segments in a folder, oldest first."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == SEGMENT_SUFFIX and path.name[0] != ".")
    except FileNotFoundError:
        return []


INDEX_FOLDER = "_index"
"""In the archive: what is left of each segment for finding its predictions."""


class Locator:
    """Finds predictions by their ids, in segments and in the archive. It keeps a number of segments open."""

    def __init__(self, data: Path, keep: int = 64) -> None:
        self._folder = data / "journal"
        self._archive = data / "archive"
        self._keep = keep
        self._open: dict[str, Segment] = {}
        self._request: tuple[str, int, Any] = ("", 0, None)

    def find(self, prediction_id: str) -> Found | None:
        """What an id names, None where nothing of that name is kept. Raises Damaged."""
        name = ids.parse(prediction_id)
        segment = None if name is None else self.segment(name.prefix)
        if name is None or segment is None or not 0 <= name.row < segment.spec.capacity:
            return None
        status, span = (int(segment.column(column)[name.row]) for column in ("status", "span"))
        if not status or not span or (name.part is not None and name.part >= span):
            return None
        time_ns, key = (int(segment.column(column)[name.row]) for column in ("time_ns", "key"))
        where = "archive" if _is_index(segment) else "segment"
        return Found(segment.spec.model, segment.spec.version, time_ns, status, key, span, where)

    def record(self, prediction_id: str) -> Record | None:
        """The whole record of an id. Raises Damaged, or OSError."""
        name = ids.parse(prediction_id)
        segment = None if name is None else self.segment(name.prefix)
        if name is None or segment is None:
            return None
        return self._archived(name) if _is_index(segment) else segment.record(name.row, name.part)

    def _archived(self, name: ids.PredictionId) -> Record | None:
        # Only who asks for archived records needs pyarrow.
        from gateway.journal import retrieve

        if self._request[:2] != (name.prefix, name.row):
            rows = retrieve.request_rows(self._archive, name.prefix, name.row)
            self._request = (name.prefix, name.row, rows)
        rows = self._request[2]
        return None if rows is None else retrieve.record(rows, name.part)

    def segment(self, prefix: str) -> Segment | None:
        """The segment whose predictions begin with `prefix`, or what the archive has left of it. Raises Damaged."""
        found = self._open.pop(prefix, None)
        if found is not None and not found.path.exists():
            found = None
        for folder in (self._folder, self._archive / INDEX_FOLDER) if found is None else ():
            try:
                found = Segment.open(folder / (prefix + SEGMENT_SUFFIX))
                break
            except FileNotFoundError:
                continue
        if found is None:
            return None
        self._open[prefix] = found
        if len(self._open) > self._keep:
            del self._open[next(iter(self._open))]
        return found


def _is_index(segment: Segment) -> bool:
    return segment.path.parent.name == INDEX_FOLDER


def _decode(payload: bytes) -> dict[str, Any]:
    frame = msgspec.msgpack.decode(payload)
    if not isinstance(frame, dict):
        raise Damaged("a frame holds no record")
    return frame
