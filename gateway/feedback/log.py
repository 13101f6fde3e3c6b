"""Log: the feedback events that one process writes, in files that are rolled by size and age; and reading all logs."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gateway.feedback.event import SUFFIX, Event, decode, encode
from gateway.journal import ids
from gateway.journal.frames import MAGIC, Frame, FrameFile, Torn, scan
from gateway.models import durable


class Log:
    """The files of one process; a file is made when there is something to write. Not thread-safe."""

    def __init__(
        self, folder: Path, roll_bytes: int, roll_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._roll_bytes = roll_bytes
        self._roll_s = roll_s
        self._monotonic = monotonic
        self._file: FrameFile | None = None
        self._opened_at = 0.0

    def write(self, events: Sequence[Event]) -> None:
        """Append events, on disk when this returns. Raises OSError; then none of them counts as written.

        Where forcing them to the disk failed, some may be there nevertheless, and the next ones go to another file: a
        system that failed to write a page forgets that it did.
        """
        if self._file is not None and self._is_full(self._file):
            self.close()
        file = self._file or self._open()
        file.append(*map(encode, events))
        try:
            file.sync()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Leave the present file; the next event goes to a new one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _is_full(self, file: FrameFile) -> bool:
        return file.size >= self._roll_bytes or self._monotonic() - self._opened_at >= self._roll_s

    def _open(self) -> FrameFile:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._file = FrameFile(self._folder / (ids.new_prefix().decode() + SUFFIX))
        self._opened_at = self._monotonic()
        durable.sync(self._folder)
        return file


def files(folder: Path) -> list[Path]:
    """The logs in a folder, the oldest first."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    except FileNotFoundError:
        return []


def frames(path: Path, offset: int = len(MAGIC)) -> Iterator[Frame | Torn]:
    """The frames of a log from `offset` on; last, if its end is torn, what of it. Raises OSError.

    A log that is being written may end in a frame that is not whole yet; it will be when this is called again.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if size < len(MAGIC):
            if size:
                yield Torn(0, size, "the file has no head")
            return
        with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as data:
            if data[: len(MAGIC)] != MAGIC:
                yield Torn(0, size, "this is no file of frames")
                return
            view = memoryview(data)
            try:
                yield from scan(view, offset)
            finally:
                view.release()
    finally:
        os.close(descriptor)


def read(path: Path, offset: int = len(MAGIC)) -> Iterator[tuple[int, Event] | Torn]:
    """(where its frame begins, event) of a log from `offset` on, and last what is torn. Raises OSError, ValueError."""
    for item in frames(path, offset):
        yield item if isinstance(item, Torn) else (item.offset, decode(item.payload))
