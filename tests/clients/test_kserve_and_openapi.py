"""KServe's REST client and the generated client of the protocol's own OpenAPI document, against a running server.

Both live in an environment of their own, made on the first run: what they require does not go together with what the
server requires. A script beside this file makes all calls there and prints what came back.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.ondemand import FetchFailed, unavailable, virtual_environment
from tests.servers import Server

HERE = Path(__file__).resolve().parent

pytestmark = [
    pytest.mark.slow(1),
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.version_info >= (3, 14), reason="kserve 0.21 is for Python before 3.14"),
]


def results(config: pytest.Config, server: Server, script: str) -> dict[str, Any]:
    try:
        python = virtual_environment(config.cache.mkdir("third-party"), HERE / "kserve-and-openapi.lock")
    except FetchFailed as error:
        unavailable(error)
    command = [str(python), str(HERE / script), server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def kserve(pytestconfig: pytest.Config, server: Server) -> dict[str, Any]:
    """What kserve's client got, by call."""
    return results(pytestconfig, server, "kserve_calls.py")


@pytest.fixture(scope="module")
def openapi(pytestconfig: pytest.Config, server: Server) -> dict[str, Any]:
    """What the generated client got, by call."""
    return results(pytestconfig, server, "openapi_calls.py")


SUM_AND_DIFFERENCE = {
    "sum": ["INT32", [2, 4], [0, 2, 4, 6, 8, 10, 12, 14]],
    "difference": ["INT32", [2, 4], [0] * 8],
}


def test_kserve_finds_the_server_live_and_ready_and_a_model_ready(kserve: dict[str, Any]) -> None:
    assert kserve["live"] is True
    assert kserve["ready"] is True
    assert kserve["model_ready"] is True


def test_kserve_finds_a_model_that_is_unknown_or_failed_not_ready(kserve: dict[str, Any]) -> None:
    assert kserve["model_not_ready"] is False
    assert kserve["model_unknown"] is False


@pytest.mark.parametrize("call", ["json", "binary", "mixed"])
def test_kserve_infers_with_json_binary_and_both(kserve: dict[str, Any], call: str) -> None:
    assert kserve[call] == {"id": "from-kserve", "model": "sum_and_difference", "outputs": SUM_AND_DIFFERENCE}


def test_kserve_infers_with_a_plain_dictionary(kserve: dict[str, Any]) -> None:
    outputs = kserve["dictionary"]["outputs"]
    assert outputs["label"][:2] == ["INT64", [1]]
    assert sum(outputs["probabilities"][2]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("call", ["words_json", "words_binary"])
def test_kserve_sends_and_gets_strings(kserve: dict[str, Any], call: str) -> None:
    assert kserve[call]["outputs"]["y"] == ["BYTES", [1, 2], ["plain", "Zürich"]]


def test_kserve_sends_and_gets_half_precision_as_binary(kserve: dict[str, Any]) -> None:
    assert kserve["half_binary"]["outputs"]["y"] == ["FP16", [1, 2], [0.5, -2.0]]


def test_kserve_raises_with_our_message(kserve: dict[str, Any]) -> None:
    assert kserve["bad_shape"]["status"] == 400
    assert "expects shape [-1,30], got [1,29]" in kserve["bad_shape"]["message"]
    assert kserve["unknown"]["status"] == 404
    assert "Request for unknown model: 'absent' is not found" in kserve["unknown"]["message"]
    assert kserve["not_ready"]["status"] == 503
    assert "not at ready state" in kserve["not_ready"]["message"]


def test_openapi_health_calls_succeed(openapi: dict[str, Any]) -> None:
    for call in ("live", "ready", "model_ready", "version_ready"):
        assert openapi[call] is None


def test_openapi_raises_its_own_errors_with_our_document(openapi: dict[str, Any]) -> None:
    for call, raised, status in (
        ("model_not_ready", "ServiceUnavailableError", 503),
        ("model_unknown", "NotFoundError", 404),
        ("version_unknown", "NotFoundError", 404),
        ("metadata_unknown", "ApiError", 404),
        ("short", "BadRequestError", 400),
        ("unknown", "ApiError", 404),
    ):
        assert (openapi[call]["raised"], openapi[call]["status"]) == (raised, status)
        assert isinstance(openapi[call]["body"]["error"], str)
    assert "expects shape [-1,30], got [1,29]" in openapi["short"]["body"]["error"]


def test_openapi_reads_the_metadata(openapi: dict[str, Any]) -> None:
    assert openapi["server"]["name"] == "headgate"
    assert "binary_tensor_data" in openapi["server"]["extensions"]
    assert openapi["model"]["versions"] == ["1", "2"]
    assert openapi["version"]["versions"] == ["2"]
    assert openapi["model"]["inputs"][0] == {"name": "dep_delay", "datatype": "FP32", "shape": [-1, 1]}


def test_openapi_infers_with_and_without_a_version_and_asynchronously(openapi: dict[str, Any]) -> None:
    for call in ("row", "version_row", "asynchronous"):
        assert openapi[call]["id"] == "from-openapi"
        assert openapi[call]["model_version"] == "1"
        (output,) = openapi[call]["outputs"]
        assert (output["name"], output["shape"]) == ("probabilities", [1, 2])
        assert output["data"] == openapi["row"]["outputs"][0]["data"]


def test_openapi_sends_nested_data_and_strings(openapi: dict[str, Any]) -> None:
    assert openapi["nested"]["outputs"][0]["data"] == [1.5, 2.5, 3.5, 4.5]
    assert openapi["words"]["outputs"][0]["data"] == ["plain", "Zürich"]


def test_whole_numbers_that_the_generated_client_turns_into_fractions_are_refused(openapi: dict[str, Any]) -> None:
    """It writes 1 as 1.0 whatever the datatype; nothing is coerced, so such a model needs another client."""
    assert openapi["whole"]["status"] == 400
    assert "must be an integer for INT64, got the number 1.0" in openapi["whole"]["body"]["error"]
