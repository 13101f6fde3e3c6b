"""A whole server: predictions and labels by HTTP, corrected and repeated, while the control process is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.onnx_models import identity, put
from tests.servers import Server

TOML = """
[feedback.late]
type = "boolean"
[monitor]
learn_rows = 100
block_s = 1
[monitor.performance]
label = "late"
score = "y"
"""
ROUNDS = 3
REQUESTS = 60


class Client:
    """Says a probability, and what was true later; the model answers with its input."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.dice = random.Random(7)
        self.said: dict[str, float] = {}
        self.labels: dict[str, bool] = {}
        self.events: dict[str, str] = {}

    def predict(self) -> None:
        """One prediction."""
        score = self.dice.choice([0.125, 0.375, 0.625, 0.875])
        item = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1 - score, score]}
        reply = self.server.infer("echo", {"inputs": [item]})
        self.said[reply["parameters"]["prediction_id"]] = score

    def label(self, prediction: str, value: bool) -> None:
        """What was true; said again, it takes the place of what was said before."""
        event = {"prediction_id": prediction, "name": "late", "value": value}
        if prediction in self.events:
            event["supersedes"] = self.events[prediction]
        status, _, body = self.server.request("POST", "/v1/feedback", event)
        assert status == 201, body
        self.labels[prediction] = value
        self.events[prediction] = json.loads(body)["feedback_id"]

    def accuracy(self) -> float:
        """Of the labels as they are now."""
        return sum((self.said[name] >= 0.5) == value for name, value in self.labels.items()) / len(self.labels)


def performance(server: Server) -> dict[str, Any]:
    """What the admin port says; empty while nothing is known."""
    try:
        with urllib.request.urlopen(server.admin_url + "/api/monitors/echo/1", timeout=60) as reply:
            found: dict[str, Any] = json.loads(reply.read())["performance"]
            return found
    except OSError:
        return {}


def agrees(server: Server, client: Client) -> bool:
    """Whether every prediction and every label is counted once, and as it is now."""
    found = performance(server)
    if not found:
        return False
    now = found["realised"]
    counts = now["accuracy"]["n"], now["score_mean"]["n"], found["labels"]["labels"]
    expected = len(client.labels), len(client.said), len(client.labels)
    return counts == expected and abs(now["accuracy"]["value"] - client.accuracy()) < 1e-12


@pytest.mark.faults
def test_however_often_the_control_process_is_killed_every_label_counts_once_and_as_it_is_now(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    """1. Predictions and labels come, some are corrected. 2. The control process is killed, twice.
    Result: the figures are those of the labels as they stand; the scrape has them too.
    """
    put(tmp_path / "models", "echo", 1, identity(dims=("N", 2)), TOML)
    server = start_server(tmp_path / "models")
    client = Client(server)
    for round_ in range(ROUNDS):
        for _ in range(REQUESTS):
            client.predict()
        for name in list(client.said)[-REQUESTS:-10]:
            client.label(name, client.dice.random() < client.said[name])
        # A correction that reaches the ledger together with what it corrects never counts otherwise.
        server.wait_for(lambda: agrees(server, client), 60, "every label is counted before some are corrected")
        for name in list(client.labels)[:5]:
            client.label(name, not client.labels[name])
        server.wait_for(lambda: agrees(server, client), 60, "every label is counted once")
        if round_ < ROUNDS - 1:
            control = server.pid("control")
            os.kill(control, signal.SIGKILL)
            server.wait_for(lambda: server.pid("control") != control, 30, "another control process")  # noqa: B023
    found = performance(server)
    assert 10 <= found["labels"].pop("superseded") <= 15
    assert found["labels"] == {"labels": 150, "withdrawn": 0, "apart": 0}
    with urllib.request.urlopen(server.admin_url + "/metrics", timeout=60) as reply:
        lines = reply.read().decode().splitlines()
    name = 'headgate_performance_ratio{kind="realised",metric="accuracy",model="echo",version="1"}'
    (line,) = [line for line in lines if line.startswith(name)]
    assert float(line.split()[-1]) == pytest.approx(client.accuracy())
    assert any(line.startswith("headgate_label_lag_seconds_count{") for line in lines)
    assert "coverage" in found
