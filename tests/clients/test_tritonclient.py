"""tritonclient's HTTP clients, sync and asyncio, do all that they can do against a running server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio

from tests.clients.conftest import ECHOES, EXAMPLES, MAX_BODY_BYTES
from tests.clients.triton import AioClient, InferRequestedOutput, SyncClient, refusal, tensor
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


@pytest.fixture(params=["sync", "aio"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    """A client of the shared server; every test that takes it runs once with each of the two."""
    opened = SyncClient(server.address) if request.param == "sync" else AioClient(server.address)
    yield opened
    opened.close()


# -- health and metadata


def test_the_server_and_its_models_are_live_and_ready(client: Any) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True
    assert client.is_model_ready("tiny") is True
    assert client.is_model_ready("tiny", "1") is True
    assert client.is_model_ready("flights", "challenger") is True


def test_a_model_that_is_unknown_or_failed_is_not_ready(client: Any) -> None:
    assert client.is_model_ready("absent") is False
    assert client.is_model_ready("tiny", "9") is False
    assert client.is_model_ready("broken") is False


def test_server_metadata_names_the_extensions_in_a_list(client: Any) -> None:
    metadata = client.get_server_metadata()
    assert metadata["name"] == "headgate"
    assert metadata["version"]
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(metadata["extensions"])


def test_model_metadata_lists_the_ready_versions_or_the_one_asked_for(client: Any) -> None:
    metadata = client.get_model_metadata("flights")
    assert metadata["name"] == "flights"
    assert metadata["versions"] == ["1", "2"]
    assert metadata["platform"] == "onnxruntime_onnx"
    assert metadata["inputs"][0] == {"name": "dep_delay", "datatype": "FP32", "shape": [-1, 1]}
    assert metadata["inputs"][-1] == {"name": "dest", "datatype": "BYTES", "shape": [-1, 1]}
    assert [output["name"] for output in metadata["outputs"]] == ["label", "probabilities"]
    assert client.get_model_metadata("flights", "2")["versions"] == ["2"]
    assert client.get_model_metadata("flights", "champion")["versions"] == ["1"]


@pytest.mark.parametrize("model", ["tiny", "flights", "sum_and_difference", "picks", "echo_bytes"])
def test_the_configuration_fits_the_metadata_as_perf_analyzer_reads_them(client: Any, model: str) -> None:
    """perf_analyzer drops the first dimension of the metadata where max_batch_size is not 0, and looks inputs up by
    name; it reads `decoupled` without looking whether it is there."""
    metadata, config = client.get_model_metadata(model), client.get_model_config(model)
    assert config["name"] == model
    assert config["platform"] != "ensemble"
    assert config["model_transaction_policy"]["decoupled"] is False
    assert ("dynamic_batching" in config) == (config["max_batch_size"] > 0)
    for here, there in (("inputs", "input"), ("outputs", "output")):
        for described, configured in zip(metadata[here], config[there], strict=True):
            assert configured["name"] == described["name"]
            assert configured["data_type"].removeprefix("TYPE_").replace("STRING", "BYTES") == described["datatype"]
            dims = [int(dim) for dim in configured["dims"]]
            assert described["shape"] == ([-1, *dims] if config["max_batch_size"] else dims)


def test_a_batched_model_says_how_large_its_batches_may_be(client: Any) -> None:
    assert client.get_model_config("tiny")["max_batch_size"] > 1
    assert client.get_model_config("tiny", "1")["max_batch_size"] > 1
    assert client.get_model_config("picks")["max_batch_size"] == 0


# -- the repository


def test_the_index_is_given_for_an_empty_body(client: Any) -> None:
    index = {(entry["name"], entry["version"]): entry for entry in client.get_model_repository_index()}
    assert index["flights", "1"]["state"] == "READY"
    assert index["flights", "2"]["state"] == "READY"
    assert index["broken", "1"]["state"] == "UNAVAILABLE"
    assert "not an ONNX model" in index["broken", "1"]["reason"]


def test_a_model_is_unloaded_and_loaded_again(client: Any) -> None:
    model, rows = "comes_and_goes", [tensor("x", np.ones((1, 4), np.float32))]
    assert client.unload_model(model) is None
    assert client.is_model_ready(model) is False
    assert refusal(client.infer, model, rows)[0] == 503
    assert client.load_model(model) is None
    assert client.is_model_ready(model) is True
    assert client.unload_model(model, unload_dependents=True) is None
    assert client.load_model(model) is None
    assert client.infer(model, rows).get_response()["model_version"] == "1"


def test_a_load_with_the_configuration_as_it_is_succeeds(client: Any) -> None:
    config = {"max_batch_size": client.get_model_config("stays")["max_batch_size"]}
    assert client.load_model("stays", config=json.dumps(config)) is None
    assert client.load_model("stays", config=json.dumps(config), files={}) is None


def test_a_load_that_would_change_the_configuration_or_upload_files_is_refused(client: Any) -> None:
    status, message = refusal(client.load_model, "stays", config=json.dumps({"max_batch_size": 7}))
    assert status == 400
    assert "failed to load" in message
    assert "max_batch_size" in message
    status, message = refusal(client.load_model, "stays", config="{}", files={"file:1/model.onnx": b"bytes"})
    assert status == 400
    assert "failed to load" in message


def test_a_failed_load_fails_again_on_every_call(client: Any) -> None:
    for _ in range(2):
        status, message = refusal(client.load_model, "broken")
        assert status == 400
        assert "failed to load" in message
        assert "not an ONNX model" in message


def test_loading_an_unknown_model_fails(client: Any) -> None:
    status, message = refusal(client.load_model, "absent")
    assert status == 404
    assert "failed to load" in message


# -- statistics


def test_statistics_hold_every_key_as_whole_numbers(client: Any) -> None:
    client.infer("tiny", [tensor("x", np.ones((1, 30), np.float32))])
    everything = client.get_inference_statistics()["model_stats"]
    assert {"tiny", "flights", "picks"} <= {row["name"] for row in everything}
    (row,) = client.get_inference_statistics("tiny", "1")["model_stats"]
    assert row["version"] == "1"
    durations = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output"}
    assert row["inference_stats"].keys() == durations | {"cache_hit", "cache_miss"}
    for duration in row["inference_stats"].values():
        assert duration.keys() == {"count", "ns"}
        assert all(type(value) is int and value >= 0 for value in duration.values())
    for key in ("last_inference", "inference_count", "execution_count"):
        assert type(row[key]) is int
        assert row[key] > 0
    assert {"batch_size", "compute_input", "compute_infer", "compute_output"} == row["batch_stats"][0].keys()
    assert row["memory_usage"][0].keys() == {"type", "id", "byte_size"}
    assert isinstance(row["response_stats"], dict)


def test_statistics_count_rows_runs_and_queued_requests_and_never_fall(client: Any) -> None:
    def poll() -> dict[str, Any]:
        (row,) = client.get_inference_statistics("tiny")["model_stats"]
        return row

    before = poll()
    for rows in (1, 3):
        client.infer("tiny", [tensor("x", np.ones((rows, 30), np.float32))])
    after = poll()
    assert after["inference_count"] - before["inference_count"] == 4
    assert after["execution_count"] - before["execution_count"] == 2
    assert after["inference_stats"]["queue"]["count"] - before["inference_stats"]["queue"]["count"] == 2
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 2
    for phase, duration in after["inference_stats"].items():
        assert duration["ns"] >= before["inference_stats"][phase]["ns"]
    assert after["last_inference"] >= before["last_inference"]


def test_statistics_count_a_failed_request(client: Any) -> None:
    def failures() -> int:
        return int(client.get_inference_statistics("picks")["model_stats"][0]["inference_stats"]["fail"]["count"])

    before = failures()
    assert refusal(client.infer, "picks", [tensor("index", np.array([99]))])[0] == 500
    assert failures() == before + 1


# -- what is not offered


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("get_trace_settings", ()),
        ("get_trace_settings", ("tiny",)),
        ("update_trace_settings", ("tiny", {"trace_level": "TIMESTAMPS"})),
        ("get_log_settings", ()),
        ("update_log_settings", ({"log_verbose_level": 1},)),
        ("get_system_shared_memory_status", ()),
        ("get_system_shared_memory_status", ("region",)),
        ("register_system_shared_memory", ("region", "/key", 64)),
        ("unregister_system_shared_memory", ()),
        ("unregister_system_shared_memory", ("region",)),
        ("get_cuda_shared_memory_status", ()),
        ("register_cuda_shared_memory", ("region", b"aGFuZGxl", 0, 64)),
        ("unregister_cuda_shared_memory", ("region",)),
    ],
)
def test_trace_logging_and_shared_memory_are_501(client: Any, call: str, arguments: tuple[Any, ...]) -> None:
    status, message = refusal(getattr(client, call), *arguments)
    assert status == 501
    assert "not offered" in message


def test_an_input_in_shared_memory_is_refused(client: Any) -> None:
    given = tensor("x", np.ones((1, 30), np.float32))
    given.set_shared_memory("region", 120)
    status, message = refusal(client.infer, "tiny", [given])
    assert status == 400
    assert "shared memory is not offered" in message


# -- inference


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


# -- refusals: an InferenceServerException with our sentence and the status


def test_an_unknown_model_or_version_is_404(client: Any) -> None:
    rows = [tensor("x", np.ones((1, 30), np.float32))]
    for call in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        status, message = refusal(call, "absent")
        assert status == 404
        assert message.startswith("Request for unknown model")
    status, message = refusal(client.infer, "absent", rows)
    assert (status, message) == (404, "Request for unknown model: 'absent' is not found")
    status, message = refusal(client.infer, "tiny", rows, model_version="9")
    assert status == 404
    assert message.startswith("Request for unknown model version: 'tiny' version '9'")
    assert refusal(client.infer, "tiny", rows, model_version="nightly")[0] == 404


def raised_by(client: Any, verb: str, path: str) -> tuple[int, str]:
    """What the client makes of a reply that none of its calls can bring about."""
    if isinstance(client, AioClient):
        check = tritonclient.http.aio._raise_if_error

        async def send() -> None:
            inner = client._client
            answer = await (inner._get(path, None, None) if verb == "GET" else inner._post(path, "", None, None))
            await check(answer)

        return refusal(client._runner.run, send())
    answer = client._get(path, None, None) if verb == "GET" else client._post(path, "", None, None)
    return refusal(tritonclient.http._utils._raise_if_error, answer)


def test_an_unknown_route_is_404(client: Any) -> None:
    assert raised_by(client, "GET", "v2/models/tiny/explain") == (404, "Not Found")
    assert raised_by(client, "GET", "v2/health/live/") == (404, "Not Found")


def test_a_wrong_verb_is_405(client: Any) -> None:
    assert raised_by(client, "POST", "v2/health/live") == (405, "Method Not Allowed")
    assert raised_by(client, "GET", "v2/models/tiny/infer") == (405, "Method Not Allowed")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([("x", np.ones((1, 29), np.float32))], "expects shape [-1,30], got [1,29]"),
        ([("x", np.ones((30,), np.float32))], "expects 2 dimensions [-1,30], got 1 [30]"),
        ([("x", np.ones((1, 30), np.float64))], "FP64"),
        ([("z", np.ones((1, 30), np.float32))], "no input 'z'"),
        ([], "inputs lacks 'x'"),
    ],
)
def test_a_request_that_does_not_fit_the_model_is_400(client: Any, inputs: list[Any], said: str) -> None:
    status, message = refusal(client.infer, "tiny", [tensor(name, array) for name, array in inputs])
    assert status == 400
    assert said in message


def test_an_unknown_output_is_400(client: Any) -> None:
    rows = [tensor("x", np.ones((1, 30), np.float32))]
    status, message = refusal(client.infer, "tiny", rows, outputs=[InferRequestedOutput("z")])
    assert status == 400
    assert "no output 'z'" in message


# aiohttp would rather be given a file than so many bytes, but tritonclient gives it bytes.
@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("times", [1.5, 4])
def test_a_body_over_the_limit_is_413(client: Any, binary: bool, times: float) -> None:
    array = np.full((1, int(MAX_BODY_BYTES * times) // 4), 0.125, np.float32)
    status, message = refusal(client.infer, "echo_fp32", [tensor("x", array, binary)])
    assert status == 413
    assert f"larger than {MAX_BODY_BYTES} bytes" in message


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_that_inflates_over_the_limit_is_413(client: Any, coding: str) -> None:
    rows = [tensor("x", np.zeros((1, MAX_BODY_BYTES), np.float32))]
    status, message = refusal(client.infer, "echo_fp32", rows, request_compression_algorithm=coding)
    assert status == 413
    assert f"inflates to more than {MAX_BODY_BYTES} bytes" in message


@pytest.mark.parametrize("coding", ["br", "gzip, gzip"])
def test_an_unknown_or_chained_coding_is_415(client: Any, coding: str) -> None:
    rows = [tensor("x", np.ones((1, 30), np.float32))]
    status, message = refusal(client.infer, "tiny", rows, headers={"Content-Encoding": coding})
    assert status == 415
    assert "only gzip or deflate" in message


def test_a_model_that_raises_is_500_and_answers_the_next_request(client: Any) -> None:
    status, message = refusal(client.infer, "picks", [tensor("index", np.array([99]))])
    assert status == 500
    assert message.startswith("model 'picks' version 1 failed on this input")
    assert client.infer("picks", [tensor("index", np.array([2]))]).as_numpy("value") == 30


def test_a_model_that_could_not_be_loaded_is_503(client: Any) -> None:
    status, message = refusal(client.infer, "broken", [tensor("x", np.ones((1, 4), np.float32))])
    assert status == 503
    assert "not at ready state" in message


def test_a_deadline_that_passed_before_the_run_is_504(client: Any) -> None:
    status, message = refusal(client.infer, "tiny", [tensor("x", np.ones((1, 30), np.float32))], timeout=1)
    assert status == 504
    assert "deadline" in message


def test_a_deadline_that_passes_during_the_run_is_504_and_the_next_request_is_answered(client: Any) -> None:
    rows = [tensor("x", np.zeros(1, np.float32))]
    status, message = refusal(client.infer, "plods", rows, timeout=30_000)
    assert status == 504
    assert "deadline" in message
    assert client.infer("plods", rows).as_numpy("y") == 0


@pytest.mark.parametrize("kind", [SyncClient, AioClient])
def test_a_repository_that_may_not_be_changed_answers_403(
    start_server: Callable[..., Server], kind: Callable[[str], Any]
) -> None:
    server = start_server(EXAMPLES, "--no-repository-api")
    client = kind(server.address)
    try:
        for call in (client.load_model, client.unload_model):
            status, message = refusal(call, "tiny")
            assert status == 403
            assert "repository_api" in message
        assert client.is_model_ready("tiny") is True
    finally:
        client.close()
