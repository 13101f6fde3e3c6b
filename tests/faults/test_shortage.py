"""A server that has too much to do, or too little memory, says so at once, and counts it."""

from __future__ import annotations

import mmap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.workers.memory import ClosedAdmission, MemoryGuard, own_bytes
from tests.faults.watch import logged, nothing_in_flight, total
from tests.hostile.wire import Connection, get_request, infer_request
from tests.onnx_models import identity, put
from tests.server.watching import ROW
from tests.servers import Server

pytestmark = pytest.mark.faults

CLIENTS, BURST, PERMITS, QUOTA = 8, 16, 8, 3


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker with few permits."""
    folder = tmp_path_factory.mktemp("narrow")
    put(folder / "models", "echo", 1, identity())
    options = ("--max-in-flight", str(PERMITS), "--max-in-flight-per-client", str(QUOTA))
    server = Server(folder / "models", folder / "server", "--quiet-s", "0", *options)
    yield server
    server.stop()


def outcomes(server: Server) -> Counter[str]:
    """Requests for the model by what they came to, from /metrics."""
    found: Counter[str] = Counter()
    for line in server.request("GET", "/metrics")[2].decode().splitlines():
        if line.startswith("headgate_requests_total{") and 'model="echo"' in line:
            found[line.split('code="')[1].split('"')[0]] += int(float(line.split()[-1]))
    return found


def flood(server: Server, rounds: int, headers: bytes = b"") -> Counter[str]:
    """Every client sends a burst at once, round after round; what came of the requests, by code.

    A burst arrives in one piece, so that all of it is there before the first of it is answered.
    """
    found: Counter[str] = Counter()
    with ExitStack() as stack:
        clients = [stack.enter_context(Connection(server.address)) for _ in range(CLIENTS)]
        for _ in range(rounds):
            for client in clients:
                assert client.send(infer_request(headers=headers) * BURST)
            for reply in [client.reply() for client in clients for _ in range(BURST)]:
                assert reply is not None
                if reply.status == 200:
                    found["ok"] += 1
                    continue
                assert reply.status == 429
                assert int(reply.headers["retry-after"]) >= 1
                assert reply.document["request_id"]
                found[reply.document["code"]] += 1
    return found


@pytest.mark.parametrize(("headers", "code"), [(b"", "queue-full"), (b"X-Client-Key: greedy\r\n", "quota-exceeded")])
def test_what_is_beyond_the_permits_is_refused_with_a_time_to_come_back_and_counted_by_reason(
    headers: bytes, code: str, narrow: Server
) -> None:
    """
    1. Eight clients send bursts of 16 requests at once, ten times. 2. One client sends again.
    Result: every request has one answer; those refused say when to come back; answers and refusals of the metrics are
    those that the clients saw; health answers meanwhile; afterwards nothing is in flight and everything is answered.
    """
    before = outcomes(narrow)
    found = flood(narrow, 10, headers)
    assert found.total() == 10 * CLIENTS * BURST
    assert set(found) == {"ok", code}
    assert found[code] >= 10 * (BURST - PERMITS)
    narrow.wait_for(lambda: outcomes(narrow).total() - before.total() == found.total(), 5, "all are counted")
    assert outcomes(narrow) - before == found
    assert narrow.request("GET", "/v2/health/ready")[0] == 200
    narrow.wait_for(lambda: nothing_in_flight(narrow), 5, "nothing is in flight")
    assert narrow.request("POST", "/v2/models/echo/infer", ROW)[0] == 200


def test_a_worker_over_its_memory_limit_refuses_inference_and_answers_everything_else(
    models: Path, start_server: Callable[..., Server]
) -> None:
    server = start_server(models, "--max-worker-memory-bytes", "16MiB")
    server.wait_for(lambda: logged(server, "memory-short"), 10, "the worker finds that it is short of memory")
    status, headers, text = server.request("POST", "/v2/models/echo/infer", ROW)
    assert status == 503
    assert int(headers["retry-after"]) >= 1
    assert b"short of memory" in text
    assert server.request("GET", "/v2/health/ready")[0] == 200
    assert total(server, 'headgate_requests_total{class="overload",code="not-ready"') == 1


class Held:
    """Stands for a pipeline: the guard knows nothing of it but its admission."""

    def __init__(self) -> None:
        from gateway.inference.admission import Admission, Quotas

        self.admission = Admission(Quotas())


def test_the_guard_closes_above_the_limit_and_opens_well_below_it_and_permits_survive_both() -> None:
    held, used, given_back = Held(), [50], []
    guard = MemoryGuard(held, 100, lambda: used[0], lambda: given_back.append(used[0]))  # type: ignore[arg-type]
    held.admission.admit("m", 0, 0.0, "")
    for level, closed in ((50, False), (101, True), (95, True), (89, False), (101, True), (10, False)):
        used[0] = level
        guard.check()
        assert isinstance(held.admission, ClosedAdmission) == closed, level
    assert given_back == [101, 101]
    used[0] = 200
    guard.check()
    held.admission.leave("")
    used[0] = 0
    guard.check()
    assert held.admission.in_flight == 0


def test_pages_of_mapped_files_are_not_held_against_a_worker(tmp_path: Path) -> None:
    size = 256 << 20
    with open(tmp_path / "file", "w+b") as file:
        file.truncate(size)
        before = own_bytes()
        with mmap.mmap(file.fileno(), size) as mapped:
            # Every page is written to, as a segment of the journal is.
            for at in range(0, size, mmap.PAGESIZE):
                mapped[at] = 1
            assert own_bytes() - before < size / 4
    own = bytearray(b"1") * size
    assert own_bytes() - before > size * 3 / 4
    del own


def test_without_a_limit_memory_is_not_even_read() -> None:
    guard = MemoryGuard(Held(), 0, lambda: 1 // 0)  # type: ignore[arg-type]
    guard.check()


def test_a_server_that_is_told_to_end_says_so_and_takes_clients_until_its_grace_is_over(
    models: Path, start_server: Callable[..., Server]
) -> None:
    """
    1. SIGTERM to a server with a grace of two seconds.
    2. Result: readiness says 503; a new client and one that was there are answered; when the grace is over the kept
       connection ends in order, between two replies, and the server with code 0.
    """
    server = start_server(models, "--grace-s", "2")
    with Connection(server.address) as kept:
        assert status_of(kept, get_request("/v2/health/ready")) == 200
        began = time.monotonic()
        server.process.terminate()
        server.wait_for(lambda: status_of(kept, get_request("/v2/health/ready")) == 503, 2, "it is not ready")
        assert server.request("POST", "/v2/models/echo/infer", ROW)[0] == 200
        assert status_of(kept, infer_request()) == 200
        assert kept.ended()
        assert time.monotonic() - began >= 2
    assert server.process.wait(10) == 0


def status_of(client: Connection, request: bytes) -> int:
    """Send a request and read the status of its reply."""
    assert client.send(request)
    reply = client.reply()
    assert reply is not None
    return reply.status
