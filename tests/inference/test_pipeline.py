"""The pipeline on a real event loop, around sessions that run as long as the test wants them to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import QueueFull, QuotaExceeded, UnknownModel
from gateway.inference.admission import Quotas
from gateway.inference.call import Call
from gateway.inference.cost import INLINE_S
from gateway.inference.pipeline import QUIET_TURNS, TURN_NS, Pipeline
from gateway.journal.journal import Journal, JournalSettings
from gateway.journal.reader import Segment, segments
from gateway.models.servable import Servable
from gateway.oip.limits import Limits
from gateway.telemetry.counters import OUTCOMES
from gateway.telemetry.store import CounterStore
from gateway.types import Array
from tests.inference.fakes import FakeDoor, FakeSession, Gate, echo, servable, table_of

LONG = {"run_s": 2 * INLINE_S, "batch_s": 2 * INLINE_S}
"""What quarantine says of a version whose runs leave the event loop."""

BAD = 666.0


def fails_on_bad(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
    """Raises for a batch with a bad value in it, with words that are not for clients."""
    if (inputs["x"] == BAD).any():
        raise RuntimeError("bad value in /secret/place")
    return echo(inputs, outputs)


def body_of(*values: float, **parameters: Any) -> bytes:
    """A request of one row for each value."""
    data = [each for value in values for each in (value, -value)]
    item = {"name": "x", "shape": [len(values), 2], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [item], **({"parameters": parameters} if parameters else {})}).encode()


def journal_in(folder: Path, store: CounterStore, **others: Any) -> Journal:
    """A journal that counts its drops in `store`."""

    def count(what: str, number: int) -> None:
        store.cells[store.cell("journal", what)] += number

    rules: dict[str, Any] = {"segment_bytes": 1 << 20, "max_age_s": 3600, "flush": "process", "required": False}
    return Journal(JournalSettings(folder=folder, **(rules | others)), count)


@pytest.fixture(params=["journal on", "journal off"], autouse=True)
def _journal(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds with the journal and without."""
    monkeypatch.setattr(World, "folder", tmp_path / "journal" if request.param == "journal on" else None)


class World:
    """A pipeline over versions, and the doors of every request so far."""

    folder: Path | None = None

    def __init__(self, *versions: Servable, quotas: Quotas | None = None, deadline_s: float = 30.0) -> None:
        self.versions = versions
        self.table = table_of(*versions)
        self.store = CounterStore()
        if self.folder is not None:
            self.folder = self.folder / secrets.token_hex(8)
        self.journal = journal_in(self.folder, self.store) if self.folder is not None else None
        self.pipeline = Pipeline(self.table, self.store, Limits(), quotas or Quotas(), deadline_s, 60.0, self.journal)
        self.received = 0
        self.doors: list[FakeDoor] = []

    def admit(self, model: str = "m", version: int | None = None, key: str = "") -> Call:
        """Take a permit. Raises HeadgateError."""
        self.received += 1
        door = FakeDoor()
        call = self.pipeline.admit((model, version and str(version)), door, time.monotonic_ns(), key=key)
        self.doors.append(door)
        return call

    def send(self, *values: float, version: int | None = None, **parameters: Any) -> tuple[Call, FakeDoor]:
        """A whole request."""
        call = self.admit(version=version)
        self.pipeline.submit(call, body_of(*values, **parameters), None)
        return call, self.doors[-1]

    def outcomes(self) -> Counter[str]:
        """What all requests came to, as the counters have it."""
        found: Counter[str] = Counter()
        for version in self.versions:
            found.update({name: version.counters.outcome(name) for name in OUTCOMES})
        for key, count in self.store.snapshot().named.items():
            if key[0] == "unknown":
                found[key[1]] += count
        return +found

    def assert_at_rest(self) -> None:
        """Nothing is in flight, and every request was counted once."""
        assert [version.in_flight for version in self.versions] == [0] * len(self.versions)
        assert self.pipeline.admission.in_flight == 0
        assert sum(self.outcomes().values()) == self.received
        for engine in self.pipeline.engines():
            assert not engine.batcher
            assert engine.running is None
            for block in engine.reader._blocks:
                assert block is None or block.held == 0
        if self.journal is not None:
            self.assert_recorded(self.journal)

    def assert_recorded(self, journal: Journal) -> None:
        """Every request of a known version has one record, which tells what it came to."""
        journal.tick(0.0)
        found: Counter[int] = Counter()
        assert self.folder is not None
        for path in segments(self.folder):
            segment = Segment.open(path)
            assert segment.verify() == []
            first = segment.column("span")[: segment.rows()] > 0
            found.update(segment.column("status")[: segment.rows()][first].tolist())
            found.update(frame["status"] for _, frame in segment.frames() if "refused" in frame)
        outcomes = self.outcomes()
        unknown = sum(outcomes[code] for code in ("unknown-model", "unknown-version"))
        assert found[200] == outcomes["ok"]
        assert found[499] == outcomes["client-gone"]
        assert found[500] == outcomes["model-failed"] + outcomes["internal"]
        assert found[504] == outcomes["deadline-exceeded"]
        assert found.total() == self.received - unknown


def values_of(door: FakeDoor) -> list[float]:
    """The first column of a reply: the values that were sent."""
    assert not door.errors, door.errors
    (body,) = door.bodies
    return list(json.loads(body)["outputs"][0]["data"][::2])


def code_of(door: FakeDoor) -> str:
    """The code of the only refusal."""
    assert not door.bodies
    (error,) = door.errors
    return error.code


async def turns(count: int = 2) -> None:
    """Let the loop come round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(reached: Callable[[], Any]) -> None:
    """Wait for another thread or a timer; it is an error when that takes ten seconds."""
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.002)


async def begun(gate: Gate) -> None:
    """Wait until a run has begun."""
    await until(lambda: gate.begun.acquire(blocking=False))


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a test on a loop of its own; an error that only the loop saw is an error of the test."""
    seen: list[dict[str, Any]] = []

    async def whole() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
        await main()

    asyncio.run(whole())
    assert not seen


# -- together


def test_what_one_turn_brings_runs_together_at_its_end() -> None:
    session = FakeSession()
    world = World(servable(session))

    async def main() -> None:
        doors = [world.send(value)[1] for value in range(5)]
        assert session.rows == []
        await turns()
        assert session.rows == [5]
        assert [values_of(door) for door in doors] == [[value] for value in range(5)]
        assert session.threads == ["MainThread"]
        world.assert_at_rest()

    run(main)


def test_a_lone_request_runs_at_the_end_of_its_turn_and_at_once_when_nobody_else_is_about() -> None:
    world = World(servable())

    async def main() -> None:
        for number in range(QUIET_TURNS):
            _, door = world.send(number)
            assert not door.times, "others of this turn could still come"
            await turns()
            assert values_of(door) == [number]
        for number in (999, 1000):
            _, door = world.send(number)
            assert values_of(door) == [number]
            await turns()
        _, door = world.send(1000)
        # The second one of a turn waits for the third.
        others = [world.send(value)[1] for value in (1001, 1002)]
        assert not any(door.times for door in others)
        await turns()
        assert [values_of(door) for door in others] == [[1001], [1002]]
        _, door = world.send(1003)
        assert not door.times, "the last turn was not quiet"
        await turns()
        world.assert_at_rest()

    run(main)


def test_versions_never_mix() -> None:
    sessions = [FakeSession(), FakeSession()]
    world = World(*(servable(session, version=number + 1) for number, session in enumerate(sessions)))

    async def main() -> None:
        doors = [world.send(value, version=1 + value % 2)[1] for value in range(6)]
        await turns()
        assert [session.rows for session in sessions] == [[3], [3]]
        assert sessions[0].runs[0]["x"][:, 0].tolist() == [0, 2, 4]
        assert [values_of(door) for door in doors] == [[value] for value in range(6)]
        assert [json.loads(door.bodies[0])["model_version"] for door in doors] == ["1", "2"] * 3
        world.assert_at_rest()

    run(main)


def test_no_run_has_more_rows_than_the_maximum_unless_it_is_of_one_request_in_pieces() -> None:
    session = FakeSession()
    world = World(servable(session, max_rows=4))

    async def main() -> None:
        doors = [world.send(*range(rows))[1] for rows in (2, 2, 1, 4, 9, 1)]
        await turns()
        assert session.rows == [4, 1, 4, 4, 4, 1, 1]
        assert [len(values_of(door)) for door in doors] == [2, 2, 1, 4, 9, 1]
        world.assert_at_rest()

    run(main)


def test_short_runs_without_end_let_the_loop_look_at_its_sockets_in_between() -> None:
    def takes_half_a_turn(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        end = time.monotonic_ns() + TURN_NS // 2
        while time.monotonic_ns() < end:
            pass
        return echo(inputs, outputs)

    session = FakeSession(takes_half_a_turn)
    world = World(servable(session, max_rows=1))

    async def main() -> None:
        doors = [world.send(value)[1] for value in range(12)]
        seen = []
        while not all(door.times for door in doors):
            await turns(1)
            seen.append(len(session.runs))
        steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
        assert max(steps) <= 3, "one turn of the loop ran them all"
        world.assert_at_rest()

    run(main)


def test_a_request_of_no_rows_is_answered_for_ever() -> None:
    world = World(servable(run_s=None, batch_s=None))

    async def main() -> None:
        for _ in range(70):
            _, door = world.send()
            await until(lambda door=door: door.times)
            assert values_of(door) == []
        world.assert_at_rest()

    run(main)


# -- long runs


def test_a_long_run_leaves_the_loop_and_what_comes_meanwhile_is_the_next_batch() -> None:
    gate = Gate()
    session = FakeSession(gate)
    world = World(servable(session, **LONG))

    async def main() -> None:
        _, first = world.send(1)
        await begun(gate)
        later = [world.send(value)[1] for value in (2, 3, 4)]
        await turns(10)
        assert not first.times
        assert not any(door.times for door in later)
        gate.may_end.release(2)
        await until(lambda: all(door.times for door in (first, *later)))
        assert session.rows == [1, 3]
        assert all(name.startswith("run-m-1") for name in session.threads)
        assert [values_of(door) for door in (first, *later)] == [[1], [2], [3], [4]]
        world.assert_at_rest()
        world.pipeline.close()

    run(main)


def test_a_short_run_does_not_begin_beside_a_long_one_of_the_same_version() -> None:
    gate = Gate()

    def waits_for_ten_rows(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        return (gate if len(inputs["x"]) == 10 else echo)(inputs, outputs)

    session = FakeSession(waits_for_ten_rows)
    world = World(servable(session, run_s=INLINE_S / 5, batch_s=INLINE_S, batch_rows=8))

    async def main() -> None:
        for _ in range(QUIET_TURNS):
            world.send(1)
            await turns()
        world.send(*range(10))
        await begun(gate)
        await turns()
        _, door = world.send(2)
        await turns()
        assert not door.times
        gate.may_end.release()
        await until(lambda: door.times)
        assert session.rows[QUIET_TURNS:] == [10, 1]
        world.assert_at_rest()
        world.pipeline.close()

    run(main)


def test_rows_that_gain_nothing_from_running_together_run_alone() -> None:
    session = FakeSession()
    world = World(servable(session, run_s=0.001, batch_s=0.008, batch_rows=8))

    async def main() -> None:
        doors = [world.send(value)[1] for value in range(3)]
        await until(lambda: all(door.times for door in doors))
        assert session.rows == [1, 1, 1]
        world.assert_at_rest()

    run(main)


def test_a_version_of_unknown_cost_runs_apart_until_its_cost_is_known() -> None:
    session = FakeSession()
    world = World(servable(session, run_s=None, batch_s=None))

    async def main() -> None:
        for _ in range(3):
            _, door = world.send(1)
            await until(lambda door=door: door.times)
        assert session.threads[0].startswith("run-m-1")
        assert session.threads[-1] == "MainThread"
        world.assert_at_rest()
        world.pipeline.close()

    run(main)


def test_urgent_calls_run_before_normal_ones_and_those_before_the_ones_that_may_wait() -> None:
    gate = Gate()
    session = FakeSession(gate)
    world = World(servable(session, **LONG))

    async def main() -> None:
        world.send(0)
        await begun(gate)
        for value, priority in ((30, 3), (20, 2), (10, 1), (31, 1 << 32), (21, 0), (11, 1)):
            world.send(value, priority=priority)
        gate.may_end.release(4)
        await until(lambda: all(door.times for door in world.doors))
        assert [inputs["x"][:, 0].tolist() for inputs in session.runs] == [[0], [10, 11], [20, 21], [30, 31]]
        world.assert_at_rest()
        world.pipeline.close()

    run(main)


# -- deadlines


@pytest.mark.parametrize("inside", [True, False])
def test_a_deadline_that_passes_behind_or_inside_a_long_run_is_answered_while_it_runs(inside: bool) -> None:
    gate = Gate()
    session = FakeSession(gate)
    world = World(servable(session, **LONG))

    async def main() -> None:
        first, door_of_first = world.send(1)
        await begun(gate)
        second, door_of_second = world.send(2)
        late, its_door = (first, door_of_first) if inside else (second, door_of_second)
        late.deadline_ns = time.monotonic_ns()
        await until(lambda: its_door.times)
        assert code_of(its_door) == "deadline-exceeded"
        assert its_door.errors[0].status == 504
        assert ("running" in its_door.errors[0].message) == inside
        assert world.versions[0].in_flight == 2, "its rows are still needed"
        gate.may_end.release(2)
        other = door_of_second if inside else door_of_first
        await until(lambda: other.times and not world.versions[0].in_flight)
        assert values_of(other) == [2 if inside else 1]
        assert its_door.times == 1, "the late result was not dropped"
        assert session.rows == ([1, 1] if inside else [1])
        assert world.outcomes() == {"ok": 1, "deadline-exceeded": 1}
        world.assert_at_rest()
        world.pipeline.close()

    run(main)


def test_deadlines_are_watched_behind_every_long_run() -> None:
    gate = Gate()
    world = World(servable(FakeSession(gate), **LONG))

    async def main() -> None:
        for _ in range(2):
            call, door = world.send(1)
            await begun(gate)
            call.deadline_ns = 0
            await until(lambda door=door: door.times)
            assert code_of(door) == "deadline-exceeded"
            gate.may_end.release()
            await until(lambda: not world.pipeline._sweeping)
        world.assert_at_rest()
        world.pipeline.close()

    run(main)


def test_a_request_that_is_expected_to_be_late_is_refused_at_once() -> None:
    gate = Gate()
    world = World(servable(FakeSession(gate), run_s=0.5, batch_s=0.5))

    async def main() -> None:
        _, first = world.send(1)
        await begun(gate)
        _, late = world.send(2, timeout=100_000)
        assert code_of(late) == "deadline-exceeded"
        _, patient = world.send(3, timeout=20_000_000)
        assert not patient.times
        gate.may_end.release(2)
        await until(lambda: first.times and patient.times)
        assert values_of(patient) == [3]
        world.assert_at_rest()
        world.pipeline.close()

    run(main)


def test_a_body_that_came_after_the_deadline_is_not_run() -> None:
    session = FakeSession()
    world = World(servable(session))

    async def main() -> None:
        call = world.admit()
        call.deadline_ns = time.monotonic_ns() - 1
        world.pipeline.submit(call, body_of(1), None)
        assert code_of(world.doors[-1]) == "deadline-exceeded"
        await turns()
        assert session.rows == []
        world.assert_at_rest()

    run(main)


@pytest.mark.parametrize(("timeout_us", "seconds"), [(1_500_000, 1.5), (0, 30.0), (3_600_000_000, 60.0)])
def test_the_deadline_is_the_clients_within_the_longest_and_else_the_default(timeout_us: int, seconds: float) -> None:
    world = World(servable())

    async def main() -> None:
        call, door = world.send(1, timeout=timeout_us)
        assert call.deadline_ns - call.arrived_ns == int(seconds * 1e9)
        await turns()
        assert values_of(door) == [1]

    run(main)


def test_no_default_is_longer_than_the_longest_deadline() -> None:
    world = World(servable(), deadline_s=90.0)

    async def main() -> None:
        call, _ = world.send(1)
        assert call.deadline_ns - call.arrived_ns == 60_000_000_000
        await turns()

    run(main)


# -- clients that leave


@pytest.mark.parametrize("when", ["before its body", "while it waits", "while it runs", "after its answer"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_client_that_leaves_hurts_none_of_its_mates(when: str, which: int) -> None:
    gate = Gate()
    session = FakeSession(gate)
    world = World(servable(session, **LONG))

    async def main() -> None:
        calls = [world.admit() for _ in range(3)]
        doors = list(world.doors)
        mates = [number for number in range(3) if number != which]
        if when == "before its body":
            world.pipeline.abandon(calls[which])
            assert world.versions[0].in_flight == 2
        for number, call in enumerate(calls):
            if when != "before its body" or number != which:
                world.pipeline.submit(call, body_of(number), None)
        if when == "while it waits":
            world.pipeline.abandon(calls[which])
        await begun(gate)
        if when == "while it runs":
            world.pipeline.abandon(calls[which])
        gate.may_end.release()
        await until(lambda: all(doors[number].times for number in mates))
        if when == "after its answer":
            world.pipeline.abandon(calls[which])
            assert values_of(doors[which]) == [which]
        else:
            assert doors[which].times == 0
        assert [values_of(doors[number]) for number in mates] == [[number] for number in mates]
        assert world.outcomes() == ({"ok": 3} if when == "after its answer" else {"ok": 2, "client-gone": 1})
        assert world.versions[0].counters.rows == world.outcomes()["ok"]
        world.assert_at_rest()
        world.pipeline.close()

    run(main)


def test_when_all_clients_have_left_nothing_is_run() -> None:
    session = FakeSession()
    world = World(servable(session))

    async def main() -> None:
        for value in range(3):
            world.pipeline.abandon(world.send(value)[0])
        await turns()
        assert session.rows == []
        assert world.outcomes() == {"client-gone": 3}
        world.assert_at_rest()

    run(main)


# -- refusals


def test_one_request_more_than_the_quota_of_its_model_is_refused_before_its_body() -> None:
    world = World(servable(), servable(model="n"), quotas=Quotas(per_model=2))

    async def main() -> None:
        world.send(1)
        world.send(2)
        with pytest.raises(QueueFull) as refused:
            world.admit()
        assert refused.value.headers == {"Retry-After": "1"}
        assert world.admit("n")
        await turns()
        world.pipeline.abandon([call for call in [world.admit("n")] if call][0])
        _, door = world.send(3)
        await turns()
        assert values_of(door) == [3]
        assert world.outcomes()["queue-full"] == 1

    run(main)


def test_clients_have_a_quota_each_and_get_it_back() -> None:
    world = World(servable(), quotas=Quotas(per_client=1))

    async def main() -> None:
        for _ in range(3):
            calls = [world.admit(key="a"), world.admit(key="b"), world.admit()]
            with pytest.raises(QuotaExceeded):
                world.admit(key="a")
            for call in calls:
                world.pipeline.submit(call, body_of(1), None)
            await turns()
        assert world.outcomes() == {"ok": 9, "quota-exceeded": 3}
        world.assert_at_rest()

    run(main)


def test_a_busy_version_with_too_much_waiting_says_how_long_to_stay_away() -> None:
    gate = Gate()
    world = World(servable(FakeSession(gate), run_s=2.5, batch_s=2.5), quotas=Quotas(max_wait_s=1.0))

    async def main() -> None:
        _, door = world.send(1)
        await begun(gate)
        with pytest.raises(QueueFull) as refused:
            world.admit()
        assert refused.value.headers == {"Retry-After": "3"}
        gate.may_end.release()
        await until(lambda: door.times)
        assert world.outcomes() == {"ok": 1, "queue-full": 1}
        world.assert_at_rest()
        world.pipeline.close()

    run(main)


def test_what_is_unknown_or_wrong_is_counted_once_and_takes_nothing() -> None:
    world = World(servable())

    async def main() -> None:
        with pytest.raises(UnknownModel):
            world.admit("nobody")
        for body, encoding, code in (
            (b"{", None, "invalid-json"),
            (b"{}", None, "invalid-request"),
            (b"x", "gzip", "invalid-request"),
            (b"x", "br", "unsupported-encoding"),
        ):
            call = world.admit()
            world.pipeline.submit(call, body, None, encoding)
            assert code_of(world.doors[-1]) == code
        assert world.outcomes() == {
            "unknown-model": 1,
            "invalid-json": 1,
            "invalid-request": 2,
            "unsupported-encoding": 1,
        }
        world.assert_at_rest()

    run(main)


# -- what fails


def test_only_the_request_that_the_model_fails_on_fails_and_its_words_stay_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(servable(FakeSession(fails_on_bad)))

    async def main() -> None:
        doors = [world.send(value)[1] for value in (1, BAD, 3)]
        await turns()
        assert [values_of(doors[0]), values_of(doors[2])] == [[1], [3]]
        error = doors[1].errors[0]
        assert (error.status, error.code) == (500, "model-failed")
        assert "secret" not in error.message
        assert world.outcomes() == {"ok": 2, "model-failed": 1}
        world.assert_at_rest()

    with caplog.at_level(logging.ERROR):
        run(main)
    assert "secret" in str(caplog.records[0].__dict__["reason"])


def test_a_defect_in_writing_is_answered_by_500_to_all_whom_it_concerns(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(servable())

    async def main() -> None:
        doors = [world.send(value)[1] for value in range(3)]

        def breaks(*_: Any) -> Any:
            raise ZeroDivisionError("secret")

        monkeypatch.setattr(world.pipeline.engines()[0].writer, "write", breaks)
        await turns()
        assert [code_of(door) for door in doors] == ["internal"] * 3
        assert "secret" not in doors[0].errors[0].message
        world.assert_at_rest()
        monkeypatch.undo()
        _, door = world.send(4)
        await turns()
        assert values_of(door) == [4]

    run(main)
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3


@pytest.mark.parametrize("fault", ["model", "writer"])
def test_a_client_that_leaves_during_a_run_that_fails_gives_its_permit_back(
    fault: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Call] = []

    def leaves(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        world.pipeline.abandon(calls[1])
        if fault == "model":
            raise RuntimeError("it failed")
        return echo(inputs, outputs)

    world = World(servable(FakeSession(leaves)))

    async def main() -> None:
        calls.extend(world.send(value)[0] for value in range(3))
        if fault == "writer":
            monkeypatch.setattr(world.pipeline.engines()[0].writer, "write", "no function at all")
        await turns()
        code = "model-failed" if fault == "model" else "internal"
        assert [door.times for door in world.doors] == [1, 0, 1]
        assert world.outcomes() == {code: 2, "client-gone": 1}
        world.assert_at_rest()

    run(main)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_connection_that_breaks_while_it_is_answered_hurts_none_of_its_mates(
    which: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(servable())

    async def main() -> None:
        doors = [world.send(value)[1] for value in range(3)]

        def breaks(*_: Any) -> None:
            raise RuntimeError("Cannot call write() after write_eof()")

        monkeypatch.setattr(doors[which], "answer", breaks)
        await turns()
        mates = [number for number in range(3) if number != which]
        assert [values_of(doors[number]) for number in mates] == [[number] for number in mates]
        world.assert_at_rest()

    run(main)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize("where", ["recorder", "counters"])
def test_a_defect_on_the_way_out_of_one_version_costs_its_calls_an_answer_and_the_others_nothing(
    where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(servable(model="m"), servable(model="n"))

    def breaks(*_: Any, **__: Any) -> None:
        raise MemoryError

    async def main() -> None:
        bad = [world.send(value)[1] for value in range(2)]
        call = world.admit("n")
        world.pipeline.submit(call, body_of(7), None)
        other = world.doors[-1]
        engine = next(each for each in world.pipeline.engines() if each.servable.model == "m")
        if where == "counters":
            monkeypatch.setattr(engine.servable.counters, "served", breaks)
        elif engine.recorder is not None:
            monkeypatch.setattr(engine.recorder, "answered", breaks)
        await turns()
        assert values_of(other) == [7]
        assert all(door.times == 1 for door in bad), "each of them was told, once"
        if where == "recorder" and engine.recorder is not None:
            assert [code_of(door) for door in bad] == ["internal"] * 2
        assert [version.in_flight for version in world.versions] == [0, 0]
        assert world.pipeline.admission.in_flight == 0
        monkeypatch.undo()
        _, door = world.send(3)
        await turns()
        assert values_of(door) == [3]

    run(main)


def test_a_batch_for_which_the_system_gives_no_thread_is_refused_and_the_next_one_runs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(servable(**LONG))

    async def main() -> None:
        call, door = world.send(1)
        (engine,) = world.pipeline.engines()

        def refuses(*_: Any) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(engine.thread, "submit", refuses)
        await until(lambda: door.times)
        assert code_of(door) == "internal"
        monkeypatch.undo()
        _, door = world.send(2)
        await until(lambda: door.times)
        assert values_of(door) == [2]
        world.assert_at_rest()
        world.pipeline.close()

    run(main)


def test_the_deadline_of_a_header_holds_unless_the_request_itself_has_one() -> None:
    world = World(servable())
    now_ns = time.monotonic_ns()
    for header_s, body, seconds in ((2.0, {}, 2.0), (2.0, {"timeout": 500_000}, 0.5), (3600.0, {}, 60.0)):
        call = world.pipeline.admit(("m", None), FakeDoor(), now_ns, timeout_s=header_s)

        async def main(call: Call = call, body: dict[str, Any] = body) -> None:
            world.pipeline.submit(call, body_of(1, **body), None)
            await turns()

        run(main)
        assert call.deadline_ns - call.arrived_ns == int(seconds * 1e9)


def test_a_connection_that_breaks_while_it_is_refused_does_not_end_the_watch_over_deadlines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    world = World(servable(FakeSession(gate), **LONG))

    async def main() -> None:
        world.send(0)
        await begun(gate)
        later = [world.send(value)[0] for value in (1, 2)]
        monkeypatch.setattr(world.doors[1], "refuse", "no function at all")
        for call in later:
            call.deadline_ns = 0
        await until(lambda: world.doors[2].times)
        third, door = world.send(3)
        third.deadline_ns = 0
        await until(lambda: door.times)
        gate.may_end.release()
        await until(lambda: not world.versions[0].in_flight)
        world.assert_at_rest()
        world.pipeline.close()

    run(main)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


# -- versions that go


def test_a_version_that_goes_while_it_is_asked_answers_what_it_took_and_is_then_forgotten() -> None:
    old, new = servable(), servable(FakeSession())
    world = World(old)
    world.versions = (old, new)

    async def main() -> None:
        _, door = world.send(1)
        world.table.publish(table_of(new).models)
        _, other = world.send(2)
        await turns()
        assert (values_of(door), values_of(other)) == ([1], [2])
        assert old.counters.outcome("ok") == new.counters.outcome("ok") == 1
        world.table.publish({})
        world.table.publish(table_of(servable()).models)
        world.send(3)
        await turns()
        assert {engine.servable for engine in world.pipeline.engines()}.isdisjoint({old, new})

    run(main)


# -- everything at once


STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 3), st.sampled_from([0, 1, 3]), st.booleans()),
    st.tuples(st.sampled_from(["wrong", "unknown", "turn", "end", "admit"])),
    st.tuples(st.sampled_from(["leave", "late"]), st.integers(0, 100)),
)


@settings(max_examples=settings().max_examples * 4)
@given(steps=st.lists(STEPS, max_size=30), long=st.booleans(), max_rows=st.sampled_from([1, 4, 64]))
def test_whatever_happens_every_request_has_one_outcome_and_nothing_stays_in_flight(
    steps: list[tuple[Any, ...]], long: bool, max_rows: int
) -> None:
    gate = Gate(fails_on_bad)
    session = FakeSession(gate if long else fails_on_bad)
    world = World(servable(session, max_rows=max_rows, **(LONG if long else {})), quotas=Quotas(per_model=6))
    sent: list[tuple[Call, FakeDoor, list[float] | None]] = []
    left: set[Call] = set()
    waiting: list[Call] = []

    def take(step: tuple[Any, ...]) -> None:
        match step:
            case ("send", rows, priority, bad):
                values = [float(len(sent) * 10 + row) for row in range(rows)]
                values[-1] = BAD if bad else values[-1]
                sent.append((*world.send(*values, priority=priority), None if bad else values))
            case ("admit",):
                waiting.append(world.admit())
            case ("wrong",):
                world.pipeline.submit(world.admit(), b"[", None)
            case ("unknown",):
                world.admit("nobody")
            case ("end",):
                gate.may_end.release()
            case ("leave", at) if sent:
                call, door, _ = sent[at % len(sent)]
                world.pipeline.abandon(call)
                if not door.times:
                    left.add(call)
            case ("late", at) if sent:
                sent[at % len(sent)][0].deadline_ns = 0

    async def main() -> None:
        for step in steps:
            if step == ("turn",):
                await turns()
                continue
            with contextlib.suppress(QueueFull, UnknownModel):
                take(step)
        for call in waiting:
            world.pipeline.abandon(call)
        gate.may_end.release(1000)
        await until(lambda: not world.versions[0].in_flight)
        await turns()
        for call, door, values in sent:
            assert door.times == (0 if call in left else 1)
            if door.bodies:
                assert values_of(door) == values
            elif door.errors:
                assert code_of(door) in ("deadline-exceeded", "model-failed")
                assert values is None or code_of(door) == "deadline-exceeded"
        world.assert_at_rest()
        world.pipeline.close()

    run(main)


def test_the_gauges_show_what_is_in_flight_and_what_a_run_costs() -> None:
    world = World(servable(run_s=0.001, batch_s=0.0024, batch_rows=8))

    async def main() -> None:
        world.send(1)
        world.pipeline.tick()
        counters = world.versions[0].counters
        assert counters.in_flight == 1
        assert np.allclose(counters.cost_ns, (200_000, 800_000), atol=2)
        await turns()
        world.pipeline.tick()
        assert counters.in_flight == 0

    run(main)
