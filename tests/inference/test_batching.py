"""Batches on a real event loop: what runs together, what runs apart, and in which order."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

import pytest

from gateway.inference.cost import INLINE_S
from gateway.inference.pipeline import QUIET_TURNS, TURN_NS
from gateway.types import Array
from tests.inference.fakes import FakeSession, Gate, echo, servable
from tests.inference.world import LONG, World, begun, run, turns, until, values_of

pytestmark = pytest.mark.usefixtures("journal_on_and_off")


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


def test_where_little_is_gained_who_has_waited_long_and_may_wait_longer_takes_others_along() -> None:
    """A row together with others takes 0.9625 of a row alone."""
    gate = Gate()
    world = World(servable(FakeSession(gate), run_s=0.04, batch_s=0.04 + 7 * 0.0385, batch_rows=8))

    async def main() -> None:
        world.send(0)
        await begun(gate)
        first, *_ = [world.send(value)[0] for value in range(1, 9)]
        (engine,) = world.pipeline._engines.values()
        came_ns, end_ns = first.decoded_ns, first.deadline_ns
        assert engine.next_rows(came_ns) == 1
        assert [engine.next_rows(came_ns + wait_ms * 1_000_000) for wait_ms in (50, 100, 200)] == [1, 2, 5]
        assert engine.next_rows(end_ns - 50_000_000) == 1
        gate.may_end.release(9)
        await until(lambda: all(door.times for door in world.doors))
        world.assert_at_rest()
        world.pipeline.close()

    run(main)


@pytest.mark.parametrize("alone", [True, False])
def test_a_thread_that_sleeps_in_a_run_has_computed_only_where_nobody_else_computes_for_it(alone: bool) -> None:
    """What it sleeps through is another's on its core, or it waits for the other threads of its session."""

    def sleeps(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        time.sleep(0.02 * len(inputs["x"]))
        return echo(inputs, outputs)

    world = World(servable(FakeSession(sleeps, computes_alone=alone), **LONG))

    async def main() -> None:
        for rows in (1, 2, 1, 2):
            _, door = world.send(*range(rows))
            await until(lambda door=door: door.times)
        (engine,) = world.pipeline._engines.values()
        assert engine.cost.expect_s(2) > 0.01
        slept = [seconds for times in engine.cost._times.values() for seconds in times]
        assert all((seconds < 0.02) is alone for seconds in slept)
        world.assert_at_rest()
        world.pipeline.close()

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
