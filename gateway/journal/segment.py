"""Segment: the file that rows of one version are decoded into, run on and kept in, while it is being written."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from gateway.journal import schema
from gateway.journal.extents import Extents
from gateway.journal.frames import FrameFile
from gateway.journal.pages import make_writable
from gateway.journal.schema import EXTENT, MAX_EXTENTS, SEGMENT_SUFFIX, SIDE_SUFFIX, Control, SegmentSpec
from gateway.types import Array

if TYPE_CHECKING:
    from gateway.inference.block import Block


def map_columns(buffer: Any, spec: SegmentSpec) -> dict[tuple[str, str], Array]:
    """Views of the columns by (group, name), each (capacity, *shape), on a file that is mapped at `buffer`."""
    return {
        (column.group, column.name): np.frombuffer(
            buffer, column.dtype, spec.capacity * int(np.prod(column.shape, dtype=np.int64)), column.offset
        ).reshape(spec.capacity, *column.shape)
        for column in spec.columns
    }


class Target(NamedTuple):
    """The column of an output: `width` elements a row, and the same `memory` as bytes, `row_bytes` a row."""

    array: Array
    dtype: np.dtype[Any]
    width: int
    memory: memoryview
    row_bytes: int

    @classmethod
    def of(cls, array: Array) -> Target:
        """The target that a column is."""
        width = array[0].size
        memory = array.reshape(-1).view(np.uint8).data
        return cls(array, array.dtype, width, memory, width * array.itemsize)


class Segment:
    """Rows are taken from `fill` on and written by their owner; `status` last, which makes a row count.

    Columns are attributes for meta columns and `inputs`, `outputs` by name. Belongs to the thread of the event loop but
    for `make_ready`, `flush`, `protect`, `commit` and `finish`.
    """

    def __init__(self, folder: Path, spec: SegmentSpec, side_bytes: int = 1 << 62) -> None:
        """Create the file with its whole size on the disk; `side_bytes` is what its frames should come to at most.

        Raises OSError, with nothing left behind.
        """
        self.spec = spec = schema.lay_out(spec)
        self.capacity = spec.capacity
        self.prefix = spec.prefix.encode()
        self.path = folder / (spec.prefix + SEGMENT_SUFFIX)
        self.opened = time.monotonic()
        self._buffer, self._lock = _create(self.path, spec)
        self._columns = map_columns(self._buffer, spec)
        self.inputs = {name: array for (group, name), array in self._columns.items() if group == "input"}
        self.outputs = {name: array for (group, name), array in self._columns.items() if group == "output"}
        meta = {name: array for (group, name), array in self._columns.items() if group == "meta"}
        self.time_ns: Array = meta["time_ns"]
        self.latency_ns: Array = meta["latency_ns"]
        self.queue_ns: Array = meta["queue_ns"]
        self.run_ns: Array = meta["run_ns"]
        self.key: Array = meta["key"]
        self.side_at: Array = meta["side"]
        self.span: Array = meta["span"]
        self.batch: Array = meta["batch"]
        self.route: Array = meta["route"]
        self.form: Array = meta["form"]
        self.status: Array = meta["status"]
        # The same memory: one number is written into a memoryview in a third of the time.
        self.scalars = tuple(
            array.data
            for array in (
                self.time_ns, self.latency_ns, self.queue_ns, self.run_ns, self.span, self.batch, self.status,
            )
        )  # fmt: skip
        self.targets: dict[tuple[str, ...], tuple[Target | None, ...]] = {}
        self.window: Block | None = None
        self._fill = 0
        self.settled = 0
        self.rate = 0.0
        self._rated = (self.opened, 0)
        self._ready = 0
        self.control: Array = np.frombuffer(self._buffer, "<i8", len(Control), spec.control_at)
        table: Array = np.frombuffer(self._buffer, EXTENT, MAX_EXTENTS, spec.extents_at)
        self._extents = Extents(table, self.control, list(self._columns.values()), spec.capacity)
        self._side: FrameFile | None = None
        self._side_bytes = side_bytes
        self.failed = False
        self.sealed = False

    @property
    def fill(self) -> int:
        """Rows that are taken."""
        window = self.window
        return self._fill if window is None else window.base + window.fill

    @property
    def used(self) -> float:
        """The share of its rows or of the bytes of its frames that is taken; from 1 on another one should follow.

        So it should also after a flush has failed.
        """
        frames = 0 if self._side is None else self._side.size
        return 1.0 if self.failed else max(self.fill / self.capacity, frames / self._side_bytes)

    def close_window(self) -> None:
        """The block on this segment takes no more rows."""
        self._fill = self.fill
        self.window = None

    def append_frame(self, frame: dict[str, Any]) -> int:
        """Write a frame; returns where it begins. Raises OSError."""
        if self._side is None:
            self._side = FrameFile(self.path.with_suffix(SIDE_SUFFIX))
        return self._side.append(msgspec.msgpack.encode(frame))

    def settle(self) -> int:
        """Advance to the first taken row that is not written yet, which it returns; readers see the number."""
        at, fill = self.settled, self.fill
        if at < fill:
            missing = self.status[at:fill] == 0
            first = int(missing.argmax())
            self.settled = at = at + first if missing[first] else fill
            self.control[Control.ROWS] = at
        self.control[Control.TAKEN] = fill
        return at

    def measure(self, now: float) -> None:
        """Take the rows since the last time, a second, for the `rate` at which others will come."""
        before, fill = self._rated, self.fill
        self.rate = (fill - before[1]) / max(now - before[0], 1e-3)
        self._rated = (now, fill)

    def make_ready(self, rows: int, anew: bool = False) -> None:
        """Have so many rows after those that are taken, as far as there are, written without waiting for a page.

        `anew`: also those for which that was done before; after a flush the system looks at their pages again.
        """
        fill = self.fill
        start, stop = fill if anew else max(fill, self._ready), min(fill + rows, self.capacity)
        if start < stop:
            for array in (*self.inputs.values(), *self.outputs.values(), *map(np.asarray, self.scalars)):
                make_writable(array[start:stop])
            self._ready = stop

    def protect(self) -> None:
        """Checksum what is settled since the last time."""
        self._extents.protect(self.settled)

    def flush(self) -> None:
        """Return when all that was written is on the disk. Raises OSError."""
        self._buffer.flush()
        if self._side is not None:
            self._side.sync()

    def commit(self) -> None:
        """Return when what is settled is on the disk with its checksum, and so outlives the machine. Raises OSError."""
        if self.sealed:
            return
        if self.failed:
            raise OSError(errno.EIO, "an earlier flush failed")
        try:
            self.protect()
            self.flush()
        except OSError:
            # The system may take for written what it could not write: a later flush that goes well proves nothing.
            self.failed = True
            raise

    def finish(self) -> None:
        """Seal: nothing is written any more. The file shrinks to its rows; without any it goes. Raises OSError."""
        self.close_window()
        try:
            self._seal()
        finally:
            if self._side is not None:
                self._side.close()
            os.close(self._lock)

    def _seal(self) -> None:
        if self.fill == 0 and self._side is None:
            self.path.unlink(missing_ok=True)
            self.sealed = True
            return
        self.settled = self.fill
        self.control[Control.TAKEN] = self.fill
        self.control[Control.ROWS] = self.fill
        # After a crash of the machine nobody looks at a sealed segment again: all of it must be there before it is one.
        self.commit()
        self.control[Control.SEALED_NS] = time.time_ns()
        self.sealed = True
        if self.fill < self.capacity * 0.9:
            shrink(self.path, self.spec, self._columns, self.fill, self._extents.entries())


def shrink(path: Path, spec: SegmentSpec, columns: dict[tuple[str, str], Array], rows: int, extents: Array) -> None:
    """Replace a sealed segment by one of just its rows; what is open on the old file stays readable."""
    small = schema.lay_out(msgspec.structs.replace(spec, capacity=max(1, rows)))
    scratch = path.with_name(f".{path.name}.shrinking")
    scratch.unlink(missing_ok=True)
    # Locked until it has its name: what is not locked may be swept away.
    buffer, lock = _create(scratch, small)
    try:
        _fill(buffer, small, columns, rows, extents)
        os.replace(scratch, path)
    finally:
        os.close(lock)


def _fill(
    buffer: mmap.mmap, small: SegmentSpec, columns: dict[tuple[str, str], Array], rows: int, extents: Array
) -> None:
    """Write a sealed segment of just these rows; returns when it is on the disk."""
    for key, array in map_columns(buffer, small).items():
        array[:rows] = columns[key][:rows]
    table = np.frombuffer(buffer, EXTENT, MAX_EXTENTS, small.extents_at)
    table[: len(extents)] = extents
    control = np.frombuffer(buffer, "<i8", len(Control), small.control_at)
    control[Control.ROWS] = control[Control.TAKEN] = rows
    control[Control.EXTENTS] = len(extents)
    control[Control.SEALED_NS] = time.time_ns()
    buffer.flush()


def boot_id() -> str:
    """What tells this boot of the machine from others; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def is_orphan(path: Path) -> bool:
    """True where no process writes a segment any more."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def sweep(scratch: Path) -> None:
    """Remove a file whose writer died before it had its name. Under its lock: who makes it sees that it went."""
    descriptor = os.open(scratch, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        scratch.unlink()
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)


def _create(path: Path, spec: SegmentSpec) -> tuple[mmap.mmap, int]:
    """A file with its header and its whole size on the disk, under its name only when that is done.

    Returns its memory, and a descriptor that is locked: the lock tells others that somebody writes it.
    """
    scratch = path.with_name(f".{path.name}.new")
    descriptor = _open_locked(scratch)
    try:
        # A hole in a mapped file that the disk has no room for would end the process with SIGBUS.
        os.posix_fallocate(descriptor, 0, spec.size)
        buffer = mmap.mmap(descriptor, spec.size)
        header = schema.pack_header(spec)
        buffer[: len(header)] = header
        os.rename(scratch, path)
    except OSError:
        os.close(descriptor)
        os.unlink(scratch)
        raise
    return buffer, descriptor


def _open_locked(scratch: Path) -> int:
    """A new file, locked. One that was swept away before its lock was taken is made anew."""
    while True:
        descriptor = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o640)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)
