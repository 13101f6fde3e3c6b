"""Feedback that is repeated, comes in batches, is taken back, or meets a failure."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.journal.frames import FrameFile
from gateway.journal.reader import Found
from tests.feedback.app import UNKNOWN, Desk, late, post

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


def test_a_line_with_a_key_of_its_own_has_that_also_where_the_batch_has_one(desk: Desk) -> None:
    own = late(desk.predictions.add(), idempotency_key="mine")
    lines = [json.dumps(own).encode(), json.dumps(late(desk.predictions.add())).encode()]
    first = batch(desk, lines, "import-1").json
    assert (first["taken"], first["refused"]) == (2, 0)
    again = batch(desk, lines[::-1], "import-2").json
    assert [result.get("replayed", False) for result in again["results"]] == [False, True]
    assert again["results"][1]["feedback_id"] == first["results"][0]["feedback_id"]


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
