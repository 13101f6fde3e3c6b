"""Every dashboard holds the rules of a good one, and names only metrics and labels that Headgate exposes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gateway.cli import main
from gateway.telemetry.counters import BUCKETS_S
from monitors.grafana.objectives import LATENCIES_S, Objectives
from monitors.grafana.write import boards, files
from tests.grafana.page import PATH as METRICS
from tests.grafana.page import documented
from tests.grafana.promql import GROUP, grouped, metric_of, series

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARDS = [board.document() for board in boards(Objectives())]
TARGET_LABELS = {"job", "instance"}
UNITS = {"reqps", "rowsps", "eps", "percentunit", "s", "bytes", "short", "none", "dateTimeFromNow"}
KINDS = {"timeseries", "stat", "bargauge", "heatmap", "status-history", "state-timeline", "table"}


class Shown(NamedTuple):
    """A panel and the dashboard that it is in."""

    board: dict[str, Any]
    panel: dict[str, Any]

    @property
    def exprs(self) -> list[str]:
        return [target["expr"] for target in self.panel["targets"]]


def shown() -> Iterator[Shown]:
    for board in DASHBOARDS:
        yield from (Shown(board, panel) for panel in board["panels"] if panel["type"] != "row")


PANELS = list(shown())


def name_of(value: Any) -> str:
    if isinstance(value, Shown):
        return f"{value.board['uid'].removeprefix('headgate-')}: {value.panel['title']}"
    return str(value["uid"])


each_board = pytest.mark.parametrize("board", DASHBOARDS, ids=name_of)
each_panel = pytest.mark.parametrize("each", PANELS, ids=name_of)


def variables(board: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in board["templating"]["list"]}


def families() -> dict[str, set[str]]:
    """Labels by metric, as documented; the page is held against a real scrape elsewhere."""
    page = documented(METRICS.read_text(encoding="utf-8"))
    found = {name: {*family.labels, *({"le"} if family.type == "histogram" else ())} for name, family in page.items()}
    recorded = re.findall(r"record: (\S+)", files(Objectives())["prometheus/headgate-recording.rules.yml"])
    return found | {"up": set()} | {name: {"model"} for name in recorded}


# --- the files ---


def test_the_committed_files_are_what_the_code_writes(tmp_path: Path) -> None:
    assert main(["dashboards", "write", str(tmp_path)]) == 0
    written = {
        path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*") if path.is_file()
    }
    assert written == files(Objectives())
    committed = [*DEPLOY.glob("grafana/dashboards/*.json"), *DEPLOY.glob("prometheus/*.rules.yml")]
    assert {path.relative_to(DEPLOY).as_posix(): path.read_text(encoding="utf-8") for path in committed} == written


def test_an_installation_has_its_own_jobs_objectives_and_runbooks(tmp_path: Path) -> None:
    options = ["--job", "gate", "--control-job", "gate-admin", "--availability", "0.99", "--latency-s", "0.25"]
    assert main(["dashboards", "write", str(tmp_path), *options, "--docs", "https://wiki.example/headgate/"]) == 0
    rules = "".join(path.read_text() for path in tmp_path.glob("prometheus/*"))
    assert 'job="headgate' not in rules
    assert 'job="gate"' in rules
    assert 'job="gate-admin"' in rules
    assert 'le="0.25"' in rules
    assert "ratio_rate1h > 0.144 " in rules
    assert "https://wiki.example/headgate/runbooks.md#headgatedown" in rules
    chosen = variables(json.loads((tmp_path / "grafana/dashboards/headgate-overview.json").read_text()))
    assert (chosen["job"]["current"]["value"], chosen["control"]["current"]["value"]) == ("gate", "gate-admin")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--availability", "1"], "availability must be a share between 0 and 1, such as 0.999, got 1"),
        (["--latency-s", "0.2"], "the latency must be one of 0.005, "),
        (["--job", 'a"b'], "the job must be letters, digits and _-./: alone"),
    ],
)
def test_a_wrong_option_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["dashboards", "write", str(tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_latency_objective_is_a_bound_of_a_bucket() -> None:
    assert set(LATENCIES_S) <= set(BUCKETS_S)


# --- dashboards ---


@each_board
def test_a_dashboard_can_be_provisioned(board: dict[str, Any]) -> None:
    assert board["id"] is None
    assert board["editable"] is False
    assert re.fullmatch(r"headgate-[a-z]{1,30}", board["uid"])
    text = json.dumps(board)
    assert "__inputs" not in text
    assert "DS_PROMETHEUS" not in text
    assert "\\u" not in text


@each_board
def test_a_dashboard_has_a_choice_of_data_source_job_and_instance(board: dict[str, Any]) -> None:
    chosen = variables(board)
    assert (chosen["datasource"]["type"], chosen["datasource"]["query"]) == ("datasource", "prometheus")
    assert {"job", "control", "instance"} <= chosen.keys()
    assert chosen["instance"]["multi"]
    for variable in chosen.values():
        if variable["type"] == "query":
            assert variable["datasource"]["uid"] == "${datasource}"


@each_board
def test_every_choice_is_used_and_every_used_variable_is_a_choice(board: dict[str, Any]) -> None:
    queries = [expr for each in PANELS if each.board is board for expr in each.exprs]
    queries += [variable["query"]["query"] for variable in variables(board).values() if variable["type"] == "query"]
    used = {name for query in queries for name in re.findall(r"\$(\w+)", query)} - {"__rate_interval"}
    assert used == variables(board).keys() - {"datasource"}


@each_board
def test_panels_are_numbered_once_and_do_not_overlap(board: dict[str, Any]) -> None:
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_the_dashboards_differ_in_uid_and_title() -> None:
    assert len({board["uid"] for board in DASHBOARDS}) == len({board["title"] for board in DASHBOARDS}) == 4


# --- panels ---


@each_panel
def test_a_panel_says_what_it_shows_in_which_unit(each: Shown) -> None:
    panel = each.panel
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["type"] in KINDS
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    titles = [other.panel["title"] for other in PANELS if other.board is each.board]
    assert titles.count(panel["title"]) == 1


@each_panel
def test_a_panel_asks_for_metrics_and_labels_that_are_documented(each: Shown) -> None:
    known = families()
    for target in each.panel["targets"]:
        found = series(target["expr"])
        assert found
        labels: set[str] = set()
        for selector in found:
            own = known[selector.name if selector.name in known else metric_of(selector.name)] | TARGET_LABELS
            assert selector.matchers.keys() <= own
            labels |= own
        assert grouped(target["expr"]) <= labels
        legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert legend <= (grouped(target["expr"]) if GROUP.search(target["expr"]) else labels)


@each_panel
def test_a_panel_takes_each_series_from_one_job_and_the_chosen_instances(each: Shown) -> None:
    page = documented(METRICS.read_text(encoding="utf-8"))
    for expr in each.exprs:
        for selector in series(expr):
            if ":" in selector.name:
                assert selector.matchers["job"] == "$job"
                continue
            assert selector.matchers["instance"] == "$instance"
            family = page.get(selector.name) or page.get(metric_of(selector.name))
            admin = family is not None and (family.admin_only or selector.name.startswith("process_"))
            expected = "$job|$control" if selector.name == "up" else "$control" if admin else "$job"
            assert selector.matchers["job"] == expected


@each_panel
def test_counters_are_rates_over_the_interval_of_the_picture_and_gauges_are_not(each: Shown) -> None:
    page = documented(METRICS.read_text(encoding="utf-8"))
    for expr in each.exprs:
        for selector in series(expr):
            family = page.get(selector.name) or page.get(metric_of(selector.name))
            grows = family is not None and (family.type == "counter" or selector.name != metric_of(selector.name))
            if grows and selector.name == "headgate_label_lag_seconds_count" and not selector.over:
                continue  # all labels so far: the n of a coverage
            assert (selector.within in ("rate", "increase")) == grows
            assert selector.over == ("$__rate_interval" if grows else "")


@each_panel
def test_no_panel_averages_quotients(each: Shown) -> None:
    for expr in each.exprs:
        assert not re.search(r"\bavg\b", expr)
        assert "histogram_quantile" not in expr or re.search(r"sum by \(le[,)]", expr)
        for part, whole in re.findall(r"(\w+)[^/]*? / \(?(\w+)", expr):
            assert ":" in expr or {part, whole} <= {"sum", "histogram_quantile"}


@each_panel
def test_a_share_stands_beside_what_it_is_a_share_of(each: Shown) -> None:
    defaults = each.panel["fieldConfig"]["defaults"]
    if defaults["unit"] != "percentunit":
        return
    overrides = each.panel["fieldConfig"]["overrides"]
    counts = {override["matcher"]["options"] for override in overrides}
    assert counts
    assert counts < {target["refId"] for target in each.panel["targets"]}
    assert re.search(r"interval|window|so far", each.panel["description"])
