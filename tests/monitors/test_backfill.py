"""Backfill: what a service counted while it was served is what is counted from archive and segments afterwards."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.journal import shelves
from gateway.journal.keeper import Keeper
from gateway.journal.reader import segments
from gateway.settings import Settings
from gateway.types import Contract, TensorSpec
from monitors.alarms import Alarm
from monitors.backfill import Backfill, versions
from monitors.baseline.build import Arrays, build
from monitors.baseline.document import Baseline
from monitors.merge import Origin, Piece
from monitors.rule import Rule
from monitors.service import Service, Subject
from monitors.types import Columns
from monitors.watcher import Watcher
from tests.inference.fakes import FakeSession, servable
from tests.monitors.test_service import CITIES, RULE, Ahead, Gate

TWO = Contract(
    (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("city", "BYTES", (-1, 1)), TensorSpec("pair", "BYTES", (-1, 2))),
    (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("n", "INT64", (-1,))),
    batched=True,
)
TOWNS = [*CITIES, "Café"]
KEY = ("m", 1)
BAD = 77.0
FUTURE = 1 << 62


def answer(inputs: Any, outputs: Any) -> Any:
    if (inputs["x"] == BAD).any():
        raise ValueError("the model cannot take this")
    found = {"y": inputs["x"].copy(), "n": np.arange(len(inputs["x"]), dtype=np.int64) % 3}
    return tuple(found[name] for name in outputs)


class Shop(Gate):
    """A gate with strings, two strings a row, and an output that not everybody asks for."""

    def __init__(self, data: Path) -> None:
        super().__init__(data, servable(FakeSession(answer), TWO))
        self.data = data

    def submit(self, *documents: dict[str, Any]) -> None:
        async def main() -> None:
            expected = self.door.times + len(documents)
            for document in documents:
                call = self.pipeline.admit(("m", None), self.door, time.monotonic_ns())
                self.pipeline.submit(call, json.dumps(document).encode(), None)
            async with asyncio.timeout(30):
                while self.door.times < expected:
                    await asyncio.sleep(0)

        asyncio.run(main())
        self.journal.tick(time.monotonic())

    def document(self, rows: int, shift: float = 0.0) -> dict[str, Any]:
        cities = np.array(TOWNS)[self.dice.integers(0, 4, rows * 3)].tolist()
        x = self.dice.normal(shift, 1, rows * 2).round(3).tolist()
        inputs = [
            {"name": "x", "shape": [rows, 2], "datatype": "FP32", "data": x},
            {"name": "city", "shape": [rows, 1], "datatype": "BYTES", "data": cities[:rows]},
            {"name": "pair", "shape": [rows, 2], "datatype": "BYTES", "data": cities[rows:]},
        ]
        return {"inputs": inputs}

    def mix(self, requests: int, shift: float = 0.0) -> None:
        """Requests of one to three rows: together, for one output alone, one that fails and one that is refused."""
        made = [self.document(int(self.dice.integers(1, 4)), shift=shift) for _ in range(requests)]
        self.submit(*made[2:], {"inputs": []})
        self.submit(*({**each, "outputs": [{"name": "y"}]} for each in made[:2]))
        bad = self.document(2)
        bad["inputs"][0]["data"][0] = BAD
        self.submit(bad)


def of_both(rows: int = 2000) -> Baseline:
    """A baseline of what `Shop` sends without a shift."""
    dice = np.random.default_rng(1)
    x = dice.normal(0, 1, (rows, 2)).round(3).astype(np.float32)
    cities = np.array(TOWNS, object)[dice.integers(0, 4, rows)]
    pairs = np.array([str(np.array(TOWNS)[pair].tolist()) for pair in dice.integers(0, 4, (rows, 2))], object)
    features = {"x[0]": x[:, 0], "x[1]": x[:, 1], "city": cities, "pair": pairs}
    return build(Arrays(features, {"y": x, "n": dice.integers(0, 3, rows)}))


def live(data: Path, baseline: Baseline | None) -> Service:
    return Service(data, lambda *_: Subject(RULE, baseline), lambda alarm: None, Ahead())


def filled(data: Path, baseline: Baseline | None, rule: Rule = RULE) -> tuple[Backfill, Watcher]:
    """A backfill and the watcher that it fed."""
    backfill = Backfill(data, KEY)
    watcher = Watcher(*KEY, rule, baseline)
    backfill.run(watcher, FUTURE)
    return backfill, watcher


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["mix", "mix", "large", "seal", "archive", "keep"]), min_size=2, max_size=10))
@example(steps=["mix", "large", "mix", "seal", "keep", "large", "mix", "seal"])
def test_a_backfill_over_archive_and_segments_has_the_counts_of_a_service_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    data = tmp_path_factory.mktemp("data")
    shop, baseline = Shop(data), of_both(500)
    watching = live(data, baseline)
    for step in [*steps, "mix", "seal", "archive", "mix"]:
        if step == "mix":
            shop.mix(15)
        elif step == "large":
            # More rows than a block takes: they have no columns.
            shop.submit(shop.document(5000))
        elif step == "seal":
            shop.pipeline.close()
            shop = Shop(data)
        else:
            watching.step()
            # Of a prefix one is always true, and one never.
            released = step == "archive"
            keeper = Keeper(Settings(data=data), is_read=bool if released else str.isspace)
            keeper.step()
            keeper.step()
    watching.step()
    backfill, watcher = filled(data, baseline)
    (service,) = watching.watchers.values()
    assert list((data / shelves.FOLDER).rglob("*.parquet"))
    assert segments(data / "journal")
    assert watcher.counted().to_bytes() == service.counted().to_bytes()
    assert watcher.loose == service.loose
    assert watcher.late == 0
    assert {prefix: service.cursors[prefix] for prefix in watcher.cursors} == watcher.cursors
    assert backfill.damaged == {}
    assert versions(data) == [KEY]


def test_a_stretch_without_answered_rows_is_read(tmp_path: Path) -> None:
    """1. All that is in a segment is a request that was larger than a block. 2. The service looks.
    Result: it counts nothing, and goes on.
    """
    shop, watching = Shop(tmp_path), live(tmp_path, of_both(300))
    shop.submit(shop.document(4097))
    watching.step()
    assert watching.watchers[KEY].progress[:1] == (0,)
    assert watching.watchers[KEY].loose == 1


def test_the_evidence_of_segments_that_overlap_is_that_of_one_stream_in_order_of_time(tmp_path: Path) -> None:
    """1. Three sources hold the rows of an hour between them, each in pieces of its own. 2. They are backfilled.
    Result: no row is late, blocks were closed on the way, and evidence and alarms are those of one ordered stream.
    """
    dice, rows = np.random.default_rng(3), 30_000
    baseline, rule = of_both(), Rule(block_s=60)
    times = np.sort(dice.integers(0, 3_600_000_000_000, rows)) + 1_790_000_000_000_000_000
    x = dice.normal(0, 1, (rows, 2)).astype(np.float32)
    x[20_000:] += np.float32(0.8)
    whole = Columns(times, {"x[0]": x[:, 0], "x[1]": x[:, 1]}, {"y": x})
    owner = dice.integers(0, 3, rows)
    owner[:8_000] = 0

    def origin(number: int, pieces: int) -> Origin:
        own = np.flatnonzero(owner == number)
        parts = [whole.take(part) for part in np.array_split(own, pieces)]
        read = lambda: iter([Piece(part, 0, len(part)) for part in parts])  # noqa: E731
        return Origin(int(times[own[0]]), str(number), len(own), read)

    backfill = Backfill(tmp_path, KEY)
    backfill._origins = [origin(0, 60), origin(1, 7), origin(2, 25)]
    found, ordered = Watcher(*KEY, rule, baseline), Watcher(*KEY, rule, baseline)
    waiting: list[int] = []
    raised = backfill.run(found, FUTURE, lambda count: waiting.append(len(found._blocks)))
    expected: list[Alarm] = []
    for start in range(0, rows, 100):
        part = whole.take(slice(start, start + 100))
        ordered.update(part)
        expected += ordered.close(int(part.time_ns[-1]) - 1)
    expected += ordered.close(FUTURE)
    assert [alarm.id for alarm in raised] == [alarm.id for alarm in expected]
    assert len(raised) >= 1
    assert (found.late, ordered.late) == (0, 0)
    assert found.alarms.to_bytes() == ordered.alarms.to_bytes()
    assert found.total.to_bytes() == ordered.total.to_bytes()
    assert max(waiting) < 20
    assert (backfill.first_ns, backfill.last_ns) == (times[0], times[-1])
