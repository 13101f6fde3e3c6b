"""Clients that take their time: they are given up when theirs is over, and nobody else notices."""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.hostile.wire import BODY, Connection, get_request, infer_request
from tests.hostile.worker import anonymous_mib, descriptors
from tests.server.watching import SteadyClient
from tests.servers import Server

pytestmark = pytest.mark.faults

ALLOWED_S = 1.0
"""What the server of these tests gives a client for headers, for a body, for silence, and to read its replies."""

LATE_S = 6.0
"""How much later a machine that is busy with other tests may be."""


@contextmanager
def victims(server: Server) -> Iterator[None]:
    """Good clients on connections of their own: none of them may fail. Afterwards nothing of the test is left."""
    before = descriptors(server)
    with SteadyClient(server, "/v2/models/echo/infer", threads=2, pause_s=0.02) as client:
        yield
        count = len(client.answers)
        server.wait_for(lambda: len(client.answers) > count + 10, 10, "the good clients go on")
    assert client.failures == []
    assert {answer.value for answer in client.answers} == {1}
    # A version has one to two segments of the journal open, of three descriptors each.
    server.wait_for(lambda: descriptors(server) <= before + 2 + 6, 30, "the sockets are closed")
    assert in_flight(server) == 0


def in_flight(server: Server) -> float:
    """Requests that are being answered, when the gauge has been set again."""
    time.sleep(0.3)
    lines = server.request("GET", "/metrics")[2].decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("headgate_requests_in_flight{"))


def drip(server: Server, count: int, starts: bytes, drops: bytes, every_s: float) -> list[tuple[float, bytes]]:
    """Open connections that send `starts`, then one byte of `drops` after the other; when each ended, with what."""
    host, port = server.address.split(":")
    began = time.monotonic()
    ends: list[tuple[float, bytes]] = []
    received: dict[socket.socket, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            client = socket.create_connection((host, int(port)))
            client.sendall(starts)
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ)
            received[client] = b""
        at, due = 0, time.monotonic()
        while received:
            assert time.monotonic() - began < ALLOWED_S + LATE_S, f"{len(received)} of {count} are still connected"
            for key, _ in selector.select(max(0.0, due - time.monotonic())):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                try:
                    data = client.recv(65536)
                except ConnectionResetError:
                    data = b""
                received[client] += data
                if not data:
                    selector.unregister(client)
                    client.close()
                    ends.append((time.monotonic() - began, received.pop(client)))
            if drops and time.monotonic() >= due:
                due = time.monotonic() + every_s
                for client in received:
                    # Where it has ended, that is read in the next round.
                    with suppress(BrokenPipeError, ConnectionResetError):
                        client.send(drops[at % len(drops) :][:1])
                at += 1
            elif not drops:
                due = time.monotonic() + every_s
    return ends


def statuses(replies: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", replies)]


def assert_given_up(ends: list[tuple[float, bytes]], count: int, expected: list[int]) -> None:
    assert len(ends) == count
    assert {tuple(statuses(replies)) for _, replies in ends} == {tuple(expected)}
    assert min(seconds for seconds, _ in ends) > ALLOWED_S / 2, "given up before their time was over"
    if expected and expected[-1] == 408:
        document = json.loads(ends[0][1].rpartition(b"\r\n\r\n")[2])
        assert document["code"] == "request-timeout"


def test_silent_connections_are_closed(server: Server) -> None:
    with victims(server):
        assert_given_up(drip(server, 500, b"", b"", 0.1), 500, [408])


def test_headers_that_come_byte_by_byte_are_given_up_however_steadily_they_come(server: Server) -> None:
    with victims(server):
        ends = drip(server, 500, b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nX-Slow: ", b"a", 0.1)
        assert_given_up(ends, 500, [408])


def test_empty_lines_do_not_keep_a_connection_open(server: Server) -> None:
    with victims(server):
        assert_given_up(drip(server, 100, b"", b"\r\n", 0.05), 100, [408])


def test_empty_lines_behind_a_request_do_not_keep_a_connection_open(server: Server) -> None:
    with victims(server):
        assert_given_up(drip(server, 100, infer_request(), b"\r\n", 0.05), 100, [200])


BODIES = {
    "of an inference": (b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 74\r\n\r\n", [408]),
    "in chunks": (b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4a\r\n", [408]),
    "of an endpoint": (b"POST /v2/repository/index HTTP/1.1\r\nHost: a\r\nContent-Length: 74\r\n\r\n", [408]),
    "that nobody waits for": (b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nContent-Length: 74\r\n\r\n", [200]),
    "of a refused request": (b"POST /v2/models/none/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 74\r\n\r\n", [404]),
    "behind a good request": (infer_request() + infer_request()[:-10], [200, 408]),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_that_comes_byte_by_byte_is_given_up_with_one_answer(kind: str, server: Server) -> None:
    starts, expected = BODIES[kind]
    with victims(server):
        # Slow enough that what is left of the body does not arrive in time.
        ends = drip(server, 100, starts, BODY if "behind" not in kind else b"", 0.05)
        assert_given_up(ends, 100, expected)


def test_an_idle_connection_is_closed_without_a_word(server: Server) -> None:
    with victims(server):
        assert_given_up(drip(server, 100, infer_request(), b"", 0.05), 100, [200])
        assert_given_up(drip(server, 100, get_request(), b"", 0.05), 100, [200])


def test_clients_that_do_not_read_are_cut_and_their_replies_do_not_pile_up(server: Server) -> None:
    request = infer_request(model="wide")
    with Connection(server.address) as connection:
        assert connection.send(request)
        reply = connection.reply()
        assert reply is not None
        assert reply.status == 200
        assert len(reply.body) > 100 * len(request)
    before = anonymous_mib(server)
    with victims(server):
        cut = [stall(server, request * 40_000) for _ in range(6)]
    after = anonymous_mib(server)
    print(f"\ncut after {max(cut):.1f} s at the latest; {before:.0f} MiB before, {after:.0f} behind it")
    assert after - before < 64


def stall(server: Server, data: bytes) -> float:
    """Send requests and read nothing until the connection is cut; returns the seconds from the last byte taken."""
    host, port = server.address.split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.setblocking(False)
        taken = time.monotonic()
        view = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_WRITE)
            while True:
                assert view, "the server has read everything"
                assert time.monotonic() - taken < ALLOWED_S + LATE_S, "the connection is still there"
                if not selector.select(0.1):
                    continue
                try:
                    view = view[client.send(view[:65536]) :]
                    taken = time.monotonic()
                except BlockingIOError:
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    return time.monotonic() - taken
