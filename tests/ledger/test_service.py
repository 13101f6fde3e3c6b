"""The thread that writes, what monitors and scrapes read, and maturity."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from gateway.errors import NotReady
from gateway.feedback.log import Log
from gateway.ledger import service as service_module
from gateway.ledger.dialect import FILE, location
from gateway.ledger.fold import Folder
from gateway.ledger.maturity import HOUR_NS, LAGS_S, coverage, hour_of, lag_class
from gateway.ledger.metrics import LedgerCollector
from gateway.ledger.reading import Ledger
from gateway.ledger.segments import GROWING_NS
from gateway.ledger.service import Service, SystemClock
from tests.ledger.rig import DAY, SECOND, START, Declared, Rig, open_segment, write


def until(reached: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for another thread."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(location(tmp_path / "data"), tmp_path / "data", Declared(), SystemClock(), poll_s=0.01)
    yield made
    made.stop()


def test_the_service_folds_what_comes_while_it_runs_and_does_jobs_in_between(service: Service, tmp_path: Path) -> None:
    scratch = Rig(tmp_path / "scratch")
    scratch.data = tmp_path / "data"
    scratch.data.mkdir()
    service.start()
    until(lambda: not service.trouble)
    now_ns = SystemClock().now_ns()
    prediction = write(open_segment(scratch.data), now_ns - SECOND)
    log = Log(scratch.data / "feedback", 1 << 20, 1e18)
    log.write([scratch.event(True, prediction_id=prediction, received_ns=now_ns)])
    ledger = Ledger(location(scratch.data))
    until(lambda: bool(ledger.prediction(prediction)["labels"]))
    assert service.call(lambda writer: writer.connection.in_transaction()).result(10) is False
    with pytest.raises(ZeroDivisionError):
        service.call(lambda writer: 1 // 0).result(10)
    log.write([scratch.event(False, prediction_id=prediction, received_ns=now_ns + 1)])
    until(lambda: len(ledger.prediction(prediction)["feedback"]) == 2)
    service.stop()
    with pytest.raises(NotReady, match="shutting down"):
        service.call(lambda writer: None).result(1)
    log.close()
    scratch.close()


def test_a_writer_is_behind_only_where_a_step_left_something(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What grows all the time must not make it write, and force to the disk, without a pause."""
    monkeypatch.setattr("gateway.ledger.service.EVENTS", 3)
    monkeypatch.setattr("gateway.ledger.service.SEGMENTS", 2)
    monkeypatch.setattr("gateway.ledger.segments.INDEX_ROWS", 2)

    def done() -> tuple[bool, bool]:
        """Whether a step did anything, and whether more could be done at once."""
        return rig.writer.step() > 0, rig.writer.is_behind

    segment = open_segment(rig.data)
    write(segment, START - DAY, request_id="r")
    assert done() == (True, False)
    for _ in range(2):
        write(segment, START - DAY, request_id="r")
        assert done() == (False, False)
        rig.clock.sleep(GROWING_NS / 1e9)
        assert done() == (True, False)
    assert done() == (False, False)
    for _ in range(4):
        rig.put(True, prediction_id=write(segment, START - DAY))
    assert done() == (True, True)
    assert done() == (True, False)
    # From the first event by request id on, the requests of that model are indexed, those before it as well.
    rig.put(True, request_id="r")
    found = [done() for _ in range(5)]
    assert found == [(True, False), *[(True, True)] * 3, (True, False)]
    for _ in range(3):
        write(open_segment(rig.data), START - DAY)
    assert done() == (True, True)
    assert done() == (True, False)
    assert done() == (False, False)


def test_a_ledger_that_cannot_be_opened_is_said_and_opened_when_it_can_be(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "headgate.ledger")
    monkeypatch.setattr("gateway.ledger.service.AFTER_FAILURE_S", 0.05)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / FILE
    path.write_bytes(b"no database at all" * 400)
    service.start()
    until(lambda: service.trouble == "DatabaseError")
    with pytest.raises(NotReady, match="the ledger cannot be written now: DatabaseError"):
        service.call(lambda writer: None).result(10)
    path.unlink()
    until(lambda: not service.trouble)
    assert service.call(lambda writer: 7).result(10) == 7
    assert [record.message for record in caplog.records] == ["ledger cannot be written", "ledger is written"]


def test_a_ledger_that_is_locked_for_long_is_written_afterwards(service: Service, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    service.start()
    until(lambda: not service.trouble)
    other = sqlite3.connect(tmp_path / "data" / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waits = service.call(lambda writer: writer.folder.restate(1))
    with pytest.raises(TimeoutError):
        waits.result(0.3)
    other.execute("ROLLBACK")
    other.close()
    assert waits.result(20) == 0


# --- what is read ---


def test_monitors_read_every_change_once_however_they_page(rig: Rig) -> None:
    segment = open_segment(rig.data)
    made = [write(segment, START - DAY) for _ in range(40)]
    for start in range(0, 40, 10):
        for prediction in made[start : start + 10]:
            rig.logs[0].write([rig.event(True, prediction_id=prediction)])
        rig.step()
    seen: list[str] = []
    cursor, pages = 0, 0
    while True:
        labels, after = rig.ledger.changes(cursor, 15)
        if not labels:
            break
        assert after > cursor
        seen += [label.prediction_id for label in labels]
        cursor = after
        pages += 1
    assert sorted(seen) == sorted(made)
    assert pages == 4
    withdrawn = rig.ledger.prediction(made[7])["feedback"][0]["feedback_id"]
    rig.delete(withdrawn)
    rig.step()
    assert [(label.prediction_id, label.value) for label in rig.ledger.changes(cursor)[0]] == [(made[7], None)]


def test_labels_are_read_by_version_and_time_in_the_order_of_predictions(rig: Rig) -> None:
    for version in (1, 2):
        segment = open_segment(rig.data, version=version)
        for day in range(5):
            rig.logs[0].write([rig.event(day % 2 == 0, prediction_id=write(segment, START - (day + 1) * DAY))])
    rig.step()
    found = list(rig.ledger.labels("flights", "late", versions=(2,), start_ns=START - 3 * DAY, stop_ns=START - DAY))
    assert [(label.version, label.value) for label in found] == [(2, False), (2, True)]
    every = list(rig.ledger.labels("flights", "late"))
    assert [label.prediction_id for label in every] == sorted(label.prediction_id for label in every)
    assert len(every) == 10


def test_what_was_known_at_a_moment_can_be_read_later(rig: Rig) -> None:
    segment = open_segment(rig.data)
    one, two = write(segment, START - 2 * DAY), write(segment, START - 2 * DAY)
    first = rig.put(True, prediction_id=one, received_ns=START - 100)
    rig.put(False, prediction_id=one, received_ns=START - 50)
    rig.put(True, prediction_id=two, received_ns=START - 10)
    rig.delete(first)
    rig.step()

    def known(at_ns: int) -> list[tuple[str, object]]:
        return [(label.prediction_id, label.value) for label in rig.ledger.labels_known_at("flights", "late", at_ns)]

    assert known(START - 101) == []
    assert known(START - 60) == [(one, True)]
    assert known(START - 50) == [(one, False)]
    assert (
        known(START)
        == [(one, False), (two, True)]
        == [(label.prediction_id, label.value) for label in rig.ledger.labels("flights", "late")]
    )


# --- maturity ---


@given(st.integers(-(10**12), 10**17))
def test_a_lag_is_in_the_class_whose_edges_enclose_it(lag_ns: int) -> None:
    found = lag_class(lag_ns)
    assert found == len(LAGS_S) or lag_ns <= LAGS_S[found] * SECOND
    assert found == 0 or lag_ns > LAGS_S[found - 1] * SECOND


@given(
    st.lists(st.tuples(st.integers(0, 200 * 3600), st.one_of(st.none(), st.integers(0, 40 * 86400))), max_size=60),
    st.integers(0, 60 * 86400),
)
def test_coverage_is_what_counting_predictions_one_by_one_gives(
    predictions: list[tuple[int, int | None]], after_s: int
) -> None:
    base = START - START % HOUR_NS
    now_ns = base + after_s * SECOND
    volumes: dict[int, int] = {}
    arrivals: dict[tuple[int, int], int] = {}
    for at_s, lag_s in predictions:
        hour = hour_of(base + at_s * SECOND)
        volumes[hour] = volumes.get(hour, 0) + 1
        if lag_s is not None:
            key = (hour, lag_class(lag_s * SECOND))
            arrivals[key] = arrivals.get(key, 0) + 1
    found = coverage(volumes.items(), [(hour, lag, count) for (hour, lag), count in arrivals.items()], now_ns)
    expected = []
    for age_s in LAGS_S:
        # Whole hours are judged, so that young ones do not count as unlabelled.
        old = [lag for at_s, lag in predictions if base + (at_s // 3600 * 3600 + 3600 + age_s) * SECOND <= now_ns]
        if old:
            expected.append((age_s, sum(lag is not None and lag <= age_s for lag in old), len(old)))
    assert [tuple(each) for each in found] == expected


def test_a_scrape_shows_states_lags_coverage_and_what_is_left_to_do(rig: Rig) -> None:
    segment = open_segment(rig.data)
    for day in range(1, 5):
        prediction = write(segment, START - day * DAY - 2 * HOUR_NS)
        if day > 1:
            rig.logs[0].write([rig.event(True, prediction_id=prediction, received_ns=START - day * DAY)])
    rig.step()
    rig.put(True, prediction_id=prediction)
    registry = CollectorRegistry()
    registry.register(LedgerCollector(rig.ledger, rig.data, rig.clock.now_ns, rig.clock.monotonic))
    text = generate_latest(registry).decode()
    assert 'headgate_ledger_events{model="flights",name="late",state="matched"} 3.0' in text
    assert 'headgate_label_lag_seconds_bucket{le="3600.0",model="flights",name="late",version="1"} 0.0' in text
    assert 'headgate_label_lag_seconds_bucket{le="21600.0",model="flights",name="late",version="1"} 3.0' in text
    assert 'headgate_label_lag_seconds_sum{model="flights",name="late",version="1"} 21600.0' in text
    assert 'headgate_label_coverage_ratio{age="1h",model="flights",name="late",version="1"} 0.0' in text
    assert 'headgate_label_coverage_ratio{age="1d",model="flights",name="late",version="1"} 0.75' in text
    assert 'age="7d"' not in text
    backlog = next(line for line in text.splitlines() if line.startswith("headgate_ledger_backlog_bytes"))
    assert float(backlog.split()[1]) > 100
    rig.step()
    assert backlog in generate_latest(registry).decode()
    rig.clock.sleep(11)
    assert "headgate_ledger_backlog_bytes 0.0" in generate_latest(registry).decode()


def test_a_ledger_that_cannot_be_written_says_so_and_tries_again(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. Folding fails in a way that nobody foresaw. 2. It does not any more.
    Result: jobs are refused meanwhile, not kept waiting, and the metric says it; then labels come again.
    """
    monkeypatch.setattr(service_module, "AFTER_FAILURE_S", 0.01)
    with monkeypatch.context() as broken:
        broken.setattr(Folder, "retry", lambda *_: {}["nothing"])
        (tmp_path / "data").mkdir()
        service.start()
        until(lambda: service.trouble == "KeyError")
        with pytest.raises(NotReady, match="cannot be written now: KeyError"):
            service.call(lambda writer: None).result(10)
        registry = CollectorRegistry()
        ledger = Ledger(location(tmp_path / "data"))
        registry.register(LedgerCollector(ledger, tmp_path, lambda: START, lambda: 0.0, lambda: service.trouble))
        assert "headgate_ledger_writable 0.0" in generate_latest(registry).decode()
    until(lambda: not service.trouble)
    assert service.call(lambda writer: 7).result(10) == 7


def test_a_scrape_without_a_ledger_says_so(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(LedgerCollector(Ledger(location(tmp_path)), tmp_path, lambda: START, lambda: 0.0))
    text = generate_latest(registry).decode()
    assert "headgate_ledger_readable 0.0" in text
    assert "headgate_ledger_events{" not in text
