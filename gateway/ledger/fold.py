"""Folder: takes feedback from the logs into the ledger, finds the predictions it is about, and resolves the labels.

Each step is one transaction: the events, what follows from them, and the position in the log up to which they were
read. Whatever moment the process is killed in, a step has happened or it has not.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection, bindparam, select
from sqlalchemy.exc import DataError, SQLAlchemyError

from gateway.errors import HeadgateError
from gateway.feedback.event import FOLDER, Event, keyed_id
from gateway.feedback.log import files
from gateway.feedback.rules import FeedbackRule
from gateway.journal.reader import Locator
from gateway.ledger import addresses
from gateway.ledger.book import RuleBook, restating
from gateway.ledger.dialect import upsert
from gateway.ledger.join import Joined, address_of, join
from gateway.ledger.labels import Change, Subject, slices, subject_of, withdrawn
from gateway.ledger.logs import LogReader, Taken
from gateway.ledger.resolve import State
from gateway.ledger.reviews import take_answers
from gateway.ledger.tables import events, logs, rules

log = logging.getLogger("headgate.ledger")

SECOND_NS = 1_000_000_000
FIRST_RETRY_S = 1
LAST_RETRY_S = 3600
"""How soon a prediction that was not found is looked for again; each time it takes twice as long, up to this."""

_JOIN = (
    events.update()
    .where(events.c.feedback_id == bindparam("id"))
    .values(
        {name: bindparam(f"to_{name}") for name in ("prediction_id", "part", "model", "version", "predicted_ns")}
        | {"reason": "", "retry_ns": None}
    )
)
_WAIT = (
    events.update()
    .where(events.c.feedback_id == bindparam("id"))
    .values(
        {name: bindparam(f"to_{name}") for name in ("state", "reason", "tries", "retry_ns")},
    )
)


class Declarations(Protocol):
    """The feedback names of all models; see feedback.declarations."""

    def of(self, model: str) -> Mapping[str, FeedbackRule]:
        """Those of one model. Raises NotReady."""
        ...

    def declaring(self, name: str) -> dict[str, FeedbackRule]:
        """The models that declare a name, with their declarations."""
        ...


class Folder:
    """Belongs to one thread, and to the one connection that writes. `now_ns` is Unix time, `monotonic` seconds."""

    def __init__(
        self,
        connection: Connection,
        data: Path,
        declarations: Declarations,
        locator: Locator,
        now_ns: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._folder = data / FOLDER
        self._declarations = declarations
        self._locator = locator
        self._now_ns = now_ns
        self._monotonic = monotonic
        self._reader = LogReader()
        self.book = RuleBook(declarations.of)
        self._indexed: dict[str, set[str]] = {}
        self._most: int | None = None

    def load(self) -> None:
        """Take what is remembered from the ledger: at the start, and after a step that failed."""
        self._reader = LogReader()
        with self._connection.begin():
            self.book.load(self._connection)
            self._indexed = addresses.fields(self._connection)

    # -- new events

    def fold(self, limit: int) -> int:
        """Take up to `limit` new events in; returns how many frames were dealt with.

        One that cannot be taken in, whatever the reason, must not hold up those behind it: fewer are taken at once
        until it is alone, and then it is set aside as an orphan. Raises what the database and the disk do.
        """
        most = min(limit, self._most or limit)
        try:
            dealt = self._fold(most)
        except Exception as error:
            if isinstance(error, HeadgateError | SQLAlchemyError | OSError) and not isinstance(error, DataError):
                raise
            self.load()
            if most > 1:
                self._most = max(1, most // 16)
                return self.fold(limit)
            facts = {"event": "feedback-set-aside", "reason": type(error).__name__}
            log.error("an event of feedback cannot be taken in", exc_info=error, extra=facts)
            dealt = self._fold(1, aside=f"it cannot be taken in ({type(error).__name__}); the log has the details")
        # While it grows again there is more to do.
        self._most = None if most >= limit else most * 2
        return limit if self._most is not None else dealt

    def _fold(self, limit: int, aside: str = "") -> int:
        with self._connection.begin():
            places = {row.name: row for row in self._connection.execute(select(logs))}
            taken: dict[str, Taken] = {}
            room = limit
            for path in files(self._folder):
                place = places.get(path.name)
                found = self._take(path, place.position if place else 0, room)
                if found is not None:
                    taken[path.name] = found
                    room -= len(found.events)
                if room <= 0:
                    break
            if not taken:
                return 0
            new, repeats = self._unknown(taken)
            if aside:
                self._set_aside(new, aside)
            else:
                self._take_in(new)
            self._place(places, taken, repeats)
        return sum(len(each.events) + each.unread for each in taken.values())

    def _take(self, path: Path, position: int, room: int) -> Taken | None:
        try:
            taken = self._reader.take(path, position, room, self._monotonic())
        except FileNotFoundError:
            return None
        except OSError as error:
            facts = {"event": "feedback-log-unreadable", "log": path.name, "reason": error.strerror}
            log.error("feedback log unreadable", extra=facts)
            return None
        if taken is not None and (taken.unread or taken.damaged or taken.torn):
            counts: dict[str, int | str] = {
                "unread": taken.unread,
                "damaged_bytes": taken.damaged,
                "torn_bytes": taken.torn,
            }
            counts |= {"event": "feedback-log-damaged", "log": path.name, "reason": taken.reason}
            log.error("feedback log damaged", extra=counts)
        return taken

    def _unknown(self, taken: Mapping[str, Taken]) -> tuple[list[Event], Counter[str]]:
        """The events that are not in the ledger yet, each once; and how many of each log were.

        An id is made of its idempotency key. Where that was forgotten and used again, the same id says something else:
        it was acknowledged, so it is an event, with an id of its own.
        """
        ids = (event.feedback_id for each in taken.values() for event in each.events)
        known = {row["feedback_id"] for row in self._stored(ids, events.c.feedback_id)}
        fresh: dict[str, Event] = {}
        repeats: Counter[str] = Counter()
        for name, each in taken.items():
            for event in each.events:
                is_known = event.feedback_id in known or event.feedback_id in fresh
                if (new := self._as_another(event, fresh) if is_known else event) is None:
                    repeats[name] += 1
                else:
                    fresh[new.feedback_id] = new
        return list(fresh.values()), repeats

    def _as_another(self, event: Event, fresh: Mapping[str, Event]) -> Event | None:
        """An event whose id is known under an id of its own; None where it says what is known."""
        said = _said(self._bare_row(event, {}))
        other = msgspec.structs.replace(event, feedback_id=keyed_id("reused", event.feedback_id, said))
        rows = self._stored((event.feedback_id, other.feedback_id), *events.c)
        rows += [self._bare_row(fresh[each.feedback_id], {}) for each in (event, other) if each.feedback_id in fresh]
        if said in map(_said, rows):
            return None
        facts = {"event": "idempotency-key-reused", "feedback_id": event.feedback_id}
        log.warning("an idempotency key that was forgotten came with other feedback", extra=facts)
        return other

    def _stored(self, ids: Iterable[str], *columns: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for some in slices(ids):
            rows = self._connection.execute(select(*columns).where(events.c.feedback_id.in_(some))).mappings()
            found += [dict(row) for row in rows]
        return found

    def _place(self, places: Mapping[str, Any], taken: Mapping[str, Taken], repeats: Counter[str]) -> None:
        rows = []
        for name, each in taken.items():
            place = places.get(name)
            rows.append(
                {
                    "name": name,
                    "position": each.position,
                    "events": (place.events if place else 0) + len(each.events) - repeats[name],
                    "repeats": (place.repeats if place else 0) + repeats[name],
                    "unread": (place.unread if place else 0) + each.unread,
                    "damaged": (place.damaged if place else 0) + each.damaged,
                    "torn": each.torn,
                    "reason": each.reason or (place.reason if place else ""),
                }
            )
        upsert(self._connection, logs, rows)

    def _take_in(self, new: Sequence[Event]) -> None:
        change = Change(self._connection, self.book)
        # Rows of one segment follow each other: it is opened once.
        rows = [self._row(event) for event in sorted(new, key=lambda event: event.prediction_id)]
        puts = [row for row in rows if row["op"] == "put"]
        touched = self._bury([row for row in rows if row["op"] == "delete"], puts, change)
        waiting: list[dict[str, Any]] = []
        joined: list[dict[str, Any]] = []
        for row in puts:
            (joined if self._join(row) else waiting).append(row)
        change.settle(touched, joined)
        gone = withdrawn(self._connection, [row["feedback_id"] for row in waiting])
        for row in waiting:
            if row["feedback_id"] in gone:
                row["state"] = State.DELETED
        self._insert(puts)
        for row in rows:
            change.tally(row["model"], row["name"], row["state"], 1)
        change.write()
        take_answers(self._connection, puts)

    def _set_aside(self, new: Sequence[Event], reason: str) -> None:
        """Keep events as they came, without anything that follows from them."""
        change = Change(self._connection, self.book)
        rows = [self._bare_row(event, {}) | {"state": State.ORPHAN, "reason": reason} for event in new]
        self._insert(rows)
        for row in rows:
            change.tally(row["model"], row["name"], row["state"], 1)
        change.write()

    def _insert(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            self._connection.execute(events.insert(), rows)

    def _row(self, event: Event) -> dict[str, Any]:
        """An event as a row of the table, not joined yet."""
        rules_of = self._rules(event.model, event.name) if event.op == "put" and not event.prediction_id else {}
        self._index(event, rules_of)
        return self._bare_row(event, rules_of)

    def _bare_row(self, event: Event, rules_of: Mapping[str, FeedbackRule]) -> dict[str, Any]:
        return {
            "feedback_id": event.feedback_id,
            "op": event.op,
            "model": event.model,
            "name": event.name,
            "kind": event.kind,
            "value": msgspec.json.encode(event.value).decode() if event.op == "put" else None,
            "prediction_id": event.prediction_id,
            "part": event.row,
            "address": address_of(event, rules_of) if event.op == "put" else None,
            "address_text": event.request_id or event.entity,
            "event_time_ns": event.event_time_ns,
            "source_type": event.source.type,
            "source_id": event.source.id,
            "observed_ns": event.observed_at_ns,
            "received_ns": event.received_ns,
            "rationale": event.rationale,
            "supersedes": event.supersedes or None,
            "link": event.link,
            "idempotency_key": event.idempotency_key,
            "actor": event.actor,
            "version": None,
            "predicted_ns": None,
            "state": State.PENDING,
            "reason": "",
            "tries": 0,
            "retry_ns": None,
        }

    def _rules(self, model: str, name: str) -> dict[str, FeedbackRule]:
        """The declarations of a name: of one model, or of all that have it."""
        if not model:
            return self._declarations.declaring(name)
        rule = self.book.of_model(model).get(name)
        return {} if rule is None else {model: rule}

    def _index(self, event: Event, rules_of: Mapping[str, FeedbackRule]) -> None:
        """Have the addresses by which this event names its prediction indexed, if they are not yet."""
        for model, rule in rules_of.items():
            field = addresses.REQUEST_IDS if event.request_id else rule.entity
            if (event.request_id or field) and field not in self._indexed.get(model, ()):
                addresses.begin(self._connection, model, field)
                self._indexed.setdefault(model, set()).add(field)

    def _join(self, row: dict[str, Any]) -> bool:
        """Find the prediction of an event; where it is not there, say so in its row. True if it is."""
        rules_of = {} if row["prediction_id"] else self._rules(row["model"], row["name"])
        found = join(self._connection, self._locator, rules_of, row)
        if isinstance(found, Joined):
            row |= found._asdict()
            row |= {"reason": "", "retry_ns": None}
            return True
        self._put_off(row, found.reason, self._window_ns(row), final=found.final)
        return False

    def _window_ns(self, row: Mapping[str, Any]) -> int:
        """How long an event waits for its prediction."""
        if row["model"]:
            return self.book.of(self._connection, row["model"], row["name"]).join_window_ns
        windows = [rule.join_window_ns for rule in self._declarations.declaring(row["name"]).values()]
        return max(windows, default=FeedbackRule(type="text").join_window_ns)

    # -- tombstones

    def _bury(self, deletes: list[dict[str, Any]], puts: Sequence[Mapping[str, Any]], change: Change) -> set[Subject]:
        """Write tombstones down, and withdraw what they name; returns the subjects that are to be resolved anew."""
        found = {row["feedback_id"] for row in puts}
        touched: set[Subject] = set()
        for target in self._targets(row["supersedes"] for row in deletes):
            found.add(target["feedback_id"])
            if target["predicted_ns"] is not None:
                touched.add(subject_of(target))
            elif target["state"] != State.DELETED:
                self._wait(target, change, {**target, "state": State.DELETED})
        for row in deletes:
            if row["supersedes"] in found:
                row["state"] = State.MATCHED
            else:
                self._put_off(row, "no event of this id is known", FeedbackRule(type="text").join_window_ns)
        self._insert(deletes)
        return touched

    def _targets(self, feedback_ids: Iterable[str]) -> Iterator[dict[str, Any]]:
        for some in slices(set(feedback_ids)):
            statement = select(events).where(events.c.feedback_id.in_(some), events.c.op == "put")
            yield from [dict(row) for row in self._connection.execute(statement).mappings()]

    # -- events that wait

    def retry(self, limit: int) -> int:
        """Look again for the predictions of up to `limit` events whose time has come; returns how many these were."""
        with self._connection.begin():
            due = select(events).where(events.c.retry_ns <= self._now_ns()).order_by(events.c.retry_ns).limit(limit)
            rows = [dict(row) for row in self._connection.execute(due).mappings()]
            if not rows:
                return 0
            change = Change(self._connection, self.book)
            known = {row["feedback_id"] for row in self._targets(r["supersedes"] for r in rows if r["op"] == "delete")}
            touched: set[Subject] = set()
            for before in sorted(rows, key=lambda row: row["prediction_id"]):
                row = dict(before)
                if row["op"] == "delete" and row["supersedes"] in known:
                    self._wait(before, change, row | {"state": State.MATCHED, "reason": "", "retry_ns": None})
                elif row["op"] == "delete":
                    self._put_off(row, row["reason"], FeedbackRule(type="text").join_window_ns)
                    self._wait(before, change, row)
                elif self._join(row):
                    values = {f"to_{name}": row[name] for name in Joined._fields}
                    self._connection.execute(_JOIN, values | {"id": row["feedback_id"]})
                    change.tally(before["model"], row["name"], row["state"], -1)
                    change.tally(row["model"], row["name"], row["state"], 1)
                    touched.add(subject_of(row))
                else:
                    self._wait(before, change, row)
            change.settle(touched)
            change.write()
        return len(rows)

    def _put_off(self, row: dict[str, Any], reason: str, window_ns: int, *, final: bool = False) -> None:
        """Look again later, or (after its window, or `final`) never. What is withdrawn stays so, and is looked for."""
        now_ns = self._now_ns()
        ends_ns = row["received_ns"] + window_ns
        row["reason"] = reason
        if final or now_ns >= ends_ns:
            row["retry_ns"] = None
            if row["state"] != State.DELETED:
                row["state"] = State.ORPHAN
        else:
            wait_s = min(FIRST_RETRY_S << min(row["tries"], 20), LAST_RETRY_S)
            row["retry_ns"] = min(now_ns + wait_s * SECOND_NS, ends_ns)
        row["tries"] += 1

    def _wait(self, before: Mapping[str, Any], change: Change, after: Mapping[str, Any]) -> None:
        """Write what became of an event that is not joined."""
        values = {f"to_{name}": after[name] for name in ("state", "reason", "tries", "retry_ns")}
        self._connection.execute(_WAIT, values | {"id": before["feedback_id"]})
        change.tally(before["model"], before["name"], before["state"], -1)
        change.tally(before["model"], before["name"], after["state"], 1)

    # -- declarations that change

    def restate(self, limit: int) -> int:
        """Resolve up to `limit` labels anew whose declaration was changed; returns how many."""
        with self._connection.begin():
            for model, name in self.book.refresh(self._connection):
                facts = {"event": "labels-restated", "model": model, "feedback": name}
                log.info("declaration changed, labels are resolved anew", extra=facts)
            one = restating(self._connection)
            if one is None:
                return 0
            key = (events.c.prediction_id, events.c.part)
            statement = select(*key).distinct().order_by(*key).limit(limit)
            statement = statement.where(
                events.c.model == one.model,
                events.c.name == one.name,
                events.c.predicted_ns.is_not(None),
                events.c.prediction_id > one.cursor,
            )
            found = self._connection.execute(statement).all()
            change = Change(self._connection, self.book)
            # A request of many rows may be cut by the limit: all of it is done together.
            last = found[-1].prediction_id if found else None
            rest = select(*key).distinct().where(events.c.prediction_id == last, events.c.name == one.name)
            every = {(row.prediction_id, row.part) for row in (*found, *self._connection.execute(rest))}
            change.settle((prediction_id, part, one.name) for prediction_id, part in every)
            change.write()
            done = rules.update().where(rules.c.model == one.model, rules.c.name == one.name)
            self._connection.execute(done.values(cursor=last if len(found) == limit else None))
        return len(every)


def _said(row: Mapping[str, Any]) -> str:
    """What an event says, whatever became of it since; of a tombstone, which says nothing else, its id says it all."""
    if row["op"] != "put":
        return str(row["op"])
    about = row["address_text"] or (row["prediction_id"], row["part"] or 0)
    names = "name value event_time_ns source_type source_id observed_ns link rationale"
    return repr([about, *(row[name] for name in names.split())])


__all__ = ["Declarations", "Folder"]
