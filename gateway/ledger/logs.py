"""Reading feedback logs from where the ledger has come to, past what is damaged."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from gateway.feedback.event import Event, decode
from gateway.journal.frames import MAGIC, resync, unpack

CHUNK_BYTES = 1 << 20
DAMAGED_AFTER_S = 5.0
"""A frame that is still not whole after so long never will be: its writer writes a frame at once."""

_EVENT_BEGINS = re.compile(rb'\{"')


class Taken(NamedTuple):
    """What was read of a log: events, and the byte after them.

    unread: good frames that hold no event. damaged: bytes that were passed over to come to the next good frame. torn:
    bytes at the end that are no good frame and have not been for a while. reason: why, of the last of these.
    """

    events: list[Event]
    position: int
    unread: int = 0
    damaged: int = 0
    torn: int = 0
    reason: str = ""


class _Bad(NamedTuple):
    """Where a log was found to be bad, how long it was then, and since when (monotonic seconds)."""

    position: int
    size: int
    since_s: float


class LogReader:
    """Reads the logs of a folder again and again. It remembers which of them end in something that is not whole."""

    def __init__(self) -> None:
        self._bad: dict[str, _Bad] = {}
        self._torn: dict[str, tuple[int, int]] = {}

    def take(self, path: Path, position: int, limit: int, now_s: float) -> Taken | None:
        """Up to `limit` events from `position` on (0: the beginning), None where nothing is new. Raises OSError.

        `now_s` is monotonic.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            begin = max(position, len(MAGIC))
            if size <= begin or self._torn.get(path.name) == (begin, size):
                return None
            taken = self._take(_Frames(descriptor, size, begin), path.name, limit, now_s)
        finally:
            os.close(descriptor)
        return None if taken == Taken([], begin) else taken

    def _take(self, frames: _Frames, name: str, limit: int, now_s: float) -> Taken:
        events: list[Event] = []
        unread = damaged = torn = 0
        reason = ""
        while len(events) < limit and frames.position < frames.size:
            found = frames.next()
            if isinstance(found, bytes):
                try:
                    events.append(decode(found))
                except ValueError as error:
                    unread += 1
                    reason = str(error)
                continue
            bad = self._bad.get(name)
            if bad is None or bad.position != frames.position:
                bad = self._bad[name] = _Bad(frames.position, frames.size, now_s)
            if now_s - bad.since_s < DAMAGED_AFTER_S:
                break
            reason = found
            skipped = frames.skip()
            if skipped == 0:
                torn = frames.size - frames.position
                self._torn[name] = (frames.position, frames.size)
                break
            damaged += skipped
        return Taken(events, frames.position, unread, damaged, torn, reason)


class _Frames:
    """The frames of an open file, read in pieces. `position` is where the next one begins."""

    def __init__(self, descriptor: int, size: int, position: int) -> None:
        self._descriptor = descriptor
        self.size = size
        self.position = position
        self._base = position
        self._data = b""

    def next(self) -> bytes | str:
        """The payload of the next frame; else, in words, why there is no good one."""
        found = unpack(self._data, self.position - self._base)
        length = CHUNK_BYTES
        # What is cut may go on in the file.
        while isinstance(found, str) and self._base + len(self._data) < self.size:
            self._base = self.position
            self._data = os.pread(self._descriptor, length, self.position)
            found = unpack(self._data, 0)
            length *= 8
        if isinstance(found, str):
            return found
        payload, following = found
        self.position = self._base + following
        return payload

    def skip(self) -> int:
        """Go on to the next good frame of an event behind a bad one; returns how many bytes that is, 0 if none is."""
        data = os.pread(self._descriptor, self.size - self.position, self.position)
        following = resync(data, 0, _EVENT_BEGINS)
        if following is None:
            return 0
        self._base, self._data = self.position, data
        self.position += following
        return following
