"""Frames: an append-only file of records that each carry their length and checksum.

A frame is ``<length: uint32><crc32 of the payload: uint32><payload>``, little-endian. What a crash tore or a disk
altered is found by its checksum; everything before it is good, and who knows how payloads begin finds what is good
behind it. One process writes a file; any process may read it meanwhile.
"""

from __future__ import annotations

import mmap
import os
import re
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
    """Bytes that are no good frame: `lost` of them from `offset` on, and why. The end follows, or a good frame."""

    offset: int
    lost: int
    reason: str

    @property
    def words(self) -> str:
        """As a segment tells it of the file beside it."""
        return f"its frames are bad from byte {self.offset} to {self.offset + self.lost}: {self.reason}"


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
    if len(data) - start < length:
        return "a frame is cut"
    payload = bytes(data[start : start + length])
    if zlib.crc32(payload) != checksum:
        return "a checksum does not fit its frame"
    return payload, start + length


def scan(
    data: bytes | memoryview | mmap.mmap, offset: int = len(MAGIC), begins: re.Pattern[bytes] | None = None
) -> Iterator[Frame | Torn]:
    """Every good frame from `offset` on, and what is bad between or behind them.

    With the first bad one reading ends; with `begins`, see `resync`, it goes on behind it.
    """
    while offset < len(data):
        found = unpack(data, offset)
        if isinstance(found, str):
            following = None if begins is None else resync(data, offset, begins)
            stop = len(data) if following is None else following
            yield Torn(offset, stop - offset, found)
            offset = stop
        else:
            payload, following = found
            yield Frame(offset, payload)
            offset = following


def resync(data: bytes | memoryview | mmap.mmap, offset: int, begins: re.Pattern[bytes]) -> int | None:
    """Where behind a bad frame at `offset` the next good one is, None where none follows.

    `begins` matches how payloads begin: so not every byte has to be tried.
    """
    for match in begins.finditer(data, offset + 1 + _HEAD.size):
        if isinstance(unpack(data, match.start() - _HEAD.size), tuple):
            return match.start() - _HEAD.size
    return None


def mapped(path: Path) -> mmap.mmap | bytes:
    """A file of frames to be read, in memory only as far as it is; nothing where there is none. Raises OSError."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    except FileNotFoundError:
        return b""


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
