"""A hundred swaps under load with two workers: no request fails, and every answer names the version that gave it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.watch import nothing_in_flight
from tests.onnx_models import constant_answer, put
from tests.server.watching import ROW, SteadyClient
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.slow(15)]

ALIAS_SWAPS, LOAD_SWAPS = 90, 10


def test_a_hundred_swaps_fail_no_request_and_hold_for_every_worker_when_their_call_returns(
    pair: Callable[..., Server], models: Path
) -> None:
    """
    1. The champion moves between two versions, then version 2 is unloaded and loaded, a hundred times in all.
    2. Result: no request fails, each answer is of the version that it names, and after each call connections to
       either worker get the new version.
    """
    put(models, "m", 1, constant_answer(1))
    put(models, "m", 2, constant_answer(2), toml='[versions]\npolicy = "all"\n')
    server = pair()
    times = []

    def swap(version: int, method: str, path: str, body: object) -> None:
        began = time.monotonic()
        status, _, text = server.request(method, f"/v2/repository/models/m/{path}", body)
        times.append(time.monotonic() - began)
        assert status in (200, 204), text
        # Connections of their own: the kernel gives them to one worker or the other.
        assert {server.infer("m", ROW)["model_version"] for _ in range(4)} == {str(version)}

    with SteadyClient(server, "/v2/models/m/infer", threads=4) as client:
        for turn in range(ALIAS_SWAPS):
            swap(1 + turn % 2, "PUT", "aliases/champion", {"version": str(1 + turn % 2)})
        assert server.request("DELETE", "/v2/repository/models/m/aliases/champion")[0] == 204
        for _ in range(LOAD_SWAPS // 2):
            swap(1, "POST", "versions/2/unload", {})
            swap(2, "POST", "versions/2/load", {})
    assert len(times) == ALIAS_SWAPS + LOAD_SWAPS == 100
    assert client.failures == []
    assert all(answer.value == float(answer.version) for answer in client.answers)
    assert {answer.version for answer in client.answers} == {"1", "2"}
    assert len(client.answers) > 10 * len(times)
    print(f"\n{len(client.answers)} answers over 100 swaps, the slowest of {max(times):.2f} s")
    server.wait_for(lambda: nothing_in_flight(server), 5, "nothing is in flight")
    assert server.stop() == 0
