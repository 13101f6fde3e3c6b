"""What the ledger shows to Prometheus: states of events, lag and coverage of labels, and how far behind the fold is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.feedback.event import FOLDER
from gateway.feedback.log import files
from gateway.ledger.maturity import DAY_S, HOUR_S, LAGS_S
from gateway.ledger.reading import Ledger, LedgerUnavailable

AGES_S = (HOUR_S, DAY_S, 7 * DAY_S, 30 * DAY_S)
"""The ages at which coverage is shown; GET of the maturity curve has them all."""

KEEP_S = 10.0
"""For how long what was read is shown again: a scrape must not read all counts every time."""


class LedgerCollector(Collector):
    """Reads the ledger at most once in `KEEP_S`. While it cannot be read, `headgate_ledger_readable` is 0.

    `trouble` says why it is not written, empty where it is.
    """

    def __init__(
        self,
        ledger: Ledger,
        data: Path,
        now_ns: Callable[[], int],
        monotonic: Callable[[], float],
        trouble: Callable[[], str] = lambda: "",
    ) -> None:
        self._ledger = ledger
        self._folder = data / FOLDER
        self._now_ns = now_ns
        self._monotonic = monotonic
        self._trouble = trouble
        self._lock = threading.Lock()
        self._families: list[Metric] = []
        self._until = float("-inf")

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read the ledger."""
        return []

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        with self._lock:
            if self._monotonic() >= self._until:
                self._families = self._read()
                self._until = self._monotonic() + KEEP_S
            return list(self._families)

    def _read(self) -> list[Metric]:
        readable = GaugeMetricFamily("headgate_ledger_readable", "Whether the ledger can be read.")
        try:
            families = [self._states(), self._lags(), self._coverage(), *self._logs()]
        except LedgerUnavailable:
            families = []
        readable.add_metric([], float(bool(families)))
        writable = GaugeMetricFamily("headgate_ledger_writable", "Whether feedback is taken into the ledger.")
        writable.add_metric([], float(not self._trouble()))
        return [readable, writable, *families]

    def _states(self) -> Metric:
        states = GaugeMetricFamily(
            "headgate_ledger_events", "Feedback events by what they came to.", labels=["model", "name", "state"]
        )
        for (model, name, state), count in sorted(self._ledger.tallies().items()):
            if name:
                states.add_metric([model, name, state], count)
        return states

    def _lags(self) -> Metric:
        lags = HistogramMetricFamily(
            "headgate_label_lag_seconds",
            "How long after their predictions the first labels came.",
            labels=["model", "version", "name"],
        )
        for (model, version, name), (classes, sum_s) in sorted(self._ledger.lags().items()):
            buckets: list[tuple[str, float]] = []
            total = 0
            for index in range(len(LAGS_S) + 1):
                total += classes.get(index, 0)
                buckets.append((f"{LAGS_S[index]:.1f}" if index < len(LAGS_S) else "+Inf", total))
            lags.add_metric([model, str(version), name], buckets, sum_s)
        return lags

    def _coverage(self) -> Metric:
        ratios = GaugeMetricFamily(
            "headgate_label_coverage_ratio",
            "Share of the predictions of at least this age that had a label at this age.",
            labels=["model", "version", "name", "age"],
        )
        for model, version, name in sorted(self._ledger.lags()):
            for each in self._ledger.maturity(model, version, name, self._now_ns()):
                if each.age_s in AGES_S:
                    age = f"{each.age_s // DAY_S}d" if each.age_s >= DAY_S else f"{each.age_s // HOUR_S}h"
                    ratios.add_metric([model, str(version), name, age], each.ratio)
        return ratios

    def _logs(self) -> Iterable[Metric]:
        logs = self._ledger.logs()
        behind = GaugeMetricFamily("headgate_ledger_backlog_bytes", "Feedback that is not in the ledger yet.")
        sizes = [(path.name, path.stat().st_size) for path in files(self._folder)]
        waiting = (size - (logs[name]["position"] + logs[name]["torn"] if name in logs else 0) for name, size in sizes)
        behind.add_metric([], sum(max(0, each) for each in waiting))
        lost = GaugeMetricFamily(
            "headgate_ledger_damaged_bytes", "Bytes of feedback logs that no checksum vouches for.", labels=["where"]
        )
        lost.add_metric(["middle"], sum(row["damaged"] for row in logs.values()))
        lost.add_metric(["end"], sum(row["torn"] for row in logs.values()))
        return behind, lost
