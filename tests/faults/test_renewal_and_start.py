"""Processes that are replaced on purpose, and processes that cannot start."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.workers.board import RunFolder
from tests.faults.watch import Crowd, Totals, is_running, logged, nothing_in_flight
from tests.models.crafted import as_slow_as_asked
from tests.onnx_models import constant_answer, put
from tests.server.watching import ROW
from tests.servers import Server

pytestmark = pytest.mark.faults

Pair = Callable[..., Server]


def asking(trips: float) -> Any:
    """A request for this many rounds of `as_slow_as_asked`."""
    return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [trips, 0, 0, 0]}]}


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
            assert not any(map(is_running, before.values()))
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


def test_where_processes_cannot_start_any_more_the_old_ones_stay_and_the_others_go_on(
    pair: Pair, tmp_path: Path
) -> None:
    """
    1. What a process reads at its start is taken away. 2. SIGHUP. 3. A worker is killed. 4. It is put back.
    Result: the renewal stops and every worker stays; the killed one is tried again after growing pauses; the other
    one answers everything; in the end both serve.
    """
    server = pair("--data", str(tmp_path / "kept"))
    settings = RunFolder(tmp_path / "kept").settings
    text = settings.read_bytes()
    with Crowd(server, clients=4) as crowd:
        settings.unlink()
        before = [server.pid(role) for role in ("worker 1", "worker 2", "control")]
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: logged(server, "renewal-stopped"), 20, "the renewal stops")
        assert all(map(is_running, before))
        crowd.goes_on()

        os.kill(before[0], signal.SIGKILL)

        def tries() -> list[float]:
            lines = [line for line in logged(server, "process-started", role="worker 1") if line["pid"] != before[0]]
            return [datetime.fromisoformat(str(line["time"])).timestamp() for line in lines[1:]]

        server.wait_for(lambda: len(tries()) >= 5, 30, "it was tried five times")
        crowd.goes_on()
        settings.write_bytes(text)
        started = tries()
        pauses = [later - earlier for earlier, later in zip(started, started[1:], strict=False)]
        assert pauses[-1] > 0.6
        assert pauses[-1] > pauses[0]
        server.wait_for(lambda: server.pid("worker 1") != before[0] and len(beats(server)) == 2, 20, "both serve")
    crowd.assert_answered()


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
    return [role for role in ("worker 1", "worker 2") if is_running(server.pid(role))]


def test_a_server_whose_first_processes_cannot_start_ends_with_code_3_and_says_why(
    models: Path, tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    (tmp_path / "kept" / "wishes.json").mkdir(parents=True)
    server = start_server(models, "--data", str(tmp_path / "kept"), wait=False)
    assert server.process.wait(60) == 3
    [said] = logged(server, "cannot-start")
    assert "wishes.json" in str(said["reason"])
    assert logged(server, "start-failed", role="control", exit_code=3)
