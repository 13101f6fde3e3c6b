"""Every answer that is not 200 has one shape, and nothing that a client writes gets into labels or logs as it is."""

from __future__ import annotations

import http.client
import json
import random
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Route
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from gateway.app import ROUTES
from tests.onnx_models import identity, put
from tests.servers import Server

ROW = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2.5, 3, 4]}]}
VERBS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
PATHS = sorted({route.path for route in ROUTES if isinstance(route, Route)})
NEW_ID = re.compile(r"[0-9a-f-]{16,36}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves `echo`; `broken` has one version, whose file is no model."""
    scratch = tmp_path_factory.mktemp("http_errors")
    put(scratch / "models", "echo", 1, identity())
    put(scratch / "models", "broken", 1, b"no model at all")
    running = Server(scratch / "models", scratch / "server", "--quiet-s", "0", "--access-log")
    yield running
    running.stop()


def assert_error(reply: tuple[int, dict[str, str], bytes], status: int, code: str) -> dict[str, Any]:
    """The one shape of every error; returns the document."""
    got, headers, body = reply
    assert got == status, body
    assert headers["content-type"] == "application/json"
    document = json.loads(body)
    assert isinstance(document, dict)
    assert document["code"] == code
    assert isinstance(document["error"], str)
    assert document["error"]
    assert document["request_id"] == headers["x-request-id"]
    assert document.keys() <= {"error", "code", "request_id", "field"}
    return document


def address_of(path: str) -> str:
    """A route's pattern with everything filled in."""
    values = {"model": "echo", "version": "1", "alias": "champion", "rest:path": "region/r/register"}
    values |= {"feedback_id": "0190a5e2-0000-7000-8000-000000000000", "token": "key.link.mac"}
    values |= {"prediction_id": "0190a5e2-0000-8000-8000-000000000000"}
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    assert "{" not in path
    return path


def allowed(path: str) -> set[str]:
    """The verbs of every route that an address belongs to."""
    return {verb for route in ROUTES if route.path_regex.match(address_of(path)) for verb in route.methods or ()}


def raw(server: Server, request: bytes) -> bytes:
    """What comes back on a connection of its own until the server closes it."""
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


# -- 404, 405, HEAD


@pytest.mark.parametrize("path", [path for path in PATHS if not path.endswith("{rest:path}")])
def test_a_trailing_slash_is_another_route_and_there_is_none(path: str, server: Server) -> None:
    for verb in ("GET", "POST"):
        document = assert_error(server.request(verb, address_of(path) + "/"), 404, "not-found")
        assert document["error"] == "Not Found"


@pytest.mark.parametrize("path", PATHS)
def test_a_wrong_verb_is_told_the_right_ones(path: str, server: Server) -> None:
    right = allowed(path)
    for verb in VERBS:
        if verb in right:
            continue
        status, headers, body = server.request(verb, address_of(path))
        assert status == 405
        assert set(headers["allow"].split(", ")) == right
        if verb == "HEAD":
            assert body == b""
        else:
            document = assert_error((status, headers, body), 405, "method-not-allowed")
            assert document["error"] == "Method Not Allowed"


@pytest.mark.parametrize("path", [path for path in PATHS if "GET" in allowed(path)])
def test_head_is_get_without_a_body(path: str, server: Server) -> None:
    get_status, get_headers, get_body = server.request("GET", address_of(path))
    status, headers, body = server.request("HEAD", address_of(path))
    assert (status, body) == (get_status, b"")
    assert headers["content-type"] == get_headers["content-type"]
    if not path.endswith(("stats", "metrics")):  # numbers grow
        assert headers["content-length"] == str(len(get_body))


@pytest.mark.parametrize(
    "path", ["/", "/v2/", "/v1", "/v2/nothing", "/docs", "/openapi.json", "/v2/models/echo/versions/1/explain", "/%00"]
)
def test_an_unknown_path_is_not_found(path: str, server: Server) -> None:
    for verb in ("GET", "POST", "DELETE"):
        assert_error(server.request(verb, path), 404, "not-found")


# -- 501, 503, 403


@pytest.mark.parametrize(
    "path",
    [
        "/v2/trace/setting",
        "/v2/models/echo/trace/setting",
        "/v2/logging",
        "/v2/systemsharedmemory/status",
        "/v2/systemsharedmemory/region/r/register",
        "/v2/cudasharedmemory/region/r/unregister",
    ],
)
def test_extensions_that_are_left_out_say_so(path: str, server: Server) -> None:
    for verb, body in (("GET", None), ("POST", {})):
        assert "not offered" in assert_error(server.request(verb, path, body), 501, "not-offered")["error"]


@pytest.mark.parametrize("path", ["/ready", "", "/config", "/versions/1", "/versions/1/ready"])
def test_a_version_that_failed_is_not_ready_and_says_why(path: str, server: Server) -> None:
    reply = server.request("GET", f"/v2/models/broken{path}")
    document = assert_error(reply, 503, "not-ready")
    assert int(reply[1]["retry-after"]) > 0
    assert "not at ready state" in document["error"]
    assert "model" in document["error"]


def test_inference_on_a_version_that_failed_is_unavailable_and_the_server_stays_ready(server: Server) -> None:
    for path in ("/v2/models/broken/infer", "/v2/models/broken/versions/1/infer"):
        reply = server.request("POST", path, ROW)
        assert_error(reply, 503, "not-ready")
        assert int(reply[1]["retry-after"]) > 0
    status, _, body = server.request("GET", "/v2/health/ready")
    assert status == 200
    assert "broken" in json.loads(body)["models"]
    assert_error(server.request("POST", "/v2/repository/models/broken/load", {}), 400, "load-failed")


def test_a_repository_that_is_switched_off_over_http_forbids_every_change(tmp_path: Path) -> None:
    put(tmp_path / "models", "echo", 1, identity())
    server = Server(tmp_path / "models", tmp_path / "server", "--quiet-s", "0", "--no-repository-api")
    try:
        for verb, path, body in (
            ("POST", "load", {}),
            ("POST", "reload", {}),
            ("POST", "unload", {}),
            ("POST", "versions/1/unload", {}),
            ("PUT", "aliases/champion", {"version": "1"}),
            ("DELETE", "aliases/champion", None),
        ):
            document = assert_error(server.request(verb, f"/v2/repository/models/echo/{path}", body), 403, "forbidden")
            assert "repository_api" in document["error"]
        assert server.infer("echo", ROW)["model_version"] == "1"
        assert server.request("POST", "/v2/repository/index", b"")[0] == 200
    finally:
        server.stop()


# -- what is not HTTP


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"rubbish\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\nHost: h\r\n\r\n",
        b"NOTAVERB /v2 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nA: \x00\r\n\r\n",
        b"POST /v2/models/echo/infer HTTP/1.1\r\nContent-Length: +5\r\n\r\n12345",
        b"POST /v2/models/echo/infer HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"POST /v2/models/echo/infer HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2/models/echo/infer HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /v2/models/echo/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"POST /v2/models/echo/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",  # the first bytes of TLS
    ],
)
def test_what_is_no_http_is_refused_in_the_one_shape_and_the_connection_ends(
    request_bytes: bytes, server: Server
) -> None:
    head, _, body = raw(server, request_bytes).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"connection: close" in head.lower()
    document = json.loads(body)
    assert document["code"] == "invalid-request"
    assert isinstance(document["error"], str)
    assert server.infer("echo", ROW)["model_version"] == "1"


def test_bytes_behind_a_refused_request_are_no_second_request(server: Server) -> None:
    hidden = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n"
    for head in (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 100000000\r\n",
    ):
        answer = raw(server, b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: h\r\n" + head + b"\r\n0\r\n\r\n" + hidden)
        assert answer.count(b"HTTP/1.1 4") == 1
        assert b'"live"' not in answer


# -- request ids


@pytest.mark.parametrize("name", ["a", "0195-ab.c_d:e/f+g=h", "x" * 128])
def test_a_request_id_that_is_a_plain_word_comes_back(name: str, server: Server) -> None:
    for verb, path in (("GET", "/v2"), ("GET", "/nothing"), ("POST", "/v2/models/nosuch/infer")):
        _, headers, body = server.request(verb, path, None, {"X-Request-Id": name})
        assert headers["x-request-id"] == name
        if path != "/v2":
            assert json.loads(body)["request_id"] == name
    status, headers, _ = server.request("POST", "/v2/models/echo/infer", ROW, {"X-Request-Id": name})
    assert (status, headers["x-request-id"]) == (200, name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "x" * 129,
        "a b",
        'a"b',
        "a'b",
        "<script>",
        "a;b",
        "a,b",
        "{}",
        "a\tb",
        "\u00e9",
        "%0d%0a",
        "a\\b",
        "$(a)",
    ],
)
def test_a_request_id_that_is_no_plain_word_is_replaced(name: str, server: Server) -> None:
    for verb, path in (("GET", "/nothing"), ("POST", "/v2/models/nosuch/infer"), ("POST", "/v2/models/echo/infer")):
        _, headers, body = server.request(verb, path, b"{", {"X-Request-Id": name})
        assert NEW_ID.fullmatch(headers["x-request-id"]), headers
        assert json.loads(body)["request_id"] == headers["x-request-id"]


def test_request_ids_of_the_server_are_all_different(server: Server) -> None:
    names = {server.request("GET", "/nothing")[1]["x-request-id"] for _ in range(20)}
    names |= {server.request("POST", "/v2/models/nosuch/infer", b"")[1]["x-request-id"] for _ in range(20)}
    assert len(names) == 40


# -- what tritonclient makes of it


def test_tritonclient_reports_our_sentence_and_status(server: Server) -> None:
    tensor = InferInput("x", [1, 3], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 3), np.float32))
    with InferenceServerClient(server.address) as client:
        for act, status, words in (
            (lambda: client.infer("echo", [tensor]), "400", "expects shape [-1,4], got [1,3]"),
            (lambda: client.get_model_metadata("nosuch"), "404", "Request for unknown model: 'nosuch'"),
            (lambda: client.get_model_metadata("echo", "9"), "404", "version"),
            (lambda: client.get_model_config("broken"), "503", "not at ready state"),
            (lambda: client.load_model("nosuch"), "404", "failed to load"),
            (lambda: client.load_model("broken"), "400", "failed to load"),
            (lambda: client.get_trace_settings(), "501", "not offered"),
            (lambda: client.register_system_shared_memory("r", "/r", 16), "501", "not offered"),
        ):
            with pytest.raises(InferenceServerException) as caught:
                act()
            assert caught.value.status() == status
            assert words in caught.value.message()


# -- labels and logs

HOSTILE = (
    '"',
    "'",
    "\\",
    "\n",
    "\r\n",
    "\x1b[31m",
    "\x00",
    "{",
    "}",
    "=",
    ",",
    "\u2028",
    "\u202e",
    "\u00e9",
    "%",
    "$(x)",
)
FORGED = '{"level":"critical","event":"forged"}'
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "PROPFIND", "MKCOL", "M-SEARCH", "PURGE", "LOCK")
SUFFIXES = ("", "/infer", "/versions/1/infer", "/versions/{}/infer", "/ready", "/stats", "/{}")


def flood(server: Server, count: int, seed: int) -> None:
    """Requests with random names, verbs, agents and ids, each with what could break a label or a line."""
    rng = random.Random(seed)
    host, port = server.address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    for _ in range(count):
        name = "".join(rng.choice(HOSTILE) + str(rng.getrandbits(24)) for _ in range(3)) + rng.choice(
            ("", "\n" + FORGED)
        )
        quoted = "".join(f"%{byte:02X}" for byte in name.encode())
        path = "/v2/models/" + quoted + rng.choice(SUFFIXES).format(quoted)
        agent = "".join(letter for letter in name if letter.isprintable()).encode("latin-1", "replace")
        connection.putrequest(rng.choice(METHODS), path)
        connection.putheader("User-Agent", agent)
        connection.putheader("X-Request-Id", agent)
        connection.putheader("Content-Length", "0")
        connection.endheaders()
        reply = connection.getresponse()
        reply.read()
        assert reply.status in (404, 405), (reply.status, path)
    connection.close()


def series(text: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Every series of an exposition, as prometheus_client's own parser reads it."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_no_text_of_a_client_becomes_a_label_or_breaks_a_log_line(server: Server) -> None:
    """1. A few hundred hostile requests bring every route and status up.  2. Then 2,000 more with new names.

    Result: not one new series; the exposition parses; every line of the log is one JSON object with a known event.
    """
    flood(server, 300, seed=1)
    server.request("GET", "/metrics")
    before = series(server.request("GET", "/metrics")[2].decode())
    lines_before = len(server.log())
    flood(server, 2000, seed=2)
    exposition = server.request("GET", "/metrics")[2]
    after = series(exposition.decode())
    assert after == before
    assert len(exposition) < 1 << 20
    for name, labels in after:
        for key, value in labels:
            assert re.fullmatch(r"[A-Za-z0-9_./{}:+-]*", value), (name, key, value)
    log = server.log()
    requests = [line for line in log if line["event"] == "request"]
    assert len(log) - lines_before >= 2000
    assert len(requests) >= 2300
    for line in log:
        assert line["event"] != "forged"
        assert line["level"] != "critical"
        for key, value in line.items():
            assert isinstance(key, str)
            assert not isinstance(value, str) or len(value) <= 8192 + 3
    assert {line["method"] for line in requests} <= {*VERBS, "other"}
    text = server._log_path.read_text()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2028\u202e]", text)


def test_metrics_are_as_prometheus_wants_them(server: Server) -> None:
    server.infer("echo", ROW)
    server.infer("nosuch", ROW)
    status, headers, body = server.request("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(body.decode()))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation for family in families)
    promtool = shutil.which("promtool")
    if promtool is not None:
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=body, capture_output=True, timeout=30, check=False
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
