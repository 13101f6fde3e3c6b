"""Replies, read back by tritonclient and by a strict JSON parser."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient

from gateway.oip.datatypes import DATATYPES, is_float, nonfinite_count
from gateway.oip.jsontext import parse_object
from gateway.oip.response import Reply, classify, encode
from gateway.types import Array, Contract, InferRequest, InferResponse, OutputRequest, Scalar, TensorSpec
from tests.oip.arrays import IN_JSON, arrays, same

SCORES = sorted(set(DATATYPES) - {"BOOL", "BYTES", "BF16"})


def reply_of(
    tensors: dict[str, tuple[str, Array]],
    *outputs: OutputRequest,
    parameters: dict[str, Scalar] | None = None,
    batched: bool = False,
    labels: dict[str, list[str]] | None = None,
) -> Reply:
    """The reply of a model whose outputs are `tensors`, to a request for `outputs`."""
    contract = Contract((), tuple(TensorSpec(name, datatype, None) for name, (datatype, _) in tensors.items()), batched)
    request = InferRequest("the id", parameters or {}, {}, outputs, 1)
    response = InferResponse("m", 7, tuple(tensors[output.name][1] for output in outputs))
    return encode(request, response, contract, {"prediction_id": "p"}, labels or {})


def document_of(reply: Reply) -> Any:
    return parse_object(reply.body[: reply.header_length], 100)


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_tritonclient_reads_what_is_encoded(datatype: str, data: st.DataObject) -> None:
    left, right = data.draw(arrays(datatype)), data.draw(arrays("INT32"))
    binary = data.draw(st.booleans()) or datatype not in IN_JSON
    outputs = [OutputRequest("y", binary), OutputRequest("z", data.draw(st.booleans()))]
    if data.draw(st.booleans()):
        outputs.reverse()
    reply = reply_of({"y": (datatype, left), "z": ("INT32", right)}, *outputs)
    result = InferenceServerClient.parse_response_body(reply.body, header_length=reply.header_length)
    document = result.get_response()
    assert [each["name"] for each in document["outputs"]] == [output.name for output in outputs]
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "7", "the id")
    assert document["parameters"] == {"prediction_id": "p"}
    assert result.get_output("y")["shape"] == list(left.shape)
    # For an output of no bytes tritonclient returns None where it should return an empty array.
    read = result.as_numpy("z")
    assert read is None or same(read, right)
    read = result.as_numpy("y")
    if binary:
        assert result.get_output("y")["parameters"] == {"binary_data_size": binary_size(datatype, left)}
        assert "data" not in result.get_output("y")
        if read is not None:
            check_binary(datatype, read, left)
    else:
        assert "parameters" not in result.get_output("y")
        expected = left
        if is_float(datatype):
            expected = np.where(np.isfinite(left), left, np.nan).astype(left.dtype)
        assert read is not None
        assert read.shape == left.shape
        assert np.array_equal(read.astype(left.dtype), expected, equal_nan=is_float(datatype))


def binary_size(datatype: str, array: Array) -> int:
    if datatype == "BYTES":
        return sum(4 + len(text.encode()) for text in array.ravel())
    return array.size * DATATYPES[datatype].size


def check_binary(datatype: str, read: Array, sent: Array) -> None:
    if datatype == "BYTES":
        assert [text.decode() for text in read.ravel()] == sent.ravel().tolist()
    elif datatype == "BF16":
        # tritonclient widens to float32; the upper half are the bits.
        assert ((read.astype("<f4").view("<u4") >> 16).astype("<u2") == sent).all()
    else:
        assert same(read, sent)
    assert read.shape == sent.shape


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@given(data=st.data())
def test_nonfinite_values_are_null_and_counted(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    reply = reply_of({"y": (datatype, array)}, OutputRequest("y", False))
    assert reply.header_length is None
    flat = document_of(reply)["outputs"][0]["data"]
    assert [value is None for value in flat] == [not math.isfinite(value) for value in array.ravel().tolist()]
    assert reply.nonfinite == flat.count(None) == nonfinite_count(array, datatype)


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@given(data=st.data())
def test_nonfinite_values_are_bare_where_the_client_asks_for_it(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    reply = reply_of({"y": (datatype, array)}, OutputRequest("y", False), parameters={"nonfinite": "literal"})
    flat = json.loads(reply.body)["outputs"][0]["data"]
    # NaN is written as NaN, whatever its payload was.
    expected = np.where(np.isnan(array), np.nan, array).astype(array.dtype).ravel()
    assert np.array(flat, array.dtype).tobytes() == expected.tobytes() or np.array_equal(
        np.array(flat, array.dtype), expected, equal_nan=True
    )
    assert reply.nonfinite == nonfinite_count(array, datatype)


def test_nonfinite_values_in_binary_data_are_exact_and_not_counted() -> None:
    array = np.array([np.nan, np.inf, -np.inf, -0.0], "<f4")
    reply = reply_of({"y": ("FP32", array)}, OutputRequest("y", True))
    assert reply.nonfinite == 0
    assert reply.body[reply.header_length :] == array.tobytes()


def test_without_binary_bytes_there_is_no_header_length() -> None:
    reply = reply_of({"y": ("FP32", np.zeros((0, 3), "<f4"))}, OutputRequest("y", True))
    assert reply.header_length is None
    assert document_of(reply)["outputs"][0]["parameters"] == {"binary_data_size": 0}


def naive_classes(scores: Array, top: int, labels: list[str]) -> list[str]:
    """The definition, word for word: highest first, equal ones by index, NaN last."""
    left = list(enumerate(scores.ravel().tolist()))
    found = []
    while left and len(found) < top:
        numbers = [each for each in left if each[1] == each[1]] or left
        highest = max(value for _, value in numbers) if numbers is not left else None
        index, value = next(each for each in numbers if highest is None or each[1] == highest)
        left.remove((index, value)) if value == value else left.pop(
            next(i for i, e in enumerate(left) if e[0] == index)
        )
        text = f"{value}" if isinstance(value, int) else f"{value:f}"
        found.append(f"{text}:{index}" + (f":{labels[index]}" if index < len(labels) else ""))
    return found


@pytest.mark.parametrize("datatype", SCORES)
@given(data=st.data())
def test_classes_are_what_the_definition_says(datatype: str, data: st.DataObject) -> None:
    scores = data.draw(arrays(datatype))
    if scores.size and data.draw(st.booleans()):
        scores = np.where(scores == scores, scores.ravel()[0], scores).astype(scores.dtype)  # many equal ones
    top = data.draw(st.integers(1, 5))
    labels = data.draw(st.sampled_from([[], ["cat"], ["cat", "dog", "cow", "bee"]]))
    whole = classify(scores, top, False, labels)
    assert whole.tolist() == naive_classes(scores, top, labels)
    if scores.ndim:
        by_row = classify(scores, top, True, labels)
        assert by_row.shape == (scores.shape[0], min(top, math.prod(scores.shape[1:])))
        assert by_row.tolist() == [naive_classes(row, top, labels) for row in scores]


def test_integers_that_doubles_confuse_are_told_apart() -> None:
    scores = np.array([(1 << 63) - 2, (1 << 63) - 1, -(1 << 63)], "<i8")
    assert classify(scores, 3, False, ()).tolist() == [
        "9223372036854775807:1",
        "9223372036854775806:0",
        "-9223372036854775808:2",
    ]
    assert classify(np.array([0, (1 << 64) - 1], "<u8"), 1, False, ()).tolist() == ["18446744073709551615:1"]


@pytest.mark.parametrize("binary", [True, False])
def test_classes_travel_as_strings_of_their_own_shape(binary: bool) -> None:
    scores = np.array([[0.25, 0.75], [0.5, 0.5]], "<f4")
    reply = reply_of(
        {"y": ("FP32", scores)}, OutputRequest("y", binary, 1), batched=True, labels={"y": ["late", "on time"]}
    )
    result = InferenceServerClient.parse_response_body(reply.body, header_length=reply.header_length)
    output = result.get_output("y")
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 1])
    read = result.as_numpy("y")
    assert read is not None
    texts = [each.decode() if isinstance(each, bytes) else each for each in read.ravel()]
    assert texts == ["0.750000:1:on time", "0.500000:0:late"]


@pytest.mark.parametrize("shape", [(0, 3), (0,), (3, 0), (0, 0)])
def test_classes_of_no_scores_are_no_classes(shape: tuple[int, ...]) -> None:
    reply = reply_of({"y": ("FP32", np.zeros(shape, "<f4"))}, OutputRequest("y", False, 2), batched=True)
    output = document_of(reply)["outputs"][0]
    assert output["data"] == []
    assert output["shape"] == [shape[0], min(2, math.prod(shape[1:]))]
