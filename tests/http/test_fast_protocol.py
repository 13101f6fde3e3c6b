"""The fast door byte by byte: however a request is cut, joined to others or spelt, its answer is the same."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.connection import LINGER_S, MAX_PIPELINED
from gateway.http.head import MAX_HEADS
from gateway.types import Array
from tests.http.messages import HEADS, INFER, KINDS, chunked, document, message
from tests.http.rig import Connection, Reply, Rig, run, settle
from tests.inference.fakes import FakeSession, Gate, echo, servable

LONG = {"run_s": 1.0, "batch_s": 1.0}


async def alone(rig: Rig, request: bytes) -> Reply:
    """The answer to a request that comes whole, on a connection of its own."""
    connection = rig.connect()
    connection.send(request)
    await settle(rig)
    (reply,) = connection.masked()
    assert not connection.is_over
    connection.lose()
    return reply


def values_of(reply: Reply) -> list[float]:
    """The first column of a reply: the values that were sent."""
    assert reply.status == 200, reply
    return list(json.loads(reply.body)["outputs"][0]["data"][::2])


# -- however it is cut


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_cut_at_any_byte_is_answered_as_a_whole_one(kind: str) -> None:
    rig = Rig(servable())
    request = KINDS[kind]

    async def main() -> None:
        wanted = await alone(rig, request)
        connection = rig.connect()
        for at in range(1, len(request)):
            connection.transport.written = b""
            connection.send(request[:at], request[at:])
            await settle(rig)
            assert connection.masked() == [wanted], at
        connection.transport.written = b""
        connection.send(*(request[at : at + 1] for at in range(len(request))))
        await settle(rig)
        assert connection.masked() == [wanted]
        rig.assert_at_rest()

    run(main)


@pytest.mark.parametrize("first", KINDS)
def test_two_requests_in_one_piece_are_answered_in_their_order(first: str) -> None:
    rig = Rig(servable())

    async def main() -> None:
        wanted = {kind: await alone(rig, request) for kind, request in KINDS.items()}
        for second in KINDS:
            connection = rig.connect()
            connection.send(KINDS[first] + KINDS[second])
            await settle(rig)
            assert connection.masked() == [wanted[first], wanted[second]], second
            assert connection.transport.reading
        rig.assert_at_rest()

    run(main)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_requests_cut_anywhere_are_answered_in_their_order(data: st.DataObject) -> None:
    rig = Rig(servable())
    kinds = data.draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=6))
    stream = b"".join(KINDS[kind] for kind in kinds)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=6)))
    pauses = data.draw(st.lists(st.booleans(), min_size=len(cuts) + 1, max_size=len(cuts) + 1))

    async def main() -> None:
        wanted = {kind: await alone(rig, KINDS[kind]) for kind in kinds}
        connection = rig.connect()
        for start, stop, pause in zip([0, *cuts], [*cuts, len(stream)], pauses, strict=True):
            connection.send(stream[start:stop])
            if pause:
                await settle(rig)
        await settle(rig)
        assert connection.masked() == [wanted[kind] for kind in kinds]
        assert not connection.is_over
        assert connection.transport.reading
        rig.assert_at_rest()

    run(main)


@given(sizes=st.lists(st.integers(1, 40), max_size=20), cut=st.integers(1, 60))
def test_a_body_in_any_chunks_is_the_same_body(sizes: list[int], cut: int) -> None:
    rig = Rig(servable())
    request = message(chunked(document(1, 2, 3), *sizes), "Transfer-Encoding: chunked", length=False)

    async def main() -> None:
        connection = rig.connect()
        connection.send(*(request[at : at + cut] for at in range(0, len(request), cut)))
        await settle(rig)
        (reply,) = connection.replies()
        assert values_of(reply) == [1, 2, 3]

    run(main)


def test_more_requests_than_may_wait_are_all_answered_and_then_read_on() -> None:
    rig = Rig(servable())

    async def main() -> None:
        connection = rig.connect()
        for count in (MAX_PIPELINED, MAX_PIPELINED + 1, 2 * MAX_PIPELINED, 1):
            connection.transport.written = b""
            connection.send(*(message(document(number)) for number in range(count)))
            assert connection.transport.reading == (count < MAX_PIPELINED)
            await settle(rig)
            assert [values_of(reply) for reply in connection.replies()] == [[number] for number in range(count)]
            assert connection.transport.reading, "it is never read again"
        rig.assert_at_rest()

    run(main)


# -- seen before or new


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_was_seen_is_answered_as_a_new_one(name: str) -> None:
    rig = Rig(servable())
    given_id = "abc" if name.startswith("id") and "of" not in name and "bad" not in name else None

    async def main() -> None:
        seen = []
        for value in (1, 2, 3):
            connection = rig.connect()
            connection.send(message(document(value), *HEADS[name]))
            await settle(rig)
            *_, reply = connection.replies()
            if given_id is not None:
                assert reply.headers["x-request-id"] == given_id
            masked = reply.masked()
            seen.append(([each.status for each in connection.replies()], masked.headers, connection.is_over))
            connection.lose()
        assert seen[0] == seen[1] == seen[2]

    run(main)


def test_a_remembered_head_gives_nobody_the_request_id_of_another() -> None:
    rig = Rig(servable())

    async def main() -> None:
        found = []
        for number in range(4):
            own = [f"X-Request-Id: id-{number}"] if number % 2 == 0 else []
            connection = rig.connect()
            connection.send(message(document(number), *own))
            await settle(rig)
            (reply,) = connection.replies()
            found.append(reply.headers["x-request-id"])
        assert found[0] == "id-0"
        assert found[2] == "id-2"
        assert len(set(found)) == 4

    run(main)


SAME_SIZE = {
    "plain": "X-Any: any-thing-at-all!",
    "gzip": "Accept-Encoding:    gzip",
    "id": "X-Request-Id: four-words",
    "other id": "X-Request-Id: five-words",
}
"""Header lines that make heads of one size."""


def test_heads_of_one_size_are_never_taken_for_each_other() -> None:
    """Any three of them one behind the other, each whole or in two pieces; first where none is known, then again."""
    rig = Rig(servable())
    assert len({len(line) for line in SAME_SIZE.values()}) == 1
    orders = itertools.product(SAME_SIZE, repeat=3)
    cuts = list(itertools.product([False, True], repeat=3))

    async def main() -> None:
        for order in orders:
            rig.gateway.heads.clear()
            for in_pieces in [*cuts, *cuts]:
                connection = rig.connect()
                for name, cut in zip(order, in_pieces, strict=True):
                    request = message(document(1), SAME_SIZE[name])
                    connection.send(*([request[:-9], request[-9:]] if cut else [request]))
                await settle(rig)
                for name, reply in zip(order, connection.replies(), strict=True):
                    assert ("content-encoding" in reply.headers) == (name == "gzip"), (order, in_pieces)
                    own = SAME_SIZE[name].rpartition(" ")[2]
                    assert (reply.headers["x-request-id"] == own) == name.endswith("id"), (order, in_pieces)
                connection.lose()

    run(main)


def test_a_continued_header_line_is_not_joined_to_another_header_by_what_is_remembered() -> None:
    """Folded lines are refused, wherever a line stands that is left out of what is remembered."""
    rig = Rig(servable())

    async def main() -> None:
        for _ in range(3):
            for headers in (
                ["Accept-Encoding: gzip"],
                ["Accept-Encoding: gzip\r\nX-Request-Id: abc\r\n , deflate"],
                ["Accept-Encoding: gzip\r\n , deflate"],
            ):
                connection = rig.connect()
                connection.send(message(document(1), *headers))
                await settle(rig)
                (reply,) = connection.replies()
                assert reply.status == (200 if "\r\n" not in headers[0] else 400), headers

    run(main)


def test_heads_are_remembered_in_bounds_and_long_ones_never() -> None:
    rig = Rig(servable())

    async def main() -> None:
        connection = rig.connect()
        for number in range(MAX_HEADS + 10):
            connection.send(message(document(1), f"X-Other: {number}"))
            if number % MAX_PIPELINED == 0:
                await settle(rig)
        await settle(rig)
        assert 0 < len(rig.gateway.heads) <= MAX_HEADS
        before = len(rig.gateway.heads)
        connection.send(message(document(1), "X-Other: " + "a" * 3000))
        await settle(rig)
        assert len(rig.gateway.heads) == before
        assert len(connection.replies()) == MAX_HEADS + 11

    run(main)


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


# -- limits


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (message(document(1), *(f"X-{number}: a" for number in range(20))), 431, "headers-too-large"),
        (message(document(1), "X-Long: " + "a" * 2000), 431, "headers-too-large"),
        (message(document(1), "X-" + "a" * 2000 + ": a"), 431, "headers-too-large"),
        (message(document(1), path=INFER + "?" + "a" * 300), 414, "uri-too-long"),
        (message(b"a" * 1025), 413, "payload-too-large"),
        (message(b"", f"Content-Length: {10**19}", length=False), 413, "payload-too-large"),
        (message(chunked(b"a" * 1025, 100), "Transfer-Encoding: chunked", length=False), 413, "payload-too-large"),
        (message(b"5\r\nabc\r\n", "Transfer-Encoding: chunked", length=False), 400, "invalid-request"),
        (message(b"", "Content-Length: x", length=False), 400, "invalid-request"),
        (b"nonsense\r\n\r\n", 400, "invalid-request"),
        (message(method="GET", path="/v2/health/live", version="2.5"), 400, "invalid-request"),
    ],
    ids=[
        "many headers",
        "long value",
        "long name",
        "long path",
        "long body",
        "endless body",
        "long chunked body",
        "bad chunk",
        "bad length",
        "nonsense",
        "version",
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize("before", [None, "json", "unknown model"])
def test_what_is_over_a_limit_or_no_request_is_refused_behind_what_is_owed_and_the_connection_ends(
    request_: bytes, status: int, code: str, step: int, before: str | None
) -> None:
    rig = Rig(servable(), max_headers=16, max_header_bytes=1024, max_url_bytes=256, max_body_bytes=1024)

    async def main() -> None:
        connection = rig.connect()
        first = KINDS[before] if before else b""
        stream = first + request_
        connection.send(*(stream[at : at + step] for at in range(0, len(stream), step)))
        await settle(rig)
        # What comes now is read by nobody.
        connection.send(KINDS["json"])
        await settle(rig)
        *owed, last = connection.replies()
        assert connection.is_over
        assert [reply.status for reply in owed] == ([{"json": 200, "unknown model": 404}[before]] if before else [])
        assert (last.status, json.loads(last.body)["code"]) == (status, code)
        assert last.headers["connection"] == "close"
        rig.assert_at_rest()

    run(main)


@pytest.mark.parametrize("bad", [b"nonsense\r\n\r\n", message(document(1), path=INFER + "?" + "a" * 300)])
def test_behind_an_asgi_reply_what_is_no_request_ends_the_connection_without_a_word(bad: bytes) -> None:
    rig = Rig(servable(), max_url_bytes=256)

    async def main() -> None:
        connection = rig.connect()
        connection.send(KINDS["metadata"] + bad)
        await settle(rig)
        (reply,) = connection.replies()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert connection.is_over
        rig.assert_at_rest()

    run(main)


@pytest.mark.parametrize("path", [INFER, "/v2/repository/index"])
@pytest.mark.parametrize("in_chunks", [True, False])
def test_a_body_in_too_many_pieces_is_refused(path: str, in_chunks: bool) -> None:
    rig = Rig(servable(), max_chunks=20)

    async def main() -> None:
        connection = rig.connect()
        if in_chunks:
            body = chunked(b"a" * 40, *[1] * 40)
            connection.send(message(body, "Transfer-Encoding: chunked", path=path, length=False))
        else:
            request = message(b" " * 1000 + b"{}", path=path)
            connection.send(request[:-1000], *[b" "] * 1000)
        await settle(rig)
        (reply,) = connection.replies()
        assert (reply.status, json.loads(reply.body)["code"]) == (400, "invalid-request")
        assert connection.is_over
        rig.assert_at_rest()

    run(main)


@pytest.mark.parametrize("size", [1024, 1025])
def test_a_body_of_just_the_limit_is_read_and_one_byte_more_is_not(size: int) -> None:
    rig = Rig(servable(), max_body_bytes=1024)

    async def main() -> None:
        body = document(1).ljust(size)
        for request in (
            message(body),
            message(chunked(body, 500), "Transfer-Encoding: chunked", length=False),
            message(gzip.compress(body), "Content-Encoding: gzip"),
        ):
            connection = rig.connect()
            connection.send(request)
            await settle(rig)
            (reply,) = connection.replies()
            assert reply.status == (200 if size == 1024 else 413)
            assert connection.is_over == (size != 1024)
        rig.assert_at_rest()

    run(main)


def test_the_body_of_a_request_that_was_refused_may_be_too_large_behind_replies_that_are_owed() -> None:
    """1. A request waits for its run. 2. The next one is refused by its head. 3. Its body then passes the limit.

    Result: the first reply goes out, then the refusal, then the connection ends.
    """
    rig = Rig(servable(), max_body_bytes=1024)
    body = chunked(b"a" * 3000, 1000, 1000)

    async def main() -> None:
        connection = rig.connect()
        refused = message(body, "Transfer-Encoding: chunked", path="/v2/models/nobody/infer", length=False)
        connection.send(KINDS["json"] + refused)
        await settle(rig)
        assert [reply.status for reply in connection.replies()] == [200, 404]
        assert connection.is_over
        rig.assert_at_rest()

    run(main)


def test_a_body_that_breaks_in_an_asgi_request_ends_behind_the_replies_that_are_owed() -> None:
    rig = Rig(servable())
    broken = message(b"zz\r\n", "Transfer-Encoding: chunked", path="/v2/repository/index", length=False)

    async def main() -> None:
        connection = rig.connect()
        connection.send(KINDS["json"] + broken)
        await settle(rig)
        assert [reply.status for reply in connection.replies()] == [200, 400]
        assert connection.is_over
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


# -- counting


def test_every_reply_is_counted_by_its_status() -> None:
    rig = Rig(servable())

    async def main() -> None:
        wanted: dict[str, int] = {}
        for kind, request in itertools.chain(KINDS.items(), KINDS.items()):
            connection = rig.connect()
            connection.send(request)
            await settle(rig)
            status = str(connection.replies()[0].status)
            wanted[status] = wanted.get(status, 0) + 1
            assert rig.statuses() == wanted, kind

    run(main)


def test_a_model_that_fails_is_answered_with_500_and_the_connection_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def fails_on_two(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        if (inputs["x"] == 2).any():
            raise RuntimeError("secret")
        return echo(inputs, outputs)

    rig = Rig(servable(FakeSession(fails_on_two)))

    async def main() -> None:
        connection: Connection = rig.connect()
        connection.send(*(message(document(value)) for value in (1, 2, 3)))
        await settle(rig)
        one, two, three = connection.replies()
        assert (values_of(one), values_of(three)) == ([1], [3])
        assert two.status == 500
        assert b"secret" not in two.body
        assert not connection.is_over

    run(main)
