"""The reader: its fast forms say what the general codec says, and rows that are held are nobody else's."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.errors import ClientError
from gateway.inference.block import Block, Blocks
from gateway.inference.call import Call
from gateway.inference.reader import PRIORITIES, Reader
from gateway.oip.limits import Limits
from gateway.types import Array, Contract, TensorSpec
from tests.inference.bodies import LIMITS, ODDITIES, STRANGE, Body, bodies, contracts, oddities, plain_contracts
from tests.inference.fakes import call_of, rows_of, servable
from tests.inference.reading import FLOATS, assert_agree, binary_body, general, json_body, read, run_through
from tests.oip.arrays import IN_JSON, same


@pytest.mark.parametrize("oddity", ["", *ODDITIES])
@settings(max_examples=settings().max_examples)
@given(data=st.data())
def test_a_plain_request_with_one_oddity_is_read_or_refused_as_the_general_codec_does(
    oddity: str, data: st.DataObject
) -> None:
    contract = data.draw(plain_contracts())
    reader = Reader(contract, LIMITS, "m", refuse_nonfinite=False)
    run_through(reader, contract, [data.draw(bodies(contract, {oddity}, ("json", "json", "binary")))], data)


@given(data=st.data())
def test_whatever_is_sent_the_reader_says_what_the_general_codec_says(data: st.DataObject) -> None:
    contract = data.draw(contracts())
    reader = Reader(contract, LIMITS, "m", refuse_nonfinite=False)
    sent = [data.draw(bodies(contract, data.draw(oddities()))) for _ in range(data.draw(st.integers(1, 4)))]
    run_through(reader, contract, sent, data)


@pytest.mark.parametrize("datatype", IN_JSON)
@pytest.mark.parametrize(
    ("width", "rows", "beside"), [(1, 1, 0), (1, 1, 1), (1, 2, 0), (1, 2, 1), (2, 1, 0), (2, 2, 1)]
)
def test_every_strange_value_is_taken_or_refused_in_every_place_as_the_general_codec_does(
    datatype: str, width: int, rows: int, beside: int
) -> None:
    specs = [TensorSpec("b" * number, "INT64", (-1,)) for number in range(1, 1 + beside)]
    contract = Contract((TensorSpec("x", datatype, (-1, width)), *specs), (TensorSpec("y", "FP32", (-1,)),), True)
    reader = Reader(contract, LIMITS, "m", refuse_nonfinite=False)
    right: Any = {"BYTES": "text", "BOOL": True}.get(datatype, 1)
    others = [{"name": spec.name, "shape": [rows], "datatype": "INT64", "data": [7] * rows} for spec in specs]
    spelt: list[Any] = [
        [*[right] * at, value, *[right] * (rows * width - at - 1)] for value in STRANGE for at in (0, 1)
    ]
    for data in (*spelt, *STRANGE, "x" * rows * width, "x", [[right] * width] * rows):
        item = {"name": "x", "shape": [rows, width], "datatype": datatype, "data": data}
        for inputs in ([item, *others], [*others, item], [item, item, *others][: 1 + beside]):
            body = Body(json.dumps({"inputs": inputs}).encode(), None)
            got = read(reader, contract, body)
            assert_agree(got, general(body, contract), reader)
            if isinstance(got, Call) and got.block is not None:
                reader.release(got.block)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_where_nan_is_refused_it_is_refused_by_its_path_in_every_form(value: float) -> None:
    """A good request comes first, so that its header could be remembered."""
    reader = Reader(FLOATS, Limits(), "m", refuse_nonfinite=True)
    good, bad = np.ones((1, 2), np.float32), np.array([[1, value]], np.float32)
    bodies = [binary_body(bad), Body(bad.tobytes(), "0")]
    if value != value:
        bodies += [Body(json_body(1, None), None), Body(json_body(1, None, id="a"), None)]
    for body in bodies:
        assert isinstance(read(reader, FLOATS, binary_body(good)), Call)
        assert isinstance(read(reader, FLOATS, Body(json_body(1, 2), None)), Call)
        error = read(reader, FLOATS, body)
        assert isinstance(error, ClientError)
        assert (error.code, error.field) == ("invalid-request", "inputs[0].data")


def test_where_nan_is_refused_a_null_beside_other_inputs_is_refused_too() -> None:
    contract = Contract(tuple(TensorSpec(name, "FP64", (-1,)) for name in "ab"), FLOATS.outputs, True)
    reader = Reader(contract, Limits(), "m", refuse_nonfinite=True)
    inputs = [{"name": name, "shape": [1], "datatype": "FP64", "data": [None if name == "b" else 1]} for name in "ab"]
    error = read(reader, contract, Body(json.dumps({"inputs": inputs}).encode(), None))
    assert isinstance(error, ClientError)
    assert error.field == "inputs[1].data"


@pytest.mark.parametrize(("datatype", "good", "bad"), [("BOOL", b"\1", b"\2"), ("BYTES", b"\0\0\0\0", b"\0\0\0\1")])
def test_values_that_need_a_look_are_looked_at_under_a_known_header_too(datatype: str, good: bytes, bad: bytes) -> None:
    contract = Contract((TensorSpec("x", datatype, (-1,)),), (TensorSpec("y", "FP32", (-1,)),), True)
    reader = Reader(contract, Limits(), "m", refuse_nonfinite=False)
    item = {"name": "x", "shape": [1], "datatype": datatype, "parameters": {"binary_data_size": len(good)}}
    text = json.dumps({"inputs": [item]}).encode()
    for _ in range(2):
        assert isinstance(read(reader, contract, Body(text + good, str(len(text)))), Call)
        assert isinstance(read(reader, contract, Body(text + bad, str(len(text)))), ClientError)


def test_a_request_of_no_rows_takes_no_row_and_so_no_id_of_another() -> None:
    reader = Reader(FLOATS, Limits(), "m", refuse_nonfinite=False)
    calls = [read(reader, FLOATS, Body(body, None)) for body in (json_body(), json_body(1, 2), json_body())]
    nothing, one, again = calls
    assert isinstance(nothing, Call)
    assert isinstance(one, Call)
    assert isinstance(again, Call)
    assert nothing.block is None
    assert again.block is None
    assert [array.shape for array in rows_of(nothing)] == [(0, 2)]
    assert one.block is not None
    assert one.block.held == 1


@dataclass
class Held:
    """A call that still needs its rows, and what they must hold."""

    call: Call
    block: Block
    rows: Array
    tags: list[str] = field(default_factory=list)


class BlockMachine(RuleBasedStateMachine):
    """Calls take rows, by any form and priority, and give them back in any order.

    What is held is never overwritten, no prediction id comes twice, and blocks are kept only as long as needed.
    """

    def __init__(self) -> None:
        super().__init__()
        # Blocks of seven rows, so that they are full again and again.
        self.reader = Reader(FLOATS, Limits(max_elements=14), "m", refuse_nonfinite=False)
        self.servable = servable(contract=FLOATS)
        self.held: list[Held] = []
        self.ids: set[bytes] = set()
        self.blocks: dict[int, Block] = {}
        self.number = 0.0

    def take(self, body: Body, rows: Array) -> None:
        call = call_of(self.servable)
        self.reader.read(call, body.body, body.header)
        block = call.block
        assert block is not None
        for row in range(call.row, call.row + call.rows):
            name = block.prefix + b"%08x" % row
            assert name not in self.ids, "two predictions have the same id"
            self.ids.add(name)
        self.blocks[id(block)] = block
        self.held.append(Held(call, block, rows))

    def values(self, rows: int) -> Array:
        """Values that no other call has."""
        self.number += rows * 2
        return np.arange(self.number - rows * 2, self.number, dtype=np.float32).reshape(rows, 2)

    @rule(rows=st.integers(1, 7))
    def read_json(self, rows: int) -> None:
        values = self.values(rows)
        self.take(Body(json_body(*values.reshape(-1).tolist()), None), values)

    @rule(rows=st.integers(1, 7), priority=st.integers(0, 4))
    def read_by_the_general_codec(self, rows: int, priority: int) -> None:
        values = self.values(rows)
        self.take(Body(json_body(*values.reshape(-1).tolist(), parameters={"priority": priority}), None), values)

    @rule(rows=st.integers(1, 7), priority=st.integers(0, 4))
    def read_binary(self, rows: int, priority: int) -> None:
        values = self.values(rows)
        self.take(binary_body(values, priority=priority), values)

    @rule(rows=st.integers(1, 7), how=st.sampled_from(["last value", "true", "too few", "broken"]))
    def read_what_is_refused(self, rows: int, how: str) -> None:
        values: list[Any] = [-1.0] * (rows * 2)
        if how == "last value":
            values[-1] = "text"
        elif how == "true":
            values[-1] = True
        body = json_body(*values)
        if how == "too few":
            body = body.replace(b"-1.0,", b"", 1)
        elif how == "broken":
            body = body[:-1]
        call = call_of(self.servable)
        with pytest.raises(ClientError):
            self.reader.read(call, body, None)
        assert call.block is None

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        each = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.reader.release(each.block)

    @rule()
    def release_all(self) -> None:
        while self.held:
            self.reader.release(self.held.pop().block)

    @invariant()
    def held_rows_are_untouched(self) -> None:
        for each in self.held:
            assert same(rows_of(each.call)[0], each.rows)

    @invariant()
    def every_block_counts_those_who_hold_it(self) -> None:
        for block in self.blocks.values():
            assert block.held == sum(each.block is block for each in self.held)
            assert 0 <= block.fill <= block.capacity == 7

    @invariant()
    def no_more_blocks_are_kept_than_are_needed(self) -> None:
        free = cast(Blocks, self.reader.source).free
        used = [block for block in self.reader._blocks if block is not None]
        assert len(free) <= PRIORITIES
        assert len({id(block) for block in (*used, *free)}) == len(used) + len(free), "a block is used for two things"


TestHeldRowsAreNeverOverwritten = BlockMachine.TestCase
TestHeldRowsAreNeverOverwritten.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
