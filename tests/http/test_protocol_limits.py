"""The fast door: what is over a limit or no request is refused behind what is owed."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.http.messages import INFER, KINDS, chunked, document, message
from tests.http.rig import Rig, run, settle
from tests.inference.fakes import servable


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
