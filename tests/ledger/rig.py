"""A data folder with a real journal and real feedback logs, and a ledger over them, on a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.feedback.event import FOLDER, Event, Source, keyed_id
from gateway.feedback.log import Log
from gateway.feedback.rules import FeedbackRule
from gateway.journal import ids, schema
from gateway.journal.schema import Column, SegmentSpec
from gateway.journal.segment import Segment
from gateway.ledger import dialect
from gateway.ledger.reading import Ledger
from gateway.ledger.service import Writer

SECOND = 1_000_000_000
DAY = 86400 * SECOND
START = 1_790_000_000 * SECOND

LATE = FeedbackRule(type="boolean", join_window="30d", entity="customer", entity_within="1h")
RULES: Mapping[str, Mapping[str, FeedbackRule]] = {
    "flights": {"late": LATE, "stars": FeedbackRule(type="integer", min=1, max=5, resolve="majority", kind="feedback")},
    "other": {"late": FeedbackRule(type="boolean", join_window="1d")},
}


class HandClock:
    """Time that passes when it is told to."""

    def __init__(self, now_ns: int = START) -> None:
        self.time_ns = now_ns

    def now_ns(self) -> int:
        """See service.Clock."""
        return self.time_ns

    def monotonic(self) -> float:
        """See service.Clock."""
        return self.time_ns / SECOND

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.time_ns += int(seconds * SECOND)


class Declared:
    """Declarations that a test can change."""

    def __init__(self, rules: Mapping[str, Mapping[str, FeedbackRule]] = RULES) -> None:
        self.rules = {model: dict(names) for model, names in rules.items()}

    def of(self, model: str) -> Mapping[str, FeedbackRule]:
        """See feedback.declarations."""
        return self.rules.get(model, {})

    def declaring(self, name: str) -> dict[str, FeedbackRule]:
        """See feedback.declarations."""
        return {model: names[name] for model, names in sorted(self.rules.items()) if name in names}


def open_segment(
    data: Path, model: str = "flights", version: int = 1, capacity: int = 1000, prefix: str = "", width: int = 2
) -> Segment:
    """A new segment with an input `x` of floats, an input `customer` of integers and an output `p`."""
    folder = data / "journal"
    folder.mkdir(parents=True, exist_ok=True)
    columns = (
        Column("input", "x", "<f4", (width,), 0),
        Column("input", "customer", "<i8", (1,), 0),
        Column("output", "p", "<f4", (2,), 0),
    )
    spec = SegmentSpec(
        *(prefix or ids.new_prefix().decode(), model, version, "00" * 32, START, "", capacity),
        columns=schema.meta_columns() + columns,
        side=(Column("input", "city", "|O", (), 0),),
        kept={"x": "full", "customer": "full", "city": "full", "p": "full"},
    )
    return Segment(folder, spec)


def write(
    segment: Segment,
    time_ns: int,
    rows: int = 1,
    *,
    status: int = 200,
    customer: Sequence[int] = (),
    city: Sequence[str] = (),
    request_id: str = "",
    key: int = 0,
    probability: Sequence[float] = (),
) -> str:
    """Write one request of so many rows, as a worker does; returns its prediction id."""
    start = segment.fill
    at = slice(start, start + rows)
    segment._fill += rows
    segment.time_ns[at] = time_ns
    segment.span[start] = rows
    segment.batch[at] = rows
    segment.key[at] = key
    segment.inputs["customer"][at] = np.array(customer or [0] * rows).reshape(-1, 1)
    shares = np.array(probability or [0.5] * rows, np.float32)
    segment.outputs["p"][at] = np.stack((shares, 1 - shares), axis=1)
    frame: dict[str, Any] = {"row": start, "n": rows}
    if request_id:
        frame["notes"] = [[start, request_id, "", ""]]
    if city:
        frame["inputs"] = {"city": list(city)}
    if len(frame) > 2:
        segment.side_at[at] = segment.append_frame(frame)
    segment.status[at] = status
    segment.settle()
    return str(ids.PredictionId(segment.spec.prefix, start))


class Rig:
    """A ledger over a data folder. `put` writes an event to a log and gives its id; `step` lets the ledger work."""

    def __init__(self, data: Path, url: str = "", *, logs: int = 1) -> None:
        self.data = data
        data.mkdir(parents=True, exist_ok=True)
        self.url = url or dialect.location(data)
        self.clock = HandClock()
        self.declared = Declared()
        self.logs = [Log(data / FOLDER, 1 << 30, 1e18) for _ in range(logs)]
        self.writer = Writer(self.url, data, self.declared, self.clock)
        self.ledger = Ledger(self.url)
        self._ids = 0

    def event(self, value: Any = True, **facts: Any) -> Event:
        """An event about `late`, received now."""
        self._ids += 1
        facts = {"name": "late", "model": "flights", "received_ns": self.clock.time_ns} | facts
        source = facts.pop("source", "towers")
        feedback_id = facts.pop("feedback_id", keyed_id("test", str(self._ids)))
        return Event(feedback_id=feedback_id, value=value, source=Source("SYSTEM", source), **facts)

    def put(self, value: Any = True, *, log: int = 0, **facts: Any) -> str:
        """Write an event."""
        event = self.event(value, **facts)
        self.logs[log].write([event])
        return event.feedback_id

    def delete(self, feedback_id: str, *, log: int = 0) -> str:
        """Write a tombstone."""
        own = keyed_id("delete", feedback_id)
        event = Event(feedback_id=own, op="delete", supersedes=feedback_id, received_ns=self.clock.time_ns)
        self.logs[log].write([event])
        return own

    def step(self) -> int:
        """Work until nothing is left to do now."""
        total = 0
        while done := self.writer.step():
            total += done
        return total

    def states(self) -> dict[str, str]:
        """Every event's state."""
        with self.writer.connection.begin():
            rows = self.writer.connection.exec_driver_sql("SELECT feedback_id, state FROM events").all()
        return {row[0]: row[1] for row in rows}

    def reopen(self) -> None:
        """Close the ledger and open it again, as a control process that comes after another."""
        self.writer.close()
        self.writer = Writer(self.url, self.data, self.declared, self.clock)

    def close(self) -> None:
        """Close everything."""
        self.writer.close()
        for log in self.logs:
            log.close()
