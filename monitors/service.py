"""Service: reads the journals of all workers, feeds a watcher for each version, and remembers where it was.

It runs in a thread of the control process, behind everything else. Its checkpoints hold the counts and the cursors
behind them in one file, so that after `kill -9` every row is counted once.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gateway.errors import HeadgateError
from gateway.journal import shelves
from gateway.journal.reader import Locator
from gateway.journal.schema import SegmentSpec
from monitors.alarms import Alarm
from monitors.baseline.document import Baseline
from monitors.fetch import Fetcher
from monitors.labels import Changes, Labels
from monitors.merge import Origin, Piece, merged
from monitors.rule import Rule
from monitors.tail import Tail
from monitors.task import Task
from monitors.turns import Turns
from monitors.watcher import Watcher

log = logging.getLogger("headgate.monitors")

Key = tuple[str, int]

POLL_S = 0.5
GRACE_S = 5.0
"""How long after its end a block may still get rows: a record is there when its reply is, its time is its arrival."""

CHECKPOINT_S = 10.0
STEP_ROWS = 1 << 20
"""How many rows of a version are read before others have their turn, and before it is saved how far it is."""

RENEW_S = 2.0
"""How often it is looked whether a rule or a baseline has changed."""

LABELS_S = 2.0
"""How often the ledger is asked for labels: what they change is written with every answer."""

NICENESS = 15


class Subject(NamedTuple):
    """A version that is to be watched: by which rule, against which baseline (None: one is learned).

    `task`: which output its labels are about; None where nothing says so.
    """

    rule: Rule
    baseline: Baseline | None
    task: Task | None = None


class Service:
    """All watchers. `step` does what is due; `start` runs it again and again in a thread of its own.

    `subject`: what is known of a (model, version), None where it is not watched. `mark`: something that changes when
    that does, None where it cannot be told now; a version with another mark is looked at anew. `notify` is told of each
    alarm once; with `outbox` again after a restart, until `delivered` is called or somebody acknowledges it. `ledger`:
    where labels are read; None: there are none.
    """

    def __init__(
        self,
        data: Path,
        subject: Callable[[str, int], Subject | None],
        notify: Callable[[Alarm], None],
        now_ns: Callable[[], int] = time.time_ns,
        ledger: Changes | None = None,
        labels_s: float = LABELS_S,
        *,
        mark: Callable[[str, int], object] = lambda model, version: None,
        renew_s: float = RENEW_S,
        outbox: bool = False,
    ) -> None:
        self._folder = data / "monitors"
        self._tail = Tail(data / "journal")
        self._subject, self._mark, self._outbox = subject, mark, outbox
        self._marks: dict[Key, object] = {}
        self._renew_s, self._renewed_at = renew_s, time.monotonic()
        self._told: set[str] = set()
        self._notify = notify
        self.now_ns = now_ns
        self._lock = Turns()
        self._saving = threading.Lock()
        self._labels: Labels | None = None
        if ledger is not None:
            self._labels = Labels(self._folder, ledger, Fetcher(data, Locator(data)), self._lock)
        self._labels_s, self._labels_at = labels_s, float("-inf")
        self._labels_trouble = ""
        self._unjudged: set[Key] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._saved_at = float("-inf")
        self._ignored: set[Key] = set()
        self._torn: set[str] = set()
        self._behind = False
        self.watchers: dict[Key, Watcher] = {}
        self._finished: frozenset[str] = frozenset()
        self.cpu_s = 0.0
        self.lag = 0
        """Rows that waited when it last looked."""

    # -- the thread

    def start(self) -> None:
        """Begin in a thread."""
        self._thread = threading.Thread(target=self._run, name="monitors", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End, and remember where it was."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self._labels is not None and (self._thread is None or not self._thread.is_alive()):
            self._labels.close()

    def _run(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not self._stop.is_set():
            try:
                self.step()
            except Exception as error:  # a defect in one monitor must not end the others for good
                log.error("monitors failed", exc_info=error, extra={"event": "monitors-failed"})
            if not self._behind:
                self._stop.wait(POLL_S)
        try:
            self.checkpoint()
        except OSError as error:
            log.error("checkpoint failed", extra={"event": "checkpoint-failed", "reason": error.strerror})

    # -- a step

    def step(self) -> Sequence[Alarm]:
        """Read what is new, close what is complete, raise what is due; save now and then. Raises OSError."""
        began = time.thread_time()
        raised: list[Alarm] = []
        self._behind = False
        self._renew()
        groups: dict[Key, list[str]] = {}
        specs = self._tail.specs()
        for prefix, spec in specs.items():
            groups.setdefault((spec.model, spec.version), []).append(prefix)
        for key, prefixes in groups.items():
            watcher = self._watcher(key)
            if watcher is not None:
                raised += self._feed(watcher, prefixes)
                self._check(watcher, specs[prefixes[-1]])
            else:
                for prefix in prefixes:
                    self._tail.leave(prefix)
        for alarm in raised:
            self._tell(alarm)
        raised += self._read_labels()
        self._remind()
        watched = [prefixes for key, prefixes in groups.items() if key in self.watchers]
        self.lag = sum(self._tail.waiting(prefix) for prefixes in watched for prefix in prefixes)
        if time.monotonic() - self._saved_at >= CHECKPOINT_S or raised:
            self.checkpoint()
            self._finished = frozenset(
                prefix
                for key, prefixes in groups.items()
                for prefix in prefixes
                if key in self._ignored or (not self._is_learning(key) and self._tail.is_done(prefix))
            )
        self.cpu_s += time.thread_time() - began
        return raised

    def _tell(self, alarm: Alarm) -> None:
        facts = {"alarm": alarm.id, "kind": alarm.kind, "baseline": alarm.baseline}
        log.warning(alarm.sentence, extra={"event": "alarm", **facts})
        self._told.add(alarm.id)
        self._notify(alarm)

    def _remind(self) -> None:
        """Send alarms on that nobody may have got: the queue that they waited in does not outlive a process."""
        if not self._outbox:
            return
        for watcher in list(self.watchers.values()):
            for alarm in [alarm for alarms in watcher.every_alarms for alarm in alarms.latched]:
                if not alarm.delivered and alarm.id not in self._told:
                    self._told.add(alarm.id)
                    self._notify(alarm)

    def delivered(self, alarm_id: str) -> None:
        """The receiver of an alarm has it; that is remembered with the next checkpoint. Called by any thread."""
        for key, watcher in list(self.watchers.items()):
            with self._lock:
                rows = watcher.baseline is not None and watcher.alarms.deliver(alarm_id)
                labels = not rows and watcher.performance is not None and watcher.performance.alarms.deliver(alarm_id)
            if labels and self._labels is not None and watcher.performance is not None:
                self._labels.save(key, watcher.performance)

    def _renew(self) -> None:
        """Look anew at versions whose rule or baseline has changed."""
        if time.monotonic() - self._renewed_at < self._renew_s:
            return
        self._renewed_at = time.monotonic()
        for key, known in list(self._marks.items()):
            if (now := self._mark(*key)) is not None and now != known:
                log.info("looked at anew", extra={"event": "monitors-renewed", "model": key[0], "version": key[1]})
                self.forget(key)

    def _read_labels(self) -> list[Alarm]:
        """Take in what the ledger has learned. Where that cannot be done it is said once, and tried again."""
        raised: list[Alarm] = []
        if self._labels is None or time.monotonic() - self._labels_at < self._labels_s:
            return raised

        def tell(alarm: Alarm) -> None:
            self._tell(alarm)
            raised.append(alarm)

        trouble = ""
        try:
            for key in self._labels.known():
                # One that gets no more rows may still get labels, as long as its model is there.
                if key not in self.watchers and key not in self._unjudged:
                    subject = self._subject(*key)
                    if subject is None or subject.task is None or self._watcher(key) is None:
                        self._unjudged.add(key)
            judged = {key: each.performance for key, each in self.watchers.items() if each.performance is not None}
            if judged:
                self._labels.step(judged, self.now_ns() - int(GRACE_S * 1e9), tell)
        except (HeadgateError, sqlite3.Error, OSError) as error:
            trouble = str(error)
        if trouble and trouble != self._labels_trouble:
            log.error("labels cannot be read", extra={"event": "labels-failed", "reason": trouble})
        self._labels_trouble, self._labels_at = trouble, time.monotonic()
        return raised

    def _check(self, watcher: Watcher, spec: SegmentSpec) -> None:
        """Say once why the answers of a version cannot be judged."""
        judged = watcher.performance
        if judged is not None and judged.trouble != (trouble := judged.task.trouble(spec)):
            judged.trouble = trouble
            if trouble:
                facts = {"model": watcher.model, "version": watcher.version, "reason": trouble}
                log.error("answers cannot be judged", extra={"event": "performance-failed", **facts})

    def _feed(self, watcher: Watcher, prefixes: Sequence[str]) -> Sequence[Alarm]:
        """Count what is new, by segments side by side, and look at the evidence of blocks as they become complete."""
        raised: list[Alarm] = []
        room = STEP_ROWS
        with self._lock:
            watcher.cursors = {prefix: watcher.cursors.get(prefix, 0) for prefix in prefixes}
        origins = [
            Origin(shelves.opened_ns(prefix), prefix, 0, partial(self._pieces, prefix))
            for prefix in prefixes
            if self._tail.waiting(prefix) and prefix not in self._torn
        ]
        for turn in merged(origins, self._fail):
            with self._lock:
                # One step, so that no checkpoint has the rows without the cursor. The cursor first: rows that a defect
                # cannot take must not be tried for ever.
                watcher.cursors[turn.prefix] = turn.piece.stop
                watcher.update(turn.piece.columns, turn.piece.loose, turn.piece.requests)
            raised += self._close(watcher, turn.complete_ns)
            room -= turn.piece.rows
            if room <= 0 or self._stop.is_set():
                # What was read ahead is read again: the watcher says what was counted.
                self._tail.cursors.update(watcher.cursors)
                self._behind = True
                return raised
        return [*raised, *self._close(watcher, self.now_ns())]

    def _pieces(self, prefix: str) -> Iterator[Piece]:
        for rows in self._tail.read(prefix):
            yield Piece(rows.columns, rows.loose, rows.stop - rows.start, rows.requests, rows.stop)

    def _fail(self, prefix: str, why: str) -> None:
        self._torn.add(prefix)
        log.error("a segment cannot be read", extra={"event": "segment-failed", "prefix": prefix, "reason": why})

    def _close(self, watcher: Watcher, until_ns: int) -> Sequence[Alarm]:
        """Look at the evidence of all blocks that are complete. Who waits for the lock gets it after each of them."""
        raised: list[Alarm] = []
        until_ns = min(until_ns, self.now_ns() - int(GRACE_S * 1e9))
        while not self._stop.is_set():
            with self._lock:
                if not watcher.is_due(until_ns):
                    return [*raised, *watcher.close(until_ns)]
                raised += watcher.close_next()
        return raised

    def _watcher(self, key: Key) -> Watcher | None:
        found = self.watchers.get(key)
        if found is not None or key in self._ignored:
            return found
        self._marks[key] = self._mark(*key)
        subject = self._subject(*key)
        if subject is None or not subject.rule.enabled:
            self._ignored.add(key)
            return None
        try:
            watcher = Watcher(*key, subject.rule, subject.baseline, subject.task)
        except ValueError as error:
            # One version that cannot be watched must not keep the others from being.
            facts = {"model": key[0], "version": key[1], "reason": str(error)}
            log.error("a version cannot be watched", extra={"event": "monitor-failed", **facts})
            self._ignored.add(key)
            return None
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
        if data:
            try:
                watcher.load(data)
            except ValueError as error:
                # What was counted on other bins cannot go on; it is kept, and the rows that are still there count anew.
                path.replace(path.with_suffix(".old"))
                facts = {"model": key[0], "version": key[1], "reason": str(error)}
                log.warning("monitors begin anew", extra={"event": "monitors-anew", **facts})
                watcher = Watcher(*key, subject.rule, subject.baseline, subject.task)
        self._tail.cursors.update(watcher.cursors)
        with self._lock:
            self.watchers[key] = watcher
        return watcher

    def _is_learning(self, key: Key) -> bool:
        """While a baseline is learned, rows are read again after a restart: their segments must stay."""
        watcher = self.watchers.get(key)
        return watcher is None or watcher.baseline is None

    def forget(self, key: Key) -> None:
        """Look at a version anew: its rule or its baseline has changed. Raises OSError."""
        self.checkpoint()
        self._marks.pop(key, None)
        self._ignored.discard(key)
        self._unjudged.discard(key)
        if self._labels is not None:
            self._labels.forget(key)
        with self._lock:
            self.watchers.pop(key, None)
        self._tail.forget(*key)

    # -- what it knows

    def checkpoint(self) -> None:
        """Write the state of every watcher. Raises OSError."""
        # Whoever acknowledges an alarm saves too: two that wrote one file could leave half of each.
        with self._saving:
            self._folder.mkdir(parents=True, exist_ok=True)
            for key, watcher in list(self.watchers.items()):
                with self._lock:
                    data = watcher.to_bytes()
                if data:
                    path = self._path(key)
                    scratch = path.with_suffix(".part")
                    scratch.write_bytes(data)
                    scratch.replace(path)
            self._saved_at = time.monotonic()

    def acknowledge(self, alarm_id: str, by: str, note: str = "", quiet_s: float = 0.0) -> Alarm | None:
        """Take note of an alarm; None where there is none of that id. Raises OSError where it cannot be saved."""
        now_ns = self.now_ns()
        quiet_until_ns = now_ns + int(quiet_s * 1e9) if quiet_s else None
        found = None
        for key, watcher in list(self.watchers.items()):
            for alarms in watcher.every_alarms:
                if any(alarm.id == alarm_id for alarm in alarms.all):
                    with self._lock:
                        found = alarms.acknowledge(alarm_id, by, now_ns, note, quiet_until_ns)
                    if self._labels is not None and watcher.performance is not None:
                        self._labels.save(key, watcher.performance)
        if found is not None:
            self.checkpoint()
        return found

    def read(self, look: Callable[[Watcher], object]) -> Mapping[Key, object]:
        """What `look` makes of each watcher, which does not change meanwhile. Nobody has to wait for all of them."""
        return {key: self.look_at(watcher, look) for key, watcher in sorted(self.watchers.items())}

    def look_at(self, watcher: Watcher, look: Callable[[Watcher], object]) -> object:
        """What `look` makes of one watcher, which does not change meanwhile."""
        with self._lock:
            return look(watcher)

    def has_read(self, prefix: str) -> bool:
        """Whether a sealed segment may be removed: all of it was read, and what was read is remembered."""
        return prefix in self._finished

    def _path(self, key: Key) -> Path:
        return self._folder / f"{key[0]}.{key[1]}.state"
