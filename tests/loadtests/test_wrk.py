"""The load generator: what is made of its report, and what its script really sends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtests import bodies, wrk
from tests.programs import found

LINE = (
    "measured requests=5000 duration_us=2000000 bytes=1 p50_us=60 p90_us=70 p99_us=95 max_us=200 "
    "connect=0 read=0 write=0 status=0 timeout=0"
)
NOISE = "Running 2s test @ http://127.0.0.1:1\n  1 threads and 4 connections\n"


def test_rate_and_latency_come_from_the_line_of_the_script() -> None:
    report = wrk.parse(f"{NOISE}\n{LINE}\n", cpu_s=1.5)
    assert report.rate == 2500
    assert (report.p50_us, report.p99_us) == (60, 95)
    assert report.generator_share == 0.75


@pytest.mark.parametrize("kind", wrk.ERRORS)
def test_a_run_with_one_error_of_any_kind_does_not_count(kind: str) -> None:
    with pytest.raises(wrk.RunFailed, match=f"1 {kind} errors"):
        wrk.parse(LINE.replace(f"{kind}=0", f"{kind}=1"), cpu_s=1)


def test_a_run_without_an_answer_does_not_count() -> None:
    with pytest.raises(wrk.RunFailed, match="no request was answered"):
        wrk.parse(LINE.replace("requests=5000", "requests=0"), cpu_s=1)


def test_output_without_the_line_does_not_count() -> None:
    with pytest.raises(wrk.RunFailed, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:1 Connection refused", cpu_s=1)


class Recorder(BaseHTTPRequestHandler):
    """Answers 200 to a body it was told to expect, 400 to any other, and keeps every traceparent."""

    protocol_version = "HTTP/1.1"
    expected: dict[bytes, str | None]
    seen: set[bytes]
    traces: list[str | None]

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        known = content in self.expected
        right = known and self.headers["Inference-Header-Content-Length"] == self.expected[content]
        self.seen.add(content)
        self.traces.append(self.headers["traceparent"])
        self.send_response(200 if right and self.path == "/v2/models/trees/infer" else 400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def handle(self) -> None:
        """wrk leaves without its last replies when its time is up."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def recorder() -> Iterator[tuple[str, type[Recorder]]]:
    class Handler(Recorder):
        expected, seen, traces = {}, set(), []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v2/models/trees/infer", Handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def generator() -> None:
    """The program itself."""
    found("wrk")


@pytest.mark.usefixtures("generator")
@pytest.mark.parametrize("form", bodies.FORMS)
def test_every_prepared_request_is_sent_as_it_was_written(
    form: str, recorder: tuple[str, type[Recorder]], tmp_path: Path
) -> None:
    url, handler = recorder
    made = bodies.make("trees", form, rows=2, count=5)
    handler.expected = {each.content: each.headers.get("Inference-Header-Content-Length") for each in made}
    bodies.write(tmp_path / "bodies", made)
    report = wrk.run(url, tmp_path / "bodies", connections=2, seconds=1, cores=(), first=3)
    assert report.requests > 5
    assert handler.seen == {each.content for each in made}
    assert set(handler.traces) == {None}


@pytest.mark.usefixtures("generator")
def test_a_traced_run_never_sends_a_trace_id_twice(recorder: tuple[str, type[Recorder]], tmp_path: Path) -> None:
    url, handler = recorder
    made = bodies.make("trees", "json", rows=1, count=3)
    handler.expected = {each.content: None for each in made}
    bodies.write(tmp_path / "bodies", made)
    report = wrk.run(url, tmp_path / "bodies", connections=2, seconds=1, cores=(), traced=True)
    assert len(handler.traces) >= report.requests
    assert len(set(handler.traces)) == len(handler.traces)
    assert all(trace is not None and len(trace) == 55 for trace in handler.traces)


@pytest.mark.usefixtures("generator")
def test_a_server_that_refuses_fails_the_run(recorder: tuple[str, type[Recorder]], tmp_path: Path) -> None:
    bodies.write(tmp_path / "bodies", bodies.make("trees", "json", rows=1, count=1))
    with pytest.raises(wrk.RunFailed, match="status errors"):
        wrk.run(recorder[0], tmp_path / "bodies", connections=1, seconds=1, cores=())
