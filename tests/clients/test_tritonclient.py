"""tritonclient's HTTP clients, sync and asyncio, beside inference: health, metadata, the repository, statistics."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.clients.triton import refusal, tensor

# The asyncio client's health calls drop their reply without reading it.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")


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
