"""The board: a few numbers in shared memory, one row for each process, each row written by that process alone."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

MAX_SLOTS = 129
"""Slot 0 is the control process. Each worker has two: its successor starts in the other one before it retires."""

_FIELDS = 8
_PID, _BEAT, _GENERATION, _READY, _CONNECTIONS, _RETIRING, _WORN, _DEATHS = range(8)
_BYTES = (MAX_SLOTS + 1) * _FIELDS * 8


class Board:
    """Row 0 holds the generation of the plan; row 1 + slot belongs to the process in that slot."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _BYTES)
            self._cells = memoryview(mmap.mmap(descriptor, _BYTES)).cast("q")
        finally:
            os.close(descriptor)

    @property
    def generation(self) -> int:
        """The generation of the plan that is in force; read in nanoseconds."""
        return self._cells[0]

    @generation.setter
    def generation(self, value: int) -> None:
        self._cells[0] = value

    def clear(self, slot: int, pid: int) -> None:
        """A new process takes a slot; nothing is known of it yet. Its deaths are those of the slot, and stay."""
        for field in range(_DEATHS):
            self._cells[(slot + 1) * _FIELDS + field] = 0
        self._cells[(slot + 1) * _FIELDS + _PID] = pid

    def retire(self, slot: int) -> None:
        """The process in a slot answers what it has taken and ends: nobody waits for it to follow the plan."""
        self._cells[(slot + 1) * _FIELDS + _RETIRING] = 1

    def is_retiring(self, slot: int) -> bool:
        """See `retire`."""
        return bool(self._cells[(slot + 1) * _FIELDS + _RETIRING])

    def wear(self, slot: int) -> None:
        """The process in a slot asks for a successor: something in it does not work any more."""
        self._cells[(slot + 1) * _FIELDS + _WORN] = 1

    def is_worn(self, slot: int) -> bool:
        """See `wear`."""
        return bool(self._cells[(slot + 1) * _FIELDS + _WORN])

    def count_death(self, slot: int) -> None:
        """A process in this slot ended that nobody had told to."""
        self._cells[(slot + 1) * _FIELDS + _DEATHS] += 1

    def deaths(self, slot: int) -> int:
        """How often that happened since the server started."""
        return self._cells[(slot + 1) * _FIELDS + _DEATHS]

    def beat(self, slot: int, now_ns: int, connections: int) -> None:
        """Sign of life from inside the event loop of a process."""
        at = (slot + 1) * _FIELDS
        self._cells[at + _BEAT] = now_ns
        self._cells[at + _CONNECTIONS] = connections

    def set_connections(self, slot: int, connections: int) -> None:
        """Its open connections have just changed."""
        self._cells[(slot + 1) * _FIELDS + _CONNECTIONS] = connections

    def acknowledge(self, slot: int, generation: int, *, ready: bool) -> None:
        """A worker follows the plan of this generation: all in it is loaded or failed."""
        at = (slot + 1) * _FIELDS
        self._cells[at + _GENERATION] = generation
        self._cells[at + _READY] = int(ready)

    def pid(self, slot: int) -> int:
        """The process in a slot, 0 for none."""
        return self._cells[(slot + 1) * _FIELDS + _PID]

    def last_beat_ns(self, slot: int) -> int:
        """Monotonic time of its last sign of life, 0 before the first."""
        return self._cells[(slot + 1) * _FIELDS + _BEAT]

    def acknowledged(self, slot: int) -> int:
        """The generation that it follows."""
        return self._cells[(slot + 1) * _FIELDS + _GENERATION]

    def is_ready(self, slot: int) -> bool:
        """True when it accepts connections."""
        return bool(self._cells[(slot + 1) * _FIELDS + _READY])

    def connections(self, slot: int) -> int:
        """Its open connections at its last sign of life."""
        return self._cells[(slot + 1) * _FIELDS + _CONNECTIONS]

    def fewest_connections(self, slots: Iterable[int], since_ns: int) -> int | None:
        """The least number of connections of any that accepts them and has shown a sign of life since; None for none.

        One that hangs takes none and its number stands still: the others must not wait for it.
        """
        accepting = (slot for slot in slots if self.is_ready(slot) and self.last_beat_ns(slot) >= since_ns)
        return min(map(self.connections, accepting), default=None)


def worker_slots(workers: int) -> range:
    """The slots that workers can be in."""
    return range(1, 2 * workers + 1)


def successor_slot(slot: int, workers: int) -> int:
    """The slot in which the successor of the worker in this slot starts."""
    return slot + workers if slot <= workers else slot - workers


class WorkerStatus(msgspec.Struct, frozen=True):
    """What a worker says beyond numbers: incarnations it holds, with their calls in flight, and those that failed."""

    pid: int
    generation: int
    held: dict[str, int] = {}
    failed: dict[str, str] = {}


class RunFolder:
    """The files that the processes of one server share, under its data folder."""

    def __init__(self, data: Path) -> None:
        self.path = data / "run"

    @property
    def board(self) -> Path:
        """See Board."""
        return self.path / "board"

    @property
    def plan(self) -> Path:
        """See routing.plan."""
        return self.path / "plan.json"

    @property
    def control(self) -> Path:
        """The socket on which the control process takes orders."""
        return self.path / "control.sock"

    @property
    def deaths(self) -> Path:
        """What killed workers, and what they were doing; see workers.notes."""
        return self.path / "deaths"

    def notes(self, slot: int) -> Path:
        """What the process in a slot is doing; see workers.notes."""
        return self.path / f"notes-{slot}"

    def crash(self, slot: int) -> Path:
        """Where the process in a slot leaves the thread that it died in."""
        return self.path / f"crash-{slot}"

    def counters(self, slot: int) -> Path:
        """The counters of a slot."""
        return self.path / f"counters-{slot}"

    def status(self, slot: int) -> Path:
        """The WorkerStatus of a slot."""
        return self.path / f"worker-{slot}.json"

    def statuses(self, board: Board, slots: Iterable[int]) -> dict[int, WorkerStatus]:
        """The reports of the processes that are in these slots now."""
        found = {}
        for slot in slots:
            try:
                status = msgspec.json.decode(self.status(slot).read_bytes(), type=WorkerStatus)
            except (FileNotFoundError, msgspec.DecodeError):
                continue
            if status.pid == board.pid(slot):
                found[slot] = status
        return found

    def all_counters(self) -> list[Path]:
        """The counters of every slot that there ever was."""
        return sorted(self.path.glob("counters-*"))
