"""A server that answers quickly and wrongly is found out before it is timed."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtests import bodies, check, models

ROOT = Path(__file__).resolve().parents[2]
Answer = Callable[[list[list[float]], int], tuple[int, dict[str, Any]]]


def document(values: list[float], **more: Any) -> dict[str, Any]:
    output = {"name": "y", "datatype": "FP32", "shape": [1, 16], "data": values}
    return {"model_name": "identity", "model_version": "1", "outputs": [output | more]}


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], tuple[str, int]]]:
    """A server for y = x that gathers four requests and answers each by a function of all inputs and its own index."""
    stops: list[Callable[[], None]] = []

    def start(answer: Answer) -> tuple[str, int]:
        gathered: list[list[float]] = []
        barrier = threading.Barrier(4)
        lock = threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    gathered.append(body["inputs"][0]["data"])
                    index = len(gathered) - 1
                barrier.wait(10)
                status, reply = answer(gathered, index)
                content = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def handle(self) -> None:
                """The client leaves after the first wrong answer."""
                with contextlib.suppress(ConnectionError):
                    super().handle()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()

        def stop() -> None:
            server.shutdown()
            thread.join()
            server.server_close()

        stops.append(stop)
        return "127.0.0.1", server.server_address[1]

    yield start
    for stop in stops:
        stop()


@pytest.fixture
def oracle(tmp_path: Path) -> check.Oracle:
    models.write(tmp_path / "models", ROOT / "examples", ["identity"])
    return check.Oracle(tmp_path / "models")


def ask(address: tuple[str, int], oracle: check.Oracle) -> None:
    check.check(address, "/v2/models/identity/infer", bodies.make("identity", "json", 1, 4), 4, oracle)


def test_right_answers_pass(serve: Callable[[Answer], tuple[str, int]], oracle: check.Oracle) -> None:
    ask(serve(lambda rows, index: (200, document(rows[index]))), oracle)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda rows, index: (200, document(rows[index - 1])), "differs from onnxruntime"),
        (lambda rows, index: (200, document([value * 1.001 for value in rows[index]])), "differs from onnxruntime"),
        (lambda rows, index: (200, document(rows[index], shape=[16, 1])), "has shape"),
        (lambda rows, index: (200, document(rows[index], name="z")), "were expected"),
        (lambda rows, index: (503, {"error": "not now"}), "got 503"),
    ],
    ids=["swapped", "inexact", "misshapen", "misnamed", "refused"],
)
def test_wrong_answers_are_found(
    answer: Answer, complaint: str, serve: Callable[[Answer], tuple[str, int]], oracle: check.Oracle
) -> None:
    with pytest.raises(check.WrongAnswer, match=complaint):
        ask(serve(answer), oracle)


def test_binary_outputs_are_read_from_behind_the_json() -> None:
    first, second = np.arange(4, dtype="<i8"), np.array([[0.5], [1.5]], "<f4")
    outputs = [
        {"name": "a", "datatype": "INT64", "shape": [4], "parameters": {"binary_data_size": 32}},
        {"name": "b", "datatype": "FP32", "shape": [2, 1], "parameters": {"binary_data_size": 8}},
    ]
    text = json.dumps({"outputs": outputs}).encode()
    _, found = check.decode(text + first.tobytes() + second.tobytes(), str(len(text)))
    assert np.array_equal(found["a"], first)
    assert np.array_equal(found["b"], second)
