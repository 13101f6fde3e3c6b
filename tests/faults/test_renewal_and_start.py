"""Processes that are replaced on purpose, and processes that cannot start."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from gateway.models.package import add_version
from gateway.workers.board import RunFolder
from gateway.workers.worker import PATIENT_TRIES
from tests.faults.watch import Crowd, Totals, logged, nothing_in_flight, ports_of
from tests.hostile.wire import Connection, infer_request
from tests.models.crafted import as_slow_as_asked
from tests.onnx_models import constant_answer, put
from tests.processes import is_alive
from tests.server.watching import ROW
from tests.servers import Server

pytestmark = pytest.mark.faults

Pair = Callable[..., Server]


def asking(trips: float) -> Any:
    """A request for this many rounds of `as_slow_as_asked`."""
    return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [trips, 0, 0, 0]}]}


@pytest.mark.slow(15)
def test_on_sighup_every_process_is_replaced_and_no_worker_ends_before_its_successor_serves(
    pair: Pair, models: Path
) -> None:
    """
    1. SIGHUP under load, twice, with a load by request in between.
    2. Result: no error, no wrong answer, no refused connect; no total falls; all processes are others, each worker
       started before its predecessor ended; versions can be changed after it as before.
    """
    put(models, "m", 1, constant_answer(1))
    server = pair()
    roles = ("worker 1", "worker 2", "control")
    with Totals(server) as totals, Crowd(server, clients=4) as crowd:
        for round_ in (1, 2):
            before = {role: server.pid(role) for role in roles}
            server.process.send_signal(signal.SIGHUP)
            server.wait_for(lambda round_=round_: len(logged(server, "renewal-ends")) == round_, 20, "it is renewed")
            others = lambda before=before: not {server.pid(role) for role in roles} & set(before.values())  # noqa: E731
            server.wait_for(others, 10, "all processes are others")
            assert not any(map(is_alive, before.values()))
            version = round_ + 1
            put(models, "m", version, constant_answer(version))
            server.wait_for(
                lambda: server.request("POST", "/v2/repository/models/m/load", {})[0] == 200, 15, "the model loads"
            )
            assert server.infer("m", ROW)["model_version"] == str(version)
            crowd.goes_on()
    crowd.assert_answered()
    assert totals.fell == []
    lines = [line for line in server.log() if line.get("role") in roles[:2]]
    for role in roles[:2]:
        order = [line["event"] for line in lines if line["role"] == role]
        assert order == ["process-started", *["process-started", "process-ended"] * 2]
    assert {line["exit_code"] for line in logged(server, "process-ended")} == {0}
    server.wait_for(lambda: nothing_in_flight(server), 5, "nothing is in flight")
    assert server.stop() == 0


@pytest.mark.slow(10)
def test_where_processes_cannot_start_any_more_the_old_ones_stay_and_the_others_go_on(
    pair: Pair, tmp_path: Path
) -> None:
    """
    1. Folders lie where new processes put their counters. 2. SIGHUP. 3. A worker is killed. 4. They go.
    Result: the renewal stops and every worker stays; the killed one is tried again after growing pauses; the other
    one answers everything; in the end both serve.
    """
    server = pair("--data", str(tmp_path / "kept"))
    counters = [RunFolder(tmp_path / "kept").counters(slot) for slot in (1, 3)]
    with Crowd(server, clients=4) as crowd:
        for path in counters:
            path.unlink(missing_ok=True)
            path.mkdir()
        before = [server.pid(role) for role in ("worker 1", "worker 2", "control")]
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: logged(server, "renewal-stopped"), 20, "the renewal stops")
        assert all(map(is_alive, before))
        crowd.goes_on()

        os.kill(before[0], signal.SIGKILL)

        def tries() -> list[float]:
            lines = [line for line in logged(server, "process-started", role="worker 1") if line["pid"] != before[0]]
            return [datetime.fromisoformat(str(line["time"])).timestamp() for line in lines[1:]]

        server.wait_for(lambda: len(tries()) >= 5, 30, "it was tried five times")
        crowd.goes_on()
        for path in counters:
            path.rmdir()
        started = tries()
        pauses = [later - earlier for earlier, later in zip(started, started[1:], strict=False)]
        assert pauses[-1] > 0.6
        assert pauses[-1] > pauses[0]
        server.wait_for(lambda: server.pid("worker 1") != before[0] and len(beats(server)) == 2, 20, "both serve")
    crowd.assert_answered()


def test_a_worker_that_lacks_a_model_takes_no_clients_until_it_has_loaded_it(pair: Pair, models: Path) -> None:
    """
    1. A model's file is taken away, and a worker is killed. 2. The next one tries to load it. 3. The file is put back.
    Result: while it is away every client is answered, by the other worker; the metric says that a worker lacks it;
    afterwards both have it and every client is answered.
    """
    file = package(models)
    server = pair()
    away = file.rename(models.parent / "model.onnx")
    os.kill(server.pid("worker 1"), signal.SIGKILL)
    server.wait_for(lambda: logged(server, "load-failed", model="kept", tries=2), 20, "it was tried again")
    fresh = server.pid("worker 1")
    assert lacking(server) == 1
    with Crowd(server, clients=4, model="kept") as crowd:
        assert not ports_of(fresh, server)
        away.rename(file)
        server.wait_for(lambda: logged(server, "loaded-after-all", model="kept"), 20, "it is loaded")
        crowd.goes_on()
    crowd.assert_unharmed()
    server.wait_for(lambda: lacking(server) == 0, 10, "nothing is lacking")
    assert_every_connection_is_answered(server)


@pytest.mark.slow(17)
def test_a_worker_that_cannot_load_a_model_serves_without_it_in_the_end_and_goes_on_trying(
    pair: Pair, models: Path
) -> None:
    """
    1. A model's file is away for longer than a new worker waits. 2. The file is put back.
    Result: the new worker serves the other models and says of this one why it does not answer; then it loads it.
    """
    file = package(models)
    server = pair()
    away = file.rename(models.parent / "model.onnx")
    os.kill(server.pid("worker 1"), signal.SIGKILL)
    server.wait_for(lambda: logged(server, "load-failed", model="kept", tries=PATIENT_TRIES), 40, "it has tried enough")

    def refused() -> bool:
        status, headers, text = server.request("POST", "/v2/models/kept/infer", ROW)
        return status == 503 and "retry-after" in headers and b"this worker could not load it" in text

    server.wait_for(refused, 20, "it serves without the model")
    for _ in range(10):
        assert server.request("POST", "/v2/models/echo/infer", ROW)[0] == 200
    away.rename(file)
    server.wait_for(lambda: logged(server, "loaded-after-all", model="kept"), 40, "it is loaded")
    server.wait_for(lambda: lacking(server) == 0, 10, "nothing is lacking")
    assert_every_connection_is_answered(server)


def package(models: Path) -> Path:
    """A version with a manifest, which stays wanted while its file is away; returns that file."""
    return add_version(models, "kept", models / "echo" / "1" / "model.onnx") / "model.onnx"


def lacking(server: Server) -> float:
    """Workers that lack that version, from the admin port."""
    with urlopen(f"{server.admin_url}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    series = 'headgate_model_missing_workers{model="kept",version="1"}'
    return next(float(line.split()[-1]) for line in lines if line.startswith(series))


def assert_every_connection_is_answered(server: Server) -> None:
    """Connections that stay come to both workers."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Connection(server.address)) for _ in range(20)]
        for client in clients:
            client.send(infer_request(model="kept"))
        assert {reply.status for client in clients if (reply := client.reply())} == {200}
        assert all(ports_of(server.pid(role), server) for role in ("worker 1", "worker 2"))


def test_a_worker_with_a_run_that_never_ends_is_replaced_after_its_deadline_and_nobody_else_notices(
    pair: Pair, models: Path
) -> None:
    """
    1. One request asks for a run without end.
    2. Result: it gets 504 at its deadline; its worker gets a successor and ends; the clients of other models and of
       the same model go on.
    """
    put(models, "slow", 1, as_slow_as_asked())
    server = pair("--default-deadline-s", "0.5")
    before = {role: server.pid(role) for role in ("worker 1", "worker 2")}
    with Crowd(server, clients=4) as crowd:
        status, _, text = server.request("POST", "/v2/models/slow/infer", asking(1e15))
        assert status == 504, text
        server.wait_for(lambda: logged(server, "process-ended"), 30, "the worker has ended")
        crowd.goes_on()
    crowd.assert_answered()
    [ended] = logged(server, "process-ended")
    assert (ended["pid"], ended["exit_code"]) == (before[str(ended["role"])], 1)
    [stuck] = logged(server, "run-stuck")
    assert stuck["version"] == "slow/1"
    assert [line["event"] for line in server.log() if line.get("role") == ended["role"]][-2:] == [
        "process-started",
        "process-ended",
    ]
    for _ in range(8):
        assert server.request("POST", "/v2/models/slow/infer", asking(10))[0] == 200


def beats(server: Server) -> list[str]:
    """The workers that hold connections or could."""
    return [role for role in ("worker 1", "worker 2") if is_alive(server.pid(role))]


def test_a_server_whose_first_processes_cannot_start_ends_with_code_3_and_says_why(
    models: Path, tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    (tmp_path / "kept" / "wishes.json").mkdir(parents=True)
    server = start_server(models, "--data", str(tmp_path / "kept"), wait=False)
    assert server.process.wait(60) == 3
    [said] = logged(server, "cannot-start")
    assert "wishes.json" in str(said["reason"])
    assert logged(server, "start-failed", role="control", exit_code=3)
