"""Processes that are killed or stopped under load: who had nothing to do with it does not notice."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from gateway.server import KILL_AFTER_S
from tests.faults.watch import Crowd, Totals, logged, nothing_in_flight, ports_of, total
from tests.hatchery import Command
from tests.hostile.wire import Connection, infer_request
from tests.onnx_models import constant_answer, put
from tests.processes import descendants, family, is_alive, nurseries
from tests.server.watching import ROW
from tests.servers import Server

pytestmark = pytest.mark.faults

Pair = Callable[..., Server]
LATE_S = 20.0
"""What is allowed where two seconds are meant: the machine may be busy with other tests. `python -m loadtests.faults`
holds the two seconds on one that is not."""


def seconds_until(server: Server, reached: Callable[[], object], what: str, allowed_s: float = LATE_S) -> float:
    """Wait for something, and say how long it took."""
    began = time.monotonic()
    server.wait_for(reached, allowed_s, what)
    taken = time.monotonic() - began
    print(f"\n{what} after {taken:.2f} s")
    return taken


def serves(server: Server, role: str, old: int) -> bool:
    """Whether another process than `old` has this role and answers a client that has just come."""
    pid = server.pid(role)
    if pid == old:
        return False
    with Connection(server.address) as client:
        client.send(infer_request())
        reply = client.reply()
        return reply is not None and reply.status == 200 and client.port in ports_of(pid, server)


def test_a_killed_worker_takes_only_its_own_connections_with_it(pair: Pair) -> None:
    """
    1. Six clients, on both workers; one worker is killed.
    2. Result: only connections of that worker break, nobody gets an error, no connect is refused, another worker
       serves in its place, and no total of the metrics falls, on either port.
    """
    server = pair()
    with Totals(server) as totals, Crowd(server, clients=8) as crowd:
        victim = server.pid("worker 1")
        server.wait_for(lambda: ports_of(victim, server) & crowd.ports, 10, "the worker has clients")
        before = total(server, "headgate_requests_total{")
        doomed = ports_of(victim, server)
        os.kill(victim, signal.SIGKILL)
        crowd.goes_on()
        seconds_until(server, lambda: serves(server, "worker 1", victim), "another worker serves")
        crowd.goes_on()
        scraped = list(totals.scrapes)
        server.wait_for(lambda: min(totals.scrapes) > min(scraped) + 2, 10, "both ports are scraped")
        assert total(server, "headgate_requests_total{") > before
    crowd.assert_answered()
    assert set(crowd.broken) <= doomed
    assert totals.fell == []
    assert logged(server, "process-ended", role="worker 1", pid=victim, exit_code=-9)
    server.wait_for(lambda: nothing_in_flight(server), 5, "nothing is in flight")


def test_when_all_workers_are_killed_at_once_clients_wait_and_none_is_refused(pair: Pair) -> None:
    server = pair()
    with Crowd(server) as crowd:
        workers = [server.pid("worker 1"), server.pid("worker 2")]
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        with socket.create_connection(server.address.split(":"), timeout=20) as waiting:  # type: ignore[arg-type]
            waiting.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert waiting.recv(100).startswith(b"HTTP/1.1 200 ")
        print(f"\na client that came while nobody was there was answered after {time.monotonic() - began:.2f} s")
        for role, old in zip(("worker 1", "worker 2"), workers, strict=True):
            server.wait_for(lambda role=role, old=old: server.pid(role) != old, LATE_S, f"{role} is replaced")
        crowd.goes_on()
    crowd.assert_answered()
    assert len(logged(server, "process-ended", exit_code=-9)) == 2
    server.wait_for(lambda: nothing_in_flight(server), 5, "nothing is in flight")


def test_predictions_go_on_without_the_control_process_and_the_next_one_takes_over(pair: Pair, models: Path) -> None:
    """
    1. The control process is killed under load.
    2. Result: no request fails, readiness never goes off, the next control process loads nothing anew, and carries
       out orders.
    """
    put(models, "other", 1, constant_answer(1))
    put(models, "other", 2, constant_answer(2))
    server = pair()
    ready = len(logged(server, "version-ready"))
    with Crowd(server) as crowd:
        old = server.pid("control")
        os.kill(old, signal.SIGKILL)
        not_ready: list[bytes] = []

        def is_back() -> bool:
            status, _, text = server.request("GET", "/v2/health/ready")
            if status != 200:
                not_ready.append(text)
            return server.pid("control") != old and answers_on_admin(server)

        seconds_until(server, is_back, "the next control process answers", 15)
        crowd.goes_on()
        assert not_ready == []
        assert len(logged(server, "version-ready")) == ready, "a version that serves was loaded anew"
        for verb, slot in (("unload", "2"), ("load", "1"), ("load", "2")):
            reply = server.request("POST", f"/v2/repository/models/other/versions/{slot}/{verb}", {})
            assert reply[0] == 200, reply
        assert server.infer("other", ROW)["model_version"] == "2"
        crowd.goes_on()
    crowd.assert_unharmed()
    assert logged(server, "process-ended", role="control", pid=old, exit_code=-9)
    server.wait_for(lambda: nothing_in_flight(server), 5, "nothing is in flight")


def answers_on_admin(server: Server) -> bool:
    host, port = server.admin_url.removeprefix("http://").split(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1) as client:
            client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return client.recv(100).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


def test_without_the_supervisor_the_others_end_by_themselves_and_free_the_ports(pair: Pair) -> None:
    server = pair("--drain-s", "2")
    members = [pid for pid in family(server.process.pid) if pid != server.process.pid]
    addresses = [server.address, server.admin_url.removeprefix("http://")]
    assert len(members) == 3
    with Crowd(server) as crowd:
        server.process.kill()
        server.process.wait(10)
        began = time.monotonic()
        while any(map(is_alive, members)):
            assert time.monotonic() - began < 5 + LATE_S, "there are orphans"
            time.sleep(0.02)
        print(f"\nall had ended after {time.monotonic() - began:.2f} s")
        crowd.end()
    assert (crowd.wrong, crowd.errors) == ([], [])
    for address in addresses:
        host, port = address.split(":")
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, int(port)))


def test_a_worker_that_hangs_is_replaced_and_the_clients_of_the_other_do_not_notice(pair: Pair) -> None:
    server = pair("--heartbeat-timeout-s", "1")
    with Crowd(server, clients=8) as crowd:
        victim = server.pid("worker 1")
        server.wait_for(lambda: ports_of(victim, server) & crowd.ports, 10, "the worker has clients")
        doomed = ports_of(victim, server)
        os.kill(victim, signal.SIGSTOP)
        crowd.goes_on()
        seconds_until(server, lambda: serves(server, "worker 1", victim), "another worker serves", 3 + 2 * LATE_S)
        crowd.goes_on()
    crowd.assert_answered()
    assert set(crowd.broken) <= doomed
    assert logged(server, "process-hung", role="worker 1")
    assert logged(server, "process-ended", role="worker 1", pid=victim)
    server.wait_for(lambda: nothing_in_flight(server), 5, "nothing is in flight")


def test_while_a_worker_hangs_new_clients_are_answered_by_the_other_long_before_it_is_replaced(pair: Pair) -> None:
    """
    1. One of two workers stops, with the time that a worker normally has. 2. Twenty clients come and stay.
    Result: each is answered while nobody has even tried to end the worker that hangs.
    """
    server = pair()
    with ExitStack() as stack:
        os.kill(server.pid("worker 1"), signal.SIGSTOP)
        for _ in range(20):
            client = stack.enter_context(Connection(server.address))
            client.send(infer_request())
            reply = client.reply()
            assert reply is not None
            assert reply.status == 200
        assert logged(server, "process-hung") == []
    server.wait_for(lambda: logged(server, "process-ended", role="worker 1"), 10 + LATE_S, "the worker is given up")


def test_a_server_that_is_told_to_end_under_load_answers_what_it_has_taken(pair: Pair) -> None:
    server = pair()
    with Crowd(server) as crowd:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        crowd.end()
    assert crowd.wrong == []
    assert [error for error in crowd.errors if not error.startswith("503 ")] == []
    assert logged(server, "stopping")
    assert {line["exit_code"] for line in logged(server, "process-ended")} == {0}


def test_a_server_with_a_worker_that_hangs_ends_in_bounded_time_and_says_that_it_did_not_end_well(pair: Pair) -> None:
    server = pair("--drain-s", "1", "--heartbeat-timeout-s", "60")
    os.kill(server.pid("worker 1"), signal.SIGSTOP)
    began = time.monotonic()
    assert server.stop(timeout_s=1 + KILL_AFTER_S + LATE_S) != 0
    print(f"\nended after {time.monotonic() - began:.2f} s")
    assert {line["exit_code"] for line in logged(server, "process-ended", role="worker 1")} == {-9}, server.log()[-9:]


def test_a_supervisor_that_inherits_orphans_buries_them(
    models: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    1. A server is the reaper of its descendants, as process 1 of a container is. 2. Its control process is killed
       while it has a nursery. Result: the nursery ends, and no zombie stays.
    """
    monkeypatch.setattr("tests.servers.Command", partial(Command, is_reaper=True))
    server = pair()
    monkeypatch.undo()
    put(models, "new", 1, constant_answer(1))
    (nursery, *_) = wait_for_nurseries(server)
    os.kill(server.pid("control"), signal.SIGKILL)
    server.wait_for(lambda: not Path(f"/proc/{nursery}").exists(), 10, "the nursery is buried")
    server.wait_for(lambda: all(map(is_alive, descendants(server.process.pid))), 10, "no zombie is left")
    assert server.stop() == 0


def wait_for_nurseries(server: Server) -> list[int]:
    """The nurseries of a server, once it has one."""
    found: list[int] = []
    server.wait_for(lambda: found.extend(nurseries(server.process.pid)) or found, 10, "a nursery")
    return found
