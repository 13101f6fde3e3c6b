"""What a request asks for is compared with the limits and with what was sent before memory is taken for it."""

from __future__ import annotations

import gzip
import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import ClientError, PayloadTooLarge
from gateway.oip.compression import inflate
from gateway.oip.limits import Limits
from gateway.oip.request import decode
from tests.oip import corpus

MIB = 1 << 20
GENEROUS = Limits(max_elements=1 << 40)
"""With the limit on elements out of the way only what was really sent stands against a huge shape."""


def peak_bytes(act: Callable[[], object]) -> tuple[ClientError, int]:
    """What `act` is refused with, and the most memory that was taken meanwhile."""
    error: ClientError | None = None
    tracemalloc.start()
    try:
        act()
    except ClientError as refused:
        error = refused
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert error is not None, "it was not refused"
    return error, peak


def request(shape: list[int], datatype: str, model: str, **members: Any) -> tuple[bytes, str]:
    item = {"name": "x", "shape": shape, "datatype": datatype, **members}
    return json.dumps({"inputs": [item]}).encode(), model


def sized(size: int) -> dict[str, Any]:
    return {"parameters": {"binary_data_size": size}}


SHAPES = {
    "json_of_a_billion": request([250_000_000, 4], "FP32", "echo", data=[1, 2, 3, 4]),
    "json_of_2_to_the_62": request([1 << 60, 4], "FP32", "echo", data=[1, 2, 3, 4]),
    "json_of_no_elements_on_a_huge_axis": request([1 << 39], "INT64", "int64", data=[]),
    "nested_json_of_a_billion": request([250_000_000, 4], "FP32", "echo", data=[[1, 2, 3, 4]]),
    "strings_of_a_billion": request([1_000_000_000], "BYTES", "string", data=["a"]),
    "binary_of_a_billion": request([250_000_000, 4], "FP32", "echo", **sized(16)),
    "binary_size_of_a_billion": request([250_000_000, 4], "FP32", "echo", **sized(4_000_000_000)),
    "binary_size_at_the_body_limit": request([2 * MIB], "FP64", "fp64", **sized(8 * MIB)),
    "binary_strings_of_a_billion": request([1_000_000_000], "BYTES", "string", **sized(16)),
    "binary_booleans_of_a_billion": request([1_000_000_000], "BOOL", "bool", **sized(16)),
    "half_floats_of_a_billion": request([250_000_000, 4], "FP16", "fp16", **sized(16)),
}


@pytest.mark.parametrize("limits", [Limits(), GENEROUS], ids=["default", "generous"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_huge_tensor_takes_no_memory(name: str, limits: Limits) -> None:
    text, model = SHAPES[name]
    body = text + bytes(16)
    header = str(len(text)) if b"binary_data_size" in text else None
    error, peak = peak_bytes(lambda: decode(body if header else text, header, corpus.MODELS[model], limits, model))
    assert error.status == 400
    assert peak < MIB


def test_a_huge_string_takes_no_memory() -> None:
    text, model = request([1], "BYTES", "string", **sized(16))
    for length in (13, 1 << 20, (1 << 32) - 1):
        body = text + struct.pack("<I", length) + bytes(12)
        error, peak = peak_bytes(lambda body=body: decode(body, str(len(text)), corpus.MODELS[model], Limits(), model))
        assert error.field == "inputs[0].parameters.binary_data_size"
        assert peak < MIB


def test_a_raw_body_for_a_huge_contract_takes_no_memory() -> None:
    body = bytes(MIB)
    _, peak = peak_bytes(lambda: decode(body, "0", corpus.MODELS["echo"], Limits(), "echo"))
    assert peak < MIB


def test_the_binary_part_is_not_copied_before_it_is_checked() -> None:
    text, model = request([2, 4], "FP32", "echo", **sized(16))
    body = text + bytes(8 * MIB - len(text))
    for header in (str(len(text)), "99999999999"):
        _, peak = peak_bytes(lambda header=header: decode(body, header, corpus.MODELS[model], Limits(), model))
        assert peak < MIB


def test_deep_nesting_takes_no_more_than_sixteen_times_the_body() -> None:
    body = b"[" * 200_000
    _, peak = peak_bytes(lambda: decode(body, None, corpus.MODELS["echo"], Limits(), "echo"))
    assert peak < 16 * len(body)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("limit", [MIB, 8 * MIB])
def test_a_bomb_takes_the_limit_and_little_more(coding: str, limit: int) -> None:
    # 100 KiB that would be 100 MiB: more than a thousandfold is not in the format.
    stream = zlib.compressobj(9, wbits=zlib.MAX_WBITS | (16 if coding == "gzip" else 0))
    bomb = b"".join([*(stream.compress(bytes(MIB)) for _ in range(100)), stream.flush()])
    assert len(bomb) < 110_000
    error, peak = peak_bytes(lambda: inflate(bomb, coding, limit))
    assert isinstance(error, PayloadTooLarge)
    assert peak < limit + 2 * MIB + MIB // 2


def test_a_bomb_of_many_members_takes_the_limit_and_little_more() -> None:
    bomb = gzip.compress(bytes(MIB), mtime=0) * 30
    error, peak = peak_bytes(lambda: inflate(bomb, "gzip", 8 * MIB))
    assert isinstance(error, PayloadTooLarge)
    assert peak < 8 * MIB + 2 * MIB + MIB // 2


def test_a_bomb_inside_a_bomb_is_not_opened() -> None:
    bomb = gzip.compress(gzip.compress(bytes(64 * MIB)))
    inner = inflate(bomb, "gzip", 8 * MIB)
    error, peak = peak_bytes(lambda: decode(inner, None, corpus.MODELS["echo"], Limits(), "echo"))
    assert error.field == "$"
    assert peak < MIB


HOSTILE = {
    "second_key_among_lists": b'{"id":1,"id":2,"a":[%b1]}' % (b"[]," * 300_000),
    "escaped_colon_before_lists": b'{"\\u003a":1,"a":[%b1]}' % (b"[]," * 300_000),
    "lists_behind_a_number": b'{"a":[1,%b1]}' % (b"[]," * 300_000),
    "objects": b'{"a":[%b1]}' % (b'{"a":1},' * 110_000),
    "keys": b"{%b}" % b",".join(b'"%06d":1' % index for index in range(80_000)),
    "escaped_keys": b"{%b}" % b",".join(b'"\\u003a%05d":1' % index for index in range(60_000)),
    "backslashes": b'{"a":"%b"}' % (b"\\\\" * 450_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_json_that_is_slow_to_read_takes_no_more_than_its_values_do(name: str) -> None:
    body = HOSTILE[name]
    error, peak = peak_bytes(lambda: decode(body, None, corpus.MODELS["echo"], Limits(), "echo"))
    assert error.status == 400
    # A list of no elements is 3 bytes of text and 64 of memory.
    assert peak < 48 * len(body)
