"""What every monitor promises, checked on every monitor: exact merging, safety on any values, fixed memory."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import monitors
from monitors.types import Columns, Monitor
from tests.monitors.conformance import MONITORS, hostile, rows

NAMES = sorted(MONITORS)
# Learns from training data once, in its order; what it learns is merged as the monitors that it is made of.
NO_MONITORS = frozenset({"Learner"})
PARTS = ("update", "merge", "value", "to_bytes", "load")


def fed(name: str, *batches: Columns) -> Any:
    monitor: Any = MONITORS[name]()
    for batch in batches:
        monitor.update(batch)
    return monitor


def test_every_monitor_class_is_in_the_registry() -> None:
    found = set()
    for module in pkgutil.walk_packages(monitors.__path__, "monitors."):
        for name, each in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if each.__module__ != module.name or inspect.isabstract(each) or each is Monitor:
                continue
            update = getattr(each, "update", None)
            if all([hasattr(each, part) for part in PARTS]) and "columns" in inspect.signature(update).parameters:  # type: ignore[arg-type]
                found.add(name)
    assert found - NO_MONITORS == set(MONITORS)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=5), seed=st.integers(0, 2**32 - 1))
def test_any_partition_order_merge_and_restart_gives_the_same_bytes(name: str, cuts: list[int], seed: int) -> None:
    whole = fed(name, rows(400, 3))
    rng = np.random.default_rng(seed)
    shuffled = rows(400, 3).take(rng.permutation(400))
    parts: list[Any] = []
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 400], strict=True):
        part = fed(name, shuffled.take(slice(start, stop)))
        if rng.random() < 0.5:
            restarted: Any = MONITORS[name]()
            restarted.load(part.to_bytes())
            part = restarted
        if parts and rng.random() < 0.3:
            parts[-1].update(shuffled.take(slice(start, stop)))
        else:
            parts.append(part)
    rng.shuffle(parts)
    total: Any = MONITORS[name]()
    for part in parts:
        total.merge(part)
    assert total.to_bytes() == whole.to_bytes()
    assert plain(total.value()) == plain(whole.value())


@pytest.mark.parametrize("name", NAMES)
def test_hostile_rows_are_counted_in_any_order_without_an_error(name: str) -> None:
    batches = [*hostile(), rows(50, 4)]
    forwards, backwards = fed(name, *batches), fed(name, *reversed(batches))
    assert forwards.to_bytes() == backwards.to_bytes()
    assert plain(forwards.value()) == plain(backwards.value())


@pytest.mark.parametrize("name", NAMES)
def test_a_monitor_is_not_deaf_after_hostile_rows(name: str) -> None:
    """What ordinary rows add to the state is not swallowed by NaN, infinities or extremes that came before."""
    monitor = fed(name, *hostile())
    before = monitor.to_bytes()
    monitor.update(rows(500, 5))
    assert monitor.to_bytes() != before


def plain(value: Any) -> str:
    """A value as JSON: text, numbers that are finite, None, lists, mappings and structs of those, and nothing else."""
    return json.dumps(msgspec.to_builtins(value), allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_change_nothing(name: str) -> None:
    monitor = fed(name, rows(100, 6))
    before = monitor.to_bytes()
    monitor.update(rows(0))
    monitor.merge(MONITORS[name]())
    assert monitor.to_bytes() == before
    empty: Any = MONITORS[name]()
    assert plain(empty.value())


@pytest.mark.parametrize("name", NAMES)
def test_memory_does_not_grow_with_rows(name: str) -> None:
    monitor = fed(name, rows(3000, 7))
    size = len(monitor.to_bytes())
    for seed in range(5):
        monitor.update(rows(3000, 20 + seed))
    assert len(monitor.to_bytes()) <= size * 1.1 + 64


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_read_and_never_written(name: str) -> None:
    columns = rows(60, 8)
    for own in (columns.features, columns.outputs, columns.labels, columns.labelled):
        for values in own.values():
            values.flags.writeable = False
    columns.time_ns.flags.writeable = False
    fed(name, columns)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_refuses_what_is_not_its_own_and_stays_as_it_was(name: str) -> None:
    monitor = fed(name, rows(50, 6))
    before = monitor.to_bytes()
    other = "Freshness" if name != "Freshness" else "State"
    for data in (b"", b"\x00", b"\xff" * 40, before[: len(before) // 2], fed(other, rows(50, 6)).to_bytes()):
        with pytest.raises(ValueError, match="."):
            monitor.load(data)
    assert monitor.to_bytes() == before
