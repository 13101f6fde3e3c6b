"""Requests that two readers could read differently, one in each file, against the fast door over a socket.

What must not be taken is answered with an error, the connection ends, and the request that hides behind never gets to
the application; what looks much like it and is valid is answered, and so is the request behind it.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.hostile.wire import BODY, CORPUS, Case, Connection, get_request, infer_request, read_case
from tests.servers import Server

REFUSED = sorted((CORPUS / "refused").glob("*.http"))
TAKEN = sorted((CORPUS / "taken").glob("*.http"))


def name_of(path: Path) -> str:
    return path.stem


def test_the_corpus_is_there() -> None:
    assert len(REFUSED) >= 60
    assert len(TAKEN) >= 15
    for path in REFUSED + TAKEN:
        case = read_case(path)
        assert case.rule, path.name
        assert case.source, path.name
        assert case.request, path.name
    assert [path.stem for path in REFUSED if max(read_case(path).statuses) not in (400, 408, 413, 431)] == []
    assert [path.stem for path in TAKEN if read_case(path).statuses[-1] != 200] == []


@pytest.mark.parametrize("path", REFUSED, ids=name_of)
def test_what_must_not_be_taken_is_refused_and_nothing_behind_it_is_read(path: Path, server: Server) -> None:
    case = read_case(path)
    converse(server, case)
    assert "hidden" not in logged_ids(server)


@pytest.mark.parametrize("path", TAKEN, ids=name_of)
def test_what_is_valid_is_answered_and_so_is_what_comes_behind_it(path: Path, server: Server) -> None:
    case = read_case(path)
    before = logged_ids(server).count("second")
    converse(server, case)
    after = logged_ids(server)
    assert after.count("second") == before + (not case.closes)
    assert "hidden" not in after


@pytest.mark.parametrize("path", TAKEN, ids=name_of)
def test_what_is_valid_is_answered_alike_when_it_comes_byte_by_byte(path: Path, server: Server) -> None:
    case = read_case(path)
    if len(case.request) > 1000:
        pytest.skip("too long to be sent in single bytes")
    converse(server, case, step=1)


def converse(server: Server, case: Case, step: int = 1 << 20) -> None:
    """Send a request and look at all that comes back."""
    with Connection(server.address) as connection:
        for at in range(0, len(case.request), step):
            if not connection.send(case.request[at : at + step]):
                break
        replies = [connection.reply() for _ in case.statuses]
        assert [reply and reply.status for reply in replies] == case.statuses
        last = replies[-1]
        for reply in replies:
            assert reply is not None
            if reply.status >= 400:
                assert reply.document["request_id"] == reply.headers["x-request-id"]
                assert reply.document["error"]
            elif b"outputs" in reply.body:
                assert reply.document["outputs"][0]["data"] == [1, 2, 3, 4]
        if case.closes:
            assert last is not None
            assert last.headers["connection"] == "close"
            assert connection.ended()
        else:
            assert connection.send(get_request())
            probe = connection.reply()
            assert probe is not None
            assert probe.status == 200


def logged_ids(server: Server) -> list[str]:
    """The ids of the requests that got to the application, all that were sent before this call among them."""
    mark = secrets.token_hex(8)
    server.request("GET", "/v2/health/live", headers={"X-Request-Id": mark})
    found: list[str] = []

    def is_written() -> bool:
        found[:] = [line["request_id"] for line in server.log() if line["event"] == "request"]
        return mark in found

    server.wait_for(is_written, 10, "the request is logged")
    return found


def test_refusals_are_counted_and_no_byte_leaves_a_traceback(server: Server) -> None:
    def malformed() -> float:
        lines = server.request("GET", "/metrics")[2].decode().splitlines()
        wanted = 'headgate_http_requests_total{route="_malformed_",status="400"}'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))

    before = malformed()
    for path in REFUSED[:10]:
        if read_case(path).statuses == [400]:
            before += 1
            converse(server, read_case(path))
    assert malformed() == before
    assert [line for line in server.log() if line["level"] in ("error", "critical")] == []


PLACES = {
    "method": b"G%bT /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "target": b"GET /v2/%bhealth/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "first byte of the target": b"GET %bv2/health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "version": b"GET /v2/health/live HTTP/1%b1\r\nHost: a\r\n\r\n",
    "host": b"GET /v2/health/live HTTP/1.1\r\nHost: a%bb\r\n\r\n",
    "name": b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nX%bA: b\r\n\r\n",
    "value": b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nX-A: a%bb\r\n\r\n",
    "length": b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 7%b4\r\n\r\n" + BODY,
    "chunk": b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4a%b\r\n"
    + BODY
    + b"\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("place", PLACES)
def test_any_byte_anywhere_gets_one_answer_that_is_no_fault_of_the_server(place: str, server: Server) -> None:
    """Behind a length or a chunk size that says something else, what is left of the body may be refused as well.

    All are sent before the first answer is read, as some of them make the server wait for more.
    """
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(server.address, timeout_s=10)) for _ in range(256)]
        for value, connection in enumerate(connections):
            connection.send(
                PLACES[place].replace(b"%b", bytes([value])) + infer_request(headers=b"X-Request-Id: end\r\n")
            )
        for value, connection in enumerate(connections):
            statuses: list[int] = []
            while (reply := connection.reply()) is not None:
                statuses.append(reply.status)
                if reply.headers["x-request-id"] == "end" or reply.headers.get("connection") == "close":
                    break
            assert statuses, f"no answer for byte {value}"
            assert len(statuses) <= 2, f"{statuses} for byte {value}"
            assert max(statuses) < 500, f"{statuses} for byte {value}"
