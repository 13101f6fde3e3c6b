"""A real Prometheus scrapes a gateway under traffic, late labels, drift and outages: what every panel then shows.

Every query of every panel is asked as Grafana would ask it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from monitors.grafana.objectives import Objectives
from monitors.grafana.rules import alerts
from tests.grafana import page
from tests.grafana.past import LABEL
from tests.grafana.play import RATE, STEP_S, Played, playing, told_of
from tests.grafana.programs import promtool
from tests.grafana.test_dashboards import PANELS, Shown, name_of
from tests.programs import found


def panel(title: str, board: str = "") -> Shown:
    """The one of this title, on a dashboard where several have one."""
    (shown,) = (each for each in PANELS if each.panel["title"] == title and board in each.board["uid"])
    return shown


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
        curves = played.curves(target["expr"], played.began, played.over)
        assert curves, target["expr"]
        values = [value for curve in curves.values() for value in curve]
        assert all(math.isfinite(value) for value in values), target["expr"]
        unit = units.get(target["refId"], defaults["unit"])
        if unit == "percentunit":
            assert all(-1e-9 <= value <= 1 + 1e-9 for value in values)
        elif unit == "s":
            # Labels are the only thing here that takes longer.
            assert all(0 <= value < (6 * 3600 if "label_lag" in target["expr"] else 60) for value in values)
        elif unit in ("reqps", "rowsps", "eps"):
            assert 0 < max(values) < 1e6
            assert min(values) >= 0
        elif unit == "bytes":
            assert all(0 <= value < 1e11 for value in values)
        elif unit == "dateTimeFromNow":
            assert all(played.calm - 600 < value / 1000 < played.over for value in values)


CHANGES = [
    # panel, the series of it, when and between which values before, when and between which values after
    ("Drift heat map", '"x[0]"', "calm", (None, 0.1), "drifted", (0.2, None)),
    ("Top features", '"x[0]"', "calm", (None, 0.1), "drifted", (0.2, None)),
    ("Chosen statistic", '"x[0]"', "calm", (None, 0.1), "drifted", (0.2, None)),
    ("Output distribution", '"bin": "9: ', "calm", (None, 0.17), "drifted", (0.19, None)),
    ("Output distribution over time", '"bin": "9: ', "calm", (None, 0.17), "drifted", (0.19, None)),
    ("Realised", '"accuracy"', "calm", (0.7, None), "drifted", (None, 0.7)),
    ("Realised less estimated", '"accuracy"', "calm", (-0.06, 0.06), "drifted", (None, -0.06)),
    ("Not as in training", '"x[0]", "kind": "out_of_range"', "calm", (None, 0.02), "drifted", (0.0005, None)),
    ("Label coverage", LABEL, "calm", (0.99, None), "delayed", (0.49, 0.51)),
    ("Failed", "brittle", "calm", (0.05, 0.6), "failing", (0.8, None)),
    ("Segments of workers that died", "", "calm", (-1, 1), "killed", (0, None)),
    ("Scraped", "up", "calm", (0, None), "over", (None, 1)),
    ("Readable", "", "calm", (0, None), "over", ()),
    ("Ready", "", "calm", (0, None), "over", ()),
    ("In flight", "", "calm", (-1, None), "over", ()),
]
"""Of versions, the one with a baseline from training data is looked at. () is nothing: no series is left."""


def the_panel_that_claims_to_show_a_change_shows_it(
    played: Played, title: str, series: str, before: tuple[str, tuple[Any, ...]], after: tuple[str, tuple[Any, ...]]
) -> None:
    each = panel(title)
    for when, bounds in (before, after):
        shown = played.at(each.exprs[0], getattr(played, when))
        own = [value for name, value in shown.items() if series in name and '"version": "2"' not in name]
        assert bool(own) == bool(bounds), (when, shown)
        low, high = bounds or (None, None)
        assert all(value > low for value in own if low is not None), (when, shown)
        assert all(value < high for value in own if high is not None), (when, shown)


def labels_that_come_late_show_in_the_panel_of_their_lag(played: Played) -> None:
    """At once, then after two seconds; and labels of predictions of three hours ago."""
    median = panel("Label lag").exprs[0]
    # A point of a curve lies up to a step before its end.
    prompt = played.curves(median, played.began, played.calm + STEP_S)
    late = played.curves(median, played.calm, played.delayed + STEP_S)

    def longest(curves: dict[str, list[float]], label: str) -> float:
        return max(value for name, values in curves.items() if f'"{label}"' in name for value in values)

    assert longest(prompt, "late") <= 1 < longest(late, "late") <= 10
    assert not any(LABEL in name for name in prompt)
    assert 3600 < longest(late, LABEL) <= 6 * 3600


def a_model_that_fails_burns_the_budget_faster(played: Played) -> None:
    burn = panel("Availability: budget burn").exprs[0]
    (before,) = (value for name, value in played.at(burn, played.drifted).items() if "brittle" in name)
    (after,) = (value for name, value in played.at(burn, played.failing).items() if "brittle" in name)
    assert after > 1.05 * before > 1


def a_server_that_is_away_raises_its_alert(played: Played) -> None:
    """It waits for its minute before it wakes anybody."""
    said = {(each["labels"]["job"], each["state"]) for each in played.down["HeadgateDown"]["alerts"]}
    assert said == {("headgate", "pending"), ("headgate-control", "pending")}


def features_that_did_not_change_stay_cold_in_the_heat_map(played: Played) -> None:
    shown = played.at(panel("Drift heat map").exprs[0], played.drifted)
    own = {name: value for name, value in shown.items() if '"1"' in name}
    assert max(own, key=lambda name: own[name]) == json.dumps({"feature": "x[0]", "version": "1"}, sort_keys=True)
    assert all(value < 0.1 for name, value in own.items() if re.search(r"x\[[23]\]", name))


def alarms_of_drift_and_of_performance_show_in_their_panels(played: Played) -> None:
    for board, watches in (("headgate-model", {"training"}), ("headgate-performance", {"performance"})):
        each = panel("Alarms", board)
        before, after = played.at(each.exprs[0], played.calm), played.at(each.exprs[0], played.drifted)
        for watch in watches:
            assert {value for name, value in before.items() if f'"{watch}"' in name} == {0}
            assert {value for name, value in after.items() if f'"{watch}"' in name} == {1}


def requests_count_once_though_both_ports_are_scraped(played: Played) -> None:
    shown = played.at(panel("Requests by outcome").exprs[0], played.drifted)
    once = played.at(f'sum(rate(headgate_requests_total{{job="headgate"}}[{RATE}]))', played.drifted)
    assert sum(shown.values()) == pytest.approx(sum(once.values()))
    both = played.at(f"sum(rate(headgate_requests_total[{RATE}]))", played.drifted)
    assert sum(both.values()) > 1.5 * sum(once.values())


def the_shipped_rules_run_and_tell_of_the_alarms(played: Played) -> None:
    rules = played.rules.values()
    assert {rule["health"] for rule in rules} == {"ok"}
    named = {rule["name"] for rule in rules if rule["type"] == "alerting"}
    assert named == {rule["alert"] for group in alerts(Objectives())["groups"] for rule in group["rules"]}
    said = [
        each["annotations"]["summary"]
        for each in played.rules["HeadgateModelAlarm"]["alerts"]
        if each["state"] == "firing"
    ]
    expected = "m version 1: the watch performance raised an alarm that nobody has acknowledged."
    assert expected in said


def alertmanager_tells_a_webhook_of_the_models_alarms(played: Played) -> None:
    alarm = told_of(played.told)["training"]
    assert alarm["labels"]["alertname"] == "HeadgateModelAlarm"
    assert alarm["labels"]["severity"] == "page"
    assert alarm["annotations"]["runbook_url"] == "docs/runbooks.md#headgatemodelalarm"
    assert alarm["annotations"]["dashboard"] == "/d/headgate-model"
    assert {message["receiver"] for message in played.told} == {"pages"}


def checks() -> Iterator[tuple[str, Callable[[Played], None]]]:
    """Every check by a name."""
    for each in PANELS:
        yield name_of(each), partial(every_query_of_a_panel_shows_something_sensible, each=each)
    for title, series, first, low, then, high in CHANGES:
        change: dict[str, Any] = {"title": title, "series": series, "before": (first, low), "after": (then, high)}
        yield f"change of {title}", partial(the_panel_that_claims_to_show_a_change_shows_it, **change)
    for check in (
        both_ports_expose_what_promtool_approves_of,
        the_page_of_metrics_is_what_is_exposed,
        features_that_did_not_change_stay_cold_in_the_heat_map,
        alarms_of_drift_and_of_performance_show_in_their_panels,
        labels_that_come_late_show_in_the_panel_of_their_lag,
        a_model_that_fails_burns_the_budget_faster,
        a_server_that_is_away_raises_its_alert,
        requests_count_once_though_both_ports_are_scraped,
        the_shipped_rules_run_and_tell_of_the_alarms,
        alertmanager_tells_a_webhook_of_the_models_alarms,
    ):
        yield check.__name__, check


@pytest.mark.slow(85)
@pytest.mark.timeout(900)
def test_what_the_dashboards_show_is_what_happened(tmp_path: Path) -> None:
    """See tests/grafana/play.py. One test, since playing takes long; it names every check that fails."""
    for program in ("prometheus", "promtool", "prometheus-alertmanager"):
        found(program)
    failures = []
    with playing(tmp_path) as played:
        for name, check in checks():
            try:
                check(played)
            except (AssertionError, ValueError) as error:
                failures.append(f"{name}: {error}")
    assert not failures, "\n".join(failures)
