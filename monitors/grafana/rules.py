"""Rules: recorded ratios over the windows of the SLOs, and alerts that name their runbook and their dashboard.

Burn rates: an error budget for 30 days burns at rate 1 when exactly the allowed share fails. A page at 14.4 over 1 h
(2 % of the budget) or 6 over 6 h (5 %), a ticket at 3 over 1 d or 1 over 3 d (10 %); each also over a twelfth of the
window, so that an alert ends soon after its cause. Beyer et al., The Site Reliability Workbook (2018), chapter 5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monitors.grafana.names import failed, slow
from monitors.grafana.objectives import Objectives
from monitors.grafana.promql import rate, ratio, select

Document = dict[str, Any]

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
PAGES = ((14.4, "1h", "5m"), (6, "6h", "30m"))
TICKETS = ((3, "1d", "2h"), (1, "3d", "6h"))

REQUESTS = "headgate_requests_total"
SECONDS = "headgate_request_duration_seconds"
PAGE, TICKET = "page", "ticket"


@dataclass(frozen=True)
class Alert:
    """An alert: `name` is also the heading of its runbook. `hold`: for how long it must be so; "" is at once."""

    name: str
    expr: str
    hold: str
    severity: str
    summary: str
    dashboard: str = "headgate-operations"
    labels: Mapping[str, str] = field(default_factory=dict)

    def document(self, docs: str) -> Document:
        """The alert as Prometheus reads it."""
        found: Document = {"alert": self.name, "expr": self.expr}
        if self.hold:
            found["for"] = self.hold
        return found | {
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {
                "summary": self.summary,
                "dashboard": f"/d/{self.dashboard}",
                "runbook_url": f"{docs}/runbooks.md#{anchor(self.name)}",
            },
        }


def anchor(name: str) -> str:
    """The anchor of a heading, as those who render Markdown make it."""
    return re.sub(r"[^a-z0-9_-]", "", name.lower().replace(" ", "-"))


def recording(goals: Objectives) -> Document:
    """The file of recorded series."""
    groups = [
        {"name": "headgate-slo-short", "interval": "30s", "rules": list(_ratios(goals, WINDOWS[:4]))},
        # A window of days barely moves within minutes, and reading it costs.
        {"name": "headgate-slo-long", "interval": "2m", "rules": list(_ratios(goals, WINDOWS[4:]))},
    ]
    return {"groups": groups}


def _ratios(goals: Objectives, windows: Sequence[str]) -> Iterator[Document]:
    job, by = f'job="{goals.job}"', ("job", "model")
    total = (job, 'phase="total"')
    for window in windows:
        asked = rate(REQUESTS, job, 'class!="client"', by=by, over=window)
        unanswered = rate(REQUESTS, job, 'class=~"server|overload"', by=by, over=window)
        yield {"record": failed(window), "expr": ratio(unanswered, asked)}
        answered = rate(SECONDS + "_count", *total, by=by, over=window)
        in_time = rate(SECONDS + "_bucket", *total, goals.bucket, by=by, over=window)
        yield {"record": slow(window), "expr": f"({answered} - {in_time}) / ({answered} > 0)"}


def alerts(goals: Objectives) -> Document:
    """The file of alerts."""
    groups = {
        "headgate-slo": _slo(goals),
        "headgate-serving": _serving(goals),
        "headgate-monitors": _monitors(goals),
        "headgate-feedback": _feedback(goals),
    }
    return {
        "groups": [
            {"name": name, "rules": [each.document(goals.docs) for each in found]} for name, found in groups.items()
        ]
    }


def _slo(goals: Objectives) -> Iterator[Alert]:
    yield from _burns("Availability", failed, 1 - goals.availability, "of its requests were failed or refused")
    yield from _burns("Latency", slow, 1 - goals.latency, f"of its requests took longer than {goals.latency_s:g} s")


def _burns(name: str, series: Callable[[str], str], allowed: float, what: str) -> Iterator[Alert]:
    for severity, windows in ((PAGE, PAGES), (TICKET, TICKETS)):
        terms = (
            f"({series(long)} > {factor * allowed:g} and {series(short)} > {factor * allowed:g})"
            for factor, long, short in windows
        )
        yield Alert(
            f"Headgate{name}BudgetBurn",
            " or ".join(terms),
            "2m" if severity == PAGE else "15m",
            severity,
            f"{{{{ $labels.model }}}}: {{{{ $value | humanizePercentage }}}} {what}; the budget is {allowed:.3%}.",
            dashboard="headgate-overview",
            labels={"slo": name.lower()},
        )


def _serving(goals: Objectives) -> Iterator[Alert]:
    job = f'job="{goals.job}"'
    yield Alert(
        "HeadgateDown",
        f'up{{job=~"{_either(goals)}"}} == 0 or absent(up{{{job}}}) == 1',
        "1m",
        PAGE,
        "Prometheus does not reach Headgate at {{ $labels.instance }} (job {{ $labels.job }}).",
    )
    known = f"max by (job, model) ({select('headgate_model_ready', job)})"
    yield Alert(
        "HeadgateModelNotReady",
        f"{known} == 0",
        "5m",
        PAGE,
        "No version of {{ $labels.model }} answers requests.",
        dashboard="headgate-model",
    )
    by = ("job", "model", "version")
    broken = rate(REQUESTS, job, 'class="server"', by=by, over="10m")
    asked = rate(REQUESTS, job, 'class!="client"', by=by, over="10m")
    yield Alert(
        "HeadgateVersionFails",
        f"{broken} / ({asked} > 0) > 0.05",
        "5m",
        TICKET,
        "{{ $labels.model }} version {{ $labels.version }} fails {{ $value | humanizePercentage }} of its requests.",
        dashboard="headgate-model",
    )
    full = rate(REQUESTS, job, 'class="overload"', by=("job", "model"), over="10m")
    all_of_it = rate(REQUESTS, job, 'class!="client"', by=("job", "model"), over="10m")
    yield Alert(
        "HeadgateOverloaded",
        f"{full} / ({all_of_it} > 0) > 0.01",
        "10m",
        TICKET,
        "{{ $labels.model }} refuses {{ $value | humanizePercentage }} of its requests for lack of room or time.",
        dashboard="headgate-overview",
    )
    values = f"sum by (job, model, version) (increase({select('headgate_nonfinite_outputs_total', job, over='15m')}))"
    yield Alert(
        "HeadgateNonfiniteOutputs",
        f"{values} > 0",
        "",
        TICKET,
        "{{ $labels.model }} version {{ $labels.version }} answered NaN or infinite {{ $value | humanize }} times.",
        dashboard="headgate-model",
    )
    died = f"sum by (job, instance) (increase({select('headgate_journal_segments_recovered_total', job, over='15m')}))"
    yield Alert(
        "HeadgateWorkerDied",
        f"{died} > 0",
        "",
        TICKET,
        "A worker of {{ $labels.instance }} died; its open journal segments were taken over.",
    )
    lost = f"sum by (job, instance, reason) (increase({select('headgate_journal_lost_total', job, over='15m')}))"
    yield Alert(
        "HeadgateJournalLosesRecords",
        f"{lost} > 0",
        "",
        PAGE,
        "The journal of {{ $labels.instance }} lost {{ $value | humanize }} records in 15 min ({{ $labels.reason }}).",
    )
    errors = f"sum by (job, instance) (increase({select('headgate_journal_errors_total', job, over='15m')}))"
    yield Alert(
        "HeadgateJournalWritesFail",
        f"{errors} > 0",
        "",
        TICKET,
        "Writes of the journal of {{ $labels.instance }} fail.",
    )


def _monitors(goals: Objectives) -> Iterator[Alert]:
    job, by = f'job="{goals.control}"', ("job", "instance", "model", "version")
    yield Alert(
        "HeadgateModelAlarm",
        f"{select('headgate_alarm', job)} == 1",
        "",
        PAGE,
        "{{ $labels.model }} version {{ $labels.version }}: the watch {{ $labels.watch }} raised an alarm that nobody "
        "has acknowledged.",
        dashboard="headgate-model",
    )
    behind = select("headgate_monitor_lag_rows", job)
    yield Alert(
        "HeadgateMonitorsBehind",
        f"min_over_time({select('headgate_monitor_lag_rows', job, over='15m')}) > 100000 and deriv({behind}[15m]) > 0",
        "",
        TICKET,
        "The monitors of {{ $labels.instance }} are {{ $value | humanize }} rows behind, and fall further behind.",
    )
    counted = rate("headgate_monitor_rows_total", job, by=by, over="15m")
    loose = rate("headgate_monitor_unseen_rows_total", job, by=by, over="15m")
    served = rate("headgate_rows_total", f'job="{goals.job}"', by=("instance", "model", "version"), over="15m")
    yield Alert(
        "HeadgateMonitorsSilent",
        f"({counted} + {loose} == 0) and on (instance, model, version) ({served} > 0)",
        "15m",
        TICKET,
        "{{ $labels.model }} version {{ $labels.version }} answers, but the monitors count none of its rows.",
        dashboard="headgate-model",
    )
    yield Alert(
        "HeadgateMonitorsBlind",
        f"{loose} / ({counted} + {loose} > 0) > 0.5",
        "15m",
        TICKET,
        "{{ $value | humanizePercentage }} of the requests of {{ $labels.model }} version {{ $labels.version }} hold "
        "values without columns, which monitors do not see.",
    )
    cost = rate("headgate_monitor_cpu_seconds_total", job, by=("job", "instance"), over="15m")
    yield Alert(
        "HeadgateMonitorsCostly",
        f"{cost} > 0.8",
        "15m",
        TICKET,
        "The monitors of {{ $labels.instance }} take {{ $value | humanize }} cores, nearly all that their thread can.",
    )


def _feedback(goals: Objectives) -> Iterator[Alert]:
    job, by = f'job="{goals.job}"', ("job", "model")
    from monitors.grafana.operations import ACCEPTED, FEEDBACK

    refused = rate(FEEDBACK, job, f'status!~"{ACCEPTED}"', by=by, over="30m")
    yield Alert(
        "HeadgateFeedbackRefused",
        f"{refused} / ({rate(FEEDBACK, job, by=by, over='30m')} > 0) > 0.05",
        "10m",
        TICKET,
        "{{ $value | humanizePercentage }} of the feedback about {{ $labels.model }} is refused.",
    )
    keys = f"sum by (job, instance) (increase({select('headgate_feedback_keys_forgotten_total', job, over='1h')}))"
    yield Alert(
        "HeadgateIdempotencyKeysForgotten",
        f"{keys} > 0",
        "",
        TICKET,
        "{{ $labels.instance }} forgot idempotency keys: feedback that is sent again may count twice.",
    )
    control = f'job="{goals.control}"'
    yield Alert(
        "HeadgateLedgerUnreadable",
        f"{select('headgate_ledger_readable', control)} == 0 or {select('headgate_ledger_writable', control)} == 0",
        "5m",
        TICKET,
        "The ledger of {{ $labels.instance }} cannot be read or written. Feedback is kept, but joined with nothing.",
    )
    yield Alert(
        "HeadgateLedgerBehind",
        f"min_over_time({select('headgate_ledger_backlog_bytes', control, over='30m')}) > 1e7"
        f" and deriv({select('headgate_ledger_backlog_bytes', control, over='30m')}) > 0",
        "",
        TICKET,
        "{{ $value | humanize1024 }}B of feedback wait for the ledger of {{ $labels.instance }}, and it grows.",
    )
    damaged = select("headgate_ledger_damaged_bytes", control, 'where="middle"')
    yield Alert(
        "HeadgateFeedbackDamaged",
        f"{damaged} > ({damaged} offset 1h or {damaged} * 0)",
        "",
        PAGE,
        "Feedback logs of {{ $labels.instance }} are damaged: {{ $value | humanize1024 }}B fit no checksum.",
    )
    covered = select("headgate_label_coverage_ratio", control, 'age="1d"')
    yield Alert(
        "HeadgateLabelsMissing",
        f"{covered} < 0.5 * ({covered} offset 7d)",
        "6h",
        TICKET,
        "{{ $labels.model }} version {{ $labels.version }}: {{ $value | humanizePercentage }} of its predictions had a "
        "label {{ $labels.name }} after a day, less than half of what it was a week ago.",
        dashboard="headgate-performance",
    )


def _either(goals: Objectives) -> str:
    return "|".join(dict.fromkeys((goals.job, goals.control)))
