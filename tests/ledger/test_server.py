"""A whole server: predictions and feedback by HTTP, while its control process is killed again and again."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.ledger.dialect import FILE, location
from gateway.ledger.reading import Ledger, LedgerUnavailable
from tests.onnx_models import identity, put
from tests.servers import Server

ROW = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2.5, 3, 4]}]}
TOML = '[feedback.late]\ntype = "boolean"\n'
KILLS = 2


def counted(ledger: Ledger) -> int:
    """Events in the ledger that are matched."""
    try:
        return ledger.tallies().get(("echo", "late", "matched"), 0)
    except LedgerUnavailable:
        return 0


@pytest.mark.faults
def test_what_was_acknowledged_is_in_the_ledger_once_however_often_its_writer_is_killed(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    """1. Clients predict and say what was true, without a pause. 2. The control process is killed twice meanwhile.
    Result: every label that was acknowledged is in the ledger once and matched; its prediction shows it.
    """
    put(tmp_path / "models", "echo", 1, identity(), TOML)
    server = start_server(tmp_path / "models")
    acknowledged: dict[str, str] = {}
    stopping = threading.Event()
    wrong: list[Any] = []

    def talk() -> None:
        while not stopping.is_set():
            prediction = server.infer("echo", ROW)["parameters"]["prediction_id"]
            event = {"prediction_id": prediction, "name": "late", "value": len(acknowledged) % 3 == 0}
            status, _, body = server.request("POST", "/v1/feedback", event)
            if status == 201:
                acknowledged[prediction] = body.decode()
            else:
                wrong.append((status, body))

    client = threading.Thread(target=talk)
    client.start()
    data = tmp_path / "server0" / "data"
    ledger = Ledger(location(data))
    try:
        for _ in range(KILLS):
            before, control = counted(ledger), server.pid("control")
            server.wait_for(lambda: counted(ledger) > before, 30, "the ledger goes on")  # noqa: B023
            os.kill(control, signal.SIGKILL)
            server.wait_for(lambda: server.pid("control") != control, 30, "another control process")  # noqa: B023
    finally:
        stopping.set()
        client.join()
    assert wrong == []
    server.wait_for(lambda: counted(ledger) == len(acknowledged), 30, "everything is folded")
    labels = {label.prediction_id: label for label in ledger.labels("echo", "late")}
    assert labels.keys() == acknowledged.keys()
    assert all(labels[each].feedback_id in reply for each, reply in acknowledged.items())
    assert sum(row["events"] for row in ledger.logs().values()) == len(acknowledged)
    assert sum(row["repeats"] for row in ledger.logs().values()) == 0
    one = next(iter(acknowledged))
    shown = server.json("GET", f"/v1/predictions/{one}")
    assert [label["value"] for label in shown["labels"]] == [True]
    assert shown["rows"][0]["inputs"] == {"x": [1, 2.5, 3, 4]}
    assert [event["state"] for event in shown["feedback"]] == ["matched"]
    with sqlite3.connect(data / FILE) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
