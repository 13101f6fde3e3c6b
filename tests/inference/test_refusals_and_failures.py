"""Requests that are refused and runs that fail, on a real event loop: each costs its own answer and no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gateway.errors import QueueFull, QuotaExceeded, UnknownModel
from gateway.inference.admission import Quotas
from gateway.inference.call import Call
from gateway.types import Array
from tests.inference.fakes import FakeDoor, FakeSession, Gate, echo, servable, table_of
from tests.inference.world import BAD, LONG, World, begun, body_of, code_of, fails_on_bad, run, turns, until, values_of

pytestmark = pytest.mark.usefixtures("journal_on_and_off")


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
