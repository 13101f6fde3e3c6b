"""The engine: what a session is given, and what becomes of a batch when it fails."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.inference.batcher import Batch
from gateway.inference.call import Call
from gateway.inference.engine import Engine, Outcome, Part
from gateway.oip.limits import Limits
from gateway.types import Array, Contract, TensorSpec
from tests.inference.fakes import ECHO, FakeSession, Run, call_of, echo, rows_of, servable

LOOSE = Contract((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),), batched=True)
"""Its rows have no fixed shape, so its calls have arrays of their own."""

WHOLE = Contract((TensorSpec("x", "FP32", (3, 2)),), (TensorSpec("y", "FP32", (3, 2)),), batched=False)
"""It has no batch axis."""

BAD = 666.0


def engine_of(run: Run = echo, contract: Contract = ECHO, **options: Any) -> tuple[Engine, FakeSession]:
    """An engine and its session."""
    session = FakeSession(run)
    return Engine(servable(session, contract, **options), Limits()), session


def decoded(engine: Engine, values: Sequence[Sequence[float]], **members: Any) -> Call:
    """A call that came with these rows."""
    call = call_of(engine.servable)
    shape = [len(values), len(values[0])]
    item = {"name": "x", "shape": shape, "datatype": "FP32", "data": [each for row in values for each in row]}
    engine.reader.read(call, json.dumps({"inputs": [item], **members}).encode(), None)
    call.plan = engine.writer.plan(call.outputs)
    engine.batcher.add(call)
    return call


def together(engine: Engine) -> Batch:
    """All that waits."""
    batch, _ = engine.batcher.take(1 << 20, join_loose=True)
    assert batch is not None
    return batch


def answer(part: Part, call: Call) -> Array:
    """What a call got of the first output of its part."""
    array = part.arrays[0]
    return array if part.first_row is None else array[call.row - part.first_row :][: call.rows]


def assert_answered(outcome: Outcome, *calls: Call) -> None:
    """Every one of them got its own rows back, once."""
    for call in calls:
        parts = [part for part in outcome.parts if call in part.calls]
        assert len(parts) == 1
        assert parts[0].error is None
        assert (answer(parts[0], call) == rows_of(call)[0]).all()


def fails_on_bad(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
    """Raises for a batch with a bad value in it."""
    if (inputs["x"] == BAD).any():
        raise RuntimeError("bad value")
    return echo(inputs, outputs)


@given(rows=st.integers(1, 30), max_rows=st.integers(1, 9))
@pytest.mark.parametrize("contract", [ECHO, LOOSE])
def test_a_request_of_more_rows_than_a_batch_may_have_is_run_in_pieces(
    contract: Contract, rows: int, max_rows: int
) -> None:
    engine, session = engine_of(contract=contract, max_rows=max_rows)
    call = decoded(engine, [[row, -row] for row in range(rows)])
    assert_answered(engine.execute(together(engine)), call)
    assert session.rows == [max_rows] * (rows // max_rows) + [rows % max_rows] * (rows % max_rows > 0)


@pytest.mark.parametrize("shape", [(), (3,), (1, 2)])
def test_a_large_request_whose_outputs_do_not_follow_its_rows_is_run_whole(shape: tuple[int, ...]) -> None:
    """Quarantine saw them follow for the rows it tried. What belongs to the whole input cannot be put together."""

    def whole(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        return (np.full(shape, inputs["x"].sum(), np.float32),)

    engine, _ = engine_of(whole, max_rows=4)
    decoded(engine, [[row, row] for row in range(8)])
    (part,) = engine.execute(together(engine)).parts
    assert part.error is None
    assert part.arrays[0].shape == shape
    assert (part.arrays[0] == 56).all()


def test_a_large_request_whose_rows_are_padded_to_the_longest_is_run_whole() -> None:
    def padded(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        return (np.zeros((len(inputs["x"]), int(inputs["x"].max())), np.float32),)

    engine, session = engine_of(padded, max_rows=4)
    for runs in ([4, 4, 8], [4, 4, 8, 8]):
        decoded(engine, [[row, row] for row in range(8)])
        (part,) = engine.execute(together(engine)).parts
        assert part.error is None
        assert part.arrays[0].shape == (8, 7)
        assert session.rows == runs, "what was learned is kept"


def test_a_request_to_a_model_without_a_batch_axis_is_run_whole() -> None:
    engine, session = engine_of(contract=WHOLE, max_rows=2)
    call = decoded(engine, [[1, 2], [3, 4], [5, 6]])
    assert_answered(engine.execute(together(engine)), call)
    assert session.rows == [3]


@pytest.mark.parametrize("contract", [ECHO, LOOSE])
@given(bad=st.sets(st.integers(0, 5)), rows=st.lists(st.integers(1, 3), min_size=6, max_size=6))
def test_where_a_batch_fails_its_calls_run_alone_and_only_the_bad_ones_fail(
    contract: Contract, bad: set[int], rows: list[int]
) -> None:
    engine, session = engine_of(fails_on_bad, contract)
    calls = [
        decoded(engine, [[number, BAD if number in bad else row] for row in range(count)])
        for number, count in enumerate(rows)
    ]
    outcome = engine.execute(together(engine))
    failed = [part for part in outcome.parts if part.error is not None]
    assert [part.calls for part in failed] == [[calls[number]] for number in sorted(bad)]
    assert all(str(part.error) == "bad value" for part in failed)
    assert_answered(outcome, *[call for number, call in enumerate(calls) if number not in bad])
    assert session.rows == ([sum(rows), *rows] if bad else [sum(rows)])
    assert outcome.began_ns <= outcome.ended_ns


def test_a_lone_call_that_fails_is_not_run_again() -> None:
    engine, session = engine_of(fails_on_bad)
    call = decoded(engine, [[BAD, 1]])
    (part,) = engine.execute(together(engine)).parts
    assert part.calls == [call]
    assert isinstance(part.error, RuntimeError)
    assert session.rows == [1]


@pytest.mark.parametrize("contract", [ECHO, LOOSE])
@pytest.mark.parametrize("shape", [(), (1, 2), (5,)])
def test_where_outputs_do_not_follow_the_batch_axis_calls_run_alone_from_then_on(
    contract: Contract, shape: tuple[int, ...]
) -> None:
    """The outputs of two calls that ran together cannot be told apart."""

    def sums(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        return (np.full(shape, inputs["x"].sum(), np.float32),)

    engine, session = engine_of(sums, contract)
    assert engine.joins
    calls = [decoded(engine, [[value, value]]) for value in (1, 2, 3)]
    outcome = engine.execute(together(engine))
    assert [part.calls for part in outcome.parts] == [[call] for call in calls]
    assert [float(answer(part, part.calls[0]).reshape(-1)[0]) for part in outcome.parts] == [2, 4, 6]
    assert session.rows == [3, 1, 1, 1]
    assert not engine.joins


def test_the_session_computes_what_any_of_the_calls_wants_and_nothing_else() -> None:
    outputs = tuple(TensorSpec(name, "FP32", (-1, 2)) for name in "abcd")
    asked: list[Sequence[str]] = []

    def note(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        asked.append(tuple(outputs))
        return echo(inputs, outputs)

    engine, _ = engine_of(note, Contract(ECHO.inputs, outputs, batched=True))
    for names in ("b", "db", "b"):
        decoded(engine, [[1, 2]], outputs=[{"name": name} for name in names])
    (part,) = engine.execute(together(engine)).parts
    assert asked == [("b", "d")]
    assert part.names == ("b", "d")


def test_a_version_that_is_not_loaded_here_cannot_be_run() -> None:
    version = servable()
    version.session = None
    with pytest.raises(ValueError, match="'m'|m version 1"):
        Engine(version, Limits())


def test_the_expected_wait_is_what_is_left_of_the_run_and_all_that_waits_before() -> None:
    engine, _ = engine_of(run_s=0.010, batch_s=0.017, batch_rows=8, max_rows=8)
    assert engine.wait_s(0) == 0
    running = decoded(engine, [[0, 0]])
    engine.running = together(engine)
    assert engine.running.calls == [running]
    engine.running_until_ns = 5_000_000
    assert engine.wait_s(0) == pytest.approx(0.005)
    assert engine.wait_s(9_000_000) == 0
    for value in range(9):
        decoded(engine, [[value, value]])
    # Nine rows at 1 ms in two runs at 9 ms.
    assert engine.wait_s(0) == pytest.approx(0.005 + 0.009 + 0.018)


def test_a_large_call_that_waits_is_expected_to_run_whole_as_it_will() -> None:
    """Runs that take 0.1 s whatever they hold, and 3 ms a row: a call of 64 rows is one of them."""
    engine, _ = engine_of(run_s=0.103, batch_s=0.124, batch_rows=8, max_rows=64)
    decoded(engine, [[0, 0]])
    engine.running = together(engine)
    decoded(engine, [[value, value] for value in range(64)])
    assert engine.wait_s(0) == pytest.approx(0.1 + 64 * 0.003)
