"""Ratios, medians, verdicts and tables of the benchmark."""

from __future__ import annotations

import pytest

from loadtests import report
from loadtests.cases import Case
from loadtests.report import Result, Sample

RATE = Case("r", "tiny", "json", 64, hold=1.6, reach=2.0)
LATENCY = Case("l", "tiny", "json", 1, measure="p50", hold=1.25, reach=1.0)

HELD = Case("d", "tiny", "json", 64, "unjournaled", hold=0.97)
"""A row with a number to hold and none to reach."""


def result(case: Case, ours: list[float], theirs: list[float]) -> Result:
    return Result(case, tuple(map(Sample, ours)), tuple(map(Sample, theirs)))


def test_the_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians() -> None:
    # A machine that slows down by half for two rounds slows both sides.
    found = result(RATE, [200.0, 100.0, 90.0], [100.0, 50.0, 100.0])
    assert found.ratios == [2.0, 2.0, 0.9]
    assert found.ratio == 2.0


@pytest.mark.parametrize(
    ("case", "ratio", "verdict"),
    [
        (RATE, 2.0, "reached"),
        (RATE, 1.99, "held"),
        (RATE, 1.6, "held"),
        (RATE, 1.59, "below"),
        (LATENCY, 1.0, "reached"),
        (LATENCY, 1.01, "held"),
        (LATENCY, 1.25, "held"),
        (LATENCY, 1.26, "below"),
        (HELD, 5.0, "held"),
        (HELD, 0.97, "held"),
        (HELD, 0.96, "below"),
        (Case("h", "tiny", "json", 1, measure="p50", hold=1.05), 1.06, "below"),
        (Case("i", "tiny", "json", 64), 0.1, ""),
    ],
)
def test_the_verdict_compares_in_the_direction_of_the_measure(case: Case, ratio: float, verdict: str) -> None:
    found = result(case, [ratio * 100], [100.0])
    assert found.verdict == verdict
    assert found.is_bad == (verdict == "below")


def test_a_failed_row_is_bad_whatever_its_earlier_rounds_gave() -> None:
    found = Result(RATE, (Sample(300.0),), (Sample(100.0),), failure="in round 2: 1 status errors")
    assert found.verdict == "FAILED"
    assert found.is_bad
    assert found.document()["ratios"] == []
    assert "r: FAILED: in round 2: 1 status errors" in report.remarks([found])


def test_a_skipped_row_is_not_bad_but_says_why() -> None:
    found = Result(RATE, skipped="headgate serve has no --workers")
    assert (found.verdict, found.is_bad) == ("skipped", False)
    assert report.remarks([found]) == ["r: skipped: headgate serve has no --workers"]


def test_the_table_shows_median_spread_and_targets_side_by_side() -> None:
    ours = tuple(Sample(value, cpu_us=9.0) for value in (90_000.0, 100_000.0, 110_000.0))
    theirs = tuple(Sample(50_000.0, cpu_us=20.0) for _ in ours)
    head, rule, row = report.table([Result(RATE, ours, theirs)]).splitlines()
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        *("tiny, JSON, c = 64", "raw uvicorn echo", "2.000", "1.800-2.200", "1.6", "2", "reached"),
        *("100,000/s", "50,000/s", "9.0 / 20.0"),
    ]
    assert len(head) == len(rule) == len(row)


def test_a_latency_row_shows_microseconds() -> None:
    assert "62 us" in report.table([result(LATENCY, [62.0], [60.0])])


def test_a_load_generator_at_its_limit_is_told() -> None:
    busy = Result(RATE, (Sample(1.0, generator_share=0.97),), (Sample(1.0),))
    idle = Result(RATE, (Sample(1.0, generator_share=0.5),), (Sample(1.0),))
    assert "load generator used 97% of its core" in report.remarks([busy])[0]
    assert report.remarks([idle]) == []


def test_only_what_is_between_the_markers_is_replaced() -> None:
    page = f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n"
    once = report.replace_between_markers(page, "new\n")
    assert once == f"above\n{report.BEGIN}\nnew\n{report.END}\nbelow\n"
    assert report.replace_between_markers(once, "new") == once


@pytest.mark.parametrize(
    "page",
    ["nothing", report.BEGIN, f"{report.END} {report.BEGIN}", f"{report.BEGIN} {report.END} {report.BEGIN}"],
)
def test_a_document_without_its_markers_is_left_alone(page: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        report.replace_between_markers(page, "new")
