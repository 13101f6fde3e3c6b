"""The pipeline on a real event loop, with everything that can happen at once."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import QueueFull, UnknownModel
from gateway.inference.admission import Quotas
from gateway.inference.call import Call
from tests.inference.fakes import FakeDoor, FakeSession, Gate, servable
from tests.inference.world import BAD, LONG, World, code_of, fails_on_bad, run, turns, until, values_of

pytestmark = pytest.mark.usefixtures("journal_on_and_off")


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
