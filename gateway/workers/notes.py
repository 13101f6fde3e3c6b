"""Notes: what a worker is doing right now, in shared memory, so that whoever finds it dead knows what it died of.

A worker has a row for each version it holds: idle, loading or running, by which thread, and for a version under
suspicion the digests of the rows in the run. The supervisor reads them when the worker has crashed, and adds a line to
the file of deaths, which the control process follows.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Sequence
from pathlib import Path
from threading import get_ident
from typing import NamedTuple

import msgspec

ROWS = 256
"""Versions that one worker can note; what further ones do is not known."""

MAX_DIGESTS = 128
"""Rows of a run of which digests are kept."""

IDLE, LOADING, RUNNING = range(3)
_STATE, _THREAD, _COUNT, _DIGESTS = range(4)
_KEY = 256
_CELLS = _DIGESTS + MAX_DIGESTS
_ROW = _CELLS * 8 + _KEY
_SIZE = ROWS * _ROW
_CURRENT_THREAD = re.compile(r"^Current thread (0x[0-9a-f]+).*\n((?:  File .*\n?)*)", re.MULTILINE)
_CALL = re.compile(r'  File "(.*)", line (\d+) in (.*)')


class VersionKey(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A version with the very files that it was loaded from."""

    model: str
    version: int
    fingerprint: str


class Culprit(msgspec.Struct, frozen=True):
    """What a worker was doing when it died: loading or running a version, with the digests of the rows, if known."""

    key: VersionKey
    loading: bool
    digests: tuple[int, ...] = ()


class Death(msgspec.Struct, frozen=True):
    """A worker crashed: when (monotonic seconds), of what (a signal's name, or `hung`), and what it was doing."""

    at_s: float
    slot: int
    cause: str
    culprits: tuple[Culprit, ...]


class Mark:
    """The row of one version. `cells` and `at` are for whoever has to be quick; see WatchedSession."""

    __slots__ = ("_text", "at", "cells")

    def __init__(self, block: memoryview, row: int, key: VersionKey) -> None:
        self.cells = block.cast("q")
        self.at = row * _ROW // 8
        self._text = block[row * _ROW + _CELLS * 8 : (row + 1) * _ROW]
        text = "\0".join((key.model, str(key.version), key.fingerprint)).encode()[:_KEY]
        self._text[: len(text)] = text

    def loading(self) -> None:
        """This thread loads the version."""
        self.cells[self.at + _THREAD] = get_ident()
        self.cells[self.at] = LOADING

    def running(self, digests: Sequence[int] = ()) -> None:
        """This thread runs the version, over rows with these digests."""
        cells, at = self.cells, self.at
        count = min(len(digests), MAX_DIGESTS)
        for index in range(count):
            cells[at + _DIGESTS + index] = digests[index]
        cells[at + _COUNT] = count
        cells[at + _THREAD] = get_ident()
        cells[at] = RUNNING

    def idle(self) -> None:
        """Nothing is done with the version now."""
        self.cells[self.at] = IDLE
        self.cells[self.at + _COUNT] = 0

    def release(self) -> None:
        """The version is not held any more."""
        self.idle()
        self._text[:] = bytes(_KEY)


class Notes:
    """The notes of one worker, in the file at `path`."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _SIZE)
            self._block = memoryview(mmap.mmap(descriptor, _SIZE))
        finally:
            os.close(descriptor)

    def claim(self, key: VersionKey) -> Mark:
        """A row for a version; one that nobody reads where there is no room."""
        for row in range(ROWS):
            if not self._block[row * _ROW + _CELLS * 8]:
                return Mark(self._block, row, key)
        return Mark(memoryview(bytearray(_ROW)), 0, key)

    def culprits(self, thread: int | None = None) -> tuple[Culprit, ...]:
        """What was being done; by that one thread alone where it is known."""
        found = []
        for row in range(ROWS):
            text = bytes(self._block[row * _ROW + _CELLS * 8 : (row + 1) * _ROW]).rstrip(b"\0").decode(errors="replace")
            cells = self._block[row * _ROW : row * _ROW + _CELLS * 8].cast("q")
            if not text or cells[_STATE] == IDLE or (thread is not None and cells[_THREAD] != thread):
                continue
            model, version, fingerprint = text.split("\0")
            count = min(max(0, cells[_COUNT]), MAX_DIGESTS) if cells[_STATE] == RUNNING else 0
            digests = tuple(cells[_DIGESTS : _DIGESTS + count])
            found.append(Culprit(VersionKey(model, int(version), fingerprint), cells[_STATE] == LOADING, digests))
        return tuple(found)


class Crash(NamedTuple):
    """Where a process crashed: the thread, and its calls as ``file:line function``, the last one first."""

    thread: int
    calls: tuple[str, ...]


def read_crash(path: Path) -> Crash | None:
    """What a crash report of faulthandler says; None where there is none, or the thread was none of Python's."""
    try:
        found = _CURRENT_THREAD.search(path.read_text(errors="replace"))
    except FileNotFoundError:
        return None
    if found is None:
        return None
    return Crash(int(found[1], 16), tuple(f"{file}:{line} {name}" for file, line, name in _CALL.findall(found[2])))


def append(path: Path, death: Death) -> None:
    """Add one line to the file of deaths, with a single write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, msgspec.json.encode(death) + b"\n")
    finally:
        os.close(descriptor)


def read_deaths(path: Path, offset: int = 0) -> tuple[list[Death], int]:
    """The deaths from an offset of the file on, and the offset behind them."""
    try:
        if path.stat().st_size == offset:
            return [], offset
        with open(path, "rb") as file:
            file.seek(offset)
            whole, _, _ = file.read().rpartition(b"\n")
    except FileNotFoundError:
        return [], offset
    if not whole:
        return [], offset
    return [msgspec.json.decode(line, type=Death) for line in whole.split(b"\n")], offset + len(whole) + 1
