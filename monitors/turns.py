"""Turns: a lock that whoever waits for it gets next, also from a thread that takes it again at once."""

from __future__ import annotations

import threading
from types import TracebackType


class Turns:
    """A mutual exclusion that is fair between two: use it with ``with``.

    A plain lock that is released and taken again in a loop hardly ever passes to somebody else. Here those who want it
    stand at a door that the next one holds shut while it waits for the room.
    """

    def __init__(self) -> None:
        self._door = threading.Lock()
        self._room = threading.Lock()

    def __enter__(self) -> None:
        with self._door:
            self._room.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._room.release()
