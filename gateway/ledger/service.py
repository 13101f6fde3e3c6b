"""Service: the thread that writes the ledger, in the control process and behind everything else there.

Nothing waits for it: feedback is safe in the logs of the workers, and predictions are in the journal. Where the store
fails, it says so, tries again, and goes on from where the ledger says it was.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import HeadgateError, NotReady
from gateway.journal.reader import Locator
from gateway.ledger import dialect, migrations
from gateway.ledger.fold import Declarations, Folder
from gateway.ledger.segments import SegmentFolder

log = logging.getLogger("headgate.ledger")

EVENTS = 1000
"""Events in one transaction: it takes about a tenth of a second, and a commit is a small part of it."""

RETRIES = 500
LABELS = 500
SEGMENTS = 16

POLL_S = 0.5
AFTER_FAILURE_S = 2.0
NICENESS = 1
"""How far the thread stands behind the event loop of its process. Not far: it must keep up beside busy workers, and a
thread that waits for a core while it holds the interpreter's lock would hold up the loop, too."""

T = TypeVar("T")


class Clock(Protocol):
    """Unix time in nanoseconds, and seconds that nobody sets."""

    def now_ns(self) -> int:
        """Unix time."""
        ...

    def monotonic(self) -> float:
        """Seconds."""
        ...


class SystemClock:
    """The clocks of the machine."""

    def now_ns(self) -> int:
        """See Clock."""
        return time.time_ns()

    def monotonic(self) -> float:
        """See Clock."""
        return time.monotonic()


class Writer:
    """The ledger as it is written: one process, one connection, one thread. `step` does all that is due.

    `is_behind`: whether the last step left something that could be done at once. What only grows while requests are
    answered and feedback comes does not count: each step is forced to the disk, so it should find something to do.
    """

    def __init__(self, url: str, data: Path, declarations: Declarations, clock: Clock) -> None:
        """Open it, bring its tables up to date, be the one that writes. Raises LedgerBusy, LedgerTooNew, DBAPIError."""
        self.clock = clock
        self.is_behind = False
        self.connection: Connection = dialect.writer(url).connect()
        self._lock: dialect.WriterLock | None = None
        try:
            self._lock = dialect.WriterLock(url, self.connection)
            migrations.migrate(self.connection, clock.now_ns())
            journal = data / "journal"
            self.segments = SegmentFolder(self.connection, journal, clock.now_ns)
            self.folder = Folder(self.connection, data, declarations, Locator(data), clock.now_ns, clock.monotonic)
            self.folder.load()
        except BaseException:
            self.close()
            raise

    def step(self) -> int:
        """Fold segments and feedback, look again for predictions, resolve again; returns how much was done."""
        try:
            counted = self.segments.fold(SEGMENTS)
            folded = self.folder.fold(EVENTS)
            retried = self.folder.retry(RETRIES)
            restated = self.folder.restate(LABELS)
            self.is_behind = self.segments.is_behind or folded >= EVENTS or retried >= RETRIES or restated > 0
            return counted + folded + retried + restated
        except BaseException:
            # What was remembered may be of a transaction that did not happen.
            self.segments.load()
            with suppress(SQLAlchemyError):
                self.folder.load()
            raise

    def close(self) -> None:
        """Let another process write."""
        self.connection.close()
        if self._lock is not None:
            self._lock.release()


class Service:
    """Runs a Writer in a thread of its own; `call` does other writing work in that thread."""

    def __init__(
        self, url: str, data: Path, declarations: Declarations, clock: Clock | None = None, poll_s: float = POLL_S
    ) -> None:
        self._url = url
        self._data = data
        self._declarations = declarations
        self._clock = clock or SystemClock()
        self._poll_s = poll_s
        self._jobs: SimpleQueue[tuple[Callable[[Writer], Any], Future[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._stopping = threading.Event()
        self.trouble = "it has not been opened yet"
        """Why the ledger is not written now; empty while it is."""

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End after the present step; returns when that is done, or after the timeout: then nothing is lost either."""
        self._stopping.set()
        self._jobs.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def call(self, job: Callable[[Writer], T]) -> Future[T]:
        """Have something done by the thread that writes. The future raises NotReady while there is no ledger."""
        future: Future[T] = Future()
        if self._stopping.is_set():
            future.set_exception(NotReady("the ledger is closed: the server is shutting down"))
        else:
            self._jobs.put((job, future))
        return future

    def _run(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.nice(0) + NICENESS)
        writer: Writer | None = None
        while not self._stopping.is_set():
            busy = False
            try:
                if writer is None:
                    writer = Writer(self._url, self._data, self._declarations, self._clock)
                writer.step()
                busy = writer.is_behind
                self._well()
            except Exception as error:  # without this thread no label would come again: whatever it is, it tries again
                self._failed(error)
                if writer is not None:
                    writer.close()
                    writer = None
            pause_s = 0.0 if busy else self._poll_s if writer is not None else AFTER_FAILURE_S
            self._work(writer, pause_s)
        if writer is not None:
            writer.close()
        self._work(None, 0.0)

    def _work(self, writer: Writer | None, pause_s: float) -> None:
        """Do the jobs that wait, and wait for others for so long."""
        until = time.monotonic() + pause_s
        while True:
            try:
                item = self._jobs.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                return
            if item is None:
                until = 0.0
                continue
            job, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if writer is None:
                    raise NotReady(f"the ledger cannot be written now: {self.trouble or 'it is closed'}")
                future.set_result(job(writer))
            except BaseException as error:
                future.set_exception(error)

    def _well(self) -> None:
        if self.trouble:
            log.info("ledger is written", extra={"event": "ledger-ready"})
        self.trouble = ""

    def _failed(self, error: Exception) -> None:
        reason = error.message if isinstance(error, HeadgateError) else type(error).__name__
        if self.trouble != reason:
            log.error("ledger cannot be written", exc_info=error, extra={"event": "ledger-failed", "reason": reason})
        self.trouble = reason
