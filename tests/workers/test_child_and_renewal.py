"""When a process is started, waited for and given up; and that none is replaced before its successor serves."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest

from gateway import settings
from gateway.server import Supervisor
from gateway.workers.board import Board, successor_slot
from gateway.workers.child import ABORT_S, BACKOFF_S, MAX_BACKOFF_S, STABLE_S, Born, Child
from gateway.workers.renewal import Renewal

LISTENER = socket.socket()
LISTENER.close()


class Steady(random.Random):
    """No noise."""

    def uniform(self, a: float, b: float) -> float:
        return 1.0


class FakeProcess:
    """Ends when it is told to; remembers its signals."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.signals: list[int] = []
        self.pid = 1

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


def child(slot: int = 1) -> Child:
    return Child(slot, "worker 1", print, LISTENER, noise=Steady())


def run_once(each: Child, started_at: float, ended_at: float, code: int = 1) -> None:
    """A process in the slot that lived that long."""
    each.process = FakeProcess()  # type: ignore[assignment]
    each.started_at = started_at
    each.process.code = code  # type: ignore[union-attr]
    assert each.reap(ended_at) == code


def test_the_first_replacement_comes_at_once_and_each_further_one_after_twice_the_pause() -> None:
    each, now, pauses = child(), 100.0, []
    for _ in range(12):
        run_once(each, now, now + 1)
        pauses.append(each.start_at - (now + 1))
        now = each.start_at
    assert pauses[:5] == pytest.approx([0, BACKOFF_S, 2 * BACKOFF_S, 4 * BACKOFF_S, 8 * BACKOFF_S])
    assert pauses[-1] == pytest.approx(MAX_BACKOFF_S)
    assert pauses == sorted(pauses)


def test_a_process_that_lived_long_is_replaced_at_once_again() -> None:
    each = child()
    for began in (0.0, 10.0, 20.0):
        run_once(each, began, began + 1)
    assert each.start_at > 21
    run_once(each, 30, 30 + STABLE_S + 1)
    assert each.start_at == 31 + STABLE_S
    assert each.restarts == 4


def test_pauses_differ_so_that_processes_do_not_start_in_step() -> None:
    starts = set()
    for seed in range(20):
        each = Child(1, "w", print, LISTENER, noise=random.Random(seed))
        run_once(each, 0, 1)
        run_once(each, 1, 2)
        starts.add(each.start_at)
        assert 2 + 0.8 * BACKOFF_S <= each.start_at <= 2 + 1.2 * BACKOFF_S
    assert len(starts) == 20


def test_a_process_that_was_told_to_make_way_is_no_failure() -> None:
    each = child()
    each.process = process = FakeProcess()  # type: ignore[assignment]
    each.renew()
    assert process.signals == [signal.SIGTERM]
    process.code = 0
    assert each.reap(5.0) == 0
    assert (each.failures, each.start_at) == (0, 5.0)


def test_a_hung_process_is_asked_to_abort_and_killed_when_it_does_not() -> None:
    each = child()
    each.process = process = FakeProcess()  # type: ignore[assignment]
    assert each.unhang(10.0) == "aborted"
    assert each.unhang(10.0 + ABORT_S / 2) == ""
    assert each.unhang(10.0 + ABORT_S + 0.1) == "killed"
    assert process.signals == [signal.SIGABRT, signal.SIGKILL]
    assert each.cause(-signal.SIGKILL) == "hung"


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        *((-signal.SIGSEGV, "SIGSEGV"), (-signal.SIGABRT, "SIGABRT"), (-signal.SIGFPE, "SIGFPE")),
        *((-signal.SIGKILL, ""), (-signal.SIGTERM, ""), (0, ""), (1, ""), (3, "")),
    ],
)
def test_only_a_crash_is_a_process_s_own_doing(code: int, cause: str) -> None:
    assert child().cause(code) == cause


def test_a_real_process_is_born_signalled_and_reaped() -> None:
    each = child()
    try:
        pid = each.start(0.0)
    except Born as born:
        if born.child is each:
            time.sleep(60)
        os._exit(1)
    assert each.process is not None
    assert each.process.pid == pid
    assert each.reap(0.0) is None
    each.send(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (code := each.reap(1.0)) is None:
        assert time.monotonic() < deadline
    assert code == -signal.SIGKILL
    assert not each.is_alive
    each.send(signal.SIGKILL)


class Rig:
    """A supervisor's list of children with processes that are fakes, and a clock."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.board = Board(folder / "board")
        self.workers = workers
        self.children = [Child(slot, f"slot {slot}", print, LISTENER) for slot in range(workers + 1)]
        self.now = 0.0
        for each in self.children:
            self.start(each, self.now)
        self.renewal = Renewal(self.children, self.board, workers, self.start, 60.0)

    def start(self, each: Child, now: float) -> None:
        each.process = FakeProcess()  # type: ignore[assignment]
        each.started_at = now
        self.board.clear(each.slot, 1000 + each.slot)

    def step(self, seconds: float = 0.1) -> None:
        self.now += seconds
        self.renewal.step(self.now)

    def serve(self, slot: int) -> None:
        self.board.acknowledge(slot, 1, ready=True)

    def signals(self) -> dict[int, list[int]]:
        return {each.slot: each.process.signals for each in self.children if isinstance(each.process, FakeProcess)}


@pytest.fixture
def two(tmp_path: Path) -> Rig:
    """A control process and two workers."""
    return Rig(tmp_path, 2)


def test_a_worker_is_told_to_end_only_when_its_successor_serves_and_the_control_process_comes_last(two: Rig) -> None:
    two.renewal.begin()
    for slot in (1, 2):
        two.step()
        other = successor_slot(slot, 2)
        assert other in two.signals()
        for _ in range(5):
            two.step()
        assert two.signals()[slot] == []
        two.serve(other)
        two.step()
        assert two.signals()[slot] == [signal.SIGTERM]
        assert two.board.is_retiring(slot)
        assert two.signals()[0] == []
    two.step()
    assert two.signals() == {0: [signal.SIGTERM], 1: [signal.SIGTERM], 2: [signal.SIGTERM], 3: [], 4: []}
    assert not two.renewal.is_running
    assert not two.board.is_retiring(3)


def test_where_a_successor_ends_or_does_not_serve_in_time_everything_stays_as_it_was(two: Rig) -> None:
    two.renewal.begin()
    two.step()
    successor = two.children[-1]
    successor.process = None
    two.step()
    assert two.signals() == {0: [], 1: [], 2: []}
    assert not two.renewal.is_running

    two.renewal.begin()
    two.step()
    successor = two.children[-1]
    two.step(61.0)
    assert two.signals() == {0: [], 1: [], 2: [], 3: [signal.SIGKILL]}
    assert successor.retired_at is not None
    assert not two.renewal.is_running


def test_a_second_renewal_uses_the_slots_that_the_first_one_left(two: Rig) -> None:
    for expected in ({3, 4}, {1, 2}):
        two.renewal.begin()
        for _ in range(20):
            two.step()
            for each in list(two.children):
                if each.retired_at is not None:
                    two.children.remove(each)
                    two.board.clear(each.slot, 0)
                else:
                    two.serve(each.slot)
        assert {each.slot for each in two.children if each.slot} == expected


def test_where_there_is_no_room_for_a_process_the_supervisor_goes_on_and_tries_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("gateway.workers.child.os.fork", full)
    (tmp_path / "data" / "run").mkdir(parents=True)
    chosen = settings.load({"models": str(tmp_path), "data": str(tmp_path / "data")}, {})
    supervisor = Supervisor(chosen, 1, socket.socket(), socket.socket())
    try:
        for now in (0.0, 1.0, 2.0):
            supervisor._start(now)
        supervisor._start(2.0)
        assert not any(each.is_alive for each in supervisor._children)
        assert [each.failures for each in supervisor._children] == [3, 3]
        assert all(2.0 + BACKOFF_S < each.start_at < 2.0 + 3 * BACKOFF_S for each in supervisor._children)
        told = [record for record in caplog.records if vars(record).get("event") == "process-not-started"]
        assert len(told) == 6
        assert "unavailable" in vars(told[0])["reason"]
    finally:
        for listener in supervisor._sockets:
            listener.close()
        os.close(supervisor._lifeline_read)
        os.close(supervisor._lifeline_write)
