"""A gateway with everything that can be measured: models with and without baseline, all kinds of traffic, feedback."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from gateway.models.config import parse
from monitors.baseline.build import Arrays, build
from monitors.baseline.document import FILE
from monitors.learnt import PART, Learner
from monitors.task import Task
from tests.grafana import past
from tests.onnx_models import build as onnx_model
from tests.onnx_models import put
from tests.servers import Server

TOML = """
[versions]
policy = "all"
[aliases]
champion = 1
[feedback.late]
type = "boolean"
[monitor]
alarm_budget = "1 per model-hour"
block_s = 1
window_s = 60
learn_rows = 100
[monitor.performance]
label = "late"
score = "y"
window_s = 60
learn_labels = 100
"""
WEIGHTS = np.array([[2.0], [-1.0], [0.5], [0.0]], np.float32)
ROWS = 8
SHIFT = 1.5
OPTIONS = ("--quiet-s", "0")


def scorer() -> bytes:
    """y = sigmoid(x W): a probability for each row."""
    return onnx_model(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Sigmoid", ["z"], ["y"])],
        [("x", TensorProto.FLOAT, ("N", 4))],
        [("y", TensorProto.FLOAT, ("N", 1))],
        {"w": WEIGHTS},
    )


def brittle() -> bytes:
    """y = table[x]: it fails on an index that is not there."""
    return onnx_model(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [("x", TensorProto.INT64, ("N",))],
        [("y", TensorProto.FLOAT, ("N",))],
        {"table": np.zeros(3, np.float32)},
    )


def repository(models: Path) -> Path:
    """Version 1 of `m` has a baseline, version 2 learns one; `brittle` can be made to fail; `slow` has a past."""
    folder = put(models, "m", 1, scorer(), TOML)
    put(models, "m", 2, scorer())
    put(models, "brittle", 1, brittle())
    put(models, past.MODEL, 1, scorer(), past.TOML)
    dice = np.random.default_rng(1)
    x = dice.normal(0, 1, (4000, 4)).astype(np.float32)
    y = 1 / (1 + np.exp(-(x @ WEIGHTS)))
    features = {f"x[{column}]": x[:, column] for column in range(4)}
    late = dice.random(len(y)) < y[:, 0]
    source = Arrays(features, {"y": y.astype(np.float32)}, {"late": late})
    task = Task.of(parse(TOML.encode()))
    assert task is not None
    learner = Learner.of(task, source)
    build(source, monitors={PART: lambda layout: learner}).save(folder / FILE)
    return models


def started(scratch: Path) -> Server:
    """A gateway with these models, and with predictions of `slow` that had their labels in time."""
    data = scratch / "server" / "data"
    past.labelled(data, past.predicted(data))
    return Server(repository(scratch / "models"), scratch / "server", *OPTIONS)


class Traffic:
    """Users in a thread: rows around `shift`, labels as the model's scores say, or (`lying`) the other way round.

    One round is a request to each version with labels for all of its rows, feedback that nobody declared, a request
    that is wrong, one that cannot be answered in time, and one that the other model fails on now and then, or each time
    (`failing`). Labels are sent `delay_s` after their predictions. `trouble` is what ended it.
    """

    def __init__(self, server: Server, pause_s: float = 0.1) -> None:
        self.shift = 0.0
        self.lying = self.failing = False
        self.delay_s = 0.0
        self.rounds = 0
        self.trouble: list[BaseException] = []
        self._server = server
        self._pause_s = pause_s
        self._waiting: deque[tuple[float, list[dict[str, Any]]]] = deque()
        self._dice = np.random.default_rng(7)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.round()
                self._stop.wait(self._pause_s)
        except (OSError, AssertionError) as error:
            self.trouble.append(error)

    def round(self) -> None:
        """One of each."""
        values = (self._dice.normal(0, 1, (ROWS, 4)) + np.array([self.shift, 0, 0, 0])).round(4).tolist()
        document = {"inputs": [{"name": "x", "shape": [ROWS, 4], "datatype": "FP32", "data": values}]}
        for version in (1, 2):
            status, answer = self._post(f"/v2/models/m/versions/{version}/infer", document)
            assert status == 200, answer
            prediction = answer["parameters"]["prediction_id"]
            truth = (self._dice.random(ROWS) < answer["outputs"][0]["data"]) ^ self.lying
            said = [
                {"prediction_id": prediction, "row": row, "name": "late", "value": value}
                for row, value in enumerate(truth.tolist())
            ]
            self._waiting.append((time.monotonic() + self.delay_s, said))
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            self.tell(self._waiting.popleft()[1])
        self._post("/v1/feedback", {"prediction_id": prediction, "name": "nobody-declared-this", "value": True})
        self._post("/v2/models/m/infer", {"inputs": []})
        self._post("/v2/models/m/infer", {**document, "parameters": {"timeout": 1}})
        index = 99 if self.failing or self.rounds % 4 == 0 else 1
        self._post(
            "/v2/models/brittle/infer",
            {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [index]}]},
        )
        self.rounds += 1

    def tell(self, events: Sequence[dict[str, Any]]) -> None:
        """Send feedback."""
        status, answer = self._post("/v1/feedback:batch", b"\n".join(json.dumps(event).encode() for event in events))
        assert status == 200, answer
        assert answer["refused"] == 0, answer

    def _post(self, path: str, document: Any) -> tuple[int, Any]:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        request = urllib.request.Request(self._server.url + path, body, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())


def scrape(url: str) -> str:
    """The exposition of a port."""
    with urllib.request.urlopen(url + "/metrics", timeout=20) as reply:
        return str(reply.read().decode())
