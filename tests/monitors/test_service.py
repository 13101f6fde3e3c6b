"""The service: what the journal gains is counted once, whatever is stopped and begun again, and alarms are raised."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.inference.admission import Quotas
from gateway.inference.pipeline import Pipeline
from gateway.journal.journal import Journal, JournalSettings
from gateway.journal.reader import segments
from gateway.models.servable import Servable
from gateway.oip.limits import Limits
from gateway.telemetry.store import CounterStore
from gateway.types import Contract, TensorSpec
from loadtests.catchup import write as write_segment
from monitors.alarms import Alarm
from monitors.baseline.build import Arrays, build
from monitors.baseline.document import Baseline
from monitors.metrics import Collector
from monitors.rule import Rule
from monitors.service import Service, Subject
from monitors.tail import Rows, Tail
from monitors.turns import Turns
from monitors.watcher import Watcher
from tests.inference.fakes import FakeDoor, FakeSession, servable, table_of

CONTRACT = Contract(
    (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("city", "BYTES", (-1, 1))),
    (TensorSpec("y", "FP32", (-1, 2)),),
    batched=True,
)
CITIES = ["Oslo", "Rome", "Bern"]
RULE = Rule(block_s=0.05, window_s=3600, learn_rows=300)


class Gate:
    """A pipeline with a journal: what it answers is in the journal."""

    def __init__(self, data: Path, version: Servable | None = None) -> None:
        self.dice = np.random.default_rng(5)
        rules = JournalSettings(data / "journal", 1 << 20, 3600.0, "process", False)
        self.journal = Journal(rules, lambda what, number: pytest.fail(f"{what}: {number}"))
        version = version or servable(FakeSession(), CONTRACT)
        self.pipeline = Pipeline(table_of(version), CounterStore(), Limits(), Quotas(), 30.0, 60.0, self.journal)
        self.door = FakeDoor()
        self.rows = 0

    def send(self, requests: int, shift: float = 0.0) -> None:
        """So many requests of one or more rows, and one that is refused."""

        async def main() -> None:
            for _ in range(requests):
                rows = int(self.dice.integers(1, 4))
                self.rows += rows
                self._submit(rows, shift)
            call = self.pipeline.admit(("m", None), self.door, time.monotonic_ns())
            self.pipeline.submit(call, b"{}", None)
            for _ in range(3 + requests // 20):
                await asyncio.sleep(0)

        asyncio.run(main())
        self.journal.tick(time.monotonic())

    def submit(self, *documents: dict[str, Any]) -> None:
        """Requests as they are given, in one turn."""

        async def main() -> None:
            for document in documents:
                call = self.pipeline.admit(("m", None), self.door, time.monotonic_ns())
                self.pipeline.submit(call, json.dumps(document).encode(), None)
            for _ in range(5):
                await asyncio.sleep(0)

        asyncio.run(main())
        self.journal.tick(time.monotonic())

    def _submit(self, rows: int, shift: float) -> None:
        values = self.dice.normal(shift, 1, rows * 2).round(3).tolist()
        cities = [CITIES[index] for index in self.dice.integers(0, 3, rows)]
        inputs = [
            {"name": "x", "shape": [rows, 2], "datatype": "FP32", "data": values},
            {"name": "city", "shape": [rows, 1], "datatype": "BYTES", "data": cities},
        ]
        call = self.pipeline.admit(("m", None), self.door, time.monotonic_ns())
        self.pipeline.submit(call, json.dumps({"inputs": inputs}).encode(), None)


def trained(rows: int = 4000) -> Baseline:
    """A baseline of what `Gate` sends without a shift."""
    dice = np.random.default_rng(1)
    x = dice.normal(0, 1, (rows, 2)).round(3).astype(np.float32)
    cities = np.array([CITIES[index] for index in dice.integers(0, 3, rows)], object)
    return build(Arrays({"x[0]": x[:, 0], "x[1]": x[:, 1], "city": cities}, {"y": x}))


class Ahead:
    """A clock that is a minute ahead and jumps at every look: each block that was seen is complete."""

    def __init__(self) -> None:
        self.ahead_s = 60.0

    def __call__(self) -> int:
        self.ahead_s += 1.0
        return time.time_ns() + int(self.ahead_s * 1e9)


def service(data: Path, baseline: Baseline | None, told: list[Alarm] | None = None) -> Service:
    """A service to which every block is complete."""
    notify = (told if told is not None else []).append
    return Service(data, lambda *_: Subject(RULE, baseline), notify, Ahead())


class Killed(BaseException):
    """The end of a process that nothing catches."""


def interrupted(watching: Service, after: int, meanwhile: Callable[[], None]) -> None:
    """A step that reads five rows at a time; before the next stretch after so many, something else happens."""
    read, seen = watching._tail.read, [0]

    def slowly(prefix: str) -> Iterator[Rows]:
        for rows in read(prefix, limit=5):
            yield rows
            seen[0] += 1
            if seen[0] == after:
                meanwhile()

    watching._tail.read = slowly  # type: ignore[method-assign,assignment]
    with suppress(Killed):
        watching.step()
    watching._tail.read = read  # type: ignore[method-assign]


def test_strings_and_numbers_of_every_row_are_seen_once_and_refused_requests_never(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    tail = Tail(tmp_path / "journal")
    seen: list[Any] = []
    for _ in range(5):
        gate.send(7)
        for prefix in tail.specs():
            seen += list(tail.read(prefix, limit=5))
    assert sum(len(rows.columns) for rows in seen) == gate.rows
    x = np.concatenate([rows.columns.features["x[0]"] for rows in seen])
    answers = np.concatenate([rows.columns.outputs["y"] for rows in seen])
    assert (answers[:, 0] == x).all()
    cities = np.concatenate([rows.columns.features["city"] for rows in seen])
    assert set(cities) == set(CITIES)
    sent = [json.loads(body)["outputs"][0]["data"][::2] for body in gate.door.bodies]
    assert x.tolist() == pytest.approx([value for part in sent for value in part])


def test_an_output_that_nobody_asked_for_is_missing_and_no_zero(tmp_path: Path) -> None:
    two = Contract(
        (TensorSpec("x", "FP32", (-1, 2)),),
        (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("n", "INT64", (-1,))),
        batched=True,
    )

    def answer(inputs: Any, outputs: Any) -> Any:
        found = {"y": inputs["x"].copy(), "n": np.ones(len(inputs["x"]), np.int64)}
        return tuple(found[name] for name in outputs)

    gate = Gate(tmp_path, servable(FakeSession(answer), two))
    x = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [3, 4]}
    gate.submit({"inputs": [x]})
    gate.submit({"inputs": [x], "outputs": [{"name": "y"}]})
    tail = Tail(tmp_path / "journal")
    (rows,) = [rows for prefix in tail.specs() for rows in tail.read(prefix)]
    assert rows.columns.outputs["y"].tolist() == [[3, 4], [3, 4]]
    first, second = rows.columns.outputs["n"].tolist()
    assert (first, np.isnan(second)) == (1, True)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.sampled_from(["send", "step", "die", "save", "stop amid rows", "die amid rows"]), min_size=3, max_size=12
    ),
    after=st.integers(1, 9),
)
def test_whenever_it_dies_every_row_is_counted_once_and_the_state_is_that_of_one_that_never_did(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], after: int
) -> None:
    data = tmp_path_factory.mktemp("data")
    gate, baseline = Gate(data), trained(500)
    watching = service(data, baseline)

    def saved_and_killed() -> None:
        watching.checkpoint()
        raise Killed

    for step in [*steps, "send", "step"]:
        if step == "send":
            gate.send(20)
        elif step == "step":
            watching.step()
        elif step == "save":
            watching.checkpoint()
        elif step == "stop amid rows":
            interrupted(watching, after, watching._stop.set)
            watching.checkpoint()
            watching = service(data, baseline)
        elif step == "die amid rows":
            interrupted(watching, after, saved_and_killed)
            watching = service(data, baseline)
        else:
            watching = service(data, baseline)
    watching.step()
    whole = service(data, baseline)
    whole._folder = data / "another"
    whole.step()
    (one,), (other,) = watching.watchers.values(), whole.watchers.values()
    assert one.progress.rows == gate.rows
    assert one.counted().to_bytes() == other.counted().to_bytes()


def test_a_stop_or_a_kill_amid_rows_counts_none_of_them_twice(tmp_path: Path) -> None:
    """1. A service is stopped while it reads. 2. Another saves while it reads, as when an alarm is acknowledged, and
    is killed before it is through. Result: a third has every row once.
    """
    gate, baseline = Gate(tmp_path), trained(500)
    for _ in range(2):
        gate.send(40)
        watching = service(tmp_path, baseline)
        interrupted(watching, 3, watching._stop.set)
        watching.checkpoint()
    watching = service(tmp_path, baseline)

    def saved_and_killed() -> None:
        watching.checkpoint()
        raise Killed

    interrupted(watching, 3, saved_and_killed)
    after = service(tmp_path, baseline)
    after.step()
    assert after.watchers["m", 1].progress.rows == gate.rows


def test_who_saves_while_others_save_writes_its_file_after_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A checkpoint is being written. 2. Somebody acknowledges an alarm, which saves too.
    Result: one after the other, as both write one scratch file.
    """
    gate, watching = Gate(tmp_path), service(tmp_path, trained(500))
    gate.send(20)
    watching.step()
    begun, go_on, order = threading.Event(), threading.Event(), list[str]()
    write_bytes = Path.write_bytes

    def slowly(path: Path, data: bytes) -> int:
        order.append("begins")
        begun.set()
        go_on.wait(30)
        order.append("ends")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", slowly)
    savers = [threading.Thread(target=watching.checkpoint) for _ in range(2)]
    savers[0].start()
    assert begun.wait(30)
    savers[1].start()
    # The second has got as far as it can when it waits for the first, or when it has begun in spite of it.
    while not (order == ["begins", "begins"] or watching._saving.locked()):
        time.sleep(0.001)
    go_on.set()
    for saver in savers:
        saver.join(30)
    assert order == ["begins", "ends"] * 2
    service(tmp_path, trained(500)).step()


def test_blocks_of_a_backlog_close_while_it_is_read(tmp_path: Path) -> None:
    """1. Two segments hold the same two hours. 2. A service that was away reads them.
    Result: few blocks wait at a time, and no row is late.
    """
    now = time.time_ns()
    for number in range(2):
        write_segment(tmp_path / "journal", now - 7_200_000_000_000 + number, 7200, 1_000_000_000, number=number)
    baseline = build(Arrays({"x": np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32)}))
    watching = Service(tmp_path, lambda *_: Subject(Rule(block_s=60), baseline), lambda alarm: None, lambda: now)
    read, waiting = watching._tail.read, list[int]()
    watching._tail.read = partial(read, limit=100)  # type: ignore[method-assign]
    close = watching._close

    def noted(watcher: Watcher, until_ns: int) -> Any:
        waiting.append(len(watcher._blocks))
        return close(watcher, until_ns)

    watching._close = noted  # type: ignore[method-assign]
    watching.step()
    (watcher,) = watching.watchers.values()
    assert (watcher.progress.rows, watcher.late) == (14_400, 0)
    assert max(waiting) < 10
    assert watcher.total.rows > 13_000


def test_who_waits_for_the_lock_gets_it_before_one_who_takes_it_again_at_once() -> None:
    """1. One thread holds the lock, another waits for it. 2. The first lets go, and wants it again at once.
    Result: it is the other's turn. A plain lock would hardly ever pass to the other.
    """
    turns, order = Turns(), list[str]()

    def other() -> None:
        with turns:
            order.append("other")

    waiting = threading.Thread(target=other)
    with turns:
        waiting.start()
        while not turns._door.locked():
            time.sleep(0.001)
    with turns:
        order.append("again")
    waiting.join(30)
    assert order == ["other", "again"]


def test_without_a_baseline_one_is_learned_and_says_so(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    watching = service(tmp_path, None)
    gate.send(50)
    watching.step()
    assert watching.watchers["m", 1].value()["learning"] is True
    gate.send(400)
    watching.step()
    value = watching.watchers["m", 1].value()
    assert value["learning"] is False
    assert value["baseline"]["learned"] is True
    assert value["baseline"]["rows"] + value["rows"] == gate.rows
    watching.checkpoint()
    again = service(tmp_path, None)
    again.step()
    assert again.watchers["m", 1].value()["baseline"] == value["baseline"]
    assert again.watchers["m", 1].progress.rows == value["rows"]


def test_a_shift_raises_one_alarm_that_names_its_feature_and_no_shift_raises_none(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    told: list[Alarm] = []
    watching = service(tmp_path, trained(), told)
    for _ in range(5):
        gate.send(200)
        watching.step()
    assert told == []
    for _ in range(5):
        gate.send(200, shift=1.0)
        watching.step()
    assert [alarm.kind for alarm in told] == ["different-from-training", "scores-out-of-order"]
    alarm = told[0]
    assert alarm.baseline == "built"
    assert {feature.feature for feature in alarm.finding.features if feature.proved} >= {"x[0]", "x[1]"}
    assert "city" not in {feature.feature for feature in alarm.finding.features if feature.proved}
    again = service(tmp_path, trained(), told)
    again.step()
    assert len(told) == 2, "an alarm was raised again after a restart"
    found = again.acknowledge(alarm.id, "ada", "the sensor was changed")
    assert found is not None
    assert found.acknowledged is not None
    assert again.acknowledge("unknown", "ada") is None


def test_a_scrape_has_the_scores_the_evidence_and_the_rows(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    watching = service(tmp_path, trained())
    gate.send(300, shift=0.5)
    watching.step()
    found = {
        (sample.name, sample.labels.get("feature", ""), sample.labels.get("statistic", "")): sample.value
        for family in Collector(watching).collect()
        for sample in family.samples
    }
    assert found["headgate_monitor_rows_total", "", ""] == gate.rows
    assert found["headgate_drift_score", "x[0]", "psi"] > 0.1
    assert abs(found["headgate_drift_score", "city", "psi"]) < 0.05
    assert found["headgate_drift_samples", "x[0]", ""] == gate.rows
    assert found["headgate_monitor_lag_rows", "", ""] == 0
    assert all(np.isfinite(value) for value in found.values())


def test_segments_that_are_done_are_let_go_of(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    watching = service(tmp_path, trained())
    for _ in range(5):
        gate.send(10)
        for recorder in gate.journal._recorders.values():
            recorder.roll(0)
        gate.journal.tick(time.monotonic())
        watching.step()
    gate.pipeline.close()
    watching.step()
    watching.step()
    assert len(segments(tmp_path / "journal")) == 5
    assert watching._tail._open == {}
    assert watching.watchers["m", 1].progress.rows == gate.rows


def test_another_baseline_begins_anew_and_keeps_what_was_counted(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    watching = service(tmp_path, trained())
    gate.send(50)
    watching.step()
    watching.checkpoint()
    again = service(tmp_path, trained(1000))
    again.step()
    assert again.watchers["m", 1].progress.rows == gate.rows
    assert [path.name for path in (tmp_path / "monitors").iterdir() if path.suffix == ".old"] == ["m.1.old"]


def test_a_segment_that_cannot_be_read_is_named_and_the_others_are_counted(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    gate.send(10)
    (path,) = segments(tmp_path / "journal")
    broken = path.with_name("00000000-0000-8000-8000-0000.segment")
    broken.write_bytes(b"\0" * 8192)
    watching = service(tmp_path, trained())
    watching.step()
    assert watching.watchers["m", 1].progress.rows == gate.rows
    assert list(watching._tail.damaged) == [broken.stem]
