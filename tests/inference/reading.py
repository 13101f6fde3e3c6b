"""Reading requests with a reader, and with the general codec that it must agree with."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

from hypothesis import strategies as st

from gateway.errors import ClientError
from gateway.inference import reader as reader_module
from gateway.inference.call import Call
from gateway.inference.reader import LONG_BODY, MANY_NUMBERS, Reader
from gateway.oip.request import decode
from gateway.types import Array, Contract, InferRequest, TensorSpec
from tests.inference.bodies import LIMITS, Body
from tests.inference.fakes import call_of, rows_of, servable
from tests.oip.arrays import same

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
