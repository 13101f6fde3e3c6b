"""tritonclient's HTTP clients, sync and asyncio: every way to ask a model of a running server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio

from tests.clients.conftest import ECHOES, EXAMPLES
from tests.clients.triton import InferRequestedOutput, SyncClient, refusal, tensor
from tests.servers import Server

# The asyncio client's health calls drop their reply without reading it.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")


PAIR = np.arange(8, dtype=np.int32).reshape(2, 4)
SAMPLES = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 1, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 65535]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-(2**15), 0, 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**53 + 1, 2**63 - 1]], np.int64),
    "FP16": np.array([[-65504, 0.1, np.inf]], np.float16),
    "FP32": np.array([[-3.4028235e38, 0.1, 1e-45]], np.float32),
    "FP64": np.array([[-1.7976931348623157e308, 0.1, 5e-324]], np.float64),
    "BF16": np.array([[-1.5, 0.1, np.inf]], ml_dtypes.bfloat16),
    "BYTES": np.array([[b"", b"plain", "Zürich \U0001f6f0".encode()]], dtype=object),
}
IN_JSON = sorted(SAMPLES.keys() - {"FP16", "BF16"})


def sum_and_difference(client: Any, binary_a: bool, binary_b: bool, **options: Any) -> Any:
    return client.infer("sum_and_difference", [tensor("a", PAIR, binary_a), tensor("b", PAIR, binary_b)], **options)


@pytest.mark.parametrize("binary_a", [True, False])
@pytest.mark.parametrize("binary_b", [True, False])
@pytest.mark.parametrize("binary_sum", [True, False])
@pytest.mark.parametrize("binary_difference", [True, False])
def test_inputs_and_outputs_travel_as_binary_as_json_and_mixed(
    client: Any, binary_a: bool, binary_b: bool, binary_sum: bool, binary_difference: bool
) -> None:
    """The C++ client takes for granted that an output's `parameters`, where there are any, hold `binary_data_size`."""
    outputs = [
        InferRequestedOutput("sum", binary_data=binary_sum),
        InferRequestedOutput("difference", binary_data=binary_difference),
    ]
    result = sum_and_difference(client, binary_a, binary_b, outputs=outputs)
    np.testing.assert_array_equal(result.as_numpy("sum"), PAIR + PAIR, strict=True)
    np.testing.assert_array_equal(result.as_numpy("difference"), PAIR - PAIR, strict=True)
    for name, binary in (("sum", binary_sum), ("difference", binary_difference)):
        output = result.get_output(name)
        assert ("data" in output) is not binary
        assert output.get("parameters") == ({"binary_data_size": PAIR.nbytes} if binary else None)


def test_without_requested_outputs_all_come_back_as_binary(client: Any) -> None:
    result = sum_and_difference(client, True, True, outputs=None)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["sum", "difference"]
    assert all("binary_data_size" in output["parameters"] for output in result.get_response()["outputs"])
    np.testing.assert_array_equal(result.as_numpy("sum"), PAIR + PAIR, strict=True)


def test_only_the_requested_outputs_come_back_in_the_order_of_the_request(client: Any) -> None:
    result = sum_and_difference(client, True, True, outputs=[InferRequestedOutput("difference")])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["difference"]
    assert result.as_numpy("sum") is None
    outputs = [InferRequestedOutput("difference"), InferRequestedOutput("sum")]
    result = sum_and_difference(client, True, True, outputs=outputs)
    np.testing.assert_array_equal(result.as_numpy("sum"), PAIR + PAIR, strict=True)
    np.testing.assert_array_equal(result.as_numpy("difference"), PAIR - PAIR, strict=True)


@pytest.mark.parametrize("datatype", sorted(ECHOES))
def test_every_datatype_makes_the_round_trip_as_binary(client: Any, datatype: str) -> None:
    array = SAMPLES[datatype]
    result = client.infer(f"echo_{datatype.lower()}", [tensor("x", array)], outputs=[InferRequestedOutput("y")])
    assert result.get_output("y")["datatype"] == datatype
    np.testing.assert_array_equal(result.as_numpy("y"), array, strict=True)


@pytest.mark.parametrize("datatype", IN_JSON)
def test_every_datatype_that_json_may_carry_makes_the_round_trip_as_json(client: Any, datatype: str) -> None:
    array = SAMPLES[datatype]
    outputs = [InferRequestedOutput("y", binary_data=False)]
    result = client.infer(f"echo_{datatype.lower()}", [tensor("x", array, binary=False)], outputs=outputs)
    # The client makes strings of JSON text and bytes of binary data.
    expected = array if datatype != "BYTES" else np.array([[text.decode() for text in array[0]]], dtype=object)
    np.testing.assert_array_equal(result.as_numpy("y"), expected, strict=True)
    assert not any(isinstance(element, list) for element in result.get_output("y")["data"])


def test_fp16_is_refused_as_json_and_named_in_the_message(client: Any) -> None:
    array = SAMPLES["FP16"][:, :2]
    status, message = refusal(client.infer, "echo_fp16", [tensor("x", array, binary=False)])
    assert status == 400
    assert "FP16" in message
    outputs = [InferRequestedOutput("y", binary_data=False)]
    status, message = refusal(client.infer, "echo_fp16", [tensor("x", array)], outputs=outputs)
    assert status == 400
    assert "FP16" in message


def test_bytes_that_are_not_utf8_are_refused_because_onnx_strings_are_text(client: Any) -> None:
    array = np.array([[b"fine", b"\xff\xfe"]], dtype=object)
    status, message = refusal(client.infer, "echo_bytes", [tensor("x", array)])
    assert status == 400
    assert "string 1 is not UTF-8" in message


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("datatype", "shape"), [("FP32", (0, 3)), ("INT64", (2, 0)), ("BYTES", (0, 0))])
def test_a_dimension_of_zero_goes_in_and_comes_out(
    client: Any, datatype: str, shape: tuple[int, int], binary: bool
) -> None:
    array = np.empty(shape, SAMPLES[datatype].dtype)
    outputs = [InferRequestedOutput("y", binary_data=binary)]
    result = client.infer(f"echo_{datatype.lower()}", [tensor("x", array, binary)], outputs=outputs)
    assert result.get_output("y")["shape"] == list(shape)
    assert result.as_numpy("y").shape == shape


def test_the_request_id_is_echoed_and_made_where_none_was_given(client: Any) -> None:
    assert sum_and_difference(client, True, True, request_id="order-66").get_response()["id"] == "order-66"
    response = sum_and_difference(client, True, True).get_response()
    assert response["id"] == response["parameters"]["prediction_id"]


def test_a_version_or_an_alias_may_stand_in_the_url_and_the_answer_names_the_version(client: Any) -> None:
    rows = [tensor(name, array) for name, array in flights_samples()[0][0].items()]
    for slot, version in (("", "1"), ("1", "1"), ("2", "2"), ("champion", "1"), ("challenger", "2")):
        assert client.infer("flights", rows, model_version=slot).get_response()["model_version"] == version


def test_priority_sequence_and_custom_parameters_are_taken(client: Any) -> None:
    result = sum_and_difference(
        client,
        True,
        True,
        priority=1,
        timeout=5_000_000,
        sequence_id="conversation",
        sequence_start=True,
        sequence_end=True,
        parameters={"shop": "north", "visit": 7, "weight": 0.5, "trial": True},
        headers={"X-Request-Id": "abc"},
        query_params={"trace": "on"},
    )
    np.testing.assert_array_equal(result.as_numpy("sum"), PAIR + PAIR, strict=True)


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compression_in_both_directions(
    client: Any, request_coding: str | None, response_coding: str | None, binary: bool
) -> None:
    result = sum_and_difference(
        client,
        binary,
        binary,
        outputs=[InferRequestedOutput("sum", binary_data=binary), InferRequestedOutput("difference", binary_data=True)],
        request_compression_algorithm=request_coding,
        response_compression_algorithm=response_coding,
    )
    np.testing.assert_array_equal(result.as_numpy("sum"), PAIR + PAIR, strict=True)
    np.testing.assert_array_equal(result.as_numpy("difference"), PAIR - PAIR, strict=True)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_the_reply_is_really_compressed(server: Server, coding: str, binary: bool) -> None:
    document = {"inputs": [{"name": "x", "shape": [1, 4096], "datatype": "INT64", "data": [7] * 4096}]}
    document["parameters"] = {"binary_data_output": binary}
    headers = {"Accept-Encoding": coding}
    status, got, body = server.request("POST", "/v2/models/echo_int64/infer", document, headers)
    assert (status, got["content-encoding"]) == (200, coding)
    assert len(body) < 4096
    length = got.get("inference-header-content-length")
    assert (length is not None) == binary
    result = SyncClient.parse_response_body(body, header_length=length, content_encoding=coding)
    np.testing.assert_array_equal(result.as_numpy("y"), np.full((1, 4096), 7), strict=True)


def test_the_top_classes_come_with_their_labels(client: Any) -> None:
    outputs = [InferRequestedOutput("probabilities", class_count=2)]
    result = client.infer("tiny", [tensor("x", np.zeros((2, 30), np.float32))], outputs=outputs)
    classes = result.as_numpy("probabilities")
    assert classes.shape == (2, 2)
    first, second = (text.decode().split(":") for text in classes[0])
    assert float(first[0]) + float(second[0]) == pytest.approx(1, abs=1e-5)
    assert float(first[0]) >= float(second[0])
    assert {first[2], second[2]} == {"malignant", "benign"}


def test_nan_comes_back_as_nan_whatever_the_format(client: Any) -> None:
    array = np.array([[1, np.nan, np.inf]], np.float32)
    for binary in (True, False):
        outputs = [InferRequestedOutput("y", binary_data=binary)]
        got = client.infer("echo_fp32", [tensor("x", array)], outputs=outputs).as_numpy("y")
        expected = array if binary else np.array([[1, np.nan, np.nan]], np.float32)
        np.testing.assert_array_equal(got, expected)


def test_nan_as_json_is_refused_with_the_way_out(client: Any) -> None:
    status, message = refusal(client.infer, "echo_fp32", [tensor("x", np.array([[np.nan]], np.float32), binary=False)])
    assert status == 400
    assert "send NaN as null, or use the binary tensor format" in message


def flights_samples() -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """The golden samples of the flights model: inputs and expected outputs by name."""
    kinds = {"FP32": np.float32, "INT64": np.int64, "BYTES": object}

    def arrays(items: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        return {item["name"]: np.array(item["data"], kinds[item["datatype"]]).reshape(item["shape"]) for item in items}

    document = json.loads((EXAMPLES / "flights" / "1" / "golden.json").read_bytes())
    return [(arrays(sample["inputs"]), arrays(sample["outputs"])) for sample in document["samples"]]


@pytest.mark.parametrize("binary", [True, False])
def test_the_flights_model_gives_its_golden_answers(client: Any, binary: bool) -> None:
    """Thirteen inputs, numbers and strings. A missing number is NaN, which tritonclient can only send as binary."""
    compared = 0
    for inputs, expected in flights_samples():
        if not binary and any(array.dtype == np.float32 and np.isnan(array).any() for array in inputs.values()):
            continue
        given = [tensor(name, array, binary) for name, array in inputs.items()]
        result = client.infer("flights", given, model_version="1")
        np.testing.assert_array_equal(result.as_numpy("label"), expected["label"])
        np.testing.assert_allclose(result.as_numpy("probabilities"), expected["probabilities"], atol=1e-5)
        compared += 1
    assert compared >= 2


def test_asynchronous_requests_of_the_sync_client_are_all_answered(server: Server) -> None:
    client = SyncClient(server.address, concurrency=4)
    try:
        pending = [
            client.async_infer("echo_int64", [tensor("x", np.full((1, 3), number))], request_id=str(number))
            for number in range(40)
        ]
        for number, request in enumerate(pending):
            result = request.get_result()
            assert result.get_response()["id"] == str(number)
            np.testing.assert_array_equal(result.as_numpy("y"), np.full((1, 3), number))
        failing = client.async_infer("picks", [tensor("index", np.array([99]))])
        assert refusal(failing.get_result)[0] == 500
    finally:
        client.close()


def test_concurrent_requests_of_the_aio_client_are_all_answered(server: Server) -> None:
    async def ask() -> list[Any]:
        async with tritonclient.http.aio.InferenceServerClient(server.address) as client:
            requests = [
                client.infer("echo_int64", [tensor("x", np.full((1, 3), number))], request_id=str(number))
                for number in range(40)
            ]
            return await asyncio.gather(*requests)

    for number, result in enumerate(asyncio.run(ask())):
        assert result.get_response()["id"] == str(number)
        np.testing.assert_array_equal(result.as_numpy("y"), np.full((1, 3), number))


@pytest.mark.parametrize("binary", [True, False])
def test_a_body_made_by_the_client_can_be_sent_by_hand_and_the_reply_parsed_by_it(server: Server, binary: bool) -> None:
    body, length = SyncClient.generate_request_body(
        [tensor("a", PAIR, binary), tensor("b", PAIR, binary)],
        outputs=[InferRequestedOutput("sum", binary_data=binary)],
        request_id="by-hand",
    )
    body = body if isinstance(body, bytes) else body.encode()
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    status, got, reply = server.request("POST", "/v2/models/sum_and_difference/infer", body, headers)
    assert status == 200
    length = got.get("inference-header-content-length")
    result = SyncClient.parse_response_body(reply, header_length=None if length is None else int(length))
    assert result.get_response()["id"] == "by-hand"
    np.testing.assert_array_equal(result.as_numpy("sum"), PAIR + PAIR, strict=True)
