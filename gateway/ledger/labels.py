"""Labels: writing what resolving gives for some rows of predictions, and all that is counted from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Connection, Table, bindparam, select, tuple_

from gateway.ledger import maturity
from gateway.ledger.book import RuleBook
from gateway.ledger.dialect import upsert
from gateway.ledger.resolve import Label, Statement, settle
from gateway.ledger.tables import arrivals, events, facts, labels, tallies

Subject = tuple[str, int, str]
"""What a label is of: prediction id, row of its request, feedback name."""

SLICE = 400
"""How many values one statement asks for."""

FOLD = "fold"

_STATEMENT = select(
    *(events.c[name] for name in ("feedback_id", "value", "source_type", "source_id", "observed_ns", "received_ns")),
    *(events.c[name] for name in ("supersedes", "link", "state", "prediction_id", "part", "name", "model", "version")),
    events.c.predicted_ns,
).where(events.c.op == "put", events.c.predicted_ns.is_not(None))
_SET_STATE = events.update().where(events.c.feedback_id == bindparam("id")).values(state=bindparam("to"))

T = TypeVar("T")


def slices(items: Iterable[T]) -> Iterator[list[T]]:
    """The items, `SLICE` at a time."""
    found = list(items)
    return (found[at : at + SLICE] for at in range(0, len(found), SLICE))


def subject_of(row: Any) -> Subject:
    """The subject of an event that is joined."""
    return row["prediction_id"], row["part"], row["name"]


class Change:
    """What one transaction does to states, labels and counts; `write` ends it. Everything in it is one fold."""

    def __init__(self, connection: Connection, book: RuleBook) -> None:
        self._connection = connection
        self._book = book
        self._tallies: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self._arrivals: defaultdict[tuple[str, int, str, int, int], list[int]] = defaultdict(lambda: [0, 0])
        self._fold = 0

    def tally(self, model: str, name: str, state: str, count: int) -> None:
        """So many more events of a state."""
        self._tallies[model, name, state] += count

    def settle(self, subjects: Iterable[Subject], fresh: Sequence[dict[str, Any]] = ()) -> None:
        """Resolve subjects anew. `fresh` are rows that are not in the table yet: their `state` is set, not tallied."""
        new: defaultdict[Subject, list[dict[str, Any]]] = defaultdict(list)
        for row in fresh:
            new[subject_of(row)].append(row)
        for some in slices({*subjects, *new}):
            self._settle(some, new)

    def _settle(self, subjects: list[Subject], fresh: Mapping[Subject, list[dict[str, Any]]]) -> None:
        rows: defaultdict[Subject, list[Any]] = defaultdict(list)
        found = self._connection.execute(_STATEMENT.where(_about(events, subjects)))
        for each in found.mappings():
            rows[subject_of(each)].append(each)
        stored = {subject: list(rows.get(subject, ())) for subject in subjects}
        every = [row["feedback_id"] for group in stored.values() for row in group]
        every += [row["feedback_id"] for subject in subjects for row in fresh.get(subject, ())]
        deleted = withdrawn(self._connection, every)
        before = self._labels(subjects)
        moved: list[dict[str, str]] = []
        written: list[dict[str, Any]] = []
        for subject, old in stored.items():
            group = [*old, *fresh.get(subject, ())]
            if not group:
                continue
            one = group[0]
            rule = self._book.of(self._connection, one["model"], one["name"])
            states, label = settle(map(_statement, group), deleted, one["predicted_ns"], rule)
            for row in old:
                state = states[row["feedback_id"]]
                if state != row["state"]:
                    moved.append({"id": row["feedback_id"], "to": state})
                    self.tally(row["model"], row["name"], row["state"], -1)
                    self.tally(row["model"], row["name"], state, 1)
            for row in fresh.get(subject, ()):
                row["state"] = states[row["feedback_id"]]
            self._label(one, label, before.get(subject), written)
        if moved:
            self._connection.execute(_SET_STATE, moved)
        upsert(self._connection, labels, written)

    def _labels(self, subjects: list[Subject]) -> dict[Subject, Mapping[str, Any]]:
        found = self._connection.execute(select(labels).where(_about(labels, subjects))).mappings()
        return {subject_of(row): dict(row) for row in found}

    def _label(self, one: Any, label: Label | None, before: Mapping[str, Any] | None, into: list[Any]) -> None:
        """Write a label that is new or another than before, and count how long it took."""
        if label is None and before is None:
            return
        row = {name: one[name] for name in ("prediction_id", "part", "name", "model", "version", "predicted_ns")}
        row |= _columns(label)
        if before is not None and all(before[name] == value for name, value in row.items()):
            return
        if self._fold == 0:
            self._fold = next_fold(self._connection)
        into.append(row | {"changed": self._fold})
        for each, sign in ((before, -1), (row, 1)):
            if each is not None and each["value"] is not None:
                lag_ns = each["first_ns"] - each["predicted_ns"]
                hour = maturity.hour_of(each["predicted_ns"])
                key = (each["model"], each["version"], each["name"], hour, maturity.lag_class(lag_ns))
                self._arrivals[key][0] += sign
                self._arrivals[key][1] += sign * (max(0, lag_ns) // 1_000_000)

    def write(self) -> None:
        """Write the counts."""
        counts = [
            {"model": model, "name": name, "state": state, "events": count}
            for (model, name, state), count in self._tallies.items()
            if count
        ]
        upsert(self._connection, tallies, counts, add=["events"])
        lags = [
            {
                "model": model,
                "version": version,
                "name": name,
                "hour": hour,
                "lag": lag,
                "labels": count,
                "lag_ms": total,
            }
            for (model, version, name, hour, lag), (count, total) in self._arrivals.items()
            if count or total
        ]
        upsert(self._connection, arrivals, lags, add=["labels", "lag_ms"])
        self._tallies.clear()
        self._arrivals.clear()


def _about(table: Table, subjects: Collection[Subject]) -> ColumnElement[bool]:
    """Rows of `events` or `labels` that are about these subjects.

    SQLite looks no list of row values up in an index but reads the whole table; a list of ids it does look up.
    """
    ids = table.c.prediction_id.in_({prediction_id for prediction_id, _, _ in subjects})
    return ids & tuple_(table.c.prediction_id, table.c.part, table.c.name).in_(subjects)


def withdrawn(connection: Connection, feedback_ids: Iterable[str]) -> set[str]:
    """Those of some events that tombstones name."""
    found: set[str] = set()
    for some in slices(feedback_ids):
        statement = select(events.c.supersedes).where(events.c.supersedes.in_(some), events.c.op == "delete")
        found |= set(connection.execute(statement).scalars())
    return found


def next_fold(connection: Connection) -> int:
    """The number of the present transaction."""
    number = int(connection.execute(select(facts.c.number).where(facts.c.name == FOLD)).scalar() or 0) + 1
    upsert(connection, facts, [{"name": FOLD, "number": number}])
    return number


def _statement(row: Any) -> Statement:
    return Statement(
        row["feedback_id"],
        msgspec.json.decode(row["value"]),
        (row["source_type"], row["source_id"]),
        row["observed_ns"],
        row["received_ns"],
        row["supersedes"] or "",
        row["link"],
    )


def _columns(label: Label | None) -> dict[str, Any]:
    """The columns of a label; of none, what says that all was withdrawn."""
    if label is None:
        nobody = {"value": None, "feedback_id": "", "source_type": "", "source_id": ""}
        return nobody | {"observed_ns": 0, "received_ns": 0, "first_ns": 0, "voices": 0, "agreeing": 0}
    said = label.statement
    return {
        "value": msgspec.json.encode(said.value).decode(),
        "feedback_id": said.feedback_id,
        "source_type": said.source[0],
        "source_id": said.source[1],
        "observed_ns": said.observed_ns,
        "received_ns": said.received_ns,
        "first_ns": label.first_ns,
        "voices": label.voices,
        "agreeing": label.agreeing,
    }
