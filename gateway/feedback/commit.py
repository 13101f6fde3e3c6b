"""Committer: many callers wait for one write to disk.

What arrives while a write is under way goes to disk with the next one: a lone event waits for its own write alone, and
under load one write is shared by all that wait. Everything that touches files is done in one thread, so that
predictions are not held up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from gateway.errors import Conflict, HeadgateError, NotReady, QueueFull, ServerError
from gateway.feedback.event import Event
from gateway.feedback.keys import KeyTable, Known, name_of
from gateway.feedback.log import Log

GROUP = 64
"""Events of one write. Making them holds the interpreter, and so predictions, for about a millisecond."""

MAX_WAITING = 4096
"""Events that may wait; the next caller gets 429."""

Maker = Callable[[int], Event]
"""Makes an event that was received at a time (Unix, ns); may read files. Raises HeadgateError."""

T = TypeVar("T")


class Answer(NamedTuple):
    """What a caller is told: the event is on disk, or (replayed) was there already."""

    event: Event
    feedback_id: str
    status: str
    replayed: bool


Outcome = Answer | HeadgateError


class SystemClock:
    """The time of day."""

    @staticmethod
    def now_ns() -> int:
        """Unix time in nanoseconds."""
        return time.time_ns()


class Committer:
    """Writes the events of one process. `folder` holds the logs and the table of keys, which all processes share."""

    def __init__(
        self, folder: Path, log: Log, keys: int, boot_id: str, now_ns: Callable[[], int] = SystemClock.now_ns
    ) -> None:
        self._folder = folder
        self._log = log
        self._keys = keys
        self._boot_id = boot_id
        self._now_ns = now_ns
        self._last_ns = 0
        self._table: KeyTable | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: deque[tuple[Sequence[Maker], asyncio.Future[list[Outcome]]]] = deque()
        self._count = 0
        self._busy = False

    async def submit(self, makers: Sequence[Maker]) -> list[Outcome]:
        """Make at most GROUP events and return when they are on disk: for each the answer, or why there is none.

        Raises QueueFull where too many wait.
        """
        if self._count + len(makers) > MAX_WAITING:
            raise QueueFull("too much feedback is waiting to be written")
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self._waiting.append((makers, future))
        self._count += len(makers)
        self._pump()
        return await future

    async def call(self, function: Callable[[], T]) -> T:
        """Run something else in the thread that touches files."""
        return await asyncio.get_running_loop().run_in_executor(self._executor(), function)

    @property
    def forgotten(self) -> int:
        """Keys that had to make room for others since the start of this process."""
        return self._table.forgotten if self._table is not None else 0

    def close(self) -> None:
        """Return when what is under way is on disk."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None
        self._log.close()
        if self._table is not None:
            self._table.close()
            self._table = None

    def _executor(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedback")
        return self._thread

    def _pump(self) -> None:
        """Give the thread what waits, if it has nothing to do."""
        if self._busy or not self._waiting:
            return
        group = [self._waiting.popleft()]
        size = len(group[0][0])
        while self._waiting and size + len(self._waiting[0][0]) <= GROUP:
            group.append(self._waiting.popleft())
            size += len(group[-1][0])
        makers = [maker for each, _ in group for maker in each]
        written = asyncio.get_running_loop().run_in_executor(self._executor(), self._commit, makers)
        written.add_done_callback(partial(self._deliver, group))
        self._busy = True

    def _deliver(
        self,
        group: list[tuple[Sequence[Maker], asyncio.Future[list[Outcome]]]],
        written: asyncio.Future[list[Outcome]],
    ) -> None:
        self._busy = False
        self._count -= sum(len(makers) for makers, _ in group)
        if written.cancelled():
            # The loop is ending: nobody waits any more.
            return
        self._pump()
        error = written.exception()
        outcomes = [] if error is not None else written.result()
        at = 0
        for makers, future in group:
            if not future.done():
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(outcomes[at : at + len(makers)])
            at += len(makers)

    # -- in the thread

    def _commit(self, makers: Sequence[Maker]) -> list[Outcome]:
        drafts = [self._make(maker) for maker in makers]
        events = [draft for draft in drafts if isinstance(draft, Event)]
        try:
            answers = iter(self._store(events))
        except OSError as error:
            said = f"feedback cannot be kept now ({error.strerror})"
            return [NotReady(said, retry_after_s=10) if isinstance(draft, Event) else draft for draft in drafts]
        return [next(answers) if isinstance(draft, Event) else draft for draft in drafts]

    def _make(self, maker: Maker) -> Event | HeadgateError:
        # Times of one process only grow, so that of two votes through one link the later is told from the earlier.
        self._last_ns = max(self._now_ns(), self._last_ns + 1)
        try:
            return maker(self._last_ns)
        except HeadgateError as error:
            return error
        except Exception as error:
            defect = ServerError("internal error; the log has the details under this request id")
            defect.__cause__ = error
            return defect

    def _store(self, events: list[Event]) -> list[Outcome]:
        """Write what is new. Raises OSError; then nothing of it is acknowledged."""
        table = self._opened()
        keyed = [name_of(each.actor, each.idempotency_key) if each.idempotency_key else b"" for each in events]
        outcomes: list[Outcome] = []
        fresh: list[Event] = []
        added: dict[bytes, tuple[Known, int]] = {}
        with table.holding(name for name in keyed if name):
            for event, name in zip(events, keyed, strict=True):
                here = added.get(name)
                known = here[0] if here is not None else table.get(name) if name else None
                if known is not None:
                    outcomes.append(_again(event, known))
                    continue
                if name:
                    known = Known(bytes.fromhex(event.digest), event.feedback_id, event.status)
                    added[name] = (known, event.received_ns)
                fresh.append(event)
                outcomes.append(Answer(event, event.feedback_id, event.status, False))
            if fresh:
                self._log.write(fresh)
            for name, (known, stamp_ns) in added.items():
                table.put(name, known, stamp_ns)
        return outcomes

    def _opened(self) -> KeyTable:
        if self._table is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            table = KeyTable(self._folder / "keys", self._keys, self._boot_id)
            try:
                table.open(self._folder)
            except BaseException:
                table.close()
                raise
            self._table = table
        return self._table


def _again(event: Event, known: Known) -> Outcome:
    """What a key that was used before gets: the stored answer, if the same is said."""
    if known.digest.hex() != event.digest:
        key = event.idempotency_key[:64]
        said = f"Idempotency-Key {key!r} was used for other feedback, {known.feedback_id}"
        return Conflict(said, field="idempotency_key")
    return Answer(event, known.feedback_id, known.status, True)
