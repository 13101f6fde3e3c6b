"""Child: one process under supervision. Bookkeeping about when to fork, wait for and give up a process."""

from __future__ import annotations

import math
import os
import random
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BACKOFF_S = 0.2
MAX_BACKOFF_S = 30.0
STABLE_S = 30.0
"""A process that lived this long has started well: the next pause is short again."""

ABORT_S = 1.0
"""Between asking a hung process to abort and killing it."""

CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGBUS, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
)

STARTUP_FAILURE = 3
"""The exit code of a process that cannot start at all."""


class Forked:
    """A process that this one has forked, by its `pid`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it lives."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def send_signal(self, number: int) -> None:
        """Send a signal. One that has ended keeps its pid until `poll` has told, so no other process gets it."""
        if self._code is None:
            os.kill(self.pid, number)


class Born(BaseException):
    """Raised in a new process, out of the calls of the supervisor that it was forked from: it is `child` now."""

    def __init__(self, child: Child) -> None:
        super().__init__(child.name)
        self.child = child


@dataclass(slots=True)
class Child:
    """One slot and the process in it. Times are monotonic seconds. `main`: what such a process runs, given its Place.

    `was_up`: a process in it has shown a sign of life. `renewing`: it was told to end, and the slot starts
    another one. `retired_at`: it was told to end, and its successor is in another slot. `asked_at`: it asked for one.
    """

    slot: int
    name: str
    main: Callable[[Any], Any]
    listener: socket.socket
    process: Forked | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    failures: int = 0
    aborted_at: float | None = None
    retired_at: float | None = None
    asked_at: float = -math.inf
    renewing: bool = False
    was_up: bool = False
    restarts: int = 0
    noise: random.Random = field(default_factory=random.Random)

    @property
    def is_alive(self) -> bool:
        """True while there is a process."""
        return self.process is not None

    def start(self, now: float) -> int:
        """Fork a process into this slot; returns its pid. Raises Born in that process.

        Raises OSError where the system has no room for one; then it is for another time.
        """
        try:
            pid = os.fork()
        except OSError:
            self.failures += 1
            self._back_off(now)
            raise
        if not pid:
            raise Born(self)
        self.process = Forked(pid)
        self.started_at = now
        self.aborted_at = None
        self.renewing = False
        return pid

    def reap(self, now: float) -> int | None:
        """The exit code when the process has ended, and the time of its next start; None while it lives."""
        if self.process is None:
            return None
        code = self.process.poll()
        if code is None:
            return None
        self.process = None
        self.restarts += 1
        if self.renewing:
            self.start_at = now
            return code
        # The first replacement comes at once; only a process that keeps dying waits.
        self.failures = 1 if now - self.started_at > STABLE_S else self.failures + 1
        self._back_off(now)
        return code

    def _back_off(self, now: float) -> None:
        pause = 0.0 if self.failures == 1 else min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (self.failures - 2))
        self.start_at = now + pause * self.noise.uniform(0.8, 1.2)

    def retire(self, now: float) -> None:
        """Let the process finish what it has taken; it is not started again."""
        self.retired_at = now
        self.send(signal.SIGTERM)

    def renew(self) -> None:
        """Let the process finish what it has taken and start another one at once."""
        self.renewing = True
        self.send(signal.SIGTERM)

    def cause(self, code: int) -> str:
        """Why a process that ended so did it to itself: the signal of a crash, or `hung`; empty where it did not.

        SIGKILL and SIGTERM come from outside, from the kernel where it is out of memory.
        """
        if self.aborted_at is not None:
            return "hung"
        return signal.Signals(-code).name if -code in CRASHES else ""

    def send(self, number: int) -> None:
        """Send a signal to the process, if there is one."""
        if self.process is not None:
            self.process.send_signal(number)

    def unhang(self, now: float) -> str:
        """End a process that gives no sign of life: abort, then kill. Returns what was done, empty for nothing."""
        if self.aborted_at is None:
            self.aborted_at = now
            self.send(signal.SIGABRT)
            return "aborted"
        if now - self.aborted_at > ABORT_S:
            self.send(signal.SIGKILL)
            return "killed"
        return ""
