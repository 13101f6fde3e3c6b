"""Frames: an append-only file of records that each carry their length and checksum.

A frame is ``<length: uint32><crc32 of the payload: uint32><payload>``, little-endian. What a crash tore is found by
its checksum, and everything before it is good. One process writes a file; any process may read it meanwhile.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAGIC = b"HGFRAME1"
"""What a file of frames begins with; the first frame follows at once."""

MAX_PAYLOAD = 1 << 30

_HEAD = struct.Struct("<II")


class Frame(NamedTuple):
    """One record: where its frame begins in the file, and what it holds."""

    offset: int
    payload: bytes


class Torn(NamedTuple):
    """Why reading ended early: good frames end at `offset`, and `lost` bytes follow."""

    offset: int
    lost: int
    reason: str


def pack(payload: bytes) -> bytes:
    """A payload (1 byte to 1 GiB) as a frame."""
    if not 0 < len(payload) <= MAX_PAYLOAD:
        raise ValueError(f"a frame holds 1 to {MAX_PAYLOAD} bytes, not {len(payload)}")
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def unpack(data: bytes | memoryview | mmap.mmap, offset: int) -> tuple[bytes, int] | str:
    """(payload, where the next frame begins), or in words why there is no good frame at `offset`."""
    if len(data) - offset < _HEAD.size:
        return "the head of a frame is cut"
    length, checksum = _HEAD.unpack_from(data, offset)
    if not 0 < length <= MAX_PAYLOAD:
        return f"a frame of {length} bytes cannot be"
    start = offset + _HEAD.size
    payload = bytes(data[start : start + length])
    if len(payload) < length:
        return "a frame is cut"
    if zlib.crc32(payload) != checksum:
        return "a checksum does not fit its frame"
    return payload, start + length


def scan(data: bytes | memoryview | mmap.mmap, offset: int = len(MAGIC)) -> Iterator[Frame | Torn]:
    """Every good frame from `offset` on; last, if anything bad follows them, what that is."""
    while offset < len(data):
        found = unpack(data, offset)
        if isinstance(found, str):
            yield Torn(offset, len(data) - offset, found)
            return
        payload, following = found
        yield Frame(offset, payload)
        offset = following


class FrameFile:
    """A file of frames that is being written. Not thread-safe, but for `sync`, which any thread may call."""

    def __init__(self, path: Path) -> None:
        """Create `path`; raises FileExistsError where it is there, OSError where it cannot be made."""
        self.path = path
        self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o640)
        self.size = 0
        try:
            self._write(MAGIC)
        except OSError:
            # On a full disk a writer comes back again and again: it must not leave a file and a descriptor each time.
            self.close()
            path.unlink()
            raise

    def append(self, *payloads: bytes) -> int:
        """Write frames at once; returns the offset of the first. What is written survives the process, not the power.

        Raises OSError; then nothing of it counts as written, and the file is as it was.
        """
        offset = self.size
        self._write(b"".join(map(pack, payloads)))
        return offset

    def _write(self, data: bytes) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._descriptor, data[done:], self.size + done)
        except OSError:
            if done:
                os.ftruncate(self._descriptor, self.size)
            raise
        self.size += done

    def sync(self) -> None:
        """Return when all that was written is on the disk. Raises OSError."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
