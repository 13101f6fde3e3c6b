"""The lifecycle over a real server: versions that come, go, hang and fail, and a server that is told to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.models.package import add_version
from tests.models.crafted import as_slow_as_asked, looping, swelling
from tests.onnx_models import constant_answer, put
from tests.processes import is_alive, trials
from tests.server.watching import ROW, SteadyClient
from tests.servers import Server

Start = Callable[..., Server]
ENDLESS = 1 << 62


def asking(trips: float) -> dict[str, Any]:
    """A request for this many rounds of `as_slow_as_asked`."""
    return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [trips, 0, 0, 0]}]}


class Call(threading.Thread):
    """One request on its way; `reply` is its status and document, or None where the connection ended."""

    def __init__(self, server: Server, document: Any, path: str = "/v2/models/slow/infer") -> None:
        super().__init__()
        self._server, self._document, self._path = server, document, path
        self.reply: tuple[int, Any] | None = None
        self.start()

    def run(self) -> None:
        try:
            status, _, text = self._server.request("POST", self._path, self._document)
            self.reply = status, json.loads(text)
        except OSError:
            pass


def state(server: Server, model: str, version: int) -> tuple[str, str]:
    """State and reason of a version, empty words where it is not known."""
    for row in server.json("POST", "/v2/repository/index"):
        if (row["name"], row.get("version")) == (model, str(version)):
            return row["state"], row["reason"]
    return "", ""


def version_of(server: Server, model: str = "m") -> str:
    """The version that answers, or the code of the error."""
    reply = server.infer(model, ROW)
    return str(reply.get("model_version", reply.get("code")))


def in_flight(server: Server, model: str) -> bool:
    """Whether the metrics say that a request is being answered."""
    lines = server.request("GET", "/metrics")[2].decode().splitlines()
    return any(
        line.startswith("headgate_requests_in_flight{") and f'model="{model}"' in line and float(line.split()[-1]) > 0
        for line in lines
    )


def rounds_for(server: Server, seconds: float) -> int:
    """Rounds that take about so long on this machine, now."""
    began = time.monotonic()
    server.infer("slow", asking(10_000))
    return int(10_000 * seconds / (time.monotonic() - began))


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A repository with a model that takes as long as it is asked to, beside one that answers at once."""
    put(tmp_path / "models", "slow", 1, as_slow_as_asked())
    put(tmp_path / "models", "m", 1, constant_answer(1))
    return tmp_path / "models"


@pytest.fixture(autouse=True)
def _no_process_of_the_test_is_left(tmp_path: Path) -> Iterator[None]:
    """Comes before the servers, so it looks when they have been ended."""
    yield
    deadline = time.monotonic() + 10
    while left := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if belongs_to(pid, tmp_path)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)


def belongs_to(pid: int, folder: Path) -> bool:
    """Whether a process was told to work in this folder."""
    try:
        return os.fsencode(folder) in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


# Versions that come


def test_a_new_version_folder_is_served_with_the_settings_as_they_are(tmp_path: Path, start_server: Start) -> None:
    """How many seconds that takes is measured by loadtests.arrival: here it depends on what other tests do."""
    models = tmp_path / "models"
    put(models, "m", 1, constant_answer(1))
    server = start_server(models, "--quiet-s", "2", "--poll-s", "1", wait=False)
    server.wait_for(lambda: version_of(server) == "1", 30, "version 1 answers")
    with SteadyClient(server, "/v2/models/m/infer", threads=1) as client:
        put(models, "m", 2, constant_answer(2))
        server.wait_for(lambda: client.latest() == "2", 30, "version 2 answers")
    assert client.failures == []


def test_a_version_that_is_copied_slowly_is_not_tried_before_its_last_byte(tmp_path: Path, start_server: Start) -> None:
    models = tmp_path / "models"
    put(models, "m", 1, constant_answer(1))
    source = tmp_path / "two.onnx"
    source.write_bytes(constant_answer(2))
    made = add_version(tmp_path / "elsewhere", "m", source, version=2)
    server = start_server(models)
    target = models / "m" / "2"
    target.mkdir()
    shutil.copyfile(made / "manifest.json", target / "manifest.json")
    content = (made / "model.onnx").read_bytes()
    with SteadyClient(server, "/v2/models/m/infer", threads=1) as client, open(target / "model.onnx", "wb") as file:
        for end in (0, 1, len(content) // 2, len(content) - 1):
            file.write(content[file.tell() : end])
            file.flush()
            said = ("UNAVAILABLE", f"waiting for its files: model.onnx has {end} of {len(content)} bytes")
            server.wait_for(lambda said=said: state(server, "m", 2) == said, 10, f"{said}")
        assert client.latest() == "1"
        file.write(content[-1:])
        file.flush()
        server.wait_for(lambda: client.latest() == "2", 20, "version 2 answers")
    assert client.failures == []
    assert not any(line["event"] == "version-failed" for line in server.log())
    assert {row["version"]: row.get("verified") for row in status_of(server)} == {"1": None, "2": True}


def status_of(server: Server, model: str = "m") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = server.json("GET", f"/v2/models/{model}/status")["versions"]
    return rows


def test_with_require_manifest_a_bare_version_is_refused_by_that_name(tmp_path: Path, start_server: Start) -> None:
    models = tmp_path / "models"
    source = tmp_path / "one.onnx"
    source.write_bytes(constant_answer(1))
    add_version(models, "m", source)
    put(models, "m", 2, constant_answer(2))
    server = start_server(models, "--require-manifest")
    assert version_of(server) == "1"
    assert state(server, "m", 2)[0] == "UNAVAILABLE"
    assert "require_manifest" in state(server, "m", 2)[1]


def test_readiness_waits_for_the_models_and_liveness_does_not(tmp_path: Path, start_server: Start) -> None:
    models = tmp_path / "models"
    put(models, "m", 1, looping(ENDLESS))
    server = start_server(models, "--quarantine-timeout-s", "2", wait=False)
    status, headers, text = server.request("GET", "/v2/health/ready")
    assert (status, json.loads(text)["ready"]) == (503, False)
    assert headers["retry-after"].isdigit()
    assert server.request("GET", "/v2/health/live")[0] == 200
    status, headers, text = server.request("POST", "/v2/models/m/infer", ROW)
    assert (status, json.loads(text)["code"]) == (503, "not-ready")
    assert headers["retry-after"].isdigit()
    server.wait_for(lambda: "not ready within 2 s" in state(server, "m", 1)[1], 20, "the model is given up")
    document = server.json("GET", "/v2/health/ready")
    assert document["ready"] is False
    assert "not ready within 2 s" in document["models"]["m"]


# Versions that fail alone


@pytest.mark.faults
def test_models_that_hang_or_eat_memory_do_not_keep_others_from_coming(tmp_path: Path, start_server: Start) -> None:
    models = tmp_path / "models"
    put(models, "m", 1, constant_answer(1))
    server = start_server(models)
    for name in ("hanging", "hanging-too"):
        put(models, name, 1, looping(ENDLESS))
        server.wait_for(lambda name=name: state(server, name, 1)[0] == "LOADING", 20, f"{name} is tried")
    put(models, "hungry", 1, swelling(4096, at_run_time=True))
    server.wait_for(lambda: "more memory" in state(server, "hungry", 1)[1], 20, "the hungry model is refused")
    put(models, "m", 2, constant_answer(2))
    server.wait_for(lambda: version_of(server) == "2", 30, "version 2 answers")
    assert (state(server, "hanging", 1)[0], state(server, "hanging-too", 1)[0]) == ("LOADING", "LOADING")
    assert server.request("GET", "/v2/models/m/ready")[0] == 200


def test_folders_that_cannot_be_models_are_named_and_break_nothing(tmp_path: Path, start_server: Start) -> None:
    models = tmp_path / "models"
    put(models, "m", 1, constant_answer(1))
    for name in ("bad name", 'quote"\\', "new\nline"):
        put(models, name, 1, constant_answer(1))
    undecodable = Path(os.fsdecode(os.fsencode(models) + b"/caf\xe9"))
    (undecodable / "1").mkdir(parents=True)
    (models / "loop").symlink_to("loop")
    (models / "m" / "model.toml").mkdir()
    server = start_server(models, wait=False)
    server.wait_for(lambda: len(server.json("POST", "/v2/repository/index")) == 6, 20, "the folder was read")
    rows = {row["name"]: row["reason"] for row in server.json("POST", "/v2/repository/index")}
    assert sorted(rows) == ["bad name", "caf\\xe9", "loop", "m", "new\nline", 'quote"\\']
    assert all(rows.values())
    assert "model.toml" in rows["m"]
    assert server.request("GET", "/metrics")[0] == 200
    assert server.request("GET", "/v2/models")[0] == 200
    assert sorted(server.json("GET", "/v2/health/ready")["models"]) == sorted(rows)
    (models / "m" / "model.toml").rmdir()
    server.wait_for(lambda: version_of(server) == "1", 20, "the model answers once its model.toml is gone")
    assert server.request("GET", "/v2/health/ready")[0] == 200


def test_a_model_toml_that_breaks_while_serving_is_named_and_changes_nothing(
    tmp_path: Path, start_server: Start
) -> None:
    models = tmp_path / "models"
    put(models, "m", 1, constant_answer(1), toml="[batching]\nmax_rows = 8\n")
    server = start_server(models)
    (models / "m" / "model.toml").write_text("[batching]\nmax_rows = 'eight'\n")
    put(models, "m", 2, constant_answer(2))

    def is_named() -> bool:
        return "batching.max_rows" in server.json("GET", "/v2/models/m/status")["error"]

    server.wait_for(is_named, 10, "the wrong key is named")
    assert version_of(server) == "1"
    (models / "m" / "model.toml").write_text("[batching]\nmax_rows = 16\n")
    server.wait_for(lambda: version_of(server) == "2", 20, "version 2 answers")
    assert server.json("GET", "/v2/models/m/config")["max_batch_size"] == 16


def test_a_model_folder_that_cannot_be_found_for_a_while_costs_nothing(tmp_path: Path, start_server: Start) -> None:
    models = tmp_path / "models"
    put(models, "m", 1, constant_answer(1))
    server = start_server(models)
    with SteadyClient(server, "/v2/models/m/infer", threads=1) as client:
        models.rename(tmp_path / "away")
        server.wait_for(lambda: logged(server, "source-unavailable"), 10, "it is noticed")
        count = len(client.answers)
        server.wait_for(lambda: len(client.answers) > count + 20, 10, "version 1 goes on answering")
        (tmp_path / "away").rename(models)
        put(models, "m", 2, constant_answer(2))
        server.wait_for(lambda: client.latest() == "2", 20, "version 2 answers")
    assert client.failures == []


def logged(server: Server, event: str) -> bool:
    return any(line["event"] == event for line in server.log())


# Versions that go


def test_a_removed_version_drains_and_its_last_request_is_answered_by_it(slow: Path, start_server: Start) -> None:
    server = start_server(slow)
    call = Call(server, asking(rounds_for(server, 2.5)))
    server.wait_for(lambda: in_flight(server, "slow"), 10, "the request runs")
    shutil.rmtree(slow / "slow")
    server.wait_for(lambda: state(server, "slow", 1)[0] == "UNLOADING", 10, "the version drains")
    assert call.reply is None
    status, _, text = server.request("POST", "/v2/models/slow/infer", asking(0))
    assert (status, json.loads(text)["code"]) == (503, "not-ready")
    call.join(30)
    assert call.reply is not None
    status, document = call.reply
    assert (status, document.get("model_version")) == (200, "1")
    server.wait_for(lambda: state(server, "slow", 1) == ("", ""), 10, "the model is gone")
    assert server.infer("slow", asking(0))["code"] == "unknown-model"
    assert logged(server, "version-released")


# A server that is told to end


def test_a_server_that_is_told_to_end_answers_what_it_has_taken_and_is_not_ready(
    slow: Path, start_server: Start
) -> None:
    server = start_server(slow)
    call = Call(server, asking(rounds_for(server, 2)))
    server.wait_for(lambda: in_flight(server, "slow"), 10, "the request runs")
    server.process.send_signal(signal.SIGTERM)
    server.wait_for(lambda: not is_ready(server), 2, "it is not ready")
    assert call.reply is None
    assert server.process.wait(20) == 0
    call.join(10)
    assert call.reply is not None
    assert call.reply[0] == 200
    assert logged(server, "stopped")


def is_ready(server: Server) -> bool:
    """Whether a load balancer would send requests: a refused connection is a no."""
    try:
        return server.request("GET", "/v2/health/ready")[0] == 200
    except OSError:
        return False


@pytest.mark.faults
def test_a_second_signal_ends_a_server_at_once(slow: Path, start_server: Start) -> None:
    server = start_server(slow)
    call = Call(server, asking(1e15))
    server.wait_for(lambda: in_flight(server, "slow"), 10, "the request runs")
    server.process.send_signal(signal.SIGTERM)
    server.wait_for(lambda: not is_ready(server), 2, "it is not ready")
    began = time.monotonic()
    server.stop(timeout_s=10)
    assert time.monotonic() - began < 8, "nearer to the drain time than to at once"
    call.join(10)
    assert not call.is_alive()


@pytest.mark.faults
def test_a_server_with_a_request_that_never_ends_ends_when_its_time_is_over(slow: Path, start_server: Start) -> None:
    server = start_server(slow, "--drain-s", "1")
    call = Call(server, asking(1e15))
    server.wait_for(lambda: in_flight(server, "slow"), 10, "the request runs")
    began = time.monotonic()
    server.stop(timeout_s=20)
    assert time.monotonic() - began < 15, "nearer to the default drain time than to this one"
    call.join(10)
    assert not call.is_alive()


@pytest.mark.faults
def test_a_server_that_is_told_to_end_during_a_load_does_not_wait_for_it(tmp_path: Path, start_server: Start) -> None:
    models = tmp_path / "models"
    put(models, "m", 1, looping(ENDLESS))
    server = start_server(models, wait=False)
    server.wait_for(lambda: trials(server.process.pid), 20, "the trial runs")
    (trial,) = trials(server.process.pid)
    began = time.monotonic()
    assert server.stop(timeout_s=20) == 0
    assert time.monotonic() - began < 15, "nearer to the drain time than to at once"
    assert not is_alive(trial)


def test_each_process_has_its_name_and_only_its_socket_and_the_supervisor_has_one_thread(
    slow: Path, start_server: Callable[..., Server]
) -> None:
    """Of a fork: what the supervisor holds alone must not live on in the others, and no thread may be lost by it."""
    server = start_server(slow)
    supervisor = server.process.pid
    assert len(os.listdir(f"/proc/{supervisor}/task")) == 1
    listeners = []
    for role, name in (("control", "headgate-0"), ("worker 1", "headgate-1")):
        pid = server.pid(role)
        assert Path(f"/proc/{pid}/comm").read_text() == name + "\n"
        shared = Counter(held(supervisor)) & Counter(held(pid))
        (listener,) = [each for each in shared if each.startswith("socket:")]
        # Of the pipe that ends with the supervisor it has one end.
        kinds = [Path(each).name.partition(":")[0] for each in shared.elements()]
        assert sorted(kinds) == ["board", "pipe", "socket"]
        assert not any(each.endswith("/lock") for each in held(pid))
        listeners.append(listener)
    assert len(set(listeners)) == 2


def held(pid: int) -> list[str]:
    """What the descriptors of a process lead to, but for input, output and error."""
    folder = Path(f"/proc/{pid}/fd")
    found = []
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            found += [os.readlink(folder / name)] if int(name) > 2 else []
    return found
