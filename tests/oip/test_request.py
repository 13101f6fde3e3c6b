"""Infer requests, written by tritonclient or damaged by hypothesis, and read by the codec."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from gateway.errors import ClientError, InvalidRequest
from gateway.oip.datatypes import DATATYPES
from gateway.oip.limits import Limits
from gateway.oip.request import decode, json_length, rows
from gateway.types import Array, Contract, InferRequest, OutputRequest, TensorSpec
from tests.oip import corpus
from tests.oip.arrays import IN_JSON, arrays, same

LIMITS = Limits()
FREE = st.lists(st.integers(0, 3), min_size=2, max_size=2).map(tuple)


def contract_of(**inputs: str) -> Contract:
    """Inputs of free 2-d shape and outputs ``<name>_out`` of the same datatypes."""
    specs = tuple(TensorSpec(name, datatype, (-1, -1)) for name, datatype in inputs.items())
    return Contract(specs, tuple(TensorSpec(f"{spec.name}_out", spec.datatype, (-1, -1)) for spec in specs))


def to_input(name: str, array: Array, datatype: str, *, binary: bool) -> InferInput:
    """The array as tritonclient sends it."""
    sent = InferInput(name, list(array.shape), datatype)
    if datatype == "BF16":
        sent.set_data_from_numpy(array.view(ml_dtypes.bfloat16), binary_data=binary)
    elif datatype == "BYTES":
        strings = np.array([text.encode() for text in array.ravel()], dtype=object).reshape(array.shape)
        sent.set_data_from_numpy(strings, binary_data=binary)
    else:
        sent.set_data_from_numpy(array, binary_data=binary)
    return sent


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_binary_requests_of_tritonclient_arrive_bit_for_bit(datatype: str, data: st.DataObject) -> None:
    left, right = data.draw(arrays(datatype, FREE)), data.draw(arrays("INT16", FREE))
    inputs = [to_input("a", left, datatype, binary=True), to_input("b", right, "INT16", binary=True)]
    if data.draw(st.booleans()):
        inputs.reverse()
    body, length = InferenceServerClient.generate_request_body(inputs, request_id="r", timeout=2_500_000)
    request = decode(body, None if length is None else str(length), contract_of(a=datatype, b="INT16"), LIMITS, "m")
    assert list(request.inputs) == ["a", "b"]
    assert same(request.inputs["a"], left)
    assert same(request.inputs["b"], right)
    assert request.id == "r"
    assert request.timeout_s == 2.5
    assert request.outputs == (OutputRequest("a_out", True), OutputRequest("b_out", True))


@pytest.mark.parametrize("datatype", IN_JSON)
@given(data=st.data())
def test_json_requests_of_tritonclient_arrive_as_they_were(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype, FREE))
    if datatype.startswith("FP"):
        array = np.nan_to_num(array)  # a bare NaN is no JSON
    other = data.draw(arrays("FP16", FREE))
    inputs = [to_input("a", array, datatype, binary=False), to_input("b", other, "FP16", binary=True)]
    outputs = [InferRequestedOutput("b_out"), InferRequestedOutput("a_out", binary_data=False)]
    body, length = InferenceServerClient.generate_request_body(inputs, outputs=outputs)
    request = decode(body, None if length is None else str(length), contract_of(a=datatype, b="FP16"), LIMITS, "m")
    assert same(request.inputs["a"], array)
    assert same(request.inputs["b"], other)
    assert request.outputs == (OutputRequest("b_out", True), OutputRequest("a_out", False))


@given(arrays("FP32", st.just((1, 4))))
def test_a_raw_body_is_one_row(array: Array) -> None:
    request = decode(array.tobytes(), "0", corpus.MODELS["echo"], LIMITS, "echo")
    assert same(request.inputs["x"], array)
    assert request.outputs == (OutputRequest("y", True),)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_raw_body_of_strings_is_one_string(text: str) -> None:
    request = decode(text.encode(), "0", corpus.MODELS["string"], LIMITS, "string")
    assert request.inputs["x"].tolist() == [text]


def test_a_raw_body_gives_the_length_of_the_only_free_axis() -> None:
    contract = Contract((TensorSpec("x", "INT16", (2, -1)),), ())
    assert decode(bytes(12), "0", contract, LIMITS, "m").inputs["x"].shape == (2, 3)
    with pytest.raises(InvalidRequest, match="needs 12"):
        decode(bytes(13), "0", contract, LIMITS, "m")
    with pytest.raises(InvalidRequest, match="at most one free axis"):
        decode(bytes(12), "0", Contract((TensorSpec("x", "INT16", (-1, -1)),), ()), LIMITS, "m")
    with pytest.raises(InvalidRequest, match="one string"):
        decode(b"ab", "0", Contract((TensorSpec("x", "BYTES", (2,)),), ()), LIMITS, "m")


@given(st.text(max_size=8) | st.integers().map(str), st.integers(0, 1000))
def test_a_header_length_is_an_integer_within_the_body_or_refused(header: str, body_length: int) -> None:
    text = header.strip()
    if text.isascii() and text.isdigit() and int(text) <= body_length:
        assert json_length(header, body_length) == int(text)
        return
    with pytest.raises(InvalidRequest) as refused:
        json_length(header, body_length)
    assert refused.value.field == "Inference-Header-Content-Length"


def test_rows_are_counted_on_batch_axes_only() -> None:
    batched, plain = corpus.MODELS["two_inputs"], contract_of(a="FP32")
    assert rows({"a": np.zeros((3, 2)), "b": np.zeros((3, 1))}, batched) == 3
    assert rows({"a": np.zeros((0, 2)), "b": np.zeros((0, 1))}, batched) == 0
    assert rows({"a": np.zeros((3, 2))}, plain) == 1
    with pytest.raises(InvalidRequest) as refused:
        rows({"b": np.zeros((3, 1)), "a": np.zeros((2, 2))}, batched)
    assert refused.value.field == "inputs[1].shape[0]"


def test_absent_and_null_members_mean_the_same() -> None:
    document = {**corpus.GOOD, "id": None, "parameters": None, "outputs": None, "model_name": "echo", "extra": [1, {}]}
    request = decode(json.dumps(document).encode(), None, corpus.MODELS["echo"], LIMITS, "echo")
    plain = decode(json.dumps(corpus.GOOD).encode(), None, corpus.MODELS["echo"], LIMITS, "echo")
    assert (
        (request.id, request.parameters, request.outputs)
        == (plain.id, plain.parameters, plain.outputs)
        == (
            "",
            {},
            (OutputRequest("y", False),),
        )
    )


def test_limits_are_exact() -> None:
    limits = Limits(max_text=4, max_elements=8, max_tensors=1, max_json_depth=4)
    contract = corpus.MODELS["echo"]

    def read(**changes: Any) -> InferRequest:
        return decode(json.dumps({**corpus.GOOD, **changes}).encode(), None, contract, limits, "echo")

    two_rows = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [[1] * 4] * 2}
    assert read(id="four", parameters={"kkkk": "vvvv"}, extra=[[[]]]).id == "four"
    for changes, field in (
        ({"id": "fives"}, "id"),
        ({"parameters": {"kkkkk": 1}}, "parameters.kkkkk"),
        ({"parameters": {"k": "vvvvv"}}, "parameters.k"),
        ({"extra": [[[[]]]]}, "$"),
        ({"inputs": [two_rows]}, "$"),
        ({"inputs": [{**two_rows, "shape": [3, 4], "data": [1] * 12}]}, "inputs[0].shape"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "outputs"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            read(**changes)
        assert refused.value.field == field


# -- nothing but a ClientError, whatever arrives

BINARY = (
    b'{"id":"i","parameters":{"timeout":5,"binary_data_output":true},"inputs":['
    b'{"name":"b","shape":[2,1],"datatype":"INT64","data":[[1],[2]]},'
    b'{"name":"a","shape":[2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}],'
    b'"outputs":[{"name":"c","parameters":{"classification":1}},{"name":"d","parameters":{"binary_data":false}}]}'
)
DOCUMENT = json.loads(BINARY.replace(b'"parameters":{"binary_data_size":16}', b'"data":[[1.5,null],[-2,3e5]]'))
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["a", "y", "FP32"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "a", "shape"]), inner, max_size=2)
    ),
    max_leaves=5,
)


def attempt(body: bytes, header: str | None, model: str) -> None:
    """Decode; anything but a request or a refusal that names its field fails the test."""
    contract = corpus.MODELS[model]
    refusal: ClientError | None = None
    try:
        request = decode(body, header, contract, LIMITS, model)
    except ClientError as error:
        refusal = error
    if refusal is not None:
        assert refusal.status == 400
        assert refusal.code in ("invalid-request", "invalid-json")
        assert refusal.field
        assert len(refusal.message.encode()) < 2000
        return
    for spec in contract.inputs:
        assert request.inputs[spec.name].dtype == DATATYPES[spec.datatype].dtype


@given(
    st.binary(max_size=200),
    st.none() | st.integers(-2, 202).map(str) | st.text(max_size=5),
    st.sampled_from(sorted(corpus.MODELS)),
)
def test_random_bytes_are_refused_or_read(body: bytes, header: str | None, model: str) -> None:
    attempt(body, header, model)


@given(
    st.lists(
        st.tuples(st.integers(0, len(BINARY) + 15), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=4
    ),
    st.booleans(),
)
def test_a_damaged_binary_request_is_refused_or_read(damages: list[tuple[int, bytes, int]], fitting: bool) -> None:
    body = bytearray(BINARY + np.arange(4, dtype="<f4").tobytes())
    for at, piece, cut in damages:
        body[at : at + cut] = piece
    attempt(bytes(body), str(max(0, len(body) - 16) if fitting else len(BINARY)), "two_inputs")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from places(member, (*path, key))


PLACES = list(places(DOCUMENT))[1:]


@given(st.lists(st.tuples(st.sampled_from(PLACES), ANY, st.booleans()), min_size=1, max_size=3))
def test_a_request_with_any_value_anywhere_is_refused_or_read(changes: list[tuple[tuple[Any, ...], Any, bool]]) -> None:
    document = copy.deepcopy(DOCUMENT)
    for path, value, remove in changes:
        parent = document
        try:
            for key in path[:-1]:
                parent = parent[key]
            if remove:
                del parent[path[-1]]
            else:
                parent[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took this place away
    attempt(json.dumps(document).encode(), None, "two_inputs")


def test_the_documents_that_are_damaged_are_good_ones() -> None:
    decode(json.dumps(DOCUMENT).encode(), None, corpus.MODELS["two_inputs"], LIMITS, "two_inputs")
    blob = np.arange(4, dtype="<f4").tobytes()
    request = decode(BINARY + blob, str(len(BINARY)), corpus.MODELS["two_inputs"], LIMITS, "two_inputs")
    assert request.inputs["a"].tobytes() == blob
    assert request.outputs == (OutputRequest("c", True, 1), OutputRequest("d", False))
