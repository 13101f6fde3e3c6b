"""Reading the ledger: events and labels of a prediction, labels for export and monitors, maturity. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, Select, and_, func, select
from sqlalchemy.exc import DBAPIError, OperationalError

from gateway.errors import NotReady
from gateway.feedback.rules import FeedbackRule, Value
from gateway.ledger import dialect
from gateway.ledger.book import UNDECLARED
from gateway.ledger.labels import FOLD
from gateway.ledger.maturity import Coverage, coverage
from gateway.ledger.resolve import Statement, settle
from gateway.ledger.tables import arrivals, events, facts, labels, logs, rules, segments, tallies, volumes

PAGE = 10_000
"""Rows that are held at once while many are read."""

_SHOWN = (
    *("feedback_id", "op", "name", "kind", "value", "part", "source_type", "source_id", "observed_ns", "received_ns"),
    *("rationale", "supersedes", "link", "actor", "state", "reason"),
)


KNOWN_VALUES = 1000
"""Decoded values that are remembered while labels are read."""

_LABEL = select(
    *(labels.c[name] for name in ("prediction_id", "part", "name", "model", "version", "predicted_ns", "value")),
    *(labels.c[name] for name in ("feedback_id", "source_type", "source_id", "observed_ns", "received_ns", "first_ns")),
    *(labels.c[name] for name in ("voices", "agreeing", "changed")),
)
"""The columns of a ResolvedLabel, in its order."""


class LedgerUnavailable(NotReady):
    """The ledger cannot be read now."""


class ResolvedLabel(NamedTuple):
    """The label of one row of a prediction. `value` is None where all that was said has been withdrawn."""

    prediction_id: str
    part: int
    name: str
    model: str
    version: int
    predicted_ns: int
    value: Value | None
    feedback_id: str
    source: tuple[str, str]
    observed_ns: int
    received_ns: int
    first_ns: int
    voices: int
    agreeing: int
    changed: int


class Ledger:
    """A ledger that is read, from any process, while another one writes. Every method raises LedgerUnavailable."""

    def __init__(self, url: str) -> None:
        self._engine: Engine = dialect.reader(url)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection, connection.begin():
                yield connection
        except DBAPIError as error:
            raise LedgerUnavailable(f"the ledger cannot be read now: {_why(error)}") from error

    def prediction(self, prediction_id: str) -> dict[str, list[dict[str, Any]]]:
        """Every event about a prediction in the order in which they came, tombstones too, and its labels."""
        mine = select(*(events.c[name] for name in _SHOWN)).where(events.c.prediction_id == prediction_id)
        resolved = _LABEL.where(labels.c.prediction_id == prediction_id)
        with self._reading() as connection:
            said = [dict(row) for row in connection.execute(mine).mappings()]
            named = [row["feedback_id"] for row in said]
            for at in range(0, len(named), 400):
                buried = events.c.supersedes.in_(named[at : at + 400]) & (events.c.op == "delete")
                tombstones = select(*(events.c[name] for name in _SHOWN)).where(buried)
                said += [dict(row) for row in connection.execute(tombstones).mappings()]
            found = connection.execute(resolved.order_by(labels.c.part, labels.c.name)).all()
        said.sort(key=lambda row: (row["received_ns"], row["feedback_id"]))
        for row in said:
            row["value"] = None if row["value"] is None else msgspec.json.decode(row["value"])
        return {"feedback": said, "labels": [label._asdict() for label in _labels(found)]}

    def has_counted(self, prefix: str) -> bool:
        """Whether all predictions of a segment are counted, and no more can come."""
        with self._reading() as connection:
            found = connection.execute(select(segments.c.sealed).where(segments.c.prefix == prefix)).scalar()
        return bool(found)

    def labels(
        self, model: str, name: str, *, versions: tuple[int, ...] = (), start_ns: int = 0, stop_ns: int = 1 << 62
    ) -> Iterator[ResolvedLabel]:
        """Labels with a value, in the order of prediction ids and rows, of predictions in [start_ns, stop_ns)."""
        wanted = and_(labels.c.model == model, labels.c.name == name, labels.c.value.is_not(None))
        statement = _LABEL.where(wanted, labels.c.predicted_ns >= start_ns, labels.c.predicted_ns < stop_ns)
        if versions:
            statement = statement.where(labels.c.version.in_(versions))
        statement = statement.order_by(labels.c.prediction_id, labels.c.part)
        return _labels(self._stream(statement))

    def labels_known_at(self, model: str, name: str, at_ns: int) -> Iterator[ResolvedLabel]:
        """The labels that were resolved from what had been received at a moment, in the order of prediction ids.

        The present declaration holds, and what was withdrawn later counts as it did then.
        """
        rule = self.rule(model, name)
        mine = (events.c.model == model) & (events.c.name == name) & (events.c.op == "put")
        statement = select(events).where(mine, events.c.predicted_ns.is_not(None), events.c.received_ns <= at_ns)
        statement = statement.order_by(events.c.prediction_id, events.c.part)
        tombstones = select(events.c.supersedes).where(events.c.op == "delete", events.c.received_ns <= at_ns)
        with self._reading() as connection:
            deleted = set(connection.execute(tombstones).scalars())
        for _, group in groupby(self._stream(statement), key=lambda row: (row.prediction_id, row.part)):
            rows = list(group)
            one = rows[0]
            _, label = settle(map(_statement, rows), deleted, one.predicted_ns, rule)
            if label is not None:
                said = label.statement
                yield ResolvedLabel(
                    *(one.prediction_id, one.part, name, model, one.version, one.predicted_ns, said.value),
                    *(said.feedback_id, said.source, said.observed_ns, said.received_ns),
                    *(label.first_ns, label.voices, label.agreeing, 0),
                )

    def changes(self, since: int, limit: int = PAGE) -> tuple[list[ResolvedLabel], int]:
        """Labels that changed after fold `since`, and the fold up to which these are all: what to ask with next time.

        A label that changed twice is there once, as it is now. A withdrawn one has the value None.
        """
        statement = _LABEL.where(labels.c.changed > since).order_by(labels.c.changed).limit(limit)
        with self._reading() as connection:
            rows = connection.execute(statement).all()
            if len(rows) == limit:
                # Only whole folds: the last may be cut. One that is larger than the limit is read by itself.
                whole = [row for row in rows if row.changed < rows[-1].changed]
                last = _LABEL.where(labels.c.changed == rows[0].changed)
                rows = whole or list(connection.execute(last).all())
        return list(_labels(rows)), rows[-1].changed if rows else since

    def rule(self, model: str, name: str) -> FeedbackRule:
        """The declaration that the labels of a name follow."""
        statement = select(rules.c.rule).where(rules.c.model == model, rules.c.name == name)
        with self._reading() as connection:
            found = connection.execute(statement).scalar()
        return UNDECLARED if found is None else msgspec.json.decode(found, type=FeedbackRule)

    def maturity(self, model: str, version: int, name: str, now_ns: int) -> list[Coverage]:
        """The maturity curve of a version; see maturity.coverage."""
        by_hour = select(volumes.c.hour, volumes.c.predictions)
        lags = select(arrivals.c.hour, arrivals.c.lag, arrivals.c.labels)
        with self._reading() as connection:
            asked = connection.execute(by_hour.where(volumes.c.model == model, volumes.c.version == version)).all()
            mine = (arrivals.c.model == model) & (arrivals.c.version == version) & (arrivals.c.name == name)
            came = connection.execute(lags.where(mine)).all()
        return coverage([(hour, count) for hour, count in asked], [(h, lag, n) for h, lag, n in came], now_ns)

    def lags(self) -> dict[tuple[str, int, str], tuple[dict[int, int], float]]:
        """By model, version and name: labels by class of lag (maturity.LAGS_S), and the sum of lags in seconds."""
        key = (arrivals.c.model, arrivals.c.version, arrivals.c.name)
        statement = select(*key, arrivals.c.lag, func.sum(arrivals.c.labels), func.sum(arrivals.c.lag_ms))
        found: dict[tuple[str, int, str], tuple[dict[int, int], float]] = {}
        with self._reading() as connection:
            for model, version, name, lag, count, total in connection.execute(statement.group_by(*key, arrivals.c.lag)):
                classes, sum_s = found.get((model, version, name), ({}, 0.0))
                classes[lag] = int(count)
                found[model, version, name] = classes, sum_s + int(total) / 1000
        return found

    def tallies(self) -> dict[tuple[str, str, str], int]:
        """Events by model, name and state. Tombstones have no model and no name."""
        with self._reading() as connection:
            return {(row.model, row.name, row.state): row.events for row in connection.execute(select(tallies))}

    def logs(self) -> dict[str, Mapping[str, Any]]:
        """What was read of each feedback log; see tables.logs."""
        with self._reading() as connection:
            return {row["name"]: dict(row) for row in connection.execute(select(logs)).mappings()}

    def fold(self) -> int:
        """The number of the last transaction that changed labels."""
        with self._reading() as connection:
            return int(connection.execute(select(facts.c.number).where(facts.c.name == FOLD)).scalar() or 0)

    def _stream(self, statement: Select[Any]) -> Iterator[Any]:
        """Rows of a statement, a page in memory at a time."""
        with self._reading() as connection:
            yield from connection.execution_options(yield_per=PAGE).execute(statement)


def _labels(rows: Iterable[Any]) -> Iterator[ResolvedLabel]:
    """Rows of _LABEL. Values repeat, so few of them are decoded."""
    known: dict[str | None, Value | None] = {None: None}
    for row in rows:
        text = row[6]
        if text not in known:
            if len(known) > KNOWN_VALUES:
                known = {None: None}
            known[text] = msgspec.json.decode(text)
        yield ResolvedLabel._make((*row[:6], known[text], row[7], (row[8], row[9]), *row[10:]))


def _statement(row: Any) -> Statement:
    return Statement(
        row.feedback_id,
        msgspec.json.decode(row.value),
        (row.source_type, row.source_id),
        *(row.observed_ns, row.received_ns),
        row.supersedes or "",
        row.link,
    )


def _why(error: DBAPIError) -> str:
    """A reason that names no path."""
    said = str(error.orig).lower()
    if "locked" in said or "busy" in said:
        return "it is locked"
    if isinstance(error, OperationalError) and "unable to open" in said:
        return "it is not there"
    if "no such table" in said or "does not exist" in said:
        return "it is not set up yet"
    return "it is damaged" if "malformed" in said or "not a database" in said else "the database does not answer"
