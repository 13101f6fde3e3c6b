"""A real Prometheus scrapes a gateway under traffic, drift, lying labels and a crash: what every panel then shows.

One scenario, played once: users send what the model was trained on, then something else with labels that contradict
the model; a worker is killed; the server ends. Every query of every panel is asked as Grafana would ask it.
"""

from __future__ import annotations

import http.server
import json
import math
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from monitors.grafana.objectives import Objectives
from monitors.grafana.rules import alerts
from tests.grafana import page
from tests.grafana.programs import Program, free_port, promtool
from tests.grafana.promql import filled_in
from tests.grafana.scenario import OPTIONS, SHIFT, Traffic, repository, scrape
from tests.grafana.test_dashboards import PANELS, Shown, name_of
from tests.programs import found
from tests.servers import Server

DEPLOY = Path(__file__).parents[2] / "deploy"
STEP_S = 1
CHOICES = {
    "job": "headgate",
    "control": "headgate-control",
    "instance": ".*",
    "model": ".*",
    "version": ".*",
    "feature": ".*",
    "metric": ".*",
    "statistic": "psi",
    "__rate_interval": "4s",
}
NOT_YET = {"Label coverage": "A"}
"""Queries that have nothing to show in so short a time: coverage is told of predictions that are an hour old."""


class Played(NamedTuple):
    """A played scenario: Prometheus, and when (Unix seconds) it began, was calm, had drifted, and was over.

    `exposed`: what the two ports exposed while it was calm. `delivered`: what Alertmanager told its webhook, if it ran.
    """

    prometheus: Program
    began: float
    calm: float
    drifted: float
    over: float
    exposed: tuple[str, str]
    delivered: list[dict[str, Any]]

    def curves(self, expr: str, start: float, end: float) -> dict[str, list[float]]:
        """What a panel would draw: values by the labels of their series."""
        answer = self.prometheus.get(
            "/api/v1/query_range", query=filled_in(expr, **CHOICES), start=str(start), end=str(end), step=str(STEP_S)
        )
        return {
            json.dumps(series["metric"], sort_keys=True): [float(value) for _, value in series["values"]]
            for series in answer["result"]
        }

    def at(self, expr: str, when: float) -> dict[str, float]:
        """Values at one moment."""
        return {name: values[-1] for name, values in self.curves(expr, when, when).items()}


class Receiver(http.server.ThreadingHTTPServer):
    """A webhook that remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        told = self.told

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        super().__init__(("127.0.0.1", 0), Handler)

    def __enter__(self) -> Receiver:
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join(10)
        self.server_close()


def configuration(scratch: Path, server: Server, alertmanager: int | None) -> Path:
    """The shipped configuration, with this machine's ports, and scraped and evaluated more often."""
    text = (DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8")
    text = text.replace("headgate:8080", server.address)
    text = text.replace("headgate:8081", server.admin_url.removeprefix("http://"))
    text = re.sub(r"(scrape_interval|scrape_timeout|evaluation_interval): \w+", r"\1: 500ms", text)
    text = text.replace("/etc/prometheus", str(scratch))
    if alertmanager is not None:
        text = re.sub(r"(?m)^# (alerting:| +alertmanagers:| +- static_configs.*)$", r"\1", text)
        text = text.replace("alertmanager:9093", f"127.0.0.1:{alertmanager}")
        assert "\nalerting:" in text
    path = scratch / "prometheus.yml"
    path.write_text(text)
    for rules in DEPLOY.glob("prometheus/*.rules.yml"):
        (scratch / rules.name).write_text(re.sub(r"interval: '\w+'", "interval: 500ms", rules.read_text()))
    return path


def play(server: Server, prometheus: Program, delivered: list[dict[str, Any]]) -> Played:
    """The scenario."""

    def value(expr: str) -> float:
        """The largest value now; NaN where there is none."""
        answer = prometheus.get("/api/v1/query", query=expr)
        return max((float(each["value"][1]) for each in answer["result"]), default=math.nan)

    with Traffic(server) as traffic:

        def reached(expr: str, at_least: float) -> None:
            def look() -> bool:
                assert not traffic.trouble
                return value(expr) >= at_least

            prometheus.wait_for(look, 60, f"{expr} >= {at_least}")

        began = time.time()
        reached("min(headgate_drift_samples)", 400)
        reached('min(headgate_performance_samples{kind="realised"})', 400)
        reached("count(model:headgate_requests_failed:ratio_rate3d)", 2)
        calm = time.time()
        exposed = (scrape(server.url), scrape(server.admin_url))
        traffic.shift, traffic.lying = SHIFT, True
        reached('headgate_drift_score{version="1",feature="x[0]",statistic="psi"}', 0.3)
        reached('min(headgate_alarm{version="1",watch=~"training|performance"})', 1)
        reached('max(headgate_performance_ratio{version="1",metric="accuracy",kind="realised"}) < bool 0.68', 1)
        # The ledger is read for a scrape every ten seconds, and a rate takes two readings.
        reached("sum(increase(headgate_label_lag_seconds_count[1m]))", 1)
        drifted = time.time()
    os.kill(server.pid("worker 1"), signal.SIGKILL)
    died = 'sum(increase(headgate_journal_segments_recovered_total{job="headgate"}[4s]))'
    prometheus.wait_for(lambda: value(died) > 0, 30, "segments are recovered")
    return Played(prometheus, began, calm, drifted, time.time(), exposed, delivered)


def both_ports_expose_what_promtool_approves_of(played: Played) -> None:
    for text in played.exposed:
        promtool("check", "metrics", text=text)


def the_page_of_metrics_is_what_is_exposed(played: Played) -> None:
    """If this fails, run `python -m tests.grafana.page` and read what it changed in docs/metrics.md."""
    assert page.documented(page.PATH.read_text(encoding="utf-8")) == page.both(*played.exposed)


def every_query_of_a_panel_shows_something_sensible(played: Played, each: Shown) -> None:
    defaults = each.panel["fieldConfig"]["defaults"]
    units = {override["matcher"]["options"]: "short" for override in each.panel["fieldConfig"]["overrides"]}
    for target in each.panel["targets"]:
        if NOT_YET.get(each.panel["title"]) == target["refId"]:
            continue
        curves = played.curves(target["expr"], played.began, played.over)
        assert curves, target["expr"]
        values = [value for curve in curves.values() for value in curve]
        assert all(math.isfinite(value) for value in values), target["expr"]
        unit = units.get(target["refId"], defaults["unit"])
        if unit == "percentunit":
            assert all(-1e-9 <= value <= 1 + 1e-9 for value in values)
        elif unit == "s":
            assert all(0 <= value < 60 for value in values)
        elif unit in ("reqps", "rowsps", "eps"):
            assert 0 < max(values) < 1e6
            assert min(values) >= 0
        elif unit == "bytes":
            assert all(0 <= value < 1e11 for value in values)
        elif unit == "dateTimeFromNow":
            assert all(played.calm - 600 < value / 1000 < played.over for value in values)


CHANGES = [
    # panel, the series of it, what it is before and after
    ("Drift heat map", '"x[0]"', (None, 0.1), (0.2, None)),
    ("Top features", '"x[0]"', (None, 0.1), (0.2, None)),
    ("Chosen statistic", '"x[0]"', (None, 0.1), (0.2, None)),
    ("Realised", '"accuracy"', (0.7, None), (None, 0.7)),
    ("Realised less estimated", '"accuracy"', (-0.06, 0.06), (None, -0.06)),
    ("Not as in training", '"feature": "x[0]", "kind": "out_of_range"', (None, 0.02), (0.0005, None)),
]


def the_panel_that_claims_to_show_a_change_shows_it(
    played: Played, title: str, series: str, before: tuple[Any, Any], after: tuple[Any, Any]
) -> None:
    (each,) = (each for each in PANELS if each.panel["title"] == title)
    for when, (low, high) in ((played.calm, before), (played.drifted, after)):
        shown = {name: value for name, value in played.at(each.exprs[0], when).items() if series in name}
        own = [value for name, value in shown.items() if '"1"' in name]
        assert own
        assert all(value > low for value in own if low is not None), (when, shown)
        assert all(value < high for value in own if high is not None), (when, shown)


def features_that_did_not_change_stay_cold_in_the_heat_map(played: Played) -> None:
    (each,) = (each for each in PANELS if each.panel["title"] == "Drift heat map")
    shown = played.at(each.exprs[0], played.drifted)
    own = {name: value for name, value in shown.items() if '"1"' in name}
    assert max(own, key=lambda name: own[name]) == json.dumps({"feature": "x[0]", "version": "1"}, sort_keys=True)
    assert all(value < 0.1 for name, value in own.items() if re.search(r"x\[[23]\]", name))


def alarms_of_drift_and_of_performance_show_in_their_panels(played: Played) -> None:
    for board, watches in (("headgate-model", {"training"}), ("headgate-performance", {"performance"})):
        (each,) = (each for each in PANELS if each.board["uid"] == board and each.panel["title"] == "Alarms")
        before, after = played.at(each.exprs[0], played.calm), played.at(each.exprs[0], played.drifted)
        for watch in watches:
            assert {value for name, value in before.items() if f'"{watch}"' in name} == {0}
            assert {value for name, value in after.items() if f'"{watch}"' in name} == {1}


def a_killed_worker_shows_in_its_panel(played: Played) -> None:
    (each,) = (each for each in PANELS if each.panel["title"] == "Segments of workers that died")
    assert list(played.at(each.exprs[0], played.calm).values()) == [0]
    (after,) = played.at(each.exprs[0], played.over).values()
    assert after > 0


def requests_count_once_though_both_ports_are_scraped(played: Played) -> None:
    (each,) = (each for each in PANELS if each.panel["title"] == "Requests by outcome")
    shown = played.at(each.exprs[0], played.drifted)
    once = played.at('sum(rate(headgate_requests_total{job="headgate"}[4s]))', played.drifted)
    assert sum(shown.values()) == pytest.approx(sum(once.values()))
    both = played.at("sum(rate(headgate_requests_total[4s]))", played.drifted)
    assert sum(both.values()) > 1.5 * sum(once.values())


def the_shipped_rules_run_and_tell_of_the_alarms(played: Played) -> None:
    groups = played.prometheus.get("/api/v1/rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    named = {rule["name"] for rule in rules if rule["type"] == "alerting"}
    assert named == {rule["alert"] for group in alerts(Objectives())["groups"] for rule in group["rules"]}
    (alarm,) = (rule for rule in rules if rule["name"] == "HeadgateModelAlarm")
    said = [each["annotations"]["summary"] for each in alarm["alerts"] if each["state"] == "firing"]
    expected = "m version 1: the watch performance raised an alarm that nobody has acknowledged."
    assert expected in said


def alertmanager_tells_a_webhook_of_the_models_alarms(played: Played) -> None:
    if shutil.which("prometheus-alertmanager") is None:
        return

    def told() -> dict[str, dict[str, Any]]:
        alarms = [alert for message in list(played.delivered) for alert in message["alerts"]]
        return {alert["labels"]["watch"]: alert for alert in alarms if alert["labels"].get("version") == "1"}

    played.prometheus.wait_for(lambda: told().keys() >= {"training", "performance"}, 20, "the webhook was told")
    alarm = told()["training"]
    assert alarm["status"] == "firing"
    assert alarm["labels"]["alertname"] == "HeadgateModelAlarm"
    assert alarm["labels"]["severity"] == "page"
    assert alarm["annotations"]["runbook_url"] == "docs/runbooks.md#headgatemodelalarm"
    assert alarm["annotations"]["dashboard"] == "/d/headgate-model"
    assert {message["receiver"] for message in played.delivered} == {"pages"}


def checks() -> Iterator[tuple[str, Callable[[Played], None]]]:
    """Every check by a name."""
    for each in PANELS:
        yield name_of(each), partial(every_query_of_a_panel_shows_something_sensible, each=each)
    for title, series, before, after in CHANGES:
        change = {"title": title, "series": series, "before": before, "after": after}
        yield f"change of {title}", partial(the_panel_that_claims_to_show_a_change_shows_it, **change)
    for check in (
        both_ports_expose_what_promtool_approves_of,
        the_page_of_metrics_is_what_is_exposed,
        features_that_did_not_change_stay_cold_in_the_heat_map,
        alarms_of_drift_and_of_performance_show_in_their_panels,
        a_killed_worker_shows_in_its_panel,
        requests_count_once_though_both_ports_are_scraped,
        the_shipped_rules_run_and_tell_of_the_alarms,
        alertmanager_tells_a_webhook_of_the_models_alarms,
    ):
        yield check.__name__, check


@pytest.mark.slow
def test_what_the_dashboards_show_is_what_happened(tmp_path: Path) -> None:
    """1. Normal traffic. 2. Drift and lying labels, until the monitors raise alarms. 3. A worker is killed.

    One test, since playing takes long; it names every check that fails.
    """
    found("prometheus")
    with ExitStack() as stack:
        webhook = stack.enter_context(Receiver())
        server = Server(repository(tmp_path / "models"), tmp_path / "server", *OPTIONS)
        stack.callback(server.stop)
        alertmanager = None
        if shutil.which("prometheus-alertmanager") is not None:
            alertmanager = free_port()
            text = (DEPLOY / "alertmanager/alertmanager.yml").read_text(encoding="utf-8")
            text = (
                text.replace("pager.example:9095", f"127.0.0.1:{webhook.server_port}")
                .replace("30s", "0s")
                .replace("5m", "1s")
            )
            (tmp_path / "alertmanager.yml").write_text(text)
            options = [
                f"--config.file={tmp_path / 'alertmanager.yml'}",
                f"--storage.path={tmp_path / 'alertmanager'}",
                "--cluster.listen-address=",
                f"--web.listen-address=127.0.0.1:{alertmanager}",
            ]
            stack.enter_context(Program(tmp_path, "prometheus-alertmanager", *options, port=alertmanager))
        port = free_port()
        options = [
            f"--config.file={configuration(tmp_path, server, alertmanager)}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        prometheus = stack.enter_context(Program(tmp_path, "prometheus", *options, port=port))
        played = play(server, prometheus, webhook.told)
        failures = []
        for name, check in checks():
            try:
                check(played)
            except (AssertionError, ValueError) as error:
                failures.append(f"{name}: {error}")
        assert not failures, "\n".join(failures)
