"""The corpus of bad requests, once through the codecs and once through a server."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ClientError
from gateway.oip.compression import inflate
from gateway.oip.limits import Limits
from gateway.oip.request import decode
from gateway.types import InferRequest
from tests.oip import corpus
from tests.servers import Server

CASES = corpus.load()
CODEC_CASES = [name for name, case in CASES.items() if "layer" not in case]
LIMITS = Limits()
KEYS = {"why", "model", "layer", "method", "path", "headers", "body", "chunked", "announce", "expect"}
MAX_CPU_S = 0.25
"""For one bad request; far more than any takes, far less than one that hurts."""
EXPECT_KEYS = {"status", "code", "field", "message", "headers"}
ROOT = Path(__file__).resolve().parent.parent.parent
HEADER_LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    scratch = tmp_path_factory.mktemp("bad_requests")
    running = Server(corpus.write_models(scratch / "models"), scratch / "server", "--quiet-s", "0")
    yield running
    running.stop()


def test_the_corpus_is_large_and_says_what_it_expects() -> None:
    assert len(CASES) >= 250
    for name, case in CASES.items():
        assert case["why"], name
        assert case["model"] in corpus.MODELS, name
        assert case.keys() <= KEYS, name
        assert 400 <= case["expect"]["status"] < 500, name
        assert case["expect"].keys() <= EXPECT_KEYS, name
        # Only a wrong URL or verb has no path in the body: it is the URL itself.
        assert case["expect"]["field"] is not None or case["expect"]["status"] in (404, 405, 414), name


def read(body: bytes, case: Mapping[str, Any]) -> InferRequest:
    """A body through the codecs, as the server takes it through them."""
    headers = case.get("headers", {})
    body = inflate(body, headers.get("Content-Encoding"), LIMITS.max_body_bytes)
    return decode(body, headers.get(HEADER_LENGTH), corpus.MODELS[case["model"]], LIMITS, case["model"])


@pytest.mark.parametrize("name", CODEC_CASES)
def test_the_codecs_refuse(name: str) -> None:
    case = CASES[name]
    body = corpus.build(case["body"])
    started = time.process_time()
    with pytest.raises(ClientError) as refused:
        read(body, case)
    assert time.process_time() - started < MAX_CPU_S
    error = refused.value
    expect = case["expect"]
    assert (error.status, error.code, error.field) == (expect["status"], expect["code"], expect["field"]), error.message
    assert expect.get("message", "") in error.message
    assert len(error.message) < 600
    error.message.encode()


@pytest.mark.parametrize("name", CASES)
def test_the_server_refuses_and_answers_the_next_request(name: str, server: Server) -> None:
    case = CASES[name]
    expect = case["expect"]
    status, headers, text = corpus.send(server, case)
    assert status == expect["status"], text
    document = json.loads(text)
    assert document["code"] == expect["code"], document
    assert document.get("field") == expect["field"], document
    assert isinstance(document["error"], str)
    assert expect.get("message", "") in document["error"]
    assert document["request_id"] == headers["x-request-id"]
    assert headers["content-type"] == "application/json"
    assert len(text) < 2000
    assert_no_secrets(text.decode())
    for header, value in expect.get("headers", {}).items():
        assert headers.get(header) == value, header
    good, _, reply = server.request("POST", "/v2/models/echo/infer", corpus.GOOD)
    assert good == 200
    assert json.loads(reply)["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0]


def test_the_contracts_of_the_corpus_are_those_of_the_server(server: Server) -> None:
    for name, contract in corpus.MODELS.items():
        metadata = server.json("GET", f"/v2/models/{name}")
        for side, specs in (("inputs", contract.inputs), ("outputs", contract.outputs)):
            expected = [
                {"name": each.name, "datatype": each.datatype, "shape": list(each.shape or ())} for each in specs
            ]
            assert metadata[side] == expected, name
        assert (server.json("GET", f"/v2/models/{name}/config")["max_batch_size"] > 0) == contract.batched, name


def test_no_bad_request_is_counted_as_a_fault_of_the_server(server: Server) -> None:
    """Runs after the corpus where tests run in order; alone it sends a few cases of its own."""
    for name in ("json_depth_200000_of_lists", "coding_gzip_damaged", "binary_bool_2", "header_length_twice"):
        corpus.send(server, CASES[name])
    for line in server.request("GET", "/metrics")[2].decode().splitlines():
        if line.startswith("headgate_requests_total{") and 'class="server"' in line:
            assert line.endswith(" 0.0"), line
    assert not [line for line in server.log() if line["level"] in ("error", "critical") or "traceback" in line]


def assert_no_secrets(text: str) -> None:
    """An answer speaks of the request, never of the machine that answers."""
    for secret in ("Traceback", 'File "', "site-packages", "gateway/", "pytest-of-", sys.prefix, str(ROOT)):
        assert secret not in text, text
