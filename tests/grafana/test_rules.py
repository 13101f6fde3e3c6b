"""Rules: Prometheus accepts them, each alert fires when it should and not otherwise, and each has its runbook."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from monitors.grafana.objectives import Objectives
from monitors.grafana.rules import WINDOWS, alerts, anchor, recording
from tests.grafana.page import PATH as METRICS
from tests.grafana.page import documented
from tests.grafana.programs import promtool
from tests.grafana.promql import grouped, metric_of, series
from tests.grafana.test_dashboards import DASHBOARDS, PANELS
from tests.programs import found

ROOT = Path(__file__).parents[2]
FILES = [ROOT / f"deploy/prometheus/headgate-{name}.rules.yml" for name in ("recording", "alerts")]
ALERTS = [rule for group in alerts(Objectives())["groups"] for rule in group["rules"]]
RECORDED = [rule for group in recording(Objectives())["groups"] for rule in group["rules"]]
NAMES = sorted({rule["alert"] for rule in ALERTS})

PORTS = 'instance="a"'
DATA = f'job="headgate",{PORTS}'
CONTROL = f'job="headgate-control",{PORTS}'
VERSION = 'model="m",version="1"'
HEALTHY = {
    f"up{{{DATA}}}": "1x6000",
    f"up{{{CONTROL}}}": "1x6000",
    f'headgate_requests_total{{{DATA},{VERSION},class="ok",code="ok"}}': "0+600x6000",
    f'headgate_requests_total{{{DATA},{VERSION},class="client",code="invalid-request"}}': "0+300x6000",
    f'headgate_request_duration_seconds_count{{{DATA},{VERSION},phase="total"}}': "0+1000x6000",
    f'headgate_request_duration_seconds_bucket{{{DATA},{VERSION},phase="total",le="0.1"}}': "0+999x6000",
    f"headgate_model_ready{{{DATA},{VERSION}}}": "1x6000",
    f"headgate_rows_total{{{DATA},{VERSION}}}": "0+600x6000",
    f"headgate_nonfinite_outputs_total{{{DATA},{VERSION}}}": "0x6000",
    f"headgate_journal_segments_recovered_total{{{DATA}}}": "0x6000",
    f'headgate_journal_lost_total{{{DATA},reason="dropped"}}': "0x6000",
    f"headgate_journal_errors_total{{{DATA}}}": "0x6000",
    f'headgate_alarm{{{CONTROL},{VERSION},watch="training"}}': "0x6000",
    f"headgate_monitor_lag_rows{{{CONTROL}}}": "500x6000",
    f"headgate_monitor_rows_total{{{CONTROL},{VERSION}}}": "0+600x6000",
    f"headgate_monitor_unseen_rows_total{{{CONTROL},{VERSION}}}": "0x6000",
    f"headgate_monitor_cpu_seconds_total{{{CONTROL}}}": "0+6x6000",
    f'headgate_feedback_total{{{DATA},model="m",name="late",status="matched"}}': "0+60x6000",
    f"headgate_feedback_keys_forgotten_total{{{DATA}}}": "0x6000",
    f"headgate_ledger_readable{{{CONTROL}}}": "1x6000",
    f"headgate_ledger_writable{{{CONTROL}}}": "1x6000",
    f"headgate_ledger_backlog_bytes{{{CONTROL}}}": "900x6000",
    f'headgate_ledger_damaged_bytes{{{CONTROL},where="middle"}}': "0x6000",
    f'headgate_label_coverage_ratio{{{CONTROL},{VERSION},name="late",age="1d"}}': "0.8x6000",
}
"""What a healthy gateway shows: a third of its requests are the client's fault, the rest is answered, 0.1 % slowly."""

LONG_H = 6
"""Cases that are looked at so many hours after their start are played in steps of an hour, with a sample every two
minutes; the others minute by minute."""


def changed(metric: str, values: str, *labels: str) -> dict[str, str]:
    """The healthy series of that name, the only one, with other values."""
    (name,) = (name for name in HEALTHY if name.startswith(metric + "{") and all(each in name for each in labels))
    return {name: values}


def unanswered(values: str, kind: str = "server", version: str = "1") -> dict[str, str]:
    """Requests that failed or were refused."""
    return {f'headgate_requests_total{{{DATA},model="m",version="{version}",class="{kind}",code="c"}}': values}


PAGE, TICKET = "page", "ticket"
BURN = "HeadgateAvailabilityBudgetBurn"
SLOW = "HeadgateLatencyBudgetBurn"
SLOW_BUCKET = "headgate_request_duration_seconds_bucket"
CASES: dict[str, tuple[dict[str, str], str, set[tuple[str, str]]]] = {
    # name: (what differs from the healthy gateway, when it is looked at, what fires then)
    "nothing fires on a healthy gateway": ({}, "74h", set()),
    "nothing fires without traffic": ({name: "7x6000" for name in HEALTHY if "_total" in name or "_seconds_" in name},
                                      "30m", set()),
    "the client's faults burn no budget": (unanswered("0+6000x6000", "client"), "30m", set()),
    "two in a hundred call a person within minutes": (unanswered("0+12x6000"), "10m", {(BURN, PAGE)}),
    "refusals burn the budget too": (unanswered("0+5x6000", "overload"), "40m", {(BURN, PAGE), (BURN, TICKET)}),
    "seven in a thousand call a person": (unanswered("0+4.3x6000"), "7h", {(BURN, PAGE), (BURN, TICKET)}),
    "two in a thousand make a ticket": (unanswered("0+1.2x6000"), "73h", {(BURN, TICKET)}),
    "half of the allowed is silent": (unanswered("0+0.3x6000"), "74h", set()),
    "a page ends soon after its cause": (unanswered("0+60x20 1200x6000"), "50m", {(BURN, TICKET)}),
    "a fifth slow calls a person": (changed(SLOW_BUCKET, "0+800x6000"), "10m", {(SLOW, PAGE)}),
    "two in a hundred slow make a ticket": (changed(SLOW_BUCKET, "0+980x6000"), "73h", {(SLOW, TICKET)}),
    "a data port that is away": (changed("up", "1x10 0x100", '"headgate",'), "13m", {("HeadgateDown", PAGE)}),
    "an admin port that is away": (changed("up", "1x10 0x100", "control"), "13m", {("HeadgateDown", PAGE)}),
    "a data port that nobody scrapes": (changed("up", "_", '"headgate",'), "10m", {("HeadgateDown", PAGE)}),
    "a model without a version that answers": (
        changed("headgate_model_ready", "1x10 0x100"), "17m", {("HeadgateModelNotReady", PAGE)},
    ),
    "a version that waits beside one that answers": (
        {f'headgate_model_ready{{{DATA},model="m",version="2"}}': "0x100"}, "30m", set(),
    ),
    "a new version that fails hides behind the old one's traffic": (
        {f'headgate_requests_total{{{DATA},model="m",version="2",class="ok",code="ok"}}': "0+2x6000"}
        | unanswered("0+0.4x6000", version="2"),
        "30m", {("HeadgateVersionFails", TICKET)},
    ),
    "one in fifty refused": (
        unanswered("0+12x6000", "overload"), "14m", {("HeadgateOverloaded", TICKET), (BURN, PAGE)},
    ),
    "what happened a minute ago": (
        changed("headgate_nonfinite_outputs_total", "0x10 3x90")
        | changed("headgate_journal_segments_recovered_total", "0x10 1x90")
        | changed("headgate_journal_lost_total", "0x10 40x90")
        | changed("headgate_journal_errors_total", "0x10 2x90")
        | changed("headgate_feedback_keys_forgotten_total", "0x10 9x90")
        | changed("headgate_alarm", "0x10 1x90"),
        "12m",
        {
            ("HeadgateNonfiniteOutputs", TICKET), ("HeadgateWorkerDied", TICKET), ("HeadgateJournalWritesFail", TICKET),
            ("HeadgateJournalLosesRecords", PAGE), ("HeadgateIdempotencyKeysForgotten", TICKET),
            ("HeadgateModelAlarm", PAGE),
        },
    ),
    "what happened twenty minutes ago": (
        changed("headgate_nonfinite_outputs_total", "0x10 3x90")
        | changed("headgate_journal_segments_recovered_total", "0x10 1x90")
        | changed("headgate_journal_lost_total", "0x10 40x90")
        | changed("headgate_journal_errors_total", "0x10 2x90"),
        "30m", set(),
    ),
    "an alarm that was acknowledged": (changed("headgate_alarm", "0x10 1x10 0x90"), "25m", set()),
    "monitors that fall behind": (
        changed("headgate_monitor_lag_rows", "0+20000x100"), "30m", {("HeadgateMonitorsBehind", TICKET)},
    ),
    "monitors that catch up": (changed("headgate_monitor_lag_rows", "2000000-20000x90"), "30m", set()),
    "monitors that count nothing": (
        changed("headgate_monitor_rows_total", "5x6000"), "40m", {("HeadgateMonitorsSilent", TICKET)},
    ),
    "monitors that see nothing": (
        changed("headgate_monitor_rows_total", "0+100x6000")
        | changed("headgate_monitor_unseen_rows_total", "0+500x6000"),
        "40m", {("HeadgateMonitorsBlind", TICKET)},
    ),
    "monitors that take a core": (
        changed("headgate_monitor_cpu_seconds_total", "0+55x6000"), "40m", {("HeadgateMonitorsCostly", TICKET)},
    ),
    "feedback that is refused": (
        {f'headgate_feedback_total{{{DATA},model="m",name="late",status="invalid-feedback"}}': "0+10x6000"},
        "50m", {("HeadgateFeedbackRefused", TICKET)},
    ),
    "late feedback is accepted": (
        {f'headgate_feedback_total{{{DATA},model="m",name="late",status="late"}}': "0+10x6000"}, "50m", set(),
    ),
    "a ledger that cannot be read": (
        changed("headgate_ledger_readable", "1x10 0x90"), "17m", {("HeadgateLedgerUnreadable", TICKET)},
    ),
    "a ledger that is not written": (
        changed("headgate_ledger_writable", "1x10 0x90"), "17m", {("HeadgateLedgerUnreadable", TICKET)},
    ),
    "a ledger that falls behind": (
        changed("headgate_ledger_backlog_bytes", "0+1000000x100"), "60m", {("HeadgateLedgerBehind", TICKET)},
    ),
    "feedback that is damaged": (
        changed("headgate_ledger_damaged_bytes", "0x90 512x900"), "100m", {("HeadgateFeedbackDamaged", PAGE)},
    ),
    "damage that was there an hour ago": (changed("headgate_ledger_damaged_bytes", "512x900"), "100m", set()),
    "labels that stay away": (
        changed("headgate_label_coverage_ratio", "0.8x5000 0.3x3000"), "174h", {("HeadgateLabelsMissing", TICKET)},
    ),
    "a little fewer labels": (changed("headgate_label_coverage_ratio", "0.8x5000 0.6x3000"), "174h", set()),
}  # fmt: skip


def unit_tests(folder: Path, *, long: bool) -> Path:
    """The cases as promtool reads them."""
    groups = [group["name"] for file in (recording(Objectives()), alerts(Objectives())) for group in file["groups"]]
    tests = []
    for name, (different, at, fires) in CASES.items():
        minutes = int(at[:-1]) * (60 if at.endswith("h") else 1)
        if (minutes >= 60 * LONG_H) != long:
            continue
        samples = minutes // (2 if long else 1) + 1
        values = {each: re.sub(r"x6000$", f"x{samples}", said) for each, said in {**HEALTHY, **different}.items()}
        expected = [
            {"labels": f'{{alertname="{alert}",severity="{severity}"}}', "value": 1}
            for alert, severity in sorted(fires)
        ]
        expr = 'group by (alertname, severity) (ALERTS{alertstate="firing"})'
        tests.append(
            {
                "name": name,
                "interval": "2m" if long else "1m",
                "input_series": [{"series": each, "values": values[each]} for each in values],
                "promql_expr_test": [{"expr": expr, "eval_time": at, "exp_samples": expected}],
            }
        )
    assert tests
    path = folder / "cases.yml"
    document: dict[str, Any] = {
        "rule_files": [*map(str, FILES)],
        "evaluation_interval": "1h" if long else "1m",
        "group_eval_order": groups,
        "tests": tests,
    }
    path.write_text(json.dumps(document))
    return path


def test_prometheus_accepts_the_rules_and_the_configuration(tmp_path: Path) -> None:
    said = promtool("check", "rules", *FILES)
    assert f"{len(ALERTS)} rules found" in said
    assert f"{len(RECORDED)} rules found" in said
    promtool("check", "config", "--syntax-only", ROOT / "deploy/prometheus/prometheus.yml")


def test_alertmanager_accepts_the_example() -> None:
    command = [found("amtool"), "check-config", str(ROOT / "deploy/alertmanager/alertmanager.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 receivers" in done.stdout


@pytest.mark.slow(8)
@pytest.mark.parametrize("long", [False, True], ids=["within hours", "over days"])
def test_every_alert_fires_in_its_case_and_nothing_else_does(tmp_path: Path, long: bool) -> None:
    assert "SUCCESS" in promtool("test", "rules", unit_tests(tmp_path, long=long))


def test_every_alert_has_a_case() -> None:
    assert {name for _, _, fires in CASES.values() for name, _ in fires} == set(NAMES)


def test_every_alert_says_what_it_is_where_to_look_and_what_to_do() -> None:
    uids = {board["uid"] for board in DASHBOARDS}
    for rule in ALERTS:
        assert re.fullmatch(r"Headgate([A-Z][a-z]+)+", rule["alert"])
        assert rule["labels"]["severity"] in (PAGE, TICKET)
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["dashboard"].removeprefix("/d/") in uids
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{anchor(rule['alert'])}"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    page = (ROOT / "docs/runbooks.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^## (Headgate\w+)$", page, re.MULTILINE)) == NAMES
    for section in page.split("\n## ")[1:]:
        assert section.count("\n\n**Means.** ") == section.count("\n\n**Do.** ") == 1, section


def test_rules_ask_for_metrics_and_labels_that_are_documented() -> None:
    page = documented(METRICS.read_text(encoding="utf-8"))
    recorded = {rule["record"]: {"model"} for rule in RECORDED}
    for rule in ALERTS + RECORDED:
        labels: set[str] = set()
        for selector in series(rule["expr"]):
            family = page.get(selector.name) or page.get(metric_of(selector.name))
            own = {"job", "instance", "le"} | (set(family.labels) if family else recorded.get(selector.name, set()))
            assert family or selector.name in recorded or selector.name == "up", selector.name
            assert selector.matchers.keys() <= own
            assert "job" in selector.matchers or selector.name in recorded
            labels |= own
        assert grouped(rule["expr"]) <= labels
        named = " ".join(rule.get("annotations", {}).values())
        assert set(re.findall(r"\$labels\.(\w+)", named)) <= labels


def test_recorded_series_are_named_by_level_metric_and_operations() -> None:
    names = [rule["record"] for rule in RECORDED]
    assert sorted(set(names)) == sorted(names)
    assert len(names) == 2 * len(WINDOWS)
    for rule in RECORDED:
        level, _, operation = rule["record"].split(":")
        window = operation.removeprefix("ratio_rate")
        assert {selector.over for selector in series(rule["expr"])} == {window}
        assert grouped(rule["expr"]) == {level, "job"}


def test_every_recorded_series_is_read_by_an_alert_or_a_panel() -> None:
    read = " ".join([*(rule["expr"] for rule in ALERTS), *(expr for each in PANELS for expr in each.exprs)])
    assert [rule["record"] for rule in RECORDED if rule["record"] not in read] == []


def test_budgets_burn_at_the_rates_of_the_book() -> None:
    """A page when 2 % of 30 days' budget went in 1 h or 5 % in 6 h; a ticket when 10 % went in 1 d or in 3 d."""
    hours = {"1h": 1, "6h": 6, "1d": 24, "3d": 72}
    spent = {"1h": 0.02, "6h": 0.05, "1d": 0.1, "3d": 0.1}
    allowed = {"failed": 1 - Objectives().availability, "slow": 1 - Objectives().latency}
    seen = set()
    for rule in ALERTS:
        for what, long, at, short, again in re.findall(
            r"requests_(\w+):ratio_rate(\w+) > ([\d.]+) and \S+ratio_rate(\w+) > ([\d.]+)", rule["expr"]
        ):
            assert at == again
            assert float(at) / allowed[what] == pytest.approx(spent[long] * 30 * 24 / hours[long])
            assert {"1h": "5m", "6h": "30m", "1d": "2h", "3d": "6h"}[long] == short
            assert rule["labels"]["severity"] == (PAGE if long in ("1h", "6h") else TICKET)
            seen.add((what, long))
    assert len(seen) == 8
