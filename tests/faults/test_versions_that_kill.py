"""Versions that crash the workers that load or run them: the version or the input goes, everything else stays."""

from __future__ import annotations

import ctypes
import http.client
import itertools
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.control.blame import LOAD_DEATHS, RUN_DEATHS
from gateway.workers.board import RunFolder
from gateway.workers.notes import Notes
from tests.faults.models import DEADLY, deadly, slow_to_load
from tests.faults.watch import Crowd, logged
from tests.onnx_models import constant_answer, put
from tests.servers import Server

pytestmark = pytest.mark.faults

Pair = Callable[..., Server]


def document(*row: float) -> Any:
    return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": row}]}


def ask(server: Server, model: str, *row: float) -> int:
    """The status of the reply; 0 where the connection broke."""
    try:
        return server.request("POST", f"/v2/models/{model}/infer", document(*row))[0]
    except (OSError, http.client.HTTPException):
        return 0


def soon(told: Callable[[], bool]) -> bool:
    """Whether it comes true in as long as the control process takes to hear of a crash, and much longer."""
    deadline = time.monotonic() + 1
    while not told() and time.monotonic() < deadline:
        time.sleep(0.02)
    return told()


def answering(server: Server) -> set[str]:
    """The versions of m that eight connections get, which are spread over the workers."""
    return {server.infer("m", document(0, 0, 0, 0)).get("model_version", "none") for _ in range(8)}


def index(server: Server, model: str, version: int) -> tuple[str, str]:
    """State and reason in the repository index."""
    rows = server.json("POST", "/v2/repository/index")
    return next((row["state"], row["reason"]) for row in rows if (row["name"], row["version"]) == (model, str(version)))


def crash(pid: int) -> bool:
    """Send SIGSEGV to the thread of a worker that computes beside the loop; False where none does right now."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        is_alive = (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
        if is_alive and int(task.name) != pid:
            return bool(ctypes.CDLL(None).tgkill(pid, int(task.name), int(signal.SIGSEGV)) == 0)
    return False


def test_an_input_that_crashes_workers_is_soon_refused_and_its_version_goes_on(pair: Pair, models: Path) -> None:
    """
    1. One row crashes the worker that runs it; clients of another model go on meanwhile.
    2. Result: the row is answered with an error after three crashes (a few more where workers had not yet heard of
       the ones before) and crashes nothing more; other rows of the same model fare as before; the other
       clients got no error and no refused connect.
    """
    put(models, "trap", 1, deadly(7))
    server = pair()
    with Crowd(server, clients=4) as crowd:
        statuses = []
        while not statuses or statuses[-1] == 0:
            statuses.append(ask(server, "trap", DEADLY, 1, 2, 3))
            assert ask(server, "trap", 1, 1, 2, 3) in (200, 0)
            assert len(statuses) < 10
        assert 3 <= len(statuses) - 1 <= 6
        assert statuses[-1] == 422
        ended = len(logged(server, "process-ended"))
        for _ in range(10):
            assert ask(server, "trap", DEADLY, 1, 2, 3) == statuses[-1]
        assert server.infer("trap", document(5, 1, 2, 3))["outputs"][0]["data"] == [7, 7, 7, 7]
        assert len(logged(server, "process-ended")) == ended == len(statuses) - 1
        crowd.goes_on()
    crowd.assert_answered()
    crashes = logged(server, "process-ended", exit_code=-signal.SIGFPE)
    assert all(line["culprits"] == ["trap/1"] for line in crashes)
    assert all("session.py:" in line["calls"][0] for line in crashes), crashes[0]
    assert index(server, "trap", 1)[0] == "READY"


def test_a_version_that_crashes_by_many_inputs_is_blocked_and_the_one_before_it_answers(
    pair: Pair, models: Path, tmp_path: Path
) -> None:
    """
    1. Version 2 crashes workers by rows that all differ. 2. The server is started anew. 3. The version is reloaded.
    Result: it is withdrawn with the reason, version 1 answers; so it is after the start; the reload brings it back.
    """
    put(models, "m", 1, constant_answer(1))
    put(models, "m", 2, deadly(2))
    options = ("--data", str(tmp_path / "kept"))
    server = pair(*options)
    assert server.infer("m", document(0, 0, 0, 0))["model_version"] == "2"
    with Crowd(server, clients=4) as crowd:
        # Those that came before workers had heard of the first count as one.
        for count in itertools.count(1):
            server.wait_for(lambda: ask(server, "m", 1, 1, 1, 1) == 200, 20, "the model answers")
            assert ask(server, "m", DEADLY, count, 0, 0) == 0
            if count >= RUN_DEATHS and soon(lambda: logged(server, "version-blocked") != []):
                break
            assert count < 2 * RUN_DEATHS
        server.wait_for(lambda: answering(server) == {"1"}, 20, "version 1 answers")
        assert server.infer("m", document(DEADLY, 0, 0, 0))["model_version"] == "1"
        crowd.goes_on()
    crowd.assert_answered()
    state, reason = index(server, "m", 2)
    assert (state, reason) == ("UNAVAILABLE", logged(server, "version-blocked")[0]["reason"])
    assert reason.startswith(f"{count} workers crashed (SIGFPE) while running it")
    assert server.stop() == 0

    again = pair(*options)
    assert again.infer("m", document(DEADLY, 0, 0, 0))["model_version"] == "1"
    assert index(again, "m", 2) == ("UNAVAILABLE", reason)
    status, _, text = again.request("POST", "/v2/repository/models/m/versions/2/reload", {})
    assert status == 200, text
    assert again.infer("m", document(0, 0, 0, 0))["model_version"] == "2"


def test_a_version_that_crashes_workers_while_they_load_it_is_given_up(
    pair: Pair, models: Path, tmp_path: Path
) -> None:
    """
    1. Whenever a worker loads version 2, it gets a SIGSEGV. 2. The load is asked for until it is refused for good.
    Result: version 1 answers throughout, version 2 is blocked with the reason after three crashes.
    """
    put(models, "m", 1, constant_answer(1))
    server = pair("--data", str(tmp_path / "kept"))
    folder = RunFolder(tmp_path / "kept")
    killed: set[int] = set()

    def kill_who_loads() -> bool:
        nonlocal killed
        for slot in (1, 2):
            pid = server.pid(f"worker {slot}")
            loading = [each for each in Notes(folder.notes(slot)).culprits() if each.loading and each.key.version == 2]
            if loading and pid not in killed and len(killed) < LOAD_DEATHS:
                killed |= {pid} if crash(pid) else set()
        return bool(logged(server, "version-blocked"))

    put(models, "m", 2, slow_to_load())
    with Crowd(server, clients=4) as crowd:
        deadline = time.monotonic() + 60
        while not kill_who_loads():
            assert time.monotonic() < deadline, (killed, server.log()[-5:])
            time.sleep(0.002)
        # Where the third crash comes behind the end of a try, it is the next try that says so.
        said = f"{LOAD_DEATHS} workers crashed (SIGSEGV) while loading it"
        server.wait_for(lambda: index(server, "m", 2)[1].startswith(said), 20, "it is given up")
        assert index(server, "m", 2)[0] == "UNAVAILABLE"
        server.wait_for(lambda: ask(server, "m", 0, 0, 0, 0) == 200, 10, "version 1 answers")
        assert server.infer("m", document(0, 0, 0, 0))["model_version"] == "1"
        crowd.goes_on()
    crowd.assert_answered()
    assert len(killed) == LOAD_DEATHS
