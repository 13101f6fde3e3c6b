"""Feedback over HTTP: what is taken, what is refused and in which words, what a repetition gets."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.feedback.event import is_id
from gateway.journal.frames import FrameFile
from gateway.journal.reader import Damaged, Found
from tests.feedback.app import DAY_NS, NOW_NS, Desk

UNKNOWN = "00000000-0000-0000-0000-000000000000"


def late(prediction: str, **more: Any) -> dict[str, Any]:
    return {"prediction_id": prediction, "name": "late", "value": True, **more}


def post(desk: Desk, document: object, key: str = "") -> Any:
    return asyncio.run(desk.post(document, key))


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
    refused(desk, document, 422, "invalid-feedback", "name", "model 'flights' declares no feedback named 'gauge'")


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
        ({"observed_at": "yesterday"}, "observed_at", "must be a time after 1970 with a zone"),
        ({"observed_at": "2026-09-17T10:00:00"}, "observed_at", "with a zone"),
        ({"observed_at": "2026-09-17"}, "observed_at", "with a zone"),
        ({"observed_at": "1969-12-31T23:59:59Z"}, "observed_at", "after 1970"),
        ({"observed_at": "9999-12-31T23:59:59Z"}, "observed_at", "after 1970"),
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


# -- repetitions


def test_the_same_key_and_body_is_replayed_and_written_once(desk: Desk) -> None:
    document = late(desk.predictions.add())
    first = post(desk, document, "a-1")
    again = [post(desk, document, "a-1") for _ in range(3)]
    assert first.status == 201
    assert "idempotency-replayed" not in first.headers
    assert [reply.status for reply in again] == [200] * 3
    assert [reply.body for reply in again] == [first.body] * 3
    assert again[0].headers["idempotency-replayed"] == "true"
    assert len(desk.events()) == 1
    assert desk.counted() == {("flights", "late", "matched"): 1, ("flights", "late", "replayed"): 3}


def test_the_answer_to_a_repetition_is_the_first_one_though_the_prediction_has_come(desk: Desk) -> None:
    prediction = desk.predictions.add()
    found = desk.predictions.known.pop(prediction)
    first = post(desk, late(prediction), "k")
    desk.predictions.known[prediction] = found
    again = post(desk, late(prediction), "k")
    assert (first.status, again.status) == (202, 200)
    assert again.body == first.body


@pytest.mark.parametrize("change", [{"value": False}, {"rationale": "x"}, {"source": {"id": "b"}}, {"name": "delay"}])
def test_the_same_key_with_another_body_is_a_conflict(desk: Desk, change: dict[str, Any]) -> None:
    document = late(desk.predictions.add())
    first = post(desk, document, "a-1")
    other = {**document, **change}
    other["value"] = 5 if other["name"] == "delay" else other["value"]
    reply = post(desk, other, "a-1")
    assert (reply.status, reply.json["code"]) == (409, "conflict")
    assert "'a-1'" in reply.json["error"]
    assert [event.feedback_id for event in desk.events()] == [first.json["feedback_id"]]


def test_the_order_and_the_spaces_of_a_body_do_not_make_it_another(desk: Desk) -> None:
    prediction = desk.predictions.add()
    assert post(desk, {"prediction_id": prediction, "name": "late", "value": True}, "k").status == 201
    assert post(desk, {"value": True, "name": "late", "prediction_id": prediction.upper()}, "k").status == 200


def test_the_key_may_stand_in_the_body(desk: Desk) -> None:
    document = late(desk.predictions.add())
    assert post(desk, {**document, "idempotency_key": "k"}).status == 201
    assert post(desk, document, "k").status == 200
    reply = post(desk, {**document, "idempotency_key": "other"}, "k")
    assert (reply.status, reply.json["field"]) == (400, "idempotency_key")


def test_a_key_that_stands_twice_in_the_header_is_refused(desk: Desk) -> None:
    async def main() -> None:
        body = json.dumps(late(UNKNOWN)).encode()
        reply = await desk.request("POST", "/v1/feedback", body, {"idempotency-key": "a", "Idempotency-Key": "b"})
        assert reply.status == 400

    asyncio.run(main())


def test_without_a_key_the_same_body_is_another_event(desk: Desk) -> None:
    document = late(desk.predictions.add())
    ids = {post(desk, document).json["feedback_id"] for _ in range(3)}
    assert len(ids) == 3
    assert len(desk.events()) == 3


def test_one_key_at_once_is_one_event(desk: Desk) -> None:
    """1. Forty clients send the same key in the same moment, half of them another value.
    Result: one event; one 201; every other one is replayed or a conflict, as its value says.
    """
    prediction = desk.predictions.add()

    async def main() -> list[Any]:
        posts = [desk.post(late(prediction) | {"value": n % 2 == 0}, "same") for n in range(40)]
        return await asyncio.gather(*posts)

    replies = asyncio.run(main())
    assert sorted(reply.status for reply in replies) == [200] * 19 + [201] + [409] * 20
    assert len(desk.events()) == 1


# -- batches


def batch(desk: Desk, lines: list[bytes], key: str = "") -> Any:
    headers = {"idempotency-key": key} if key else None
    return asyncio.run(desk.request("POST", "/v1/feedback:batch", b"\n".join(lines), headers))


def test_a_wrong_line_fails_alone_and_is_named_by_its_number(desk: Desk) -> None:
    known = desk.predictions.add()
    good = json.dumps(late(known)).encode()
    lines = [good, b"", b"{", good.replace(b"true", b"3"), b"  \r", json.dumps(late(UNKNOWN)).encode() + b"\r", b""]
    reply = batch(desk, lines)
    assert reply.status == 200
    assert (reply.json["taken"], reply.json["refused"]) == (2, 2)
    results = reply.json["results"]
    assert [each["line"] for each in results] == [1, 3, 4, 6]
    assert [each.get("status") for each in results] == ["matched", None, None, "pending"]
    assert [each.get("code") for each in results] == [None, "invalid-json", "invalid-feedback", None]
    assert "got 3" in results[2]["error"]
    assert {event.feedback_id for event in desk.events()} == {results[0]["feedback_id"], results[3]["feedback_id"]}


def test_a_large_batch_is_written_in_groups_and_answered_in_order(desk: Desk) -> None:
    known = [desk.predictions.add() for _ in range(700)]
    lines = [json.dumps(late(name, rationale=str(n))).encode() for n, name in enumerate(known)]
    reply = batch(desk, lines)
    assert reply.json["taken"] == 700
    by_id = {event.feedback_id: event for event in desk.events()}
    for number, result in enumerate(reply.json["results"]):
        assert result["line"] == number + 1
        assert by_id[result["feedback_id"]].prediction_id == known[number]


def test_a_repeated_batch_is_replayed_line_by_line(desk: Desk) -> None:
    lines = [json.dumps(late(desk.predictions.add())).encode() for _ in range(3)]
    first = batch(desk, lines, "import-1").json
    again = batch(desk, [*lines, lines[0]], "import-1").json
    assert [each["feedback_id"] for each in again["results"][:3]] == [each["feedback_id"] for each in first["results"]]
    assert [each.get("replayed", False) for each in again["results"]] == [True, True, True, False]
    assert len(desk.events()) == 4
    changed = batch(desk, [lines[1], lines[1], lines[1]], "import-1").json
    assert [each.get("code", each.get("status")) for each in changed["results"]] == ["conflict", "matched", "conflict"]


def test_a_batch_of_which_no_line_is_taken_is_an_error(desk: Desk) -> None:
    reply = batch(desk, [b"", b"{}", b"[]"])
    assert reply.status == 400
    assert reply.json["error"].startswith("none of the 2 lines was taken; line 2: ")
    assert [each["line"] for each in reply.json["results"]] == [2, 3]


def test_an_empty_batch_is_refused(desk: Desk) -> None:
    assert batch(desk, [b"", b" "]).json["field"] == "body"


# -- tombstones


def test_a_tombstone_names_what_it_withdraws(desk: Desk) -> None:
    made = post(desk, late(desk.predictions.add())).json["feedback_id"]
    replies = [asyncio.run(desk.request("DELETE", f"/v1/feedback/{made.upper()}")) for _ in range(2)]
    assert [(reply.status, reply.json) for reply in replies] == [(200, {"feedback_id": made, "status": "deleted"})] * 2
    first, one, two = desk.events()
    assert (first.op, one.op, two.op) == ("put", "delete", "delete")
    assert (one.supersedes, two.supersedes) == (made, made)
    assert one.feedback_id == two.feedback_id != made


def test_a_tombstone_for_what_is_no_id_is_refused(desk: Desk) -> None:
    reply = asyncio.run(desk.request("DELETE", "/v1/feedback/nonsense"))
    assert (reply.status, reply.json["field"]) == (400, "feedback_id")
    assert desk.events() == []


# -- what fails


@pytest.mark.parametrize("fails", ["append", "sync"])
def test_what_is_not_on_disk_is_not_acknowledged(desk: Desk, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """1. The disk fails while a keyed and an unkeyed event are written. 2. It works again, and both are sent again.
    Result: 503 first, then 201 for both, not 200: the failed key was not remembered.
    """
    document = late(desk.predictions.add())
    assert post(desk, document).status == 201

    def fail(self: FrameFile, *payloads: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(FrameFile, fails, fail)
        for key in ("k", ""):
            reply = post(desk, document, key)
            assert (reply.status, reply.json["code"]) == (503, "not-ready")
            assert "No space left on device" in reply.json["error"]
            assert int(reply.headers["retry-after"]) > 0
    assert post(desk, document, "k").status == 201
    assert post(desk, document, "k").status == 200


def test_a_disk_that_fails_does_not_take_back_what_was_kept_before(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    document = late(desk.predictions.add())
    post(desk, document, "k")
    monkeypatch.setattr(FrameFile, "append", lambda self, *payloads: pytest.fail("nothing is to be written"))
    assert post(desk, document, "k").status == 200


def test_an_odd_event_fails_alone(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. Looking for one prediction raises what nobody expected, among good ones. Result: 500 for it alone."""
    good, odd = desk.predictions.add(), desk.predictions.add()
    find = desk.predictions.find

    def look(name: str) -> Found | None:
        if name == odd:
            raise ZeroDivisionError
        return find(name)

    monkeypatch.setattr(desk.predictions, "find", look)

    async def main() -> list[Any]:
        return await asyncio.gather(*(desk.post(late(name)) for name in (good, odd, good)))

    assert [reply.status for reply in asyncio.run(main())] == [201, 500, 201]
    assert caplog.text.count("Traceback") == 1
    lines = [json.dumps(late(name)).encode() for name in (good, odd)]
    assert [each.get("code") for each in batch(desk, lines).json["results"]] == [None, "internal"]
    assert caplog.text.count("Traceback") == 2


def test_a_client_that_leaves_does_not_hold_up_the_others(desk: Desk) -> None:
    prediction = desk.predictions.add()

    async def main() -> Any:
        gone = asyncio.create_task(desk.post(late(prediction)))
        await asyncio.sleep(0)
        gone.cancel()
        return await desk.post(late(prediction))

    assert asyncio.run(main()).status == 201


def test_too_many_that_wait_are_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.feedback.commit.MAX_WAITING", 5)
    prediction = desk.predictions.add()

    async def main() -> list[Any]:
        return await asyncio.gather(*(desk.post(late(prediction)) for _ in range(8)))

    replies = asyncio.run(main())
    assert sorted(reply.status for reply in replies) == [201] * 5 + [429] * 3
    assert len(desk.events()) == 5
    assert desk.counted() == {("flights", "late", "matched"): 5, ("", "", "queue-full"): 3}
    assert post(desk, late(prediction)).status == 201


def test_a_table_of_keys_that_cannot_be_opened_is_an_overload_until_it_can(desk: Desk) -> None:
    desk.folder.mkdir(parents=True)
    (desk.folder / "keys").mkdir()
    document = late(desk.predictions.add())
    reply = post(desk, document, "k")
    assert (reply.status, reply.json["code"]) == (503, "not-ready")
    assert str(desk.folder) not in reply.json["error"]
    assert desk.events() == []
    (desk.folder / "keys").rmdir()
    assert post(desk, document, "k").status == 201


def test_keys_that_had_to_make_room_are_counted(tmp_path: Path) -> None:
    """1. Far more keys than are to be remembered. 2. The first one comes again.
    Result: those that were forgotten are counted; the first is taken anew, under the id that it had.
    """
    desk = Desk(tmp_path, keys=100)
    prediction = desk.predictions.add()
    first = post(desk, late(prediction), "first")
    for number in range(4):
        lines = [json.dumps(late(prediction)).encode()] * 256
        assert batch(desk, lines, f"import-{number}").json["taken"] == 256
    again = post(desk, late(prediction), "first")
    assert again.status == 201
    assert again.json == first.json
    forgotten = desk.counters.snapshot().named["feedback-keys-forgotten",]
    assert 4 * 256 + 2 - 256 <= forgotten <= 4 * 256 + 2
    desk.feedback.close()
