"""Labels: reads what changes in the ledger, joins it with what was said, and has each version count it exactly once.

What was counted of each label is written down in a store of its own, in the transaction that moves the cursor and
saves the counts. So a label that is said otherwise later is taken out with the very numbers it was put in with, also
when its prediction is not kept any more; and a change that is read again changes nothing.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from monitors.alarms import Alarm
from monitors.fetch import Fetcher, Said, columns_of
from monitors.labelled import Labelled, Rows

log = logging.getLogger("headgate.monitors")

Key = tuple[str, int]
Subject = tuple[str, int]

FILE = "labels.sqlite"
PAGES = 5
"""Of the ledger, in one step."""

SLICE = 400

_TABLES = """
CREATE TABLE IF NOT EXISTS versions (
    model TEXT NOT NULL, version INTEGER NOT NULL, cursor INTEGER NOT NULL, state BLOB NOT NULL,
    PRIMARY KEY (model, version)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counted (
    prediction_id TEXT NOT NULL, part INTEGER NOT NULL, model TEXT NOT NULL, version INTEGER NOT NULL,
    value TEXT, predicted_ns INTEGER NOT NULL, arrived_ns INTEGER NOT NULL, said BLOB,
    PRIMARY KEY (prediction_id, part)
) WITHOUT ROWID;
"""
# counted: the label of a row as it was counted. value: JSON, null where it was withdrawn. said: the score and features
# that it was compared with, null where these are not known, so that nothing was counted.


class ResolvedLabel(Protocol):
    """A label of the ledger (ledger.reading.ResolvedLabel), as far as it is needed here."""

    @property
    def prediction_id(self) -> str: ...
    @property
    def part(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def predicted_ns(self) -> int: ...
    @property
    def received_ns(self) -> int: ...
    @property
    def value(self) -> bool | int | float | str | None: ...


class Changes(Protocol):
    """The reading side of the ledger; see ledger.reading.Ledger. Raises LedgerUnavailable."""

    def changes(self, since: int) -> tuple[Sequence[ResolvedLabel], int]:
        """Labels that changed after a fold, and the fold up to which these are all."""
        ...

    def fold(self) -> int:
        """The last fold."""
        ...


class _Counted(NamedTuple):
    value: Any
    predicted_ns: int
    arrived_ns: int
    said: Said | None


class Labels:
    """The labels of all versions of a server. Belongs to one thread; `lock` is held while a version changes."""

    def __init__(self, folder: Path, ledger: Changes, fetcher: Fetcher, lock: AbstractContextManager[None]) -> None:
        self._path = folder / FILE
        self._ledger, self._fetcher, self._lock = ledger, fetcher, lock
        self._store: sqlite3.Connection | None = None
        self._cursors: dict[Key, int] = {}
        self._busy = threading.Lock()

    def known(self) -> list[Key]:
        """The versions that labels were counted of. Raises sqlite3.Error, OSError."""
        return [(row[0], row[1]) for row in self._opened().execute("SELECT model, version FROM versions")]

    def step(self, versions: Mapping[Key, Labelled], until_ns: int, tell: Callable[[Alarm], None]) -> int:
        """Take in what has changed, close the blocks of evidence that ended by `until_ns`, `tell` of what is due.

        Returns how many labels were looked at. Raises sqlite3.Error, OSError: nothing has happened then.
        """
        with self._busy:
            try:
                for key, version in versions.items():
                    if key not in self._cursors:
                        self._load(key, version)
                done = self._read(versions)
                self._close(versions, until_ns, tell)
            except BaseException:
                # What is in memory may be of a transaction that did not happen.
                self._cursors.clear()
                raise
            return done

    def save(self, key: Key, version: Labelled) -> None:
        """Write the state of a version down: an alarm was acknowledged. Raises sqlite3.Error, OSError."""
        with self._busy:
            if key in self._cursors:
                self._save(key, version)

    def forget(self, key: Key) -> None:
        """Load a version anew at the next step."""
        self._cursors.pop(key, None)

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()
            self._store = None

    # -- the store

    def _opened(self) -> sqlite3.Connection:
        if self._store is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            store = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            store.execute("PRAGMA journal_mode=WAL")
            store.execute("PRAGMA synchronous=FULL")
            store.executescript(_TABLES)
            self._store = store
        return self._store

    def _load(self, key: Key, version: Labelled) -> None:
        store = self._opened()
        row = store.execute("SELECT cursor, state FROM versions WHERE model = ? AND version = ?", key).fetchone()
        with self._lock:
            if row is None:
                version.empty_labels()
                self._cursors[key] = 0
                return
            try:
                version.load_labels(row[1])
            except ValueError as error:
                # What was counted in another way cannot go on; the ledger still has every label.
                facts = {"model": key[0], "version": key[1], "reason": str(error)}
                log.warning("labels are counted anew", extra={"event": "labels-anew", **facts})
                version.empty_labels()
                store.execute("BEGIN IMMEDIATE")
                store.execute("DELETE FROM counted WHERE model = ? AND version = ?", key)
                store.execute("DELETE FROM versions WHERE model = ? AND version = ?", key)
                store.execute("COMMIT")
                row = (0, b"")
        self._cursors[key] = row[0]

    def _save(self, key: Key, version: Labelled) -> None:
        with closing(self._opened().cursor()) as cursor:
            # One statement is a transaction of its own.
            self._write(cursor, key, version)

    def _write(self, store: sqlite3.Cursor, key: Key, version: Labelled) -> None:
        with self._lock:
            state = version.labels_to_bytes()
        store.execute("INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?)", (*key, self._cursors[key], state))

    # -- labels

    def _read(self, versions: Mapping[Key, Labelled]) -> int:
        last, done = self._ledger.fold(), 0
        for key in versions:
            if self._cursors[key] > last:
                # The ledger was made anew from the feedback logs; what was counted is recognised.
                self._cursors[key] = 0
        for _ in range(PAGES):
            behind = [key for key in versions if self._cursors[key] < last]
            if not behind:
                break
            since = min(self._cursors[key] for key in behind)
            page, upto = self._ledger.changes(since)
            if upto == since:
                break
            done += len(page)
            self._take([key for key in behind if self._cursors[key] == since], versions, page, upto)
        return done

    def _take(
        self, keys: Sequence[Key], versions: Mapping[Key, Labelled], page: Sequence[ResolvedLabel], upto: int
    ) -> None:
        """Count a page for those versions that are at its beginning, in one transaction."""
        own: defaultdict[Key, list[ResolvedLabel]] = defaultdict(list)
        for label in page:
            key = (label.model, label.version)
            if key in versions and label.name == versions[key].task.label:
                own[key].append(label)
        store = self._opened()
        with closing(store.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                for key in keys:
                    if own[key]:
                        self._count(cursor, key, versions[key], own[key])
                    self._cursors[key] = upto
                    if own[key]:
                        self._write(cursor, key, versions[key])
                    else:
                        cursor.execute("UPDATE versions SET cursor = ? WHERE model = ? AND version = ?", (upto, *key))
                cursor.execute("COMMIT")
            except BaseException:
                cursor.execute("ROLLBACK")
                raise

    def _count(self, store: sqlite3.Cursor, key: Key, version: Labelled, labels: list[ResolvedLabel]) -> None:
        labels.sort(key=lambda label: (label.received_ns, label.prediction_id, label.part))
        before = _before(store, [(label.prediction_id, label.part) for label in labels])
        changed = []
        for label in labels:
            old = before.get((label.prediction_id, label.part))
            if old is None or old.value != label.value or isinstance(old.value, bool) != isinstance(label.value, bool):
                changed.append(label)
        known = {subject: old.said for subject, old in before.items() if old.said is not None}
        needed = version.features
        missing = [(each.prediction_id, each.part) for each in changed if each.value is not None]
        missing = [subject for subject in missing if subject not in known]
        fetched = self._fetcher.fetch(version.task, missing, needed) if missing else {}
        out: list[_Counted] = []
        into: list[_Counted] = []
        heard: list[_Counted] = []
        apart: dict[str, int] = {}
        withdrawn = superseded = 0
        rows = []
        for label in changed:
            subject = (label.prediction_id, label.part)
            old = before.get(subject)
            if old is not None and old.value is not None:
                withdrawn += label.value is None
                superseded += label.value is not None
                if old.said is not None:
                    out.append(old)
            found = known.get(subject) or fetched.get(subject)
            if isinstance(found, str):
                apart[found] = apart.get(found, 0) + 1
            said = found if isinstance(found, Said) else None
            now = _Counted(label.value, label.predicted_ns, label.received_ns, said)
            if said is not None and label.value is not None:
                into.append(now)
                if old is None:
                    heard.append(now)
            rows.append(_row(key, subject, now))
        store.executemany("INSERT OR REPLACE INTO counted VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        with self._lock:
            version.retract(_rows(version, out, needed))
            version.label(_rows(version, into, needed))
            version.hear(_rows(version, heard, needed))
            version.seen["withdrawn"] += withdrawn
            version.seen["superseded"] += superseded
            version.seen["apart"] += sum(apart.values())
        for reason, count in apart.items():
            facts = {"model": key[0], "version": key[1], "labels": count, "reason": reason}
            log.warning("labels have nothing to be compared with", extra={"event": "labels-apart", **facts})

    def _close(self, versions: Mapping[Key, Labelled], until_ns: int, tell: Callable[[Alarm], None]) -> None:
        for key, version in versions.items():
            if not version.is_due(until_ns):
                continue
            with self._lock:
                raised = version.close(until_ns)
            # Told before it is saved: after a crash in between it is told again, by the same id.
            for alarm in raised:
                tell(alarm)
            self._save(key, version)


def _before(store: sqlite3.Cursor, subjects: Sequence[Subject]) -> dict[Subject, _Counted]:
    found: dict[Subject, _Counted] = {}
    for at in range(0, len(subjects), SLICE):
        some = subjects[at : at + SLICE]
        marks = ", ".join(["(?, ?)"] * len(some))
        statement = f"SELECT * FROM counted WHERE (prediction_id, part) IN (VALUES {marks})"  # marks alone are put in
        for row in store.execute(statement, [value for subject in some for value in subject]):
            value = None if row[4] is None else msgspec.json.decode(row[4])
            found[row[0], row[1]] = _Counted(value, row[5], row[6], _unpacked(row[7]))
    return found


def _row(key: Key, subject: Subject, counted: _Counted) -> tuple[Any, ...]:
    value = None if counted.value is None else msgspec.json.encode(counted.value).decode()
    said = None
    if counted.said is not None:
        score = np.asarray(counted.said.score, "<f8").tobytes()
        said = msgspec.msgpack.encode((score, counted.said.features))
    return (*subject, *key, value, counted.predicted_ns, counted.arrived_ns, said)


def _unpacked(data: bytes | None) -> Said | None:
    if data is None:
        return None
    score, features = msgspec.msgpack.decode(data, type=tuple[bytes, dict[str, Any] | None])
    return Said(np.frombuffer(score, "<f8"), features)


def _rows(version: Labelled, counted: Sequence[_Counted], features: Sequence[str]) -> Rows:
    """Labels as they are counted, in the order in which they stand there."""
    task = version.task
    said = [each.said for each in counted if each.said is not None]
    shape = (len(said), len(task.classes)) if task.kind == "multiclass" else (len(said),)
    scores = np.array([each.score for each in said], np.float64).reshape(shape)
    given = [each.features for each in said]
    times = np.array([each.predicted_ns for each in counted], np.int64)
    columns = task.columns(times, scores, task.truth([each.value for each in counted]), columns_of(given, features))
    arrived = np.array([each.arrived_ns for each in counted], np.int64)
    return Rows(columns, arrived, np.array([each is not None for each in given], np.bool_))
