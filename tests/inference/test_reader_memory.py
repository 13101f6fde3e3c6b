"""What the reader remembers of requests never answers for another one."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.inference import reader as reader_module
from gateway.inference.call import Call
from gateway.inference.reader import MAX_HEADER_BYTES, MAX_HEADERS, Reader
from gateway.oip.limits import Limits
from gateway.oip.request import decode
from gateway.types import Contract, OutputRequest, TensorSpec
from tests.inference.bodies import LIMITS, Body, contracts, twins
from tests.inference.fakes import rows_of
from tests.inference.reading import FLOATS, assert_agree, binary_body, general, json_body, read, run_through
from tests.oip.arrays import same

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


@given(data=st.data())
def test_a_remembered_header_never_answers_for_another_one(data: st.DataObject) -> None:
    contract = data.draw(contracts())
    reader = Reader(contract, LIMITS, "m", refuse_nonfinite=False)
    run_through(reader, contract, data.draw(twins(contract)) * 2, data)


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
