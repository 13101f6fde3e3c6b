"""More than anyone needs: headers, paths, chunks and bodies without end. They are refused early and leave nothing."""

from __future__ import annotations

import gzip
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.hostile.wire import BODY, Connection, Reply, get_request, infer_request
from tests.hostile.worker import anonymous_mib
from tests.server.watching import SteadyClient
from tests.servers import Server

MIB = 1 << 20
ENDPOINTS = ("/v2/models/echo/infer", "/v2/repository/index")
CHUNKED = b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def grows_little(server: Server) -> Iterator[Callable[[Callable[[], object], int, float], None]]:
    """A function that does something often and looks at the worker's memory; good clients go on meanwhile."""

    def measure(action: Callable[[], object], times: int, allowed_mib: float) -> None:
        for _ in range(3):
            action()
        before = anonymous_mib(server)
        for _ in range(times):
            action()
        after = anonymous_mib(server)
        print(f"\n{after - before:+.2f} MiB over {times} times")
        assert after - before < allowed_mib

    with SteadyClient(server, "/v2/models/echo/infer", threads=1, pause_s=0.02) as client:
        yield measure
        count = len(client.answers)
        server.wait_for(lambda: len(client.answers) > count + 5, 10, "the good client goes on")
    assert client.failures == []
    assert {answer.value for answer in client.answers} == {1}


def refused(server: Server, pieces: Iterator[bytes], status: int) -> Reply:
    """Send until the server has had enough; the reply, behind which the connection ends."""
    with Connection(server.address) as connection, sending(connection, pieces):
        reply = connection.reply()
        assert reply is not None
        assert reply.status == status, reply
        assert reply.headers["connection"] == "close"
        assert connection.ended()
    return reply


@contextmanager
def sending(connection: Connection, pieces: Iterator[bytes]) -> Iterator[None]:
    """Send from a thread of its own, until the connection ends or the block is left."""
    thread = threading.Thread(target=lambda: all(connection.send(piece) for piece in pieces))
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            connection.socket.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert not thread.is_alive()


def pieces_of(data: bytes, size: int = 65536) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


HEADS = {
    "a value of 1 MiB": (get_request(headers=b"X-A: " + b"a" * MIB + b"\r\n"), 431, "headers-too-large"),
    "a value of 40 KiB": (get_request(headers=b"X-A: " + b"a" * 40_960 + b"\r\n"), 431, "headers-too-large"),
    "a name of 1 MiB": (get_request(headers=b"a" * MIB + b": b\r\n"), 431, "headers-too-large"),
    "10,000 fields": (
        get_request(headers=b"".join(b"X-%d: a\r\n" % i for i in range(10_000))),
        431,
        "headers-too-large",
    ),
    "a path of 100 KiB": (get_request("/v2/" + "a" * 102_400), 414, "uri-too-long"),
    "a path of 4 MiB": (get_request("/v2/" + "a" * 4 * MIB), 414, "uri-too-long"),
    "a query of 100 KiB": (infer_request().replace(b"/infer", b"/infer?" + b"a" * 102_400), 414, "uri-too-long"),
    "a method without end": (b"A" * MIB, 400, "invalid-request"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_without_measure_is_refused_before_its_end(
    kind: str, server: Server, grows_little: Callable[..., None]
) -> None:
    request, status, code = HEADS[kind]

    def once() -> None:
        reply = refused(server, pieces_of(request), status)
        assert reply.document["code"] == code

    grows_little(once, 12, 4.0)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_million_chunks_of_one_byte_are_refused(path: str, server: Server, grows_little: Callable[..., None]) -> None:
    def once() -> None:
        def pieces() -> Iterator[bytes]:
            yield CHUNKED % path.encode()
            for _ in range(1000):
                yield b"1\r\n \r\n" * 1000
            yield b"0\r\n\r\n"

        reply = refused(server, pieces(), 400)
        assert "65536 chunks" in reply.document["error"]

    grows_little(once, 8, 4.0)


def test_as_many_chunks_as_are_allowed_are_taken(server: Server) -> None:
    with Connection(server.address) as connection:
        spaces = 60_000
        connection.send(CHUNKED % b"/v2/models/echo/infer" + b"1\r\n \r\n" * spaces)
        connection.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
        reply = connection.reply()
        assert reply is not None
        assert reply.status == 200


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("place", ["in one chunk", "in many chunks", "in the last chunk"])
def test_chunk_extensions_without_end_are_refused(
    path: str, place: str, server: Server, grows_little: Callable[..., None]
) -> None:
    def pieces() -> Iterator[bytes]:
        yield CHUNKED % path.encode() + b"1\r\n{\r\n"
        if place == "in many chunks":
            for _ in range(512):
                yield b"1;" + b"a" * 8190 + b"\r\n \r\n"
        else:
            yield b"1;" if place == "in one chunk" else b"0;"
            for _ in range(64):
                yield b"a" * 65536

    grows_little(lambda: refused(server, pieces(), 400), 8, 4.0)


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("many", [True, False], ids=["many", "one"])
def test_trailers_without_end_are_refused(
    path: str, many: bool, server: Server, grows_little: Callable[..., None]
) -> None:
    def pieces() -> Iterator[bytes]:
        yield CHUNKED % path.encode() + b"2\r\n{}\r\n0\r\n"
        for _ in range(64):
            yield b"X-A: b\r\n" * 8192 if many else b"a" * 65536

    grows_little(lambda: refused(server, pieces(), 431 if many else 400), 8, 4.0)


def test_an_announced_body_that_is_too_large_is_refused_before_it_is_sent(server: Server) -> None:
    for path in ENDPOINTS:
        with Connection(server.address) as connection:
            connection.send(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 104857600\r\n\r\n" % path.encode())
            reply = connection.reply()
            assert reply is not None
            assert (reply.status, reply.document["code"]) == (413, "payload-too-large")
            assert reply.headers["connection"] == "close"
            assert connection.ended()


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
def test_a_body_of_100_mib_is_not_read(
    path: str, announced: bool, server: Server, grows_little: Callable[..., None]
) -> None:
    """An endpoint of the ASGI application closes at once, and so a client that goes on sending may lose the reply."""

    def once() -> None:
        sent = 0

        def pieces() -> Iterator[bytes]:
            nonlocal sent
            if announced:
                yield b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 104857600\r\n\r\n" % path.encode()
            else:
                yield CHUNKED % path.encode()
            for _ in range(1600):
                sent += 65536
                yield b" " * 65536 if announced else b"10000\r\n" + b" " * 65536 + b"\r\n"

        with Connection(server.address) as connection, sending(connection, pieces()):
            reply = connection.reply()
            if path == ENDPOINTS[0] or reply is not None:
                assert reply is not None
                assert (reply.status, reply.document["code"]) == (413, "payload-too-large")
            assert connection.ended()
        assert sent < 64 * MIB, "the body was read to its end"

    grows_little(once, 6, 16.0)


def bomb(mebibytes: int) -> bytes:
    """White space that is small when compressed, and a body behind it."""
    packer = zlib.compressobj(9, wbits=31)
    packed = [packer.compress(b" " * MIB) for _ in range(mebibytes)]
    return b"".join([*packed, packer.compress(BODY), packer.flush()])


def test_a_body_that_swells_is_refused_without_being_inflated(
    server: Server, grows_little: Callable[..., None]
) -> None:
    small = bomb(100)
    assert len(small) < 128 << 10

    def once() -> None:
        with Connection(server.address) as connection:
            connection.send(infer_request(small, headers=b"Content-Encoding: gzip\r\n"))
            reply = connection.reply()
            assert reply is not None
            assert (reply.status, reply.document["code"]) == (413, "payload-too-large")

    # Inflating goes on up to the limit of 8 MiB, and the allocator keeps some of it.
    grows_little(once, 30, 16.0)


def test_a_body_under_the_limit_may_be_compressed_once_and_in_a_known_way(server: Server) -> None:
    cases = {b"gzip": 200, b"gzip, gzip": 415, b"br": 415, b"gzip\r\nContent-Encoding: gzip": 415}
    for coding, status in cases.items():
        body = gzip.compress(BODY)
        with Connection(server.address) as connection:
            connection.send(infer_request(body, headers=b"Content-Encoding: " + coding + b"\r\n"))
            reply = connection.reply()
            assert reply is not None
            assert reply.status == status, coding


def test_thousands_of_pipelined_requests_are_all_answered_in_their_order(server: Server) -> None:
    """Also where the last of those that wait has come in part, and where replies are much longer than requests."""
    count = 3000
    for model, step in (("echo", 1), ("wide", 10)):
        ids = [b"n%d" % number for number in range(0, count, step)]
        data = b"".join(infer_request(model=model, headers=b"X-Request-Id: %b\r\n" % each) for each in ids)
        with Connection(server.address) as connection, sending(connection, iter([data])):
            for each in ids:
                reply = connection.reply()
                assert reply is not None
                assert (reply.status, reply.headers["x-request-id"]) == (200, each.decode())
