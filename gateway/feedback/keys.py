"""KeyTable: which idempotency keys were used, for what, and with which answer. Shared by all workers of a server.

One memory-mapped file of buckets with 16 entries each; the digest of a key says in which bucket it is. It is bounded:
when a bucket is full, its oldest entry makes room, and that is counted. Workers lock the buckets that they are about to
use, in ascending order, until what they add is on disk; a process that dies gives up its locks. An entry is written
after its event is on disk, so the table never answers for an event that was lost. The table itself need not survive
anything: after a restart of the machine, or where it is missing, it is made again from the logs.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.feedback import log as logs
from gateway.journal.frames import Frame, Torn

log = logging.getLogger("headgate.feedback")

MAGIC = b"HGKEYS01"
PAGE = 4096
WAYS = 16
"""Entries of a bucket."""

_HEAD = struct.Struct("<8sQ64sQ")
_BODY = struct.Struct("<16s16s16sQ")
_STAMP = struct.Struct("<Q")
_ENTRY = _STAMP.size + _BODY.size
_BUCKET = WAYS * _ENTRY
_STAMPS = struct.Struct("<" + f"Q{_BODY.size}x" * WAYS)
_BUILT_AT = _HEAD.size - 8
# struct flock of Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")

STATUSES = ("matched", "pending", "late")


class Known(NamedTuple):
    """An entry: what was sent under a key (digest, 16 bytes), and what was answered."""

    digest: bytes
    feedback_id: str
    status: str


class _Keyed(msgspec.Struct):
    """The members of an Event that the table is made from."""

    feedback_id: str
    received_ns: int
    op: str = "put"
    idempotency_key: str = ""
    actor: str = ""
    digest: str = ""
    status: str = ""


def name_of(actor: str, key: str) -> bytes:
    """The 16 bytes under which a key of a caller is kept."""
    return hashlib.blake2b(f"{actor}\0{key}".encode(), digest_size=16, person=b"headgate-key").digest()


class KeyTable:
    """The table in `path`, for about `capacity` keys (a bucket has twice the room that they need on average).

    `forgotten` counts the entries that had to make room since this process opened it. Not thread-safe. Raises OSError.
    """

    def __init__(self, path: Path, capacity: int, boot_id: str) -> None:
        self._capacity = capacity
        self.buckets = 1 << max(4, (2 * capacity // WAYS - 1).bit_length())
        self.forgotten = 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._head = _HEAD.pack(MAGIC, self.buckets, boot_id.encode()[:64], 0)[:_BUILT_AT]
        self._map: mmap.mmap | None = None

    def open(self, folder: Path) -> None:
        """Map the file; the first process to come makes it from the logs in `folder` while the others wait."""
        size = PAGE + self.buckets * _BUCKET
        with self._locked([(0, PAGE)]):
            if os.pread(self._descriptor, _HEAD.size, 0) == self._head + _STAMP.pack(1):
                self._map = mmap.mmap(self._descriptor, size)
                return
            os.ftruncate(self._descriptor, 0)
            os.ftruncate(self._descriptor, size)
            self._map = mmap.mmap(self._descriptor, size)
            began = time.monotonic()
            count = self._rebuild(folder)
            self._map[:_BUILT_AT] = self._head
            self._map[_BUILT_AT : _HEAD.size] = _STAMP.pack(1)
        if count:
            facts = {"event": "keys-rebuilt", "keys": count, "seconds": round(time.monotonic() - began, 3)}
            log.info("idempotency keys rebuilt from the logs", extra=facts)

    @property
    def is_open(self) -> bool:
        """True when it can be asked."""
        return self._map is not None

    @contextmanager
    def holding(self, names: Iterable[bytes]) -> Iterator[None]:
        """Hold the buckets of these names against other processes. Raises OSError."""
        ranges = sorted({(self._at(name), _BUCKET) for name in names})
        with self._locked(ranges):
            yield

    def get(self, name: bytes) -> Known | None:
        """What is known of a key."""
        at = self._find(name)
        if at is None:
            return None
        _, digest, feedback_id, status = _BODY.unpack_from(self._cells, at + _STAMP.size)
        return Known(digest, _text(feedback_id), STATUSES[status])

    def put(self, name: bytes, known: Known, stamp_ns: int) -> None:
        """Remember a key since `stamp_ns`. Of two uses of one key the earlier counts."""
        at = self._find(name)
        if at is None:
            at = self._room(self._at(name), stamp_ns)
        elif self._stamp(at) <= stamp_ns:
            return
        if at is None:
            self.forgotten += 1
            return
        self.forgotten += bool(self._stamp(at)) and self._cells[at + 8 : at + 24] != name
        # A reader sees the entry when its stamp is there: last.
        cells = self._cells
        cells[at : at + _STAMP.size] = bytes(_STAMP.size)
        body = _BODY.pack(name, known.digest, _raw(known.feedback_id), STATUSES.index(known.status))
        cells[at + _STAMP.size : at + _ENTRY] = body
        cells[at : at + _STAMP.size] = _STAMP.pack(stamp_ns)

    def close(self) -> None:
        """Give the file back."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def _cells(self) -> mmap.mmap:
        assert self._map is not None
        return self._map

    def _at(self, name: bytes) -> int:
        """Where the bucket of a name begins."""
        return PAGE + (int.from_bytes(name[:8], "little") & (self.buckets - 1)) * _BUCKET

    def _stamp(self, at: int) -> int:
        return int.from_bytes(self._cells[at : at + _STAMP.size], "little")

    def _find(self, name: bytes) -> int | None:
        start = self._at(name)
        bucket = self._cells[start : start + _BUCKET]
        at = bucket.find(name)
        while at >= 0:
            if at % _ENTRY == _STAMP.size and self._stamp(start + at - _STAMP.size):
                return start + at - _STAMP.size
            at = bucket.find(name, at + 1)
        return None

    def _room(self, start: int, stamp_ns: int) -> int | None:
        """A free place in a bucket, else that of its oldest entry, None if that is newer than `stamp_ns`."""
        stamps = _STAMPS.unpack_from(self._cells, start)
        oldest = min(stamps)
        return start + stamps.index(oldest) * _ENTRY if oldest <= stamp_ns else None

    def _rebuild(self, folder: Path) -> int:
        """Read the newest logs until they have given the keys that are promised; returns the number of keys."""
        count = 0
        for path in reversed(logs.files(folder)):
            for item in logs.frames(path):
                if isinstance(item, Torn):
                    facts = {"event": "feedback-torn", "file": path.name, "at": item.offset, "bytes": item.lost}
                    log.warning(f"a feedback log ends torn: {item.reason}", extra=facts)
                else:
                    count += self._take(path, item)
            if count >= self._capacity:
                break
        self.forgotten = 0
        return count

    def _take(self, path: Path, frame: Frame) -> bool:
        """Remember the key of a logged event, if it has one."""
        try:
            event = msgspec.json.decode(frame.payload, type=_Keyed)
            if not event.idempotency_key or event.op != "put":
                return False
            known = Known(bytes.fromhex(event.digest), event.feedback_id, event.status)
            self.put(name_of(event.actor, event.idempotency_key), known, event.received_ns)
        except (msgspec.DecodeError, ValueError) as error:
            facts = {"event": "feedback-unreadable", "file": path.name, "at": frame.offset, "reason": str(error)}
            log.warning("a feedback event cannot be read", extra=facts)
            return False
        return True

    @contextmanager
    def _locked(self, ranges: list[tuple[int, int]]) -> Iterator[None]:
        try:
            for start, length in ranges:
                _lock(self._descriptor, fcntl.F_WRLCK, start, length)
            yield
        finally:
            _lock(self._descriptor, fcntl.F_UNLCK, 0, 0)


def _lock(descriptor: int, kind: int, start: int, length: int) -> None:
    """Wait for a lock on a range of a file (length 0: to its end), which belongs to the open file, not the process."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def _raw(feedback_id: str) -> bytes:
    return bytes.fromhex(feedback_id.replace("-", ""))


def _text(raw: bytes) -> str:
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
