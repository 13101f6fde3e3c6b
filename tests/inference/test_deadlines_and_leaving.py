"""Deadlines that pass and clients that leave, on a real event loop: nobody else notices."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.inference.fakes import FakeSession, Gate, echo, servable
from tests.inference.world import LONG, World, begun, body_of, code_of, run, turns, until, values_of

pytestmark = pytest.mark.usefixtures("journal_on_and_off")


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


def test_an_answer_that_is_ready_after_the_deadline_is_not_given() -> None:
    """Two calls run together in the loop, where nobody looks at deadlines meanwhile; that of one passes."""
    gate: list[Any] = []

    def slowly(inputs: Any, outputs: Any) -> Any:
        gate[0].deadline_ns = time.monotonic_ns()
        return echo(inputs, outputs)

    world = World(servable(FakeSession(slowly)))

    async def main() -> None:
        late, its_door = world.send(1, timeout=1_000_000)
        gate.append(late)
        _, other = world.send(2)
        await until(lambda: its_door.times and other.times)
        assert (code_of(its_door), values_of(other)) == ("deadline-exceeded", [2])
        assert "while the model was running" in its_door.errors[0].message
        assert world.outcomes() == {"ok": 1, "deadline-exceeded": 1}
        world.assert_at_rest()
        world.pipeline.close()

    run(main)


def test_a_deadline_that_a_run_is_hopelessly_too_long_for_is_refused_before_it_and_a_doubtful_one_is_tried() -> None:
    session = FakeSession(echo)
    world = World(servable(session, run_s=0.2, batch_s=0.4, batch_rows=8))

    async def main() -> None:
        for left_s, answered in ((0.02, False), (0.15, True)):
            call, door = world.send(1, timeout=int(left_s * 1e6))
            await until(lambda door=door: door.times)
            assert (code_of(door) if not answered else values_of(door)) == (
                "deadline-exceeded" if not answered else [1]
            )
        assert session.rows == [1]
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
