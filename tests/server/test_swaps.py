"""Versions swapped under a client that never stops sending: no request fails, and every answer names its version."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.onnx_models import constant_answer, put
from tests.server.watching import ROW, SteadyClient, holding
from tests.servers import Server

FOLDER_SWAPS, API_SWAPS, ALIAS_SWAPS = 14, 10, 26
CORRUPT = constant_answer(3)[:-20]


@pytest.mark.slow(10)
@pytest.mark.timeout(300)
def test_fifty_swaps_and_a_corrupt_version_under_load_lose_nothing_and_leave_nothing(
    tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    """
    1. Version 2 comes and goes as a folder, then by unload and load, then by the alias champion: 50 swaps.
    2. In the middle a corrupt version 3 arrives and stays.
    Result: no request fails, no answer is of another version than it says, version 3 is named with the reason, and the
    server holds what it held.
    """
    models = tmp_path / "models"
    put(models, "m", 1, constant_answer(1))
    put(tmp_path / "store", "m", 2, constant_answer(2))
    # What the monitors learn, and what the archive needs, is memory of theirs.
    server = start_server(models, "--no-monitors", "--no-journal-archive")
    swaps: list[float] = []

    def swap(version: int, how: Callable[[], object]) -> None:
        began = time.monotonic()
        how()
        server.wait_for(lambda: client.latest() == str(version), 20, f"version {version} answers")
        swaps.append(time.monotonic() - began)

    def call(method: str, path: str, body: object = None) -> None:
        status, _, text = server.request(method, f"/v2/repository/models/m/{path}", body)
        assert status == 200, text

    def folder_comes() -> None:
        shutil.copytree(tmp_path / "store" / "m" / "2", models / "m" / "2")

    def folder_goes() -> None:
        shutil.rmtree(models / "m" / "2")

    with SteadyClient(server, "/v2/models/m/infer") as client:
        server.wait_for(lambda: client.latest() == "1", 20, "version 1 answers")
        for _ in range(2):
            swap(2, folder_comes)
            swap(1, folder_goes)
        before = holding(server.process.pid)
        for _ in range((FOLDER_SWAPS - 4) // 2):
            swap(2, folder_comes)
            swap(1, folder_goes)
        swap(2, folder_comes)
        put(models, "m", 3, CORRUPT)
        server.wait_for(lambda: reason(server, 3) != "", 20, "version 3 has failed")
        for _ in range(API_SWAPS // 2):
            swap(1, lambda: call("POST", "versions/2/unload"))
            swap(2, lambda: call("POST", "versions/2/load"))
        call("POST", "versions/1/load")
        for turn in range(ALIAS_SWAPS - 1):
            version = 1 + turn % 2
            swap(version, lambda version=version: call("PUT", "aliases/champion", {"version": str(version)}))
    assert len(swaps) == FOLDER_SWAPS + API_SWAPS + ALIAS_SWAPS == 50

    assert client.failures == []
    assert all(answer.value == float(answer.version) for answer in client.answers)
    assert {answer.version for answer in client.answers} == {"1", "2"}
    assert len(client.answers) > 20 * len(swaps)

    named = reason(server, 3)
    assert named
    index = {each["version"]: each for each in server.json("POST", "/v2/repository/index")}
    assert (index["3"]["state"], index["3"]["reason"]) == ("UNAVAILABLE", named)
    logged = [line for line in server.log() if line["event"] == "version-failed"]
    assert [(line["model"], line["version"], line["reason"]) for line in logged] == [("m", 3, named)]

    def settled() -> bool:
        # Each of the two versions has a segment of the journal open: three descriptors, and three of the next one.
        return holding(server.process.pid).descriptors <= before.descriptors + 2 + 12

    server.wait_for(settled, 10, "the connections are closed")
    after = holding(server.process.pid)
    slowest = max(swaps)
    print(f"\n{len(client.answers)} answers over {len(swaps)} swaps, the slowest of {slowest:.2f} s: {before} {after}")
    assert after.resident_mib - before.resident_mib < 24
    assert after.threads <= before.threads + 2
    assert server.stop() == 0


def reason(server: Server, version: int) -> str:
    """Why a version is not ready, in the words of the model's status."""
    rows = server.json("GET", "/v2/models/m/status")["versions"]
    return next((row["reason"] for row in rows if row["version"] == str(version) and row["state"] == "UNAVAILABLE"), "")


def test_files_replaced_in_place_under_load_are_swapped_without_a_gap(
    tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    models = tmp_path / "models"
    put(models, "m", 1, constant_answer(1))
    server = start_server(models)
    with SteadyClient(server, "/v2/models/m/versions/1/infer") as client:
        for value in (2, 3, 4):
            beside = tmp_path / "new.onnx"
            beside.write_bytes(constant_answer(value))
            beside.replace(models / "m" / "1" / "model.onnx")
            server.wait_for(
                lambda value=value: client.answers[-1:] and client.answers[-1].value == value, 20, "it serves"
            )
    assert client.failures == []
    values = [answer.value for answer in client.answers]
    assert values == sorted(values)
    assert {answer.version for answer in client.answers} == {"1"}


def test_with_several_workers_a_call_that_was_answered_holds_for_every_connection(
    tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    models = tmp_path / "models"
    for version in (1, 2):
        put(models, "m", version, constant_answer(version))
    server = start_server(models, "--workers", "2")

    def answers(slot: str) -> set[str]:
        """What eight connections of their own, spread over the workers, are answered."""
        found = [server.infer("m", ROW, slot) for _ in range(8)]
        return {reply.get("model_version", reply.get("code")) for reply in found}

    with SteadyClient(server, "/v2/models/m/infer", threads=4) as client:
        for _ in range(3):
            assert server.request("POST", "/v2/repository/models/m/versions/1/load")[0] == 200
            assert answers("1") == {"1"}
            for version in ("1", "2"):
                body = {"version": version}
                assert server.request("PUT", "/v2/repository/models/m/aliases/champion", body)[0] == 200
                assert answers("champion") == {version}
            assert server.request("DELETE", "/v2/repository/models/m/aliases/champion")[0] == 204
            assert answers("champion") == {"unknown-version"}
            assert server.request("POST", "/v2/repository/models/m/versions/1/unload")[0] == 200
            assert answers("1") == {"not-ready"}
    assert client.failures == []
    assert all(answer.value == float(answer.version) for answer in client.answers)
