"""The names that a client gives a request are in its record, through a head that is read and one that is remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gateway.journal.reader import Locator
from tests.onnx_models import identity, put
from tests.servers import Server


def test_request_ids_and_traces_are_recorded_and_malformed_traces_are_not(
    tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    put(tmp_path / "models", "echo", 1, identity())
    server = start_server(tmp_path / "models", "--no-monitors")
    item = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    ids, wanted = [], []
    for number in range(4):
        trace = f"00-{number:032x}-{number:016x}-01"
        headers = {"X-Request-Id": f"order-{number}", "traceparent": trace if number else "not a trace"}
        _, found, _ = server.request("POST", "/v2/models/echo/infer", {"inputs": [item], "id": f"c{number}"}, headers)
        ids.append(found["headgate-prediction-id"])
        wanted.append([f"order-{number}", f"c{number}", trace if number else ""])
    locator = Locator(tmp_path / "server0" / "data")
    records = [locator.record(each) for each in ids]
    assert [record and record.frame["notes"][0][1:] for record in records] == wanted
