"""SegmentFolder: counts the predictions of the journal by hour, and indexes their addresses where that is wanted.

A prediction is never a row of the ledger; only its segment is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from gateway.journal.reader import Damaged, Segment
from gateway.journal.reader import segments as segment_files
from gateway.ledger import addresses
from gateway.ledger.dialect import upsert
from gateway.ledger.labels import slices
from gateway.ledger.maturity import HOUR_NS
from gateway.ledger.tables import events, segments, volumes

log = logging.getLogger("headgate.ledger")

ANSWERED = 200
INDEX_ROWS = 20_000
"""Rows of one segment whose addresses are indexed in one transaction."""

GROWING_NS = 5_000_000_000
"""How often a segment that is still written is counted: each time is a transaction that is forced to the disk."""

_NONE = {"rows": 0, "answered": 0, "indexed": 0, "sealed": 0}


class SegmentFolder:
    """Belongs to the thread and the connection that write. `now_ns` is Unix time.

    `is_behind`: whether the last `fold` left segments, or rows of them, for the next one.
    """

    def __init__(self, connection: Connection, folder: Path, now_ns: Callable[[], int]) -> None:
        self._connection = connection
        self._folder = folder
        self._now_ns = now_ns
        self._done: set[str] = set()
        self._damaged: set[str] = set()
        self._looked_ns: dict[str, int] = {}
        self.is_behind = False

    def load(self) -> None:
        """Begin anew with what the ledger holds."""
        self._done.clear()
        self._damaged.clear()
        self._looked_ns.clear()

    def fold(self, limit: int) -> int:
        """Bring up to `limit` segments up to date; returns how many changed."""
        now_ns = self._now_ns()
        with self._connection.begin():
            wanted = addresses.fields(self._connection)
            # What lies in the folder bounds this set, and so the memory that it takes.
            paths = {path.stem: path for path in segment_files(self._folder)}
            self._done &= paths.keys()
            self._damaged &= paths.keys()
            self._reopen(wanted)
            waiting = [prefix for prefix in paths if prefix not in self._done and prefix not in self._damaged]
            if not wanted:
                # Nobody asks for addresses of the last seconds, and volumes are of hours.
                self._looked_ns = {name: at for name, at in self._looked_ns.items() if 0 <= now_ns - at < GROWING_NS}
                waiting = [prefix for prefix in waiting if prefix not in self._looked_ns]
            stored = self._stored(waiting)
            changed = 0
            self.is_behind = False
            for prefix in waiting:
                if _is_done(stored.get(prefix), wanted):
                    self._done.add(prefix)
                    continue
                changed += self._look(paths[prefix], stored.get(prefix), wanted)
                self._looked_ns[prefix] = now_ns
                if changed >= limit:
                    self.is_behind = True
                    break
        return changed

    def _reopen(self, wanted: dict[str, set[str]]) -> None:
        """Segments that were done, and now are to be indexed."""
        if not wanted or not self._done:
            return
        behind = select(segments.c.prefix).where(
            segments.c.model.in_(list(wanted)), segments.c.indexed < segments.c.rows
        )
        self._done -= set(self._connection.execute(behind).scalars())

    def _stored(self, prefixes: Iterable[str]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for some in slices(prefixes):
            statement = select(segments).where(segments.c.prefix.in_(some))
            found |= {row["prefix"]: dict(row) for row in self._connection.execute(statement).mappings()}
        return found

    def _look(self, path: Path, stored: dict[str, Any] | None, wanted: dict[str, set[str]]) -> bool:
        """Count what is new in one segment; True if anything was."""
        try:
            segment = Segment.open(path)
        except FileNotFoundError:
            return False
        except (Damaged, OSError) as error:
            self._damaged.add(path.stem)
            log.error(
                "segment cannot be read", extra={"event": "segment-damaged", "segment": path.name, "reason": str(error)}
            )
            return False
        spec = segment.spec
        sealed = segment.sealed
        rows = segment.rows()
        if stored is None:
            identity = {"prefix": spec.prefix, "model": spec.model, "version": spec.version, "digest": spec.digest}
            now: dict[str, Any] = identity | {"created_ns": spec.created_ns} | _NONE
            self._wake(spec.prefix)
        else:
            now = dict(stored)
        if rows > now["rows"]:
            now["answered"] += self._count(segment, now["rows"], rows)
            now["rows"] = rows
        fields = wanted.get(spec.model)
        if fields:
            stop = _request_end(segment, now["indexed"], rows)
            if stop > now["indexed"]:
                self._index(segment, fields, now["indexed"], stop)
                now["indexed"] = stop
                if stop < rows:
                    self.is_behind = True
        now["sealed"] = int(sealed)
        if _is_done(now, wanted):
            self._done.add(spec.prefix)
        if stored == now:
            return False
        upsert(self._connection, segments, [now])
        return True

    def _count(self, segment: Segment, start: int, stop: int) -> int:
        answered = segment.column("status")[start:stop] == ANSWERED
        hours, counts = np.unique(segment.column("time_ns")[start:stop][answered] // HOUR_NS, return_counts=True)
        place = {"model": segment.spec.model, "version": segment.spec.version}
        rows = [
            place | {"hour": hour, "predictions": count}
            for hour, count in zip(hours.tolist(), counts.tolist(), strict=True)
        ]
        upsert(self._connection, volumes, rows, add=["predictions"])
        return int(counts.sum())

    def _index(self, segment: Segment, fields: set[str], start: int, stop: int) -> None:
        found = addresses.rows_of(segment, fields, start, stop)
        addresses.add(self._connection, found)
        # Any time at all: SQLite looks that up in an index, but would read every event for one that is not null.
        waits = select(events.c.feedback_id).where(events.c.retry_ns >= 0, events.c.address.is_not(None))
        if self._connection.execute(waits.limit(1)).first() is None:
            return
        for some in slices({row["address"] for row in found}):
            mine = events.c.address.in_(some) & events.c.retry_ns.is_not(None)
            self._connection.execute(events.update().where(mine).values(retry_ns=self._now_ns()))

    def _wake(self, prefix: str) -> None:
        """Events that wait for predictions of a segment that is new here."""
        mine = events.c.prediction_id.between(prefix, prefix + "g") & events.c.retry_ns.is_not(None)
        self._connection.execute(events.update().where(mine).values(retry_ns=self._now_ns()))


def _is_done(row: dict[str, Any] | None, wanted: dict[str, set[str]]) -> bool:
    """True for a segment of which nothing is left to count or to index."""
    if row is None or not row["sealed"]:
        return False
    return row["model"] not in wanted or row["indexed"] >= row["rows"]


def _request_end(segment: Segment, start: int, rows: int) -> int:
    """Where indexing may stop: after whole requests, and not much more than INDEX_ROWS further."""
    if rows - start <= INDEX_ROWS:
        return rows
    begins = np.flatnonzero(segment.column("span")[start + INDEX_ROWS : rows])
    return start + INDEX_ROWS + int(begins[0]) if len(begins) else rows
