"""The monitors that every check of test_conformance.py runs on. A new Monitor class is found, and asked to be here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from monitors.baseline.build import Arrays, build
from monitors.baseline.document import Baseline
from monitors.operation import Operation
from monitors.performance.confusion import Confusion
from monitors.performance.dle import DirectLoss
from monitors.performance.labels import LabelFlow
from monitors.performance.loss_model import LossModel
from monitors.performance.multiclass import ClassScores
from monitors.performance.regression import Regression
from monitors.performance.scores import Scores
from monitors.performance.slices import Sliced
from monitors.quality.duplicates import Duplicates
from monitors.quality.freshness import Freshness
from monitors.seen import Seen
from monitors.types import Array, Columns, Monitor
from monitors.window import Panes

HOUR = 3_600_000_000_000
START = 1_785_000_000_000_000_000


def rows(n: int, seed: int = 0) -> Columns:
    """Ordinary rows: numbers, words, a whole number, scores, classes, labels for two thirds; three days long."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    score = 1 / (1 + np.exp(-x - rng.normal(size=n)))
    words = np.array(["a", "b", "c"], dtype=object)
    features: dict[str, Array] = {
        "x": x,
        "single": rng.lognormal(size=n).astype(np.float32),
        "count": rng.integers(0, 5, n),
        "flag": rng.random(n) < 0.5,
        "word": words[rng.integers(0, 3, n)],
        "weight": rng.integers(1, 4, n).astype(float),
    }
    classes = rng.dirichlet([1.0, 1.0, 1.0], n)
    outputs = {"score": score, "classes": classes, "value": x * 2, "number": rng.integers(0, 3, n)}
    labels = {"late": (rng.random(n) < score).astype(np.int64), "kind": rng.integers(0, 3, n), "amount": x * 2 + 0.1}
    time_ns = START + rng.integers(0, 72 * HOUR, n)
    labels["came"] = time_ns + rng.integers(0, 48 * HOUR, n)
    known = rng.random(n) < 2 / 3
    features |= {"status": rng.choice([200, 400, 503], n), "latency_ns": rng.integers(0, 10**9, n)}
    return Columns(time_ns, features, outputs, labels, dict.fromkeys(labels, known))


def hostile() -> Iterator[Columns]:
    """Rows that break careless code: not finite, extreme, of other types, absent, empty, constant, of one class."""
    n = 12
    extremes = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e308, -1e308, 5e-324, 2.0**63, 1, 0, -1])
    ordinary = rows(n, 9)

    def changed(**arrays: Array) -> Columns:
        parts: list[dict[str, Array]] = []
        for own in (ordinary.features, ordinary.outputs, ordinary.labels):
            parts.append({name: arrays.get(name, values) for name, values in own.items()})
        return Columns(ordinary.time_ns, parts[0], parts[1], parts[2], ordinary.labelled)

    yield rows(0)
    yield rows(1)
    yield changed(x=extremes, score=extremes, value=extremes, amount=extremes, late=extremes, weight=extremes)
    with np.errstate(over="ignore"):
        single = extremes.astype(np.float32)
    yield changed(x=single, score=single, value=single, single=single, number=single)
    limits = np.array([np.iinfo(np.int64).min, np.iinfo(np.int64).max] * (n // 2))
    yield changed(x=limits, count=limits, number=limits, late=limits, kind=limits, value=limits, amount=limits)
    yield changed(count=np.full(n, np.iinfo(np.uint64).max, np.uint64), late=np.zeros(n, np.uint64))
    words = np.array(["unseen", "", "é\x00", None, "a" * 10_000, "1"] * 2, dtype=object)
    yield changed(word=words, x=words, late=words, kind=words, number=words)
    yield changed(word=np.array(["a", "b"] * (n // 2)), flag=np.array([None, True] * (n // 2), dtype=object))
    yield changed(**{name: np.zeros(n) for name in ("x", "score", "value", "late", "kind", "amount", "weight")})
    yield changed(status=extremes, latency_ns=extremes)
    yield changed(status=limits, latency_ns=words)
    yield changed(score=np.ones(n), late=np.ones(n, dtype=np.int64))
    yield changed(classes=np.full((n, 3), np.nan), score=np.full(n, -1.0))
    yield Columns(ordinary.time_ns)
    yield Columns(np.array([np.iinfo(np.int64).min // 2, 0]), {"x": np.zeros(2)})


@cache
def baseline() -> Baseline:
    """The baseline of the ordinary rows."""
    first = rows(3000, 1)
    return build(Arrays(first.features, first.outputs, first.labels, first.time_ns))


@cache
def loss_model() -> bytes:
    """A saved model of the loss, for the direct estimate."""
    first = rows(2000, 2)
    loss = np.abs(first.labels["amount"] - first.outputs["value"])
    return LossModel.fit(first, loss, outputs=["value"], trees=5).to_bytes()


@cache
def sliced() -> Baseline:
    """The same with slices."""
    first = rows(3000, 1)
    return build(Arrays(first.features, first.outputs), slices=["word", "count"])


def joint() -> Any:
    """Sums for joint drift."""
    made = baseline().new_joint()
    assert made is not None
    return made


def scores() -> Scores:
    """The score histogram."""
    return Scores(output="score", label="late", weight="weight")


MONITORS: dict[str, Callable[[], Monitor]] = {
    "State": lambda: baseline().new_state(),
    "Joint": joint,
    "Panes": lambda: Panes(baseline().new_state, HOUR, 12, 4),
    "Duplicates": lambda: Duplicates(baseline().layout, 64),
    "Freshness": Freshness,
    "Operation": Operation,
    "Seen": lambda: Seen(sliced()),
    "Scores": scores,
    "ClassScores": lambda: ClassScores(output="classes", label="kind", classes=[0, 1, 2]),
    "Confusion": lambda: Confusion(output="number", label="kind", classes=[0, 1, 2]),
    "Regression": lambda: Regression(output="value", label="amount", quantiles={"value": 0.5}),
    "DirectLoss": lambda: DirectLoss(output="value", label="amount", model=loss_model(), edges=(0.05, 0.1, 0.2)),
    "LabelFlow": lambda: LabelFlow(label="late", arrival="came", buckets=48),
    "Sliced": lambda: Sliced(monitor=scores(), by="word", values=["a", "b"]),
}
