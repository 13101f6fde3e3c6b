"""The scenario, played once with a real gateway, Prometheus and Alertmanager; what comes of it is asked afterwards.

1. Users send what the model was trained on, with labels at once. 2. Labels come late, and an hour's predictions that
nobody labelled turn up. 3. Rows drift, and labels contradict the model, until the monitors raise alarms. 4. Every
request for one model fails. 5. A worker is killed. 6. The server is stopped.
"""

from __future__ import annotations

import http.server
import json
import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.grafana import past
from tests.grafana.programs import Program, free_port
from tests.grafana.promql import filled_in
from tests.grafana.scenario import SHIFT, Traffic, scrape, started
from tests.servers import Server

DEPLOY = Path(__file__).parents[2] / "deploy"
STEP_S = 1
RATE = "8s"
"""What Grafana would take for `$__rate_interval`: four scrapes."""

DELAY_S = 2.0
BURNT = 'max(model:headgate_requests_failed:ratio_rate5m{model="brittle"})'
CHOICES = {
    "job": "headgate",
    "control": "headgate-control",
    "instance": ".*",
    "model": ".*",
    "version": ".*",
    "feature": ".*",
    "metric": ".*",
    "statistic": "psi",
    "__rate_interval": RATE,
}


class Played(NamedTuple):
    """A played scenario: Prometheus, and at which Unix time each part of it was over.

    `exposed`: what the two ports exposed while it was calm. `told`: what Alertmanager had told its webhook, and `rules`
    the rules by name, when the monitors had raised their alarms; `down` the rules when the server was stopped.
    """

    prometheus: Program
    began: float
    calm: float
    delayed: float
    drifted: float
    failing: float
    killed: float
    over: float
    exposed: tuple[str, str]
    told: list[dict[str, Any]]
    rules: Mapping[str, dict[str, Any]]
    down: Mapping[str, dict[str, Any]]

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


def configuration(scratch: Path, server: Server, alertmanager_port: str) -> Path:
    """The shipped configuration, with this machine's ports, and scraped and evaluated more often."""
    text = (DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8")
    text = text.replace("headgate:8080", server.address)
    text = text.replace("headgate:8081", server.admin_url.removeprefix("http://"))
    text = re.sub(r"(scrape_interval|scrape_timeout|evaluation_interval): \w+", r"\1: 2s", text)
    text = text.replace("/etc/prometheus", str(scratch))
    text = re.sub(r"(?m)^# (alerting:| +alertmanagers:| +- static_configs.*)$", r"\1", text)
    text = text.replace("alertmanager:9093", f"127.0.0.1:{alertmanager_port}")
    assert "\nalerting:" in text
    path = scratch / "prometheus.yml"
    path.write_text(text)
    for rules in DEPLOY.glob("prometheus/*.rules.yml"):
        (scratch / rules.name).write_text(re.sub(r"interval: '\w+'", "interval: 500ms", rules.read_text()))
    return path


@contextmanager
def playing(scratch: Path) -> Iterator[Played]:
    """Start everything, play, and end everything but Prometheus, which is there to be asked while this is entered."""
    with ExitStack() as stack:
        webhook = stack.enter_context(Receiver())
        server = started(scratch)
        stack.callback(server.stop)
        alertmanager = stack.enter_context(_alertmanager(scratch, webhook))
        port = free_port()
        options = [
            f"--config.file={configuration(scratch, server, alertmanager.url.rpartition(':')[2])}",
            f"--storage.tsdb.path={scratch / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        prometheus = stack.enter_context(Program(scratch, "prometheus", *options, port=port))
        yield _play(server, scratch / "server" / "data", prometheus, webhook.told)


def _alertmanager(scratch: Path, webhook: Receiver) -> Program:
    """The shipped configuration, telling our webhook without waiting."""
    port = free_port()
    text = (DEPLOY / "alertmanager/alertmanager.yml").read_text(encoding="utf-8")
    text = text.replace("pager.example:9095", f"127.0.0.1:{webhook.server_port}")
    text = text.replace("30s", "0s").replace("5m", "1s")
    (scratch / "alertmanager.yml").write_text(text)
    options = [
        f"--config.file={scratch / 'alertmanager.yml'}",
        f"--storage.path={scratch / 'alertmanager'}",
        "--cluster.listen-address=",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    return Program(scratch, "prometheus-alertmanager", *options, port=port)


def told_of(messages: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The alarms of version 1 that Alertmanager told of, by their watch."""
    alarms = [alarm["labels"] | alarm for message in list(messages) for alarm in message["alerts"]]
    return {each["watch"]: each for each in alarms if each.get("version") == "1" and each["status"] == "firing"}


def _rules(prometheus: Program) -> dict[str, dict[str, Any]]:
    groups = prometheus.get("/api/v1/rules")["groups"]
    return {rule["name"]: rule for group in groups for rule in group["rules"]}


def _play(server: Server, data: Path, prometheus: Program, told: list[dict[str, Any]]) -> Played:
    def value(expr: str) -> float:
        """The largest value now; NaN where there is none."""
        answer = prometheus.get("/api/v1/query", query=expr)
        return max((float(each["value"][1]) for each in answer["result"]), default=math.nan)

    def moment() -> float:
        """Now, when both ports have been read: on a busy machine a scrape may come too late to count."""
        prometheus.wait_for(lambda: value("min(up)") == 1, 60, "both ports are read")
        return time.time()

    with Traffic(server) as traffic:

        def reached(expr: str, at_least: float) -> None:
            def look() -> bool:
                assert not traffic.trouble
                return value(expr) >= at_least

            prometheus.wait_for(look, 120, f"{expr} >= {at_least}")

        began = time.time()
        reached("min(headgate_drift_samples)", 400)
        reached('min(headgate_performance_samples{kind="realised"})', 400)
        reached("count(model:headgate_requests_failed:ratio_rate3d)", 2)
        # The ledger is read for a scrape every ten seconds, and a rate takes two readings.
        reached('sum(increase(headgate_label_lag_seconds_count{name="late"}[1m]))', 1)
        calm = moment()
        exposed = (scrape(server.url), scrape(server.admin_url))

        traffic.delay_s = DELAY_S
        unlabelled = past.predicted(data)
        reached(f'max(headgate_label_coverage_ratio{{name="{past.LABEL}",age="1h"}}) < bool 0.75', 1)
        traffic.tell([{"prediction_id": each, "name": past.LABEL, "value": True} for each in unlabelled])
        reached(f'sum(increase(headgate_label_lag_seconds_count{{name="{past.LABEL}"}}[1m]))', 1)
        slower = "sum(increase(headgate_label_lag_seconds_bucket{{name='late',le='{}'}}[1m]))"
        reached(f"{slower.format('10.0')} - {slower.format('1.0')}", 1)
        delayed = moment()

        traffic.delay_s, traffic.shift, traffic.lying = 0.0, SHIFT, True
        reached('headgate_drift_score{version="1",feature="x[0]",statistic="psi"}', 0.3)
        reached('max(headgate_monitor_output_share{version="1",bin=~"9: .*"})', 0.2)
        reached('min(headgate_alarm{version="1",watch=~"training|performance"})', 1)
        reached('max(headgate_performance_ratio{version="1",metric="accuracy",kind="realised"}) < bool 0.68', 1)
        prometheus.wait_for(lambda: told_of(told).keys() >= {"training", "performance"}, 20, "the webhook was told")
        drifted, rules, said, burnt = moment(), _rules(prometheus), list(told), value(BURNT)

        traffic.failing = True
        ours = 'job="headgate",model="brittle"'
        failed = f'sum(rate(headgate_requests_total{{{ours},class="server"}}[{RATE}]))'
        reached(f"{failed} / sum(rate(headgate_requests_total{{{ours}}}[{RATE}]))", 0.95)
        reached(f"{BURNT} / {burnt}", 1.1)
        failing = moment()
    os.kill(server.pid("worker 1"), signal.SIGKILL)
    died = f'sum(increase(headgate_journal_segments_recovered_total{{job="headgate"}}[{RATE}]))'
    prometheus.wait_for(lambda: value(died) > 0, 30, "segments are recovered")
    killed = moment()
    server.stop()
    prometheus.wait_for(lambda: value("max(up)") == 0, 30, "nothing is reached any more")
    prometheus.wait_for(
        lambda: len(_rules(prometheus)["HeadgateDown"]["alerts"]) >= 2, 60, "both jobs' alerts wait for their minute"
    )
    over, down = time.time(), _rules(prometheus)
    return Played(prometheus, began, calm, delayed, drifted, failing, killed, over, exposed, said, rules, down)
