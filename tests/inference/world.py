"""A pipeline on a real event loop, around sessions that run as long as the test wants them to."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.inference.admission import Quotas
from gateway.inference.call import Call
from gateway.inference.cost import INLINE_S
from gateway.inference.pipeline import Pipeline
from gateway.journal.journal import Journal, JournalSettings
from gateway.journal.reader import Segment, segments
from gateway.models.servable import Servable
from gateway.oip.limits import Limits
from gateway.telemetry.counters import OUTCOMES
from gateway.telemetry.store import CounterStore
from gateway.types import Array
from tests.inference.fakes import FakeDoor, Gate, echo, table_of

LONG = {"run_s": 2 * INLINE_S, "batch_s": 2 * INLINE_S}
"""What quarantine says of a version whose runs leave the event loop."""

BAD = 666.0


def fails_on_bad(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
    """Raises for a batch with a bad value in it, with words that are not for clients."""
    if (inputs["x"] == BAD).any():
        raise RuntimeError("bad value in /secret/place")
    return echo(inputs, outputs)


def body_of(*values: float, **parameters: Any) -> bytes:
    """A request of one row for each value."""
    data = [each for value in values for each in (value, -value)]
    item = {"name": "x", "shape": [len(values), 2], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [item], **({"parameters": parameters} if parameters else {})}).encode()


def journal_in(folder: Path, store: CounterStore, **others: Any) -> Journal:
    """A journal that counts its drops in `store`."""

    def count(what: str, number: int) -> None:
        store.cells[store.cell("journal", what)] += number

    rules: dict[str, Any] = {"segment_bytes": 1 << 20, "max_age_s": 3600, "flush": "process", "required": False}
    return Journal(JournalSettings(folder=folder, **(rules | others)), count)


class World:
    """A pipeline over versions, and the doors of every request so far."""

    folder: Path | None = None

    def __init__(self, *versions: Servable, quotas: Quotas | None = None, deadline_s: float = 30.0) -> None:
        self.versions = versions
        self.table = table_of(*versions)
        self.store = CounterStore()
        if self.folder is not None:
            self.folder = self.folder / secrets.token_hex(8)
        self.journal = journal_in(self.folder, self.store) if self.folder is not None else None
        self.pipeline = Pipeline(self.table, self.store, Limits(), quotas or Quotas(), deadline_s, 60.0, self.journal)
        self.received = 0
        self.doors: list[FakeDoor] = []

    def admit(self, model: str = "m", version: int | None = None, key: str = "") -> Call:
        """Take a permit. Raises HeadgateError."""
        self.received += 1
        door = FakeDoor()
        call = self.pipeline.admit((model, version and str(version)), door, time.monotonic_ns(), key=key)
        self.doors.append(door)
        return call

    def send(self, *values: float, version: int | None = None, **parameters: Any) -> tuple[Call, FakeDoor]:
        """A whole request."""
        call = self.admit(version=version)
        self.pipeline.submit(call, body_of(*values, **parameters), None)
        return call, self.doors[-1]

    def outcomes(self) -> Counter[str]:
        """What all requests came to, as the counters have it."""
        found: Counter[str] = Counter()
        for version in self.versions:
            found.update({name: version.counters.outcome(name) for name in OUTCOMES})
        for key, count in self.store.snapshot().named.items():
            if key[0] == "unknown":
                found[key[1]] += count
        return +found

    def assert_at_rest(self) -> None:
        """Nothing is in flight, and every request was counted once."""
        assert [version.in_flight for version in self.versions] == [0] * len(self.versions)
        assert self.pipeline.admission.in_flight == 0
        assert sum(self.outcomes().values()) == self.received
        for engine in self.pipeline.engines():
            assert not engine.batcher
            assert engine.running is None
            for block in engine.reader._blocks:
                assert block is None or block.held == 0
        if self.journal is not None:
            self.assert_recorded(self.journal)

    def assert_recorded(self, journal: Journal) -> None:
        """Every request of a known version has one record, which tells what it came to."""
        journal.tick(0.0)
        found: Counter[int] = Counter()
        assert self.folder is not None
        for path in segments(self.folder):
            segment = Segment.open(path)
            assert segment.verify() == []
            first = segment.column("span")[: segment.rows()] > 0
            found.update(segment.column("status")[: segment.rows()][first].tolist())
            found.update(frame["status"] for _, frame in segment.frames() if "refused" in frame)
        outcomes = self.outcomes()
        unknown = sum(outcomes[code] for code in ("unknown-model", "unknown-version"))
        assert found[200] == outcomes["ok"]
        assert found[499] == outcomes["client-gone"]
        assert found[500] == outcomes["model-failed"] + outcomes["internal"]
        assert found[504] == outcomes["deadline-exceeded"]
        assert found.total() == self.received - unknown


def values_of(door: FakeDoor) -> list[float]:
    """The first column of a reply: the values that were sent."""
    assert not door.errors, door.errors
    (body,) = door.bodies
    return list(json.loads(body)["outputs"][0]["data"][::2])


def code_of(door: FakeDoor) -> str:
    """The code of the only refusal."""
    assert not door.bodies
    (error,) = door.errors
    return error.code


async def turns(count: int = 2) -> None:
    """Let the loop come round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(reached: Callable[[], Any]) -> None:
    """Wait for another thread or a timer; it is an error when that takes ten seconds."""
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.002)


async def begun(gate: Gate) -> None:
    """Wait until a run has begun."""
    await until(lambda: gate.begun.acquire(blocking=False))


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a test on a loop of its own; an error that only the loop saw is an error of the test."""
    seen: list[dict[str, Any]] = []

    async def whole() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
        await main()

    asyncio.run(whole())
    assert not seen, seen
