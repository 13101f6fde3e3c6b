"""CounterStore: all counters of one process in one block, which may be a memory-mapped file that others read.

One writer, no locks. A worker that takes the place of another goes on counting in the same file, so totals never go
backwards; a reader sums the files of all places, also of one whose worker was just killed. A record becomes visible
by writing its key last, and a 64-bit cell is written whole.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gateway.telemetry.counters import CELLS, GAUGES, OUTCOMES, VersionCounters

NAMED = 1024
"""Counters that have a name of their own, such as those of HTTP routes."""

VERSIONS = 1000
"""Versions with counters of their own; later ones are counted together under ``_overflow_``."""

_KEY = 248
_NAMED_BYTES = NAMED * (_KEY + 8)
_RECORD = _KEY + 8 + CELLS * 8
SIZE = _NAMED_BYTES + VERSIONS * _RECORD

_SEPARATOR = "\0"
OVERFLOW = ("_overflow_", 0)


class CounterStore:
    """Counters by version and by name. `path` None: a private block."""

    def __init__(self, path: Path | None = None) -> None:
        self._buffer: mmap.mmap | bytearray
        if path is None:
            self._buffer = bytearray(SIZE)
        else:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, SIZE)
                self._buffer = mmap.mmap(descriptor, SIZE)
            finally:
                os.close(descriptor)
        self._bytes = memoryview(self._buffer)
        self.cells = self._bytes.cast("q")
        self._named = {tuple(key.split(_SEPARATOR)): at for key, at in _named_keys(self._bytes)}
        self._versions: dict[tuple[str, int], VersionCounters] = {}
        self._next_version = 0
        for name, version, at in _version_keys(self._bytes):
            self._versions[name, version] = VersionCounters(self._bytes[at : at + CELLS * 8].cast("q"))
            self._next_version += 1

    def of(self, model: str, version: int) -> VersionCounters:
        """The counters of a version of a model that is in the repository."""
        found = self._versions.get((model, version))
        if found is None:
            if self._next_version >= VERSIONS - 1 and (model, version) != OVERFLOW:
                return self.of(*OVERFLOW)
            start = _NAMED_BYTES + self._next_version * _RECORD
            self._next_version += 1
            at = start + _KEY + 8
            found = self._versions[model, version] = VersionCounters(self._bytes[at : at + CELLS * 8].cast("q"))
            _write_key(self._bytes, start, f"{model}{_SEPARATOR}{version}")
        return found

    def cell(self, *key: str) -> int:
        """The index in `cells` of a named counter; the last place is for all names beyond the room for them."""
        at = self._named.get(key)
        if at is None:
            place = min(len(self._named), NAMED - 1)
            text = _SEPARATOR.join(key) if place < NAMED - 1 else "overflow"
            at = self._named[key] = (place * (_KEY + 8) + _KEY) // 8
            _write_key(self._bytes, place * (_KEY + 8), text)
        return at

    def count(self, *key: str) -> None:
        """Count one under a name."""
        self.cells[self.cell(*key)] += 1

    def snapshot(self) -> Snapshot:
        """What was counted here."""
        return Snapshot.of([self._bytes])


class Snapshot:
    """Counters as they were at one moment, summed over any number of stores; gauges take the sum or the largest."""

    def __init__(
        self, named: Mapping[tuple[str, ...], int], versions: Mapping[tuple[str, int], VersionCounters]
    ) -> None:
        self.named = named
        self.versions = versions

    @classmethod
    def of(cls, blocks: Iterable[memoryview | bytes]) -> Snapshot:
        """Sum the stores that lie in `blocks`."""
        named: dict[tuple[str, ...], int] = {}
        sums: dict[tuple[str, int], NDArray[np.int64]] = {}
        for block in blocks:
            view = memoryview(block)
            for key, at in _named_keys(view):
                name = tuple(key.split(_SEPARATOR))
                named[name] = named.get(name, 0) + int(np.frombuffer(view, np.int64, 1, at * 8)[0])
            for model, version, at in _version_keys(view):
                cells = np.frombuffer(view, np.int64, CELLS, at)
                total = sums.setdefault((model, version), np.zeros(CELLS, np.int64))
                largest = np.maximum(total[GAUGES], cells[GAUGES])
                total += cells
                total[GAUGES] = largest
        versions = {key: VersionCounters(total.data.cast("B").cast("q")) for key, total in sorted(sums.items())}
        return cls(named, versions)

    @classmethod
    def of_files(cls, paths: Iterable[Path]) -> Snapshot:
        """Sum the stores in files; one that is just being made counts as empty."""
        blocks = []
        for path in paths:
            data = path.read_bytes()
            if len(data) == SIZE:
                blocks.append(data)
        return cls.of(blocks)

    def version(self, model: str, version: int) -> VersionCounters:
        """The counters of one version, zeros where nothing was counted."""
        return self.versions.get((model, version)) or VersionCounters()

    def __iter__(self) -> Iterator[tuple[tuple[str, str], VersionCounters]]:
        for (model, version), counters in self.versions.items():
            if version or any(counters.outcome(outcome) for outcome in OUTCOMES):
                yield (model, str(version) if version else ""), counters


def _write_key(block: memoryview, at: int, key: str) -> None:
    data = key.encode()[:_KEY]
    block[at + 1 : at + len(data)] = data[1:]
    block[at] = data[0]


def _read_key(block: memoryview, at: int) -> str:
    return bytes(block[at : at + _KEY]).rstrip(b"\0").decode(errors="replace")


def _named_keys(block: memoryview) -> Iterator[tuple[str, int]]:
    """(name, index of its 64-bit cell) of every named counter."""
    for place in range(NAMED):
        at = place * (_KEY + 8)
        if not block[at]:
            return
        yield _read_key(block, at), (at + _KEY) // 8


def _version_keys(block: memoryview) -> Iterator[tuple[str, int, int]]:
    """(model, version, byte offset of its cells) of every version."""
    for place in range(VERSIONS):
        at = _NAMED_BYTES + place * _RECORD
        if not block[at]:
            return
        model, _, version = _read_key(block, at).partition(_SEPARATOR)
        yield model, int(version), at + _KEY + 8
