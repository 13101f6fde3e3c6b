"""The ledger that results does not depend on the order in which anything came, was folded, or was interrupted."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from gateway.feedback.event import FOLDER, Event, Source, encode, keyed_id
from gateway.journal.frames import FrameFile
from gateway.ledger import service
from gateway.ledger.maturity import hour_of, lag_class
from gateway.ledger.resolve import Statement, settle
from gateway.ledger.tables import arrivals, events, labels, tallies
from tests.ledger.rig import DAY, RULES, SECOND, START, Rig, open_segment, write

PREFIX = "01a2b3c4-d5e6-8fff-8abc-1234"
PREDICTIONS = 4
NAMES = [f"{PREFIX}{row:08x}" for row in range(PREDICTIONS)]
PREDICTED = [START - row * 20 * DAY for row in range(PREDICTIONS)]
UNKNOWN = "01a2b3c4-d5e6-8fff-8abc-999900000000"


def event_of(number: int, facts: dict[str, Any]) -> Event:
    said = {"feedback_id": keyed_id("order", str(number)), "model": "flights"} | facts
    return Event(**{name: Source("SYSTEM", value) if name == "source" else value for name, value in said.items()})


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Events about few predictions, most of them in each other's way; and tombstones."""
    made: list[Event] = []
    for number in range(draw(st.integers(1, 14))):
        if made and draw(st.integers(0, 5)) == 0:
            target = draw(st.sampled_from(made)).feedback_id
            facts = {"op": "delete", "supersedes": target, "feedback_id": keyed_id("delete", target), "model": ""}
            made.append(event_of(number, facts | {"received_ns": START}))
            continue
        name = draw(st.sampled_from(["late", "late", "stars"]))
        facts = {
            "name": name,
            "value": draw(st.booleans()) if name == "late" else draw(st.integers(1, 3)),
            "prediction_id": draw(st.sampled_from([NAMES[0], NAMES[0], NAMES[0], *NAMES, UNKNOWN])),
            "source": draw(st.sampled_from(["towers", "crew", "airline"])),
            "received_ns": START + draw(st.integers(-5, 0)) * SECOND,
            "link": draw(st.sampled_from(["", "", "", "link"])),
            "supersedes": draw(st.sampled_from(["", "", *(each.feedback_id for each in made)])),
        }
        made.append(event_of(number, facts))
    return made


def expected(history: list[Event]) -> tuple[dict[str, str], dict[tuple[str, int, str], Any]]:
    """States and labels, straight from the set of events."""
    unique = {each.feedback_id: each for each in history}
    puts = [each for each in unique.values() if each.op == "put"]
    deleted = {each.supersedes for each in unique.values() if each.op == "delete"}
    known = {each.feedback_id for each in puts}
    states = {
        each.feedback_id: "matched" if each.supersedes in known else "pending"
        for each in unique.values()
        if each.op == "delete"
    }
    resolved: dict[tuple[str, int, str], Any] = {}
    for each in puts:
        if each.prediction_id == UNKNOWN:
            states[each.feedback_id] = "deleted" if each.feedback_id in deleted else "pending"
    for row, prediction in enumerate(NAMES):
        for name, rule in RULES["flights"].items():
            mine = [each for each in puts if (each.prediction_id, each.name) == (prediction, name)]
            said = [
                Statement(
                    *(each.feedback_id, each.value, (each.source.type, each.source.id), each.observed_at_ns),
                    *(each.received_ns, each.supersedes, each.link),
                )
                for each in mine
            ]
            found, label = settle(said, deleted, PREDICTED[row], rule)
            states |= {feedback_id: str(state) for feedback_id, state in found.items()}
            if label is not None:
                resolved[prediction, 0, name] = (label.statement.value, label.statement.feedback_id, label.first_ns)
    return states, resolved


def check(rig: Rig, history: list[Event]) -> None:
    """The tables say what the events say, and so do the counts that are kept beside them."""
    states, resolved = expected(history)
    assert rig.states() == states
    connection = rig.writer.connection
    with connection.begin():
        kept = connection.execute(select(labels).where(labels.c.value.is_not(None))).all()
        found = {
            (row.prediction_id, row.part, row.name): (msgspec.json.decode(row.value), row.feedback_id, row.first_ns)
            for row in kept
        }
        assert found == resolved
        counted = {(row.model, row.name, row.state): row.events for row in connection.execute(select(tallies))}
        grouped = select(events.c.model, events.c.name, events.c.state, func.count()).group_by(
            events.c.model, events.c.name, events.c.state
        )
        true = {(model, name, state): count for model, name, state, count in connection.execute(grouped)}
        assert {key: count for key, count in counted.items() if count} == true
        came: dict[tuple[Any, ...], tuple[int, int]] = {}
        for row in kept:
            lag = row.first_ns - row.predicted_ns
            key = (row.model, row.version, row.name, hour_of(row.predicted_ns), lag_class(lag))
            count, total = came.get(key, (0, 0))
            came[key] = (count + 1, total + max(0, lag) // 1_000_000)
        lags = {tuple(row[:5]): tuple(row[5:]) for row in connection.execute(select(arrivals))}
        assert {key: value for key, value in lags.items() if value != (0, 0)} == came


@settings(max_examples=30, deadline=None)
@given(histories(), st.data())
def test_any_history_gives_one_ledger_in_whatever_order_it_comes(history: list[Event], data: st.DataObject) -> None:
    """1. Events lie in several logs in any order, some in two of them. 2. Predictions come before, between or after
    them. 3. The ledger folds after any of these, few events at a time, is closed and opened again in between.
    Result: states, labels and counts are those that follow from the set of events.
    """
    shuffle = data.draw(st.randoms(use_true_random=False))
    folder = Path(tempfile.mkdtemp(prefix="headgate-order-"))
    rig = Rig(folder / "data", logs=3)
    try:
        steps: list[tuple[str, Any]] = [("event", each) for each in history]
        steps += [("event", each) for each in history if shuffle.random() < 0.2]
        steps += [("fold", None)] * 3 + [("reopen", None)]
        shuffle.shuffle(steps)
        for _ in range(PREDICTIONS):
            steps.insert(shuffle.randrange(len(steps) + 1), ("predict", None))
        written = 0
        segment = open_segment(rig.data, prefix=PREFIX)
        for verb, event in steps:
            if verb == "event":
                rig.logs[shuffle.randrange(3)].write([event])
            elif verb == "predict":
                write(segment, PREDICTED[written])
                written += 1
            elif verb == "fold":
                rig.writer.folder.fold(shuffle.randrange(1, 5))
                rig.writer.segments.fold(service.SEGMENTS)
            else:
                rig.reopen()
        rig.step()
        # Long enough for what waits to be looked for again, and well inside its window.
        rig.clock.sleep(4000)
        rig.step()
        rig.clock.sleep(4000)
        rig.step()
        check(rig, history)
    finally:
        rig.close()
        shutil.rmtree(folder)


@settings(max_examples=20, deadline=None)
@given(histories(), st.data())
def test_a_damaged_log_costs_the_damaged_event_and_is_reported(history: list[Event], data: st.DataObject) -> None:
    """1. One bit of one frame in a log is flipped. Result: all other events are there; the damage is counted."""
    unique = list({each.feedback_id: each for each in history}.values())
    hurt = data.draw(st.integers(0, len(unique) - 1))
    bit = data.draw(st.integers(0, 10_000))
    folder = Path(tempfile.mkdtemp(prefix="headgate-damage-"))
    rig = Rig(folder / "data")
    try:
        segment = open_segment(rig.data, prefix=PREFIX)
        for time_ns in PREDICTED:
            write(segment, time_ns)
        (rig.data / FOLDER).mkdir(exist_ok=True)
        file = FrameFile(rig.data / FOLDER / "00-damaged.feedback")
        places = [file.append(encode(each)) for each in unique] + [file.size]
        file.close()
        content = bytearray(file.path.read_bytes())
        size = places[hurt + 1] - places[hurt]
        content[places[hurt] + bit // 8 % size] ^= 1 << bit % 8
        file.path.write_bytes(content)
        rig.step()
        rig.clock.sleep(6)
        rig.step()
        good = [each for index, each in enumerate(unique) if index != hurt]
        assert rig.states().keys() == {each.feedback_id for each in good}
        (row,) = rig.ledger.logs().values()
        assert row["events"] == len(good)
        assert row["damaged"] + row["torn"] == size
        assert row["reason"]
        assert rig.writer.step() == 0
    finally:
        rig.close()
        shutil.rmtree(folder)
