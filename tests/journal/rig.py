"""Models that serve in a test, without sockets: real sessions behind the real pipeline, journal included."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.inference.admission import Quotas
from gateway.inference.pipeline import Pipeline
from gateway.journal.journal import Journal, JournalSettings
from gateway.journal.reader import Segment, segments
from gateway.models.config import ModelConfig, parse
from gateway.models.manifest import Lineage
from gateway.models.options import SessionOptions
from gateway.models.quarantine import Job
from gateway.models.servable import Servable
from gateway.models.session import Session
from gateway.models.trial import attempt
from gateway.oip.limits import Limits
from gateway.telemetry.counters import VersionCounters
from gateway.telemetry.store import CounterStore
from gateway.types import Array
from tests.inference.fakes import FakeDoor, table_of


def load(models: Path, model: str, version: int) -> Servable:
    """A version of a folder of models, tried and loaded in this process."""
    toml = models / model / "model.toml"
    config = parse(toml.read_bytes()) if toml.exists() else ModelConfig()
    folder = models / model / str(version)
    job = Job(str(folder), model, version, SessionOptions(), 1 << 30, 1 << 30, config.batching.enabled)
    report = attempt(job)
    session = Session((folder / "model.onnx").read_bytes(), SessionOptions(), report.unranked)
    return Servable(model, version, session, config, report, Lineage(), VersionCounters())


class Gateway:
    """A pipeline with a journal in the folder `data` over some versions. `close` seals the segments."""

    def __init__(self, data: Path, *versions: Servable, **rules: Any) -> None:
        self.data = data
        settings: dict[str, Any] = {
            "segment_bytes": 1 << 24,
            "max_age_s": 3600.0,
            "flush": "process",
            "required": False,
        }
        self.dropped = 0
        self.journal = Journal(JournalSettings(folder=data / "journal", **(settings | rules)), self._count)
        self.pipeline = Pipeline(table_of(*versions), CounterStore(), Limits(), Quotas(), 30.0, 60.0, self.journal)
        self.door = FakeDoor()

    def _count(self, what: str, number: int) -> None:
        self.dropped += number

    def send(self, turns: Sequence[Sequence[dict[str, Any]]], model: str = "m", version: int | None = None) -> None:
        """Send documents (without model); those of one turn of the loop run together. Returns when all are answered.

        The members `_key` and `_request_id` of a document travel as headers.
        """
        asyncio.run(self._send(turns, model, version))

    async def _send(self, turns: Sequence[Sequence[dict[str, Any]]], model: str, version: int | None) -> None:
        expected = self.door.times
        for turn in turns:
            for document in turn:
                body = {name: value for name, value in document.items() if name[0] != "_"}
                slot = None if version is None else str(version)
                names = document.get("_request_id", ""), document.get("_key", "")
                call = self.pipeline.admit((model, slot), self.door, time.monotonic_ns(), *names)
                self.pipeline.submit(call, json.dumps(body).encode(), None)
            expected += len(turn)
            async with asyncio.timeout(30):
                while self.door.times < expected:
                    await asyncio.sleep(0)

    @property
    def ids(self) -> list[str]:
        """The prediction ids of the answers so far."""
        return [json.loads(body)["parameters"]["prediction_id"] for body in self.door.bodies]

    def close(self) -> list[Segment]:
        """Seal everything; the segments."""
        self.pipeline.close()
        assert self.dropped == 0
        return [Segment.open(path) for path in segments(self.data / "journal")]


def item(name: str, array: Array) -> dict[str, Any]:
    """An input of a document."""
    datatype = {"f": "FP32", "O": "BYTES", "i": "INT64", "U": "BYTES"}[array.dtype.kind]
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": array.reshape(-1).tolist()}


def document(**inputs: Array) -> dict[str, Any]:
    """A request."""
    return {"inputs": [item(name, array) for name, array in inputs.items()]}


def normal(rows: int, width: int, seed: int = 0) -> Array:
    """Float32 of a normal distribution, (rows, width)."""
    return np.random.default_rng(seed).standard_normal((rows, width), np.float32)
