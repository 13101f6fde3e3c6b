"""A worker that runs out of descriptors keeps what it has, takes no more, and does not burn the processor over it."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.hostile.wire import Connection, get_request, infer_request
from tests.onnx_models import identity, put
from tests.servers import Server

pytestmark = pytest.mark.faults

IDLE_S = 30
Start = Callable[..., Server]


@pytest.fixture
def server(tmp_path: Path, start_server: Start) -> Server:
    put(tmp_path / "models", "echo", 1, identity())
    return start_server(tmp_path / "models", "--idle-timeout-s", str(IDLE_S), "--header-timeout-s", str(IDLE_S))


@pytest.fixture
def crowd(server: Server) -> Iterator[list[socket.socket]]:
    """Sockets that the test may connect; all are closed with it."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.socket()) for _ in range(200)]


def processor_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load_of(pid: int, seconds: float) -> float:
    """The share of one core that a process uses now."""
    before, began = processor_s(pid), time.monotonic()
    time.sleep(seconds)
    return (processor_s(pid) - before) / (time.monotonic() - began)


def assert_answers(connection: Connection) -> None:
    """An inference and a health check on a connection that stands."""
    connection.send(infer_request() + get_request())
    for _ in range(2):
        reply = connection.reply()
        assert reply is not None
        assert reply.status == 200


def connect(crowd: list[socket.socket], server: Server) -> None:
    host, port = server.address.split(":")
    for each in crowd:
        each.settimeout(5)
        each.connect((host, int(port)))


def test_connections_beyond_half_of_the_descriptors_wait_and_the_others_go_on(
    server: Server, crowd: list[socket.socket]
) -> None:
    """
    1. The supervisor may have 64 files open, and so the worker that takes the place of a killed one.
    2. 200 clients connect. Result: 32 are let in, the rest waits without a busy loop; those that are in, the health
       check among them, and the metrics on the admin port are answered; when clients leave, others are let in.
    """
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (64, 64))
    old = server.pid("worker 1")
    os.kill(old, signal.SIGKILL)
    server.wait_for(lambda: server.pid("worker 1") != old, 10, "the worker is replaced")
    server.wait_ready()
    worker = server.pid("worker 1")
    with Connection(server.address) as settled:
        assert_answers(settled)
        at_rest = len(os.listdir(f"/proc/{worker}/fd"))
        connect(crowd, server)
        server.wait_for(lambda: len(os.listdir(f"/proc/{worker}/fd")) >= at_rest + 30, 10, "the worker is full")
        share = load_of(worker, 2.0)
        print(f"\n{share:.1%} of a core while {len(crowd)} connections wait at the door")
        assert share < 0.2
        assert len(os.listdir(f"/proc/{worker}/fd")) <= at_rest + 32
        for _ in range(5):
            assert_answers(settled)
        with urlopen(f"{server.admin_url}/metrics", timeout=10) as reply:
            assert b"headgate_requests_total" in reply.read()
        for each in crowd:
            each.close()
        server.wait_for(lambda: server.request("GET", "/v2/health/live")[0] == 200, 10, "new connections are served")
        assert_answers(settled)
    assert not [line for line in server.log() if line["event"] == "accept-failed"]


def test_a_worker_without_a_single_descriptor_pauses_and_says_so(server: Server, crowd: list[socket.socket]) -> None:
    """
    1. The limit of a running worker falls to what it holds, and 200 clients connect.
    2. Result: it says that it cannot accept, once a second and not in a loop; its connections are answered; when the
       limit rises again, so are the clients that waited.
    """
    worker = server.pid("worker 1")
    with Connection(server.address) as settled:
        assert_answers(settled)
        old = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        highest = max(int(each) for each in os.listdir(f"/proc/{worker}/fd"))
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (highest + 4, old[1]))
        connect(crowd, server)

        def complaints() -> list[str]:
            return [line["reason"] for line in server.log() if line["event"] == "accept-failed"]

        server.wait_for(complaints, 10, "the worker says that it cannot accept")
        share = load_of(worker, 2.0)
        print(f"\n{share:.1%} of a core without a descriptor, {len(complaints())} complaints")
        assert share < 0.2
        assert len(complaints()) <= 6
        assert set(complaints()) == {"Too many open files"}
        for _ in range(5):
            assert_answers(settled)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, old)
        began = time.monotonic()
        crowd[-1].sendall(get_request())
        assert crowd[-1].recv(100).startswith(b"HTTP/1.1 200 ")
        print(f"served {time.monotonic() - began:.1f} s after the limit rose")
    assert server.request("GET", "/v2/health/ready")[0] == 200
