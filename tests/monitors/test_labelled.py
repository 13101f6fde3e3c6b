"""Labelled performance in the service: every label counts once, as it is now, whatever comes late, twice or again."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.journal import archive, shelves
from gateway.journal.reader import Segment as Reading
from gateway.ledger.reading import LedgerUnavailable
from monitors.alarms import Alarm
from monitors.baseline.document import Baseline
from monitors.labelled import Labelled
from monitors.labels import FILE
from monitors.rule import Rule
from monitors.service import Service, Subject
from monitors.task import Task
from tests.ledger.rig import Rig, open_segment, write

RULE = Rule(block_s=60, window_s=3600, learn_rows=100)
TASK = Task("late", "p", (True, False), positive=0, threshold=0.5, learn_labels=100)
"""The rig's output `p` has the probability of late in its first column."""


class Watched:
    """A rig with predictions, and a service over it on the rig's clock."""

    def __init__(self, data: Path, baseline: Baseline | None = None, task: Task = TASK) -> None:
        self.rig = Rig(data, logs=2)
        self.segment = open_segment(data, capacity=20_000)
        self.baseline, self.task = baseline, task
        self.told: list[Alarm] = []
        self.dice = np.random.default_rng(3)
        self.predictions: list[str] = []
        self.scores: dict[str, float] = {}
        self.services: list[Service] = []
        self.service = self.another()

    def another(self) -> Service:
        """A service that goes on from what the last one saved."""
        subject = Subject(RULE, self.baseline, self.task)
        made = Service(
            self.rig.data, lambda *_: subject, self.told.append, lambda: self.rig.clock.now_ns(), self.rig.ledger, 0.0
        )
        self.services.append(made)
        return made

    def close(self) -> None:
        """Close everything; what was not saved is lost."""
        for service in self.services:
            service.stop()
        self.rig.close()

    def predict(self, count: int) -> list[str]:
        """So many requests of one row, a second apart."""
        made = []
        for score in self.dice.random(count).astype(np.float32).tolist():
            self.rig.clock.sleep(1)
            name = write(self.segment, self.rig.clock.now_ns(), probability=[score])
            self.scores[name] = score
            made.append(name)
        self.predictions += made
        return made

    def step(self) -> None:
        """Let the ledger and then the monitors work."""
        self.rig.step()
        self.service.step()

    @property
    def judged(self) -> Labelled:
        """The version's performance."""
        found = self.service.watchers["flights", 1].performance
        assert found is not None
        return found

    def check(self, labels: Mapping[str, bool]) -> None:
        """What is counted is what counting these labels at once gives, to the last bit."""
        task = self.task
        fresh = Labelled("flights", 1, task, None, Rule(block_s=60.0))
        fresh.learnt = self.judged.learnt
        expected = (
            fresh.labels["score"].total.fresh() if self.judged.learnt is None else self.judged.learnt.state.fresh()
        )
        names = sorted(labels)
        times = np.zeros(len(names), np.int64)
        scores = np.array([self.scores[name] for name in names], np.float64)
        expected.label(task.columns(times, scores, task.truth([labels[name] for name in names]), {}))
        assert self.judged.labels["score"].total.to_bytes() == expected.to_bytes()
        assert self.judged.arrived.total.to_bytes() == expected.to_bytes()
        assert self.judged.seen["labels"] == len(labels)


@pytest.fixture
def watched(tmp_path: Path) -> Any:
    made = Watched(tmp_path / "data")
    yield made
    made.close()


def test_labels_that_come_late_are_joined_with_what_was_said(watched: Watched) -> None:
    names = watched.predict(200)
    watched.step()
    assert watched.judged.figures()["realised"]["accuracy"].value is None
    watched.rig.clock.sleep(2 * 86400)
    truth = {name: bool(watched.dice.random() < watched.scores[name]) for name in names[:150]}
    for name, late in truth.items():
        watched.rig.put(late, prediction_id=name)
    watched.step()
    watched.check(truth)
    found = watched.judged.figures()["realised"]["accuracy"]
    right = sum((watched.scores[name] >= 0.5) == late for name, late in truth.items())
    assert found.value == pytest.approx(right / 150)
    assert found.n == 150
    assert watched.judged.windows()["score"].value()["score_mean"]["n"] == 200


def test_a_superseded_label_is_taken_out_a_repeated_one_counts_once_and_a_withdrawn_one_not_at_all(
    watched: Watched,
) -> None:
    one, two, three = watched.predict(3)
    first = watched.rig.put(True, prediction_id=one)
    second = watched.rig.put(True, prediction_id=two)
    watched.rig.put(False, prediction_id=three)
    watched.rig.put(False, prediction_id=three)
    watched.step()
    watched.check({one: True, two: True, three: False})
    watched.rig.clock.sleep(60)
    watched.rig.put(False, prediction_id=one, supersedes=first)
    watched.rig.delete(second)
    watched.step()
    watched.check({one: False, three: False})
    assert {name: watched.judged.seen[name] for name in ("superseded", "withdrawn")} == {
        "superseded": 1,
        "withdrawn": 1,
    }
    watched.rig.clock.sleep(60)
    watched.rig.put(True, prediction_id=two)
    watched.step()
    watched.check({one: False, two: True, three: False})


def test_a_label_that_came_before_its_prediction_is_counted_when_it_can_be(watched: Watched) -> None:
    watched.predict(5)
    later = open_segment(watched.rig.data, capacity=100)
    unknown = f"{later.spec.prefix}{0:08x}"
    watched.rig.put(True, prediction_id=unknown)
    watched.step()
    watched.check({})
    assert write(later, watched.rig.clock.now_ns(), probability=[0.25]) == unknown
    watched.scores[unknown] = 0.25
    watched.rig.clock.sleep(7200)
    watched.step()
    watched.check({unknown: True})


def test_a_label_of_a_failed_prediction_is_counted_apart(watched: Watched) -> None:
    watched.predict(1)
    failed = write(watched.segment, watched.rig.clock.now_ns(), status=500)
    watched.rig.put(True, prediction_id=failed)
    watched.step()
    watched.check({})
    assert watched.judged.seen["apart"] == 1


def test_an_output_that_is_not_there_is_named_once_and_its_labels_are_counted_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path / "data", task=replace(TASK, score="probability"))
    names = watched.predict(5)
    watched.rig.put(True, prediction_id=names[0])
    watched.step()
    watched.step()
    assert watched.judged.trouble == "monitor.performance.score 'probability' is no output of the model: it has p"
    assert [each.message for each in caplog.records].count("answers cannot be judged") == 1
    assert watched.judged.seen == {"labels": 0, "superseded": 0, "withdrawn": 0, "apart": 1}
    assert watched.judged.value()["realised"]["accuracy"]["n"] == 0
    watched.close()


def test_labels_of_an_archived_segment_are_joined_and_taken_out_again_when_even_that_is_gone(watched: Watched) -> None:
    names = watched.predict(30)
    watched.step()
    watched.segment.finish()
    path = watched.segment.path
    target = archive.write(Reading.open(path), watched.rig.data / shelves.FOLDER)
    path.unlink()
    watched.segment = open_segment(watched.rig.data)
    first = {name: watched.rig.put(True, prediction_id=name) for name in names}
    watched.step()
    watched.check(dict.fromkeys(names, True))
    shelves.remove(target.path, watched.rig.data / shelves.FOLDER)
    watched.rig.clock.sleep(60)
    for name in names[:10]:
        watched.rig.put(False, prediction_id=name, supersedes=first[name])
    watched.rig.step()
    labels = watched.rig.ledger.labels("flights", "late")
    resolved = {label.prediction_id: bool(label.value) for label in labels}
    watched.service.step()
    watched.check(resolved)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.sampled_from(["predict", "say", "say otherwise", "withdraw", "fold", "look", "save", "die"]),
        min_size=4,
        max_size=24,
    )
)
def test_whenever_it_dies_what_is_counted_is_what_the_ledger_says(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    watched = Watched(tmp_path_factory.mktemp("data"))
    said: dict[str, str] = {}
    for step in ["predict", *steps, "fold", "look"]:
        watched.rig.clock.sleep(30)
        if step == "predict":
            watched.predict(3)
        elif step in ("say", "say otherwise"):
            for name in watched.predictions[-4:]:
                said[name] = watched.rig.put(step == "say", prediction_id=name, log=step != "say")
        elif step == "withdraw" and said:
            watched.rig.delete(said.pop(next(iter(said))))
        elif step == "fold":
            watched.rig.step()
        elif step == "look":
            watched.service.step()
        elif step == "save":
            watched.service.checkpoint()
        elif step == "die":
            watched.service = watched.another()
    labels = watched.rig.ledger.labels("flights", "late")
    watched.check({label.prediction_id: bool(label.value) for label in labels})
    predictions = watched.judged.predictions["score"].total.value()
    assert predictions["score_mean"]["n"] == len(watched.predictions)
    whole = watched.another()
    whole._folder = watched.rig.data / "another"
    whole._labels._path = whole._folder / FILE  # type: ignore[union-attr]
    whole.step()
    other = whole.watchers["flights", 1].performance
    assert other is not None
    for one, two in ((other.labels["score"], watched.judged.labels["score"]), (other.arrived, watched.judged.arrived)):
        assert one.total.to_bytes() == two.total.to_bytes()
        assert one.since(0).to_bytes() == two.since(0).to_bytes()
    watched.close()


def test_a_step_that_fails_counts_nothing_and_the_next_one_everything(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = watched.predict(20)
    watched.step()
    for name in names:
        watched.rig.put(True, prediction_id=name)
    watched.rig.step()
    labels = watched.service._labels
    assert labels is not None
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        patch.setattr(labels, "_write", fail)
        watched.service.step()
    watched.service.step()
    watched.check(dict.fromkeys(names, True))


def test_labels_that_are_judged_in_another_way_are_counted_anew_from_the_ledger(watched: Watched) -> None:
    truth = {name: watched.scores[name] > 0.3 for name in watched.predict(50)}
    for name, late in truth.items():
        watched.rig.put(late, prediction_id=name)
    watched.step()
    watched.service.checkpoint()
    watched.task = replace(TASK, threshold=0.3)
    watched.service = watched.another()
    watched.step()
    watched.check(truth)
    assert watched.judged.figures()["realised"]["accuracy"].value == 1.0


def test_a_ledger_that_is_made_anew_changes_nothing(watched: Watched) -> None:
    truth = {name: watched.scores[name] > 0.5 for name in watched.predict(20)}
    for name, late in truth.items():
        watched.rig.put(late, prediction_id=name)
        watched.rig.step()
    watched.service.step()
    watched.check(truth)
    watched.rig.writer.close()
    for path in watched.rig.data.glob("ledger.sqlite*"):
        path.unlink()
    watched.rig.reopen()
    watched.rig.step()
    assert watched.rig.ledger.fold() < 20
    watched.step()
    watched.check(truth)


def test_while_the_ledger_cannot_be_read_rows_are_counted_and_it_is_said_once(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = watched.predict(10)
    watched.rig.put(True, prediction_id=names[0])
    watched.rig.step()
    with monkeypatch.context() as patch:

        def locked(*_: object) -> int:
            raise LedgerUnavailable("the ledger cannot be read now: it is locked")

        patch.setattr(watched.rig.ledger, "fold", locked)
        watched.service.step()
        watched.service.step()
    assert [each.message for each in caplog.records if each.message == "labels cannot be read"] == [
        "labels cannot be read"
    ]
    assert watched.service.watchers["flights", 1].progress.rows == 10
    watched.service.step()
    watched.check({names[0]: True})
