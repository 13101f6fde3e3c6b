"""The repository API: load, unload, reload and aliases, as clients and operators call them."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models.crafted import looping
from tests.onnx_models import constant_answer, put
from tests.server.watching import ROW, SteadyClient
from tests.servers import Server

Start = Callable[..., Server]
CORRUPT = constant_answer(3)[:-20]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with the versions 1 and 2 of a model m, of which the rule wants the latest."""
    for version in (1, 2):
        put(tmp_path / "models", "m", version, constant_answer(version))
    return tmp_path / "models"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One such server for all calls that must change nothing."""
    folder = tmp_path_factory.mktemp("shared")
    for version in (1, 2):
        put(folder / "models", "m", version, constant_answer(version))
    server = Server(folder / "models", folder / "server", "--quiet-s", "0")
    yield server
    server.stop()


def call(server: Server, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and document of a call to the repository."""
    status, _, text = server.request(method, f"/v2/repository/models/{path}", body)
    return status, json.loads(text) if text.strip() else None


def states(server: Server, model: str = "m") -> dict[str, str]:
    """State by version, as the index has it."""
    rows = server.json("POST", "/v2/repository/index")
    return {row["version"]: row["state"] for row in rows if row["name"] == model and "version" in row}


def answering(server: Server, slot: str | None = None, model: str = "m") -> Any:
    """The version that answers, or the code of the error; the answer must be that version's."""
    reply = server.infer(model, ROW, slot)
    if "error" in reply:
        return reply["code"]
    assert reply["outputs"][0]["data"][0] == float(reply["model_version"])
    return reply["model_version"]


# Load and unload


def test_unloading_a_version_lets_the_one_before_it_answer_and_loading_it_brings_it_back(
    models: Path, start_server: Start
) -> None:
    server = start_server(models)
    assert answering(server) == "2"
    assert call(server, "POST", "m/versions/2/unload") == (200, None)
    server.wait_for(lambda: answering(server) == "1", 10, "version 1 answers")
    assert states(server)["2"] == "UNAVAILABLE"
    assert answering(server, "2") == "not-ready"
    assert call(server, "POST", "m/versions/2/load") == (200, None)
    assert answering(server) == answering(server, "2") == "2"


def test_an_unloaded_model_answers_503_with_the_reason_until_it_is_loaded(models: Path, start_server: Start) -> None:
    server = start_server(models)
    assert call(server, "POST", "m/unload") == (200, None)
    status, headers, text = server.request("POST", "/v2/models/m/infer", ROW)
    assert status == 503
    assert headers["retry-after"].isdigit()
    assert b"unloaded by request" in text
    assert server.request("GET", "/v2/models/m/ready")[0] == 503
    assert call(server, "POST", "m/unload") == (200, None)
    assert call(server, "POST", "m/load") == (200, None)
    assert answering(server) == "2"
    assert call(server, "POST", "m/load") == (200, None)


def test_a_version_that_the_rule_does_not_want_is_loaded_beside_the_others(models: Path, start_server: Start) -> None:
    server = start_server(models)
    assert answering(server, "1") == "not-ready"
    assert call(server, "POST", "m/versions/1/load") == (200, None)
    assert (answering(server, "1"), answering(server, "2"), answering(server)) == ("1", "2", "2")


def test_a_new_folder_is_loaded_by_the_call_without_waiting_for_a_look(models: Path, start_server: Start) -> None:
    server = start_server(models, "--poll-s", "600")
    put(models, "n", 1, constant_answer(1))
    put(models, "m", 3, constant_answer(3))
    assert call(server, "POST", "n/load") == (200, None)
    assert call(server, "POST", "m/load") == (200, None)
    assert (answering(server, model="n"), answering(server)) == ("1", "3")
    shutil.rmtree(models / "n")
    assert call(server, "POST", "n/load")[0] == 404


def test_a_reload_takes_the_same_files_anew_without_a_failed_request(models: Path, start_server: Start) -> None:
    server = start_server(models)
    with SteadyClient(server, "/v2/models/m/infer") as client:
        for path in ("m/reload", "m/versions/2/reload"):
            before = ready_events(server)
            assert call(server, "POST", path) == (200, None)
            assert ready_events(server) == before + 1
    assert client.failures == []
    assert {answer.version for answer in client.answers} == {"2"}


def ready_events(server: Server) -> int:
    return sum(line["event"] == "version-ready" for line in server.log())


# What cannot be


@pytest.mark.parametrize("path", ["nobody/load", "m/versions/9/load", "m/versions/v1/load", "m/versions/01/load"])
def test_loading_what_is_unknown_is_404_and_says_failed_to_load(shared: Server, path: str) -> None:
    status, document = call(shared, "POST", path)
    assert status == 404
    assert document["code"] in ("unknown-model", "unknown-version")
    assert "failed to load" in document["error"]


def test_a_load_of_an_unknown_version_is_forgotten(models: Path, start_server: Start) -> None:
    server = start_server(models)
    assert call(server, "POST", "m/versions/1/load")[0] == 200
    assert call(server, "POST", "m/versions/5/load")[0] == 404
    for version in (5, 6):
        put(models, "m", version, constant_answer(version))
    assert call(server, "POST", "m/load") == (200, None)
    assert {version for version, state in states(server).items() if state == "READY"} == {"1", "6"}


@pytest.mark.parametrize(("path", "code"), [("nobody", "unknown-model"), ("m/versions/9", "unknown-version")])
@pytest.mark.parametrize("verb", ["unload", "reload"])
def test_unloading_or_reloading_what_is_unknown_is_404(shared: Server, path: str, code: str, verb: str) -> None:
    status, document = call(shared, "POST", f"{path}/{verb}")
    assert (status, document["code"]) == (404, code)


def test_every_call_on_a_failed_version_repeats_the_failure_until_the_files_change(
    models: Path, start_server: Start
) -> None:
    server = start_server(models)
    put(models, "m", 3, CORRUPT)
    sentences = set()
    for path in ("m/load", "m/versions/3/load", "m/load", "m/versions/3/load"):
        status, document = call(server, "POST", path)
        assert (status, document["code"]) == (400, "load-failed")
        assert document["error"].startswith("failed to load 'm' version 3: ")
        assert str(models) not in document["error"]
        sentences.add(document["error"])
    assert len(sentences) == 1
    assert answering(server) == "2"
    put(models, "m", 3, constant_answer(3))
    assert call(server, "POST", "m/load") == (200, None)
    assert answering(server) == "3"


def test_a_wrong_model_toml_is_what_a_load_says(models: Path, start_server: Start) -> None:
    server = start_server(models)
    (models / "m" / "model.toml").write_text("[versions]\ncount = 'two'\n")
    status, document = call(server, "POST", "m/load")
    assert (status, document["code"]) == (400, "load-failed")
    assert "versions.count" in document["error"]
    assert answering(server) == "2"
    assert "versions.count" in server.json("GET", "/v2/models/m/status")["error"]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        pytest.param({"parameters": {"file:1/model.onnx": "eA=="}}, "parameters.file:1/model.onnx", id="files"),
        pytest.param(
            {"parameters": {"config": '{"max_batch_size": 7}'}}, "parameters.config.max_batch_size", id="config"
        ),
        pytest.param({"parameters": {"config": "{"}}, "parameters.config", id="half a config"),
        pytest.param({"parameters": []}, "parameters", id="no object"),
    ],
)
def test_what_a_load_cannot_take_is_named(shared: Server, body: Any, where: str) -> None:
    status, document = call(shared, "POST", "m/load", body)
    assert (status, document["field"]) == (400, where)
    assert answering(shared) == "2"


def test_with_the_api_switched_off_everything_that_changes_is_403_and_reading_is_not(
    models: Path, start_server: Start
) -> None:
    (models / "m" / "model.toml").write_text("[aliases]\nchampion = 2\n")
    server = start_server(models, "--no-repository-api")
    for method, path, body in (
        ("POST", "m/load", None),
        ("POST", "m/versions/1/load", None),
        ("POST", "m/unload", None),
        ("POST", "m/versions/2/unload", None),
        ("POST", "m/reload", None),
        ("POST", "nobody/load", None),
        ("PUT", "m/aliases/champion", {"version": "2"}),
        ("DELETE", "m/aliases/champion", None),
    ):
        status, document = call(server, method, path, body)
        assert (status, document["code"]) == (403, "forbidden"), path
        assert "repository_api" in document["error"]
    assert call(server, "GET", "m/aliases") == (200, {"champion": "2"})
    assert states(server) == {"1": "UNAVAILABLE", "2": "READY"}


# Index


def test_the_index_names_every_version_and_with_ready_only_those(models: Path, start_server: Start) -> None:
    put(models, "m", 3, CORRUPT)
    server = start_server(models)
    rows = server.json("POST", "/v2/repository/index")
    assert [(row["name"], row["version"], row["state"]) for row in rows] == [
        ("m", "1", "UNAVAILABLE"),
        ("m", "2", "READY"),
        ("m", "3", "UNAVAILABLE"),
    ]
    assert [bool(row["reason"]) for row in rows] == [True, False, True]
    ready = server.json("POST", "/v2/repository/index", {"ready": True})
    assert [row["version"] for row in ready] == ["2"]
    status, _, _ = server.request("POST", "/v2/repository/index", {"ready": "yes"})
    assert status == 400


# Aliases


def test_an_alias_is_moved_used_in_the_url_and_removed(models: Path, start_server: Start) -> None:
    (models / "m" / "model.toml").write_text("[versions]\npolicy = 'all'\n")
    server = start_server(models)
    server.wait_for(lambda: set(states(server).values()) == {"READY"}, 20, "both versions are ready")
    assert call(server, "GET", "m/aliases") == (200, {})
    assert answering(server, "champion") == "unknown-version"
    for version in ("1", "2", "1"):
        assert call(server, "PUT", "m/aliases/champion", {"version": version})[0] == 200
        assert call(server, "GET", "m/aliases") == (200, {"champion": version})
        assert answering(server, "champion") == answering(server) == version
    assert call(server, "PUT", "m/aliases/challenger", {"version": 2})[0] == 200
    assert (answering(server, "challenger"), answering(server)) == ("2", "1")
    assert server.json("GET", "/v2/models/m/versions/challenger")["versions"] == ["2"]
    assert server.request("GET", "/v2/models/m/versions/challenger/ready")[0] == 200
    assert server.json("GET", "/v2/models/m/versions/challenger/stats")["model_stats"][0]["version"] == "2"
    assert call(server, "DELETE", "m/aliases/champion") == (204, None)
    assert answering(server) == "2"
    assert answering(server, "champion") == "unknown-version"
    assert call(server, "DELETE", "m/aliases/champion")[0] == 404


@pytest.mark.parametrize(
    ("alias", "body", "status"),
    [
        pytest.param("champion", {"version": "1"}, 409, id="a version that is not ready"),
        pytest.param("champion", {"version": "9"}, 404, id="an unknown version"),
        pytest.param("champion", {"version": "0"}, 400, id="zero"),
        pytest.param("champion", {"version": "two"}, 400, id="a word"),
        pytest.param("champion", {"version": True}, 400, id="true"),
        pytest.param("champion", {"version": 2.0}, 400, id="a fraction"),
        pytest.param("champion", {}, 400, id="nothing"),
        pytest.param("Champion", {"version": "2"}, 400, id="a capital"),
        pytest.param("1", {"version": "2"}, 400, id="a number for a name"),
        pytest.param("x" * 33, {"version": "2"}, 400, id="a long name"),
    ],
)
def test_an_alias_that_cannot_be_moved_there_stays(shared: Server, alias: str, body: Any, status: int) -> None:
    found, document = call(shared, "PUT", f"m/aliases/{alias}", body)
    assert found == status, document
    assert document["code"] == {409: "conflict", 404: "unknown-version", 400: "invalid-request"}[status]
    assert call(shared, "GET", "m/aliases") == (200, {})


def test_a_version_that_an_alias_names_is_not_unloaded(models: Path, start_server: Start) -> None:
    server = start_server(models)
    assert call(server, "PUT", "m/aliases/champion", {"version": "2"})[0] == 200
    status, document = call(server, "POST", "m/versions/2/unload")
    assert (status, document["code"]) == (409, "conflict")
    assert "champion" in document["error"]
    assert answering(server) == "2"
    assert call(server, "DELETE", "m/aliases/champion")[0] == 204
    assert call(server, "POST", "m/versions/2/unload")[0] == 200
    assert answering(server) == "1"


def test_a_newer_version_does_not_take_the_place_of_the_champion(models: Path, start_server: Start) -> None:
    server = start_server(models)
    assert call(server, "PUT", "m/aliases/champion", {"version": "2"})[0] == 200
    put(models, "m", 3, constant_answer(3))
    assert call(server, "POST", "m/load") == (200, None)
    assert (answering(server), answering(server, "3")) == ("2", "3")


# What was asked for is kept


def test_wishes_survive_a_restart(models: Path, start_server: Start, tmp_path: Path) -> None:
    put(models, "gone", 1, constant_answer(1))
    data = ("--data", str(tmp_path / "data"))
    first = start_server(models, *data)
    assert call(first, "POST", "m/versions/1/load")[0] == 200
    assert call(first, "PUT", "m/aliases/champion", {"version": "1"})[0] == 200
    assert call(first, "POST", "gone/unload")[0] == 200
    first.stop(9)
    second = start_server(models, *data)
    second.wait_for(lambda: answering(second) == "1", 20, "the champion answers")
    assert answering(second, "2") == "2"
    assert answering(second, model="gone") == "not-ready"
    assert states(second, "gone") == {"1": "UNAVAILABLE"}


# Calls that cross each other


def test_a_load_that_another_request_overrules_is_told_so_and_does_not_wait(
    tmp_path: Path, start_server: Start
) -> None:
    models = tmp_path / "models"
    put(models, "slow", 1, looping(1 << 62))
    put(models, "m", 1, constant_answer(1))
    server = start_server(models, "--data", str(tmp_path / "data"), wait=False)
    server.wait_for(lambda: states(server, "slow").get("1") == "LOADING", 20, "the slow model is in quarantine")
    outcome: list[tuple[int, Any]] = []
    thread = threading.Thread(target=lambda: outcome.append(call(server, "POST", "slow/versions/1/load")))
    thread.start()
    wishes = tmp_path / "data" / "wishes.json"
    server.wait_for(lambda: wishes.exists() and b"slow" in wishes.read_bytes(), 10, "the load is asked for")
    assert thread.is_alive()
    assert call(server, "POST", "slow/unload") == (200, None)
    thread.join(10)
    assert not thread.is_alive(), "the load waits for what cannot come"
    status, document = outcome[0]
    assert (status, document["code"]) == (409, "conflict")
    assert "failed to load 'slow'" in document["error"]
    server.wait_for(lambda: answering(server) == "1", 20, "the model beside it answers")


@pytest.mark.slow(5)
def test_many_loads_and_unloads_of_one_model_at_once_all_end_and_leave_it_whole(
    models: Path, start_server: Start
) -> None:
    put(models, "other", 7, constant_answer(7))
    server = start_server(models)
    statuses: list[int] = []

    def worker(paths: tuple[str, ...]) -> None:
        for path in paths:
            statuses.append(call(server, "POST", path)[0])

    plans = [
        ("m/load", "m/unload", "m/load"),
        ("m/versions/1/load", "m/versions/1/unload", "m/versions/1/load"),
        ("m/versions/2/unload", "m/versions/2/load"),
        ("m/reload", "m/unload", "m/load"),
    ]
    threads = [threading.Thread(target=worker, args=(plan,)) for plan in plans]
    with SteadyClient(server, "/v2/models/other/infer") as client:
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert time.monotonic() - began < 60
    assert len(statuses) == sum(map(len, plans))
    # 400: a reload of what another call has just unloaded has nothing to load.
    assert set(statuses) <= {200, 400, 409}
    assert client.failures == []
    assert {answer.version for answer in client.answers} == {"7"}
    assert call(server, "POST", "m/load") == (200, None)
    assert call(server, "POST", "m/versions/2/load") == (200, None)
    assert answering(server) == "2"
