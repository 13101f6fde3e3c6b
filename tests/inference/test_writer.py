"""The writer: whatever runs together, each reply is byte for byte what the general codec writes for it alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.inference import writer as writer_module
from gateway.inference.call import Call
from gateway.inference.writer import Writer
from gateway.oip.datatypes import DATATYPES
from gateway.oip.response import encode
from gateway.types import Array, Contract, InferRequest, InferResponse, OutputRequest, TensorSpec
from tests.inference.fakes import call_of, servable
from tests.oip.arrays import IN_JSON, arrays

NAMES = ("y", "a b", '100%"', "%b", "é", "null", "p],[q", "{}")
MODELS = ("m", "100%", 'quote"', "模型")
TEXTS = st.one_of(st.sampled_from(["", "],[", '"', "%", "%b", "null", "é\n", "\0", ",", "\U0001f600", "\\"]), st.text())
IDS = st.one_of(
    st.just(""), st.sampled_from(["%b", 'a"b', "é", "\\"]), st.text(st.characters(exclude_categories=["Cs"]))
)
LABELS = {"y": ["late", "on time"], "a b": ['a"b']}
SCORES = sorted(set(DATATYPES) - {"BOOL", "BYTES", "BF16"})


class Run(NamedTuple):
    """What a session gave for a batch, and whose it is."""

    model: str
    contract: Contract
    names: tuple[str, ...]
    arrays: tuple[Array, ...]
    calls: list[Call]
    first_row: int | None


def alone(run: Run, call: Call) -> tuple[bytes, int, int]:
    """The reply of a call that ran alone: body, length of its JSON part, non-finite values."""
    start = 0 if run.first_row is None else call.row - run.first_row
    rows = ... if run.first_row is None else slice(start, start + call.rows)
    by_name = dict(zip(run.names, run.arrays, strict=True))
    prediction_id = call.prediction_id.decode()
    parameters = {"nonfinite": "literal"} if call.literal else {}
    request = InferRequest(call.id or prediction_id, parameters, {}, call.outputs, call.rows)
    response = InferResponse(run.model, 7, tuple(by_name[output.name][rows] for output in call.outputs))
    reply = encode(request, response, run.contract, {"prediction_id": prediction_id}, LABELS)
    return reply.body, len(reply.body) if reply.header_length is None else reply.header_length, reply.nonfinite


def check(run: Run, writer: Writer | None = None) -> None:
    """Every call gets what it would have got alone."""
    writer = writer or Writer(run.model, 7, run.contract, LABELS)
    for call in run.calls:
        call.plan = writer.plan(call.outputs)
    replies, nonfinite = writer.write(run.calls, run.names, run.arrays, run.first_row)
    wanted = [alone(run, call) for call in run.calls]
    assert replies == [(body, length) for body, length, _ in wanted]
    covered = run.first_row is None or sum(call.rows for call in run.calls) == len(run.arrays[0])
    if covered:
        assert nonfinite == sum(count for _, _, count in wanted)
    if is_plain(run):
        # What was prepared the first time is used the second time.
        for _ in range(2):
            found = writer.write(run.calls, run.names, run.arrays, run.first_row, plain=True)
            assert found == (replies, nonfinite)


def is_plain(run: Run) -> bool:
    """Whether a batcher would call this plain: a row each, one behind the other, and no wish but the same outputs."""
    first = run.calls[0]
    return run.names == tuple(output.name for output in first.outputs) and all(
        (call.rows, call.row, call.id, call.literal, call.outputs) == (1, first.row + at, "", False, first.outputs)
        for at, call in enumerate(run.calls)
    )


def output_arrays(datatype: str, shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    """What a session may give: every bit pattern, and strings with all that has a meaning to the writer."""
    size = int(np.prod(shape))
    if datatype in ("FP32", "FP64"):
        dtype = DATATYPES[datatype].dtype
        some = st.sampled_from([np.nan, np.inf, -np.inf, -0.0, 1.5, 0.1, 1e-45])
        listed = st.lists(some, min_size=size, max_size=size).map(lambda found: np.array(found, dtype).reshape(shape))
        return st.one_of(listed, arrays(datatype, st.just(shape)))
    if datatype != "BYTES":
        return arrays(datatype, st.just(shape))
    return st.lists(TEXTS, min_size=size, max_size=size).map(lambda texts: _objects(texts, shape))


def _objects(texts: Sequence[str], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(shape)


@st.composite
def requests(draw: st.DrawFn, specs: Sequence[TensorSpec], simple: bool) -> tuple[OutputRequest, ...]:
    """Outputs as a request may ask for them: some of them, in any order, as JSON, as binary data, as classes."""
    wanted = list(specs) if simple else draw(st.permutations(specs))[: draw(st.integers(1, len(specs)))]
    found = []
    for spec in wanted:
        binary = draw(st.booleans())
        top = draw(st.sampled_from([0, 0, 0, 2])) if spec.datatype in SCORES else 0
        found.append(OutputRequest(spec.name, binary or (not DATATYPES[spec.datatype].in_json and not top), top))
    return tuple(found)


@st.composite
def runs(draw: st.DrawFn, datatypes: Sequence[str]) -> Run:
    """A batch that ran: calls with rows of their own, alike or not, with rows between them that are nobody's."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    specs = [TensorSpec(name, draw(st.sampled_from(datatypes)), None) for name in names]
    contract = Contract((), tuple(specs), batched=True)
    asked = [draw(requests(specs, True))] if draw(st.booleans()) else draw(st.lists(requests(specs, False), min_size=1))
    same_rows = draw(st.sampled_from([None, 1, 1, 2, 3]))
    first_row = draw(st.sampled_from([None, 0, 5]))
    calls: list[Call] = []
    row = first_row or 0
    for number in range(1 if first_row is None else draw(st.integers(1, 5))):
        rows = same_rows or draw(st.integers(0, 3))
        row += draw(st.sampled_from([0, 0, 0, 1])) if calls else 0
        calls.append(
            call_of(
                servable(),
                outputs=draw(st.sampled_from(asked)),
                id=draw(IDS),
                prediction_id=b"00000000-0000-8000-8000-0000%08x" % number,
                literal=draw(st.sampled_from([False] * 5 + [True])),
                row=row,
                rows=rows,
            )
        )
        row += rows
    total = row - (first_row or 0)
    if first_row is None:
        # The only call owns the arrays whole, also where they are not as long as its rows.
        total = draw(st.sampled_from([total, total, total + 1]))
    union = tuple(dict.fromkeys(output.name for call in calls for output in call.outputs))
    by_name = {spec.name: spec for spec in specs}
    found = []
    for name in union:
        trailing = tuple(draw(st.lists(st.integers(0, 3) if draw(st.booleans()) else st.just(2), max_size=2)))
        shape = () if first_row is None and draw(st.integers(0, 9)) == 0 else (total, *trailing)
        found.append(draw(output_arrays(by_name[name].datatype, shape)))
    return Run(draw(st.sampled_from(MODELS)), contract, union, tuple(found), calls, first_row)


@settings(max_examples=settings().max_examples * 4)
@given(run=runs(sorted(DATATYPES)))
def test_every_reply_of_a_batch_is_what_it_would_be_alone(run: Run) -> None:
    check(run)


@settings(max_examples=settings().max_examples * 4)
@given(run=runs(["FP32", "INT64", "BYTES"]))
def test_every_reply_of_a_batch_of_common_outputs_is_what_it_would_be_alone(run: Run) -> None:
    check(run)


@given(data=st.data())
def test_what_was_prepared_for_one_reply_never_stands_in_another(data: st.DataObject) -> None:
    """One writer, batch after batch of other shapes, rows and outputs under the same names."""
    specs = (TensorSpec("y", "FP32", None), TensorSpec("%b", "INT8", None), TensorSpec("s", "BYTES", None))
    contract = Contract((), specs, batched=True)
    writer = Writer("m", 7, contract, LABELS)
    for _ in range(data.draw(st.integers(2, 6))):
        outputs = data.draw(st.sampled_from([tuple(OutputRequest(s.name, b) for s in specs) for b in (False, True)]))
        rows, count = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
        calls = [
            call_of(servable(), outputs=outputs, prediction_id=b"%036d" % at, row=at * rows, rows=rows)
            for at in range(count)
        ]
        trailing = data.draw(st.sampled_from([(), (1,), (2,), (1, 2)]))
        found = [data.draw(output_arrays(spec.datatype, (rows * count, *trailing))) for spec in specs]
        check(Run("m", contract, tuple(spec.name for spec in specs), tuple(found), calls, 0), writer)


def lone(array: Array, datatype: str, *, binary: bool = False, rows: int = 1, **set_to: Any) -> Run:
    """One call that ran alone, with one output."""
    contract = Contract((), (TensorSpec("y", datatype, None),), batched=True)
    call = call_of(servable(), outputs=(OutputRequest("y", binary),), prediction_id=b"%036d" % 1, rows=rows, **set_to)
    return Run("m", contract, ("y",), (array,), [call], None)


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_values_that_are_no_numbers_are_counted_and_written_as_asked(datatype: str, literal: bool) -> None:
    array = np.array([[np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38]], DATATYPES[datatype].dtype)
    check(lone(array, datatype, literal=literal))


@pytest.mark.parametrize("datatype", IN_JSON)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (1, 1), (1, 0), (1, 2, 2), (2, 3), (3, 1, 1)])
@pytest.mark.parametrize("binary", [False, True])
def test_outputs_of_every_shape_are_written(datatype: str, shape: tuple[int, ...], binary: bool) -> None:
    """Shapes that follow the batch axis, and shapes that do not."""
    array = np.zeros(shape, DATATYPES[datatype].dtype)
    array[...] = "%s],[" if datatype == "BYTES" else 1
    check(lone(array, datatype, binary=binary))


def test_outputs_that_only_a_call_that_left_had_asked_for_stand_in_nobodys_reply() -> None:
    specs = (TensorSpec("y", "FP32", None), TensorSpec("z", "INT64", None))
    contract = Contract((), specs, batched=True)
    arrays = (np.array([[7, 8], [9, 10]], np.int64), np.array([[1.5], [np.nan]], np.float32))
    for rows, first_row in ((1, 4), (2, 4), (2, None)):
        call = call_of(servable(), outputs=(OutputRequest("y", False),), prediction_id=b"%036d" % 1, row=4, rows=rows)
        check(Run("m", contract, ("z", "y"), arrays, [call], first_row))


def test_nobody_who_waits_is_no_reply() -> None:
    """Every call of a batch may have left while it ran."""
    writer = Writer("m", 7, Contract((), (TensorSpec("y", "FP32", None),), batched=True), {})
    assert writer.write([], ("y",), (np.ones((2, 3), np.float32),), 0)[0] == []


def test_plans_and_forms_are_kept_in_bounds() -> None:
    """Clients choose what they ask for, so what is kept for it must have an end."""
    specs = tuple(TensorSpec(f"y{number}", "FP32", None) for number in range(8))
    writer = Writer("m", 7, Contract((), specs, batched=True), {})
    for number in range(3 * writer_module.MAX_PLANS):
        outputs = tuple(OutputRequest(spec.name, bool(number >> at & 1)) for at, spec in enumerate(specs))
        plan = writer.plan(outputs)
        assert plan is writer.plan(outputs)
        for rows in range(1, 4):
            call = call_of(servable(), outputs=outputs, plan=plan, prediction_id=b"p", rows=rows)
            writer.write([call], plan.names, [np.ones((rows, number + 1), np.float32) for _ in specs], None)
        assert len(plan.forms) <= writer_module.MAX_PLANS
    assert len(writer._plans) <= writer_module.MAX_PLANS
    assert len(writer._heads) <= 1024 + len(specs)
