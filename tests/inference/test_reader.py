"""The reader: its fast forms say what the general codec says, and rows that are held are nobody else's."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.errors import ClientError
from gateway.inference import reader as reader_module
from gateway.inference.block import Block, Blocks
from gateway.inference.call import Call
from gateway.inference.reader import LONG_BODY, MANY_NUMBERS, MAX_HEADER_BYTES, MAX_HEADERS, PRIORITIES, Reader
from gateway.oip.limits import Limits
from gateway.oip.request import decode
from gateway.types import Array, Contract, InferRequest, OutputRequest, TensorSpec
from tests.inference.bodies import LIMITS, ODDITIES, STRANGE, Body, bodies, contracts, oddities, plain_contracts, twins
from tests.inference.fakes import call_of, rows_of, servable
from tests.oip.arrays import IN_JSON, same

LANES = {0: 1, 1: 0, 2: 1}
"""Lane by the protocol's priority; every other priority may wait: lane 2."""


def general(body: Body, contract: Contract) -> InferRequest | ClientError:
    """What the codec that knows every form makes of a body."""
    try:
        return decode(body.body, body.header, contract, LIMITS, "m")
    except ClientError as error:
        return error


def read(reader: Reader, contract: Contract, body: Body) -> Call | ClientError:
    """What the reader makes of it."""
    call = call_of(servable(contract=contract))
    try:
        reader.read(call, body.body, body.header)
    except ClientError as error:
        assert call.block is None
        assert call.arrays is None
        return error
    return call


def assert_agree(got: Call | ClientError, wanted: InferRequest | ClientError, reader: Reader) -> None:
    """The reader gave the values, or the refusal, that the codec gives."""
    if isinstance(wanted, ClientError) or isinstance(got, ClientError):
        assert (type(got), getattr(got, "message", got), getattr(got, "field", "")) == (
            type(wanted),
            getattr(wanted, "message", wanted),
            getattr(wanted, "field", ""),
        )
        return
    assert (got.id, got.outputs, got.rows) == (wanted.id, wanted.outputs, wanted.rows)
    assert got.timeout_s == wanted.timeout_s
    assert got.literal == (wanted.parameters.get("nonfinite") == "literal")
    assert got.priority == LANES.get(int(wanted.parameters.get("priority", 0)), 2)
    assert (got.block is not None) == (reader.layout.fits and 0 < wanted.rows <= reader.layout.capacity)
    for mine, theirs in zip(rows_of(got), wanted.inputs.values(), strict=True):
        assert same(mine, theirs)


def run_through(reader: Reader, contract: Contract, sent: list[Body], data: st.DataObject) -> None:
    """Read bodies one after another, so that what is remembered of one meets the next; some are held on to."""
    held: list[tuple[Call, list[Array]]] = []
    for body in sent:
        blocks = [(call.block, call.block.fill, call.block.held) for call, _ in held if call.block is not None]
        # Long bodies are searched in another way than short ones.
        many = data.draw(st.sampled_from([0, MANY_NUMBERS]))
        with (
            patch.object(reader_module, "LONG_BODY", data.draw(st.sampled_from([0, LONG_BODY]))),
            patch.object(reader_module, "MANY_NUMBERS", many),
        ):
            got = read(reader, contract, body)
        assert_agree(got, general(body, contract), reader)
        for call, rows in held:
            assert all(map(same, rows_of(call), rows)), "a row of another call was changed"
        if isinstance(got, Call):
            held.append((got, rows_of(got)))
        else:
            for block, fill, count in blocks:
                assert (block.fill, block.held) == (fill, count), "a refused body took a row"
        if held and data.draw(st.booleans()):
            call, _ = held.pop(data.draw(st.integers(0, len(held) - 1)))
            if call.block is not None:
                reader.release(call.block)


NUMBERS = (
    "0",
    "-0",
    "-0.0",
    "1",
    "1.5",
    "0.1",
    "1e-45",
    "1E5",
    "3.4028235e38",
    "-3.4e38",
    "16777217",
    "9007199254740993",
)
NO_NUMBERS = (
    *(
        "true",
        "false",
        "null",
        '"1"',
        "[1]",
        "{}",
        "NaN",
        "Infinity",
        "-",
        "01",
        "1.",
        "+1",
        "1e39",
        "1e400",
        "-1e39",
        "",
    ),
    *(
        "18446744073709551615",
        "18446744073709551616",
        "9223372036854775808",
        "1 1",
        "1]",
        "1],[1",
        "\\u0031",
        "1\t",
        "\x00",
    ),
)


@settings(max_examples=settings().max_examples * 2)
@given(data=st.data(), datatype=st.sampled_from(["FP32", "FP64", "INT64", "INT8", "UINT16"]), rows=st.integers(1, 2))
def test_a_body_that_differs_from_the_one_before_in_its_numbers_alone_is_read_as_the_general_codec_does(
    data: st.DataObject, datatype: str, rows: int
) -> None:
    contract = Contract((TensorSpec("x", datatype, (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),), batched=True)
    reader = Reader(contract, LIMITS, "m", refuse_nonfinite=False)
    space, tail = (
        data.draw(st.sampled_from(["", " "])),
        data.draw(st.sampled_from(["}]}", " }] }", ',"a":1}]}', "}],\n}"])),
    )
    head = f'{{"inputs":[{{"name":"x","shape":[{rows},3],"datatype":"{datatype}","data":{space}['
    sent = [["1"] * 3 * rows]
    for _ in range(4):
        items = data.draw(st.lists(st.sampled_from(NUMBERS), min_size=3 * rows, max_size=3 * rows))
        if data.draw(st.booleans()):
            items[data.draw(st.integers(0, len(items) - 1))] = data.draw(st.sampled_from(NO_NUMBERS))
        sent.append(items[: data.draw(st.sampled_from([len(items)] * 5 + [len(items) - 1]))])
    bodies_sent = [Body((head + ("," + space).join(items) + "]" + tail).encode(), None) for items in sent]
    run_through(reader, contract, bodies_sent, data)


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


@given(data=st.data())
def test_a_remembered_header_never_answers_for_another_one(data: st.DataObject) -> None:
    contract = data.draw(contracts())
    reader = Reader(contract, LIMITS, "m", refuse_nonfinite=False)
    run_through(reader, contract, data.draw(twins(contract)) * 2, data)


FLOATS = Contract((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),), True)


def json_body(*values: Any, **members: Any) -> bytes:
    """A request of FLOATS, as many rows as there are pairs of values."""
    item = {"name": "x", "shape": [len(values) // 2, 2], "datatype": "FP32", "data": list(values)}
    return json.dumps({"inputs": [item], **members}, separators=(",", ":")).encode()


def binary_body(array: Array, **parameters: Any) -> Body:
    """A request of FLOATS as binary data."""
    item = {
        "name": "x",
        "shape": list(array.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": array.nbytes},
    }
    text = json.dumps({"inputs": [item], "parameters": parameters}).encode()
    return Body(text + array.tobytes(), str(len(text)))


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


def test_the_binary_header_is_read_once_and_its_values_every_time() -> None:
    reader = Reader(FLOATS, Limits(), "m", refuse_nonfinite=False)
    for values in ([[1, 2]], [[3, 4]], [[np.nan, np.inf]]):
        array = np.array(values, np.float32)
        call = read(reader, FLOATS, binary_body(array, priority=3, timeout=1500, nonfinite="literal"))
        assert isinstance(call, Call)
        assert same(rows_of(call)[0], array)
        assert (call.priority, call.timeout_s, call.literal) == (2, 0.0015, True)
        assert call.outputs == (OutputRequest("y", False),)


@pytest.mark.parametrize("padding", [0, MAX_HEADER_BYTES])
def test_as_many_headers_are_remembered_as_there_is_room_for(padding: int) -> None:
    """1. More headers than are remembered come, each of its own. 2. They come again. Result: each is read right."""
    reader = Reader(FLOATS, Limits(max_text=1 << 20), "m", refuse_nonfinite=False)
    for _ in range(2):
        for number in range(MAX_HEADERS + 3):
            array = np.full((1, 2), number, np.float32)
            call = read(reader, FLOATS, binary_body(array, comment="." * padding, number=number, timeout=1 + number))
            assert isinstance(call, Call)
            assert same(rows_of(call)[0], array)
            assert call.timeout_s == (1 + number) / 1e6
            assert call.block is not None
            reader.release(call.block)
    assert len(reader._headers) <= MAX_HEADERS
    assert not padding or not reader._headers, "a long header is not kept"


IDS = (
    '"a",',
    ' "a", ',
    ' "0123456789-a:{[b]},c",',
    '"0123456789 123456789",',
    '"0123456789 1234567890",',
    '"",',
    '"a" ,',
    '"a"',
    '"a",,',
    '"a"}, {',
    '"\\u0041",',
    '"a\\"b",',
    '"\u00e9",',
    '"\x7f",',
    '"\t",',
    '"a","id":"b",',
    '"a", "comment": 1,',
    "5,",
    "null,",
    "{},",
    "",
)
"""What stands between `{"id":` and the other members: ids as clients write them, and what is none."""


@pytest.mark.parametrize("late", ["", ',"id":"z"'])
@pytest.mark.parametrize("is_binary", [False, True])
@pytest.mark.parametrize("text", IDS)
def test_a_request_that_begins_with_an_id_is_read_or_refused_as_the_general_codec_does(
    text: str, is_binary: bool, late: str
) -> None:
    """1. The request comes without an id. 2. It comes with one in front, twice, and with another. Both forms of a
    request are remembered by what stands around the numbers, so that its id must not be.
    """
    reader = Reader(FLOATS, LIMITS, "m", refuse_nonfinite=False)
    plain = binary_body(np.array([[1, 2]], np.float32)) if is_binary else Body(json_body(1.0, 2.0), None)
    size = int(plain.header) if plain.header else len(plain.body)
    members = plain.body[1:size].decode()[:-1] + late + "}"
    for front in ("", f'"id":{text}', f'"id":{text}', '"id": "other",'):
        part = ("{" + front + members).encode()
        body = Body(part + plain.body[size:], str(len(part)) if plain.header else None)
        assert_agree(read(reader, FLOATS, body), general(body, FLOATS), reader)


@pytest.mark.parametrize("is_binary", [False, True])
def test_a_new_id_does_not_make_a_request_slow(is_binary: bool) -> None:
    """What was read once is remembered without its id: the general codec does not see the next one."""
    reader = Reader(FLOATS, LIMITS, "m", refuse_nonfinite=False)
    plain = binary_body(np.array([[1, 2]], np.float32)) if is_binary else Body(json_body(1.0, 2.0), None)
    with patch.object(reader_module.oip, "decode", wraps=decode) as decoded:
        for number in range(MAX_HEADERS + 3):
            front = f'"id": "number {number}", '.encode()
            header = str(int(plain.header) + len(front)) if plain.header else None
            call = read(reader, FLOATS, Body(b"{" + front + plain.body[1:], header))
            assert isinstance(call, Call)
            assert (call.id, call.noted) == (f"number {number}", True)
            assert rows_of(call)[0].tolist() == [[1, 2]]
            assert call.block is not None
            reader.release(call.block)
    assert decoded.call_count == is_binary


@pytest.mark.parametrize(
    "members",
    [
        {"outputs": [{"name": "y"}]},
        {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
        {"outputs": [{"name": "y", "parameters": {"classification": 1}}], "parameters": {"binary_data_output": True}},
        {"parameters": {"priority": 1, "timeout": 1500, "nonfinite": "literal", "data": 5}},
        {"parameters": {"priority": 3, "note": "[1,2]"}},
        {"comment": {"data": "x"}},
    ],
)
@pytest.mark.parametrize("is_first", [False, True])
def test_a_request_with_wishes_is_read_once_and_its_numbers_every_time(members: dict[str, Any], is_first: bool) -> None:
    """1. It comes again and again with other numbers and another id. 2. What comes is no number, or one too many.
    Result: each is what the general codec says, which is not asked while all is well.
    """
    reader = Reader(FLOATS, LIMITS, "m", refuse_nonfinite=False)
    item = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": "HERE"}
    parts = {**members, "inputs": [item]} if is_first else {"inputs": [item], **members}
    text = json.dumps({"id": "ID", **parts})
    asked = []
    with patch.object(reader_module.oip, "decode", wraps=decode) as decoded:
        for number, values in enumerate(
            ["[1,2]", "[3.5, -1e3]", "[0, 7]", "[true, 1]", "[1]", "[null, 1]", "[[1, 2]]"]
        ):
            body = Body(text.replace('"HERE"', values).replace("ID", f"n{number}").encode(), None)
            assert_agree(read(reader, FLOATS, body), general(body, FLOATS), reader)
            asked.append(decoded.call_count)
    keeps = "data" not in members.get("parameters", {}) and "comment" not in members
    assert (asked[2] == 1) == keeps
    assert asked[-1] > asked[2]


@pytest.mark.parametrize("key", ['"data":', '"data" :', '"data"\n:', '"dat\\u0061":'])
@pytest.mark.parametrize("other", ['"data":', '"data" :', '"dat\\u0061":'])
@pytest.mark.parametrize("is_first", [False, True])
def test_numbers_that_mean_nothing_are_not_taken_for_those_of_the_tensor(key: str, other: str, is_first: bool) -> None:
    """1. A request has a second list by the name of data, beside its tensor. 2. It comes again, and with others."""
    reader = Reader(FLOATS, LIMITS, "m", refuse_nonfinite=False)
    for number in (0, 0, 1, 1, 2, 2):
        tensor = f'"inputs":[{{"name":"x","shape":[1,2],"datatype":"FP32",{key}[{number // 2},1]}}]'
        comment = f'"comment":{{{other}[7,{number}]}}'
        body = Body(("{" + ",".join([comment, tensor] if is_first else [tensor, comment]) + "}").encode(), None)
        assert_agree(read(reader, FLOATS, body), general(body, FLOATS), reader)


def test_a_tensor_by_the_name_of_data_is_remembered_too() -> None:
    contract = Contract((TensorSpec("data", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),), batched=True)
    reader = Reader(contract, LIMITS, "m", refuse_nonfinite=False)
    for number in range(3):
        item = {"name": "data", "shape": [1, 2], "datatype": "FP32", "data": [number, 1]}
        body = Body(json.dumps({"inputs": [item], "outputs": [{"name": "y"}]}).encode(), None)
        with patch.object(reader_module.oip, "decode", wraps=decode) as decoded:
            got = read(reader, contract, body)
        assert_agree(got, general(body, contract), reader)
        assert decoded.call_count == (number == 0)


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
