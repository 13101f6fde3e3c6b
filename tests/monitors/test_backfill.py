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

from gateway.journal import archive
from gateway.journal.keeper import Keeper
from gateway.journal.reader import segments
from gateway.settings import Settings
from gateway.types import Contract, TensorSpec
from monitors.backfill import Backfill, versions
from monitors.baseline.build import Arrays, build
from monitors.baseline.document import Baseline
from monitors.service import Service, Subject
from monitors.watcher import Rule, Watcher
from tests.inference.fakes import FakeSession, servable
from tests.monitors.test_service import CITIES, RULE, Ahead, Gate

TWO = Contract(
    (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("city", "BYTES", (-1, 1)), TensorSpec("pair", "BYTES", (-1, 2))),
    (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("n", "INT64", (-1,))),
    batched=True,
)
TOWNS = [*CITIES, "Café"]
KEY = ("m", 1)
FUTURE = 1 << 62


def answer(inputs: Any, outputs: Any) -> Any:
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

    def document(self, rows: int, *outputs: str, shift: float = 0.0) -> dict[str, Any]:
        cities = np.array(TOWNS)[self.dice.integers(0, 4, rows * 3)].tolist()
        x = self.dice.normal(shift, 1, rows * 2).round(3).tolist()
        inputs = [
            {"name": "x", "shape": [rows, 2], "datatype": "FP32", "data": x},
            {"name": "city", "shape": [rows, 1], "datatype": "BYTES", "data": cities[:rows]},
            {"name": "pair", "shape": [rows, 2], "datatype": "BYTES", "data": cities[rows:]},
        ]
        wanted = {"outputs": [{"name": name} for name in outputs]} if outputs else {}
        return {"inputs": inputs, **wanted}

    def mix(self, requests: int, shift: float = 0.0) -> None:
        """Requests of one to three rows, some for one output, and one that is refused."""
        made = [
            self.document(int(self.dice.integers(1, 4)), *(["y"] if self.dice.random() < 0.3 else []), shift=shift)
            for _ in range(requests)
        ]
        self.submit(*made, {"inputs": []})


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
    assert list((data / archive.FOLDER).rglob("*.parquet"))
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
