"""A scrape of the monitors as Prometheus gets it: ten models of a hundred features, with labels, in text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
from prometheus_client import CollectorRegistry

from gateway.telemetry.exposition import exposition
from monitors.baseline.build import Arrays, build
from monitors.labelled import Rows
from monitors.learnt import PART, Learner
from monitors.metrics import Collector
from monitors.rule import Rule
from monitors.service import Service
from monitors.task import Task
from monitors.types import Columns, Floats
from monitors.watcher import Watcher

MODELS, FEATURES = 10, 100
TASK = Task("late", "p", (0, 1))
BLOCK_NS = 300_000_000_000


class Watching:
    """What a scrape sees of the service: watchers, and what they cost."""

    cpu_s = 0.0
    lag = 0

    def __init__(self, watchers: Mapping[tuple[str, int], Watcher]) -> None:
        self._watchers = watchers

    def read(self, look: Callable[[Watcher], object]) -> Mapping[tuple[str, int], object]:
        """See Service."""
        return {key: look(watcher) for key, watcher in self._watchers.items()}


def scrape(rows: int = 10_000) -> Callable[[], bytes]:
    """Makes the models and fills their windows; the function that is returned renders one scrape."""
    rng = np.random.default_rng(20261129)
    registry = CollectorRegistry(auto_describe=False)
    watchers = {(f"model{place}", 1): watcher(f"model{place}", rng, rows) for place in range(MODELS)}
    registry.register(Collector(cast(Service, Watching(watchers))))
    return lambda: exposition(registry.collect())


def watcher(model: str, rng: np.random.Generator, rows: int) -> Watcher:
    """A version with a labelled baseline, and a window of as many rows, half of which have their labels."""
    features, scores, labels = drawn(rng, rows)
    source = Arrays(features, {TASK.score: scores}, {TASK.label: labels})
    baseline = build(source, monitors={PART: lambda layout: Learner.of(TASK, source)})
    made = Watcher(model, 1, Rule(), baseline, TASK)
    features, scores, labels = drawn(rng, rows)
    times = np.full(rows, BLOCK_NS)
    made.update(Columns(times, features, {TASK.score: scores}))
    made.close(3 * BLOCK_NS)
    assert made.performance is not None
    half = slice(0, rows // 2)
    columns = TASK.columns(times[half], scores[half], TASK.truth(labels[half]), {})
    made.performance.label(Rows(columns, times[half], np.ones(rows // 2, np.bool_)))
    return made


def drawn(rng: np.random.Generator, rows: int) -> tuple[dict[str, Floats], Floats, Floats]:
    """Features, scores, and labels that are as the scores say."""
    features = {f"f{place}": rng.normal(size=rows) for place in range(FEATURES)}
    scores = rng.random(rows)
    return features, scores, (rng.random(rows) < scores).astype(np.int64)
