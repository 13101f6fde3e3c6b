"""Connections of the fast door: how long they live, and those of clients that do not read, leave or say nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.http.connection import LINGER_S
from tests.http.alone import alone, values_of
from tests.http.messages import INFER, KINDS, document, message
from tests.http.rig import Rig, run, settle, turn
from tests.inference.fakes import FakeSession, Gate, servable

LONG = {"run_s": 1.0, "batch_s": 1.0}


# -- how long a connection lives


@pytest.mark.parametrize("kind", ["json", "binary", "wrong", "unknown model", "metadata", "no route"])
@pytest.mark.parametrize(
    ("old", "new", "closes"),
    [
        ("HTTP/1.1\r\n", "HTTP/1.1\r\nConnection: close\r\n", True),
        ("HTTP/1.1\r\n", "HTTP/1.1\r\nConnection: keep-alive\r\n", False),
        ("HTTP/1.1\r\n", "HTTP/1.0\r\n", True),
        ("HTTP/1.1\r\n", "HTTP/1.0\r\nConnection: keep-alive\r\n", True),
    ],
)
def test_a_connection_ends_after_the_last_request_and_says_so(kind: str, old: str, new: str, closes: bool) -> None:
    rig = Rig(servable())
    request = KINDS[kind].replace(old.encode(), new.encode(), 1)

    async def main() -> None:
        wanted = await alone(rig, KINDS[kind])
        connection = rig.connect()
        # What comes behind a last request is none of ours.
        connection.send(request + KINDS["json"])
        await settle(rig)
        replies = connection.masked()
        assert len(replies) == (1 if closes else 2)
        assert (replies[0].headers.pop("connection", None) == "close") == closes
        assert replies[0] == wanted
        assert connection.is_over == closes
        rig.assert_at_rest()

    run(main)


def test_an_offer_to_continue_is_taken_up_before_the_body_and_only_for_a_request_that_is_admitted() -> None:
    rig = Rig(servable())

    async def main() -> None:
        body = document(1)
        for path, statuses in ((INFER, [100, 200]), ("/v2/models/nobody/infer", [404])):
            connection = rig.connect()
            request = message(body, "Expect: 100-continue", path=path)
            connection.send(request[: -len(body)])
            await settle(rig)
            assert [reply.status for reply in connection.replies()] == statuses[:1]
            connection.send(body)
            await settle(rig)
            assert [reply.status for reply in connection.replies()] == statuses
        rig.assert_at_rest()

    run(main)


# -- clients that do not read, and clients that leave


def test_a_client_that_does_not_read_is_not_read_and_is_cut_in_the_end() -> None:
    rig = Rig(servable(), write_timeout_s=30.0)

    async def main() -> None:
        connection = rig.connect()
        connection.send(KINDS["json"])
        connection.protocol.pause_writing()
        assert not connection.transport.reading
        await settle(rig)
        assert not connection.transport.reading, "a reply made it read again"
        connection.check(rig.set_clock(29))
        assert not connection.transport.closing
        connection.protocol.resume_writing()
        assert connection.transport.reading
        connection.check(rig.set_clock(2))
        assert not connection.transport.aborted
        connection.protocol.pause_writing()
        connection.check(rig.set_clock(31))
        assert connection.transport.aborted

    run(main)


def test_a_connection_that_is_closed_but_never_read_is_cut_in_the_end() -> None:
    """Closing waits for the last bytes to be written, and the client need only not read."""
    rig = Rig(servable(), write_timeout_s=30.0)

    async def main() -> None:
        connection = rig.connect()
        connection.send(KINDS["json"].replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        await settle(rig)
        assert connection.transport.closing
        connection.check(rig.set_clock(0))
        connection.check(rig.set_clock(29))
        assert not connection.transport.aborted
        connection.check(rig.set_clock(2))
        assert connection.transport.aborted

    run(main)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_connection_that_is_lost_hurts_none_of_those_beside_it(gone: int) -> None:
    gate = Gate()
    session = FakeSession(gate)
    rig = Rig(servable(session, **LONG))

    async def main() -> None:
        connections = [rig.connect() for _ in range(3)]
        for number, connection in enumerate(connections):
            connection.send(*[message(document(number))] * 2)
        half = message(document(9))
        connections[gone].send(half[:-5])
        while not gate.begun.acquire(blocking=False):
            await asyncio.sleep(0.001)
        connections[gone].lose()
        gate.may_end.release(2)
        while any(version.in_flight for version in rig.versions):
            await asyncio.sleep(0.001)
        for number, connection in enumerate(connections):
            found = [values_of(reply) for reply in connection.replies()]
            assert found == ([] if number == gone else [[number]] * 2)
        assert rig.outcomes() == {"ok": 4, "client-gone": 3}
        rig.assert_at_rest()
        rig.gateway.pipeline.close()

    run(main)


# -- the clock


@pytest.mark.parametrize("cut", [1, 30, -40])
def test_headers_that_do_not_come_are_not_waited_for(cut: int) -> None:
    rig = Rig(servable(), header_timeout_s=10.0)
    head = KINDS["json"].partition(b"\r\n\r\n")[0]

    async def main() -> None:
        for before in (b"", KINDS["json"]):
            connection = rig.connect()
            connection.send(before + head[:cut])
            await settle(rig)
            connection.check(rig.set_clock(9))
            assert not connection.is_over
            # A byte now and then is no reprieve.
            connection.send(head[cut : cut + 1])
            connection.check(rig.set_clock(2))
            *_, reply = connection.replies()
            assert (reply.status, reply.headers["connection"]) == (408, "close")
            assert connection.is_over
        rig.assert_at_rest()

    run(main)


def test_a_connection_that_says_nothing_at_all_is_not_kept() -> None:
    rig = Rig(servable(), header_timeout_s=10.0)

    async def main() -> None:
        connection = rig.connect()
        connection.check(rig.set_clock(9))
        assert not connection.is_over
        connection.check(rig.set_clock(2))
        assert connection.is_over

    run(main)


@pytest.mark.parametrize("kind", ["json", "chunked", "unknown model", "index"])
def test_a_body_that_does_not_come_is_not_waited_for(kind: str) -> None:
    rig = Rig(servable(), body_timeout_s=30.0)
    request = KINDS[kind]

    async def main() -> None:
        connection = rig.connect()
        connection.send(request[:-1])
        await settle(rig)
        connection.check(rig.set_clock(29))
        assert not connection.is_over
        connection.check(rig.set_clock(2))
        await settle(rig)
        (reply,) = connection.replies()
        assert reply.status == (404 if kind == "unknown model" else 408)
        assert connection.is_over
        # What comes too late changes nothing; and a client that never closes its side is closed.
        connection.send(request[-1:] + KINDS["json"])
        connection.check(rig.set_clock(LINGER_S + 1))
        assert connection.transport.closing
        assert len(connection.replies()) == 1
        rig.assert_at_rest()

    run(main)


def test_a_connection_between_requests_is_closed_when_it_was_idle_for_too_long() -> None:
    rig = Rig(servable(), idle_timeout_s=5.0)

    async def main() -> None:
        connection = rig.connect()
        for _ in range(3):
            connection.send(KINDS["json"])
            await settle(rig)
            connection.check(rig.set_clock(4))
            assert not connection.is_over
        connection.check(rig.set_clock(2))
        assert connection.transport.closing
        assert len(connection.replies()) == 3

    run(main)


def test_head_and_body_of_an_asgi_reply_go_out_in_one_piece() -> None:
    rig = Rig(servable())

    async def main() -> None:
        connection = rig.connect()
        for count in (1, 2):
            connection.send(KINDS["metadata"])
            await settle(rig)
            assert (len(connection.replies()), connection.transport.writes) == (count, count)

    run(main)


def test_an_asgi_reply_without_a_body_goes_out_before_what_was_asked_behind_it() -> None:
    rig = Rig(servable())

    async def main() -> None:
        connection = rig.connect()
        connection.send(message(method="HEAD", path="/v2/health/live"))
        while connection.protocol.asgi_is_busy():
            await asyncio.sleep(0)
        connection.send(KINDS["wrong"])
        await settle(rig)
        first, _, rest = connection.transport.written.partition(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 200 OK")
        assert rest.startswith(b"HTTP/1.1 400 Bad Request")

    run(main)


def test_the_head_of_an_asgi_reply_does_not_wait_for_a_body_that_comes_later() -> None:
    rig = Rig(servable())
    goes_on = asyncio.Event()

    async def slowly(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await goes_on.wait()
        await send({"type": "http.response.body", "body": b"done"})

    rig.config.loaded_app = slowly

    async def main() -> None:
        connection = rig.connect()
        connection.send(KINDS["metadata"])
        await turn()
        assert connection.transport.written.endswith(b"content-length: 4\r\n\r\n")
        goes_on.set()
        await settle(rig)
        assert connection.transport.written.endswith(b"\r\n\r\ndone")

    run(main)


def test_a_connection_is_idle_for_as_long_behind_an_asgi_reply_as_behind_any_other() -> None:
    rig = Rig(servable(), idle_timeout_s=7.0, header_timeout_s=10.0)

    async def main() -> None:
        for rest in (b"", b"POST /v2/models/m/in"):
            connection = rig.connect()
            connection.send(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n" + rest)
            await settle(rig)
            assert connection.protocol.timeout_keep_alive_task is None, "uvicorn has a deadline of its own"
            connection.check(rig.set_clock(6))
            assert not connection.is_over
            connection.check(rig.set_clock(2 if not rest else 5))
            await settle(rig)
            assert connection.is_over
            assert [reply.status for reply in connection.replies()] == [200, 408][: 1 + bool(rest)]

    run(main)


@pytest.mark.parametrize("target", ["/v1/nowhere", "/v2/repository/index", "/v1/feedback", INFER + "/more"])
def test_a_client_that_still_sends_can_read_the_asgi_reply_that_ends_its_connection(target: str) -> None:
    rig = Rig(servable(), max_body_bytes=1000)

    async def main() -> None:
        connection = rig.connect()
        connection.send(f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n".encode())
        for _ in range(20):
            connection.send(b"x" * 10_000)
            await settle(rig)
        (reply,) = connection.replies()
        assert reply.status in (404, 413)
        assert reply.headers["connection"] == "close"
        assert connection.transport.eof, "it is told that nothing more comes"
        assert not connection.transport.closing, "closing on unread data would reset it"
        connection.check(rig.set_clock(LINGER_S + 1))
        await settle(rig)
        assert connection.transport.closing

    run(main)


def test_a_connection_that_waits_for_its_reply_is_not_idle() -> None:
    gate = Gate()
    rig = Rig(servable(FakeSession(gate), **LONG), idle_timeout_s=5.0, default_deadline_s=60.0)

    async def main() -> None:
        connection = rig.connect()
        connection.send(KINDS["json"])
        connection.check(rig.set_clock(100))
        assert not connection.is_over
        gate.may_end.release()
        while not connection.transport.written:
            await asyncio.sleep(0.001)
        assert values_of(connection.replies()[0]) == [1]
        connection.check(rig.set_clock(4))
        assert not connection.is_over, "the time of the run was taken for idleness"
        rig.gateway.pipeline.close()

    run(main)


# -- the end of the server


def test_at_the_end_idle_connections_close_and_others_after_what_they_are_owed() -> None:
    rig = Rig(servable())

    async def main() -> None:
        idle, waiting, receiving, asgi = (rig.connect() for _ in range(4))
        idle.send(KINDS["json"])
        await settle(rig)
        waiting.send(KINDS["json"] + KINDS["two rows"])
        receiving.send(KINDS["json"][:-5])
        asgi.send(KINDS["metadata"])
        for connection in (idle, waiting, receiving, asgi):
            connection.protocol.shutdown()
        assert idle.transport.closing
        await settle(rig)
        assert [len(connection.replies()) for connection in (waiting, receiving, asgi)] == [2, 0, 1]
        assert waiting.replies()[-1].headers["connection"] == "close"
        assert waiting.is_over
        assert asgi.is_over
        receiving.send(KINDS["json"][-5:])
        await settle(rig)
        assert values_of(receiving.replies()[0]) == [1]
        assert receiving.is_over
        rig.assert_at_rest()

    run(main)


def test_what_comes_behind_the_last_reply_of_a_server_that_ends_hurts_nobody() -> None:
    """1. A request waits. 2. The server is told to end. 3. The same client sends one more and half of another."""
    rig = Rig(servable())

    async def main() -> None:
        connection, other = rig.connect(), rig.connect()
        connection.send(KINDS["json"])
        connection.protocol.shutdown()
        connection.send(KINDS["json"] + KINDS["json"][:-5])
        other.send(KINDS["two rows"])
        await settle(rig)
        assert values_of(connection.replies()[0]) == [1]
        assert len(connection.replies()) == 1
        assert connection.is_over
        assert values_of(other.replies()[0]) == [2, 3]
        connection.transport.close()
        await settle(rig)
        rig.assert_at_rest()

    run(main)
