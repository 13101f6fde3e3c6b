"""Metrics: the counters of all versions as Prometheus families. Labels come only from loaded models, never a URL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway import __version__
from gateway.models.table import ModelTable
from gateway.telemetry.counters import BUCKETS_S, CLASSES, OUTCOMES, PHASES
from gateway.telemetry.exposition import exposition
from gateway.telemetry.store import Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LABELS = ("model", "version")


class GatewayCollector(Collector):
    """Turns the counters and the serving table into metric families at scrape time."""

    def __init__(self, read: Callable[[], Snapshot], models: Callable[[], Mapping[str, ModelTable]]) -> None:
        self._read = read
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client's Collector."""
        counters = self._read()
        yield from _requests(counters)
        yield from _durations(counters)
        yield from _work(counters)
        yield from _journal(counters)
        yield from _feedback(counters)
        yield from self._repository()
        build = GaugeMetricFamily("headgate_build_info", "The running version of Headgate.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build

    def _repository(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("headgate_model_info", "The loaded versions.", labels=[*_LABELS, "digest", "verified"])
        ready = GaugeMetricFamily("headgate_model_ready", "Whether a known version answers requests.", labels=_LABELS)
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
                memory.add_metric(labels, servable.report.memory_bytes)
                load.add_metric(labels, servable.report.load_s)
        yield from (info, ready, memory, load, alias)


def _requests(counters: Snapshot) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "headgate_requests",
        "Inference requests by what they came to: `code` is ok or the code of the error, `class` who is to blame.",
        labels=[*_LABELS, "code", "class"],
    )
    for labels, version in counters:
        for outcome in OUTCOMES:
            value = version.outcome(outcome)
            if value or outcome == "ok":
                requests.add_metric([*labels, outcome, CLASSES.get(outcome, "client")], value)
    http = CounterMetricFamily(
        "headgate_http_requests", "HTTP requests by route and status.", labels=["route", "status"]
    )
    for name, value in sorted(counters.named.items()):
        if name[0] == "unknown":
            requests.add_metric(["_unknown_", "", name[1], CLASSES.get(name[1], "client")], value)
        elif name[0] == "http":
            http.add_metric(name[1:], value)
    yield from (requests, http)


def _journal(counters: Snapshot) -> Iterator[Metric]:
    lost = CounterMetricFamily(
        "headgate_journal_lost",
        "Records that are not in the journal: dropped (no room on the disk), cut (torn by a crash of the machine), "
        "damaged (stretches of rows or frames that do not fit their checksums).",
        labels=["reason"],
    )
    errors = CounterMetricFamily("headgate_journal_errors", "Failed writes of the journal.")
    recovered = CounterMetricFamily("headgate_journal_segments_recovered", "Segments of workers that died.")
    torn = CounterMetricFamily(
        "headgate_journal_torn",
        "Files of frames whose end a crash tore off. What a killed process was writing had not been answered.",
    )
    for reason in ("dropped", "cut", "damaged"):
        lost.add_metric([reason], counters.named.get(("journal", reason), 0))
    errors.add_metric([], counters.named.get(("journal", "errors"), 0))
    recovered.add_metric([], counters.named.get(("journal", "segments-recovered"), 0))
    torn.add_metric([], counters.named.get(("journal", "torn"), 0))
    yield from (lost, errors, recovered, torn)


def _feedback(counters: Snapshot) -> Iterator[Metric]:
    events = CounterMetricFamily(
        "headgate_feedback",
        "Feedback events by what they were answered: matched, pending, late, deleted, replayed, or the code of the "
        "error. Without a model: its prediction was not found and several models declare the name, or it was refused.",
        labels=["model", "name", "status"],
    )
    forgotten = CounterMetricFamily(
        "headgate_feedback_keys_forgotten", "Idempotency keys that had to make room for newer ones."
    )
    for name, value in sorted(counters.named.items()):
        if name[0] == "feedback":
            events.add_metric(name[1:], value)
    forgotten.add_metric([], counters.named.get(("feedback-keys-forgotten",), 0))
    yield from (events, forgotten)


def _durations(counters: Snapshot) -> Iterator[Metric]:
    durations = HistogramMetricFamily(
        "headgate_request_duration_seconds",
        "Time of answered inference requests by phase: decode, queue, run, encode, and total.",
        labels=[*_LABELS, "phase"],
    )
    for labels, version in counters:
        for phase in PHASES:
            histogram = version.histogram(phase)
            running, buckets = 0, []
            for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), histogram.counts, strict=True):
                running += count
                buckets.append((bound, running))
            durations.add_metric([*labels, phase], buckets, histogram.sum_ns / 1e9)
    yield durations


def _work(counters: Snapshot) -> Iterator[Metric]:
    rows = CounterMetricFamily("headgate_rows", "Rows of answered inference requests.", labels=_LABELS)
    runs = CounterMetricFamily("headgate_runs", "Runs of the session; rows per run is the batch size.", labels=_LABELS)
    nonfinite = CounterMetricFamily(
        "headgate_nonfinite_outputs", "Output values in JSON replies that were NaN or infinite.", labels=_LABELS
    )
    held = GaugeMetricFamily("headgate_requests_in_flight", "Requests that are being answered.", labels=_LABELS)
    cost = GaugeMetricFamily(
        "headgate_run_cost_seconds",
        "Learned time of a run: for each row (part=row) and besides (part=fixed).",
        labels=[*_LABELS, "part"],
    )
    tasks = GaugeMetricFamily("headgate_worker_tasks", "Tasks in the event loops of the workers.")
    tasks.add_metric([], counters.named.get(("tasks",), 0))
    for labels, version in counters:
        rows.add_metric(labels, version.rows)
        runs.add_metric(labels, version.runs)
        nonfinite.add_metric(labels, version.nonfinite_outputs)
        held.add_metric(labels, version.in_flight)
        for part, value in zip(("row", "fixed"), version.cost_ns, strict=True):
            cost.add_metric([*labels, part], value / 1e9)
    yield from (rows, runs, nonfinite, held, cost, tasks)


def registry(read: Callable[[], Snapshot], models: Callable[[], Mapping[str, ModelTable]]) -> CollectorRegistry:
    """A registry of its own, so that two gateways fit into one process."""
    own = CollectorRegistry(auto_describe=False)
    own.register(GatewayCollector(read, models))
    ProcessCollector(registry=own)
    return own


def render(own: CollectorRegistry) -> bytes:
    """The exposition in the text format. Slow enough that it belongs in a thread."""
    return exposition(own.collect())
