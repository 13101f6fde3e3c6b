"""Feedback over HTTP: what is taken, what is refused and in which words, what a repetition gets."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from gateway.feedback.event import is_id
from gateway.journal.reader import Damaged
from tests.feedback.app import DAY_NS, NOW_NS, UNKNOWN, Desk, late, post

# -- what is taken


def test_feedback_about_a_known_prediction_is_matched_and_on_disk(desk: Desk) -> None:
    prediction = desk.predictions.add()
    document = late(
        prediction,
        source={"type": "HUMAN", "id": "gate 7"},
        observed_at="2026-09-17T12:00:00+02:00",
        rationale="saw it",
        kind="expectation",
    )
    reply = post(desk, document)
    assert reply.status == 201
    assert reply.headers["content-type"] == "application/json"
    assert reply.json["status"] == "matched"
    assert is_id(reply.json["feedback_id"])
    (event,) = desk.events()
    assert (event.feedback_id, event.prediction_id, event.row) == (reply.json["feedback_id"], prediction, None)
    assert (event.model, event.name, event.kind, event.value) == ("flights", "late", "expectation", True)
    assert (event.source.type, event.source.id, event.rationale) == ("HUMAN", "gate 7", "saw it")
    assert event.observed_at_ns == 1_789_639_200 * 10**9
    assert event.received_ns == NOW_NS
    assert desk.counted() == {("flights", "late", "matched"): 1}


def test_feedback_about_an_unknown_prediction_is_pending(desk: Desk) -> None:
    reply = post(desk, late(UNKNOWN))
    assert (reply.status, reply.json["status"]) == (202, "pending")
    (event,) = desk.events()
    # Both models declare the name, so nobody knows yet which of them it is about.
    assert (event.model, event.status) == ("", "pending")
    assert desk.counted() == {("", "late", "pending"): 1}


def test_an_unknown_prediction_is_of_the_model_that_is_named_or_alone_declares_the_name(desk: Desk) -> None:
    assert post(desk, late(UNKNOWN, model="trains")).status == 202
    assert post(desk, {"prediction_id": UNKNOWN, "name": "gauge", "value": 1435}).status == 202
    assert post(desk, {"prediction_id": UNKNOWN, "name": "stars", "value": 9}).status == 202
    assert [event.model for event in desk.events()] == ["trains", "trains", "trains"]


def test_feedback_after_its_join_window_is_late_and_kept(desk: Desk) -> None:
    on_time, too_late = desk.predictions.add(age_ns=30 * DAY_NS), desk.predictions.add(age_ns=30 * DAY_NS + 1)
    assert post(desk, late(on_time)).json["status"] == "matched"
    desk.now_ns = NOW_NS
    reply = post(desk, late(too_late))
    assert (reply.status, reply.json["status"]) == (201, "late")
    assert [event.status for event in desk.events()] == ["matched", "late"]


def test_a_damaged_journal_does_not_cost_the_label(desk: Desk) -> None:
    prediction = desk.predictions.add()
    desk.predictions.broken = Damaged("segment x is cut")
    assert post(desk, late(prediction)).json["status"] == "pending"


@pytest.mark.parametrize("form", ["member", "address"])
def test_a_label_is_for_one_row(desk: Desk, form: str) -> None:
    prediction = desk.predictions.add(span=3)
    document = late(f"{prediction}#2") if form == "address" else late(prediction, row=2)
    assert post(desk, document).status == 201
    assert [(event.prediction_id, event.row) for event in desk.events()] == [(prediction, 2)]


def test_capital_letters_of_an_id_do_not_matter(desk: Desk) -> None:
    prediction = desk.predictions.add()
    assert post(desk, late(prediction.upper())).json["status"] == "matched"


def test_the_other_addresses_wait_for_the_ledger(desk: Desk) -> None:
    by_request = {"request_id": "order-17", "model": "flights", "name": "late", "value": False}
    by_entity = {"entity": "LH400", "event_time": "2026-09-17T10:00:00Z", "name": "delay", "value": 12.5}
    assert post(desk, by_request).status == 202
    assert post(desk, by_entity).status == 202
    one, two = desk.events()
    assert (one.request_id, one.prediction_id, one.entity) == ("order-17", "", "")
    assert (two.entity, two.event_time_ns, two.model) == ("LH400", 1_789_639_200 * 10**9, "flights")


def test_a_compressed_body_is_read(desk: Desk) -> None:
    body = gzip.compress(json.dumps(late(desk.predictions.add())).encode())
    reply = asyncio.run(desk.request("POST", "/v1/feedback", body, {"content-encoding": "gzip"}))
    assert reply.status == 201


# -- what is refused


def refused(desk: Desk, document: object, status: int, code: str, field: str | None, *words: str) -> None:
    reply = post(desk, document)
    assert (reply.status, reply.json["code"], reply.json.get("field")) == (status, code, field), reply.body
    assert reply.json["request_id"] == reply.headers["x-request-id"]
    for word in words:
        assert word in reply.json["error"]
    assert desk.events() == []
    assert desk.counted() == {("", "", code): 1}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("late", 1, "a boolean, true or false, got 1"),
        ("late", None, "a boolean, true or false, got null"),
        ("late", [True], "got [true]"),
        ("stars", 0, "an integer from 1 to 5, got 0"),
        ("stars", 6, "an integer from 1 to 5, got 6"),
        ("stars", 4.5, "an integer from 1 to 5, got 4.5"),
        ("delay", -61, "a number at least -60, got -61"),
        ("delay", "10", 'got "10"'),
        ("reason", "fog", 'one of "weather", "crew", 7'),
        ("comment", "", "a text of 1 to 200 characters"),
        ("comment", "x" * 201, "xxx..."),
    ],
)
def test_a_value_that_its_declaration_does_not_allow_is_refused_with_it(
    desk: Desk, name: str, value: object, words: str
) -> None:
    document = {"prediction_id": desk.predictions.add(), "name": name, "value": value}
    refused(desk, document, 422, "invalid-feedback", "value", f"feedback {name!r} of model 'flights'", words)


def test_a_value_that_no_declaring_model_takes_is_refused_though_the_prediction_is_unknown(desk: Desk) -> None:
    document = {"prediction_id": UNKNOWN, "name": "stars", "value": 11}
    refused(desk, document, 422, "invalid-feedback", "value", "an integer from 1 to 5, got 11", "other models")


def test_an_undeclared_name_is_refused(desk: Desk) -> None:
    document = {"prediction_id": desk.predictions.add(), "name": "gauge", "value": 1}
    refused(desk, document, 422, "invalid-feedback", "name", "no feedback named 'gauge'; it declares '")


def test_a_name_that_no_model_declares_is_refused(desk: Desk) -> None:
    document = {"prediction_id": UNKNOWN, "name": "nothing\n", "value": 1}
    refused(desk, document, 422, "invalid-feedback", "name", r"no model declares a feedback named 'nothing\n'")


def test_a_model_that_is_not_that_of_the_prediction_is_refused(desk: Desk) -> None:
    document = late(desk.predictions.add(), model="trains")
    refused(desk, document, 422, "invalid-feedback", "model", "is of model 'flights', not 'trains'")


def test_an_opinion_is_no_expectation(desk: Desk) -> None:
    document = late(desk.predictions.add(), kind="feedback")
    refused(desk, document, 422, "invalid-feedback", "kind", "is declared as expectation, got kind feedback")


def test_a_request_of_several_rows_needs_the_row(desk: Desk) -> None:
    document = late(desk.predictions.add(span=3))
    refused(desk, document, 422, "invalid-feedback", "row", "has 3 rows: say which one")


def test_a_row_that_is_not_there_is_refused(desk: Desk) -> None:
    document = late(desk.predictions.add(span=3), row=3)
    refused(desk, document, 422, "invalid-feedback", "row", "has 3 rows, counted from 0: there is no row 3")


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"prediction_id": "not an id"}, "prediction_id", "must be a UUID, or a UUID and #row, got 'not an id'"),
        ({"prediction_id": UNKNOWN + "#-1"}, "prediction_id", "must be a UUID"),
        ({"prediction_id": UNKNOWN + "#01"}, "prediction_id", "must be a UUID"),
        ({"prediction_id": UNKNOWN + "#1", "row": 2}, "row", "row is 2, but prediction_id names row 1"),
        ({"row": -1}, "row", "from 0 to 999999999, got -1"),
        ({"prediction_id": ""}, "prediction_id", "got none"),
        ({"request_id": "a"}, "request_id", "got prediction_id, request_id"),
        ({"prediction_id": "", "entity": "a"}, "event_time", "go together"),
        ({"event_time": "2026-09-17T10:00:00Z"}, "entity", "go together"),
        ({"prediction_id": "", "entity": "a", "event_time": "noon"}, "entity", "not declared with an entity"),
        ({"observed_at": "yesterday"}, "observed_at", "must be a time from 1970 to 2099 with a zone"),
        ({"observed_at": "2026-09-17T10:00:00"}, "observed_at", "with a zone"),
        ({"observed_at": "2026-09-17"}, "observed_at", "with a zone"),
        ({"observed_at": "1969-12-31T23:59:59Z"}, "observed_at", "from 1970"),
        ({"observed_at": "9999-12-31T23:59:59Z"}, "observed_at", "to 2099"),
        ({"observed_at": "2090-01-01T00:00:00Z"}, "observed_at", "must not be more than a day ahead"),
        ({"supersedes": "x"}, "supersedes", "must be the feedback_id of another event"),
        ({"rationale": "x" * 4001}, "rationale", "at most 4000 characters, got 4001"),
        ({"source": {"id": "a\nb"}}, "source.id", r"no control characters, got 'a\nb'"),
        ({"source": {"id": "a" * 257}}, "source.id", "at most 256 characters"),
        ({"idempotency_key": "a" * 257}, "idempotency_key", "at most 256 characters"),
    ],
)
def test_a_wrong_member_is_refused_by_its_name(desk: Desk, change: dict[str, Any], field: str, words: str) -> None:
    refused(desk, {**late(UNKNOWN), **change}, 422, "invalid-feedback", field, words)


def test_a_wrong_time_is_refused_where_the_address_is_allowed(desk: Desk) -> None:
    document = {"entity": "LH400", "event_time": "noon", "name": "delay", "value": 1}
    refused(desk, document, 422, "invalid-feedback", "event_time", "got 'noon'")


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", "invalid-json", ""),
        (b"{", "invalid-json", ""),
        (b"[]", "invalid-json", "must be a JSON object"),
        (b'{"name": "late", "value": NaN}', "invalid-json", ""),
        (b'{"name": "late", "name": "late"}', "invalid-json", "name"),
        (b'{"a": ' + b"[" * 50 + b"]" * 50 + b"}", "invalid-json", "deep"),
        (b'{"name": "late"}', "invalid-request", "value"),
        (b'{"value": 1}', "invalid-request", "name"),
        (b'{"name": "late", "value": 1, "predictionid": "x"}', "invalid-request", "predictionid"),
        (b'{"name": "late", "value": 1, "kind": "fact"}', "invalid-request", "fact"),
        (b'{"name": "late", "value": 1, "source": {"type": "DOG"}}', "invalid-request", "DOG"),
        (b'{"name": "late", "value": 1, "row": "1"}', "invalid-request", "row"),
    ],
)
def test_a_body_that_is_no_feedback_is_refused(desk: Desk, body: bytes, code: str, words: str) -> None:
    reply = asyncio.run(desk.request("POST", "/v1/feedback", body))
    assert (reply.status, reply.json["code"]) == (400, code)
    assert words in reply.json["error"]
    assert desk.events() == []


@pytest.mark.parametrize("path", ["/v1/feedback", "/v1/feedback:batch"])
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_refused(desk: Desk, path: str, announced: bool) -> None:
    body = b" " * ((1 << 20) + 1)
    headers = None if announced else {"content-length": "0"}
    reply = asyncio.run(desk.request("POST", path, body, headers))
    assert (reply.status, reply.json["code"]) == (413, "payload-too-large")
    assert "1048576" in reply.json["error"]


def test_declarations_that_cannot_be_read_are_an_overload_and_no_fault_of_the_client(desk: Desk) -> None:
    desk.declare("flights", "[feedback.late]\ntype = 'maybe'")
    reply = post(desk, late(desk.predictions.add()))
    assert (reply.status, reply.json["code"]) == (503, "not-ready")
    assert "model.toml" in reply.json["error"]
    assert str(desk.models) not in reply.json["error"]
