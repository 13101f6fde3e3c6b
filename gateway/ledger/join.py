"""Joining: which prediction an event is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection

from gateway.feedback.event import Event
from gateway.feedback.rules import FeedbackRule
from gateway.journal import ids
from gateway.journal.reader import Damaged, Found, Locator
from gateway.ledger import addresses


class Joined(NamedTuple):
    """The row of a prediction that an event is about."""

    prediction_id: str
    part: int
    model: str
    version: int
    predicted_ns: int


class Apart(NamedTuple):
    """Why an event has no prediction: for now, or (`final`) for ever."""

    reason: str
    final: bool = False


def join(
    connection: Connection, locator: Locator, rules: Mapping[str, FeedbackRule], event: Mapping[str, Any]
) -> Joined | Apart:
    """Find the prediction of an event (a row of the table `events`).

    `rules` are the declarations of its name by model: of its own, or of all that it may be about.
    """
    if event["prediction_id"]:
        return _check(event, event["prediction_id"], event["part"], _find(locator, event["prediction_id"]))
    if not event["event_time_ns"]:
        candidates = addresses.find(connection, addresses.of_request_id(event["address_text"]))
    else:
        candidates = []
        for field, within_ns in {(rule.entity, rule.entity_within_ns) for rule in rules.values() if rule.entity}:
            address = addresses.of_entity(field, event["address_text"])
            candidates += addresses.find(connection, address, (event["event_time_ns"], within_ns))
        candidates.sort(key=lambda each: abs(each.predicted_ns - event["event_time_ns"]))
    apart = Apart("no prediction of this address is known")
    for candidate in candidates:
        part = event["part"] if candidate.part is None else candidate.part
        found = _check(event, candidate.prediction_id, part, _find(locator, candidate.prediction_id))
        if isinstance(found, Joined):
            return found
        # Another model may have had a request of this id.
        apart = Apart(found.reason)
    return apart


def address_of(event: Event, rules: Mapping[str, FeedbackRule]) -> int | None:
    """The address of an event, None where it names its prediction, or where nothing says what its entity is."""
    if event.prediction_id:
        return None
    if event.request_id:
        return addresses.of_request_id(event.request_id)
    field = next((rule.entity for rule in rules.values() if rule.entity), "")
    return addresses.of_entity(field, event.entity) if field else None


def _find(locator: Locator, prediction_id: str) -> Found | str:
    if ids.parse(prediction_id) is None:
        return "no prediction has an id of this form"
    try:
        return locator.find(prediction_id) or "no such prediction is kept here"
    except Damaged as error:
        return str(error)


def _check(event: Mapping[str, Any], prediction_id: str, part: int | None, found: Found | str) -> Joined | Apart:
    if isinstance(found, str):
        return Apart(found)
    if event["model"] and found.model != event["model"]:
        return Apart(f"the prediction is one of model {found.model}", final=True)
    if part is None and found.span > 1:
        return Apart(f"the request has {found.span} rows, and the event names none", final=True)
    if part is not None and part >= found.span:
        return Apart(f"the request has {found.span} rows, and the event names row {part}", final=True)
    return Joined(prediction_id, part or 0, found.model, found.version, found.time_ns)
