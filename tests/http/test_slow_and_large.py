"""Slow bytes and large requests without a socket: whatever a client sends and however slowly, it ends in time and size.

The same against a server over sockets, with memory and good clients beside it, is in tests/hostile.
"""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.wire import CORPUS, read_case
from tests.http.messages import INFER, KINDS, chunked, document, message
from tests.http.rig import Rig, run, settle, turn
from tests.inference.fakes import servable

SLOW = {
    **KINDS,
    "trailers": message(
        chunked(document(1), 1)[:-2] + b"X-Trailer: a\r\nX-Other: b\r\n\r\n", "Transfer-Encoding: chunked", length=False
    ),
    "chunk extension": message(
        chunked(document(1)).replace(b"\r\n", b";name=value\r\n", 1), "Transfer-Encoding: chunked", length=False
    ),
    "upgrade": message(document(1), "Connection: Upgrade", "Upgrade: h2c"),
    "expect": message(document(1), "Expect: 100-continue"),
    "head of an endpoint": message(b"", path="/v2/repository/index"),
}
"""Requests that a client may begin and never end."""


@pytest.mark.parametrize("kind", SLOW)
def test_wherever_a_request_stops_its_connection_ends_in_time_with_at_most_one_answer(kind: str) -> None:
    """1. The first bytes come, and then one each second. 2. The clock goes on.

    Result: when the time for headers, or that for a body behind them, is over, the client is told so once.
    """
    rig = Rig(servable(), header_timeout_s=10.0, body_timeout_s=30.0, idle_timeout_s=5.0)
    request = SLOW[kind]
    end = request.index(b"\r\n\r\n") + 4

    async def main() -> None:
        for cut in range(1, len(request) - 60, 1 if len(request) < 300 else 3):
            connection, now = rig.connect(), 0
            connection.send(request[:cut])
            await turn()
            rest = iter(request[cut:-1])
            while not connection.is_over:
                connection.check(rig.set_clock(1.0))
                connection.send(bytes([next(rest)]))
                await turn()
                now += 1
                assert now <= 10 + 30 + 2, f"{kind} cut at {cut} is still there"
            final = [reply for reply in connection.replies() if reply.status != 100]
            assert len(final) == 1, (kind, cut, final)
            assert final[0].status == 408 or cut + now >= end
            if final[0].status == 408:
                assert json.loads(final[0].body)["code"] == "request-timeout"
                assert final[0].headers["connection"] == "close"
            connection.check(rig.set_clock(5.0))
            assert connection.transport.closing, "the client keeps its half open for ever"
            await settle(rig)
        rig.assert_at_rest()

    run(main)


RAW = sorted(CORPUS.glob("*/*.http"))


@pytest.mark.parametrize("path", RAW, ids=[path.stem for path in RAW])
def test_raw_bytes_mean_the_same_one_by_one(path: Path) -> None:
    """What hides behind a bad request does not come to light when the bytes come in other pieces."""
    case = read_case(path)
    if len(case.request) > 3000:
        pytest.skip("too long to be sent in single bytes")
    rig = Rig(servable(model="echo"), servable())

    async def main() -> None:
        whole, single = rig.connect(), rig.connect()
        whole.send(case.request)
        single.send(*(case.request[at : at + 1] for at in range(len(case.request))))
        await settle(rig)
        for connection in (whole, single):
            connection.check(rig.set_clock(0.0))
        assert [reply.status for reply in single.replies()] == [reply.status for reply in whole.replies()]
        assert single.masked() == whole.masked()
        assert single.is_over == whole.is_over
        assert b"hidden" not in single.transport.written

    run(main)


def floods() -> Iterator[tuple[str, bytes, bytes, int]]:
    """(name, how it begins, what is sent again and again, the status of the refusal)."""
    for path in (INFER, "/v2/repository/index"):
        begins = message(b"", "Transfer-Encoding: chunked", path=path, length=False)
        yield f"chunks of one byte, {path}", begins, b"1\r\n \r\n" * 4096, 400
        yield f"chunk extensions, {path}", begins + b"1", b";" + b"a" * 65_535, 400
        yield f"trailers, {path}", begins + b"0\r\n", b"X-A: b\r\n" * 8192, 431
        yield f"a trailer, {path}", begins + b"0\r\nX-A: ", b"a" * 65_536, 400
        yield f"a body, {path}", begins, b"10000\r\n" + b" " * 65_536 + b"\r\n", 413
    yield "a header", b"GET / HTTP/1.1\r\nX-A: ", b"a" * 65_536, 431
    yield "headers", b"GET / HTTP/1.1\r\n", b"X-A: b\r\n" * 8192, 431
    yield "a path", b"GET /", b"a" * 65_536, 414
    yield "a method", b"", b"A" * 65_536, 400


FLOODS = {name: rest for name, *rest in floods()}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_refused_and_leaves_nothing(name: str) -> None:
    """What is kept of it is less than a MiB over a hundred of them (CVE-2025-23310), and little while it comes."""
    begins, again, status = FLOODS[name]
    assert isinstance(begins, bytes)
    rig = Rig(servable(), max_body_bytes=1 << 20, max_chunks=8192)

    async def once() -> None:
        connection = rig.connect()
        connection.send(begins)
        for _ in range(200):
            connection.send(again)
            if connection.is_over:
                break
            await turn()
        await settle(rig)
        (reply,) = connection.replies()
        assert (reply.status, reply.headers["connection"]) == (status, "close")
        assert connection.is_over
        connection.transport.close()
        await settle(rig)

    async def main() -> None:
        for _ in range(3):
            await once()
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(5):
                await once()
            gc.collect()
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 5 * (1 << 20) / 100
        assert peak - before < 5 << 20
        rig.assert_at_rest()

    run(main)
