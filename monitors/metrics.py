"""Metrics of the monitors: a small, stable surface, computed when somebody scrapes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from monitors.drift.report import drift
from monitors.outputs import BINS, OUTPUTS, Share, shares
from monitors.performance.figure import Figure
from monitors.quality.report import constant, quality
from monitors.report import joint_drift
from monitors.service import Service
from monitors.watcher import Progress, Watcher
from monitors.webhook import Webhook

TOP = 20
OTHER = "_other_"
"""The name under which the strongest of the features stands that are not among the `TOP`."""

SHOWN = ("psi", "jensen_shannon", "kolmogorov_smirnov", "wasserstein", "mean_shift")
RATIOS = (
    *("accuracy", "precision", "recall", "f1", "specificity", "balanced_accuracy", "roc_auc", "average_precision"),
    *("precision_macro", "recall_macro", "f1_macro", "roc_auc_macro", "brier", "ece", "positive_rate"),
)
"""Figures from 0 to 1 that are shown."""

ERRORS = ("log_loss", "mae", "rmse", "mape", "bias", "r2")
"""Figures in units of their own that are shown."""

WHOLE_ROWS = {
    "joint": (
        "headgate_joint_drift",
        "Drift of whole rows of the window: the squared mean discrepancy, around 0 where nothing drifted.",
    ),
    "joint_sd": ("headgate_joint_drift_noise", "A bound on the deviation of headgate_joint_drift by chance."),
    "repeated": ("headgate_repeated_rows_ratio", "Share of the rows of the window that repeat another."),
    "newest_s": ("headgate_monitor_newest_row_timestamp_seconds", "Unix time of the newest row."),
    "memory_bytes": ("headgate_monitor_state_bytes", "Memory of the counts of rows, which does not grow with them."),
}
"""By what it is of a version, the name and the help of its metric."""

_LABELS = ("model", "version")


class Look(NamedTuple):
    """What a scrape takes from one watcher."""

    progress: Progress
    learned: float
    watches: dict[str, dict[str, object]]
    scores: list[tuple[str, str, float]]
    samples: list[tuple[str, float]]
    rates: list[tuple[str, str, float]]
    outputs: list[Share]
    performance: list[tuple[str, str, Figure]]
    detections: list[tuple[str, str, int]]
    whole: dict[str, float]


def look(watcher: Watcher) -> Look:
    """The numbers of one watcher."""
    performance: list[tuple[str, str, Figure]] = []
    detections: list[tuple[str, str, int]] = []
    watches: dict[str, dict[str, object]] = {}
    if watcher.performance is not None:
        for kind, figures in watcher.performance.figures().items():
            performance += [(name, kind, each) for name, each in figures.items() if name in RATIOS + ERRORS]
        watches = watcher.performance.alarms.value()
        for detector, losses in watcher.performance.streams.value().items():
            detections += [(detector, loss, int(found["detections"])) for loss, found in losses.items()]
    whole = {} if watcher.fresh.last_ns is None else {"newest_s": watcher.fresh.last_ns / 1e9}
    if watcher.baseline is None:
        return Look(watcher.progress, 1.0, watches, [], [], [], [], performance, detections, whole)
    watches = watcher.alarms.value() | watches
    names = watcher.baseline.layout.names
    statistics = drift(watcher.baseline.state, watcher.window, SHOWN)
    order = np.argsort(-np.nan_to_num(statistics["psi"].debiased, nan=-np.inf), kind="stable")
    top, rest = order[:TOP].tolist(), order[TOP:].tolist()
    scores: list[tuple[str, str, float]] = []
    for name in SHOWN:
        found = statistics[name]
        # Lists: one by one, numbers of an array cost several times as much.
        values = (found.debiased if name == "psi" else found.value).tolist()
        scores += [(names[row], name, values[row]) for row in top if math.isfinite(values[row])]
        others = [values[row] for row in rest if math.isfinite(values[row])]
        if others:
            scores.append((OTHER, name, max(others)))
    samples = [(names[row], float(statistics["psi"].n[row])) for row in top]
    rates = []
    for kind, rate in quality(watcher.baseline.state, watcher.window).items():
        values = rate.rate.tolist()
        rates += [(names[row], kind, values[row]) for row in top if math.isfinite(values[row])]
    stuck = constant(watcher.baseline.state, watcher.window)
    rates += [(names[row], "constant", float(stuck[row])) for row in top]
    answers = shares(watcher.baseline.state, watcher.window)
    seen = watcher.shown.seen
    whole["memory_bytes"] = float(watcher.nbytes)
    if (joint := joint_drift(watcher.baseline, seen)) is not None:
        whole |= {"joint": joint["value"], "joint_sd": joint["null_sd"]}
    if (repeated := seen.repeated.value()["share"]) is not None:
        whole["repeated"] = repeated
    learned = float(watcher.baseline.facts.learned)
    return Look(watcher.progress, learned, watches, scores, samples, rates, answers, performance, detections, whole)


class Collector:
    """Turns the watchers of a service into metric families."""

    def __init__(self, service: Service, webhook: Webhook | None = None) -> None:
        self._service, self._webhook = service, webhook
        self._counted: dict[tuple[str, ...], tuple[int, int]] = {}

    def _grown(self, value: int, *key: str) -> int:
        """A count that never falls, of one that does where a baseline is learned and counting begins anew."""
        before, last = self._counted.get(key, (0, 0))
        if value < last:
            before += last
        self._counted[key] = before, value
        return before + value

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's Collector."""
        score = GaugeMetricFamily(
            "headgate_drift_score",
            f"Drift of the window against the baseline, for the {TOP} strongest features by PSI and, as {OTHER}, the "
            "strongest of the others. PSI is without what finite samples add to it.",
            labels=[*_LABELS, "feature", "statistic"],
        )
        samples = GaugeMetricFamily(
            "headgate_drift_samples", "Rows of the window that a score rests on.", labels=[*_LABELS, "feature"]
        )
        rates = GaugeMetricFamily(
            "headgate_data_quality_ratio", "Share of rows of the window that are missing, unseen, out of range ...",
            labels=[*_LABELS, "feature", "kind"],
        )  # fmt: skip
        answers = GaugeMetricFamily(
            "headgate_monitor_output_share",
            f"Share of the window whose answer lies in a bin: for the first {OUTPUTS} outputs, in at most {BINS} bins "
            "with about as much of the baseline each, and outside of them.",
            labels=[*_LABELS, "output", "bin"],
        )
        evidence = GaugeMetricFamily(
            "headgate_alarm_evidence", "Evidence of a watch, a natural logarithm.", labels=[*_LABELS, "watch"]
        )
        needed = GaugeMetricFamily(
            "headgate_alarm_threshold", "Evidence at which the watch raises an alarm.", labels=[*_LABELS, "watch"]
        )
        alarm = GaugeMetricFamily(
            "headgate_alarm", "1 while an alarm is raised that nobody has acknowledged.", labels=[*_LABELS, "watch"]
        )
        rows = CounterMetricFamily("headgate_monitor_rows", "Rows that were counted.", labels=_LABELS)
        late = CounterMetricFamily(
            "headgate_monitor_late_rows", "Rows that came after their block was closed, and count in a later one.",
            labels=_LABELS,
        )  # fmt: skip
        loose = CounterMetricFamily(
            "headgate_monitor_unseen_rows", "Requests whose values have no columns, which monitors do not see.",
            labels=_LABELS,
        )  # fmt: skip
        learned = GaugeMetricFamily(
            "headgate_monitor_learned_baseline",
            "1 where the baseline is, or will be, learned from live rows and not from training data.",
            labels=_LABELS,
        )
        ratio = GaugeMetricFamily(
            "headgate_performance_ratio",
            "How good the answers of the window were: realised by the labels that came, estimated without labels.",
            labels=[*_LABELS, "metric", "kind"],
        )
        error = GaugeMetricFamily(
            "headgate_performance_error",
            "Errors of the window, in the units of the label (log_loss in nats, mape and r2 without one).",
            labels=[*_LABELS, "metric", "kind"],
        )
        rests = GaugeMetricFamily(
            "headgate_performance_samples", "Rows that a figure rests on.", labels=[*_LABELS, "metric", "kind"]
        )
        detected = CounterMetricFamily(
            "headgate_loss_detections",
            "What the detectors that look at losses one by one have detected. They hold no budget.",
            labels=[*_LABELS, "detector", "loss"],
        )
        whole = {name: GaugeMetricFamily(metric, text, labels=_LABELS) for name, (metric, text) in WHOLE_ROWS.items()}
        for key, found in self._service.read(look).items():
            assert isinstance(found, Look)
            labels = [key[0], str(key[1])]
            for name, value in found.whole.items():
                whole[name].add_metric(labels, value)
            for detector, loss, number in found.detections:
                detected.add_metric([*labels, detector, loss], number)
            progress = found.progress
            for family, value in ((rows, progress.rows), (late, progress.late), (loose, progress.loose)):
                family.add_metric(labels, self._grown(value, family.name, *labels))
            learned.add_metric(labels, found.learned)
            for feature, name, value in found.scores:
                score.add_metric([*labels, feature, name], value)
            for feature, value in found.samples:
                samples.add_metric([*labels, feature], value)
            for feature, kind, value in found.rates:
                rates.add_metric([*labels, feature, kind], value)
            for each in found.outputs:
                answers.add_metric([*labels, each.output, each.bin], each.share)
            for metric, kind, figure in found.performance:
                rests.add_metric([*labels, metric, kind], figure.n)
                if figure.value is not None:
                    (ratio if metric in RATIOS else error).add_metric([*labels, metric, kind], figure.value)
            for watch, state in found.watches.items():
                log_m = state["log_m"]
                if isinstance(log_m, float):
                    evidence.add_metric([*labels, watch], log_m)
                threshold = state["log_threshold"]
                assert isinstance(threshold, float)
                needed.add_metric([*labels, watch], threshold)
                alarm.add_metric([*labels, watch], float(bool(state["latched"])))
        yield from (score, samples, rates, answers, evidence, needed, alarm, rows, late, loose, learned, ratio, error)
        yield from (rests, *whole.values(), detected)
        cpu = CounterMetricFamily("headgate_monitor_cpu_seconds", "Processor time that the monitors took.")
        cpu.add_metric([], self._service.cpu_s)
        lag = GaugeMetricFamily("headgate_monitor_lag_rows", "Rows of the journal that were not read yet.")
        lag.add_metric([], self._service.lag)
        yield from (cpu, lag)
        yield from self._sent()

    def _sent(self) -> Iterator[Metric]:
        events = CounterMetricFamily(
            "headgate_webhook_events",
            "Alarms that were sent, by what became of them: delivered, or the reason why they were dropped.",
            labels=["outcome"],
        )
        retries = CounterMetricFamily("headgate_webhook_retries", "Attempts to send an alarm again.")
        waiting = GaugeMetricFamily("headgate_webhook_waiting", "Alarms that wait to be sent.")
        if self._webhook is not None:
            told = self._webhook.value()
            events.add_metric(["delivered"], told["delivered"])
            for reason, number in told["dropped"].items():
                events.add_metric([reason], number)
            retries.add_metric([], told["retried"])
            waiting.add_metric([], told["waiting"])
        yield from (events, retries, waiting)
