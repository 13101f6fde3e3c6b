"""Journal: all segments that one process writes, and the thread that makes, flushes and seals them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.errors import NotReady
from gateway.inference.block import Layout
from gateway.journal.ids import new_prefix
from gateway.journal.recorder import Disk, Recorder
from gateway.journal.schema import SegmentSpec
from gateway.journal.segment import Segment, boot_id
from gateway.models.servable import Servable

log = logging.getLogger("headgate.journal")

FIRST_BYTES = 1 << 20
GROWTH = 4
"""The first segment of a version is small, each next one so many times larger, up to the setting."""

FLUSH_S = 1.0
BUSY_ROWS = 500
"""A segment that takes so many rows a second has its memory prepared, a while beyond the next flush."""

BEYOND_S = 0.25

RETRY_S = 1.0
"""How long after a failure the disk is asked again."""


class Waiter(NamedTuple):
    """Who waits until `rows` are on the disk; `done` is told why they are not, where that must be an error."""

    rows: int
    done: Callable[[NotReady | None], None]


class JournalSettings(msgspec.Struct, frozen=True):
    """What the settings say. `flush`: process, interval or commit. `required`: without a record there is no answer."""

    folder: Path
    segment_bytes: int
    max_age_s: float
    flush: str
    required: bool


class Journal:
    """The journal of one process. Belongs to the event loop's thread; slow work is done in a thread of its own."""

    def __init__(self, settings: JournalSettings, count: Callable[[str, int], None]) -> None:
        """`count` is told by name and number: records `dropped`, `errors` of the disk. Raises OSError."""
        self.settings = settings
        self._count = count
        self._recorders: dict[Servable, Recorder] = {}
        self._closing: list[Segment] = []
        self._bytes: dict[tuple[str, int], int] = {}
        self._spare: dict[tuple[str, int], Future[Segment]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._work: deque[Future[None]] = deque()
        self._failed_at = float("-inf")
        self._told_at = float("-inf")
        self._flushed_at = 0.0
        self._unsafe: dict[Segment, None] = {}
        self._waiting: list[Waiter] = []
        self._syncing = False
        self._boot_id = boot_id()
        self.wall_ns = time.time_ns() - time.monotonic_ns()
        settings.folder.mkdir(parents=True, exist_ok=True)
        self._secret = _secret(settings.folder / "redaction.key")

    def recorder(self, servable: Servable, layout: Layout) -> Recorder | None:
        """The recorder of a version; None where its owner wants no journal."""
        rule = servable.config.journal
        if not rule.enabled:
            return None
        template = SegmentSpec("", servable.model, servable.version, servable.report.sha256, 0, self._boot_id, 0, ())
        disk = Disk(self._open, self._dropped, self._unwritten)
        recorder = Recorder(template, servable.contract, layout, rule, self._secret, disk)
        self._recorders[servable] = recorder
        return recorder

    def release(self, servable: Servable) -> None:
        """A version is gone: its segments are sealed."""
        recorder = self._recorders.pop(servable, None)
        if recorder is not None:
            recorder.roll(0)
            self._closing += recorder.closing + recorder.segments()
            spare = self._spare.pop((servable.model, servable.version), None)
            if spare is not None:
                self._submit(_finish_spare, spare)

    def tick(self, now: float) -> None:
        """Publish how far segments are written; roll, seal and flush them. Called a few times a second."""
        self.wall_ns = time.time_ns() - time.monotonic_ns()
        work = Segment.protect if self.settings.flush == "process" else Segment.commit
        due = now - self._flushed_at >= FLUSH_S
        for recorder in self._recorders.values():
            recorder.roll(self.settings.max_age_s)
            self._closing += recorder.closing
            recorder.closing.clear()
            for segment in recorder.segments():
                segment.settle()
                if due:
                    self._submit(work, segment)
                segment.measure(now)
                left = FLUSH_S if due else self._flushed_at + FLUSH_S - now
                if rows := _expected(segment, left):
                    self._submit(Segment.make_ready, segment, rows, due)
        if due:
            self._flushed_at = now
        ended = [segment for segment in self._closing if segment.settle() == segment.fill]
        for segment in ended:
            self._closing.remove(segment)
            self._submit(Segment.finish, segment)
        self._prepare()
        self._report()

    def close(self) -> None:
        """Seal everything; returns when it is done."""
        for servable in list(self._recorders):
            self.release(servable)
        for segment in self._closing:
            self._submit(Segment.finish, segment)
        self._closing.clear()
        self._pool.shutdown(wait=True)
        self._report()

    # -- answers that wait for the disk

    @property
    def commits(self) -> bool:
        """True where answers wait until their records are on the disk."""
        return self.settings.flush == "commit"

    def when_safe(self, segments: Iterable[Segment], rows: int, done: Callable[[NotReady | None], None]) -> None:
        """Call `done` in the loop when `rows` that were written to `segments` are on the disk, or cannot be.

        One flush serves all who wait. Rows of a lane are answered in their order, so what was answered is settled.
        """
        self._unsafe.update(dict.fromkeys(segments))
        self._waiting.append(Waiter(rows, done))
        if not self._syncing:
            self._sync()

    def _sync(self) -> None:
        self._syncing = True
        loop = asyncio.get_running_loop()
        segments, self._unsafe = list(self._unsafe), {}
        waiting, self._waiting = self._waiting, []
        for segment in segments:
            segment.settle()
        work = self._pool.submit(_commit_all, segments)
        work.add_done_callback(lambda work: loop.call_soon_threadsafe(self._synced, work, waiting))

    def _synced(self, work: Future[None], waiting: list[Waiter]) -> None:
        self._syncing = False
        self._work.append(work)
        refusal = None
        if work.exception() is not None:
            for recorder in self._recorders.values():
                recorder.retire()
            if self.settings.required:
                refusal = self._refusal()
            else:
                self._dropped(sum(each.rows for each in waiting))
        for each in waiting:
            each.done(refusal)
        if self._waiting:
            self._sync()
        self._report()

    # -- segments

    def _open(self, spec: SegmentSpec, rows: int) -> Segment | None:
        """A segment with room for `rows`. Raises NotReady where records are required and the disk has no room."""
        key = (spec.model, spec.version)
        spare = self._spare.pop(key, None)
        try:
            if spare is not None:
                segment = spare.result()
                if segment.capacity >= rows:
                    return segment
                self._submit(Segment.finish, segment)
            if time.monotonic() - self._failed_at > RETRY_S:
                return Segment(self.settings.folder, self._plan(spec, rows), self.settings.segment_bytes)
        except OSError as error:
            self._failed(error)
        if self.settings.required:
            raise self._refusal()
        return None

    def _plan(self, spec: SegmentSpec, rows: int) -> SegmentSpec:
        key = (spec.model, spec.version)
        size = self._bytes.get(key, FIRST_BYTES)
        self._bytes[key] = min(size * GROWTH, self.settings.segment_bytes)
        row_bytes = max(1, spec.row_bytes)
        return msgspec.structs.replace(
            spec, prefix=new_prefix().decode(), created_ns=time.time_ns(), capacity=max(rows, size // row_bytes)
        )

    def _prepare(self) -> None:
        """Make the next segment of a version before its present one is full."""
        for servable, recorder in self._recorders.items():
            key = (servable.model, servable.version)
            filling = [segment for segment in recorder.segments() if segment.used > 0.5]
            if filling and key not in self._spare:
                plan = self._plan(recorder.spec, recorder.least_rows)
                folder, side_bytes = self.settings.folder, self.settings.segment_bytes
                rows = max(_expected(segment, FLUSH_S) for segment in filling)
                self._spare[key] = self._pool.submit(_spare, folder, plan, side_bytes, rows)

    # -- what went wrong

    def _dropped(self, records: int) -> None:
        self._count("dropped", records)

    def _unwritten(self, error: OSError, records: int) -> None:
        """Records could not be written. Raises NotReady where they are required."""
        self._failed(error)
        if self.settings.required:
            raise self._refusal()
        self._dropped(records)

    @staticmethod
    def _refusal() -> NotReady:
        return NotReady("the answer must not be given without a record, and the journal cannot be written now")

    def _failed(self, error: OSError) -> None:
        self._failed_at = now = time.monotonic()
        self._count("errors", 1)
        if now - self._told_at > RETRY_S:
            self._told_at = now
            log.error("journal cannot be written", extra={"event": "journal-failed", "reason": error.strerror})

    def _submit(self, work: Callable[..., None], *arguments: object) -> None:
        self._work.append(self._pool.submit(work, *arguments))

    def _report(self) -> None:
        """Look at work that is done: what failed is logged and counted."""
        while self._work and self._work[0].done():
            error = self._work.popleft().exception()
            if isinstance(error, OSError):
                self._failed(error)
            elif error is not None:
                raise error


def _commit_all(segments: list[Segment]) -> None:
    for segment in segments:
        segment.commit()


def _expected(segment: Segment, seconds: float) -> int:
    """Rows that come in so many seconds and a little longer; none where too few come to prepare for them."""
    return int(segment.rate * (seconds + BEYOND_S)) if segment.rate >= BUSY_ROWS else 0


def _spare(folder: Path, spec: SegmentSpec, side_bytes: int, rows: int) -> Segment:
    """A segment that is ready for so many rows. Raises OSError."""
    segment = Segment(folder, spec, side_bytes)
    segment.make_ready(rows)
    return segment


def _finish_spare(spare: Future[Segment]) -> None:
    spare.result().finish()


def _secret(path: Path) -> bytes:
    """The key that redacted strings are hashed with, made once."""
    try:
        with path.open("xb") as file:
            path.chmod(0o600)
            file.write(secrets.token_bytes(32))
    except FileExistsError:
        pass
    return path.read_bytes()
