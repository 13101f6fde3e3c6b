"""Metrics: the counters of all versions as Prometheus families. Labels come only from loaded models, never a URL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from gateway import __version__
from gateway.models.table import ModelTable
from gateway.telemetry.counters import BUCKETS_S, CLASSES, OUTCOMES, PHASES, VersionCounters

MAX_VERSIONS = 1000
"""Versions with counters of their own; later ones are counted together under ``_overflow_``."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LABELS = ("model", "version")


class Counters:
    """Every version's counters, kept after the version is gone. Requests for no known model are `unknown`."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, int], VersionCounters] = {}
        self._overflow = VersionCounters()
        self.unknown: Counter[str] = Counter()
        self.http: Counter[tuple[str, int]] = Counter()

    def of(self, model: str, version: int) -> VersionCounters:
        """The counters of a version of a model that is in the repository."""
        key = (model, version)
        if key not in self._versions and len(self._versions) >= MAX_VERSIONS:
            return self._overflow
        return self._versions.setdefault(key, VersionCounters())

    def __iter__(self) -> Iterator[tuple[tuple[str, str], VersionCounters]]:
        for (model, version), counters in sorted(self._versions.items()):
            yield (model, str(version)), counters
        if any(self._overflow.outcome(outcome) for outcome in OUTCOMES):
            yield ("_overflow_", ""), self._overflow


class GatewayCollector(Collector):
    """Turns the counters and the serving table into metric families at scrape time."""

    def __init__(self, counters: Counters, models: Callable[[], Mapping[str, ModelTable]]) -> None:
        self._counters = counters
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client's Collector."""
        yield from self._requests()
        yield from self._durations()
        yield from self._work()
        yield from self._repository()
        build = GaugeMetricFamily("headgate_build_info", "The running version of Headgate.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "headgate_requests",
            "Inference requests by what they came to: `code` is ok or the code of the error, `class` who is to blame.",
            labels=[*_LABELS, "code", "class"],
        )
        for labels, counters in self._counters:
            for outcome in OUTCOMES:
                value = counters.outcome(outcome)
                if value or outcome == "ok":
                    requests.add_metric([*labels, outcome, CLASSES.get(outcome, "client")], value)
        for code, value in sorted(self._counters.unknown.items()):
            requests.add_metric(["_unknown_", "", code, CLASSES.get(code, "client")], value)
        yield requests
        http = CounterMetricFamily(
            "headgate_http_requests", "HTTP requests by route and status.", labels=["route", "status"]
        )
        for (route, status), value in sorted(self._counters.http.items()):
            http.add_metric([route, str(status)], value)
        yield http

    def _durations(self) -> Iterator[Metric]:
        durations = HistogramMetricFamily(
            "headgate_request_duration_seconds",
            "Time of answered inference requests by phase: decode, queue, run, encode, and total.",
            labels=[*_LABELS, "phase"],
        )
        for labels, counters in self._counters:
            for phase in PHASES:
                histogram = counters.histogram(phase)
                running, buckets = 0, []
                for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), histogram.counts, strict=True):
                    running += count
                    buckets.append((bound, running))
                durations.add_metric([*labels, phase], buckets, histogram.sum_ns / 1e9)
        yield durations

    def _work(self) -> Iterator[Metric]:
        rows = CounterMetricFamily("headgate_rows", "Rows of answered inference requests.", labels=_LABELS)
        runs = CounterMetricFamily(
            "headgate_runs", "Runs of the session; rows per run is the batch size.", labels=_LABELS
        )
        nonfinite = CounterMetricFamily(
            "headgate_nonfinite_outputs", "Output values in JSON replies that were NaN or infinite.", labels=_LABELS
        )
        for labels, counters in self._counters:
            rows.add_metric(labels, counters.rows)
            runs.add_metric(labels, counters.runs)
            nonfinite.add_metric(labels, counters.nonfinite_outputs)
        yield from (rows, runs, nonfinite)

    def _repository(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("headgate_model_info", "The loaded versions.", labels=[*_LABELS, "digest", "verified"])
        ready = GaugeMetricFamily("headgate_model_ready", "Whether a known version answers requests.", labels=_LABELS)
        held = GaugeMetricFamily("headgate_requests_in_flight", "Requests that are being answered.", labels=_LABELS)
        memory = GaugeMetricFamily(
            "headgate_model_memory_bytes", "Memory a version took in quarantine.", labels=_LABELS
        )
        load = GaugeMetricFamily(
            "headgate_model_load_seconds", "Time a version took to load in quarantine.", labels=_LABELS
        )
        alias = GaugeMetricFamily("headgate_model_alias", "Where the aliases point.", labels=[*_LABELS, "alias"])
        for name, model in sorted(self._models().items()):
            for status in model.statuses:
                ready.add_metric([name, str(status.version)], float(status.state == "READY"))
            for name_of_alias, version in sorted(model.aliases.items()):
                alias.add_metric([name, str(version), name_of_alias], 1)
            for version, servable in sorted(model.ready.items()):
                labels = [name, str(version)]
                info.add_metric([*labels, servable.report.sha256, str(servable.report.verified).lower()], 1)
                held.add_metric(labels, servable.in_flight)
                memory.add_metric(labels, servable.report.memory_bytes)
                load.add_metric(labels, servable.report.load_s)
        yield from (info, ready, held, memory, load, alias)


def registry(counters: Counters, models: Callable[[], Mapping[str, ModelTable]]) -> CollectorRegistry:
    """A registry of its own, so that two gateways fit into one process."""
    own = CollectorRegistry(auto_describe=False)
    own.register(GatewayCollector(counters, models))
    ProcessCollector(registry=own)
    return own


def render(own: CollectorRegistry) -> bytes:
    """The exposition in the text format. Slow enough that it belongs in a thread."""
    return generate_latest(own)
