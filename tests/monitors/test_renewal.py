"""What a running service takes up without a restart, and what it does not forget in one."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.control.monitoring import Monitoring, mark, subject
from gateway.settings import Settings
from loadtests.catchup import write as write_segment
from monitors.baseline.build import Arrays, build
from monitors.baseline.document import FILE, Baseline
from monitors.metrics import Collector
from monitors.rule import Rule
from monitors.service import Service, Subject
from monitors.webhook import Reply, Webhook

HOUR_NS = 3_600_000_000_000
FIRST_NS = 1_789_344_000_000_000_000
NOW_NS = FIRST_NS + 4 * HOUR_NS


def baseline(shift: float = 0.0) -> Baseline:
    x = np.random.default_rng(1).normal(shift, 1, 4000).astype(np.float32)
    return build(Arrays({"x": x}, {"y": x}))


def rows(data: Path, number: int = 0) -> None:
    write_segment(data / "journal", FIRST_NS + number * HOUR_NS, 3600, 1_000_000_000, number=number)


class Known:
    """What is known of the version ``m`` 1, which changes when a test says so."""

    def __init__(self, data: Path, rule: Rule, known: Baseline | None) -> None:
        self.subject, self.number = Subject(rule, known), 0
        self.told: list[Any] = []
        self.data = data
        self.service = self.another()

    def another(self, **options: Any) -> Service:
        return Service(
            self.data,
            lambda *_: self.subject,
            self.told.append,
            lambda: NOW_NS,
            mark=lambda *_: self.number,
            renew_s=0.0,
            **options,
        )

    def change(self, rule: Rule, known: Baseline | None) -> None:
        self.subject, self.number = Subject(rule, known), self.number + 1


def test_a_new_baseline_is_taken_up_by_the_next_look_and_the_rows_that_are_there_are_counted_on_it(
    tmp_path: Path,
) -> None:
    """1. A service learns a baseline. 2. One is built for the version. 3. The service looks again.
    Result: it compares with the new one, every row that is kept is counted on it once, and what it knew is kept aside.
    """
    rows(tmp_path)
    known = Known(tmp_path, Rule(learn_rows=1000), None)
    known.service.step()
    assert known.service.watchers["m", 1].value()["baseline"]["learned"] is True
    known.change(Rule(), baseline())
    known.service.step()
    (watcher,) = known.service.watchers.values()
    assert watcher.value()["baseline"]["learned"] is False
    assert watcher.progress.rows == 3600
    assert (tmp_path / "monitors" / "m.1.old").exists()


def test_another_rule_is_taken_up_and_what_was_counted_goes_on(tmp_path: Path) -> None:
    rows(tmp_path)
    known = Known(tmp_path, Rule(), baseline())
    known.service.step()
    known.change(Rule(alarm_budget="1 per model-month", block_s=60), baseline())
    rows(tmp_path, 1)
    known.service.step()
    (watcher,) = known.service.watchers.values()
    assert watcher.progress.rows == 7200
    assert {state["budget"] for state in watcher.alarms.value().values()} == {"1 per model-month"}
    known.change(Rule(enabled=False), baseline())
    known.service.step()
    assert known.service.watchers == {}


def test_a_version_whose_budget_cannot_be_is_left_out_until_it_is_right(tmp_path: Path) -> None:
    rows(tmp_path)
    known = Known(tmp_path, Rule(alarm_budget="0 per year"), baseline())
    known.service.step()
    assert known.service.watchers == {}
    known.change(Rule(), baseline())
    known.service.step()
    assert known.service.watchers["m", 1].progress.rows == 3600


def test_the_mark_of_a_version_changes_with_its_rule_and_its_baseline_and_with_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    seen = [mark(tmp_path, "m", 1)]
    for text in ("[monitor]\nblock_s = 60\n", "[monitor]\nblock_s = 60\n[batching]\nenabled = false\n", "[monitor\n"):
        (folder.parent / "model.toml").write_text(text)
        seen.append(mark(tmp_path, "m", 1))
    assert seen[0] != seen[1] == seen[2]
    assert seen[3] is None
    (folder.parent / "model.toml").unlink()
    baseline().save(folder / FILE)
    first = mark(tmp_path, "m", 1)
    baseline(0.5).save(folder / FILE)
    assert seen[0] != first != mark(tmp_path, "m", 1)
    assert mark(tmp_path, "gone", 1) is None
    assert subject(tmp_path, "m", 1).baseline is not None


def test_an_alarm_that_nobody_got_is_sent_again_after_a_restart_until_it_is_delivered(tmp_path: Path) -> None:
    """1. An alarm is raised; the process ends before its receiver has it. 2. The next sends it again; it is delivered.
    Result: a third sends nothing, and without an outbox nothing is ever sent twice.
    """
    rows(tmp_path)
    known = Known(tmp_path, Rule(), baseline(1.0))
    known.another(outbox=True).step()
    (alarm, *_) = known.told
    assert alarm.kind == "different-from-training"
    known.told.clear()
    known.another().step()
    assert known.told == []
    again = known.another(outbox=True)
    again.step()
    again.step()
    assert [each.id for each in known.told] == [alarm.id]
    again.delivered(alarm.id)
    again.checkpoint()
    known.told.clear()
    known.another(outbox=True).step()
    assert known.told == []


def test_an_alarm_that_was_acknowledged_meanwhile_is_not_sent_again(tmp_path: Path) -> None:
    rows(tmp_path)
    known = Known(tmp_path, Rule(), baseline(1.0))
    service = known.another(outbox=True)
    service.step()
    (alarm,) = known.told
    assert service.acknowledge(alarm.id, "ada") is not None
    known.told.clear()
    known.another(outbox=True).step()
    assert known.told == []


def test_what_a_webhook_delivered_and_dropped_is_told_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A server with a webhook raises an alarm. Result: the event says what the alarm is compared with, its delivery
    is remembered, and the metrics count it.
    """
    models = tmp_path / "models" / "m" / "1"
    models.mkdir(parents=True)
    baseline(1.0).save(models / FILE)
    rows(tmp_path)
    bodies: list[dict[str, Any]] = []
    delivered = threading.Event()
    monitoring = Monitoring(
        Settings(models=tmp_path / "models", data=tmp_path, alarm_webhook="https://alarms.example/hook")
    )
    assert isinstance(monitoring.webhook, Webhook)
    told = monitoring.webhook.on_delivered

    def noted(alarm_id: str) -> None:
        told(alarm_id)
        delivered.set()

    def post(body: bytes, headers: Any) -> Reply:
        bodies.append(json.loads(body))
        return Reply(204)

    monitoring.webhook.post, monitoring.webhook.on_delivered = post, noted
    monitoring.webhook.start()
    monitoring.service.step()
    assert delivered.wait(60)
    (watcher,) = monitoring.service.watchers.values()
    assert bodies[0]["data"]["baseline"] == "built"
    assert [alarm.delivered for alarm in watcher.alarms.latched if alarm.id == bodies[0]["id"]] == [True]
    found = {
        (sample.name, sample.labels.get("outcome", "")): sample.value
        for family in Collector(monitoring.service, monitoring.webhook).collect()
        for sample in family.samples
    }
    assert found["headgate_webhook_events_total", "delivered"] >= 1
    assert found["headgate_webhook_events_total", "full"] == 0
    assert found["headgate_webhook_retries_total", ""] == 0
    monitoring.webhook.close()
