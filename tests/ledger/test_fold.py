"""From logs and segments into the ledger: joins, states, labels."""

from __future__ import annotations

from typing import Any

import pytest
import xxhash

from gateway.feedback.rules import FeedbackRule
from gateway.ledger.fold import Folder
from gateway.ledger.maturity import lag_class
from tests.ledger.rig import DAY, SECOND, START, Rig, open_segment, write


def test_a_label_finds_its_prediction_and_is_kept_with_it(rig: Rig) -> None:
    prediction = write(open_segment(rig.data), START - DAY)
    said = rig.put(True, prediction_id=prediction, rationale="landed 12:40")
    rig.step()
    about = rig.ledger.prediction(prediction)
    assert [(row["feedback_id"], row["state"], row["value"]) for row in about["feedback"]] == [(said, "matched", True)]
    (label,) = about["labels"]
    assert (label["value"], label["part"], label["first_ns"] - label["predicted_ns"]) == (True, 0, DAY)
    assert rig.ledger.tallies() == {("flights", "late", "matched"): 1}


def test_a_label_that_comes_before_its_prediction_waits_for_it(rig: Rig) -> None:
    segment = open_segment(rig.data)
    write(segment, START)
    prediction = f"{segment.spec.prefix}{1:08x}"
    said = rig.put(True, prediction_id=prediction)
    rig.step()
    assert rig.states() == {said: "pending"}
    assert write(segment, START + SECOND) == prediction
    rig.clock.sleep(5)
    rig.step()
    assert rig.states() == {said: "matched"}
    assert rig.ledger.tallies()["flights", "late", "matched"] == 1
    assert rig.ledger.tallies()["flights", "late", "pending"] == 0


def test_a_label_wakes_up_as_soon_as_the_segment_of_its_prediction_is_seen(rig: Rig) -> None:
    prefix = "01a2b3c4-d5e6-8fff-8abc-1234"
    said = rig.put(True, prediction_id=prefix + "00000000")
    rig.step()
    for _ in range(12):
        rig.clock.sleep(600)
        rig.step()
    write(open_segment(rig.data, prefix=prefix), rig.clock.time_ns)
    rig.clock.sleep(0.001)
    rig.step()
    assert rig.states() == {said: "matched"}


def test_a_label_without_a_prediction_is_an_orphan_after_its_window_and_not_before(rig: Rig) -> None:
    said = rig.put(True, prediction_id="01a2b3c4-d5e6-8fff-8abc-123400000000")
    rig.step()
    rig.clock.sleep(30 * 86400 - 1)
    rig.step()
    assert rig.states() == {said: "pending"}
    rig.clock.sleep(2)
    rig.step()
    assert rig.states() == {said: "orphan"}
    assert rig.ledger.tallies() == {("flights", "late", "pending"): 0, ("flights", "late", "orphan"): 1}
    assert rig.writer.step() == 0


def test_a_label_after_the_window_is_late_and_has_no_voice(rig: Rig) -> None:
    segment = open_segment(rig.data)
    old, new = write(segment, START - 31 * DAY), write(segment, START - 29 * DAY)
    late, timely = rig.put(True, prediction_id=old), rig.put(True, prediction_id=new)
    rig.step()
    assert rig.states() == {late: "late", timely: "matched"}
    assert rig.ledger.prediction(old)["labels"] == []


def test_the_same_said_again_is_a_duplicate_and_something_else_a_conflict(rig: Rig) -> None:
    prediction = write(open_segment(rig.data), START - DAY)
    ids = []
    for value in (True, True, False):
        rig.clock.sleep(1)
        ids.append(rig.put(value, prediction_id=prediction))
    rig.step()
    assert rig.states() == dict(zip(ids, ("conflict", "duplicate", "matched"), strict=True))
    assert [label["value"] for label in rig.ledger.prediction(prediction)["labels"]] == [False]


def test_a_tombstone_withdraws_a_label_whichever_of_them_comes_first(rig: Rig) -> None:
    segment = open_segment(rig.data)
    one, two = write(segment, START - DAY), write(segment, START - DAY)
    first = rig.put(True, prediction_id=one)
    rig.step()
    rig.clock.sleep(1)
    rig.delete(first)
    second = rig.event(True, prediction_id=two)
    grave = rig.delete(second.feedback_id)
    rig.step()
    assert rig.states()[grave] == "pending"
    assert rig.states()[first] == "deleted"
    rig.logs[0].write([second])
    rig.clock.sleep(3)
    rig.step()
    states = rig.states()
    assert (states[first], states[second.feedback_id], states[grave]) == ("deleted", "deleted", "matched")
    assert [label["value"] for label in rig.ledger.prediction(one)["labels"]] == [None]
    assert rig.ledger.prediction(two)["labels"] == []
    assert [row["op"] for row in rig.ledger.prediction(one)["feedback"]] == ["put", "delete"]
    assert rig.ledger.lags() == {("flights", 1, "late"): ({lag_class(DAY): 0}, 0.0)}


def test_a_tombstone_withdraws_what_waits(rig: Rig) -> None:
    waits = rig.put(True, prediction_id="01a2b3c4-d5e6-8fff-8abc-123400000000")
    rig.step()
    rig.delete(waits)
    rig.step()
    assert rig.states()[waits] == "deleted"
    assert rig.ledger.tallies()["flights", "late", "pending"] == 0


def test_every_row_of_a_request_has_its_own_label(rig: Rig) -> None:
    segment = open_segment(rig.data)
    prediction = write(segment, START - DAY, rows=3)
    said = [rig.put(row == 1, prediction_id=prediction, row=row) for row in range(3)]
    beyond = rig.put(True, prediction_id=prediction, row=3)
    unsaid = rig.put(True, prediction_id=prediction)
    rig.step()
    states = rig.states()
    assert [states[each] for each in (*said, beyond, unsaid)] == ["matched"] * 3 + ["orphan"] * 2
    labels = rig.ledger.prediction(prediction)["labels"]
    assert [(label["part"], label["value"]) for label in labels] == [(0, False), (1, True), (2, False)]
    reasons = {row["feedback_id"]: row["reason"] for row in rig.ledger.prediction(prediction)["feedback"]}
    assert reasons[beyond] == "the request has 3 rows, and the event names row 3"
    assert reasons[unsaid] == "the request has 3 rows, and the event names none"


def test_a_label_for_a_prediction_of_another_model_is_an_orphan_that_says_so(rig: Rig) -> None:
    prediction = write(open_segment(rig.data, "other"), START - SECOND)
    said = rig.put(True, prediction_id=prediction, model="flights")
    rig.step()
    (row,) = rig.ledger.prediction(prediction)["feedback"]
    assert (row["feedback_id"], row["state"], row["reason"]) == (said, "orphan", "the prediction is one of model other")


def test_a_label_without_a_model_gets_that_of_its_prediction_and_its_window(rig: Rig) -> None:
    prediction = write(open_segment(rig.data, "other"), START - 2 * DAY)
    said = rig.put(True, prediction_id=prediction, model="")
    rig.step()
    assert rig.states() == {said: "late"}
    assert rig.ledger.tallies() == {("other", "late", "late"): 1}


def test_an_event_that_stands_in_two_logs_is_taken_once(rig: Rig) -> None:
    prediction = write(open_segment(rig.data), START - DAY)
    event = rig.event(True, prediction_id=prediction)
    for log in rig.logs:
        log.write([event, event])
    rig.step()
    assert rig.states() == {event.feedback_id: "matched"}
    assert sum(row["events"] for row in rig.ledger.logs().values()) == 1
    assert sum(row["repeats"] for row in rig.ledger.logs().values()) == 5


def test_a_label_by_request_id_finds_requests_from_before_and_after(rig: Rig) -> None:
    segment = open_segment(rig.data)
    before = write(segment, START - DAY, request_id="order-17")
    write(segment, START - DAY, request_id="order-18")
    rig.step()
    known = rig.put(True, request_id="order-17")
    early = rig.put(False, request_id="order-19")
    rig.step()
    rig.clock.sleep(2)
    rig.step()
    assert rig.states() == {known: "matched", early: "pending"}
    after = write(segment, rig.clock.time_ns, request_id="order-19")
    rig.step()
    rig.clock.sleep(1)
    rig.step()
    assert rig.states() == {known: "matched", early: "matched"}
    assert [label["value"] for label in rig.ledger.prediction(before)["labels"]] == [True]
    assert [label["value"] for label in rig.ledger.prediction(after)["labels"]] == [False]


def test_a_label_by_entity_and_time_finds_the_nearest_prediction_of_that_entity(rig: Rig) -> None:
    segment = open_segment(rig.data)
    rows = write(segment, START - DAY, rows=3, customer=[7, 8, 7])
    near = write(segment, START - DAY + 600 * SECOND, customer=[8])
    event = rig.put(True, entity="8", event_time_ns=START - DAY + 500 * SECOND)
    first = rig.put(False, entity="8", event_time_ns=START - DAY + 100 * SECOND)
    far = rig.put(True, entity="8", event_time_ns=START - 2 * DAY)
    rig.step()
    rig.clock.sleep(2)
    rig.step()
    assert rig.states() == {event: "matched", first: "matched", far: "pending"}
    assert [label["value"] for label in rig.ledger.prediction(near)["labels"]] == [True]
    assert [(label["part"], label["value"]) for label in rig.ledger.prediction(rows)["labels"]] == [(1, False)]


def test_an_entity_can_be_a_string_or_the_routing_key(rig: Rig) -> None:
    rig.declared.rules["flights"] |= {
        "late": FeedbackRule(type="boolean", entity="city"),
        "again": FeedbackRule(type="boolean", entity="x-client-key"),
    }
    segment = open_segment(rig.data)
    city = write(segment, START - 60 * SECOND, rows=2, city=["Rom", "Köln"])
    key = write(segment, START - 60 * SECOND, key=xxhash.xxh3_64_intdigest(b"customer 9"))
    one = rig.put(True, entity="Köln", event_time_ns=START)
    two = rig.put(True, entity="customer 9", event_time_ns=START, name="again")
    rig.step()
    rig.clock.sleep(2)
    rig.step()
    assert rig.states() == {one: "matched", two: "matched"}
    assert [label["part"] for label in rig.ledger.prediction(city)["labels"]] == [1]
    assert [label["name"] for label in rig.ledger.prediction(key)["labels"]] == ["again"]


def test_labels_are_resolved_anew_when_their_declaration_changes(rig: Rig) -> None:
    segment = open_segment(rig.data, capacity=2000)
    predictions = [write(segment, START - DAY) for _ in range(1200)]
    rig.logs[0].write([rig.event(True, prediction_id=prediction, source="towers") for prediction in predictions])
    facts = {"source": "crew", "observed_at_ns": START - 1}
    rig.logs[0].write([rig.event(False, prediction_id=prediction, **facts) for prediction in predictions])
    rig.step()
    assert {label.value for label in rig.ledger.labels("flights", "late")} == {True}
    fold = rig.ledger.fold()
    rule = FeedbackRule(type="boolean", resolve="source-precedence", sources=("crew",))
    rig.declared.rules["flights"]["late"] = rule
    rig.step()
    assert [label.value for label in rig.ledger.labels("flights", "late")] == [False] * 1200
    assert {label.prediction_id for label in rig.ledger.changes(fold, 5000)[0]} == set(predictions)
    assert rig.ledger.tallies() == {("flights", "late", "matched"): 1200, ("flights", "late", "conflict"): 1200}
    rig.declared.rules.clear()
    assert rig.step() == 0


def test_what_the_ledger_holds_is_there_after_it_was_opened_again(rig: Rig) -> None:
    prediction = write(open_segment(rig.data), START - DAY)
    said = rig.put(True, prediction_id=prediction)
    rig.step()
    rig.reopen()
    more = rig.put(False, prediction_id=prediction, source="crew")
    rig.clock.sleep(1)
    rig.step()
    assert rig.states().keys() == {said, more}
    assert sum(row["events"] for row in rig.ledger.logs().values()) == 2


def test_an_event_that_cannot_be_taken_in_is_set_aside_and_all_others_are_joined(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """40 events, of which two meet a defect, then 40 more. Result: two orphans that say why, 78 labels, told twice."""
    segment = open_segment(rig.data)
    predictions = [write(segment, START - DAY) for _ in range(80)]
    said = [rig.put(True, prediction_id=prediction) for prediction in predictions[:40]]
    bad = {said[7], said[31]}
    join = Folder._join

    def fails(folder: Folder, row: dict[str, Any]) -> bool:
        if row["feedback_id"] in bad:
            raise OverflowError("too large")
        return join(folder, row)

    monkeypatch.setattr(Folder, "_join", fails)
    rig.step()
    said += [rig.put(True, prediction_id=prediction) for prediction in predictions[40:]]
    rig.step()
    states = rig.states()
    assert [states[each] for each in said] == ["orphan" if each in bad else "matched" for each in said]
    tallies = {state: count for (_, _, state), count in rig.ledger.tallies().items() if count}
    assert tallies == {"matched": 78, "orphan": 2}
    (about,) = rig.ledger.prediction(predictions[7])["feedback"]
    assert about["reason"] == "it cannot be taken in (OverflowError); the log has the details"
    told = [record for record in caplog.records if record.message == "an event of feedback cannot be taken in"]
    assert len(told) == 2
    rig.reopen()
    assert rig.step() == 0
    assert rig.states() == states


def test_times_and_windows_at_the_end_of_what_numbers_hold_find_nothing_and_break_nothing(rig: Rig) -> None:
    rig.declared.rules["flights"]["late"] = FeedbackRule(
        type="boolean", entity="customer", entity_within="999999999d", join_window="30d"
    )
    write(open_segment(rig.data), START - DAY, customer=[7])
    far = rig.put(True, entity="8", event_time_ns=(1 << 63) - 1)
    near = rig.put(True, entity="7", event_time_ns=START - DAY)
    rig.step()
    assert rig.states() == {far: "pending", near: "matched"}


def test_a_declaration_that_is_changed_resolves_its_labels_anew_and_is_logged(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    prediction = write(open_segment(rig.data), START - DAY)
    for source, value in (("a", True), ("b", True), ("c", False)):
        rig.put(value, prediction_id=prediction, source=source)
        rig.clock.sleep(1)
    rig.step()
    assert [label["value"] for label in rig.ledger.prediction(prediction)["labels"]] == [False]
    rig.declared.rules["flights"]["late"] = FeedbackRule(type="boolean", resolve="majority")
    rig.clock.sleep(5)
    rig.step()
    assert [label["value"] for label in rig.ledger.prediction(prediction)["labels"]] == [True]
    (told,) = [record for record in caplog.records if record.message.startswith("declaration changed")]
    assert (told.model, told.feedback) == ("flights", "late")  # type: ignore[attr-defined]


def test_a_key_that_was_forgotten_and_used_for_something_else_loses_no_event(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """Events of one id: as it is when the table of keys has forgotten a key. 1. Yes. 2. No. 3. Both again. 4. Yes of
    another prediction. Result: three events, each once; the later one of the first two is the label; and the log tells.
    """
    segment = open_segment(rig.data)
    prediction, another = write(segment, START - DAY), write(segment, START - DAY)
    facts = {"prediction_id": prediction, "feedback_id": "0" * 8 + "-0000-8000-8000-" + "0" * 12}
    rig.put(True, **facts)
    rig.step()
    for value in (False, True, False):
        rig.clock.sleep(1)
        rig.put(value, **facts)
    rig.step()
    rig.put(False, **facts)
    rig.step()
    said = [(row["value"], row["state"]) for row in rig.ledger.prediction(prediction)["feedback"]]
    assert sorted(said) == [(False, "matched"), (True, "conflict")]
    (label,) = rig.ledger.prediction(prediction)["labels"]
    assert label["value"] is False
    for _ in range(2):
        rig.put(True, **facts | {"prediction_id": another})
        rig.step()
    assert [row["state"] for row in rig.ledger.prediction(another)["feedback"]] == ["matched"]
    assert caplog.messages.count("an idempotency key that was forgotten came with other feedback") == 2
