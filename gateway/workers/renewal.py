"""Renewal: every process of a server replaced by a new one, one after the other, and none before its successor serves.

A worker's successor starts in the other slot of the worker. When it serves, the worker drains and ends; when it does
not come up, it is ended and everything stays as it was. The control process, which no request waits for, comes last.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

from gateway.workers.board import Board, successor_slot
from gateway.workers.child import Child

log = logging.getLogger("headgate.supervisor")


class Renewal:
    """Owns the list of children for as long as it runs: `step` adds successors to it; `start` starts a child."""

    def __init__(
        self,
        children: list[Child],
        board: Board,
        workers: int,
        start: Callable[[Child, float], None],
        patience_s: float,
    ) -> None:
        self._children = children
        self._board = board
        self._workers = workers
        self._start = start
        self._patience_s = patience_s
        self._waiting: list[Child] = []
        self._old: Child | None = None
        self._new: Child | None = None

    @property
    def is_running(self) -> bool:
        """True from `begin` on, until the last process has been replaced or a successor did not come up."""
        return bool(self._waiting) or self._new is not None

    def begin(self) -> None:
        """Replace every process that is there now. One that already runs is begun anew behind the present step."""
        log.info("renewal begins", extra={"event": "renewal-begins"})
        present = [child for child in self._children if child.retired_at is None and child is not self._new]
        self._waiting = sorted(present, key=lambda child: (child.slot == 0, child.slot))

    def replace(self, child: Child) -> None:
        """Replace this one process too."""
        if child not in self._waiting and child is not self._old:
            self._waiting.append(child)

    def step(self, now: float) -> None:
        """Do what can be done without waiting."""
        if self._new is not None:
            self._look(now)
        elif self._waiting:
            old = self._waiting.pop(0)
            if old.slot == 0:
                old.renew()
            elif old.retired_at is None:
                self._old = old
                self._new = Child(successor_slot(old.slot, self._workers), old.name, old.main, old.listener)
                # It is none of the server's first processes: where it cannot start, the server goes on.
                self._new.was_up = True
                self._children.append(self._new)
                self._start(self._new, now)
            if not self.is_running:
                log.info("renewal ends", extra={"event": "renewal-ends"})

    def _look(self, now: float) -> None:
        old, new = self._old, self._new
        assert old is not None
        assert new is not None
        if new.is_alive and self._board.is_ready(new.slot):
            self._board.retire(old.slot)
            old.retire(now)
            self._old = self._new = None
            return
        if new.is_alive and now - new.started_at <= self._patience_s:
            return
        reason = "its successor did not serve in time" if new.is_alive else "its successor ended"
        if new.is_alive:
            new.retired_at = now
            new.send(signal.SIGKILL)
        else:
            self._children.remove(new)
        self._old = self._new = None
        self._waiting = []
        log.error("renewal stopped", extra={"event": "renewal-stopped", "role": old.name, "reason": reason})
