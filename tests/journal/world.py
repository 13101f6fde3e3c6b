"""A pipeline with a journal over one made-up version, which is sent requests of any kind."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from gateway.inference.admission import Quotas
from gateway.inference.pipeline import Pipeline
from gateway.journal.journal import Journal, JournalSettings
from gateway.journal.keep import JournalRule, KeepRule
from gateway.journal.reader import Locator, Record
from gateway.models.config import ModelConfig
from gateway.models.servable import Servable
from gateway.oip.limits import Limits
from gateway.telemetry.store import CounterStore
from gateway.types import Contract, TensorSpec
from tests.inference.fakes import FakeDoor, FakeSession, servable, table_of

FIXED = Contract((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),), batched=True)
MIXED = Contract(
    (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("city", "BYTES", (-1, 1))),
    (TensorSpec("y", "FP32", (-1, 2)),),
    batched=True,
)
FREE = Contract((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),), batched=True)


def item(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def numbers(*rows: tuple[float, float]) -> dict[str, Any]:
    return {"inputs": [item("x", "FP32", [len(rows), 2], [value for row in rows for value in row])]}


class World:
    """A pipeline with a journal over one version."""

    def __init__(self, data: Path, version: Servable, **rules: Any) -> None:
        self.data = data
        self.dropped: dict[str, int] = {}
        settings = {"segment_bytes": 1 << 20, "max_age_s": 3600.0, "flush": "process", "required": False}
        self.journal = Journal(JournalSettings(folder=data / "journal", **(settings | rules)), self._count)
        self.pipeline = Pipeline(table_of(version), CounterStore(), Limits(), Quotas(), 30.0, 60.0, self.journal)
        self.door = FakeDoor()

    def _count(self, what: str, number: int) -> None:
        self.dropped[what] = self.dropped.get(what, 0) + number

    def send(self, document: dict[str, Any], key: str = "", request_id: str = "") -> None:
        call = self.pipeline.admit(("m", None), self.door, time.monotonic_ns(), request_id, key)
        self.pipeline.submit(call, json.dumps(document).encode(), None)

    def ids(self) -> list[str]:
        return [json.loads(body)["parameters"]["prediction_id"] for body in self.door.bodies]

    def records(self) -> list[Record]:
        found = [Locator(self.data).record(each) for each in self.ids()]
        return [record for record in found if record is not None]


def with_rule(contract: Contract, **rules: KeepRule) -> Servable:
    version = servable(FakeSession(), contract)
    version.config = ModelConfig(journal=JournalRule(redaction_version="r1", tensors=rules))
    return version


def after(world: World, *documents: dict[str, Any], **named: Any) -> World:
    """Send requests in one turn of a loop and wait for their answers."""

    async def main() -> None:
        expected = world.door.times + len(documents)
        for document in documents:
            world.send(document, **named)
        async with asyncio.timeout(10):
            while world.door.times < expected:
                await asyncio.sleep(0)

    asyncio.run(main())
    return world
