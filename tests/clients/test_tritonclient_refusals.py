"""tritonclient's HTTP clients, sync and asyncio: a refusal has our sentence and its status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio

from tests.clients.conftest import EXAMPLES, MAX_BODY_BYTES
from tests.clients.triton import AioClient, InferRequestedOutput, SyncClient, refusal, tensor
from tests.servers import Server

# The asyncio client's health calls drop their reply without reading it.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")


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
